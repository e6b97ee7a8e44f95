"""Tests that random streams are repeatable in every process and different for every role."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream, torch_seed

PATHS: list[tuple[int, tuple[str | int, ...]]] = [
    (0, ()),
    (1, ()),
    (0, ("adversary",)),
    (0, ("privatizer",)),
    (0, ("adversary", "rbf")),
    (0, ("rbf", "adversary")),
    (0, ("adversary", "rbf", 0)),
    (0, ("adversary", "rbf", 1)),
    (0, ("adversary", "rbf", 2**31)),
    (1, ("adversary", "rbf", 0)),
    (0, ("adversary", "ridge", 0)),
    (0, ("adversary", "ünïcode", 0)),
    (0, ("1",)),
    (0, (1,)),
    (0, (0,)),
    (0, (0, 0)),
]


@pytest.mark.parametrize(("seed", "path"), PATHS)
def test_stream_with_the_same_path_repeats_its_draws(seed, path):
    assert stream(seed, *path).random(8).tolist() == stream(seed, *path).random(8).tolist()
    assert torch_seed(seed, *path) == torch_seed(seed, *path)


def test_streams_with_different_paths_are_uncorrelated():
    """Equal streams would correlate by 1; independent ones, 4000 draws each, by less than 5 / sqrt(4000) in all 120 pairs."""
    draws = np.stack([stream(seed, *path).standard_normal(4000) for seed, path in PATHS])
    correlations = np.corrcoef(draws) - np.eye(len(PATHS))
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_torch_seeds_of_different_paths_differ():
    seeds = [torch_seed(seed, *path) for seed, path in PATHS]
    assert len(set(seeds)) == len(PATHS)
    assert all(0 <= s < 2**63 for s in seeds)
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(s)).tolist() for s in seeds]
    assert all(a != b for a, b in itertools.combinations(draws, 2))


def test_stream_with_a_numpy_integer_equals_a_python_integer():
    assert stream(3, "augment", np.int64(7)).random() == stream(3, "augment", 7).random()


def test_stream_in_a_process_with_another_hash_seed_is_equal():
    code = "from cpgan_ray.common.rng import stream; print(stream(5, 'adversary', 'rbf', 3).integers(2**63))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) == stream(5, "adversary", "rbf", 3).integers(2**63)


def test_torch_stream_is_repeatable_and_leaves_the_outer_stream_alone():
    torch.manual_seed(11)
    undisturbed = torch.rand(3).tolist()
    torch.manual_seed(11)
    with torch_stream(0, "head", 1):
        first = torch.rand(3).tolist()
    assert torch.rand(3).tolist() == undisturbed
    with torch_stream(0, "head", 1):
        again = torch.rand(3).tolist()
    with torch_stream(0, "head", 2):
        other = torch.rand(3).tolist()
    assert first == again
    assert first != other


def test_torch_stream_after_an_error_restores_the_outer_stream():
    torch.manual_seed(11)
    undisturbed = torch.rand(3).tolist()
    torch.manual_seed(11)

    def draw_and_fail() -> None:
        with torch_stream(0, "head", 1):
            raise FloatingPointError(f"after drawing {float(torch.rand(1))}")

    with pytest.raises(FloatingPointError, match="after drawing"):
        draw_and_fail()
    assert torch.rand(3).tolist() == undisturbed
