"""Registries: dicts from a name to a class or a function, one for each kind of part.

A registry is a plain dict literal, followed by a call of `remember`. In the process that changes a registry the change counts at
once; the processes of Ray import the package afresh and would use its own entries, without a word. `ensure_unchanged` therefore
compares every registry with what it was when its module was imported.
"""

import sys
from typing import Any

from cpgan_ray.errors import InputError

_as_imported: dict[tuple[str, str], dict[Any, Any]] = {}
"""Module and name of each registry, with a copy of it."""


def remember(module: str, *names: str) -> None:
    """Take note of a module's registries as they are now; call it below them with `__name__`."""
    for name in names:
        _as_imported[module, name] = dict(getattr(sys.modules[module], name))


def ensure_unchanged() -> None:
    """Call before work goes to other processes.

    Raises: InputError that names the entry if one was added, replaced or removed since the import.
    """
    for (module, name), before in _as_imported.items():
        now = getattr(sys.modules.get(module), name, before)
        for key in {**before, **now}:
            if key not in before or key not in now or now[key] is not before[key]:
                change = "added" if key not in before else "removed" if key not in now else "replaced"
                raise InputError(
                    f"{name}[{key!r}] of {module} was {change} in this process, and Ray's processes would not see that: "
                    "work in one process with --runtime.backend local, or change the package's own source"
                )
