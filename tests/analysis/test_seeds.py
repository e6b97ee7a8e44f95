"""Tests of the means over trainings under several seeds: against the formulas of the intervals, computed here from raw numbers."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cpgan_ray.analysis.fronts import Estimate, mean_with_ci
from cpgan_ray.analysis.seeds import TITLES, Training, over_seeds
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.paired import Rows
from cpgan_ray.evaluation.scoring import RowErrors
from cpgan_ray.evaluation.utility import Answers

PEOPLE, PICTURES, SEEDS = 12, 4, 3


def report(*, face: float | None = 0.2, bits: float | None = 40.0) -> dict[str, Any]:
    utility = {name + end: 0.8 for name in ("accuracy", "balanced_accuracy") for end in ("", "_low", "_high")}
    strongest = {"attack": "kernel", "variant": "leaked", "r2": 0.1, "low": 0.05, "high": 0.15}
    on_face = None if face is None else {"attack": "ridge", "r2": face, "low": face - 0.02, "high": face + 0.03}
    excess = {"r2": 0.02, "low": 0.0, "high": 0.04}
    code = {"bits": bits, "low": bits and bits - 1, "high": bits and bits + 2}
    return {"utility": utility, "privacy": {"strongest": strongest, "strongest_face": on_face, "excess": excess}, "code": code}


def training(seed: int, *, identity: np.ndarray | None = None, own_answers: bool = True, **numbers: float | None) -> Training:
    """A training with errors and answers of its own; every picture has a variance of 1."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(PEOPLE), PICTURES) if identity is None else identity
    one = np.ones(len(identity))
    labels = rng.integers(0, 2, size=(len(identity), 5)).astype(np.int8)
    strongest, floor = (RowErrors(rng.uniform(low, 1, len(identity)), one, identity) for low in (0.7, 0.8))
    rows = Rows(strongest, None, Answers(rng.random(labels.shape) < 0.8, labels), floor if own_answers else None)
    return Training(seed, report(**numbers), rows)


def crossed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and interval of numbers (S, people) of equally many pictures each: the jackknife of a mean is its standard error."""
    seeds, people = values.mean(axis=1), values.mean(axis=0)
    half = math.hypot(
        *(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)) for means in (seeds, people))
    )
    return values.mean(), values.mean() - half, values.mean() + half


def of_people(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(PEOPLE, PICTURES).mean(axis=1)


def test_over_seeds_crosses_seeds_and_people():
    trainings = [training(seed) for seed in range(SEEDS)]
    means = over_seeds(trainings)
    assert list(means) == list(TITLES)
    rows = [t.rows for t in trainings]
    right = np.stack([of_people(r.answers.right.mean(axis=1)) for r in rows if r.answers is not None])
    r2 = np.stack([of_people(1 - r.strongest.errors) for r in rows])
    excess = r2 - np.stack([of_people(1 - r.answers_floor.errors) for r in rows if r.answers_floor is not None])
    for name, values in (("accuracy", right), ("strongest_r2", r2), ("excess_r2", excess)):
        assert means[name][:3] == pytest.approx(crossed_interval(values)), name
    balanced = [
        np.mean([r.answers.right[r.answers.labels[:, j] == y, j].mean() for j in range(5) for y in (0, 1)])
        for r in rows
        if r.answers is not None
    ]
    assert means["balanced_accuracy"].value == pytest.approx(np.mean(balanced))


def test_over_seeds_combines_the_intervals_of_numbers_without_rows():
    trainings = [training(seed, face=0.2 + 0.01 * seed, bits=40.0 + seed) for seed in range(SEEDS)]
    means = over_seeds(trainings)
    face = mean_with_ci([Estimate(f, f - 0.02, f + 0.03) for f in (0.2, 0.21, 0.22)])
    assert means["strongest_r2_face"][:3] == pytest.approx(tuple(face))
    assert means["bits"].value == pytest.approx(41)


def test_over_seeds_without_a_number_gives_none():
    trainings = [training(0), training(1, face=None, bits=None, own_answers=False)]
    means = over_seeds(trainings)
    assert [name for name in TITLES if means[name].value is None] == ["strongest_r2_face", "excess_r2", "bits"]


def test_over_seeds_of_other_people_raises():
    other = np.repeat(np.arange(1, PEOPLE + 1), PICTURES)
    with pytest.raises(InputError, match="seeds 0 and 1 are scored on different people"):
        over_seeds([training(0), training(1, identity=other)])
