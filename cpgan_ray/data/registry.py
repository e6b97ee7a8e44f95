"""The data sets by name, and how each becomes a prepared store.

A data set is an entry of `DATASETS`: a `Recipe`, which makes a store from a source (sync/node.py decides when and where). To add a
data set, write a module with a function that returns its `Draft` (`store.build` writes it) and add an entry here. A data set that
fits into memory needs only a reader that returns `Samples`, and an entry of type `SmallDataset`. Code of the user's own may be a
`Recipe`, a `SmallDataset` or a reader (own.py).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cpgan_ray.common.credentials import export_env, import_env, redacted
from cpgan_ray.common.plugins import Parts
from cpgan_ray.common.registry import remember
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import small, store
from cpgan_ray.data.datasets import celeba, cifar10, digits, faces, gaussian, genki4k, har, mnist, pictures, svhn
from cpgan_ray.data.datasets.face_region import landmarks
from cpgan_ray.data.own import own_dataset
from cpgan_ray.data.samples import Samples
from cpgan_ray.data.small import SmallDataset
from cpgan_ray.data.store import Dataset, open_store
from cpgan_ray.data.sync import node
from cpgan_ray.data.sync.node import Recipe
from cpgan_ray.data.task import task_of
from cpgan_ray.errors import InputError


def load(config: Config, *, progress: bool = True) -> Dataset:
    """Open the data set of a run; fetch or prepare it first if necessary. Many processes may call this at the same time: one
    process of each node does the work.

    Raises:
        InputError: see `prepare`, `store.open_store`, `store.withhold` and `task.task_of`.
    """
    recipe = recipe_of(config)
    dataset = open_store(node.prepare(recipe, config, progress=progress))
    if config.data.digest and dataset.digest != config.data.digest:
        raise store.damaged_store(dataset.folder, f"it holds store {dataset.digest}")
    task_of(dataset, config.data.labels)
    reload = partial(load_on_other_node, pin_store(config, dataset), export_env())
    own_only = dataset.folder.parent == node.data_folder_cache(config) and not config.trust
    positions = recipe.landmarks(config)
    dataset = dataclasses.replace(dataset, reload=reload, shared=config.shared_cache, own_only=own_only, landmarks=positions)
    return store.withhold(dataset, share=config.data.attacker_share) if config.data.attacker_share else dataset


def load_unlabelled(config: Config, environment: Mapping[str, str] | None = None) -> Dataset:
    """Open the data set of pictures in any folders of `data_dir`, without labels and identities; prepare it first if necessary.

    environment: environment variables that a process on another node may need to reach the data.

    Raises:
        InputError: see `load`.
    """
    import_env(environment or {})
    dataset = open_store(node.prepare(_UNLABELLED, config, progress=environment is None))
    reload = partial(load_unlabelled, pin_store(config, dataset), export_env())
    return dataclasses.replace(dataset, reload=reload, shared=config.shared_cache)


def load_on_other_node(config: Config, environment: Mapping[str, str]) -> Dataset:
    """`load` in a process on another node, which may need these environment variables to reach the data."""
    import_env(environment)
    return load(config)


def pin_store(config: Config, dataset: Dataset) -> Config:
    """The same configuration with the digest of this store, for players on any node: they use exactly this store, and do not read
    the source if their node already has it."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, digest=dataset.digest))


def prepare(config: Config, *, progress: bool = True) -> Path:
    """Make sure that this node has the store of a run's data set; returns its folder, for `open_store` in any process of the node.

    Raises:
        InputError: the data set cannot be read or the store cannot be written.
    """
    return node.prepare(recipe_of(config), config, progress=progress)


def recipe_of(config: Config) -> Recipe:
    """How the data set of a run becomes a store.

    Raises: InputError if there is no such data set.
    """
    name = config.data.dataset
    part = DATASETS[name]
    if config.data.options and not DATASETS.is_own(name):
        raise InputError(f"data.options has {next(iter(config.data.options))!r}, but {name} has no options: leave it out")
    return part if isinstance(part, Recipe) else _small_recipe(own_dataset(name, DATASETS, has_folder=config.data_dir is not None))


def _celeba_source(config: Config, cache: Path) -> Path:
    if config.data_dir is None:
        raise InputError("data_dir is None; the celeba data set is read from a folder: give it with --data-dir")
    return Path(config.data_dir)


