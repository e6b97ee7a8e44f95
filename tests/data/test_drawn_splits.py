"""Tests of splits that are drawn by a hash."""

import zlib

import numpy as np

from cpgan_ray.data.drawn_splits import drawn_parts


def test_drawn_parts_keep_identities_together_in_known_shares():
    identity = np.repeat(np.arange(5000), 2)
    parts = drawn_parts(identity)
    assert np.array_equal(parts[::2], parts[1::2])
    shares = np.bincount(parts) / len(parts)
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 0.02
    expected = [zlib.crc32(str(i).encode()) % 10 for i in range(5000)]
    assert parts[::2].tolist() == [{8: 1, 9: 2}.get(bucket, 0) for bucket in expected]


def test_drawn_parts_do_not_depend_on_other_identities():
    identity = np.arange(-100, 900)
    assert np.array_equal(drawn_parts(identity[::7]), drawn_parts(identity)[::7])
