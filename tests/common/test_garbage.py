"""Tests of the search for garbage around imports, each in a process of its own: the settings belong to the process."""

import subprocess
import sys

import pytest

FIRST = {
    "job": "from cpgan_ray.pipelines import train",
    "actor": "from cpgan_ray.distributed import host",
    "trial": "from cpgan_ray.pipelines.tune import trial",
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", f"import gc\n{code}"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("process", [name if name == "actor" else pytest.param(name, marks=pytest.mark.slow) for name in FIRST])
def test_process_searches_rarely_until_it_is_set_up(process):
    code = f"""
usual = gc.get_threshold()
{FIRST[process]}
from cpgan_ray.common.process import set_up_process
rarely, searches = gc.get_threshold(), gc.get_stats()[2]["collections"]
set_up_process(threads=1)
print(rarely[0] > 50 * usual[0], searches < 3, gc.get_threshold() == usual, gc.get_freeze_count() > 100_000)
set_up_process(threads=1)
print(gc.get_threshold() == usual)
"""
    assert run(code).split() == ["True"] * 5


@pytest.mark.parametrize("setting", ["gc.disable()", "gc.set_threshold(0)", "gc.set_threshold(90_000, 5, 5)"])
def test_setting_that_searches_less_is_kept(setting):
    code = f"""
from cpgan_ray.common.garbage import postpone_collection, resume_collection
{setting}
before = gc.isenabled(), gc.get_threshold()
postpone_collection()
resume_collection()
print((gc.isenabled(), gc.get_threshold()) == before)
"""
    assert run(code).split() == ["True"]
