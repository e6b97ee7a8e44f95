"""Tests of fronts, hypervolumes, intervals, the recommendation, and their files."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import optimize, stats
from scipy.spatial import ConvexHull

from cpgan_ray.analysis.fronts import (
    Estimate,
    Reference,
    Trial,
    ensure_comparable,
    explain_no_choice,
    front,
    hull,
    hypervolume,
    hypervolume_history,
    mean_with_ci,
    measures_table,
    meets_bounds,
    outcomes,
    points,
    r2_at,
    r2_levels,
    rank_correlations,
    recommend,
    reference_point,
    table,
    utility_levels,
    write,
)
from cpgan_ray.errors import InputError

REFERENCE = Reference(0.8)


def trial(k: int = 64, weight: float = 1.0, *, accuracy: float | None = 0.86, r2: float | None = 0.1, **more: Any) -> Trial:
    """A finished trial; by default its validation numbers equal its test numbers."""
    values: dict[str, Any] = {"seed": 0, "state": "finished", "val_accuracy": accuracy, "val_r2": r2, "majority_accuracy": 0.8}
    values |= {"setting": {"k": k, "privacy_weight": weight}, "accuracy": accuracy, "strongest_r2": r2} | more
    return Trial(**({"name": f"k{k} w{weight} s{values['seed']}"} | values))


def random_trials(seed: int, *, count: int = 30, ties: bool) -> list[Trial]:
    """Trials with different settings, some worse than the reference; `ties`: on a coarse grid, with some equal points."""
    rng = np.random.default_rng(seed)
    outcomes = rng.uniform([0.78, -0.02], [0.9, 1.0], (count, 2))
    outcomes = np.round(outcomes, 2) if ties else outcomes
    return [trial(k=i + 1, accuracy=float(a), r2=float(r)) for i, (a, r) in enumerate(outcomes)]


def test_degenerate_code_is_never_on_front_or_recommended():
    useless, good = trial(1, accuracy=0.9, r2=0.0, degenerate="the code is constant"), trial(2, accuracy=0.85, r2=0.2)
    candidates = points([useless, good])
    assert [p.setting["k"] for p in front(candidates, REFERENCE)] == [2]
    assert hypervolume(candidates, REFERENCE) == hypervolume(candidates[1:], REFERENCE) > 0
    for bounds in ({}, {"max_r2": 0.5}, {"min_accuracy": 0.8}):
        chosen = recommend(candidates, **bounds)
        assert chosen is not None and chosen.point.setting["k"] == 2
    assert recommend(candidates[:1], max_r2=0.5) is None
    assert "degenerate" in explain_no_choice(candidates[:1], max_r2=0.5)
    assert "degenerate" in table(candidates, REFERENCE)


def test_recommendation_with_a_bounded_client_is_affordable():
    trials = [trial(16, accuracy=0.82, multiply_adds=1e6), trial(64, accuracy=0.88, multiply_adds=15e6), trial(32, accuracy=0.9)]
    settings = points([replace(t, val_accuracy=t.accuracy, val_r2=t.strongest_r2) for t in trials])
    chosen = recommend(settings, max_multiply_adds=2e6)
    assert (
        chosen is not None
        and chosen.point.setting["k"] == 16
        and chosen.rule.endswith("at most 2,000,000 multiply-adds for the client")
    )
    assert recommend(settings, max_multiply_adds=10) is None
    reason = explain_no_choice(settings, max_multiply_adds=10)
    assert reason.startswith("no setting has a client of at most 10 multiply-adds; the smallest has 1,000,000 at k=16")
    assert "earlier version" in explain_no_choice(settings[2:], max_multiply_adds=10)


def mixed_utility(candidates: list[Any], r2: float) -> float:
    """The largest utility that a mixture of any two outcomes, or of one and sending nothing, has at an R2 of at most `r2`."""
    ends = [(max(p.strongest_r2, 0.0), p.utility) for p in candidates] + [(0.0, REFERENCE.utility)]
    best = -np.inf
    for a, u in ends:
        for b, v in ends:
            shares = [0.0] if a <= r2 else []
            shares += [1.0] if b <= r2 else []
            shares += [(r2 - a) / (b - a)] if a < r2 < b else []
            best = max([best, *(u + p * (v - u) for p in shares)])
    return best


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_hull_is_best_mixture_of_any_two_outcomes(seed, ties):
    candidates = points(random_trials(seed, ties=ties))
    vertices, volume = hull(outcomes(candidates), REFERENCE)
    assert vertices[0].tolist() == [0, REFERENCE.utility]
    assert (np.diff(vertices[:, 0]) >= 0).all() and (np.diff(vertices[:, 1]) > 0).all()
    grid = np.linspace(0, 1, 101)
    expected = [mixed_utility(candidates, r2) for r2 in grid]
    at_zero = vertices[vertices[:, 0] == 0][-1, 1]
    assert np.interp(grid[1:], vertices[:, 0], vertices[:, 1]) == pytest.approx(expected[1:], abs=1e-9)
    assert at_zero == pytest.approx(expected[0])
    knots = np.unique([*vertices[:, 0], 1.0])
    heights = [mixed_utility(candidates, r2) - REFERENCE.utility for r2 in knots]
    assert volume == pytest.approx(np.trapezoid(heights, knots), abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_front_is_the_vertices_of_scipys_hull(seed):
    candidates = [p for p in points(random_trials(seed, ties=False)) if p.utility > 0.8 and 0 < p.strongest_r2 < 1]
    cloud = np.array([(p.strongest_r2, p.utility) for p in candidates] + [(0.0, 0.8), (1.0, 0.8), (2.0, 0.0)])
    most = max(candidates, key=lambda p: p.utility)
    upper_left = {
        i
        for i in ConvexHull(cloud).vertices
        if i < len(candidates) and cloud[i, 0] <= most.strongest_r2  # beyond it, a hull falls
    }
    best = front(candidates, REFERENCE)
    assert [p.strongest_r2 for p in best] == sorted(candidates[i].strongest_r2 for i in upper_left)
    assert hypervolume(best, REFERENCE) == pytest.approx(hypervolume(candidates, REFERENCE), abs=1e-12)


def test_hull_of_known_outcomes():
    candidates = points([trial(1, accuracy=0.9, r2=0.5), trial(2, accuracy=0.84, r2=0.4), trial(3, accuracy=0.9, r2=0.6)])
    vertices, volume = hull(outcomes(candidates), REFERENCE)
    assert vertices.tolist() == [[0, 0.8], pytest.approx([0.5, 0.9])]
    assert volume == pytest.approx(0.1 * 0.5 / 2 + 0.1 * 0.5)
    assert [p.setting["k"] for p in front(candidates, REFERENCE)] == [1]
    assert r2_at(vertices, 0.85) == pytest.approx(0.25)
    assert (r2_at(vertices, 0.79), r2_at(vertices, 0.91)) == (0, None)


def test_hypervolume_does_not_grow_by_turning_the_knob_more_densely():
    """A mechanism that only mixes its code with nothing has the hull of that code."""
    one = points([trial(1, accuracy=0.9, r2=0.4)])
    dense = points([trial(i, accuracy=0.8 + 0.1 * i / 9, r2=0.4 * i / 9) for i in range(1, 10)])
    assert hypervolume(dense, REFERENCE) == pytest.approx(hypervolume(one, REFERENCE))
    assert len(front(dense, REFERENCE)) == 1


def test_mixture_with_nothing_interpolates_accuracy_and_best_r2():
    """Simulation of the derivation in fronts.py: x in 6 dimensions, a code of two of them with noise, a label of 3 classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200_000, 6))
    z = x[:, :2] + 0.5 * rng.normal(size=(len(x), 2))
    y = np.digitize(x[:, 0], [-0.3, 0.8])
    answer, guess = np.digitize(z[:, 0], [-0.4, 1.0]), np.full(len(y), np.bincount(y).argmax())
    fit, score = slice(0, 100_000), slice(100_000, None)

    def attacked(released: np.ndarray) -> float:
        """R2 of the least squares attack, the best one on Gaussian data if it sees the coin."""
        weights = np.linalg.lstsq(released[fit], x[fit], rcond=None)[0]
        return 1 - np.square(x[score] - released[score] @ weights).sum() / np.square(x[score]).sum()

    def recall(answers: np.ndarray) -> float:
        return float(np.mean([(answers == y)[y == c].mean() for c in range(3)]))

    whole = attacked(z)
    assert whole == pytest.approx(2 / 6 / 1.25, abs=0.005)
    for p in (0.25, 0.6):
        sent = rng.random(len(x)) < p
        answers = np.where(sent, answer, guess)
        assert attacked(np.where(sent[:, None], z, 0)) == pytest.approx(p * whole, abs=0.005)
        expected = p * (answer == y).mean() + (1 - p) * (guess == y).mean()
        assert (answers == y).mean() == pytest.approx(expected, abs=0.005)
        assert recall(answers) == pytest.approx(p * recall(answer) + (1 - p) / 3, abs=0.005)


