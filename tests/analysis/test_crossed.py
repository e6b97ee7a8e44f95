"""Tests of intervals that cross seeds and people: against closed forms, and their coverage by simulation."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import balanced_accuracy_score

from cpgan_ray.analysis.crossed import (
    MAX_GROUPS,
    CrossedEstimate,
    Replicates,
    estimate,
    holm,
    outcomes_without_people,
    people_groups,
    replicates,
    stack,
    verdicts,
)
from cpgan_ray.analysis.fronts import Estimate, mean_with_ci
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.scoring import RowErrors
from cpgan_ray.evaluation.utility import Answers

R2 = 0.4


def rows_of(rng: np.random.Generator, *, people: int = 9, labels: int = 3) -> tuple[RowErrors, Answers]:
    identity = np.repeat(np.arange(people) * 7, rng.integers(2, 9, size=people))
    mean_errors = rng.lognormal(size=len(identity))
    errors = mean_errors * (0.6 + 0.1 * rng.normal(size=len(identity)))
    y = rng.integers(0, 2, size=(len(identity), labels))
    return RowErrors(errors, mean_errors, identity), Answers(rng.random(y.shape) < 0.8, y.astype(np.int8))


@pytest.mark.parametrize("objective", ["accuracy", "balanced_accuracy"])
def test_outcomes_without_people_match_leaving_them_out(objective):
    rows, answers = rows_of(np.random.default_rng(0))
    result = outcomes_without_people(rows, answers, objective=objective)
    assert result.shape == (10, 2)
    for i, row in enumerate(result):
        kept = np.ones(len(rows.identity), bool) if i == 0 else rows.identity != np.unique(rows.identity)[i - 1]
        y, right = answers.labels[kept], answers.right[kept]
        given = np.where(right, y, 1 - y)
        balanced = np.mean([balanced_accuracy_score(y[:, j], given[:, j]) for j in range(3)])
        expected = (
            1 - rows.errors[kept].sum() / rows.mean_errors[kept].sum(),
            right.mean() if objective == "accuracy" else balanced,
        )
        assert row == pytest.approx(expected)


def test_outcomes_of_classes_are_mean_recalls_and_of_constant_labels_accuracy():
    rows, answers = rows_of(np.random.default_rng(1), labels=1)
    y = np.arange(len(rows.errors)) % 4
    classes = Answers(answers.right, y[:, None].astype(np.int8))
    expected = np.mean([answers.right[y == c].mean() for c in range(4)])
    assert outcomes_without_people(rows, classes, objective="balanced_accuracy")[0, 1] == pytest.approx(expected)
    constant = Answers(answers.right, np.zeros_like(classes.labels))
    assert outcomes_without_people(rows, constant, objective="balanced_accuracy")[0, 1] == pytest.approx(answers.right.mean())


@pytest.mark.parametrize("objective", ["accuracy", "balanced_accuracy"])
def test_outcomes_with_missing_answers_are_means_over_known_rows(objective):
    """One label of classes, of which only one person has answers, next to binary labels."""
    rows, answers = rows_of(np.random.default_rng(0))
    rng, people = np.random.default_rng(4), np.unique(rows.identity)
    y = answers.labels.copy()
    y[:, 1] = np.where(rows.identity == people[2], rng.integers(0, 5, len(y)), MISSING)
    y[rng.random(len(y)) < 0.3, 0] = MISSING
    right = answers.right & (y != MISSING)
    result = outcomes_without_people(rows, Answers(right, y), objective=objective)[:, 1]
    for i, value in enumerate(result):
        kept = np.ones(len(y), bool) if i == 0 else rows.identity != people[i - 1]
        of_labels = []
        for j in range(3):
            known = kept & (y[:, j] != MISSING)
            recalls = [right[known & (y[:, j] == v), j].mean() for v in np.unique(y[known, j])]
            if known.any():
                of_labels.append(right[known, j].mean() if objective == "accuracy" else np.mean(recalls))
        assert len(of_labels) == (2 if i == 3 else 3)
        assert value == pytest.approx(np.mean(of_labels))


def test_people_groups_are_people_or_even_groups_of_them():
    few = np.array([5, 5, 9, 2])
    assert people_groups(few).tolist() == [1, 1, 2, 0]
    many = np.repeat(np.arange(1050), 2)
    group = people_groups(many)
    assert (group[::2] == group[1::2]).all(), "a person is in one group"
    assert set(np.bincount(group[::2])) == {10, 11} and group.max() == MAX_GROUPS - 1


def test_estimate_of_one_seed_is_students_interval_over_people():
    values = np.random.default_rng(0).normal(size=8)
    without = (values.sum() - values) / 7
    result = estimate(Replicates(values.mean(), without, np.empty(0)))
    assert result[1:3] == pytest.approx(stats.t.interval(0.95, 7, loc=values.mean(), scale=stats.sem(values)))
    assert result.p is None, "one training says nothing about others"


def test_estimate_without_variation_of_people_is_students_test_over_seeds():
    values = np.random.default_rng(1).normal(0.5, size=5)
    without = (values.sum() - values) / 4
    result = estimate(Replicates(values.mean(), np.full(9, values.mean()), without))
    expected = stats.ttest_1samp(values, 0)
    assert result.p == pytest.approx(expected.pvalue)
    assert result[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_estimate_adds_both_half_widths_in_squares():
    rng = np.random.default_rng(2)
    people, seeds = rng.normal(size=9), rng.normal(size=5)
    of = Replicates(1.5, (people.sum() - people) / 8, (seeds.sum() - seeds) / 4)
    parts = [stats.t.ppf(0.975, n - 1) * stats.sem(v) for n, v in ((9, people), (5, seeds))]
    result = estimate(of)
    assert result[:3] == pytest.approx((1.5, 1.5 - np.hypot(*parts), 1.5 + np.hypot(*parts)))
    assert result.p is not None
    at_p = estimate(of, level=1 - result.p)
    assert at_p.low == pytest.approx(0, abs=1e-6), "the p-value belongs to the interval that ends at 0"


def test_estimate_of_missing_or_constant_statistic():
    same = np.zeros(3)
    assert estimate(Replicates(float("nan"), same, same)) == (None, None, None, None)
    assert estimate(Replicates(0.1, np.array([0.1, np.nan]), same)) == (0.1, None, None, None)
    assert estimate(Replicates(0.0, same, same)) == (0, 0, 0, 1)
    assert estimate(Replicates(0.25, same + 0.25, same + 0.25)) == (0.25, 0.25, 0.25, pytest.approx(0, abs=1e-8))


def test_replicates_leave_out_the_same_people_and_seeds_on_both_sides():
    rng = np.random.default_rng(3)
    trainings = stack([[outcomes_without_people(*rows_of(np.random.default_rng(s)), objective="accuracy")] for s in (0, 0)])
    assert trainings.shape == (2, 10, 1, 2)
    shift = trainings + 0.1
    difference = replicates(lambda p: float(p[0, 1]), shift) - replicates(lambda p: float(p[0, 1]), trainings)
    assert estimate(difference)[:3] == pytest.approx((0.1, 0.1, 0.1)), "common variation cancels"
    outcomes = rng.normal(size=(3, 5, 2, 2))
    of = replicates(lambda p: float(p[1, 0]), outcomes)
    assert of.value == pytest.approx(outcomes[:, 0, 1, 0].mean())
    assert of.without_people == pytest.approx(outcomes[:, 1:, 1, 0].mean(axis=0))
    assert of.without_seed == pytest.approx([np.delete(outcomes[:, 0, 1, 0], s).mean() for s in range(3)])


def test_holm_matches_published_example():
    """Four hypotheses at 0.05: https://en.wikipedia.org/wiki/Holm-Bonferroni_method, section Example."""
    adjusted = holm({"H1": 0.01, "H2": 0.04, "H3": 0.03, "H4": 0.005})
    assert adjusted == pytest.approx({"H4": 0.02, "H1": 0.03, "H3": 0.06, "H2": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = {str(i): float(v) for i, v in enumerate(rng.beta(0.3, 3, size=8))}
        rejected, names = set(), sorted(p, key=lambda name: p[name])
        for i, name in enumerate(names):  # Holm 1979: stop at the first that is not small enough
            if p[name] > 0.05 / (8 - i):
                break
            rejected.add(name)
        assert {name for name, adjusted in holm(p).items() if adjusted <= 0.05} == rejected


def test_verdicts_are_simultaneous():
    differences = {
        "noise": CrossedEstimate(0.3, 0.2, 0.4, 0.0001),
        "pca": CrossedEstimate(-0.2, -0.3, -0.1, 0.001),
        "ran": CrossedEstimate(0.1, 0.0, 0.2, 0.03),
        "dnn": CrossedEstimate(0.1, -0.1, 0.3, 0.3),
        "one": CrossedEstimate(0.1, 0.05, 0.15),
    }
    result = verdicts(differences)
    assert {name: verdict for name, (_, verdict) in result.items()} == {
        "noise": "better",
        "pca": "worse",
        "ran": "not separated",
        "dnn": "not separated",
    }
    assert result["ran"][0] == pytest.approx(0.06), "0.03 by itself would have been called significant"


# ------------------------------------------------------------------------------------------------------------------ coverage


def simulated(rng: np.random.Generator, *, people: int, seeds: int, spread: tuple[float, float, float]) -> np.ndarray:
    """Means over seeds, and what is needed for their intervals, in 1,500 simulated comparisons: R2 on all people and without each,
    (reps, S, G + 1). People have different numbers of rows.

    spread: standard deviations of the share of variance that is lost, over people, over seeds, and of their interaction.
    """
    reps = 1500 if people < 50 else 400
    rows = rng.integers(200, 400, size=(reps, 1, people)) if people < 50 else rng.integers(2, 9, size=(reps, 1, people))
    person, seed, both = (
        s * rng.normal(size=size)
        for s, size in zip(spread, ((reps, 1, people), (reps, seeds, 1), (reps, seeds, people)), strict=True)
    )
    errors, mean_errors = rows * (1 - R2 + person + seed + both), rows.astype(float)
    whole = errors.sum(-1, keepdims=True), mean_errors.sum(-1, keepdims=True)
    without = (whole[0] - errors) / (whole[1] - mean_errors)
    return 1 - np.concatenate([whole[0] / whole[1], without], axis=2)


def students(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Student's interval over seeds. values: (reps, S)."""
    half = special.stdtrit(values.shape[1] - 1, 0.975) * stats.sem(values, axis=1)
    return values.mean(axis=1) - half, values.mean(axis=1) + half


SPREADS = {"people": (0.1, 0.003, 0.02), "seeds": (0.02, 0.05, 0.02), "both": (0.1, 0.03, 0.05)}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("people", [9, 500])
def test_crossed_interval_covers_other_seeds_and_people(people, seeds, spread):
    r2 = simulated(np.random.default_rng(people + seeds), people=people, seeds=seeds, spread=SPREADS[spread])
    results = [
        estimate(Replicates(one[:, 0].mean(), one[:, 1:].mean(axis=0), (one[:, 0].sum() - one[:, 0]) / (seeds - 1))) for one in r2
    ]
    covered = np.mean([(r.low or 0) <= R2 <= (r.high or 0) for r in results])
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(r2)) <= covered <= 0.995
    if spread == "people":
        left, right = students(r2[:, :, 0])
        assert np.mean((left <= R2) & (right >= R2)) < 0.75, "Student's interval over seeds misses other people"


@pytest.mark.parametrize(("people", "seeds"), [(9, 1), (500, 1)])
def test_crossed_interval_of_one_seed_covers_other_people(people, seeds):
    """The number of this training on other people; other trainings have no spread here."""
    r2 = simulated(np.random.default_rng(people), people=people, seeds=seeds, spread=(0.1, 0.0, 0.0))
    results = [estimate(Replicates(one[0, 0], one[0, 1:], np.empty(0))) for one in r2]
    assert 0.92 <= np.mean([(r.low or 0) <= R2 <= (r.high or 0) for r in results]) <= 0.98


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_mean_with_ci_covers_other_seeds_and_people(seeds, spread):
    r2 = simulated(np.random.default_rng(seeds), people=9, seeds=seeds, spread=SPREADS[spread])[:1000]
    half = special.stdtrit(8, 0.975) * np.sqrt(8 * np.var(r2[:, :, 1:], axis=2))  # each seed's interval over people
    results = [
        mean_with_ci([Estimate(v, v - h, v + h) for v, h in zip(one[:, 0], halves, strict=True)])
        for one, halves in zip(r2, half, strict=True)
    ]
    assert 0.93 <= np.mean([(r.low or 0) <= R2 <= (r.high or 0) for r in results]) <= 0.995


def test_p_of_no_difference_is_below_a_twentieth_one_time_in_twenty():
    rng = np.random.default_rng(7)
    a, b = (simulated(rng, people=9, seeds=5, spread=(0.03, 0.03, 0.03)) for _ in range(2))
    p = [estimate(Replicates(d[:, 0].mean(), d[:, 1:].mean(axis=0), (d[:, 0].sum() - d[:, 0]) / 4)).p for d in np.asarray(a - b)]
    assert 0.01 <= np.mean([value is not None and value < 0.05 for value in p]) <= 0.065
