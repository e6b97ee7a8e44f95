"""The strongest attack of two reports, compared picture by picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.scoring import RowErrors, paired_difference
from cpgan_ray.evaluation.tournament import TournamentResult

ERRORS = "errors.npz"
"""The strongest attack's error on each score picture: what a paired comparison with another run needs."""
MAX_ERRORS_BYTES = 256 << 20
"""No array of it is read that is larger."""
MAX_ERROR = 1e12
"""No squared error on a picture is larger than this."""


def comparison(result: TournamentResult, against: Path, *, seed: int) -> dict[str, Any]:
    """The strongest attack here less the other report's, on the same score pictures."""
    return {"other": str(against), **asdict(difference(result.strongest.errors, against, seed=seed))}


def difference(errors: RowErrors, against: Path, *, seed: int) -> Any:
    """Raises: InputError where the other report was scored on other pictures."""
    try:
        return paired_difference(errors, read_errors(against), seed=seed)
    except ValueError as e:
        raise InputError(f"{against} cannot be compared with: {e}; give a report on the same prepared store") from e


def read_errors(folder: Path) -> RowErrors:
    """The row errors of a report folder, or of the run folder that it is in.

    Raises: InputError where there are none.
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
            except Exception as e:  # numpy raises whatever the damaged part leads to
                raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e
    raise InputError(f"{folder} has no {ERRORS}: give the output folder of a run, or the report folder of an attack")
