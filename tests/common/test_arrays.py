"""Tests of reading arrays: every kind of damage is one error."""

import io

import numpy as np
import pytest

from cpgan_ray.common.arrays import read_arrays


@pytest.fixture(scope="module")
def content() -> bytes:
    np.savez_compressed(buffer := io.BytesIO(), train=np.arange(3000.0), val=np.ones((2, 3), np.float16))
    return buffer.getvalue()


def test_arrays_are_read_back(content):
    arrays = read_arrays(content)
    assert arrays.keys() == {"train", "val"}
    np.testing.assert_array_equal(arrays["train"], np.arange(3000.0))
    assert read_arrays(content, ("val",)).keys() == {"val"}


def test_every_kind_of_damage_is_a_value_error_or_other_numbers(content):
    """Truncated, flipped and replaced bytes, an array that is missing, one that is an object, and other files."""
    rng = np.random.default_rng(0)
    damaged = [b"", b"PK", b"no archive", content[: len(content) // 2], content[:-1]]
    for _ in range(300):
        changed = bytearray(content)
        start = int(rng.integers(len(content)))
        changed[start : start + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 9)))
        damaged.append(bytes(changed))
    np.save(single := io.BytesIO(), np.ones(3))
    np.savez(objects := io.BytesIO(), train=np.array([{}], object))
    reasons: list[str] = []
    for one in (*damaged, single.getvalue(), objects.getvalue()):
        try:
            read_arrays(one)
        except ValueError as e:
            reasons.append(str(e))
    assert len(reasons) > 50
    assert all(reasons)
    with pytest.raises(ValueError, match="KeyError"):
        read_arrays(content, ("test",))
