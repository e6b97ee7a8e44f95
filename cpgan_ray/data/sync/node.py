"""How a node gets a prepared store: from its own cache, from the shared cache, or from the source, once for all its processes.

Every process of a node calls `prepare`. One of them fetches or prepares the store while it holds the lock, the others wait.
Processes on several nodes only need to agree on the digest, which the driver passes to the players (`Config.data.digest`).

Which stores are trusted: the stores in the user's cache folder, in `--cache-dir` and in `--shared-cache`, because the user has
named these folders. A store in `<data-dir>/.cpgan` may have come with the data and may contain any pictures, because its digest
depends only on the source files. It is used only if this user has signed its manifest (common/ownership.py), or with `--trust`;
otherwise the store is prepared in the user's cache folder. Players decide in the same way as the driver: the key is passed with the
job (CPGAN_OWNER_KEY), so all its processes accept each other's signatures. Without a key (no home folder, or one that is not
writable) stores of this user in a data folder could not be recognised; then all processes of the job use the user's cache folder,
which only this user can write to. In both cases a player finds the store that the driver has prepared on its node. If it does not
(a node with another key), it prepares the store again, and fails with an error if that is impossible.
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
    """A store that has not been made yet."""

    digest: str
    """Hash of everything that the store will be made from; the name of its folder."""
    build: Callable[[Path], None]
    """Makes the store in a folder that does not exist; the caller holds `store.folder_lock(folder)`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a data set becomes a store."""

    settings: Callable[[Config], dict[str, object]]
    """What the store depends on in addition to the source."""
    draft: Callable[[Path, Config, bool], Draft]
    """Source folder, configuration, whether to report progress -> the draft. Raises InputError if the source is wrong."""
    source: Callable[[Config, Path], Path]
    """Configuration, the node's cache folder -> the source folder. Raises InputError if there is none."""
    required_files: Callable[[Sequence[str], Config], Sequence[str]] = lambda names, config: names
    """The names of all files behind a URI, configuration -> the names of the files that are read."""
    needs_folder: bool = True
    landmarks: Callable[[Config], store.Landmarks | None] = lambda config: None
    """Configuration -> where each picture of the store shows eyes, nose and mouth; None if they are at no fixed position, or if the
    pictures are not photographs of people."""


def cache_folder(config: Config) -> Path:
    """The folder in which this node keeps stores and fetched files, absolute.

    Raises:
        InputError: `cache_dir` has an environment variable that is not set on this node.
    """
    if config.cache_dir is not None:
        folder = os.path.expandvars(os.path.expanduser(config.cache_dir))  # noqa: PTH111 - without a home folder the path stays unchanged
        if "$" in folder or folder.startswith("~"):
            raise InputError(
                f"cache_dir is {config.cache_dir}, which cannot be expanded on {socket.gethostname()}: set the variable in the "
                "environment that Ray is started in there, or give another --cache-dir"
            )
        return Path(folder).absolute()
    if (folder := data_folder_cache(config)) is not None and (config.trust or owner_key() is not None):
        return folder
    return user_cache()


def data_folder_cache(config: Config) -> Path | None:
    """The folder for stores in the data folder, which may have come with the data. None if there is no data folder, if `cache_dir`
    is set, or if the folder holds the user's own pictures, among which nothing is written.

    Raises:
        InputError: it is a symbolic link.
    """
    own_pictures = config.data.dataset == "pictures"
    if own_pictures or config.cache_dir is not None or not isinstance(config.data_dir, Path) or not config.data_dir.is_dir():
        return None
    folder = config.data_dir.absolute() / ".cpgan"
    if folder.is_symlink():
        raise InputError(
            f"{folder} is a symbolic link to {folder.readlink()}: remove the link, or name the folder yourself with --cache-dir"
        )
    return folder


def user_cache() -> Path:
    """The user's cache folder, for stores that are not kept in a data folder.

    Raises:
        InputError: the user has no home folder, and another user owns or can write to the temporary folder used instead.
    """
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache_home).absolute() / "cpgan_ray"
    try:
        return Path.home() / ".cache" / "cpgan_ray"
    except RuntimeError:
        pass
    folder = Path(tempfile.gettempdir()) / f"cpgan_ray-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(
            f"{folder} is not your own private folder: set HOME or XDG_CACHE_HOME, or give another folder with --cache-dir"
        )
    return folder


def own_folder(cache: Path, digest: str, config: Config, *, progress: bool) -> Path:
    """The folder for the store with this digest: in `cache`, unless a store of another user is already there (see above)."""
    folder = cache / digest
    if cache != data_folder_cache(config) or config.trust or not (folder.exists() or folder.is_symlink()):
        return folder
    if not folder.is_symlink() and is_own(folder / store.MANIFEST):
        return folder
    other = user_cache() / digest
    if progress:
        logger.info(
            f"the prepared store {folder} was not made by you and is not used; your store is {other} (--trust uses the store that "
            "came with the data)"
        )
    return other


