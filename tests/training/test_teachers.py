"""Tests of the teachers' answers: their file, and the game that learns from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cpgan_ray.common.plugins import shipping
from cpgan_ray.common.types import Batch
from cpgan_ray.data import Task, load, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.training.accuracy import predictions
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.teachers import as_logits, mean_answers, pinned_file, probabilities, read_answers
from tests.games import untimed
from tests.teaching import random_answers, with_random_teacher

MIXED = Task.of(["five", "bald"], classes={"five": "abcde"})


def test_probabilities_are_those_of_torch_and_keep_hard_answers():
    logits = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    values = probabilities(logits, MIXED)
    x = torch.from_numpy(logits).double()
    expected = torch.cat([x[:, :5].softmax(1), x[:, 5:].sigmoid()], 1).numpy()
    np.testing.assert_allclose(values, expected, rtol=2**-10)
    np.testing.assert_array_equal(predictions(as_logits(values, MIXED), MIXED), predictions(logits, MIXED))


def test_answers_of_a_batch_are_those_of_its_rows_and_mirror_images(tiny_config, tmp_path):
    dataset = load(tiny_config)
    task = task_of(dataset, ())
    answers = random_answers(dataset, task)
    (tmp_path / "a.npz").write_bytes(answers.to_bytes())
    read = read_answers(pinned_file(str(tmp_path / "a.npz")), dataset, task)
    rows = np.array([5, 2, 5])
    batch = Batch(rows=rows, mirrored=np.array([False, True, True]), shift=np.zeros((3, 2), np.int16))
    expected = [answers.train[5, 0], answers.train[2, 1], answers.train[5, 1]]
    np.testing.assert_array_equal(read.of(batch), np.array(expected, np.float32))
    np.testing.assert_array_equal(read.val, answers.val)


def test_mean_answers_are_the_mean_probabilities(tiny_config):
    dataset = load(tiny_config)
    two = [random_answers(dataset, task_of(dataset, ()), seed=seed) for seed in (0, 1)]
    expected = (two[0].train.astype(np.float64) + two[1].train) / 2
    np.testing.assert_allclose(mean_answers(two).train, expected, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda answers: b"PK not a zip", r"a\.npz is damaged"),
        (lambda answers: answers.to_bytes()[:-30], r"a\.npz is damaged"),
        (lambda answers: replace(answers, train=answers.train[1:]).to_bytes(), r"answers of shape .*, these data and labels need"),
        (lambda answers: replace(answers, val=answers.val + np.float16(1)).to_bytes(), "other values than probabilities"),
        (lambda answers: replace(answers, val=answers.val * np.float16(np.nan)).to_bytes(), "other values than probabilities"),
        (lambda answers: replace(answers, val=answers.val.astype(object)).to_bytes(), r"a\.npz is damaged"),
    ],
)
def test_file_of_answers_that_does_not_fit_is_refused(tiny_config, tmp_path, damage, message):
    dataset = load(tiny_config)
    task = task_of(dataset, ())
    (tmp_path / "a.npz").write_bytes(damage(random_answers(dataset, task)))
    with pytest.raises(InputError, match=message):
        read_answers(str(tmp_path / "a.npz"), dataset, task)


def test_file_of_answers_that_changed_is_refused(tiny_config, tmp_path, monkeypatch):
    config = with_random_teacher(tiny_config, tmp_path)
    (tmp_path / "teacher.npz").write_bytes(b"other")
    monkeypatch.setattr(shipping, "_kept", {})
    with pytest.raises(InputError, match=r"teacher\.npz has changed: its digest is"):
        play_in_process(config, threads=1)


def test_game_without_the_answers_of_its_teachers_is_refused(tiny):
    with pytest.raises(ValueError, match=r"with_teachers sets it"):
        play_in_process(tiny("ridge", changes={"utility.train_teachers": 1}), threads=1)


def test_utility_loss_mixes_labels_and_teachers_by_the_weight(tiny, tmp_path):
    """The loss of the first round is linear in the weight; at weight 0 the game is the one without teachers."""
    config, losses = tiny("ridge", epochs=1), {}
    games = {
        weight: play_in_process(with_random_teacher(config, tmp_path, weight=weight), threads=1) for weight in (0.0, 0.25, 1.0)
    }
    for weight, game in games.items():
        losses[weight] = game.play(1)[0]["utility/loss"]
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    assert abs(losses[1.0] - losses[0.0]) > 1e-3
    assert untimed(games[0.0].play(3)) == untimed(play_after(config, 1, 3))


def play_after(config, before: int, rounds: int):
    game = play_in_process(config, threads=1)
    game.play(before)
    return game.play(rounds)


def test_defender_learns_the_answers_of_its_teacher(tiny, tmp_path):
    """With only the teacher's answers, which contradict the labels, the logits approach the teacher."""
    config = tiny("ridge", epochs=12, privacy_weight=0, changes={"data.labels": ["Smiling"], "utility.dropout": 0.0})
    dataset = load(config)
    task = task_of(dataset, config.data.labels)
    wrong = np.where(task.answers(dataset.train) == 1, 0.02, 0.98).astype(np.float16)
    answers = replace(random_answers(dataset, task), train=np.stack([wrong, wrong], axis=1))
    (tmp_path / "a.npz").write_bytes(answers.to_bytes())
    utility = replace(config.utility, teacher_answers=pinned_file(str(tmp_path / "a.npz")), teacher_weight=1.0)
    accuracies = {}
    for name, settings in (("labels", config.utility), ("teacher", utility)):
        game = play_in_process(replace(config, utility=settings), threads=1)
        while game.round < game.total_rounds:
            metrics = game.play(100)[-1]
        accuracies[name] = metrics["utility/batch_accuracy"]
    assert accuracies["teacher"] < 0.4 < 0.6 < accuracies["labels"]
