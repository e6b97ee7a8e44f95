"""Python's search for garbage in reference cycles, while a process imports its libraries.

torch, Ray and MLflow make a million objects that live as long as the process. Each time some hundred new objects exist, Python
looks for cycles among them, and often among all objects: that takes a quarter of the time that the imports take. So a process that
will compute postpones the search until its libraries are imported, and from then on leaves their objects out of it.
"""

import gc

POSTPONED = 50_000
"""New objects before the first search. It is not switched off: a process that never computes still frees its cycles."""

_usual: list[tuple[int, int, int]] = []


def postpone_collection() -> None:
    """Call this before the first large import of a process that will compute."""
    if not _usual and 0 < gc.get_threshold()[0] < POSTPONED:
        _usual.append(gc.get_threshold())
        gc.set_threshold(POSTPONED, *gc.get_threshold()[1:])


def resume_collection() -> None:
    """Search as usual again, among the objects that are made from now on. Without `postpone_collection` before it does nothing."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
