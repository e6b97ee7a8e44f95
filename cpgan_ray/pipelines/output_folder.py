"""The folder that a job writes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cpgan_ray.common.claims import claim_folder, claim_new_folder
from cpgan_ray.config.folders import REPRODUCTION, SEARCH
from cpgan_ray.errors import InputError


@contextmanager
def output_folder(given: Path | None, name: str, *, resume: bool = False, parent: Path | None = None) -> Iterator[Path]:
    """A job's output folder, absolute, for this process alone until the block ends: the one given, or a new one in `parent`
    (`outputs` by default), called by the name and the time. It is gone again if nothing has been written to it.

    Raises: InputError if it holds a job's results already, or another process has it.
    """
    if given is None:
        base = (parent or Path("outputs").resolve()) / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        with claim_new_folder(base) as folder:
            yield folder
        return
    ensure_unused(given, resume=resume)  # before the folder is touched
    with claim_folder(given):
        ensure_unused(given, resume=resume)  # another process may just have left it
        yield given


def ensure_unused(output: Path, *, resume: bool) -> None:
    """Raises: InputError if the folder holds a job's results; with `resume`, those of a run that has ended."""
    if resume and (output / "report" / "report.json").is_file():
        raise InputError(f"the run in {output} has come to its end: there is nothing to resume")
    for file, kind in (("config.json", "run"), (SEARCH, "search"), (REPRODUCTION, "comparison")):
        if not resume and (output / file).exists():
            remedy = "give another --output" if kind == "run" else "go on with it by --resume, or give another --output"
            raise InputError(f"output folder {output} holds a {kind} already: {remedy}")
