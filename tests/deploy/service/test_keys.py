"""API keys and the rate of each key."""

import pytest

from cpgan_ray.deploy.service.keys import API_KEY, Keys, keys_of
from cpgan_ray.deploy.service.rate import TokenBuckets
from cpgan_ray.errors import InputError

FIRST, SECOND = "first-key-of-the-test", "second-key-of-the-test"


def test_each_of_several_keys_is_found_by_its_number():
    keys = Keys([FIRST, SECOND, FIRST])
    assert len(keys) == 2
    assert [keys.find(f"Bearer {key}".encode()) for key in (FIRST, SECOND)] == [0, 1]
    assert keys.find(f"bearer  {SECOND} ".encode()) == 1


@pytest.mark.parametrize("header", [None, b"", b"Bearer", FIRST.encode(), b"Basic " + FIRST.encode(), b"Bearer " + b"\xff" * 20])
def test_header_without_a_key_finds_none(header):
    assert Keys([FIRST]).find(header) is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([], "no API key"),
        (["short"], "has 5 characters"),
        (["x" * 15], "has 15 characters"),
        (["x" * 600], "has 600 characters"),
        (["with a blank in it ..."], "characters that no key has"),
        (["schlüssel-schlüssel"], "characters that no key has"),
        ([FIRST, "evil\r\nheader: value...."], "API key 2 has characters"),
        ([f"{i:020}" for i in range(1001)], "1001 API keys"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_showing_them(keys, words):
    with pytest.raises(InputError, match=words) as error:
        Keys(keys)
    assert not any(key in str(error.value) for key in keys)


def test_keys_are_in_no_dump_of_the_object():
    assert FIRST not in repr(vars(Keys([FIRST])))


def test_keys_come_from_the_environment_or_a_file(tmp_path):
    assert keys_of({API_KEY: f" {FIRST}, {SECOND}\n"}, None) == [FIRST, SECOND]
    assert keys_of({}, None) == []
    file = tmp_path / "keys"
    file.write_text(f"# of Alice\n{FIRST}\n\n  {SECOND}\n")
    assert keys_of({API_KEY: "ignored"}, file) == [FIRST, SECOND]


@pytest.mark.parametrize("content", [None, "schlüssel\n".encode(), b"x" * (2 << 20)], ids=["absent", "not ASCII", "large"])
def test_file_of_keys_that_cannot_be_read_is_refused(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="give a file with one API key a line"):
        keys_of({}, file)


def test_bucket_refills_with_its_rate_up_to_one_second():
    now = [0.0]
    buckets = TokenBuckets(2, clock=lambda: now[0])
    assert [buckets.wait_s(0) for _ in range(3)] == [0, 0, 1]
    assert buckets.wait_s(1) == 0, "another key has its own"
    now[0] = 0.5
    assert [buckets.wait_s(0) for _ in range(2)] == [0, 1]
    now[0] = 100.0
    assert [buckets.wait_s(0) for _ in range(3)] == [0, 0, 1]


def test_slow_rate_states_how_long_to_wait():
    buckets = TokenBuckets(0.1, clock=lambda: 5.0)
    assert [buckets.wait_s(0) for _ in range(2)] == [0, 10]
