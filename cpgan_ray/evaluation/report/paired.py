"""The strongest attack of two reports, compared picture by picture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.atomic_io import atomic_path
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.scoring import RowErrors, paired_difference
from cpgan_ray.evaluation.tournament import TournamentResult
from cpgan_ray.evaluation.utility import Answers

ERRORS = "errors.npz"
"""Holds the strongest attack's error on each score picture, the person, and the right answers to the task. A paired comparison with
another run and intervals that cross seeds and people need it."""
MAX_ERRORS_BYTES = 256 << 20
"""A file with a larger array is rejected."""
MAX_ERROR = 1e12
"""A file with a larger squared error is rejected."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The content of `errors.npz`."""

    strongest: RowErrors
    floor: RowErrors | None
    """Of the attack on the task's true labels, if the file has them."""
    answers: Answers | None
    """Of the utility head, if there is one."""
    answers_floor: RowErrors | None = None
    """Of the attack on the run's own hard answers, if the file has them."""


def write_rows(folder: Path, rows: Rows) -> None:
    """Write `errors.npz`."""
    strongest, answers = rows.strongest, rows.answers
    arrays: dict[str, Any] = {name: getattr(strongest, name) for name in ("errors", "mean_errors", "identity")}
    arrays |= {"restart_std": np.float64(strongest.restart_std)}
    for name, floor in (("floor", rows.floor), ("answers_floor", rows.answers_floor)):
        if floor is not None:
            arrays |= {f"{name}_errors": floor.errors, f"{name}_restart_std": np.float64(floor.restart_std)}
    arrays |= {} if answers is None else {"right": answers.right, "labels": answers.labels}
    with atomic_path(folder / ERRORS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def comparison(result: TournamentResult, against: Path, *, seed: int) -> dict[str, Any]:
    """The report's entry: difference in R2 between the strongest attack of `result` and that of the report in folder `against`."""
    return {"other": str(against), **asdict(difference(result.strongest.errors, against, seed=seed))}


def difference(errors: RowErrors, against: Path, *, seed: int) -> Any:
    """R2 of `errors` minus R2 of the strongest attack in the report folder `against`, on the same score pictures.

    Raises: InputError if the other report was scored on other pictures.
    """
    try:
        return paired_difference(errors, read_errors(against), seed=seed)
    except ValueError as e:
        raise InputError(f"cannot compare with {against}: {e}; choose a report on the same prepared store") from e


def read_errors(folder: Path) -> RowErrors:
    """Read the strongest attack's row errors from a report folder, or from a run folder that contains one.

    Raises: InputError if there are none, or the file is damaged.
    """
    return read_rows(folder).strongest


def read_rows(folder: Path) -> Rows:
    """Read `errors.npz` from a report folder, or from a run folder that contains one.

    Raises: InputError if there is none, or if it is damaged.
    """
    for path in (folder / ERRORS, folder / "report" / ERRORS):
        if path.is_file():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    if max(entry.file_size for entry in arrays.zip.infolist()) > MAX_ERRORS_BYTES:
                        raise ValueError("too large")
                    floors = [name for name in ("floor", "answers_floor") if f"{name}_errors" in arrays]
                    names = ("errors", "mean_errors", *(f"{name}_errors" for name in floors))
                    numbers = [arrays[name].astype(np.float64, casting="safe") for name in names]
                    identity = arrays["identity"].astype(np.int64, casting="safe")
                    spreads = [float(arrays[name]) for name in ("restart_std", *(f"{name}_restart_std" for name in floors))]
                    answers = read_answers(arrays, rows=len(identity)) if "right" in arrays else None
                if not all(values.shape == (len(identity),) and np.isfinite(values).all() for values in numbers):
                    raise ValueError("shapes or values")
                if min(values.min() for values in numbers) < 0 or max(values.max() for values in numbers) > MAX_ERROR:
                    raise ValueError("values")
                errors, mean_errors, *of_floors = numbers
                if mean_errors.sum() <= 0 or len(spreads) != len(numbers) - 1 or not all(0 <= s <= 1 for s in spreads):
                    raise ValueError("values")
                rows = {
                    name: RowErrors(values, mean_errors, identity, spread)
                    for name, values, spread in zip(floors, of_floors, spreads[1:], strict=True)
                }
                strongest = RowErrors(errors, mean_errors, identity, spreads[0])
                return Rows(strongest, rows.get("floor"), answers, rows.get("answers_floor"))
            except Exception as e:  # numpy may raise any exception for a damaged file
                raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e
    raise InputError(f"{folder} has no {ERRORS}: choose the output folder of a run, or the report folder of an attack")


def read_answers(arrays: Mapping[str, np.ndarray], *, rows: int) -> Answers:
    """Raises: ValueError if shapes, types or values are not those of answers to so many rows."""
    right, labels = arrays["right"], arrays["labels"]
    if right.dtype != bool or labels.dtype != np.int8 or right.ndim != 2 or not right.shape == labels.shape or len(right) != rows:
        raise ValueError("answers")
    if labels.min() < MISSING or right[labels == MISSING].any() or (labels == MISSING).all():
        raise ValueError("answers")
    return Answers(right, labels)
