"""Tests of the substitutes for a missing home, user name or stream; each test starts a process that imports only the CLI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.errors import InputError
from tests.process import HANG_S

ROOT = Path(__file__).parents[2]
BARE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
STRANGER = 12345
"""A user id that is in no password file."""


def run(*command: str, env: dict[str, str], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=HANG_S, check=False, **options)  # pyright: ignore


def as_stranger(*arguments: str) -> list[str]:
    """A command run by a user without name and home, who may read the folder of this interpreter."""
    caps = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", *caps, sys.executable, *arguments]


stranger_possible = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become a user that does not exist"
)


@stranger_possible
def test_process_without_home_and_user_name_gets_both(tmp_path):
    tmp_path.chmod(0o777)
    script = (
        "import cpgan_ray.cli, getpass, os, pathlib; home = pathlib.Path.home(); (home / 'x').touch(); "
        "print(getpass.getuser(), 'MPLCONFIGDIR' in os.environ, home)"
    )
    done = run(*as_stranger("-c", script), env=BARE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, matplotlib, home = done.stdout.split()
    assert (name, matplotlib) == (f"uid-{STRANGER}", "False")
    assert not Path(home).exists(), "it is removed with the process"
    assert len(done.stderr.splitlines()) == 1
    assert "--cache-dir" in done.stderr


@pytest.mark.slow
@stranger_possible
def test_training_without_home_and_user_name_finishes(tmp_path):
    tmp_path.chmod(0o777)
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(0o755)
    flags = ["smoke", "--epochs", "1", "--output", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")]
    done = run(*as_stranger(str(ROOT / "jobs" / "train_celeba.py"), *flags), env=BARE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    assert (tmp_path / "out").stat().st_uid == STRANGER
    expected = ("round ", "attack ", "waiting for nodes")
    assert [line for line in done.stderr.splitlines() if not line.startswith(expected)] == []


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_matplotlib_with_an_unwritable_home_prints_nothing(home, tmp_path):
    done = run(sys.executable, "-c", "import cpgan_ray.cli, matplotlib.figure", env=BARE | {"HOME": home}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_stream_is_not_reused_by_an_opened_file(closed, tmp_path):
    script = (
        "import os, sys, cpgan_ray.cli; file = os.open('data', os.O_WRONLY | os.O_CREAT); "
        "print('out'); print('err', file=sys.stderr); sys.exit(file <= 2)"
    )
    done = run(sys.executable, "-c", script, env=BARE, cwd=tmp_path, preexec_fn=lambda: os.close(closed))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").read_bytes() == b""
    assert (done.stdout, done.stderr) == ("" if closed == 1 else "out\n", "" if closed == 2 else "err\n")


def test_print_of_a_character_outside_the_locale_is_escaped(tmp_path):
    script = "import cpgan_ray.cli; print('a\\u4e2d')"
    done = run(sys.executable, "-c", script, env=BARE | {"PYTHONIOENCODING": "ascii", "TZ": "No/Where"}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a\\u4e2d\n"), done.stderr


def test_ensure_current_folder_when_it_was_removed_raises(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    ensure_current_folder()
    gone.rmdir()
    with pytest.raises(InputError, match="current folder no longer exists"):
        ensure_current_folder()
    monkeypatch.chdir(tmp_path)
