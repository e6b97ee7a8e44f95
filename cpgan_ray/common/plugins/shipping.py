"""The files that a job sends to every node of its cluster: selected code, and weights.

They are named by their digest in one folder, which Ray unpacks on each node as a module of the runtime environment (`py_modules`).
Packages that are not installed, but found on PYTHONPATH, are sent as they are.
"""

import sysconfig
from importlib.util import find_spec
from pathlib import Path

from cpgan_ray.common.environment import temporary_folder
from cpgan_ray.common.json_files import read_limited

FOLDER = "cpgan_ray_shipped"
"""Name of the folder: a namespace package for Python, so that `find_spec` finds it on every node."""
_kept: dict[str, bytes] = {}
"""Name in the folder -> content, of all files that were used in this process."""
_packages: set[Path] = set()


def keep(name: str, content: bytes) -> None:
    """Remember a file that other processes will need. name: digest and suffix."""
    _kept[name] = content


def keep_package(module: str, file: Path) -> None:
    """Remember the package of a module, if it is not installed."""
    root = file
    for _ in range(module.count(".") + (file.name == "__init__.py")):
        root = root.parent
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    if not any(root.resolve().is_relative_to(folder) for folder in installed) and module.partition(".")[0] != "cpgan_ray":
        _packages.add(root)


def wanted() -> frozenset[str]:
    """The names of everything that a node needs."""
    return frozenset(_kept) | {str(path) for path in _packages}


def modules() -> list[str]:
    """Local folders and files for Ray's `py_modules`; empty if nothing has to be shipped."""
    if not _kept:
        return sorted(map(str, _packages))
    parent = temporary_folder("cpgan-code-")
    if parent is None:
        raise OSError("no folder for temporary files is writable")
    folder = Path(parent) / FOLDER
    folder.mkdir()
    for name, content in _kept.items():
        (folder / name).write_bytes(content)
    return [str(folder), *sorted(map(str, _packages))]


def shipped(name: str, *, limit: int) -> bytes | None:
    """The content of a file that this process has used, or that a job has shipped to this node; None if there is none."""
    if name in _kept:
        return _kept[name]
    spec = find_spec(FOLDER)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / name).is_file():
            return read_limited(path, max_bytes=limit)
    return None
