"""Tests that a file that is written to a file system is complete or absent."""

from pathlib import Path

import pytest
from pyarrow import fs

from cpgan_ray.common import file_systems
from cpgan_ray.common.file_systems import write_file


def other(folder: Path) -> fs.FileSystem:
    """A file system that is neither this machine's nor an object store, as far as `write_file` can see."""
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())


@pytest.fixture(params=["local", "other"])
def target(request, tmp_path) -> tuple[fs.FileSystem, str, Path]:
    """A file system, a path on it, and where this is on disk."""
    file = tmp_path / "deep" / "folder" / "file"
    if request.param == "local":
        return fs.LocalFileSystem(), str(file), file
    return other(tmp_path), "deep/folder/file", file


def test_write_file_creates_folders_and_replaces(target, tmp_path, monkeypatch):
    system, path, file = target
    write_file(system, path, b"old", durable=True)
    (tmp_path / "source").write_bytes(b"longer than a chunk")
    monkeypatch.setattr(file_systems, "CHUNK_BYTES", 4)
    write_file(system, path, tmp_path / "source", durable=False)
    assert file.read_bytes() == b"longer than a chunk"
    assert [p.name for p in file.parent.iterdir()] == ["file"], "no other file"


def test_write_file_that_fails_leaves_the_earlier_file(target, tmp_path, monkeypatch):
    system, path, file = target
    write_file(system, path, b"old", durable=True)

    def fail(content):
        yield b"half"
        raise OSError("the disk is full")

    monkeypatch.setattr(file_systems, "chunks", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_file(system, path, b"new", durable=True)
    assert file.read_bytes() == b"old"
    assert [p.name for p in file.parent.iterdir()] == ["file"], "no other file"
