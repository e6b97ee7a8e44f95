"""Tests of runs with late tasks: the task leaves them out, report and metrics have them, and bad labels and twins are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cpgan_ray.cli import parse_attack
from cpgan_ray.config import Config, GameConfig, RidgeConfig, TrackingConfig
from cpgan_ray.data import load, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.attack import attack
from cpgan_ray.pipelines.fit_to_data import with_task
from cpgan_ray.pipelines.late_labels import check_late_labels, check_twin_answers
from cpgan_ray.pipelines.train import train
from cpgan_ray.tracking import fetch_run
from tests.attacked import attack_flags

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")
LATE = ("Male", "Young")


@pytest.fixture
def late(tiny: Callable[..., Config], mlflow_uri: str, tmp_path: Path) -> Callable[..., Config]:
    """Makes a run whose task is all labels but two late ones, with changed fields of its data."""

    def make(name: str = "run", **data) -> Config:
        config = tiny("ridge", epochs=1)
        tracking = TrackingConfig(uri=mlflow_uri, log_models=False, system_metrics=False)
        settings = {"late_labels": LATE} | data
        return replace(config, data=replace(config.data, **settings), output=tmp_path / name, tracking=tracking)

    return make


def test_task_of_all_labels_leaves_out_late_and_hidden_ones(late):
    config = late()
    names = load(config).label_names
    assert with_task(config).data.labels == tuple(name for name in names if name not in LATE)
    assert with_task(late(labels=("Smiling",))).data.labels == ("Smiling",)
    hidden = replace(
        config,
        game=GameConfig(target_weights={"Smiling": 1.0}),
        adversaries={"smiling": RidgeConfig(target="attribute:Smiling")},
    )
    assert with_task(hidden).data.labels == tuple(name for name in names if name not in (*LATE, "Smiling"))
    with pytest.raises(InputError, match="no task is left"):
        with_task(late(late_labels=names))
    with pytest.raises(InputError, match="data.late_labels and game.target_weights both have 'Smiling'"):
        replace(hidden, data=replace(hidden.data, late_labels=("Smiling",)))


def test_unknown_late_label_is_refused_with_the_closest_one(late):
    config = late(late_labels=("Malee",), labels=("Smiling",))
    with pytest.raises(InputError, match="data.late_labels: there is no attribute 'Malee': did you mean Male"):
        check_late_labels(config, load(config))


def test_run_with_late_tasks_reports_them_next_to_its_twin(late, tmp_path, mlflow_uri):
    twin = replace(late("twin"), privacy_weight=0.0)
    train(twin)
    summary = train(replace(late(), tracking=replace(late().tracking, undefended=tmp_path / "twin")))
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["late_tasks"]["inputs"].keys() == {"code", "answers", "twin_answers"}
    assert [row["name"] for row in report["late_tasks"]["labels"]] == list(LATE)
    assert not {*LATE} & {label["name"] for label in report["task"]["labels"]}
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "Late tasks" in page and report["late_tasks"]["labels"][0]["name"] in page
    import mlflow

    logged = mlflow.MlflowClient(mlflow_uri).get_run(summary["run_id"]).data.metrics
    assert logged["late/balanced_accuracy"] == pytest.approx(report["late_tasks"]["inputs"]["code"]["balanced_accuracy"])
    assert logged["late/twin_answers/gain"] == pytest.approx(report["late_tasks"]["inputs"]["twin_answers"]["gain"])

    flags = [*attack_flags(mlflow_uri), "--data.late-labels", "Male", "--attacks.attributes", "--output", str(tmp_path / "again")]
    attack(*parse_attack([str(tmp_path / "run"), *flags], description="", fetch=fetch_run))
    again = json.loads((tmp_path / "again" / "report" / "report.json").read_text())
    assert [row["name"] for row in again["late_tasks"]["labels"]] == ["Male"]
    assert [row["name"] for row in again["attributes"] if row["late"]] == ["Male"]
    assert "Green: a late task." in (tmp_path / "again" / "report" / "report.html").read_text()
    other = late(labels=task_of(load(late()), ("Smiling",)).names)
    with pytest.raises(InputError, match="its answers are not those to this task"):
        check_twin_answers(tmp_path / "twin", other)


def test_attack_on_a_run_whose_task_is_all_labels_refuses_late_ones(late, tmp_path, mlflow_uri):
    train(late(late_labels=()))
    flags = [*attack_flags(mlflow_uri), "--data.late-labels", "Male"]
    target, job = parse_attack([str(tmp_path / "run"), *flags], description="", fetch=fetch_run)
    with pytest.raises(InputError, match="data.late_labels has 'Male', but the task of run is all labels"):
        attack(target, job)