def test_hull_includes_outcome_with_everything_recovered():
    vertices, volume = hull(outcomes(points([trial(accuracy=0.9, r2=1.0)])), REFERENCE)
    assert (vertices.tolist(), volume) == ([[0, 0.8], [1, pytest.approx(0.9)]], pytest.approx(0.05))


def test_hull_counts_negative_r2_as_zero():
    candidates = points([trial(1, accuracy=0.85, r2=-0.2), trial(2, accuracy=0.9, r2=0.5)])
    vertices, volume = hull(outcomes(candidates), REFERENCE)
    assert vertices.tolist() == [[0, 0.8], pytest.approx([0, 0.85]), pytest.approx([0.5, 0.9])]
    assert volume == pytest.approx(0.5 * (0.05 + 0.1) / 2 + 0.5 * 0.1)
    assert len(front(candidates, REFERENCE)) == 2


def test_front_keeps_equal_points():
    candidates = points([trial(16), trial(32), trial(64, accuracy=0.85), trial(128, accuracy=0.85, r2=0.05)])
    assert [p.setting["k"] for p in front(candidates, REFERENCE)] == [128, 16, 32]


def test_front_and_hypervolume_are_empty_without_points():
    assert front([], REFERENCE) == front(points([trial()]), None) == []
    assert hypervolume([], REFERENCE) == 0.0
    assert hypervolume_history([], REFERENCE) == []


