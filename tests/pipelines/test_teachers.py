"""Tests of the teachers of a run: finished runs, teachers that are trained first, and the run that learns from them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.common.ownership import sign
from cpgan_ray.common.plugins import shipping
from cpgan_ray.config import Config, ReproduceJob, override
from cpgan_ray.config.folders.runs import config_of_another_run
from cpgan_ray.data import load, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines import teachers
from cpgan_ray.pipelines.teachers import teacher_config, train_all, train_teacher, with_teachers
from cpgan_ray.pipelines.train import resume_fingerprint, train
from cpgan_ray.training.classifier import views
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.teachers import TeacherAnswers, probabilities, read_answers
from tests.process import left_as_it_was

CHANGES = {"epochs": 1, "recovery.checkpoint_every": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config, mlflow_template: Path) -> Path:
    """The output folder of an undefended run."""
    folder = tmp_path_factory.mktemp("teacher")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    changes = {"privacy_weight": 0, "output": str(folder / "out"), "tracking.uri": f"sqlite:///{folder / 'mlflow.db'}"}
    with left_as_it_was():
        train(override(tiny_config, CHANGES | changes))
    return folder / "out"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "_kept", {})


def answers_in(config: Config) -> TeacherAnswers:
    dataset = load(config)
    assert config.utility.teacher_answers is not None
    return read_answers(config.utility.teacher_answers, dataset, task_of(dataset, config.data.labels))


def played_answers(config: Config) -> TeacherAnswers:
    """What a run answers, by its game."""
    game = play_in_process(config, threads=1)
    while game.round < game.total_rounds:
        game.play(100)
    worker = game.privatizer
    train, mirrored, val = (probabilities(worker.codes(name)[1], worker.task) for name in views(worker.dataset))
    return TeacherAnswers(train=np.stack([train, mirrored], axis=1), val=val)


# ---------------------------------------------------------------------------------------------------------- finished runs


@pytest.mark.parametrize("signed", [True, False])
def test_answers_of_a_finished_run_are_those_of_its_game(finished, tiny_config, tmp_path, signed):
    """Those of a folder that this user has not signed, too: its programs run in a sandbox."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    if not signed:
        for path in folder.glob("*.owner"):
            path.unlink()
        for name in Path(load(tiny_config).folder).glob("teacher-*"):
            name.unlink()
    config = override(tiny_config, CHANGES | {"utility.teachers": [str(folder)]})
    answers = answers_in(with_teachers(config, parallel=False))
    expected = played_answers(override(tiny_config, CHANGES | {"privacy_weight": 0}))
    np.testing.assert_allclose(answers.train, expected.train, atol=2e-3)
    np.testing.assert_allclose(answers.val, expected.val, atol=2e-3)


def test_finished_run_behind_a_uri_gives_the_same_file(finished, tiny_config):
    files = [
        with_teachers(override(tiny_config, CHANGES | {"utility.teachers": [where]}), parallel=False).utility.teacher_answers
        for where in (str(finished), f"file://{finished}")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy_weight": 0.2}, r"is defended \(privacy weight 0\.2\), so its answers know less"),
        ({"data.labels": ["Smiling", "Male"]}, r"predicts Smiling, Male, but this run Bald, Bangs"),
        ({"data.image_size": 32}, r"was trained with data\.image_size 32, but this run has 16"),
        ({"data.attacker_share": 0.5}, r"was trained with data\.attacker_share 0\.5, but this run has 0\.0"),
        ({"utility.class_weighted_loss": True}, r"class_weighted_loss True, but this run has False"),
    ],
)
def test_teacher_of_another_kind_is_refused_in_one_line(finished, tiny_config, tmp_path, changes, message):
    folder = shutil.copytree(finished, tmp_path / "copy")
    record = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *path, last = name.split(".")
        inner = record
        for part in path:
            inner = inner[part]
        inner[last] = value
    (folder / "config.json").write_text(json.dumps(record))
    sign(folder / "config.json")
    with pytest.raises(InputError, match=message) as error:
        with_teachers(override(tiny_config, CHANGES | {"utility.teachers": [str(folder)]}), parallel=False)
    assert "\n" not in str(error.value)


def test_teacher_on_another_store_or_without_programs_is_refused(finished, tiny_config, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"store": "/elsewhere/0123456789abcdef"}))
    sign(folder / "config.json")
    config = override(tiny_config, CHANGES | {"utility.teachers": [str(folder)]})
    with pytest.raises(InputError, match="was trained on prepared store 0123456789abcdef, this run uses"):
        with_teachers(config, parallel=False)
    (folder / "utility_head.pt2").unlink()
    with pytest.raises(InputError, match=r"copy has no utility_head\.pt2: give the output folder of a finished run"):
        with_teachers(config, parallel=False)


