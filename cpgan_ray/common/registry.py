"""Registries: dicts from a name to a class or a function, one for each kind of part.

A registry is a plain dict literal, followed by a call of `remember`. A change at run time takes effect at once in the process that
makes it, but the processes of Ray import the package themselves and would silently use the original entries. `ensure_unchanged`
therefore compares every registry with its content at import time.
"""

import sys
from typing import Any

from cpgan_ray.errors import InputError

_as_imported: dict[tuple[str, str], dict[Any, Any]] = {}
"""(module, name) of each registry -> a copy of its content at import time."""


def remember(module: str, *names: str) -> None:
    """Copies the present content of a module's registries. Call it below them, with `__name__`."""
    for name in names:
        _as_imported[module, name] = dict(getattr(sys.modules[module], name))


def ensure_unchanged() -> None:
    """Call this before work is sent to other processes.

    Raises: InputError with the name of the entry if one was added, replaced or removed since the import.
    """
    for (module, name), before in _as_imported.items():
        now = getattr(sys.modules.get(module), name, before)
        for key in {**before, **now}:
            if key in getattr(now, "added", ()):  # every process adds it for itself
                continue
            if key not in before or key not in now or now[key] is not before[key]:
                change = "added" if key not in before else "removed" if key not in now else "replaced"
                raise InputError(
                    f"{name}[{key!r}] of {module} was {change} in this process, but Ray's processes do not see the change: "
                    "run in one process with --runtime.backend local, or change the source of the package"
                )