def prepare(recipe: Recipe, config: Config, *, progress: bool) -> Path:
    """The folder of the data set's store on this node, absolute. The store is fetched or made if it does not exist.

    If `config.data.digest` is set, the source is read only if neither the cache nor the shared cache has that store.

    Raises:
        InputError: the store can be neither fetched nor made, or the source makes a store with another digest than the given one.
    """
    cache, shared = cache_folder(config), shared_cache(config)
    requested = own_folder(cache, config.data.digest, config, progress=progress) if config.data.digest else None
    if requested is not None and ensure_local(requested, shared, progress=progress):
        ensure_same_settings(requested, recipe.settings(config))
        return requested
    if not (recipe.needs_folder and isinstance(config.data_dir, str)):
        return get_or_build(
            recipe.draft(resolve_source(recipe, config, cache), config, progress), config, cache, shared, progress=progress
        )
    remote = RemoteFolder(config.data_dir, option="data_dir")
    folder = cache / "sources" / hashlib.sha256(remote.address.encode()).hexdigest()[:16]
    with store.folder_lock(folder):
        if requested is not None and requested.is_dir():  # another process has just made it
            return requested
        files = remote.files()
        wanted = {*recipe.required_files([file.name for file in files], config)}
        files = [file for file in files if file.name in wanted]
        source_fingerprint = fingerprint(files, recipe.settings(config))
        known_digest = shared.lookup_digest(source_fingerprint) if shared is not None else None
        if known_digest is not None:
            ensure_same_digest(known_digest, config)
            if ensure_local(cache / known_digest, shared, progress=progress):
                return cache / known_digest
        synchronise(remote, files, folder, progress=progress)
        try:
            store_folder = get_or_build(recipe.draft(folder, config, progress), config, cache, shared, progress=progress)
        except InputError as e:  # names the local copy: replace it with the address that the user knows
            raise InputError(str(e).replace(str(folder), remote.address)) from e
        if shared is not None and [file for file in remote.files() if file.name in wanted] == files:  # unchanged in the meantime
            shared.record_digest(source_fingerprint, store_folder.name)
        return store_folder


def resolve_source(recipe: Recipe, config: Config, cache: Path) -> Path:
    """The source folder.

    Raises:
        InputError: there is no source. If a digest is set, the message also reports that its store was not found.
    """
    try:
        return recipe.source(config, cache)
    except InputError as e:
        if not config.data.digest:
            raise
        searched = str(cache) if config.shared_cache is None else f"{cache} nor in the shared cache"
        raise InputError(f"store {config.data.digest} is not in {searched}, and it cannot be made: {e}") from e


def ensure_local(folder: Path, shared: SharedCache | None, *, progress: bool) -> bool:
    """Fetch the store from the shared cache if this node does not have it; returns whether the node has it then."""
    if folder.is_dir() or shared is None:
        return folder.is_dir()
    with store.folder_lock(folder):
        return folder.is_dir() or fetch_shared(folder, shared, progress=progress)


def fetch_shared(folder: Path, shared: SharedCache, *, progress: bool) -> bool:
    """Fetch a store from the shared cache; returns whether it exists there."""
    return shared.take(folder.name, folder, manifest=store.MANIFEST, checksums=checksums_of(folder.name), progress=progress)


def checksums_of(digest: str) -> Callable[[Path], dict[str, str]]:
    """`store.checksums`, with an additional check that the folder holds the store with this digest."""

    def checksums(folder: Path) -> dict[str, str]:
        found_digest = store.read_manifest(folder).digest
        if found_digest != digest:
            raise store.damaged_store(folder, f"{store.MANIFEST} belongs to store {found_digest!r:.40}")
        return store.checksums(folder)

    return checksums


def get_or_build(draft: Draft, config: Config, cache: Path, shared: SharedCache | None, *, progress: bool) -> Path:
    """The folder of a draft's store. If it does not exist, fetch it from the shared cache, or make it and add it there."""
    ensure_same_digest(draft.digest, config)
    folder = own_folder(cache, draft.digest, config, progress=progress)
    built = False
    if not folder.is_dir():
        with store.folder_lock(folder):
            if not (folder.is_dir() or (shared is not None and fetch_shared(folder, shared, progress=progress))):
                draft.build(folder)
                built = True
    if shared is not None and (built or not config.data.digest):  # players use the driver's store, which the driver has shared
        shared.put(folder.name, folder, manifest=store.MANIFEST, checksums=checksums_of(folder.name), progress=progress)
    return folder


def ensure_same_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Check that the store that `data.digest` selects was made with the settings of the run. An absent setting counts as off.

    Raises:
        InputError: a setting differs.
    """
    recorded = store.read_manifest(folder).source
    for name in [name for name in {**settings, **recorded} if name != "path"]:
        stored, value = recorded.get(name, False), settings.get(name, False)
        if stored != value:
            raise InputError(
                f"data.digest is {folder.name}, a store made with {name} {stored!r:.40}, the run has {value!r}: give the "
                "same value, or leave --data.digest out"
            )


def ensure_same_digest(digest: str, config: Config) -> None:
    """Check that the source makes the store that `data.digest` selects.

    Raises:
        InputError: it makes a store with another digest.
    """
    if config.data.digest and digest != config.data.digest:
        location = f" at {RemoteFolder(config.data_dir, option='data_dir').address}" if config.data_dir is not None else ""
        raise InputError(
            f"data.digest is {config.data.digest}, but the {config.data.dataset} data{location} make store {digest}: give every "
            "node the same data, or the store itself with --shared-cache"
        )
