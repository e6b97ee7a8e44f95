"""Means over trainings of one configuration under several seeds, with 95 % intervals over seeds and people.

Accuracies, strongest R2 and excess R2 are computed again from the row errors of each training, so that their intervals cross seeds
and people (crossed.py). The R2 on the face region and the bits have no row errors: their intervals add the spread over seeds and
each training's own interval over people (`mean_with_ci`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.analysis.crossed import CrossedEstimate, Replicates, estimate, outcomes_without_people, replicates, stack
from cpgan_ray.analysis.fronts import Estimate, mean_with_ci
from cpgan_ray.common.json_files import read_json
from cpgan_ray.config import Objective
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.paired import Rows, read_rows
from cpgan_ray.evaluation.report.report import degeneracy_reasons
from cpgan_ray.evaluation.scoring import RowErrors

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "strongest_r2": "strongest R2",
    "strongest_r2_face": "on the face region",
    "excess_r2": "excess R2",
    "bits": "bits",
}
"""Each number of a training -> its title."""
METRICS = {
    "accuracy": "utility/accuracy",
    "balanced_accuracy": "utility/balanced_accuracy",
    "strongest_r2": "privacy/strongest_r2",
    "strongest_r2_face": "privacy/strongest_r2_face",
    "excess_r2": "privacy/excess_r2",
    "bits": "code/bits",
}
"""Each number -> the metric of its mean in MLflow."""


@dataclass(frozen=True, eq=False)
class Training:
    """A finished training: its report, and what `errors.npz` holds."""

    seed: int
    report: Mapping[str, Any]
    rows: Rows

    @property
    def numbers(self) -> dict[str, Estimate]:
        """The numbers of this training, with its own intervals over people; None where it has none."""
        utility, privacy, code = self.report["utility"], self.report["privacy"], self.report["code"]
        accuracies = {name: ends(utility, name) for name in ("accuracy", "balanced_accuracy")}
        strongest, face, excess = (privacy[name] for name in ("strongest", "strongest_face", "excess"))
        r2 = {"strongest_r2": strongest, "strongest_r2_face": face, "excess_r2": excess}
        return {
            **accuracies,
            **{name: Estimate(None) if a is None else Estimate(a["r2"], a["low"], a["high"]) for name, a in r2.items()},
            "bits": Estimate(code["bits"], code["low"], code["high"]),
        }

    @property
    def attack(self) -> str:
        """Name of the strongest attack."""
        return self.report["privacy"]["strongest"]["attack"]

    @property
    def degenerate(self) -> str | None:
        """Why the code is degenerate; None if it is not."""
        return next(iter(degeneracy_reasons(self.report)), None)


def ends(values: Mapping[str, float], name: str) -> Estimate:
    return Estimate(values[name], values[f"{name}_low"], values[f"{name}_high"])


def read_training(folder: Path, *, seed: int) -> Training:
    """Read a finished run. Its files are checked, because they may come from another machine.

    Raises: InputError if one of them is missing or damaged.
    """
    path = folder / "report" / "report.json"
    try:
        training = Training(seed, read_json(path), read_rows(folder))
        if not all(v is None or abs(float(v)) < 1e12 for of in training.numbers.values() for v in of) or not training.attack:
            raise ValueError("numbers")
        _ = training.degenerate
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}): remove {folder}, and this seed is trained again") from e
    return training


def over_seeds(trainings: Sequence[Training]) -> dict[str, CrossedEstimate]:
    """The mean of every number over at least two trainings, with its interval; without a value where a training has none.

    Raises: InputError if the trainings are not scored on the same people, or if one has no answers to the task.
    """
    first = trainings[0]
    for training in trainings:
        if not np.array_equal(training.rows.strongest.identity, first.rows.strongest.identity):
            raise InputError(
                f"the trainings under seeds {first.seed} and {training.seed} are scored on different people: train all of them on "
                "the same prepared store"
            )
        if training.rows.answers is None:
            raise InputError(f"the training under seed {training.seed} has no answers to the task: remove its folder, and resume")

    def outcomes(which: str, objective: Objective) -> np.ndarray | None:
        """R2 and utility of all trainings, (S, G + 1, 1, 2), by one of the row errors; None if a training does not have them."""
        cells = []
        for training in trainings:
            errors: RowErrors | None = getattr(training.rows, which)
            if errors is None or training.rows.answers is None:
                return None
            cells.append([outcomes_without_people(errors, training.rows.answers, objective=objective)])
        return stack(cells)

    def number(of: np.ndarray | None, column: int) -> Replicates | None:
        return None if of is None else replicates(lambda point: float(point[0, column]), of)

    plain, balanced = (outcomes("strongest", objective) for objective in ("accuracy", "balanced_accuracy"))
    r2, floor = number(plain, 0), number(outcomes("answers_floor", "accuracy"), 0)
    crossed = {
        "accuracy": number(plain, 1),
        "balanced_accuracy": number(balanced, 1),
        "strongest_r2": r2,
        "excess_r2": None if r2 is None or floor is None else r2 - floor,
    }
    estimates = {name: CrossedEstimate(None) if value is None else estimate(value) for name, value in crossed.items()}
    return {name: estimates.get(name) or combined([t.numbers[name] for t in trainings]) for name in TITLES}


def combined(of_seeds: Sequence[Estimate]) -> CrossedEstimate:
    """The mean of numbers that have only their own intervals over people."""
    if any(value is None for value, _, _ in of_seeds):
        return CrossedEstimate(None)
    return CrossedEstimate(*mean_with_ci(of_seeds))
