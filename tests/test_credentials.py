"""Secrets: a run that is given some leaves them nowhere."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cpgan_ray import cli
from cpgan_ray.config import TrackingConfig
from cpgan_ray.credentials import MLFLOW, S3, passed, redacted, taken
from cpgan_ray.tracking.store import open_store, tracking_uri
from tests.process import HANG_S

ROOT = Path(__file__).parents[1]
PASSWORD, ENCODED = "pa55/w0rd@home", "pa55%2Fw0rd%40home"
TOKEN, KEY = "t0k3n" * 8, "k3y/of+the/st0re"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Whatever goes to the environment is gone after the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in passed():
        del os.environ[name]


@pytest.mark.parametrize(
    ("uri", "left", "variables"),
    [
        (f"http://alice:{ENCODED}@host:5000/x", "http://host:5000/x", dict(zip(MLFLOW, ("alice", PASSWORD), strict=True))),
        ("https://alice@host", "https://host", {MLFLOW[0]: "alice"}),
        ("--tracking.uri=http://a:b@c@host", "--tracking.uri=http://host", dict(zip(MLFLOW, ("a", "b@c"), strict=True))),
        ("s3://AK:s%2Fk@bucket/runs?region=x", "s3://bucket/runs?region=x", dict(zip(S3, ("AK", "s/k"), strict=True))),
        ("postgresql://alice:secret@host/db", "postgresql://alice:secret@host/db", {}),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db", {}),
        ("http://host/a@b", "http://host/a@b", {}),
    ],
)
def test_credentials_leave_a_uri_for_the_variables_by_which_libraries_find_them(uri, left, variables):
    assert taken(uri) == left
    assert passed() == variables


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cannot open postgresql://alice:secret@host/db now", "cannot open postgresql://***@host/db now"),
        ('{"uri": "abfs://:key@account.net/x"}', '{"uri": "abfs://***@account.net/x"}'),
        ("abfs://x/y?client_secret=s3&tenant_id=7", "abfs://x/y?client_secret=***&tenant_id=7"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_what_has_to_stay_in_a_uri_is_stars_in_what_is_said(text, said):
    assert redacted(text) == said


def test_no_configuration_holds_credentials():
    flags = ["smoke", "--tracking.uri", f"http://alice:{ENCODED}@host", "--recovery.checkpoints=s3://AK:SK@bucket"]
    config = cli.parse(flags, default="smoke", description="")
    assert (config.tracking.uri, config.recovery.checkpoints) == ("http://host", "s3://bucket")
    assert passed().keys() == {*MLFLOW, *S3}


@pytest.mark.parametrize("scheme", ["http", "gopher"])
def test_a_store_that_does_not_answer_is_named_without_its_credentials(scheme, tmp_path, capsys):
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

    def job() -> None:
        with open_store(TrackingConfig(uri=f"{scheme}://alice:{ENCODED}@127.0.0.1:9"), tmp_path / "run"):
            pass

    with pytest.raises(SystemExit):
        cli.run(job)
    said = capsys.readouterr().err
    assert f"{scheme}://" in said
    assert "127.0.0.1:9" in said
    assert ENCODED not in said


def test_a_run_with_secrets_leaves_them_nowhere(tmp_path, cache_dir, mlflow_server, request):
    """Not in what it prints, in its folder, in the tracking server's database and artifacts, nor in Ray's logs."""
    address = mlflow_server.start().removeprefix("http://")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "PYTEST_"))}
    ray_logs = tempfile.mkdtemp(dir="/tmp", prefix="ray-")  # short: Ray makes socket paths of it
    request.addfinalizer(lambda: shutil.rmtree(ray_logs, ignore_errors=True))  # Ray's processes may still write there
    env |= {
        "RAY_TMPDIR": ray_logs,
        "MLFLOW_TRACKING_URI": f"http://alice:{ENCODED}@{address}",
        "RAY_AUTH_TOKEN": TOKEN,
        "AWS_SECRET_ACCESS_KEY": KEY,
    }
    output = tmp_path / "runs" / "run"
    flags = ["smoke", "--epochs", "1", "--runtime.backend", "ray", "--attacks.names", "ridge", "--tracking.no-log-models"]
    flags += ["--output", str(output), "--cache-dir", str(cache_dir)]
    job = [sys.executable, str(ROOT / "jobs" / "train_celeba.py"), *flags]
    ran = subprocess.run(job, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode == 0, ran.stderr
    files = [path for folder in (tmp_path, Path(ray_logs)) for path in folder.rglob("*") if path.is_file()]
    assert {"config.json", "report.json", "server.db", "metrics.jsonl", "raylet.out", "gcs_server.out"} <= {
        path.name for path in files
    }
    said = {"stdout": ran.stdout.encode(), "stderr": ran.stderr.encode(), **{str(path): path.read_bytes() for path in files}}
    secrets = [secret.encode() for secret in (PASSWORD, ENCODED, TOKEN, KEY)]
    assert [where for where, content in said.items() if any(secret in content for secret in secrets)] == []
    assert json.loads((output / "config.json").read_text())["tracking"]["uri"] is None


def test_the_api_keeps_credentials_out_too():
    assert tracking_uri(TrackingConfig(uri=f"http://alice:{ENCODED}@host"), Path("x")) == "http://host"
    assert passed()["MLFLOW_TRACKING_PASSWORD"] == PASSWORD
