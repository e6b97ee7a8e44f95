"""A pytest plugin, off by default, that measures the CPU seconds of each test file: `pytest --cpu-seconds FILE`.

Wall times depend on what else runs on the machine, CPU seconds hardly do. A file's CPU seconds are the user and system time of the
process that runs its tests and of all processes that were started from it, the processes of Ray included. Every `SAMPLE_EVERY_S`
seconds, and between files, the times of all these processes are read, so a process that ends loses at most its last moments.

If `cpu_seconds.json` has been written by this plugin, the tests run in its order. It has the files from `LEAST_S` seconds; a run of
some files changes only their numbers.
"""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SAMPLE_EVERY_S = 0.25
SHOWN = 40
"""Number of files in the report."""
LEAST_S = 1.0
"""Files that use less are not written: their order does not matter."""
FOLDER = Path(__file__).parent
RECORDED = FOLDER / "cpu_seconds.json"
RECORDER = "cpu-seconds"
"""Name of the plugin in pytest, and of its result in what a process of pytest-xdist sends."""


def recorded(path: Path = RECORDED) -> dict[str, float]:
    """CPU seconds by file, relative to this folder."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class Recorder:
    """Adds up the CPU seconds of this process and of those below it, by test file."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.file = "(start and end)"
        self.known: dict[psutil.Process, float] = {psutil.Process(): 0.0}
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample_until_ended, daemon=True)

    def sample_until_ended(self) -> None:
        while not self.ended.wait(SAMPLE_EVERY_S):
            self.sample()

    def sample(self) -> None:
        """Adds what the known processes and their descendants have used since the last sample. A process remains known if its
        parent has ended."""
        with self.lock:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    used = times.user + times.system
                    self.seconds[self.file] += used - self.known.get(process, 0.0)
                    self.known[process] = used

    def processes(self) -> list[psutil.Process]:
        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                children.setdefault(process.ppid(), []).append(process)
        reached = {process for process in self.known if process.is_running()}
        pending = list(reached)
        while pending:
            new = [child for child in children.get(pending.pop().pid, ()) if child not in reached]
            reached.update(new)
            pending += new
        return list(reached)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        file = item.path.relative_to(FOLDER).as_posix()
        if file != self.file:
            self.sample()
            self.file = file
        return (yield)

    def pytest_sessionstart(self) -> None:
        self.thread.start()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.ended.set()
        self.thread.join()
        self.sample()
        if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
            session.config.workeroutput[RECORDER] = dict(self.seconds)


class Report:
    """Collects the results of all processes, updates the file, and prints the total and the files that use most."""

    def __init__(self, path: Path, recorder: Recorder | None) -> None:
        self.path, self.recorder = path, recorder
        self.by_process: dict[str, Counter[str]] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.by_process[node.gateway.id] = Counter(getattr(node, "workeroutput", {}).get(RECORDER, {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.recorder:
            self.by_process["pytest"] = self.recorder.seconds
        seconds = sum(self.by_process.values(), Counter())
        known = recorded(self.path) | {file: round(s, 1) for file, s in seconds.items()}
        used = {file: s for file, s in known.items() if s >= LEAST_S and (FOLDER / file).is_file()}
        ordered = dict(sorted(used.items(), key=lambda pair: -pair[1]))
        self.path.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
        terminalreporter.section("CPU seconds by test file")
        for file, s in seconds.most_common(SHOWN):
            terminalreporter.write_line(f"{s:8.1f} {file}")
        shares = ", ".join(f"{name} {used.total():.0f}" for name, used in self.by_process.items())
        terminalreporter.write_line(f"{seconds.total():8.1f} in all: {shares}")


def activate(config: pytest.Config, path: Path) -> None:
    """With pytest-xdist the processes that run the tests measure, and the process that starts them reports."""
    runs_tests = hasattr(config, "workerinput") or config.getoption("dist", "no") == "no"
    recorder = Recorder() if runs_tests else None
    if recorder:
        config.pluginmanager.register(recorder, RECORDER)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(path, recorder), f"{RECORDER}-report")