def test_utility_levels_lie_between_guess_and_control():
    assert utility_levels(REFERENCE, 0.9) == pytest.approx({0.25: 0.825, 0.5: 0.85, 0.75: 0.875, 0.9: 0.89})
    assert utility_levels(REFERENCE, None) == utility_levels(REFERENCE, 0.8) == {}
    candidates = points([trial(accuracy=0.88, r2=0.4)])
    levels = utility_levels(REFERENCE, 0.9)
    assert r2_levels(candidates, REFERENCE, levels) == pytest.approx({0.25: 0.125, 0.5: 0.25, 0.75: 0.375, 0.9: None})


def test_objective_balanced_accuracy_is_used_everywhere(tmp_path):
    balanced = {"majority_balanced_accuracy": 0.5, "balanced_accuracy_low": 0.6, "balanced_accuracy_high": 0.8}
    trials = [
        trial(16, accuracy=0.9, r2=0.3, balanced_accuracy=0.6, val_balanced_accuracy=0.6, **balanced),
        trial(32, accuracy=0.85, r2=0.3, balanced_accuracy=0.7, val_balanced_accuracy=0.7, dead_labels=3, **balanced),
        trial(weight=0, control=True, accuracy=0.92, r2=0.6, balanced_accuracy=0.9, **balanced),
    ]
    assert reference_point(trials, "balanced_accuracy") == Reference(0.5)
    settings = points(trials, objective="balanced_accuracy")
    assert [p.setting["k"] for p in front(settings, Reference(0.5))] == [32]
    values = write(trials, tmp_path, objective="balanced_accuracy", min_accuracy=0.65)
    assert values["hypervolume"] == pytest.approx(0.2 * (0.7 + 0.3 / 2))
    assert values["hypervolume_history"][-1] == values["hypervolume"]
    assert values["reference_point"] == {"balanced_accuracy": 0.5, "strongest_r2": 1.0}
    assert [(level["share"], level["balanced_accuracy"], level["strongest_r2"]) for level in values["r2_at"]] == [
        (0.25, pytest.approx(0.6), pytest.approx(0.15)),
        (0.5, pytest.approx(0.7), pytest.approx(0.3)),
        (0.75, pytest.approx(0.8), None),
        (0.9, pytest.approx(0.86), None),
    ]
    best = values["recommended"]
    assert (best["k"], best["meets_bounds"], best["rule"]) == (
        32,
        False,
        "smallest validation R2 among settings with validation balanced accuracy >= 0.65",
    )
    lines = table(settings, Reference(0.5)).splitlines()
    assert [title.strip() for title in lines[0].split("|")[4:8]] == ["balanced accuracy", "strongest R2", "accuracy", "dead labels"]
    assert "0.700 [0.600, 0.800] |        0.300 |    0.850 |           3" in lines[3]
    assert "R2 at balanced accuracy 0.800" in measures_table(values)
    assert "not reached" in measures_table(values)


def test_hypervolume_ignores_points_worse_than_reference():
    worse = points([trial(16, accuracy=0.79, r2=0.1), trial(32, accuracy=0.85, r2=1.2)])
    assert hypervolume(worse, REFERENCE) == 0.0
    assert hypervolume(points([trial(accuracy=0.9, r2=0.5)]), REFERENCE) == pytest.approx(0.1 * 0.75)


@pytest.mark.parametrize("seed", range(10))
def test_hypervolume_history_with_one_seed_never_decreases(seed):
    trials = random_trials(seed, ties=False)
    history = hypervolume_history([*trials, trial(weight=0, control=True), trial(state="stopped")], REFERENCE)
    assert len(history) == len(trials)
    assert (np.diff(history) >= -1e-12).all()
    assert history[-1] == hypervolume(points(trials), REFERENCE)


def test_hypervolume_history_decreases_after_worse_second_seed():
    history = hypervolume_history([trial(accuracy=0.88), trial(accuracy=0.86, seed=1)], REFERENCE)
    assert history == pytest.approx([0.08 * 0.95, 0.07 * 0.95])


