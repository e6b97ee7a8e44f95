"""Tests of the exclusive lock on an output folder."""

import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from cpgan_ray.common import claims
from cpgan_ray.common.claims import LOCK, claim_folder, claim_new_folder
from cpgan_ray.errors import InputError

HOLDER = """
import sys
from pathlib import Path
from cpgan_ray.common.claims import claim_folder
with claim_folder(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_claim_of_a_locked_folder_is_refused_until_its_process_is_killed(tmp_path):
    folder = tmp_path / "a" / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "claimed\n"
        before = content(folder)
        with (
            pytest.raises(InputError, match=rf"out is in use by process {holder.pid} on \S+ since .*another --output"),
            claim_folder(folder),
        ):
            pass
        assert content(folder) == before
    finally:
        holder.kill()
        holder.communicate()
    assert (folder / LOCK).exists(), "a killed process leaves its lock file behind"
    with claim_folder(folder):
        assert f"process {os.getpid()} " in (folder / LOCK).read_text()


def test_refused_claim_names_the_flag_of_the_folder(tmp_path):
    second = claim_folder(tmp_path, flag="--recovery.checkpoints")
    with claim_folder(tmp_path), pytest.raises(InputError, match="give another --recovery.checkpoints"), second:
        pass


def test_claimed_folder_is_removed_only_if_empty(tmp_path):
    with claim_folder(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with claim_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_concurrent_claims_of_new_folders_get_different_folders(tmp_path):
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        base = tmp_path / "run"
        folders = list(pool.map(lambda _: stack.enter_context(claim_new_folder(base)), range(8)))
    assert sorted(path.name for path in folders) == ["run", *(f"run-{n}" for n in range(2, 9))]


def test_concurrent_claims_of_one_folder_succeed_once(tmp_path):
    held = ExitStack()

    def claim(_: int) -> bool:
        try:
            held.enter_context(claim_folder(tmp_path / "out"))
        except InputError:
            return False
        return True

    with held, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1


@pytest.mark.parametrize(
    ("note", "refused"),
    [
        (f"process {os.getpid()} on {claims._host()} since 2026-01-01 00:00:00\n", True),
        (f"process 4194304 on {claims._host()} since 2026-01-01 00:00:00\n", False),
        ("process 4194304 on elsewhere since 2026-01-01 00:00:00\n", True),
        ("", False),
    ],
    ids=["running", "ended", "another machine", "torn"],
)
def test_claim_without_file_locks_obeys_the_note(note, refused, tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / LOCK).write_text(note)
    if refused:
        with (
            pytest.raises(InputError, match=r"is in use by process .* remove \S+/\.lock if that process has ended"),
            claim_folder(tmp_path),
        ):
            pass
        assert (tmp_path / LOCK).read_text() == note
    else:
        with claim_folder(tmp_path):
            pass


def test_claim_with_a_link_as_lock_file_is_refused(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(victim)
    with pytest.raises(InputError, match="symbolic link"), claim_folder(tmp_path / "out"):
        pass
    assert victim.read_text() == "precious"


def test_claim_of_an_impossible_folder_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: give a folder with --output"), claim_folder(tmp_path / "file"):
        pass
    with (
        pytest.raises(InputError, match=r"cannot write to the output folder \S+/file/out .*--output"),
        claim_folder(tmp_path / "file" / "out"),
    ):
        pass
