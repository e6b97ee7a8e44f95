"""Places that are a folder or a URI of any file system that pyarrow knows (s3://, gs://, hdfs://, file://), and copies from there.

What is copied has its name when it is whole. Credentials are in no message: see credentials.py.
"""

import contextlib
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from cpgan_ray.common.atomic_io import atomic_path
from cpgan_ray.common.credentials import move_to_env, redacted
from cpgan_ray.data import store
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

CHUNK = 8 << 20
"""Bytes that are read at a time."""
AT_ONCE = 8
"""Files that are copied at once."""
TIMEOUT_S = 60
"""How long Google's store may be tried again, in seconds; its own default is a quarter of an hour. S3 gives up after some six."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""They show an object when it is whole; elsewhere a file is written beside and renamed."""


@dataclass(frozen=True)
class File:
    """A file of a place."""

    name: str  # below the place, with slashes
    size: int
    changed_ns: int


class RemoteFolder:
    """A folder, or what a URI names."""

    def __init__(self, where: str | Path, *, option: str) -> None:
        """option: the setting that names it, for messages.

        Raises: InputError where no file system answers to the URI.
        """
        self.where, self.option = redacted(str(where)), option
        with self.answering():
            if isinstance(where, Path):
                self.system, root = fs.LocalFileSystem(), str(where.absolute())
            else:
                self.system, root = fs.FileSystem.from_uri(within_timeout(move_to_env(where)))
        self.root = root.rstrip("/")

    @contextlib.contextmanager
    def answering(self, *, done: str = "read") -> Iterator[None]:
        """Raises: InputError in the place of what its file system raises in the block."""
        try:
            yield
        except (OSError, pa.ArrowException) as e:
            raise InputError(
                f"{self.option} is {self.where}, which cannot be {done} ({reason(e)}): check the address, the network, and "
                "that this node may (for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role)"
            ) from e

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def files(self) -> list[File]:
        """All files below, but for hidden ones and what is in hidden folders, by name.

        Raises: InputError where there is none, or the place does not answer.
        """
        with self.answering():
            found = self.system.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True))
        above = len(self.root) + 1
        files = [File(info.path[above:], info.size, info.mtime_ns or 0) for info in found if info.is_file]
        if odd := [file.name for file in files if {"..", ""} & {*file.name.split("/")}]:
            raise InputError(f"{self.option} is {self.where}, which has a file of the name {odd[0][:80]!r}: no folder can hold it")
        files = [file for file in files if not any(part.startswith(".") for part in file.name.split("/"))]
        if not files:
            raise InputError(f"{self.option} is {self.where}, where there are no files: give a folder that is there")
        return sorted(files, key=lambda file: file.name)

    def find(self, name: str) -> File | None:
        """A file by its name; None where there is none."""
        with self.answering():
            info = self.system.get_file_info(self.path(name))
        return File(name, info.size, info.mtime_ns or 0) if info.is_file else None

    def ensure_bucket(self) -> None:
        """Raises: InputError where an object store has no such bucket. (It says so of none of the objects.)"""
        if self.system.type_name in OBJECT_STORES:
            with self.answering():
                info = self.system.get_file_info(self.root.partition("/")[0])
            if info.type == fs.FileType.NotFound:
                raise InputError(f"{self.option} is {self.where}, whose bucket does not exist: make it, or give another")

    def read(self, name: str) -> bytes:
        with self.answering(), self.system.open_input_stream(self.path(name), compression=None) as stream:
            return stream.read()

    def copy(self, name: str, path: Path, *, size: int, advance: Callable[[int], None] = lambda count: None) -> None:
        """A copy of a file of `size` bytes at `path`; `advance` is told the bytes as they come.

        Raises: InputError where the place does not answer, or the file has another size; OSError where it cannot be written here.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.answering():
            stream = self.system.open_input_stream(self.path(name), compression=None)  # else .gz would be unpacked
        with stream, atomic_path(path, durable=False) as beside:
            with beside.open("wb") as file:
                while chunk := self._next(stream):
                    file.write(chunk)
                    advance(len(chunk))
            if (got := beside.stat().st_size) != size:
                raise InputError(f"{self.where}/{name} has {got} bytes instead of {size}: it has changed meanwhile; try again")

    def _next(self, stream: pa.NativeFile) -> bytes:
        with self.answering():
            return stream.read(CHUNK)

    def write(self, content: bytes | Path, name: str) -> None:
        """Bytes, or a copy of a file, under a name.

        Raises: InputError where the place does not take it.
        """
        whole = self.system.type_name in OBJECT_STORES
        beside = name if whole else str(PurePosixPath(name).with_name(f".{uuid.uuid4().hex}.part"))
        with self.answering(done="written to"):
            if not whole:
                self.system.create_dir(self.path(str(PurePosixPath(name).parent)), recursive=True)
            try:
                with self.system.open_output_stream(self.path(beside), compression=None) as stream:
                    for chunk in chunks(content):
                        stream.write(chunk)
                if not whole:
                    self.system.move(self.path(beside), self.path(name))
            except OSError:
                if not whole:
                    with contextlib.suppress(OSError):
                        self.system.delete_file(self.path(beside))
                raise


def chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def within_timeout(uri: str) -> str:
    """The URI, with a limit to how long a store that does not answer is tried again."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={TIMEOUT_S}"


def reason(error: BaseException) -> str:
    """What a file system's error comes down to: one short line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    told = redacted(" ".join(str(error).split()))
    found = re.search(r"AWS Error \w+ during \w+ operation: [^;]*", told)
    return (found.group() if found else told)[:200]


def synchronise(place: RemoteFolder, files: Sequence[File], folder: Path, *, progress: bool) -> None:
    """Make `folder` hold these files of a place and no others; what is there with the same size and time of change is not copied
    again, so that an interrupted call goes on with the next file. The caller holds `store.locked(folder)`.

    Raises: InputError where the place does not answer; OSError where the files cannot be kept here.
    """
    wanted = {file.name: file for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in folder.rglob("*") if not path.is_dir()]:
        file = wanted.get(path.relative_to(folder).as_posix())
        if file is not None and (path.stat().st_size, path.stat().st_mtime_ns) == (file.size, file.changed_ns):
            del wanted[file.name]
        else:
            path.unlink()
    if not wanted:
        return
    fetch_all(place, {file: folder / file.name for file in wanted.values()}, progress=progress)
    if progress:
        size = sum(file.size for file in wanted.values())
        logger.info(f"fetched {len(wanted)} files, {size / 1e6:.1f} MB, from {place.where} into {folder}")


def fetch_all(place: RemoteFolder, files: Mapping[File, Path], *, progress: bool) -> None:
    """Copies of files of a place, several at once, each with the time of change that it has there."""
    lock, done, stopped = threading.Lock(), 0, threading.Event()
    total = sum(file.size for file in files)

    def fetch(file: File, path: Path) -> None:
        place.copy(file.name, path, size=file.size, advance=count)
        os.utime(path, ns=(file.changed_ns, file.changed_ns))

    with store.progress_bar(total // 10**6, what=f"fetching {place.where}", unit="MB", show=progress) as advance:

        def count(size: int) -> None:
            nonlocal done
            if stopped.is_set():
                raise CancelledError
            with lock:
                before, done = done // 10**6, done + size
                advance(done // 10**6 - before)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            copies = [pool.submit(fetch, file, path) for file, path in files.items()]
            try:
                for copy in as_completed(copies):
                    copy.result()
            except BaseException:
                stopped.set()  # those under way too
                pool.shutdown(wait=False, cancel_futures=True)
                raise
