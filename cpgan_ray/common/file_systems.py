"""Atomic writes to any file system that pyarrow supports: a file is either complete or absent."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pyarrow import fs

from cpgan_ray.common.atomic_io import atomic_path

CHUNK_BYTES = 8 << 20
"""Bytes that are copied at a time."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""Here an object becomes visible only when it is complete; elsewhere a file is written under a temporary name and renamed."""


def write_file(system: fs.FileSystem, path: str, content: bytes | Path, *, durable: bool) -> None:
    """Write bytes, or copy a local file, to `path`. Missing folders are created.

    durable: on this machine's file system, sync the file before the rename. False is for files that can be produced again.

    Raises: OSError if the file system does not accept it; then no part of it stays.
    """
    if isinstance(system, fs.LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(path), durable=durable) as temporary, temporary.open("wb") as file:
            file.writelines(chunks(content))
    elif system.type_name in OBJECT_STORES:
        write_chunks(system, path, content)
    else:
        unfinished = str(PurePosixPath(path).with_name(f".{uuid.uuid4().hex}.part"))
        system.create_dir(str(PurePosixPath(path).parent), recursive=True)
        try:
            write_chunks(system, unfinished, content)
            system.move(unfinished, path)
        except OSError:
            with contextlib.suppress(OSError):
                system.delete_file(unfinished)
            raise


def write_chunks(system: fs.FileSystem, path: str, content: bytes | Path) -> None:
    """Write to `path` itself, without a temporary name."""
    with system.open_output_stream(path, compression=None) as stream:
        for chunk in chunks(content):
            stream.write(chunk)


def chunks(content: bytes | Path) -> Iterator[bytes]:
    """The content of a local file in parts of CHUNK_BYTES; bytes as one part."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
