"""Tests of the coded length of codes."""

import numpy as np
import pytest

from cpgan_ray.common.codec import codec_of
from cpgan_ray.evaluation.rate import CONTINUOUS, code_rate


def codes_of(k: int, *, values: int, count: int = 400, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shares = np.arange(1, values + 1) ** 3.0
    draw = lambda: (scale * rng.choice(values, (count, k), p=shares / shares.sum())).astype(np.float32)  # noqa: E731
    return {name: draw() for name in ("train", "val", "test")}


def test_code_rate_of_rounded_codes_is_the_coded_length():
    codes = codes_of(64, values=8, scale=0.5)
    rate = code_rate(codes, np.arange(400), step=0.5, seed=0)
    codec = codec_of(codes["train"], step=0.5)
    assert rate.bits == np.mean([8 * len(codec.encode(z[None])) for z in codes["test"]])
    assert (rate.raw, rate.levels, rate.not_coded) == (64 * 3, 8, None)
    assert rate.low < rate.bits < rate.high < rate.raw
    assert rate.information <= rate.bits <= rate.information + 64


def test_information_of_codes_is_above_their_entropy():
    codes = codes_of(1, values=4, count=4000)
    _, counts = np.unique(codes["test"], return_counts=True)
    entropy = -float((counts / 4000 * np.log2(counts / 4000)).sum())
    assert entropy <= code_rate(codes, np.arange(4000), step=1.0, seed=0).information <= entropy + 0.02


def test_code_rate_of_short_codes_is_the_packed_length():
    rate = code_rate(codes_of(8, values=2), np.arange(400), step=1.0, seed=0)
    assert (rate.bits, rate.raw) == (8.0, 8.0)


def test_code_rate_of_few_values_without_a_step_is_coded():
    codes = {name: np.float32([-1.7, 0.3, 0.9])[z.astype(int)] for name, z in codes_of(32, values=3).items()}
    rate = code_rate(codes, np.arange(400), step=0.0, seed=0)
    assert (rate.levels, rate.raw) == (3, 64.0)
    assert rate.bits < 64


@pytest.mark.parametrize("step", [0.0, 1.0])
def test_code_rate_of_continuous_codes_has_no_coded_length(step):
    codes = {name: np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32) for name in ("train", "val", "test")}
    rate = code_rate(codes, np.arange(50), step=step, seed=0)
    assert (rate.bits, rate.raw) == (None, 128)
    assert (rate.not_coded == CONTINUOUS) == (step == 0)


def test_level_absent_from_training_leaves_no_bound_on_information():
    codes = codes_of(16, values=4)
    whole = code_rate(codes, np.arange(400), step=1.0, seed=0)
    assert (whole.log2_codes, whole.information is None) == (32.0, False)
    codes["test"][7, 3] = 9.0
    limited = code_rate(codes, np.arange(400), step=1.0, seed=0)
    assert (limited.log2_codes, limited.information) == (None, None)
    assert limited.bits is not None, "the client limits the level, so what it sends has a length"


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (5, 3)])
def test_finite_codes_always_have_a_bound_on_information(levels, bits):
    codes = {name: np.full((400, 16), -1.0, np.float32) for name in ("train", "val", "test")}
    codes["test"][7, 3] = 0.0  # a level that does not occur in training
    rate = code_rate(codes, np.arange(400), step=1.0, levels=levels, seed=0)
    assert (rate.raw, rate.levels) == (16 * bits, levels)
    assert rate.log2_codes == pytest.approx(16 * np.log2(levels))
    assert rate.information is not None


def test_codes_that_are_finite_only_in_training_have_no_coded_length():
    """An encoder may return few values on the pictures that it was made with, and any number on others."""
    codes = codes_of(4, values=3)
    codes["test"] = np.random.default_rng(1).standard_normal((400, 4)).astype(np.float32)
    rate = code_rate(codes, np.arange(400), step=0.0, seed=0)
    assert (rate.bits, rate.information, rate.log2_codes, rate.not_coded) == (None, None, None, CONTINUOUS)
