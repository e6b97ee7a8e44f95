"""`jobs/serve.py` as a process of its own, and the processes of its replicas."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from cpgan_ray.deploy.bundle import Bundle, read_bundle
from cpgan_ray.errors import InputError

JOB = Path(__file__).parents[3] / "jobs" / "serve.py"
REPLICA = "ray::ServeReplica"
START_S, RELOAD_S, END_S = 300.0, 120.0, 60.0
RELOADED = "the service now answers for bundle"
"""What the job logs after a reload."""


class ServiceProcess:
    """A running service, started by `serving`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, bundle: Path, key: str, url: str) -> None:
        self.process, self.folder, self.bundle, self.key, self.url = process, folder, bundle, key, url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text(errors="replace")

    def replicas(self) -> list[psutil.Process]:
        """The processes of replicas that listen on the port of the service."""
        listening = []
        for process in descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if line and line[0].startswith(REPLICA) and self._listens(process):
                    listening.append(process)
        return listening

    def _listens(self, process: psutil.Process) -> bool:
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == self.port for c in process.net_connections("inet"))

    def redeploy(self, bundle: Path) -> Bundle:
        """Put a copy of another bundle at the path that is served, and make the service read it. Returns it.

        Raises: RuntimeError if the service does not report that it answers for it.
        """
        before = self.log.count(RELOADED)
        following, replaced = self.folder / "following", self.folder / "replaced"
        shutil.copytree(bundle, following)
        self.bundle.rename(replaced)
        following.rename(self.bundle)
        shutil.rmtree(replaced)
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + RELOAD_S
        while self.log.count(RELOADED) == before:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service has not read its new bundle within {RELOAD_S:g} s: {last_line(self.log)}")
            time.sleep(0.05)
        return read_bundle(self.bundle)


@contextmanager
def serving(bundle: Path, folder: Path, *, replicas: int, flags: Sequence[str] = ()) -> Iterator[ServiceProcess]:
    """The service with a copy of a bundle, on a free port of loopback, with a key of its own.

    folder: for the copy, the key and the log; it must exist.

    Raises: InputError if the service does not start, with its last line.
    """
    if not JOB.is_file():
        raise InputError(f"{JOB} is missing: this measurement needs a checkout of the project")
    served, key = folder / "served", secrets.token_urlsafe(24)
    shutil.copytree(bundle, served)
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{key}\n")
    command = [sys.executable, str(JOB), str(served), "--port", "0", "--keys-file", str(keys), "--replicas", str(replicas), *flags]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_environment(), start_new_session=True
        )
    try:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise InputError(f"the service does not start: {last_line((folder / 'serve.log').read_text(errors='replace'))}")
        yield ServiceProcess(process, folder, served, key, json.loads(line)["url"])
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Stop a process, and everything that it leaves."""
    started = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    process.kill()
    for left in started:
        with contextlib.suppress(psutil.Error):
            left.kill()
    process.communicate()


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def clean_environment(**more: str) -> Mapping[str, str]:
    """This process's environment, without what would lead to a cluster, a tracking store or another key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "CPGAN_API"))}
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        kept["RAY_AUTH_TOKEN_PATH"] = os.environ["RAY_AUTH_TOKEN_PATH"]
    return kept | more


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else "it has logged nothing"
