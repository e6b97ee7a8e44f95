"""Tests of runs on answers: the classifier of a preset or of a finished run, and the run that changes its answers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cpgan_ray.common.plugins import shipping
from cpgan_ray.config import Config, override
from cpgan_ray.config.folders.runs import config_of_another_run
from cpgan_ray.data import load, task_of
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import open_own
from cpgan_ray.models import build_privatizer
from cpgan_ray.pipelines import classifier
from cpgan_ray.pipelines.classifier import classifier_config, with_classifier
from cpgan_ray.pipelines.teachers import with_teachers
from cpgan_ray.pipelines.train import train
from cpgan_ray.training.game import play_in_process
from tests.process import left_as_it_was

PRIVATIZER = {
    "privatizer.family": "answers",
    "privatizer.classifier": "smoke",
    "privatizer.levels": 2,
    "privatizer.quantization_step": 1.0,
}
ON_ANSWERS = PRIVATIZER | {"utility.family": "answers", "utility.teacher_weight": 1.0, "recovery.checkpoint_every": 0}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "_kept", {})


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """A run on the answers of the smoke preset's classifier."""
    labels = len(load(tiny_config, progress=False).label_names)
    tiny = override(tiny_config, ON_ANSWERS | {"k": labels, "privacy_weight": 0.5})
    return Config(**{**vars(tiny), "adversaries": {"ridge": tiny.adversaries["ridge"]}})


@pytest.fixture(scope="module")
def undefended(tmp_path_factory: pytest.TempPathFactory, config: Config, mlflow_template: Path) -> Path:
    """The output folder of an undefended run with the settings of the classifier of `config`."""
    folder = tmp_path_factory.mktemp("classifier")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    run = replace(classifier_config("smoke", config), output=folder / "out")
    with left_as_it_was():
        train(override(run, {"tracking.uri": f"sqlite:///{folder / 'mlflow.db'}"}))
    return folder / "out"


def hard_answers(config: Config, name: str) -> np.ndarray:
    """The signs of the logits of an undefended game, (N, L)."""
    game = play_in_process(config, threads=1)
    while game.round < game.total_rounds:
        game.play(100)
    return game.privatizer.codes(name)[1] > 0


def test_classifier_is_trained_once_and_its_answers_are_the_code_at_first(config, monkeypatch):
    trained: list[int] = []
    original = classifier.train_classifier
    monkeypatch.setattr(
        classifier, "train_classifier", lambda config, threads: trained.append(config.seed) or original(config, threads)
    )
    ready = with_classifier(config, parallel=False)
    assert with_classifier(replace(config, privacy_weight=2.0), parallel=False).privatizer == ready.privatizer
    assert with_classifier(ready, parallel=False) == ready == with_teachers(ready, parallel=False)
    assert trained == [0]
    assert with_classifier(replace(config, seed=1), parallel=False).privatizer != ready.privatizer
    dataset = load(ready)
    privatizer = build_privatizer(ready.privatizer, k=ready.k, image_shape=dataset.image_shape).eval()
    expected = hard_answers(classifier_config("smoke", config), "test")
    x = torch.from_numpy(np.concatenate(list(code_sets(dataset)["test"].blocks())).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        z = privatizer(x.float() / 127.5 - 1).numpy()
    assert np.mean((z == 0) != expected) < 1e-3, "but for logits that are almost 0"


def test_finished_run_gives_the_classifier_that_it_trained(config, undefended):
    of_preset = with_classifier(config, parallel=False)
    of_run = with_classifier(override(config, {"privatizer.classifier": str(undefended)}), parallel=False)
    assert of_run.privatizer.weights != of_preset.privatizer.weights
    states = [build_privatizer(c.privatizer, k=c.k, image_shape=load(config).image_shape).state_dict() for c in (of_preset, of_run)]
    classifiers = [{name: v for name, v in state.items() if name.startswith("classifier.")} for state in states]
    assert classifiers[0].keys() == classifiers[1].keys()
    for name, value in classifiers[0].items():
        torch.testing.assert_close(classifiers[1][name], value, atol=1e-5, rtol=1e-4)


def test_run_on_answers_sends_one_bit_for_each_label(config, tmp_path, mlflow_uri):
    summary_config = replace(override(config, {"tracking.uri": mlflow_uri}), output=tmp_path / "out")
    with left_as_it_was():
        train(summary_config)
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    dataset = load(config)
    assert report["k"] == len(task_of(dataset, ()).labels)
    assert report["code"]["raw"] == report["k"]
    blocks = [np.ascontiguousarray(b.transpose(0, 3, 1, 2)) for b in code_sets(dataset)["test"].blocks()]
    z = np.concatenate([open_own(tmp_path / "out" / "privatizer.pt2").encode(block) for block in blocks])
    assert set(np.unique(z)) <= {-1.0, 0.0}
    again, _ = config_of_another_run(tmp_path / "out" / "config.json")
    assert again.privatizer == config.privatizer, "a new run makes its classifier itself"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 3}, r"k is 3, but privatizer\.family 'answers' sends one number for each of the \d+ logits: set --k"),
        ({"privatizer.classifier": "nowhere"}, r"privatizer\.classifier: nowhere has no config\.json: .* or a preset \(smoke, "),
        ({"privatizer.classifier": "celeba_answers"}, "which runs a classifier itself: give another preset"),
    ],
)
def test_classifier_that_does_not_fit_is_refused_in_one_line(config, changes, message):
    with pytest.raises(InputError, match=message) as error:
        with_classifier(override(config, changes), parallel=False)
    assert "\n" not in str(error.value)


def test_run_that_rounds_or_is_defended_is_no_classifier(config, undefended, tmp_path):
    for field, value, message in (
        ("privatizer.quantization_step", 1.0, "rounds its codes"),
        ("privacy_weight", 1.0, "is defended"),
    ):
        folder = shutil.copytree(undefended, tmp_path / field)
        record = json.loads((folder / "config.json").read_text())
        part, _, name = field.rpartition(".")
        (record[part] if part else record)[name] = value
        (folder / "config.json").write_text(json.dumps(record))
        changes = {"privatizer.classifier": str(folder), "trust": True}
        with pytest.raises(InputError, match=message):
            with_classifier(override(config, changes), parallel=False)


def test_head_for_answers_needs_a_privatizer_that_sends_them(tiny_config):
    with pytest.raises(
        InputError, match="utility.family is 'answers', but privatizer.family is 'conv', whose codes are no answers"
    ):
        override(tiny_config, {"utility.family": "answers"})


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_classifier_trained_on_ray_is_the_same(config):
    dataset = load(config)
    here = with_classifier(replace(config, seed=5), parallel=False)
    for path in dataset.folder.glob("classifier-*"):
        path.unlink()
    assert with_classifier(replace(config, seed=5), parallel=True) == here
