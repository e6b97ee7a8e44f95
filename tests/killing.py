"""Ray's workers as the machine sees them, and their sudden end."""

import os

import psutil

from tests.process import HANG_S, called


def processes(title: str) -> list[psutil.Process]:
    """Ray's workers of that title below this process, the oldest first."""
    return called(f"ray::{title}", os.getpid())


def kill(title: str, which: int = 0) -> None:
    """SIGKILL to one of them, and wait until it is gone."""
    victim = processes(title)[which]
    victim.kill()
    victim.wait(HANG_S)
