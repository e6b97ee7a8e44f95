"""The package of a job has only code, secrets stay out of it, and a job that is tried again resumes."""

import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cluster import checks

ROOT = Path(__file__).parents[2]
LIMIT_MB = 5


def test_uploaded_package_has_only_code_and_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__"])
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    assert {"jobs/train_celeba.py", "cpgan_ray/pipelines/train.py", "cluster/gpu_check.py", "cluster/train_or_resume.sh"} <= set(
        names
    )
    assert [name for name in names if name.endswith((".env", ".db", ".arrow", ".png")) and not name.endswith("mlflow.env")] == []
    assert (tmp_path / "package.zip").stat().st_size < LIMIT_MB * 2**20


SECRET_FILES = ["cluster/.env", "cluster/kubernetes/base/secrets.env", "cluster/vms/secrets.env"]


@pytest.mark.parametrize("name", SECRET_FILES)
def test_secret_file_is_in_no_package_image_or_repository(name):
    for file in (".rayignore", ".gitignore"):
        assert name in (ROOT / file).read_text().splitlines()
    sent = [line for line in (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [line for line in sent if name.startswith(line[1:])] == []


def make_secrets(folder: Path) -> dict[str, dict[str, str]]:
    """Run `make secrets`; returns the variables in each of its files."""
    subprocess.run(["make", "--file", str(ROOT / "Makefile"), "secrets"], cwd=folder, check=True, capture_output=True)
    return {name: dict(line.split("=", 1) for line in (folder / name).read_text().splitlines()) for name in SECRET_FILES}


def test_make_secrets_keeps_old_secrets_and_adds_random_ones(tmp_path):
    for folder in ("kubernetes/base", "vms"):
        (tmp_path / "cluster" / folder).mkdir(parents=True)
    (tmp_path / "cluster/.env").write_text("RAY_AUTH_TOKEN=old-token\nWORKERS=3\n")
    files = make_secrets(tmp_path)
    assert make_secrets(tmp_path) == files
    settings, kubernetes, vms = files.values()
    assert (settings["RAY_AUTH_TOKEN"], settings["WORKERS"]) == ("old-token", "3"), "an existing file is extended"
    new = [settings[name] for name in checks.SECRETS if name != "RAY_AUTH_TOKEN"]
    assert len(set(new)) == len(new) == 5
    assert [secret for secret in new if not re.fullmatch(r"[0-9a-f]{64}", secret)] == []
    assert kubernetes == {
        "auth_token": "old-token",
        "postgres_password": settings["POSTGRES_PASSWORD"],
        "owner_key": settings["CPGAN_OWNER_KEY"],
        "api_key": settings["CPGAN_API_KEY"],
        "mlflow_username": "cpgan",
        "mlflow_password": settings["MLFLOW_TRACKING_PASSWORD"],
        "mlflow_session_key": settings["MLFLOW_FLASK_SERVER_SECRET_KEY"],
    }
    assert vms["MLFLOW_AUTH_ADMIN_PASSWORD"] == vms["MLFLOW_TRACKING_PASSWORD"] == settings["MLFLOW_TRACKING_PASSWORD"]
    assert vms["CPGAN_OWNER_KEY"] == settings["CPGAN_OWNER_KEY"]
    assert [name for name in vms if name.startswith(("RAY_", "POSTGRES_"))] == []
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in SECRET_FILES} == {0o600}


def attempt(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(ROOT / "cluster/train_or_resume.sh"), str(output), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_train_or_resume_trains_first_and_resumes_afterwards(tmp_path):
    first = attempt(tmp_path / "run", "smoke", "--k", "0")
    assert (first.returncode, first.stderr) == (2, "error: k is 0; it must be at least 1\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    further = attempt(tmp_path / "run", "smoke", "--k", "0")
    assert further.returncode == 2
    assert "begin the run again" in further.stderr or "config.json" in further.stderr
