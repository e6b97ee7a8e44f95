"""Ray's workers as the machine sees them, and their sudden end."""

import psutil


def processes(title: str) -> list[psutil.Process]:
    """Ray's workers of that title below this process, the oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if line and line[0].startswith(f"ray::{title}"):
            found.append(process)
    return sorted(found, key=lambda p: p.pid)


def kill(title: str, which: int = 0) -> None:
    """SIGKILL to one of them, and wait until it is gone."""
    victim = processes(title)[which]
    victim.kill()
    victim.wait(10)
