"""What finished trials amount to: fronts, hypervolumes, intervals and the recommendation, and how they are written down."""

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
from scipy import stats

from cpgan_ray.analysis.fronts import (
    Reference,
    Trial,
    as_json,
    comparable,
    front,
    hypervolume,
    hypervolume_history,
    nearest,
    points,
    rank_correlations,
    recommend,
    reference_point,
    table,
    write,
)
from cpgan_ray.errors import InputError

REFERENCE = Reference(0.8)


def trial(k: int = 64, weight: float = 1.0, *, accuracy: float | None = 0.86, r2: float | None = 0.1, **more: Any) -> Trial:
    """A finished trial; its validation numbers are those of the test split unless told."""
    values: dict[str, Any] = {"seed": 0, "state": "finished", "val_accuracy": accuracy, "val_r2": r2, "majority_accuracy": 0.8}
    values |= {"setting": {"k": k, "privacy_weight": weight}, "accuracy": accuracy, "strongest_r2": r2} | more
    return Trial(**({"name": f"k{k} w{weight} s{values['seed']}"} | values))


def random_trials(seed: int, *, count: int = 30, ties: bool) -> list[Trial]:
    """Of settings of their own, some worse than the reference; `ties`: on a coarse grid, with equal points among them."""
    rng = np.random.default_rng(seed)
    plane = rng.uniform([0.78, -0.02], [0.9, 1.1], (count, 2))
    plane = np.round(plane, 2) if ties else plane
    return [trial(k=i + 1, accuracy=float(a), r2=float(r)) for i, (a, r) in enumerate(plane)]


def test_degenerate_code_is_on_no_front_and_never_recommended():
    useless, good = trial(1, accuracy=0.9, r2=0.0, degenerate="the code is constant"), trial(2, accuracy=0.85, r2=0.2)
    found = points([useless, good])
    assert [p.setting["k"] for p in front(found)] == [2]
    assert hypervolume(found, REFERENCE) == hypervolume(found[1:], REFERENCE) > 0
    for bounds in ({}, {"max_r2": 0.5}, {"min_accuracy": 0.8}):
        chosen = recommend(found, **bounds)
        assert chosen is not None and chosen.point.setting["k"] == 2
    assert recommend(found[:1], max_r2=0.5) is None
    assert "degenerate" in nearest(found[:1], max_r2=0.5)
    assert "degenerate" in table(found)


def beaten(one: Any, other: Any) -> bool:
    """Whether `other` is at least as good in both numbers, and better in one."""
    accuracy, r2 = other.accuracy - one.accuracy, one.strongest_r2 - other.strongest_r2
    return accuracy >= 0 and r2 >= 0 and (accuracy > 0 or r2 > 0)


def area(found: list[Any], reference: Reference) -> float:
    """The dominated area, cell by cell of the grid that all coordinates make."""
    x = np.unique([p.strongest_r2 for p in found] + [reference.strongest_r2])
    y = np.unique([p.accuracy for p in found] + [reference.accuracy])
    total = 0.0
    for left, right in zip(x, x[1:], strict=False):
        for low, high in zip(y, y[1:], strict=False):
            inside = right <= reference.strongest_r2 and low >= reference.accuracy
            if inside and any(p.strongest_r2 <= left and p.accuracy >= high for p in found):
                total += (right - left) * (high - low)
    return total


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_beats_and_the_hypervolume_what_it_dominates(seed, ties):
    found = points(random_trials(seed, ties=ties))
    best = front(found)
    unbeaten = [p for p in found if not any(beaten(p, other) for other in found)]
    assert len(best) == len(unbeaten)
    assert all(p in unbeaten for p in best)
    assert [p.strongest_r2 for p in best] == sorted(p.strongest_r2 for p in unbeaten)
    assert hypervolume(found, REFERENCE) == pytest.approx(area(found, REFERENCE), abs=1e-12)
    assert hypervolume(best, REFERENCE) == pytest.approx(hypervolume(found, REFERENCE), abs=1e-12)


def test_equal_points_stay_on_the_front_together():
    found = points([trial(16), trial(32), trial(64, accuracy=0.85), trial(128, accuracy=0.85, r2=0.05)])
    assert [p.setting["k"] for p in front(found)] == [128, 16, 32]


def test_no_points_have_an_empty_front_and_no_hypervolume():
    assert front([]) == []
    assert hypervolume([], REFERENCE) == 0.0
    assert hypervolume_history([], REFERENCE) == []


def test_points_worse_than_the_reference_add_nothing():
    worse = points([trial(16, accuracy=0.79, r2=0.1), trial(32, accuracy=0.85, r2=1.2)])
    assert hypervolume(worse, REFERENCE) == 0.0
    assert hypervolume(points([trial(accuracy=0.9, r2=0.5)]), REFERENCE) == pytest.approx(0.05)


