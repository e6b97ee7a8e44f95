"""Helpers to find and kill the processes of Ray's workers."""

import os

import psutil

from tests.process import HANG_S, called


def processes(title: str) -> list[psutil.Process]:
    """Processes of Ray's workers with this title below this process, the oldest first."""
    return called(f"ray::{title}", os.getpid())


def kill(title: str, which: int = 0) -> None:
    """Sends SIGKILL to worker number `which` and waits until it has ended."""
    victim = processes(title)[which]
    victim.kill()
    victim.wait(HANG_S)
