"""Networks that are given as Python objects: each process gets its own copy, from a pickle that the driver has made."""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from cpgan_ray.common.plugins import shipping
from cpgan_ray.common.plugins.errors import own_code
from cpgan_ray.common.plugins.loading import digest_of
from cpgan_ray.common.plugins.names import OBJECT, Reference
from cpgan_ray.errors import InputError

SUFFIX = ".pkl"
MAX_OBJECT_BYTES = 1 << 30


def object_name(given: Any, *, classes: set[type[Any]]) -> str:
    """The pinned name of an object, for a configuration. classes: of the object and its parts; those that are not installed are
    pickled with their code.

    Raises: InputError if the object cannot be pickled.
    """
    name = f"{OBJECT}:{type(given).__name__}"
    with by_value(classes), own_code(name, doing="pickling"):
        content = cloudpickle.dumps(given)
    digest = digest_of(content)
    shipping.keep(digest + SUFFIX, content)
    return f"{name}@{digest}"


@contextmanager
def by_value(classes: set[type[Any]]) -> Iterator[None]:
    """Inside the block cloudpickle pickles the code of these classes too, unless their module is installed."""
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    modules = {sys.modules[c.__module__] for c in classes if c.__module__ in sys.modules}
    own = [module for module in modules if not is_installed(module, installed)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def is_installed(module: ModuleType, folders: set[Path]) -> bool:
    """Whether other processes can import a module: it is in one of the folders of Python's packages, or part of this package."""
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or module.__name__.partition(".")[0] == "cpgan_ray":
        return True  # cloudpickle itself pickles the code of `__main__`
    return file is None or any(Path(file).resolve().is_relative_to(folder) for folder in folders)


def family_of_object(reference: Reference) -> Callable[..., Any]:
    """A family whose stages are a fresh copy of the object.

    Raises: InputError if this process does not have the object.
    """
    content = shipping.shipped(reference.digest + SUFFIX, limit=MAX_OBJECT_BYTES)
    if content is None or digest_of(content) != reference.digest:
        raise InputError(
            f"the network {reference.attribute!r} was given as a Python object, which no file holds: give it again with "
            "cpgan_ray.train(config, privatizer=...), or name a file of your own as privatizer.family"
        )

    def build(config: Any, image_shape: tuple[int, int, int]) -> Any:
        return cloudpickle.loads(content)

    return build