@pytest.mark.parametrize("seed", range(10))
def test_with_one_seed_a_setting_the_hypervolume_never_falls_and_ends_at_that_of_all(seed):
    trials = random_trials(seed, ties=False)
    history = hypervolume_history([*trials, trial(weight=0, control=True), trial(state="stopped")], REFERENCE)
    assert len(history) == len(trials)
    assert history == sorted(history)
    assert history[-1] == hypervolume(points(trials), REFERENCE)


def test_a_second_seed_that_turns_out_worse_lowers_the_hypervolume():
    history = hypervolume_history([trial(accuracy=0.88), trial(accuracy=0.86, seed=1)], REFERENCE)
    assert history == pytest.approx([0.08 * 0.9, 0.07 * 0.9])


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
def test_what_is_no_finished_trial_of_a_defence_is_no_point(other):
    assert [p.setting["k"] for p in points([trial(64), other])] == [64]


def test_controls_have_points_of_their_own():
    (control,) = points([trial(), trial(weight=0, control=True, accuracy=0.89, r2=0.4)], control=True)
    assert control.strongest_r2 == 0.4


def test_trials_of_one_setting_are_one_point_however_it_is_written():
    one = trial(setting={"k": 64, "privacy_weight": 1})
    other = trial(setting={"privacy_weight": 1.0, "k": 64}, seed=1)
    (point,) = points([one, other])
    assert (point.num_trials, point.seeds) == (2, (0, 1))
    assert len(points([one, replace(other, method="noise")])) == 2


def test_one_trainings_interval_is_its_own():
    ends = {"accuracy_low": 0.85, "accuracy_high": 0.87, "strongest_r2_low": 0.08, "strongest_r2_high": 0.13}
    (point,) = points([trial(**ends)])
    assert {name: getattr(point, name) for name in ends} == ends
    (point,) = points([trial()])
    assert (point.accuracy_low, point.strongest_r2_high) == (None, None)


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_the_interval_of_several_seeds_is_students(seeds):
    rng = np.random.default_rng(seeds)
    accuracy, r2 = rng.normal(0.87, 0.01, seeds), rng.normal(0.1, 0.02, seeds)
    (point,) = points(
        [trial(seed=i, accuracy=a, r2=r, accuracy_low=0.1) for i, (a, r) in enumerate(zip(accuracy, r2, strict=True))]
    )
    for name, values in (("accuracy", accuracy), ("strongest_r2", r2)):
        assert getattr(point, name) == pytest.approx(values.mean())
        ends = (getattr(point, f"{name}_low"), getattr(point, f"{name}_high"))
        assert ends == pytest.approx(stats.t.interval(0.95, seeds - 1, loc=values.mean(), scale=stats.sem(values)))
    assert (point.val_accuracy, point.val_r2) == pytest.approx((accuracy.mean(), r2.mean()))