@pytest.mark.parametrize(
    "other",
    [
        trial(16, state="stopped"),
        trial(16, state="failed", accuracy=None, r2=None),
        trial(16, state="running"),
        trial(16, accuracy=None),
        trial(16, r2=float("nan")),
        trial(16, weight=0, control=True),
    ],
    ids=["stopped", "failed", "running", "no accuracy", "not finite", "control"],
)
def test_points_ignores_controls_and_unfinished_trials(other):
    assert [p.setting["k"] for p in points([trial(64), other])] == [64]


def test_points_of_controls_are_separate():
    (control,) = points([trial(), trial(weight=0, control=True, accuracy=0.89, r2=0.4)], control=True)
    assert control.strongest_r2 == 0.4


def test_points_merges_equal_settings_in_any_notation():
    first = trial(setting={"k": 64, "privacy_weight": 1})
    second = trial(setting={"privacy_weight": 1.0, "k": 64}, seed=1)
    (point,) = points([first, second])
    assert (point.num_trials, point.seeds) == (2, (0, 1))
    assert len(points([first, replace(second, method="noise")])) == 2


def test_points_single_seed_keeps_its_own_interval():
    ends = {"accuracy_low": 0.85, "accuracy_high": 0.87, "strongest_r2_low": 0.08, "strongest_r2_high": 0.13}
    (point,) = points([trial(**ends)])
    assert {name: getattr(point, name) for name in ends} == ends
    (point,) = points([trial()])
    assert (point.accuracy_low, point.strongest_r2_high) == (None, None)


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_points_several_seeds_add_people_to_students_interval(seeds):
    rng = np.random.default_rng(seeds)
    accuracy, r2 = rng.normal(0.87, 0.01, seeds), rng.normal(0.1, 0.02, seeds)
    trials = [
        trial(
            seed=i,
            accuracy=a,
            r2=r,
            accuracy_low=a - 0.003,
            accuracy_high=a + 0.001,
            strongest_r2_low=r - 0.01,
            strongest_r2_high=r + 0.02,
        )
        for i, (a, r) in enumerate(zip(accuracy, r2, strict=True))
    ]
    (point,) = points(trials)
    for name, values, below, above in (("accuracy", accuracy, 0.003, 0.001), ("strongest_r2", r2, 0.01, 0.02)):
        center, half = values.mean(), stats.sem(values) * stats.t.ppf(0.975, seeds - 1)
        assert getattr(point, name) == pytest.approx(center)
        ends = (getattr(point, f"{name}_low"), getattr(point, f"{name}_high"))
        assert ends == pytest.approx((center - np.hypot(half, below), center + np.hypot(half, above)))
    assert (point.val_accuracy, point.val_r2) == pytest.approx((accuracy.mean(), r2.mean()))


def test_mean_with_ci_without_people_intervals_has_none():
    assert mean_with_ci([Estimate(0.1), Estimate(0.3)]) == (pytest.approx(0.2), None, None)


def test_points_repeated_seed_does_not_narrow_interval():
    ends = {"accuracy_low": 0.85, "accuracy_high": 0.87}
    (point,) = points([trial(**ends), trial(**ends)])
    assert (point.num_trials, point.seeds) == (2, (0,))
    assert (point.accuracy_low, point.accuracy_high) == pytest.approx((0.85, 0.87))
    other = trial(accuracy=0.88, seed=1, accuracy_low=0.87, accuracy_high=0.89)
    (twice,) = points([trial(**ends), trial(**ends), other])
    (once,) = points([trial(**ends), other])
    assert (twice.accuracy, twice.accuracy_low) == (once.accuracy, once.accuracy_low)


CHOICE = (
    trial(16, accuracy=0.84, r2=0.03),
    trial(32, accuracy=0.87, r2=0.06, val_accuracy=0.865, val_r2=0.055),
    trial(64, accuracy=0.86, r2=0.065, val_accuracy=0.868, val_r2=0.05),  # beaten on the test split, better on validation
    trial(128, accuracy=0.88, r2=0.2),
)


