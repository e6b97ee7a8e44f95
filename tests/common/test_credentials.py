"""Tests that the secrets of a run appear in none of its outputs."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray import cli
from cpgan_ray.common.credentials import MLFLOW, S3, export_env, move_to_env, redacted, redacted_values
from cpgan_ray.common.ownership import KEY_VARIABLE
from cpgan_ray.config import TrackingConfig
from cpgan_ray.tracking.store import open_store, tracking_uri
from tests.data.bucket import running
from tests.process import HANG_S, RIDGE_ONLY

ROOT = Path(__file__).parents[2]
PASSWORD, ENCODED = "pa55/w0rd@home", "pa55%2Fw0rd%40home"
TOKEN, KEY, URI_KEY = "t0k3n" * 8, "k3y/of+the/st0re", "an0ther%2Fk3y%2Bof"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Restores the environment variables after the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in export_env().keys() - {KEY_VARIABLE}:
        del os.environ[name]


@pytest.mark.parametrize(
    ("uri", "stripped", "variables"),
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
def test_move_to_env_moves_credentials_to_the_libraries_variables(uri, stripped, variables):
    assert move_to_env(uri) == stripped
    assert {name: value for name, value in export_env().items() if name != KEY_VARIABLE} == variables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open postgresql://alice:secret@host/db now", "cannot open postgresql://***@host/db now"),
        ('{"uri": "abfs://:key@account.net/x"}', '{"uri": "abfs://***@account.net/x"}'),
        ("abfs://x/y?client_secret=s3&tenant_id=7", "abfs://x/y?client_secret=***&tenant_id=7"),
        ("S3://AK:s/k+/x@bucket/p", "S3://***@bucket/p"),
        ("s3://AK:1/k@bucket", "s3://***@bucket"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("x?passwd=a&pwd=b&credential=c#access_token=d&page=2", "x?passwd=***&pwd=***&credential=***#access_token=***&page=2"),
        ("?X-Amz-Signature=ab&X-Amz-Date=2&X-Amz-Credential=c", "?X-Amz-Signature=***&X-Amz-Date=2&X-Amz-Credential=***"),
        ("?%70assword=abc&x=1", "?%70assword=***&x=1"),
        ('h?pwd="a b"&c=1', "h?pwd=***&c=1"),
        ('{"a":"http://host","b":"me@y"}', '{"a":"http://host","b":"me@y"}'),
        ('{"u":"s3://b?token=","k":"v"}', '{"u":"s3://b?token=","k":"v"}'),
        ('{"u":"s3://b?token=abc","k":"v"}', '{"u":"s3://b?token=***","k":"v"}'),
        ("http://h?next=http%3A%2F%2Falice%3Apw%40host&x=1", "http://h?next=http%3A%2F%2F***%40host&x=1"),
        ("'http://al\"i:p'a@h', 'x'", "'http://***@h', 'x'"),
        ("1http://u:p@h,ftp://v:q@i", "1http://***@h,ftp://***@i"),
        ('"Authorization": "Basic YTpi"', '"Authorization": "Basic ***"'),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_redacted_uri_has_stars_in_place_of_secrets(text, expected):
    assert redacted(text) == expected


SAFE = "abcdefghijklmnopqrstuvwxyz0123456789.-"
WORDS = st.text(SAFE, min_size=1, max_size=8).filter(lambda text: text[0].isalpha())
RESERVED = "/?#@:&=+%$,;'\"`<>[]{}()|\\^ ~!*"
SECRETS = st.text(RESERVED + "xyzXYZ19\u00e9", min_size=1, max_size=12).map("S3CRE7".__add__)
SECRET_NAMES = st.sampled_from(
    [
        "password",
        "passwd",
        "PWD",
        "sslpassword",
        "token",
        "access_token",
        "sig",
        "X-Amz-Signature",
        "credential",
        "api_key",
        "secret",
    ]
)
SCHEMES = st.sampled_from(["http", "HTTPS", "s3", "Postgresql+psycopg", "abfs", "gs", "redis"])
FRAMES = st.sampled_from(
    ["{}", "cannot open {} now", "--tracking.uri={} --k 3", "({!r}, 'x@y')", '<a href="{}">x@y</a>', "{}\nme@x"]
)


@st.composite
def uris(draw):
    """A URI with percent-encoded secrets; the secrets, plain and encoded; the other parts of the URI."""
    user, host, path, secret, other = (draw(s) for s in (WORDS, WORDS, WORDS, SECRETS, SECRETS))
    value, name = draw(SECRETS), draw(SECRET_NAMES)
    plain = draw(WORDS.filter(lambda word: not re.search("pass|pwd|key|sig|tok|auth|cred|secret", word)))
    encoded = [quote(text, safe="") for text in (secret, value, other)]
    uri = f"{draw(SCHEMES)}://{user}:{encoded[0]}@{host}/{path}?{plain}={path}&{name}={encoded[1]}"
    fragment = draw(st.sampled_from(["", "#frag", f"#access_token={encoded[2]}&{plain}={path}"]))
    return uri + fragment, [secret, value, other, *encoded], (f"{host}/{path}?{plain}={path}&{name}=", plain)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(uris(), FRAMES, st.booleans())
def test_redacted_text_has_no_secret_and_all_other_parts(uri_and_parts, frame, as_json):
    uri, secrets, others = uri_and_parts
    text = frame.format(uri)
    shown = json.loads(redacted(json.dumps({"a": [text], "x@y": 1})))["a"][0] if as_json else redacted(text)
    assert [secret for secret in secrets if secret in shown] == []
    assert "S3CRE7" not in shown
    assert all(other in shown for other in others)
    before, behind = frame.format("\0").replace("'", "").replace("\\x00", "\0").split("\0")
    assert shown.replace("'", "").startswith(before)
    assert shown.replace("'", "").endswith(behind)
    assert redacted(shown) == shown


@settings(derandomize=True, deadline=None, max_examples=150)
@given(SCHEMES, WORDS, SECRETS.filter(lambda secret: "@" not in secret), WORDS)
def test_redacted_values_of_one_uri_replaces_unencoded_secrets(scheme, user, secret, host):
    """Secrets without percent-encoding. Excluded: an @, and digits before a slash at the beginning, which would be a port."""
    shown = redacted_values({"uri": [f"{scheme}://{user}:{secret}@{host}"]})["uri"][0]
    assert shown == f"{scheme}://***@{host}"
    if scheme in ("http", "HTTPS", "s3"):
        assert move_to_env(f"--x={scheme}://{user}:{secret}@{host}/p") == f"--x={scheme}://{host}/p"


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text(max_size=60))
def test_redacted_text_without_uris_and_parameters_is_unchanged(text):
    if "://" not in text and "=" not in text and "%2" not in text and "uthorization" not in text:
        assert redacted(text) == text
        assert move_to_env(text) == text


def test_secret_seen_in_a_uri_is_redacted_in_later_texts():
    redacted("postgresql://alice:long%2Fenough@host/db")
    assert redacted('FATAL: password "long/enough" is wrong') == 'FATAL: password "***" is wrong'
    assert redacted(f"key {os.environ[KEY_VARIABLE]}!") == "key ***!"


def test_config_parsed_from_flags_has_no_credentials():
    flags = ["smoke", "--tracking.uri", f"http://alice:{ENCODED}@host", "--recovery.checkpoints=s3://AK:SK@bucket"]
    config = cli.parse(flags, default="smoke", description="")
    assert (config.tracking.uri, config.recovery.checkpoints) == ("http://host", "s3://bucket")
    assert export_env().keys() == {*MLFLOW, *S3, KEY_VARIABLE}


@pytest.mark.parametrize("scheme", ["http", "gopher"])
def test_unreachable_store_is_named_without_its_credentials(scheme, tmp_path, capsys):
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

    def job() -> None:
        with open_store(TrackingConfig(uri=f"{scheme}://alice:{ENCODED}@127.0.0.1:9"), tmp_path / "run"):
            pass

    with pytest.raises(SystemExit):
        cli.run(job)
    error_output = capsys.readouterr().err
    assert f"{scheme}://" in error_output
    assert "127.0.0.1:9" in error_output
    assert ENCODED not in error_output


def test_run_with_secrets_writes_them_nowhere(tmp_path, cache_dir, mlflow_server, request):
    """Not to its output, its folder, the tracking server's database and artifacts, nor Ray's logs."""
    address = mlflow_server.start().removeprefix("http://")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "PYTEST_"))}
    ray_logs = tempfile.mkdtemp(dir="/tmp", prefix="ray-")  # short: Ray's socket paths begin with it
    request.addfinalizer(lambda: shutil.rmtree(ray_logs, ignore_errors=True))  # Ray's processes may still write there
    env |= {
        "RAY_TMPDIR": ray_logs,
        "RAY_raylet_start_wait_time_s": "300",  # on a busy machine
        "MLFLOW_TRACKING_URI": f"http://alice:{ENCODED}@{address}",
        "RAY_AUTH_TOKEN": TOKEN,
        "AWS_SECRET_ACCESS_KEY": KEY,
    }
    output = tmp_path / "runs" / "run"
    flags = [
        "smoke",
        "--adversaries",
        "ridge",
        "--epochs",
        "1",
        "--runtime.backend",
        "ray",
        *RIDGE_ONLY.split(),
        "--tracking.no-log-models",
    ]
    flags += ["--output", str(output), "--cache-dir", str(cache_dir)]
    job = [sys.executable, str(ROOT / "jobs" / "train_celeba.py"), *flags]
    for bucket in ("stores", "checkpoints"):
        (tmp_path / "buckets" / bucket).mkdir(parents=True)
    with running(tmp_path / "buckets") as store:
        job += ["--shared-cache", store.uri("stores", credentials=f"AK:{URI_KEY}@")]
        job += ["--recovery.checkpoints", store.uri("checkpoints/run", credentials=f"AK:{URI_KEY}@")]
        result = subprocess.run(job, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert result.returncode == 0, result.stderr
    files = [path for folder in (tmp_path, Path(ray_logs)) for path in folder.rglob("*") if path.is_file()]
    assert {"config.json", "report.json", "server.db", "metrics.jsonl", "raylet.out", "gcs_server.out"} <= {
        path.name for path in files
    }
    outputs = {
        "stdout": result.stdout.encode(),
        "stderr": result.stderr.encode(),
        **{str(path): path.read_bytes() for path in files},
    }
    secrets = [secret.encode() for secret in (PASSWORD, ENCODED, TOKEN, KEY, URI_KEY, unquote(URI_KEY), os.environ[KEY_VARIABLE])]
    assert [name for name, content in outputs.items() if any(secret in content for secret in secrets)] == []
    written = json.loads((output / "config.json").read_text())
    assert written["tracking"]["uri"] is None
    assert written["shared_cache"].startswith("s3://stores")
    assert any((tmp_path / "buckets" / "stores").iterdir())


def test_tracking_uri_has_no_credentials():
    assert tracking_uri(TrackingConfig(uri=f"http://alice:{ENCODED}@host"), Path("x")) == "http://host"
    assert export_env()["MLFLOW_TRACKING_PASSWORD"] == PASSWORD
