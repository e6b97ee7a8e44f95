"""Tests of the signatures that mark a user's own files."""

import pytest

from cpgan_ray.common.ownership import KEY_VARIABLE, is_own, owner_key, sign


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "cpgan_ray"


def test_is_own_after_a_byte_changes_is_false(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert not is_own(path)
    sign(path)
    assert is_own(path)
    path.write_text("{ }")
    assert not is_own(path)


def test_is_own_with_another_user_or_file_name_is_false(tmp_path, monkeypatch):
    path, other = tmp_path / "config.json", tmp_path / "search.json"
    path.write_text("{}")
    other.write_text("{}")
    sign(path)
    (tmp_path / "search.json.owner").write_bytes((tmp_path / "config.json.owner").read_bytes())
    assert is_own(path) and not is_own(other)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_own(path)


def test_owner_key_is_readable_only_for_the_user(state, tmp_path):
    key = owner_key()
    assert key is not None and owner_key() == key
    assert (state / "owner.key").stat().st_mode & 0o777 == 0o600


def test_owner_key_in_the_environment_has_priority(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("x")
    monkeypatch.setenv(KEY_VARIABLE, "0f" * 32)
    sign(path)
    assert is_own(path)
    monkeypatch.delenv(KEY_VARIABLE)
    assert not is_own(path)


def test_sign_without_a_home_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/nowhere")
    path = tmp_path / "f"
    path.write_text("x")
    sign(path)
    assert not is_own(path) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, "ß" * 64, b"0" * 10_000_000], ids=len)
def test_is_own_with_a_damaged_signature_is_false(tmp_path, content):
    path = tmp_path / "f"
    path.write_text("x")
    sign(path)
    (tmp_path / "f.owner").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not is_own(path)
