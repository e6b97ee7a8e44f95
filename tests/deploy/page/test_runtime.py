"""Tests of how onnxruntime-web is obtained: pinned files only, and one line where that is impossible."""

import io
import tarfile
from pathlib import Path

import pytest

from cpgan_ray.deploy.page.runtime import FILES, fetch_runtime, read_runtime, runtime_folder, unpack
from cpgan_ray.errors import InputError


def package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def program(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "npm").chmod(0o755)


def test_file_with_another_content_is_not_used(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(b"export {};")
    assert read_runtime(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "reason"), [(dict.fromkeys(FILES, b"export {};"), "has SHA-256"), ({}, "damaged"), (None, "damaged")]
)
def test_archive_of_another_content_is_refused(tmp_path, files, reason):
    path = tmp_path / "a.tgz"
    if files is None:
        path.write_bytes(b"<html>not found</html>")
    else:
        package(path, files)
    with pytest.raises(InputError, match=reason):
        unpack(path)


@pytest.mark.parametrize("text", ["exit 1", "exit 0"])
def test_npm_that_delivers_nothing_ends_with_one_line(tmp_path, monkeypatch, text):
    program(tmp_path / "bin", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match="connect this machine to a network once") as raised:
        fetch_runtime(tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert not any((runtime_folder(tmp_path / "cache") / name).exists() for name in FILES)