def _pictures_source(config: Config, cache: Path) -> Path:
    if config.data_dir is None:
        raise InputError("data_dir is None; own pictures are read from a folder: give it with --data-dir")
    return Path(config.data_dir)


def _draw_faces(config: Config, cache: Path) -> Path:
    """Draw the faces into `<cache>/faces-...` in CelebA's layout, unless they exist."""
    if config.data_dir is not None:
        data_dir = redacted(str(config.data_dir))
        raise InputError(f"data_dir is {data_dir}, but faces are drawn, not read: leave it out, or add --data.dataset celeba")
    num_identities, pictures_per_identity = config.data.num_identities, config.data.pictures_per_identity
    code = sorted(Path(faces.__file__).parent.glob("*.py"))  # the faces change with the code that draws them
    recipe = b"".join(path.read_bytes() for path in code) + f"{num_identities} {pictures_per_identity}".encode()
    folder = cache / f"faces-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if not folder.is_dir():
        with store.folder_lock(folder):
            if not folder.is_dir():
                faces.write_faces(folder, num_identities=num_identities, pictures_per_identity=pictures_per_identity)
    return folder


def _small_recipe(dataset: SmallDataset) -> Recipe:
    return Recipe(
        settings=lambda config: small.settings(dataset, config),
        draft=lambda source, config, progress: small.draft(dataset, source, config, progress=progress),
        source=lambda config, cache: small.source(dataset, config, cache),
        needs_folder=dataset.needs_folder,
    )


def _genki4k(source: Path, data: DataConfig) -> Samples:
    return genki4k.read(source, image_size=data.image_size, image_width=data.image_width)


_CELEBA = Recipe(
    settings=celeba.settings,
    draft=lambda source, config, progress: celeba.draft(source, config, progress=progress),
    source=_celeba_source,
    required_files=celeba.required_files,
)
_PICTURES = Recipe(
    settings=pictures.settings,
    draft=lambda source, config, progress: pictures.draft(source, config, progress=progress),
    source=_pictures_source,
    required_files=pictures.required_files,
)
_UNLABELLED = dataclasses.replace(
    _PICTURES, draft=lambda source, config, progress: pictures.draft(source, config, progress=progress, labelled=False)
)
_built_in: dict[str, Recipe] = {
    "faces": dataclasses.replace(_CELEBA, source=_draw_faces, needs_folder=False),
    "celeba": dataclasses.replace(_CELEBA, landmarks=lambda config: landmarks(config.data.crop, config.data.size)),
    "mnist": _small_recipe(SmallDataset(lambda source, data: mnist.files(source), lambda source, data: mnist.read(source))),
    "har": _small_recipe(
        SmallDataset(
            lambda source, data: har.files(source), lambda source, data: har.read(source, final_fraction=data.final_fraction)
        )
    ),
    "genki4k": _small_recipe(
        SmallDataset(
            lambda source, data: genki4k.files(source),
            _genki4k,
            settings=("image_size",),
            switches=("image_width",),
            mirrored=True,
            anonymous=True,
        )
    ),
    "cifar10": _small_recipe(
        SmallDataset(lambda source, data: cifar10.files(source), lambda source, data: cifar10.read(source), mirrored=True)
    ),
    "svhn": _small_recipe(
        SmallDataset(
            lambda source, data: svhn.files(source, extra=data.extra),
            lambda source, data: svhn.read(source, extra=data.extra),
            switches=("extra",),
        )
    ),
    "gaussian": _small_recipe(
        SmallDataset(
            lambda source, data: gaussian.files(),
            lambda source, data: gaussian.read(data.mixture_seed),
            settings=("mixture_seed",),
            needs_folder=False,
        )
    ),
    "digits": _small_recipe(
        SmallDataset(lambda source, data: digits.files(), lambda source, data: digits.read(), needs_folder=False)
    ),
    "pictures": _PICTURES,
}
DATASETS: Parts[Recipe] = Parts(_built_in, kind="data set", group="cpgan_ray.datasets", field="data.dataset")
remember(__name__, "DATASETS")
RESIZED = ("faces", "celeba", "genki4k", "pictures")
"""Data sets whose pictures are resized to `data.size`; the others have a fixed size."""
