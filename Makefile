# `make train` and `make test` each work alone on a fresh clone; Python 3.11 or newer is all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Files of tests that run at a time, each in a process of its own; every Ray that they start has two CPUs.
TESTS_AT_ONCE ?= 2
BIN := .venv/bin

.PHONY: train test test-all lint secrets gpu-check

train: .venv/ready
	$(BIN)/python jobs/train_celeba.py

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile

test-all: .venv/ready
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile -m ""

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# Checks what this project does on a GPU, on this machine's; fails where there is none.
gpu-check: .venv/ready
	$(BIN)/python cluster/gpu_check.py

# The token of the Ray cluster and the password of MLflow's database: made once, never in the repository.
secrets: cluster/.env cluster/kubernetes/base/secrets.env

RANDOM := import secrets; print(secrets.token_hex(32))
cluster/.env:
	umask 077; printf 'RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN=%s\nPOSTGRES_PASSWORD=%s\nRAY_API_SERVER_ADDRESS=%s\n' \
		"$$($(PYTHON) -c '$(RANDOM)')" "$$($(PYTHON) -c '$(RANDOM)')" http://127.0.0.1:8265 > $@

cluster/kubernetes/base/secrets.env: cluster/.env
	umask 077; sed -n 's/^RAY_AUTH_TOKEN=/auth_token=/p; s/^POSTGRES_PASSWORD=/postgres_password=/p' $< > $@

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