def test_finished_and_new_teachers_together_are_refused(tiny_config):
    with pytest.raises(InputError, match="utility.train_teachers is 2, but utility.teachers names 1 finished ones"):
        override(tiny_config, {"utility.teachers": ["somewhere"], "utility.train_teachers": 2})


def test_comparison_trains_teachers_for_each_seed_and_refuses_finished_ones(tiny_config):
    assert ReproduceJob(config=override(tiny_config, {"utility.train_teachers": 2})).config.utility.train_teachers == 2
    with pytest.raises(InputError, match=r"utility\.teachers is .*, but each seed of a comparison needs teachers of its own"):
        ReproduceJob(config=override(tiny_config, {"utility.teachers": ["somewhere"]}))


# --------------------------------------------------------------------------------------------------------- trained teachers


def test_teachers_are_trained_once_and_their_answers_averaged(tiny, monkeypatch):
    trained = []
    original = teachers.train_teacher
    monkeypatch.setattr(teachers, "train_teacher", lambda config, threads: trained.append(config.seed) or original(config, threads))
    config = tiny("ridge", changes=CHANGES | {"utility.train_teachers": 2, "privatizer.quantization_step": 1.0})
    answers = answers_in(with_teachers(config, parallel=False))
    assert len(set(trained)) == 2
    single = [played_answers(teacher_config(config, number)) for number in range(2)]
    expected = (single[0].train.astype(np.float32) + single[1].train.astype(np.float32)) / 2
    np.testing.assert_allclose(answers.train, expected, atol=1e-3)
    assert np.abs(single[0].train - single[1].train).max() > 0.01
    same = (tiny("rbf", changes=CHANGES | {"utility.train_teachers": 2, "privacy_weight": 3}), config)
    for other in same:  # other adversaries and weights, the same teachers
        with_teachers(other, parallel=False)
    assert len(trained) == 2
    with_teachers(replace(config, seed=1), parallel=False)
    assert len(set(trained)) == 4


def test_bad_label_weight_is_refused_before_teachers_are_trained(tiny):
    config = tiny("ridge", changes=CHANGES | {"utility.train_teachers": 1, "utility.label_weights": ["Mal=0.5"], "seed": 11})
    before = set(load(config).folder.glob("teacher-*"))
    with pytest.raises(InputError, match="names 'Mal', which is no label of the task; nearest: Male"):
        with_teachers(config, parallel=False)
    assert set(load(config).folder.glob("teacher-*")) == before


@pytest.mark.usefixtures("ray_session")
def test_teachers_on_ray_give_the_same_answers(tiny):
    configs = [teacher_config(tiny(changes=CHANGES), number) for number in range(2)]
    here, there = {}, {}
    train_all(configs, train_teacher, here.__setitem__, parallel=False)
    train_all(configs, train_teacher, there.__setitem__, parallel=True)
    assert {n: a.to_bytes() for n, a in here.items()} == {n: a.to_bytes() for n, a in there.items()}


# ------------------------------------------------------------------------------------------------------------------ the run


def test_resumed_run_has_the_same_answers_or_is_refused(tiny):
    config = tiny("ridge", changes=CHANGES | {"utility.train_teachers": 1, "seed": 7})
    started = with_teachers(config, parallel=False)
    assert with_teachers(started, parallel=False) == started
    path, _, digest = (started.utility.teacher_answers or "").partition("@")
    assert resume_fingerprint(started)["utility.teacher_answers"].endswith(digest)
    Path(path).unlink()
    assert with_teachers(started, parallel=False) == started, "the file is made again"
    Path(path).unlink()
    other = replace(started, utility=replace(started.utility, teacher_answers=f"{path}@0123456789abcdef"))
    with pytest.raises(InputError, match="the run was started with the teachers' answers .*@0123456789abcdef, but"):
        with_teachers(other, parallel=False)


def test_run_with_a_teacher_records_it_without_its_path(finished, tiny, tmp_path, mlflow_uri):
    config = tiny("ridge", changes=CHANGES | {"utility.teachers": [str(finished)], "tracking.uri": mlflow_uri})
    with left_as_it_was():
        train(replace(config, output=tmp_path / "out"))
    recorded = json.loads((tmp_path / "out" / "config.json").read_text())["utility"]
    assert recorded["teachers"] == [str(finished)]
    again, _ = config_of_another_run(tmp_path / "out" / "config.json")
    assert again.utility == config.utility, "a new run asks its teachers itself"
    settings = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["settings"]["utility"]
    assert settings["teachers"] == ["out"]
    assert settings["teacher_answers"] == recorded["teacher_answers"].partition("@")[2]