def test_a_seed_played_twice_is_no_further_evidence():
    ends = {"accuracy_low": 0.85, "accuracy_high": 0.87}
    (point,) = points([trial(**ends), trial(**ends)])
    assert (point.num_trials, point.seeds) == (2, (0,))
    assert (point.accuracy_low, point.accuracy_high) == pytest.approx((0.85, 0.87))
    (twice,) = points([trial(accuracy=0.86), trial(accuracy=0.86), trial(accuracy=0.88, seed=1)])
    (once,) = points([trial(accuracy=0.86), trial(accuracy=0.88, seed=1)])
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
        ({"max_r2": 0.1}, 64, "largest validation accuracy among settings with strongest R2 <= 0.1"),
        ({"max_r2": 0.06}, 32, "largest validation accuracy among settings with strongest R2 <= 0.06"),
        ({"min_accuracy": 0.855}, 64, "smallest validation R2 among settings with accuracy >= 0.855"),
        ({"min_accuracy": 0.875}, 128, "smallest validation R2 among settings with accuracy >= 0.875"),
        (
            {"max_r2": 0.3, "min_accuracy": 0.865},
            128,
            "largest validation accuracy among settings with strongest R2 <= 0.3 and accuracy >= 0.865",
        ),
        ({}, 64, "largest (validation accuracy - 0.800) * (1 - validation R2)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_gates_are_on_the_test_split_and_the_ranking_on_the_validation_split(gates, k, rule):
    chosen = recommend(points(CHOICE), **gates)
    assert chosen is not None
    assert (chosen.point.setting["k"], chosen.rule) == (k, rule)


@pytest.mark.parametrize(
    ("trials", "gates", "text"),
    [
        ([], {}, "no trial has finished with an accuracy and an attack's R2"),
        (CHOICE, {"max_r2": 0.01}, "no setting has strongest R2 <= 0.01; the lowest is 0.0300 at k=16 privacy_weight=1"),
        (CHOICE, {"min_accuracy": 0.9}, "no setting has accuracy >= 0.9; the highest is 0.8800 at k=128 privacy_weight=1"),
        (
            CHOICE,
            {"max_r2": 0.1, "min_accuracy": 0.875},
            "no setting has both strongest R2 <= 0.1 and accuracy >= 0.875; "
            "the highest accuracy of the private ones is 0.8700 at k=32 privacy_weight=1",
        ),
        (
            [trial(val_accuracy=None)],
            {"max_r2": 0.5},
            "no setting that qualifies has the numbers of the validation split that it would be ranked by",
        ),
    ],
    ids=["nothing", "max_r2", "min_accuracy", "both", "no validation"],
)
def test_where_nothing_qualifies_the_nearest_is_named(trials, gates, text):
    assert recommend(points(trials), **gates) is None
    assert nearest(points(trials), **gates) == text
    told = as_json(trials, **gates)
    assert (told["recommended"], told["reason"]) == (None, text)


def test_the_reference_is_the_majority_guess_and_all_recovered():
    assert reference_point([trial(), trial(majority_accuracy=None)]) == (0.8, 1.0)
    assert reference_point([trial(majority_accuracy=None)]) is None


def test_rank_correlations_are_spearmans_over_all_and_within_equal_other_fields():
    rng = np.random.default_rng(0)
    weights = (0.1, 0.3, 1.0, 3.0)
    trials = [trial(k, w, accuracy=float(rng.normal()), r2=k / 100 - w / 100) for k in (16, 64, 256) for w in weights]
    found = points([replace(t, setting=t.setting | {"privatizer.family": "conv"}) for t in trials])
    told = rank_correlations(found)
    assert told.keys() == {"k", "privacy_weight"}
    for name in told:
        values = [p.setting[name] for p in found]
        for of in ("strongest_r2", "accuracy"):
            assert told[name][of] == pytest.approx(stats.spearmanr(values, [getattr(p, of) for p in found]).statistic)
    assert told["privacy_weight"]["strongest_r2"] > -0.5, "over all points k hides what the weight does"
    assert told["privacy_weight"]["within"]["strongest_r2"] == pytest.approx(-1)
    assert told["privacy_weight"]["within"]["num_groups"] == 3


def test_a_correlation_without_variation_is_none():
    told = rank_correlations(points([trial(k, r2=0.1, accuracy=0.8 + k / 1000) for k in (16, 32, 64)]))
    assert told == {"k": {"strongest_r2": None, "accuracy": pytest.approx(1), "num_points": 3, "within": None}}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "feed"}, "data set digest beef in k64 w1.0 s0; feed in noise/other"),
        ({"majority_accuracy": 0.7}, "majority accuracy, so another task, 0.8 in k64 w1.0 s0; 0.7 in noise/other"),
    ],
)
def test_trials_scored_on_different_things_have_no_common_front(other, said):
    one = trial(data="beef")
    comparable([one, trial(data="beef", method="noise"), trial(state="failed", **other)])
    with pytest.raises(InputError, match=said):
        comparable([one, trial(**{"data": "beef", "name": "other", "method": "noise"} | other)])


def made(*, methods: tuple[str, ...] = ("",), seeds: int = 1, weights: int = 3, **more: Any) -> list[Trial]:
    """A search as it might have gone."""
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


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_json_tells_every_trial_and_what_they_amount_to(tmp_path):
    trials = made(seeds=2)
    told = write(trials, tmp_path / "new" / "folder", max_r2=0.1, command=lambda setting, seed: f"train k={setting['k']} {seed}")
    values = strict((tmp_path / "new" / "folder" / "frontier.json").read_text())
    assert values == told
    assert len(values["trials"]) == len(trials) - 1
    assert [one["name"] for one in values["control"]] == ["control"]
    assert {t["state"] for t in values["trials"]} == {"finished", "stopped", "failed"}
    first = values["trials"][0]
    assert (first["k"], first["privacy_weight"], first["setting"]) == (16, 0.1, {"k": 16, "privacy_weight": 0.1})
    failed = next(t for t in values["trials"] if t["state"] == "failed")
    assert (failed["strongest_r2"], failed["cause"], failed["on_front"]) == (None, "lost, with its node", False)
    on_front = {(t["k"], t["privacy_weight"]) for t in values["trials"] if t["on_front"]}
    assert on_front == {(p["k"], p["privacy_weight"]) for p in values["front"]}
    assert all((p["num_trials"], p["seeds"]) == (2, [0, 1]) for p in values["front"])
    assert values["hypervolume"] == values["hypervolume_history"][-1] > 0
    assert len(values["hypervolume_history"]) == 18
    assert values["reference_point"] == {"accuracy": 0.806, "strongest_r2": 1.0}
    assert values["label_floor_r2"] == pytest.approx(0.075)
    best = values["recommended"]
    assert best["command"] == f"train k={best['k']} 0"
    assert best["strongest_r2"] <= 0.1
    assert "methods" not in values


