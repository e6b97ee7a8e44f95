"""Tests of the plugin that measures the CPU seconds of each test file."""

import subprocess
import sys

import psutil
import pytest

from tests.cpu_seconds import Recorder

BURN = """
import sys, time
while time.process_time() < 0.5:
    pass
print("done", flush=True)
sys.stdin.read()
"""


def test_recorder_adds_the_time_of_processes_below_this_one():
    recorder = Recorder()
    recorder.sample()
    before = recorder.seconds.total()
    recorder.file = "test_this.py"
    command = [sys.executable, "-c", BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "done\n"
        used = sum(psutil.Process(process.pid).cpu_times()[:2])
        recorder.sample()
        recorder.sample()
    assert used >= 0.45
    assert recorder.seconds["test_this.py"] == pytest.approx(used, abs=0.4)
    assert recorder.seconds.total() == pytest.approx(before + recorder.seconds["test_this.py"])
