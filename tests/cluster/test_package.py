"""What is sent to a cluster, and what a job that is tried again runs there."""

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_MB = 5


def test_the_package_that_ray_uploads_is_the_code_alone_and_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__"])
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    assert {"jobs/train_celeba.py", "cpgan_ray/training.py", "cluster/gpu_check.py", "cluster/train_or_resume.sh"} <= set(names)
    assert [name for name in names if name.endswith((".env", ".db", ".arrow", ".png")) and not name.endswith("mlflow.env")] == []
    assert (tmp_path / "package.zip").stat().st_size < LIMIT_MB * 2**20


@pytest.mark.parametrize("name", ["cluster/.env", "cluster/kubernetes/base/secrets.env"])
def test_secrets_are_kept_out_of_the_package_the_image_and_the_repository(name):
    for file in (".rayignore", ".gitignore"):
        assert name in (ROOT / file).read_text().splitlines()
    sent = [line for line in (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [line for line in sent if name.startswith(line[1:])] == []


def test_secrets_are_made_once_at_random_and_for_the_user_alone(tmp_path):
    (tmp_path / "cluster/kubernetes/base").mkdir(parents=True)
    made = []
    for _ in range(2):
        subprocess.run(["make", "--file", str(ROOT / "Makefile"), "secrets"], cwd=tmp_path, check=True, capture_output=True)
        made.append((tmp_path / "cluster/.env").read_text())
    assert made[0] == made[1]
    settings = dict(line.split("=", 1) for line in made[0].splitlines())
    assert (len(settings["RAY_AUTH_TOKEN"]), len(settings["POSTGRES_PASSWORD"])) == (64, 64)
    other = dict(line.split("=", 1) for line in (tmp_path / "cluster/kubernetes/base/secrets.env").read_text().splitlines())
    assert other == {"auth_token": settings["RAY_AUTH_TOKEN"], "postgres_password": settings["POSTGRES_PASSWORD"]}
    for name in ("cluster/.env", "cluster/kubernetes/base/secrets.env"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def attempt(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(ROOT / "cluster/train_or_resume.sh"), str(output), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_first_attempt_trains_and_a_further_one_resumes(tmp_path):
    first = attempt(tmp_path / "run", "smoke", "--k", "0")
    assert (first.returncode, first.stderr) == (2, "error: k is 0; it must be at least 1\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    further = attempt(tmp_path / "run", "smoke", "--k", "0")
    assert further.returncode == 2
    assert "begin the run again" in further.stderr or "config.json" in further.stderr
