"""How a node gets a prepared store: from its own cache, from where nodes share them, or from the source; once, whoever asks.

Each process of a node asks for itself. One of them fetches or prepares under the lock of what it makes, the others wait for it.
Processes on several nodes need not agree but on the digest: the driver's, which it hands to the players (`Config.data.digest`).

Whose stores are used: those in the user's cache folder, in `--cache-dir` and in `--shared-cache`, which the user has named. One
in `<data-dir>/.cpgan` may have come with the data, and its digest is of the source's files, which its maker had: anybody can give
it any pictures. It is used only if this user has signed its manifest (common/ownership.py), or with `--trust`; otherwise the
store is prepared in the user's cache folder. Players decide as the driver did: the key travels with the job (CPGAN_OWNER_KEY), so
that what one process of it has signed is every other's own. Without a key (no home folder, or one that cannot be written to)
nothing in a data folder could ever be told from what came with it; then no process of the job, the driver included, keeps stores
there, and all look in the user's cache folder, of which the place says whose it is. So a player finds what the driver has
prepared on its node either way, and where it does not (a key of its own on a node that was not passed the driver's), it prepares
the store once more; a store that cannot be made there either is one line that says so.
"""

import contextlib
import hashlib
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpgan_ray.common.ownership import is_own, owner_key
from cpgan_ray.config import Config
from cpgan_ray.data import store
from cpgan_ray.data.sync.remote_files import RemoteFolder, synchronise
from cpgan_ray.data.sync.shared_cache import SharedCache, fingerprint, shared_cache
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)


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
    if (folder := beside_data(config)) is not None and (config.trust or owner_key() is not None):
        return folder
    return user_cache()


def beside_data(config: Config) -> Path | None:
    """The folder of stores in the data folder, which may have come with the data; None where there is none, or another is named.

    Raises: InputError where it is a symbolic link.
    """
    if config.cache_dir is not None or not isinstance(config.data_dir, Path) or not config.data_dir.is_dir():
        return None
    folder = config.data_dir.absolute() / ".cpgan"
    if folder.is_symlink():
        raise InputError(
            f"{folder} is a symbolic link to {folder.readlink()}: remove the link, or name the folder yourself with --cache-dir"
        )
    return folder


def user_cache() -> Path:
    """Where stores go whose data set has no folder of its own.

    Raises: InputError where the user has no home folder, and the one in its place is somebody else's.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named).absolute() / "cpgan_ray"
    try:
        return Path.home() / ".cache" / "cpgan_ray"
    except RuntimeError:
        pass
    folder = Path(tempfile.gettempdir()) / f"cpgan_ray-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InputError(
            f"{folder} is not a folder of yours alone: set HOME or XDG_CACHE_HOME, or give another folder with --cache-dir"
        )
    return folder


def own_folder(cache: Path, digest: str, config: Config, *, progress: bool) -> Path:
    """Where the store of that digest is, or is to be made: in `cache`, unless somebody else's lies there (see above)."""
    folder = cache / digest
    if cache != beside_data(config) or config.trust or not (folder.exists() or folder.is_symlink()):
        return folder
    if not folder.is_symlink() and is_own(folder / store.MANIFEST):
        return folder
    other = user_cache() / digest
    if progress:
        logger.info(
            f"the prepared store {folder} was not made by you and is not used; yours is {other} (--trust uses "
            "what came with the data)"
        )
    return other


def prepare(recipe: Recipe, config: Config, *, progress: bool) -> Path:
    """The folder of the data set's store on this node, absolute, fetched or made unless it is there.

    Where `config.data.digest` names the store, the source is looked at only if neither the cache nor the shared one has it.

    Raises: InputError where there is no way to it, or the source makes another store than the one that is named.
    """
    cache, shared = cache_folder(config), shared_cache(config)
    named = own_folder(cache, config.data.digest, config, progress=progress) if config.data.digest else None
    if named is not None and at_hand(named, shared, progress=progress):
        ensure_made_so(named, recipe.settings(config))
        return named
    if not (recipe.needs_folder and isinstance(config.data_dir, str)):
        return get_or_build(
            recipe.draft(source_of(recipe, config, cache), config, progress), config, cache, shared, progress=progress
        )
    place = RemoteFolder(config.data_dir, option="data_dir")
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
            found = get_or_build(recipe.draft(folder, config, progress), config, cache, shared, progress=progress)
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
        told = store.read_manifest(folder).digest
        if told != digest:
            raise store.damaged(folder, f"{store.MANIFEST} is that of store {told!r:.40}")
        return store.checksums(folder)

    return checksums


def get_or_build(draft: Draft, config: Config, cache: Path, shared: SharedCache | None, *, progress: bool) -> Path:
    """The store of a draft, taken from the shared cache, or made and put there, unless it is there."""
    ensure_same(draft.digest, config)
    folder = own_folder(cache, draft.digest, config, progress=progress)
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
    told = store.read_manifest(folder).source
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
        of = f" at {RemoteFolder(config.data_dir, option='data_dir').where}" if config.data_dir is not None else ""
        raise InputError(
            f"data.digest is {config.data.digest}, but the {config.data.dataset} data{of} make store {digest}: give every node the "
            "same data, or the store itself with --shared-cache"
        )
