"""A comparison with a mechanism of the user's own."""

import dataclasses
import json

import pytest

from cpgan_ray import cli
from cpgan_ray.config import ReproduceJob
from cpgan_ray.config.presets import for_comparison, preset
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.reproduce.grids import built_in
from cpgan_ray.pipelines.reproduce.job import reproduce
from cpgan_ray.pipelines.reproduce.mechanisms import compared, pinned_job

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")

CODE = """
import torch
from cpgan_ray.mechanisms import Mechanism
from cpgan_ray.mechanisms.base import release

def blocks(config, side, dataset):
    return release(lambda x, rng: torch.nn.functional.avg_pool2d(x, int(side)).flatten(1), dataset, config, name="blocks")

BLOCKS = Mechanism(blocks, "side", (2.0, 4.0), "means over blocks")
BROKEN = Mechanism(lambda config, side, dataset: 1 / 0, "side", (2.0,), "fails")
NUMBER = 3
"""


@pytest.fixture
def job(tmp_path, cache_dir, mlflow_uri):
    """Makes a small comparison of mechanisms of a file."""
    (tmp_path / "mine.py").write_text(CODE)

    def make(*names: str) -> ReproduceJob:
        config = for_comparison(preset("digits"))
        attacks = dataclasses.replace(config.attacks, names=("ridge",), max_rows=200)
        runtime = dataclasses.replace(config.runtime, backend="local")
        tracking = dataclasses.replace(config.tracking, uri=mlflow_uri)
        config = dataclasses.replace(config, epochs=1, attacks=attacks, runtime=runtime, tracking=tracking)
        config = dataclasses.replace(config, output=tmp_path / "out", cache_dir=cache_dir)
        mechanisms = tuple(f"{tmp_path}/mine.py:{name}" for name in names)
        return ReproduceJob(config=config, mechanisms=mechanisms, num_seeds=1, num_settings=1, rounding=("off",))

    return make


@pytest.mark.slow
def test_own_mechanism_is_compared_under_its_label(job, tmp_path):
    text, summary = reproduce(job("BLOCKS"), resume=False)
    assert (summary["cells"], summary["failed"]) == (1, 0) and "mine.BLOCKS" in text
    record = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert record["job"]["mechanisms"][0].startswith(f"{tmp_path}/mine.py:BLOCKS@")
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    assert json.loads((cell / "cell.json").read_text())["cell"]["mechanism"] == "mine.BLOCKS"
    record["job"]["mechanisms"] = [f"{tmp_path}/mine.py:BROKEN"]
    (tmp_path / "out" / "reproduction.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"was not written by this user, and mechanisms in it names code"):
        cli.parse_reproduce(["--resume", str(tmp_path / "out")], description="")


def test_two_mechanisms_with_the_same_label_are_refused(job, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(CODE + "# other\n")
    names = (f"{tmp_path}/mine.py:BLOCKS", f"{tmp_path}/other/mine.py:BLOCKS")
    with pytest.raises(InputError, match=r"two parts with the name mine\.BLOCKS"):
        reproduce(dataclasses.replace(job(), mechanisms=names), resume=False)


def test_own_mechanism_of_an_earlier_comparison_changes_no_built_in_grids(job):
    before = built_in()
    mine = pinned_job(job("BLOCKS"))
    assert built_in() == before and compared(job()) == list(before.grids)
    assert built_in(own=compared(mine)).settings("mine.BLOCKS", rounded=False) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BROKEN", r"mine\.py:10: ZeroDivisionError: division by zero, while releasing codes by the mechanism mine\.BROKEN"),
        ("NUMBER", r"mechanism mine\.NUMBER is int; it must be a cpgan_ray\.mechanisms\.Mechanism"),
        ("NOTHING", r"mine\.py has no 'NOTHING'"),
    ],
)
def test_wrong_mechanism_is_one_line(name, message, job):
    with pytest.raises(InputError, match=message):
        reproduce(job(name), resume=False)
