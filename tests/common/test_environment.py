"""What a process lacks is stood in for: each case in a process of its own, which imports the command lines and nothing heavy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpgan_ray.common.environment import ensure_here
from cpgan_ray.errors import InputError
from tests.process import HANG_S

ROOT = Path(__file__).parents[2]
BARE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
STRANGER = 12345
"""A user whom no password file has."""


def ran(*command: str, env: dict[str, str], cwd: Path, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=HANG_S, check=False, **how)  # pyright: ignore


def as_stranger(*arguments: str) -> list[str]:
    """A command of a user without a name or a home; he may read where this interpreter lies."""
    caps = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", *caps, sys.executable, *arguments]


stranger_possible = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become a user that does not exist"
)


@stranger_possible
def test_a_user_without_home_and_name_gets_both_for_the_run(tmp_path):
    tmp_path.chmod(0o777)
    look = (
        "import cpgan_ray.cli, getpass, os, pathlib; home = pathlib.Path.home(); (home / 'x').touch(); "
        "print(getpass.getuser(), 'MPLCONFIGDIR' in os.environ, home)"
    )
    done = ran(*as_stranger("-c", look), env=BARE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, matplotlib, home = done.stdout.split()
    assert (name, matplotlib) == (f"uid-{STRANGER}", "False")
    assert not Path(home).exists(), "it goes with the process"
    assert len(done.stderr.splitlines()) == 1
    assert "--cache-dir" in done.stderr


@pytest.mark.slow
@stranger_possible
def test_a_user_without_home_and_name_trains_to_the_end(tmp_path):
    tmp_path.chmod(0o777)
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(0o755)
    flags = ["smoke", "--epochs", "1", "--output", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")]
    done = ran(*as_stranger(str(ROOT / "jobs" / "train_celeba.py"), *flags), env=BARE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    assert (tmp_path / "out").stat().st_uid == STRANGER
    said = ("round ", "attack ", "waiting for nodes")
    assert [line for line in done.stderr.splitlines() if not line.startswith(said)] == []


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_matplotlib_says_nothing_of_a_home_that_cannot_be_written_to(home, tmp_path):
    done = ran(sys.executable, "-c", "import cpgan_ray.cli, matplotlib.figure", env=BARE | {"HOME": home}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_no_file_that_is_opened_later(closed, tmp_path):
    look = (
        "import os, sys, cpgan_ray.cli; file = os.open('data', os.O_WRONLY | os.O_CREAT); "
        "print('out'); print('err', file=sys.stderr); sys.exit(file <= 2)"
    )
    done = ran(sys.executable, "-c", look, env=BARE, cwd=tmp_path, preexec_fn=lambda: os.close(closed))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").read_bytes() == b""
    assert (done.stdout, done.stderr) == ("" if closed == 1 else "out\n", "" if closed == 2 else "err\n")


def test_a_name_that_the_locale_cannot_print_is_escaped(tmp_path):
    look = "import cpgan_ray.cli; print('a\\u4e2d')"
    done = ran(sys.executable, "-c", look, env=BARE | {"PYTHONIOENCODING": "ascii", "TZ": "No/Where"}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a\\u4e2d\n"), done.stderr


def test_a_current_folder_that_is_gone_is_one_line(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    ensure_here()
    gone.rmdir()
    with pytest.raises(InputError, match="current folder no longer exists"):
        ensure_here()
    monkeypatch.chdir(tmp_path)
