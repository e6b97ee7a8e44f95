# `make train` and `make test` each work alone on a fresh clone; Python 3.11 or newer is all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Files of tests that run at a time, each in a process of its own; every Ray that they start has two CPUs.
TESTS_AT_ONCE ?= 2
BIN := .venv/bin

.PHONY: train test test-all lint secrets pin lock gpu-check

train: .venv/ready
	$(BIN)/python jobs/train_celeba.py

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile

test-all: .venv/ready
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile -m ""

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright

# Checks what this project does on a GPU, on this machine's; fails where there is none.
gpu-check: .venv/ready
	$(BIN)/python cluster/gpu_check.py

# What a cluster's parts recognise each other by, and the key of a user's own runs: made once, at random, never in the repository,
# readable for this user only. What a file of before lacks is added.
SECRETS := RAY_AUTH_TOKEN POSTGRES_PASSWORD MLFLOW_TRACKING_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY CPGAN_OWNER_KEY
SETTINGS := RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 MLFLOW_TRACKING_USERNAME=cpgan
RANDOM := import secrets; print(secrets.token_hex(32))
secrets:
	@umask 077; touch cluster/.env; chmod 600 cluster/.env; \
	for setting in $(SETTINGS); do grep -q "^$${setting%%=*}=" cluster/.env || echo "$$setting" >> cluster/.env; done; \
	for name in $(SECRETS); do \
		grep -q "^$$name=" cluster/.env || echo "$$name=$$($(PYTHON) -c '$(RANDOM)')" >> cluster/.env || exit 1; \
	done; \
	sed -n -e 's/^RAY_AUTH_TOKEN=/auth_token=/p' -e 's/^POSTGRES_PASSWORD=/postgres_password=/p' -e 's/^CPGAN_OWNER_KEY=/owner_key=/p' \
		-e 's/^MLFLOW_TRACKING_USERNAME=/mlflow_username=/p' -e 's/^MLFLOW_TRACKING_PASSWORD=/mlflow_password=/p' \
		-e 's/^MLFLOW_FLASK_SERVER_SECRET_KEY=/mlflow_session_key=/p' cluster/.env > cluster/kubernetes/base/secrets.env; \
	sed -n -e '/^MLFLOW_/p; /^CPGAN_/p' -e 's/^MLFLOW_TRACKING_\(USERNAME\|PASSWORD\)=/MLFLOW_AUTH_ADMIN_\1=/p' cluster/.env \
		> cluster/vms/secrets.env; \
	chmod 600 cluster/kubernetes/base/secrets.env cluster/vms/secrets.env

# Writes into the files in cluster/ which images they mean, by digest. What is pinned already stays as it is: PIN_FLAGS=--renew asks again.
pin:
	$(PYTHON) cluster/pin_images.py $(PIN_FLAGS)

# Writes the lock files again, see cluster/lock.py.
lock:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	PATH="$(CURDIR)/build/uv/bin:$$PATH" $(PYTHON) cluster/lock.py $(LOCK_FLAGS)

# Files with the checksums in the lock and no others; nothing that no lock names, so that no further index can slip a package in.
INSTALL := $(BIN)/python -m pip install --quiet --require-hashes --no-deps
LOCKS := requirements.lock requirements-torch.lock requirements-dev.lock
# On Linux the default index has torch's build for CUDA, which asks for libraries of its own; its build for CPUs asks for none.
.venv/ready: $(LOCKS) requirements-cuda.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(INSTALL) $(LOCKS:%=--requirement %)
	$(BIN)/python -m pip check > /dev/null || $(INSTALL) --requirement requirements-cuda.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@
