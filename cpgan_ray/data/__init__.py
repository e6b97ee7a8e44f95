"""Data sets: from a folder in its official layout to a prepared, memory-mapped store, and to the batches of each round.

A data set is an entry of `DATASETS`: a function that makes its store unless it is there and returns the store's folder.
To add one, write a module with such a function (`store.build` does the writing) and enter it here. One
that fits into memory needs no more than a reader that returns `Samples`, entered as a `Small`.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import celeba, cifar10, digits, faces, gaussian, genki4k, har, mnist, small, store, svhn
from cpgan_ray.data.samples import Samples
from cpgan_ray.data.small import Small
from cpgan_ray.data.store import Dataset, Split, open_store
from cpgan_ray.data.task import answers, ensure_learnable, label_columns, majority_logits, shares
from cpgan_ray.errors import InputError

__all__ = [
    "DATASETS",
    "Dataset",
    "Split",
    "answers",
    "ensure_learnable",
    "label_columns",
    "load",
    "majority_logits",
    "open_store",
    "prepare",
    "shares",
]


def load(config: Config, *, progress: bool = True) -> Dataset:
    """The data set of a run, prepared if need be and opened. Many processes may call this at once: one prepares.

    Raises:
        InputError: see `prepare`, `store.open_store` and `task.label_columns`.
    """
    dataset = open_store(prepare(config, progress=progress))
    label_columns(dataset, config.data.labels)
    return dataset


def prepare(config: Config, *, progress: bool = True) -> Path:
    """Make the store of a run's data set unless it is there; returns its folder, which any process can `open_store`.

    Raises:
        InputError: the data set cannot be read or the store not be written; says what to do.
    """
    return DATASETS[config.data.dataset](config, progress)


def user_cache() -> Path:
    """Where stores go whose data set has no folder of its own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpgan_ray"


def _celeba(config: Config, progress: bool) -> Path:
    if config.data_dir is None:
        raise InputError("data_dir is None; the celeba data set is read from a folder: give it with --data-dir")
    return celeba.prepare(config.data_dir, config.cache_dir or config.data_dir / ".cpgan", config, progress=progress)


def _faces(config: Config, progress: bool) -> Path:
    """Draw the faces into `<cache>/faces-...` in CelebA's layout, unless they are there, and go on as with CelebA."""
    if config.data_dir is not None:
        raise InputError(
            f"data_dir is {config.data_dir}, but faces are drawn, not read: leave it out, or add --data.dataset celeba"
        )
    root = config.cache_dir or user_cache()
    people, each = config.data.num_identities, config.data.pictures_per_identity
    recipe = Path(faces.__file__).read_bytes() + f"{people} {each}".encode()  # the faces change with the code that draws them
    folder = root / f"faces-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if not folder.is_dir():
        with store.locked(folder):
            if not folder.is_dir():
                faces.write_faces(folder, num_identities=people, pictures_per_identity=each)
    return celeba.prepare(folder, root, config, progress=progress)


def _small(how: Small) -> Callable[[Config, bool], Path]:
    return lambda config, progress: small.prepare(how, config, cache=user_cache(), progress=progress)


def _genki4k(source: Path, data: DataConfig) -> Samples:
    return genki4k.read(source, image_size=data.image_size)


DATASETS: dict[str, Callable[[Config, bool], Path]] = {
    "faces": _faces,
    "celeba": _celeba,
    "mnist": _small(Small(mnist.files, lambda source, data: mnist.read(source))),
    "har": _small(Small(har.files, lambda source, data: har.read(source))),
    "genki4k": _small(Small(genki4k.files, _genki4k, settings=("image_size",), mirrored=True)),
    "cifar10": _small(Small(cifar10.files, lambda source, data: cifar10.read(source), mirrored=True)),
    "svhn": _small(Small(svhn.files, lambda source, data: svhn.read(source))),
    "gaussian": _small(
        Small(
            lambda source: gaussian.files(),
            lambda source, data: gaussian.read(data.mixture_seed),
            settings=("mixture_seed",),
            needs_folder=False,
        )
    ),
    "digits": _small(Small(lambda source: digits.files(), lambda source, data: digits.read(), needs_folder=False)),
}
RESIZED = ("faces", "celeba", "genki4k")
"""Those whose pictures are brought to `data.image_size`; the others have a size of their own."""
