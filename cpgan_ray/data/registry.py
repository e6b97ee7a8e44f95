"""The data sets by name, and how each becomes a prepared store.

A data set is an entry of `DATASETS`: a `Recipe`, by which a source becomes a store (node.py says when, and where it goes). To add
one, write a module with a function that returns its `Draft` (`store.build` does the writing) and enter it here. One that fits into
memory needs no more than a reader that returns `Samples`, entered as a `Small`.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cpgan_ray.common.credentials import export_env, import_env, redacted
from cpgan_ray.common.registry import remember
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import small, store
from cpgan_ray.data.datasets import celeba, cifar10, digits, faces, gaussian, genki4k, har, mnist, svhn
from cpgan_ray.data.samples import Samples
from cpgan_ray.data.small import Small
from cpgan_ray.data.store import Dataset, open_store
from cpgan_ray.data.sync import node
from cpgan_ray.data.sync.node import Recipe
from cpgan_ray.data.task import label_columns
from cpgan_ray.errors import InputError


def load(config: Config, *, progress: bool = True) -> Dataset:
    """The data set of a run, fetched or prepared if need be and opened. Many processes may call this; one of each node does it.

    Raises:
        InputError: see `prepare`, `store.open_store` and `task.label_columns`.
    """
    dataset = open_store(prepare(config, progress=progress))
    if config.data.digest and dataset.digest != config.data.digest:
        raise store.damaged(dataset.folder, f"it holds store {dataset.digest}")
    label_columns(dataset, config.data.labels)
    again = partial(load_elsewhere, pin_store(config, dataset), export_env())
    own_only = dataset.folder.parent == node.beside_data(config) and not config.trust
    return dataclasses.replace(dataset, again=again, shared=config.shared_cache, own_only=own_only)


def load_elsewhere(config: Config, environment: Mapping[str, str]) -> Dataset:
    """The same in a process on another node, which may need the environment to reach it."""
    import_env(environment)
    return load(config)


def pin_store(config: Config, dataset: Dataset) -> Config:
    """The same configuration for players on any node: with this store or none, and no look at the source where a node has it."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, digest=dataset.digest))


def prepare(config: Config, *, progress: bool = True) -> Path:
    """Have the store of a run's data set on this node; returns its folder, which any process of the node can `open_store`.

    Raises:
        InputError: the data set cannot be read or the store not be written; says what to do.
    """
    return node.prepare(DATASETS[config.data.dataset], config, progress=progress)


def _celeba_source(config: Config, cache: Path) -> Path:
    if config.data_dir is None:
        raise InputError("data_dir is None; the celeba data set is read from a folder: give it with --data-dir")
    return Path(config.data_dir)


def _drawn(config: Config, cache: Path) -> Path:
    """Draw the faces into `<cache>/faces-...` in CelebA's layout, unless they are there."""
    if config.data_dir is not None:
        told = redacted(str(config.data_dir))
        raise InputError(f"data_dir is {told}, but faces are drawn, not read: leave it out, or add --data.dataset celeba")
    people, each = config.data.num_identities, config.data.pictures_per_identity
    code = sorted(Path(faces.__file__).parent.glob("*.py"))  # the faces change with the code that draws them
    recipe = b"".join(path.read_bytes() for path in code) + f"{people} {each}".encode()
    folder = cache / f"faces-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if not folder.is_dir():
        with store.locked(folder):
            if not folder.is_dir():
                faces.write_faces(folder, num_identities=people, pictures_per_identity=each)
    return folder


def _small(how: Small) -> Recipe:
    return Recipe(
        settings=lambda config: small.settings(how, config),
        draft=lambda source, config, progress: small.draft(how, source, config, progress=progress),
        source=lambda config, cache: small.source(how, config, cache),
        needs_folder=how.needs_folder,
    )


def _genki4k(source: Path, data: DataConfig) -> Samples:
    return genki4k.read(source, image_size=data.image_size)


_CELEBA = Recipe(
    settings=celeba.settings,
    draft=lambda source, config, progress: celeba.draft(source, config, progress=progress),
    source=_celeba_source,
    needed=celeba.needed,
)
DATASETS: dict[str, Recipe] = {
    "faces": dataclasses.replace(_CELEBA, source=_drawn, needs_folder=False),
    "celeba": _CELEBA,
    "mnist": _small(Small(lambda source, data: mnist.files(source), lambda source, data: mnist.read(source))),
    "har": _small(Small(lambda source, data: har.files(source), lambda source, data: har.read(source))),
    "genki4k": _small(
        Small(lambda source, data: genki4k.files(source), _genki4k, settings=("image_size",), mirrored=True, anonymous=True)
    ),
    "cifar10": _small(Small(lambda source, data: cifar10.files(source), lambda source, data: cifar10.read(source), mirrored=True)),
    "svhn": _small(
        Small(
            lambda source, data: svhn.files(source, extra=data.extra),
            lambda source, data: svhn.read(source, extra=data.extra),
            switches=("extra",),
        )
    ),
    "gaussian": _small(
        Small(
            lambda source, data: gaussian.files(),
            lambda source, data: gaussian.read(data.mixture_seed),
            settings=("mixture_seed",),
            needs_folder=False,
        )
    ),
    "digits": _small(Small(lambda source, data: digits.files(), lambda source, data: digits.read(), needs_folder=False)),
}
remember(__name__, "DATASETS")
RESIZED = ("faces", "celeba", "genki4k")
"""Those whose pictures are brought to `data.image_size`; the others have a size of their own."""
