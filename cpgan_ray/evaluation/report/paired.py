"""The strongest attack of two reports, compared picture by picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.scoring import RowErrors, paired_difference
from cpgan_ray.evaluation.tournament import TournamentResult

ERRORS = "errors.npz"
"""Holds the strongest attack's error on each score picture. A paired comparison with another run needs it."""
MAX_ERRORS_BYTES = 256 << 20
"""A file with a larger array is rejected."""
MAX_ERROR = 1e12
"""A file with a larger squared error is rejected."""


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
    """Read the row errors from a report folder, or from a run folder that contains one.

    Raises: InputError if there are none, or the file is damaged.
    """
    for path in (folder / ERRORS, folder / "report" / ERRORS):
        if path.is_file():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    if max(entry.file_size for entry in arrays.zip.infolist()) > MAX_ERRORS_BYTES:
                        raise ValueError("too large")
                    errors, mean_errors = (arrays[name].astype(np.float64, casting="safe") for name in ("errors", "mean_errors"))
                    identity = arrays["identity"].astype(np.int64, casting="safe")
                if not (errors.shape == mean_errors.shape == identity.shape == (len(errors),) and np.isfinite(errors).all()):
                    raise ValueError("shapes or values")
                if not (np.isfinite(mean_errors).all() and mean_errors.sum() > 0):
                    raise ValueError("values")
                if min(errors.min(), mean_errors.min()) < 0 or max(errors.max(), mean_errors.max()) > MAX_ERROR:
                    raise ValueError("values")
                return RowErrors(errors, mean_errors, identity)
            except Exception as e:  # numpy may raise any exception for a damaged file
                raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e
    raise InputError(f"{folder} has no {ERRORS}: choose the output folder of a run, or the report folder of an attack")
