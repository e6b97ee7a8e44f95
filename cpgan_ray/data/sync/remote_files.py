"""Read and write files in a folder or behind a URI of any file system that pyarrow supports (s3://, gs://, hdfs://, file://).

A copied file gets its final name only when it is complete. No message contains credentials: see common/credentials.py.
"""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from cpgan_ray.common.atomic_io import atomic_path
from cpgan_ray.common.credentials import move_to_env, redacted
from cpgan_ray.common.file_systems import CHUNK_BYTES, OBJECT_STORES, write_file
from cpgan_ray.data import store
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

MAX_PARALLEL_COPIES = 8
"""Files that are copied at the same time."""
TIMEOUT_S = 60
"""How long requests to Google's store are retried, in seconds; its own default is 15 minutes. S3 gives up after about 6 s."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in a remote folder."""

    name: str  # relative path, with slashes
    size: int
    changed_ns: int


class RemoteFolder:
    """A local folder, or a folder behind a URI."""

    def __init__(self, address: str | Path, *, option: str) -> None:
        """address: path or URI; option: the setting that it comes from, for messages.

        Raises:
            InputError: no file system supports the URI.
        """
        self.address, self.option = redacted(str(address)), option
        with self.translate_errors():
            if isinstance(address, Path):
                self.system, root = fs.LocalFileSystem(), str(address.absolute())
            else:
                self.system, root = fs.FileSystem.from_uri(with_retry_limit(move_to_env(address)))
        self.root = root.rstrip("/")

    @contextlib.contextmanager
    def translate_errors(self, *, done: str = "read") -> Iterator[None]:
        """Turn errors of the file system in the block into an `InputError`."""
        try:
            yield
        except (OSError, pa.ArrowException) as e:
            raise InputError(
                f"{self.option} is {self.address}, which cannot be {done} ({reason(e)}): check the address, the network, and "
                "this node's permission (for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role)"
            ) from e

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def files(self) -> list[RemoteFile]:
        """All files in the folder and its subfolders, sorted by name, without hidden files and hidden folders.

        Raises:
            InputError: there are no files, or the file system does not respond.
        """
        with self.translate_errors():
            entries = self.system.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True))
        prefix = len(self.root) + 1
        files = [RemoteFile(info.path[prefix:], info.size, info.mtime_ns or 0) for info in entries if info.is_file]
        if invalid := [file.name for file in files if {"..", ""} & {*file.name.split("/")}]:
            raise InputError(
                f"{self.option} is {self.address}, which has a file with the name {invalid[0][:80]!r}: a folder cannot hold it"
            )
        files = [file for file in files if not any(part.startswith(".") for part in file.name.split("/"))]
        if not files:
            raise InputError(f"{self.option} is {self.address}, which has no files: give a folder that exists")
        return sorted(files, key=lambda file: file.name)

    def find(self, name: str) -> RemoteFile | None:
        """A file by its name; None if absent."""
        with self.translate_errors():
            info = self.system.get_file_info(self.path(name))
        return RemoteFile(name, info.size, info.mtime_ns or 0) if info.is_file else None

    def ensure_bucket(self) -> None:
        """Check that the bucket exists; an object store reports a missing bucket only as a missing object.

        Raises:
            InputError: the object store has no such bucket.
        """
        if self.system.type_name in OBJECT_STORES:
            with self.translate_errors():
                info = self.system.get_file_info(self.root.partition("/")[0])
            if info.type == fs.FileType.NotFound:
                raise InputError(f"{self.option} is {self.address}, whose bucket does not exist: create it, or give another")

    def read(self, name: str) -> bytes:
        with self.translate_errors(), self.system.open_input_stream(self.path(name), compression=None) as stream:
            return stream.read()

    def copy(self, name: str, path: Path, *, size: int, advance: Callable[[int], None] = lambda count: None) -> None:
        """Copy a file of `size` bytes to `path`; `advance` is called with the number of bytes of each chunk.

        Raises:
            InputError: the file system does not respond, or the file has another size.
            OSError: the copy cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.translate_errors():
            stream = self.system.open_input_stream(self.path(name), compression=None)  # otherwise .gz files would be unpacked
        with stream, atomic_path(path, durable=False) as temporary:
            with temporary.open("wb") as file:
                while chunk := self._next(stream):
                    file.write(chunk)
                    advance(len(chunk))
            if (copied_size := temporary.stat().st_size) != size:
                raise InputError(
                    f"{self.address}/{name} has {copied_size} bytes instead of {size}: it was changed during the copy; try again"
                )

    def _next(self, stream: pa.NativeFile) -> bytes:
        with self.translate_errors():
            return stream.read(CHUNK_BYTES)

    def write(self, content: bytes | Path, name: str) -> None:
        """Write bytes, or copy a local file, under a name.

        Raises:
            InputError: the file system does not accept it.
        """
        with self.translate_errors(done="written to"):
            write_file(self.system, self.path(name), content, durable=False)


def with_retry_limit(uri: str) -> str:
    """The URI, with a limit for how long requests to a store that does not respond are retried."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={TIMEOUT_S}"


def reason(error: BaseException) -> str:
    """A file system's error as one short line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    message = redacted(" ".join(str(error).split()))
    aws_error = re.search(r"AWS Error \w+ during \w+ operation: [^;]*", message)
    return (aws_error.group() if aws_error else message)[:200]


def synchronise(remote: RemoteFolder, files: Sequence[RemoteFile], folder: Path, *, progress: bool) -> None:
    """Make `folder` hold exactly these files of a remote folder. Files with the same size and time of change are not copied again,
    so an interrupted call continues with the next file. The caller holds `store.folder_lock(folder)`.

    Raises:
        InputError: the file system does not respond.
        OSError: the files cannot be written.
    """
    pending = {file.name: file for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in folder.rglob("*") if not path.is_dir()]:
        file = pending.get(path.relative_to(folder).as_posix())
        if file is not None and (path.stat().st_size, path.stat().st_mtime_ns) == (file.size, file.changed_ns):
            del pending[file.name]
        else:
            path.unlink()
    if not pending:
        return
    fetch_all(remote, {file: folder / file.name for file in pending.values()}, progress=progress)
    if progress:
        size = sum(file.size for file in pending.values())
        logger.info(f"fetched {len(pending)} files, {size / 1e6:.1f} MB, from {remote.address} into {folder}")


def fetch_all(remote: RemoteFolder, files: Mapping[RemoteFile, Path], *, progress: bool) -> None:
    """Copy several files of a remote folder at the same time; each copy gets the time of change of its original."""
    lock, done, stopped = threading.Lock(), 0, threading.Event()
    total = sum(file.size for file in files)

    def fetch(file: RemoteFile, path: Path) -> None:
        remote.copy(file.name, path, size=file.size, advance=count)
        os.utime(path, ns=(file.changed_ns, file.changed_ns))

    with store.progress_bar(total // 10**6, what=f"fetching {remote.address}", unit="MB", show=progress) as advance:

        def count(size: int) -> None:
            nonlocal done
            if stopped.is_set():
                raise CancelledError
            with lock:
                before, done = done // 10**6, done + size
                advance(done // 10**6 - before)

        with ThreadPoolExecutor(MAX_PARALLEL_COPIES) as pool:
            copies = [pool.submit(fetch, file, path) for file, path in files.items()]
            try:
                for copy in as_completed(copies):
                    copy.result()
            except BaseException:
                stopped.set()  # also stops the copies in progress
                pool.shutdown(wait=False, cancel_futures=True)
                raise