@pytest.mark.parametrize(
    ("gates", "k", "rule"),
    [
        ({"max_r2": 0.1}, 64, "largest validation accuracy among settings with validation R2 <= 0.1"),
        ({"max_r2": 0.06}, 64, "largest validation accuracy among settings with validation R2 <= 0.06"),
        ({"max_r2": 0.04}, 16, "largest validation accuracy among settings with validation R2 <= 0.04"),
        ({"min_accuracy": 0.855}, 64, "smallest validation R2 among settings with validation accuracy >= 0.855"),
        ({"min_accuracy": 0.875}, 128, "smallest validation R2 among settings with validation accuracy >= 0.875"),
        (
            {"max_r2": 0.3, "min_accuracy": 0.865},
            128,
            "largest validation accuracy among settings with validation R2 <= 0.3 and validation accuracy >= 0.865",
        ),
        ({}, 64, "largest (validation accuracy - 0.800) * (1 - validation R2)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_recommend_chooses_only_by_validation_numbers(gates, k, rule):
    chosen = recommend(points(CHOICE), **gates)
    assert chosen is not None
    assert (chosen.point.setting["k"], chosen.rule) == (k, rule)


@pytest.mark.parametrize(
    ("trials", "gates", "text"),
    [
        ([], {}, "no trial has finished with a utility and an attack's R2"),
        (CHOICE, {"max_r2": 0.01}, "no setting has validation R2 <= 0.01; the lowest is 0.0300 at k=16 privacy_weight=1"),
        (
            CHOICE,
            {"min_accuracy": 0.9},
            "no setting has validation accuracy >= 0.9; the highest is 0.8800 at k=128 privacy_weight=1",
        ),
        (
            CHOICE,
            {"max_r2": 0.1, "min_accuracy": 0.875},
            "no setting has both validation R2 <= 0.1 and validation accuracy >= 0.875; "
            "the highest accuracy among settings with that R2 is 0.8680 at k=64 privacy_weight=1",
        ),
        (
            [trial(val_accuracy=None)],
            {"max_r2": 0.5},
            "no setting has the validation numbers that choose it",
        ),
    ],
    ids=["nothing", "max_r2", "min_accuracy", "both", "no validation"],
)
def test_explain_no_choice_names_closest_setting(trials, gates, text, tmp_path):
    assert recommend(points(trials), **gates) is None
    assert explain_no_choice(points(trials), **gates) == text
    values = write(trials, tmp_path, **gates)
    assert (values["recommended"], values["reason"]) == (None, text)


def test_meets_bounds_compares_the_far_ends_of_the_intervals():
    ends = {"accuracy_low": 0.85, "accuracy_high": 0.87, "strongest_r2_low": 0.08, "strongest_r2_high": 0.13}
    (point,) = points([trial(**ends)])
    assert [meets_bounds(point, max_r2=bound) for bound in (0.11, 0.13)] == [False, True]
    assert [meets_bounds(point, min_accuracy=bound) for bound in (0.855, 0.85)] == [False, True]
    assert meets_bounds(point, max_r2=0.13, min_accuracy=0.855) is False
    assert meets_bounds(point) is meets_bounds(points([trial()])[0], max_r2=0.5) is None


def test_reference_point_is_majority_accuracy_and_full_recovery():
    assert reference_point([trial(), trial(majority_accuracy=None)]) == Reference(0.8)
    assert reference_point([trial(majority_accuracy=None)]) is None


def test_rank_correlations_match_scipy_overall_and_within_groups():
    rng = np.random.default_rng(0)
    weights = (0.1, 0.3, 1.0, 3.0, 5.0)
    trials = [trial(k, w, accuracy=float(rng.normal()), r2=k / 100 - w / 100) for k in (16, 32, 64, 128, 256) for w in weights]
    settings = points([replace(t, setting=t.setting | {"privatizer.family": "conv"}) for t in trials])
    correlations = rank_correlations(settings)
    assert correlations.keys() == {"k", "privacy_weight"}
    for name in correlations:
        values = [p.setting[name] for p in settings]
        for of in ("strongest_r2", "utility"):
            assert correlations[name][of] == pytest.approx(stats.spearmanr(values, [getattr(p, of) for p in settings]).statistic)
        assert correlations[name]["reason"] is None
    assert correlations["privacy_weight"]["strongest_r2"] > -0.5, "over all points, k hides the effect of the weight"
    assert correlations["privacy_weight"]["within"]["strongest_r2"] == pytest.approx(-1)
    assert correlations["privacy_weight"]["within"]["num_groups"] == 5


def test_rank_correlations_give_the_reason_where_there_is_none():
    constant = rank_correlations(points([trial(k, r2=0.1, accuracy=0.8 + k / 1000) for k in (8, 16, 32, 64, 128)]))
    expected = {"strongest_r2": None, "utility": pytest.approx(1), "num_points": 5, "within": None}
    assert constant == {"k": expected | {"reason": "strongest_r2 is the same everywhere"}}
    few = rank_correlations(points([trial(k, r2=k / 1000, accuracy=0.8 + k / 1000) for k in (16, 32, 64)]))
    assert (few["k"]["strongest_r2"], few["k"]["utility"]) == (None, None)
    assert few["k"]["reason"] == "3 values of k; at least 5 are needed"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": "feed"}, r"different data sets \(digests\) .*: beef in k64 w1.0 s0; feed in noise/other"),
        ({"majority_accuracy": 0.7}, r"different tasks \(majority accuracies\) .*: 0.8 in k64 w1.0 s0; 0.7 in noise/other"),
    ],
)
def test_ensure_comparable_different_data_or_task_raises(other, message):
    reference = trial(data="beef")
    ensure_comparable([reference, trial(data="beef", method="noise"), trial(state="failed", **other)])
    with pytest.raises(InputError, match=message):
        ensure_comparable([reference, trial(**{"data": "beef", "name": "other", "method": "noise"} | other)])


def search_trials(*, methods: tuple[str, ...] = ("",), seeds: int = 1, weights: int = 3, **more: Any) -> list[Trial]:
    """The trials of a plausible search."""
    rng = np.random.default_rng(0)
    trials = []
    for method in methods:
        for k in (16, 64, 256):
            for w in np.geomspace(0.1, 3, weights):
                for seed in range(seeds):
                    accuracy = 0.885 - 0.01 * float(w) + float(rng.normal(0, 0.002))
                    r2 = 0.03 + 0.2 * float(np.exp(-2 * w)) + float(rng.uniform(0, 0.02))
                    ends = {"accuracy_low": accuracy - 0.004, "accuracy_high": accuracy + 0.004}
                    ends |= {"strongest_r2_low": r2 - 0.01, "strongest_r2_high": r2 + 0.01, "attack": "kernel"}
                    values = ends | {"seed": seed, "method": method, "label_floor_r2": 0.075, "majority_accuracy": 0.806} | more
                    trials.append(trial(k, float(f"{w:.3g}"), accuracy=accuracy, r2=r2, **values))
        trials.append(trial(weight=0, accuracy=0.886, r2=0.41, control=True, method=method, name="control"))
        trials.append(trial(8, 9.0, accuracy=None, r2=None, state="stopped", method=method))
        trials.append(trial(8, 5.0, accuracy=None, r2=float("nan"), state="failed", method=method, cause="lost, with its node"))
    return trials


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_write_json_contains_every_trial_and_summary(tmp_path):
    trials = search_trials(seeds=2)
    returned = write(
        trials, tmp_path / "new" / "folder", max_r2=0.1, command=lambda setting, seed: f"train k={setting['k']} {seed}"
    )
    values = strict_json((tmp_path / "new" / "folder" / "frontier.json").read_text())
    assert values == returned
    assert len(values["trials"]) == len(trials) - 1
    assert [row["name"] for row in values["control"]] == ["control"]
    assert {t["state"] for t in values["trials"]} == {"finished", "stopped", "failed"}
    first = values["trials"][0]
    assert (first["k"], first["privacy_weight"], first["setting"]) == (16, 0.1, {"k": 16, "privacy_weight": 0.1})
    failed = next(t for t in values["trials"] if t["state"] == "failed")
    assert (failed["strongest_r2"], failed["cause"], failed["on_front"]) == (None, "lost, with its node", False)
    on_front = {(t["k"], t["privacy_weight"]) for t in values["trials"] if t["on_front"]}
    assert on_front == {(p["k"], p["privacy_weight"]) for p in values["front"]}
    assert all((p["num_trials"], p["seeds"]) == (2, [0, 1]) for p in values["front"])
    assert values["hypervolume"] == values["hypervolume_history"][-1] > 0
    assert values["hull"][0] == {"strongest_r2": 0.0, "accuracy": 0.806}
    assert len(values["hull"]) == len(values["front"]) + 1
    assert [level["share"] for level in values["r2_at"]] == [0.25, 0.5, 0.75, 0.9]
    assert values["r2_at"][-1]["accuracy"] == pytest.approx(0.806 + 0.9 * (0.886 - 0.806))
    assert len(values["hypervolume_history"]) == 18
    assert values["reference_point"] == {"accuracy": 0.806, "strongest_r2": 1.0}
    assert values["label_floor_r2"] == pytest.approx(0.075)
    best = values["recommended"]
    assert best["command"] == f"train k={best['k']} 0"
    assert best["val_r2"] <= 0.1
    assert "methods" not in values


def test_write_several_methods_have_own_and_common_front(tmp_path):
    less_accurate = (replace(t, accuracy=0.8) if t.accuracy else t for t in search_trials(methods=("b",)))
    values = write([*search_trials(methods=("a",)), *less_accurate], tmp_path)
    assert values["methods"].keys() == {"a", "b"}
    assert values["methods"]["a"]["hypervolume"] > values["methods"]["b"]["hypervolume"]
    assert values["methods"]["b"]["front"] == [], "no better than the guess"
    assert {p["method"] for p in values["methods"]["a"]["front"]} == {"a"}


def test_write_without_finished_trial_writes_all_files(tmp_path):
    values = write([trial(state="failed", accuracy=None, r2=None, majority_accuracy=None)], tmp_path)
    assert (values["front"], values["hypervolume"], values["reference_point"], values["recommended"]) == ([], None, None, None)
    assert {p.name for p in tmp_path.iterdir()} == {"frontier.json", "frontier.csv", "frontier.png"}


def test_write_csv_has_one_row_per_trial(tmp_path):
    trials = search_trials()
    write(trials, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "frontier.csv").read_text())))
    assert len(rows) == len(trials)
    by_name = {row["name"]: row for row in rows}
    for trial_ in trials:
        row = by_name[trial_.name]
        assert (int(row["k"]), float(row["privacy_weight"]), int(row["seed"])) == (*trial_.setting.values(), trial_.seed)
        has_r2 = trial_.strongest_r2 is not None and np.isfinite(trial_.strongest_r2)
        assert row["strongest_r2"] == (repr(trial_.strongest_r2) if has_r2 else "")
        assert (row["state"], row["cause"]) == (trial_.state, trial_.cause or "")
    assert [row["control"] for row in rows].count("True") == 1


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


