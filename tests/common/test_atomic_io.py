"""Tests of the atomic writes."""

import os

import pytest

from cpgan_ray.common.atomic_io import atomic_path, make_folder, write_bytes, write_text
from cpgan_ray.errors import InputError


def test_write_text_to_a_link_replaces_the_link(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    write_text(link, "new")
    assert victim.read_text() == "precious"
    assert not link.is_symlink() and link.read_text() == "new"


def test_atomic_path_when_the_block_raises_keeps_only_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(path):
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_atomic_path_twice_gives_different_temporary_names(tmp_path):
    with atomic_path(tmp_path / "f") as first, atomic_path(tmp_path / "f") as second:
        assert first != second and first.parent == second.parent == tmp_path


def test_written_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "f", "")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


def test_make_folder_on_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        make_folder(tmp_path / "report")
    assert make_folder(tmp_path / "new" / "inner").is_dir()
