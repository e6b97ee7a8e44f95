"""Tests of runs on small collections of own pictures: sizes adapt, a whole run and an attack work, too few are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpgan_ray.cli import parse_attack
from cpgan_ray.config import Config, RidgeConfig, SearchJob, TrackingConfig
from cpgan_ray.config.presets import preset
from cpgan_ray.data import load
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.attack import attack
from cpgan_ray.pipelines.fit_to_data import MIN_PICTURES, fit_to_data
from cpgan_ray.pipelines.train import train
from tests.attacked import attack_flags
from tests.conftest import TINY
from tests.own_pictures import SIDE, configure, write_table

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")
NUM = 240


def columns(num: int) -> dict[str, list[Any]]:
    return {
        "file": [f"{i:03d}.png" for i in range(num)],
        "who": [f"p{i // 2}" for i in range(num)],
        "smile": ["" if i % 11 == 0 else i % 2 for i in range(num)],
        "kind": [("ant", "bee", "cat")[i // 2 % 3] for i in range(num)],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("small") / "data", columns(NUM))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_run(folder: Path, cache: Path, mlflow_uri: str, tmp_path: Path) -> Callable[..., Config]:
    def make(**data: Any) -> Config:
        config = configure(folder, cache, table="labels.csv", **data)
        return replace(
            TINY,
            data_dir=config.data_dir,
            cache_dir=cache,
            data=config.data,
            batch_size=1000,
            adversaries={"ridge": RidgeConfig(memory_batches=1, components=256)},
            attacks=replace(TINY.attacks, identity=True),
            output=tmp_path / "run",
            tracking=TrackingConfig(uri=mlflow_uri, log_models=False, system_metrics=False),
        )

    return make


def test_fit_to_data_limits_the_batch_to_a_quarter(tiny_run):
    config = fit_to_data(tiny_run(identity_column="who"))
    assert config.batch_size == len(load(config, progress=False).train) // 4
    assert fit_to_data(config) == config
    small = replace(config, batch_size=16)
    assert fit_to_data(small) == small


def test_fit_to_data_leaves_other_data_sets_alone(tiny):
    assert fit_to_data(tiny(batch_size=100_000)) == tiny(batch_size=100_000)


def test_run_on_few_pictures_trains_and_is_attacked(tiny_run, tmp_path, mlflow_uri):
    train(tiny_run(identity_column="who"))
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["identity_linkage"]
    assert "no identities" not in json.dumps(report["limits"])
    flags = ["--output", str(tmp_path / "attack"), *attack_flags(mlflow_uri)]
    attack(*parse_attack([str(tmp_path / "run"), *flags], description="", fetch=Path))
    again = json.loads((tmp_path / "attack" / "report" / "report.json").read_text())
    assert again["threat_model"]["sets"] == report["threat_model"]["sets"]


def test_run_without_identities_reports_it_and_links_none(tiny_run, tmp_path):
    train(replace(tiny_run(labels=("kind",)), epochs=1))
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert not report["identity_linkage"]
    assert any("contain no identities" in line for line in report["limits"])
    assert all(row["people"] == row["pictures"] for row in report["threat_model"]["sets"])


@pytest.mark.slow
def test_encoder_is_attacked_on_own_pictures(tiny_run, folder, cache, tmp_path, mlflow_uri):
    train(replace(tiny_run(identity_column="who"), epochs=1))
    encoder = tmp_path / "run" / "privatizer.pt2"
    flags = ["--data-dir", str(folder), "--dataset", "pictures", "--data.table", "labels.csv", "--cache-dir", str(cache)]
    flags += ["--data.image-size", str(SIDE), "--data.identity-column", "who", "--data.final-fraction", "0"]
    target, job = parse_attack(
        [str(encoder), *flags, "--output", str(tmp_path / "a"), *attack_flags(mlflow_uri)], description="", fetch=Path
    )
    assert attack(target, job).summary["strongest"]["r2"] > -1


def test_run_on_too_few_pictures_is_refused_before_it_writes(tiny_run, tmp_path):
    source = write_table(tmp_path / "data", columns(MIN_PICTURES - 2))
    with pytest.raises(InputError, match=f"{MIN_PICTURES - 2} pictures are too few .* at least {MIN_PICTURES}") as raised:
        train(replace(tiny_run(), data_dir=source))
    assert raised.value.args[0].count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_search_of_own_pictures_has_the_flags_of_a_run(folder):
    assert SearchJob(config=replace(preset("pictures"), data_dir=folder)).config.data.dataset == "pictures"
