"""Tests of what a local Ray needs on its machine, and of the errors if it is missing."""

import os
import re
import stat
from pathlib import Path

import pytest

from cpgan_ray.common import logs
from cpgan_ray.distributed import machine
from cpgan_ray.distributed.cluster import is_loopback
from cpgan_ray.errors import InputError


@pytest.fixture(autouse=True)
def configured_logging() -> None:
    logs.configure()


@pytest.fixture
def fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder instead of /tmp, and a limit for paths that it does not exceed."""
    monkeypatch.setattr(machine, "FALLBACKS", (tmp_path,))
    monkeypatch.setattr(machine, "MAX_FOLDER_BYTES", len(str(tmp_path)) + 20)
    return tmp_path / f"ray-{os.getuid()}"


def test_temporary_folder_that_is_short_and_writable_is_used_silently(fallback, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert machine.temporary_folder() == str(tmp_path / "ray")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("name", "problem"), [("long/" * 20, "is too long for"), ("file", r"cannot be created \(Not a directory\)")]
)
def test_temporary_folder_that_is_unusable_is_replaced_by_a_private_one(
    variable, name, problem, fallback, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / name))
    assert machine.temporary_folder() == str(fallback / "ray")
    (fallback / "ray").chmod(0o777)  # as Ray does
    assert machine.temporary_folder() == str(fallback / "ray")
    assert stat.S_IMODE(fallback.stat().st_mode) == 0o700
    line, *_ = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"warning: Ray's temporary files go to {re.escape(str(fallback))}/ray: \S+ {problem}.*", line)


@pytest.mark.parametrize("make_unsafe", [lambda f: f.mkdir(mode=0o755), lambda f: f.symlink_to("/"), lambda f: f.touch()])
def test_temporary_folder_that_others_can_use_is_refused(make_unsafe, fallback, tmp_path, monkeypatch):
    make_unsafe(fallback)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 40)))
    with pytest.raises(InputError, match=r"Ray has no folder .*set RAY_TMPDIR"):
        machine.temporary_folder()


def test_ensure_shared_memory_without_it_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "shm")
    with pytest.raises(InputError, match=r"shm, where Ray stores its objects, is missing .*--shm-size.*--runtime\.backend local"):
        machine.ensure_shared_memory()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_ensure_token_creates_one_readable_only_for_the_user(home, capsys):
    machine.ensure_token()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    machine.ensure_token()
    assert path.read_text() == token
    assert "RAY_AUTH_TOKEN" not in os.environ
    machine.warn_of_readable_token()
    assert capsys.readouterr().err == ""


def test_ensure_token_without_a_home_sets_the_environment(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "token")
    machine.ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32
    del os.environ["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    ("variables", "warned"), [({}, True), ({"RAY_AUTH_MODE": "disabled"}, False), ({"RAY_AUTH_TOKEN": "x"}, False)]
)
def test_warn_of_readable_token_only_if_it_is_used(variables, warned, home, monkeypatch, capsys):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    (home / ".ray" / "auth_token").chmod(0o644)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    machine.warn_of_readable_token()
    expected = rf"warning: {re.escape(str(home))}/\.ray/auth_token has mode 0644: [^\n]*chmod 600 it\n" if warned else ""
    assert re.fullmatch(expected, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:6379", True),
        ("localhost:6379", True),
        ("ray://127.0.0.2:10001", True),
        ("[::1]:6379", True),
        ("10.0.0.1:6379", False),
        ("head:6379", False),
        ("auto", False),
    ],
)
def test_is_loopback_recognises_loopback_addresses(address, loopback):
    assert is_loopback(address) == loopback
