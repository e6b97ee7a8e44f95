import pytest

from cpgan_ray.common.ownership import KEY_VARIABLE, is_own, owner_key, sign


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "cpgan_ray"


def test_signed_file_is_own_until_a_byte_of_it_changes(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert not is_own(path)
    sign(path)
    assert is_own(path)
    path.write_text("{ }")
    assert not is_own(path)


def test_signature_of_another_user_or_another_name_does_not_count(tmp_path, monkeypatch):
    path, other = tmp_path / "config.json", tmp_path / "search.json"
    path.write_text("{}")
    other.write_text("{}")
    sign(path)
    (tmp_path / "search.json.owner").write_bytes((tmp_path / "config.json.owner").read_bytes())
    assert is_own(path) and not is_own(other)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_own(path)


def test_key_is_readable_for_the_user_only(state, tmp_path):
    key = owner_key()
    assert key is not None and owner_key() == key
    assert (state / "owner.key").stat().st_mode & 0o777 == 0o600


def test_key_of_the_environment_counts_first(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("x")
    monkeypatch.setenv(KEY_VARIABLE, "0f" * 32)
    sign(path)
    assert is_own(path)
    monkeypatch.delenv(KEY_VARIABLE)
    assert not is_own(path)


def test_without_a_home_nothing_is_own_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/nowhere")
    path = tmp_path / "f"
    path.write_text("x")
    sign(path)
    assert not is_own(path) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, "ß" * 64, b"0" * 10_000_000], ids=len)
def test_damaged_signature_is_none(tmp_path, content):
    path = tmp_path / "f"
    path.write_text("x")
    sign(path)
    (tmp_path / "f.owner").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not is_own(path)
