"""Errors of code that a name has selected, in one line with file and line."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpgan_ray.common.plugins.names import label, parse
from cpgan_ray.errors import InputError, LostError

logger = logging.getLogger(__name__)

_places: set[str] = set()
"""Files, and folders with a final slash, that selected code has come from in this process."""
PASSED = (InputError, LostError, FloatingPointError)
"""Errors that have a meaning of their own: selected code may raise them too."""


def add_place(place: Path) -> None:
    """Remember a file, or the folder of a package, whose lines are to be named in errors."""
    _places.add(f"{place}/" if place.is_dir() else str(place))


def place_of(error: BaseException) -> str | None:
    """`file:line` of the innermost line of selected code that an error has passed; None if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if any(file == p or (p.endswith("/") and file.startswith(p)) for p in _places)]
    return f"{own[-1][0]}:{own[-1][1]}" if own else None


def part_error(name: str, error: BaseException, *, doing: str) -> InputError:
    """The error to raise instead of one that a part's code has raised. The traceback is logged at level debug.

    name: of the part; doing: what it was called for, such as "building the privatizer".
    """
    logger.debug(f"{label(name)} failed while {doing}", exc_info=error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    reason = " ".join(f"{type(error).__name__}: {text}".split())[:300].rstrip(": ")
    reference = parse(name)
    place = place_of(error) or (reference.source if reference.is_file else label(name))
    return InputError(f"{place}: {reason}, while {doing} {label(name)}: correct the code; --log-level debug shows the traceback")


@contextmanager
def own_code(name: str, *, doing: str) -> Iterator[None]:
    """Errors of a part's code in the block become one line; see `part_error`."""
    try:
        yield
    except PASSED:
        raise
    except (Exception, SystemExit) as e:
        raise part_error(name, e, doing=doing) from e
