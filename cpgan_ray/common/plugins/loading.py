"""Loads the module that a name leads to, and checks its digest.

A file is read once: the bytes whose digest is checked are the bytes that are executed. On another node they come from the copy that
the job has shipped (shipping.py), under the same module name and with the same file name in tracebacks.
"""

import hashlib
import importlib
import re
import socket
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from cpgan_ray.common.json_files import read_limited
from cpgan_ray.common.plugins import shipping
from cpgan_ray.common.plugins.errors import add_place, own_code
from cpgan_ray.common.plugins.names import Reference
from cpgan_ray.errors import InputError

DIGITS = 16
MAX_CODE_BYTES = 16 << 20


def load(reference: Reference) -> tuple[Any, str]:
    """The object that a name of a file or a module leads to, and the digest of its file; "" if the module has no file.

    Raises: InputError if this node does not have the file or module, if its digest is another one than the pinned one, if it has no
    such object, or with file and line if its code fails.
    """
    module, digest = load_file(reference) if reference.is_file else load_module(reference)
    found: Any = module
    for name in reference.attribute.split("."):
        if not hasattr(found, name):
            names = ", ".join(n for n in vars(module) if not n.startswith("_") and callable(vars(module)[n]))[:200]
            raise InputError(f"{reference.source} has no {reference.attribute!r}; it has {names or 'nothing that can be called'}")
        found = getattr(found, name)
    return found, digest


def load_file(reference: Reference) -> tuple[ModuleType, str]:
    """The module in a Python file, and the digest of the file."""
    content, digest = content_of(reference.source, reference.digest, suffix=".py", limit=MAX_CODE_BYTES)
    stem = re.sub(r"\W", "_", Path(reference.source).stem)
    name = f"cpgan_ray_own_{stem}_{digest}"
    if (module := sys.modules.get(name)) is None:
        add_place(Path(reference.source))
        module = ModuleType(name)
        module.__file__, module.__spec__ = reference.source, ModuleSpec(name, None, origin=reference.source)
        sys.modules[name] = module  # pickle and dataclasses look it up while it is executed
        try:
            with own_code(reference.text, doing="importing"):
                exec(compile(content, reference.source, "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
    return module, digest


def content_of(path: str, digest: str, *, suffix: str, limit: int) -> tuple[bytes, str]:
    """The content of a file and its digest. A file with a known digest may also come from the job's shipped copies.

    Raises: InputError if this node has no such file, or only one with another digest.
    """
    content = shipping.shipped(digest + suffix, limit=limit) if digest else None
    if content is None:
        try:
            content = read_limited(Path(path), max_bytes=limit)
        except OSError as e:
            node = f" on node {socket.gethostname()}" if digest else ""
            raise InputError(f"{path} cannot be read{node} ({e.strerror or e}): correct the path, or restore the file") from e
        except ValueError as e:
            raise InputError(f"{path} cannot be used: {e}") from e
    actual = digest_of(content)
    if digest and actual != digest:
        raise InputError(
            f"{path} has changed: its digest is {actual}, but {digest} was used before: restore the file, or name it again "
            f"by a flag without @{digest}"
        )
    shipping.keep(actual + suffix, content)
    return content, actual


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def load_module(reference: Reference) -> tuple[ModuleType, str]:
    """An importable module, and the digest of its file."""
    name, node = reference.source, socket.gethostname()
    try:
        spec = find_spec(name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise InputError(f"{name} cannot be imported on {node}: it needs the module {e.name!r}, install it") from e
        spec = None
    except Exception as e:  # finding a module imports the packages that contain it
        with own_code(reference.text, doing="importing"):
            raise e
        raise
    if spec is None:
        raise InputError(f"{node} has no module {name!r}: install its package there, or add its folder to PYTHONPATH")
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    digest = digest_of(file.read_bytes()) if file else ""
    if reference.digest and digest != reference.digest:
        raise InputError(
            f"the module {name!r} on {node} has the digest {digest}, but the run uses {reference.digest}: install the same version "
            f"on every node, or name it again by a flag without @{reference.digest}"
        )
    if file is not None:
        add_place(file.parent if "." in name or file.name == "__init__.py" else file)
        shipping.keep_package(name, file)
    with own_code(reference.text, doing="importing"):
        return importlib.import_module(name), digest
