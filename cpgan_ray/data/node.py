"""How a node gets a prepared store: from its own cache, from where nodes share them, or from the source; once, whoever asks.

Each process of a node asks for itself. One of them fetches or prepares under the lock of what it makes, the others wait for it.
Processes on several nodes need not agree but on the digest: the driver's, which it hands to the players (`Config.data.digest`).
"""

import hashlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpgan_ray.config import Config
from cpgan_ray.data import store
from cpgan_ray.data.places import Place, synchronise
from cpgan_ray.data.shared import SharedCache, fingerprint, shared_cache
from cpgan_ray.errors import InputError


@dataclass(frozen=True)
class Draft:
    """A store that is not made yet."""

    digest: str
    """Of everything that it would be made from; the name of its folder."""
    build: Callable[[Path], None]
    """Makes it in a folder that does not exist; the caller holds `store.locked(folder)`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a data set becomes a store."""

    settings: Callable[[Config], dict[str, object]]
    """What the store depends on beside the source."""
    draft: Callable[[Path, Config, bool], Draft]
    """Source folder, configuration, whether to tell of progress -> the store. Raises InputError where the source is at fault."""
    source: Callable[[Config, Path], Path]
    """Configuration, the node's cache -> the source folder. Raises InputError where there is none."""
    needed: Callable[[Sequence[str], Config], Sequence[str]] = lambda names, config: names
    """Of the files behind a URI, those that are read."""
    needs_folder: bool = True


def cache_folder(config: Config) -> Path:
    """Where this node keeps stores and what it has fetched, absolute.

    Raises: InputError where `cache_dir` has a variable that this node has not got.
    """
    if config.cache_dir is not None:
        folder = os.path.expandvars(os.path.expanduser(config.cache_dir))  # noqa: PTH111 - one without a home is left as it is
        if "$" in folder or folder.startswith("~"):
            raise InputError(
                f"cache_dir is {config.cache_dir}, which means nothing on {socket.gethostname()}: set the variable in the "
                "environment that Ray is started in there, or give another --cache-dir"
            )
        return Path(folder).absolute()
    if isinstance(config.data_dir, Path) and config.data_dir.is_dir():
        return config.data_dir.absolute() / ".cpgan"
    return user_cache()


def user_cache() -> Path:
    """Where stores go whose data set has no folder of its own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpgan_ray"


def prepare(recipe: Recipe, config: Config, *, progress: bool) -> Path:
    """The folder of the data set's store on this node, absolute, fetched or made unless it is there.

    Where `config.data.digest` names the store, the source is looked at only if neither the cache nor the shared one has it.

    Raises: InputError where there is no way to it, or the source makes another store than the one that is named.
    """
    cache, shared = cache_folder(config), shared_cache(config)
    named = cache / config.data.digest if config.data.digest else None
    if named is not None and at_hand(named, shared, progress=progress):
        ensure_made_so(named, recipe.settings(config))
        return named
    if not (recipe.needs_folder and isinstance(config.data_dir, str)):
        return made(recipe.draft(source_of(recipe, config, cache), config, progress), config, cache, shared, progress=progress)
    place = Place(config.data_dir, option="data_dir")
    folder = cache / "sources" / hashlib.sha256(place.where.encode()).hexdigest()[:16]
    with store.locked(folder):
        if named is not None and named.is_dir():  # since another process has made it
            return named
        files = place.files()
        wanted = {*recipe.needed([file.name for file in files], config)}
        files = [file for file in files if file.name in wanted]
        seen = fingerprint(files, recipe.settings(config))
        known = shared.known(seen) if shared is not None else None
        if known is not None:
            ensure_same(known, config)
            if at_hand(cache / known, shared, progress=progress):
                return cache / known
        synchronise(place, files, folder, progress=progress)
        try:
            found = made(recipe.draft(folder, config, progress), config, cache, shared, progress=progress)
        except InputError as e:  # of files that the user knows by another name
            raise InputError(str(e).replace(str(folder), place.where)) from e
        if shared is not None and [file for file in place.files() if file.name in wanted] == files:  # nothing changed meanwhile
            shared.tell(seen, found.name)
        return found


def source_of(recipe: Recipe, config: Config, cache: Path) -> Path:
    """Raises: InputError where there is none; where a store was named, with what became of that."""
    try:
        return recipe.source(config, cache)
    except InputError as e:
        if not config.data.digest:
            raise
        places = str(cache) if config.shared_cache is None else f"{cache} nor in the shared cache"
        raise InputError(f"store {config.data.digest} is not in {places}, and it cannot be made: {e}") from e


def at_hand(folder: Path, shared: SharedCache | None, *, progress: bool) -> bool:
    """Whether the store is in this node's cache, fetched from the shared one if need be."""
    if folder.is_dir() or shared is None:
        return folder.is_dir()
    with store.locked(folder):
        return folder.is_dir() or take(folder, shared, progress=progress)


def take(folder: Path, shared: SharedCache, *, progress: bool) -> bool:
    return shared.take(folder.name, folder, manifest=store.MANIFEST, checksums=own_checksums(folder.name), progress=progress)


def own_checksums(digest: str) -> Callable[[Path], dict[str, str]]:
    """`store.checksums` of a folder, which must hold the store of that digest."""

    def checksums(folder: Path) -> dict[str, str]:
        told = store.read_json(folder, store.MANIFEST, kind=store.Manifest).digest
        if told != digest:
            raise store.damaged(folder, f"{store.MANIFEST} is that of store {told!r:.40}")
        return store.checksums(folder)

    return checksums


def made(draft: Draft, config: Config, cache: Path, shared: SharedCache | None, *, progress: bool) -> Path:
    """The store of a draft, taken from the shared cache, or made and put there, unless it is there."""
    ensure_same(draft.digest, config)
    folder = cache / draft.digest
    built = False
    if not folder.is_dir():
        with store.locked(folder):
            if not (folder.is_dir() or (shared is not None and take(folder, shared, progress=progress))):
                draft.build(folder)
                built = True
    if shared is not None and (built or not config.data.digest):  # a player's store is the driver's, which has put it there
        shared.put(folder.name, folder, manifest=store.MANIFEST, checksums=own_checksums(folder.name), progress=progress)
    return folder


def ensure_made_so(folder: Path, settings: Mapping[str, object]) -> None:
    """Raises: InputError where a store that was named was made with other settings than the run's; one that is not told is off."""
    told = store.read_json(folder, store.MANIFEST, kind=store.Manifest).source
    for name in [name for name in {**settings, **told} if name != "path"]:
        was, value = told.get(name, False), settings.get(name, False)
        if was != value:
            raise InputError(
                f"data.digest is {folder.name}, a store made with {name} {was!r:.40}, the run's is {value!r}: give the "
                "same, or leave --data.digest out"
            )


def ensure_same(digest: str, config: Config) -> None:
    """Raises: InputError where the source makes another store than the one that is named."""
    if config.data.digest and digest != config.data.digest:
        of = f" at {Place(config.data_dir, option='data_dir').where}" if config.data_dir is not None else ""
        raise InputError(
            f"data.digest is {config.data.digest}, but the {config.data.dataset} data{of} make store {digest}: give every node the "
            "same data, or the store itself with --shared-cache"
        )
