# `make train` and `make test` each work on a fresh clone; they need only Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Number of test files that run at a time, each in a process of its own; every Ray that they start has two CPUs.
TESTS_AT_ONCE ?= 3
BIN := .venv/bin

# Keep byte code: every process that the tests start would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train demo test test-all lint secrets pin lock gpu-check

train: .venv/ready
	$(BIN)/python jobs/train_celeba.py

# Small privatizers of two privacy weights, their undefended twin, and the page in the browser on which they are compared: docs/demo.md.
DEMO := build/demo
DEMO_WEIGHTS := 0.1 0.5
DEMO_FLAGS := --data.image-size 32 --batch-size 120 --epochs 6 --game.warmup-epochs 1 --runtime.backend local --runtime.threads 1 --attacks.names ridge kernel \
	--attacks.mlp-widths 16 --attacks.epochs 1 --attacks.max-budget-doublings 0 --attacks.restarts 1 --attacks.max-rows 1000 \
	--attacks.num-shifted 0 --attacks.variants leaked --attacks.no-identity --attacks.no-attributes --attacks.no-similarity \
	--attacks.no-legacy --attacks.fit-fractions --tracking.no-system-metrics
DEMO_RUNS := $(foreach weight,0 $(DEMO_WEIGHTS),$(DEMO)/run-$(weight)/report/report.json)
DEMO_BUNDLES := $(foreach weight,$(DEMO_WEIGHTS),$(DEMO)/bundle-$(weight)/manifest.json)

demo: .venv/ready
	$(BIN)/python -m cpgan_ray.deploy.page > /dev/null
	$(MAKE) --no-print-directory --jobs=2 $(DEMO_RUNS) $(DEMO_BUNDLES)
	$(BIN)/python jobs/serve.py $(dir $(DEMO_BUNDLES)) --replicas 1

$(DEMO)/bundle-%/manifest.json: | $(DEMO)/run-%/report/report.json $(DEMO)/run-0/report/report.json
	rm -rf $(DEMO)/bundle-$*
	$(BIN)/python jobs/export.py $(DEMO)/run-$* --output $(DEMO)/bundle-$* --eve --twin $(DEMO)/run-0

$(DEMO)/run-%/report/report.json: | .venv/ready
	rm -rf $(DEMO)/run-$*
	$(BIN)/python jobs/train_celeba.py faces $(DEMO_FLAGS) --privacy-weight $* --output $(DEMO)/run-$*

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder

test-all: .venv/ready
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder -m ""

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright

# Checks on this machine's GPU what this project does on a GPU; fails if there is no GPU.
gpu-check: .venv/ready
	$(BIN)/python cluster/gpu_check.py

# Makes the secrets of a cluster and the key that signs a user's own runs: random, never in the repository, readable for this user only.
# A secret that exists stays as it is; missing ones are added.
SECRETS := RAY_AUTH_TOKEN POSTGRES_PASSWORD MLFLOW_TRACKING_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY CPGAN_OWNER_KEY CPGAN_API_KEY
SETTINGS := RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 MLFLOW_TRACKING_USERNAME=cpgan
RANDOM := import secrets; print(secrets.token_hex(32))
secrets:
	@umask 077; touch cluster/.env; chmod 600 cluster/.env; \
	for setting in $(SETTINGS); do grep -q "^$${setting%%=*}=" cluster/.env || echo "$$setting" >> cluster/.env; done; \
	for name in $(SECRETS); do \
		grep -q "^$$name=" cluster/.env || echo "$$name=$$($(PYTHON) -c '$(RANDOM)')" >> cluster/.env || exit 1; \
	done; \
	sed -n -e 's/^RAY_AUTH_TOKEN=/auth_token=/p' -e 's/^POSTGRES_PASSWORD=/postgres_password=/p' -e 's/^CPGAN_OWNER_KEY=/owner_key=/p' \
		-e 's/^CPGAN_API_KEY=/api_key=/p' -e 's/^MLFLOW_TRACKING_USERNAME=/mlflow_username=/p' -e 's/^MLFLOW_TRACKING_PASSWORD=/mlflow_password=/p' \
		-e 's/^MLFLOW_FLASK_SERVER_SECRET_KEY=/mlflow_session_key=/p' cluster/.env > cluster/kubernetes/base/secrets.env; \
	sed -n -e '/^MLFLOW_/p; /^CPGAN_OWNER_KEY=/p' -e 's/^MLFLOW_TRACKING_\(USERNAME\|PASSWORD\)=/MLFLOW_AUTH_ADMIN_\1=/p' cluster/.env \
		> cluster/vms/secrets.env; \
	chmod 600 cluster/kubernetes/base/secrets.env cluster/vms/secrets.env

# Writes the digests of images into the files in cluster/. Digests that exist stay as they are, unless PIN_FLAGS=--renew is given.
pin:
	$(PYTHON) cluster/pin_images.py $(PIN_FLAGS)

# Writes the lock files again, see cluster/lock.py.
lock:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	PATH="$(CURDIR)/build/uv/bin:$$PATH" $(PYTHON) cluster/lock.py $(LOCK_FLAGS)

# Installs only packages that a lock names, and only files with the checksums in the lock, so that no other index can add a package.
INSTALL := $(BIN)/python -m pip install --quiet --require-hashes --no-deps
LOCKS := requirements.lock requirements-torch.lock requirements-dev.lock
# On Linux torch's build on the default index is for CUDA and needs further libraries; its build for CPUs needs none.
.venv/ready: $(LOCKS) requirements-cuda.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(INSTALL) $(LOCKS:%=--requirement %)
	$(BIN)/python -m pip check > /dev/null || $(INSTALL) --requirement requirements-cuda.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@