def test_several_methods_have_a_front_each_beside_the_common_one():
    values = as_json([*made(methods=("a",)), *(replace(t, accuracy=0.8) if t.accuracy else t for t in made(methods=("b",)))])
    assert values["methods"].keys() == {"a", "b"}
    assert values["methods"]["a"]["hypervolume"] > values["methods"]["b"]["hypervolume"]
    assert {p["method"] for p in values["methods"]["b"]["front"]} == {"b"}


def test_nothing_finished_is_written_down_too(tmp_path):
    values = write([trial(state="failed", accuracy=None, r2=None, majority_accuracy=None)], tmp_path)
    assert (values["front"], values["hypervolume"], values["reference_point"], values["recommended"]) == ([], None, None, None)
    assert {p.name for p in tmp_path.iterdir()} == {"frontier.json", "frontier.csv", "frontier.png"}


def test_the_csv_has_a_row_a_trial(tmp_path):
    trials = made()
    write(trials, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "frontier.csv").read_text())))
    assert len(rows) == len(trials)
    by_name = {row["name"]: row for row in rows}
    for one in trials:
        row = by_name[one.name]
        assert (int(row["k"]), float(row["privacy_weight"]), int(row["seed"])) == (*one.setting.values(), one.seed)
        known = one.strongest_r2 is not None and np.isfinite(one.strongest_r2)
        assert row["strongest_r2"] == (repr(one.strongest_r2) if known else "")
        assert (row["state"], row["cause"]) == (one.state, one.cause or "")
    assert [row["control"] for row in rows].count("True") == 1


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


CASES: dict[str, Callable[[], list[Trial]]] = {
    "a search": made,
    "several seeds": lambda: made(seeds=3),
    "many weights": lambda: made(weights=20),
    "methods with odd names": lambda: made(methods=("cpgan", "noise $x_", "_c", "d" * 40)),
    "one point": lambda: [trial()],
    "no numbers beside the two": lambda: [trial(majority_accuracy=None), trial(32)],
    "other fields": lambda: [trial(setting={"privatizer.quantization_step": s}, accuracy=0.8 + s, r2=s) for s in (0.01, 0.02)],
    "a weight of 0 that is no control": lambda: [trial(weight=w, accuracy=0.8 + w / 100) for w in (0.0, 0.1, 1.0)],
    "nothing finished": lambda: [trial(state="running", accuracy=None, r2=None)],
}


@pytest.mark.parametrize("case", CASES)
def test_the_figure_is_a_picture_of_readable_size(tmp_path, case):
    write(CASES[case](), tmp_path)
    picture = pixels(tmp_path / "frontier.png")
    assert picture.shape[:2] == (1040, 1800)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    border = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, :2].reshape(-1, 3)])
    assert border.min() == 255, "nothing is cut off"


@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_a_long_legend_leaves_the_plane_its_height(tmp_path, count):
    write(made(methods=tuple(f"method {i}" for i in range(count))), tmp_path)
    dark = pixels(tmp_path / "frontier.png").max(axis=2) < 100
    left = dark[:, : dark.shape[1] // 4]
    spine = left[:, left.sum(axis=0).argmax()]
    assert len(spine) - spine.sum() < 280, "no more than its numbers, its name and the caption need"


def test_files_of_an_earlier_front_are_replaced_whole(tmp_path):
    write(made(seeds=2), tmp_path)
    write([trial()], tmp_path)
    assert len(strict((tmp_path / "frontier.json").read_text())["trials"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frontier.csv", "frontier.json", "frontier.png"]


def test_the_table_is_aligned_markdown_by_r2_with_the_front_marked():
    text = table(points([trial(128, accuracy=0.9, r2=0.3), trial(16, 0.25, r2=0.05, strongest_r2_low=0.04, strongest_r2_high=0.06),
                         trial(64, accuracy=0.7, r2=0.2)]))  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["k", "privacy_weight", "seeds", "accuracy", "strongest R2", "front"]
    assert rows[2:] == [
        ["16", "0.25", "1", "0.860", "0.050 [0.040, 0.060]", "*"],
        ["64", "1", "1", "0.700", "0.200", ""],
        ["128", "1", "1", "0.900", "0.300", "*"],
    ]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "method" in table(points([trial(), trial(method="noise")]))
