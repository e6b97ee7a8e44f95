"""Tests of the rank of the true picture."""

import numpy as np
import pytest

from cpgan_ray.evaluation.identity.identification import identification, ranks


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_ranks_count_pictures_that_are_more_similar():
    gallery = unit(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    probes = unit(np.array([[1.0, 0.1], [1.0, 0.1], [0.1, 1.0]]))
    assert ranks(probes, gallery).tolist() == [1, 2, 1]


def test_ranks_with_equal_cosines_are_shared():
    gallery = unit(np.random.default_rng(0).normal(size=(7, 3)))
    assert ranks(np.zeros((7, 3)), gallery).tolist() == [4] * 7


def test_identification_of_constant_probe_is_chance():
    gallery = unit(np.random.default_rng(0).normal(size=(201, 8)))
    result = identification(np.repeat(gallery[:1], 201, axis=0), gallery, np.arange(201), seed=0)
    assert (result.candidates, result.mean_rank, result.median_rank) == (201, 101, 101)
    assert result.top_1 == pytest.approx(1 / 201)


def test_identification_of_noisy_probes_lies_between_chance_and_perfect():
    rng = np.random.default_rng(1)
    gallery = unit(rng.normal(size=(300, 16)))
    identity = np.repeat(np.arange(150), 2)
    clean = identification(gallery, gallery, identity, seed=0)
    noisy = identification(unit(gallery + 0.35 * rng.normal(size=gallery.shape)), gallery, identity, seed=0)
    assert (clean.mean_rank, clean.top_1) == (1, 1)
    assert 1 < noisy.mean_rank < 75
    assert noisy.top_1_low < noisy.top_1 < noisy.top_1_high < 1