CASES: dict[str, Callable[[], list[Trial]]] = {
    "a search": search_trials,
    "several seeds": lambda: search_trials(seeds=3),
    "many weights": lambda: search_trials(weights=20),
    "methods with odd names": lambda: search_trials(methods=("cpgan", "noise $x_", "_c", "d" * 40)),
    "one point": lambda: [trial()],
    "only the two numbers": lambda: [trial(majority_accuracy=None), trial(32)],
    "other fields": lambda: [trial(setting={"privatizer.quantization_step": s}, accuracy=0.8 + s, r2=s) for s in (0.01, 0.02)],
    "a weight of 0 that is not a control": lambda: [trial(weight=w, accuracy=0.8 + w / 100) for w in (0.0, 0.1, 1.0)],
    "nothing finished": lambda: [trial(state="running", accuracy=None, r2=None)],
}


@pytest.mark.parametrize("case", CASES)
def test_write_png_has_readable_size(tmp_path, case):
    write(CASES[case](), tmp_path)
    picture = pixels(tmp_path / "frontier.png")
    assert picture.shape[:2] == (1040, 1800)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    border = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, :2].reshape(-1, 3)])
    assert border.min() == 255, "something is cut off"


@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_write_png_long_legend_keeps_plane_height(tmp_path, count):
    write(search_trials(methods=tuple(f"method {i}" for i in range(count))), tmp_path)
    dark = pixels(tmp_path / "frontier.png").max(axis=2) < 100
    left = dark[:, : dark.shape[1] // 4]
    spine = left[:, left.sum(axis=0).argmax()]
    assert len(spine) - spine.sum() < 280, "the axis labels and the caption need more space than expected"


def test_write_replaces_earlier_files(tmp_path):
    write(search_trials(seeds=2), tmp_path)
    write([trial()], tmp_path)
    assert len(strict_json((tmp_path / "frontier.json").read_text())["trials"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frontier.csv", "frontier.json", "frontier.png"]


def test_table_is_aligned_markdown_sorted_by_r2():
    of_16 = trial(16, 0.25, r2=0.05, strongest_r2_low=0.04, strongest_r2_high=0.06, bits=80, bits_low=70, bits_high=90)
    text = table(points([trial(128, accuracy=0.9, r2=0.3, bits=4096), of_16, trial(64, accuracy=0.7, r2=0.2)]), REFERENCE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["k", "privacy_weight", "seeds", "accuracy", "strongest R2", "bits", "front"], (
        "what no trial has is no column"
    )
    assert rows[2:] == [
        ["16", "0.25", "1", "0.860", "0.050 [0.040, 0.060]", "80 [70, 90]", "*"],
        ["64", "1", "1", "0.700", "0.200", "", ""],
        ["128", "1", "1", "0.900", "0.300", "4,096", "*"],
    ]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "method" in table(points([trial(), trial(method="noise")]), REFERENCE)


# ------------------------------------------------------------------------------------------------------------------- bits

SOLID = Reference(0.8, bits=100.0)


def test_hypervolume_of_one_point_with_bits_is_that_of_a_polytope():
    (point,) = points([trial(accuracy=0.9, r2=0.0, bits=0.0)])
    assert hypervolume([point], SOLID) == pytest.approx(0.1)  # private, useful and free: all of the box
    (point,) = points([trial(accuracy=0.9, r2=1.0, bits=100.0)])
    assert hypervolume([point], SOLID) == pytest.approx(0.1 / 3)  # a pyramid on a square of 1


def test_front_with_bits_keeps_what_only_the_bits_are_better_in():
    short = trial(k=8, accuracy=0.85, r2=0.4, bits=10.0)
    long = trial(k=64, accuracy=0.86, r2=0.1, bits=100.0)
    worse = trial(k=32, accuracy=0.84, r2=0.45, bits=90.0)
    found = points([short, long, worse])
    assert [p.setting["k"] for p in front(found, REFERENCE)] == [64]
    assert [p.setting["k"] for p in front(found, SOLID)] == [64, 8]


def test_hypervolume_with_bits_does_not_fall_with_another_point():
    rng = np.random.default_rng(0)
    trials = [
        trial(k=i + 1, accuracy=float(a), r2=float(r), bits=float(b))
        for i, (a, r, b) in enumerate(rng.uniform([0.79, 0, 1], [0.9, 1, 100], (12, 3)))
    ]
    volumes = [hypervolume(points(trials[:n]), SOLID) for n in range(len(trials) + 1)]
    assert volumes[0] == 0
    assert all(b >= a - 1e-9 for a, b in zip(volumes, volumes[1:], strict=False))


def test_points_of_unknown_length_are_on_no_front_with_bits():
    found = points([trial(accuracy=0.9, r2=0.1)])
    assert front(found, SOLID) == []
    assert reference_point([trial(bits=7.0), trial(bits=9.0)], bits=True) == Reference(0.8, bits=9.0)


def test_write_with_bits_has_the_length_in_every_file(tmp_path):
    trials = [trial(k=8, accuracy=0.85, r2=0.4, bits=10.0), trial(k=64, accuracy=0.86, r2=0.1, bits=100.0)]
    values = write(trials, tmp_path, bits=True)
    assert values["reference_point"] == {"accuracy": 0.8, "strongest_r2": 1.0, "bits": 100.0}
    assert len(values["front"]) == 2
    assert "bits" in (tmp_path / "frontier.csv").read_text().splitlines()[0].split(",")
    assert "| 100 |" in table(points(trials), reference_point(trials, bits=True)).replace("  ", " ")


def test_hypervolume_with_bits_matches_monte_carlo():
    """The gain of utility that mixtures attain within a bound on R2 and a budget of bits, drawn uniformly: a linear programme."""
    rng = np.random.default_rng(1)
    codes = np.column_stack([rng.uniform(0, 1, 8), rng.uniform(1, 100, 8), rng.uniform(0.8, 0.9, 8)])
    found = points([trial(k=i + 1, accuracy=float(u), r2=float(r), bits=float(b)) for i, (r, b, u) in enumerate(codes)])
    bounds = rng.uniform(0, 1, (1500, 2)) * (1, 100)
    gains = [
        -optimize.linprog(-(codes[:, 2] - 0.8), A_ub=np.vstack([codes[:, :2].T, np.ones(8)]), b_ub=[r2, bits, 1]).fun
        for r2, bits in bounds
    ]
    error = np.std(gains) / len(gains) ** 0.5
    assert hypervolume(found, SOLID) == pytest.approx(np.mean(gains), abs=4 * error)
    assert error < 0.02 * np.mean(gains)


# ---------------------------------------------------------------------------------------------------------------- answers


def with_control(client: float | None = 1000, *, head: float) -> list[Trial]:
    """A code of a client, and an undefended control of 1000 multiply-adds and a head, whose answers give away R2 0.2."""
    cost = {"multiply_adds": 1000, "cloud_multiply_adds": head}
    control = trial(weight=0, control=True, accuracy=0.9, r2=0.6, answers_floor_r2=0.2, **cost)
    return [trial(accuracy=0.88, r2=0.3, multiply_adds=client), control]


def test_answers_at_equal_cost_are_the_hull_of_what_the_client_can_compute(tmp_path):
    values = write(with_control(head=50), tmp_path)["answers_at_equal_cost"]
    assert values["hull"] == [{"strongest_r2": 0.0, "accuracy": 0.8}, {"strongest_r2": 0.2, "accuracy": pytest.approx(0.9)}]
    assert values["hypervolume"] == pytest.approx(0.1 * (0.8 + 0.2 / 2))
    assert values["multiply_adds"] == 1000


@pytest.mark.parametrize(("client", "head"), [(1000, 200), (100, 50), (None, 50)])
def test_answers_that_the_client_cannot_afford_are_on_no_front(client, head, tmp_path):
    values = write(with_control(client, head=head), tmp_path)
    assert values["answers_at_equal_cost"]["hull"] == [{"strongest_r2": 0.0, "accuracy": 0.8}]
    assert values["answers"][0]["multiply_adds"] == 1000 + head, "privatizer and utility head"


def test_answers_of_a_comparison_belong_to_the_methods_that_can_afford_them(tmp_path):
    sent = trial(accuracy=0.89, r2=0.1, method="answers_subset", multiply_adds=1050)
    dear, cheap = (trial(accuracy=0.88, r2=0.3, method=method, multiply_adds=m) for method, m in (("cpgan", 1000), ("pca", 10)))
    methods = write([sent, dear, cheap], tmp_path)["methods"]
    assert len(methods["cpgan"]["answers_at_equal_cost"]["hull"]) == 2
    assert len(methods["pca"]["answers_at_equal_cost"]["hull"]) == 1
    assert methods["answers_subset"]["answers_at_equal_cost"]["multiply_adds"] is None, "it sends no code"
