"""Tests of the mechanisms in which Alice answers herself."""

import dataclasses

import numpy as np
import pytest
import torch

from cpgan_ray.config import Config
from cpgan_ray.config.presets import for_comparison, preset
from cpgan_ray.data import Dataset, load, majority_logits, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.client import client_cost
from cpgan_ray.mechanisms import MECHANISMS, Released, games
from cpgan_ray.mechanisms.answer_order import AnswersAttack, private_order
from cpgan_ray.mechanisms.answers import flipped, quantised
from cpgan_ray.models.cost import count
from cpgan_ray.training.accuracy import accuracy, predictions
from tests.mixed import LABELS, mixed_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    base = dataclasses.replace(for_comparison(preset("digits")), epochs=8, batch_size=100, k=6)
    mixed = mixed_config(base, tmp_path_factory.mktemp("mixed"))
    return dataclasses.replace(mixed, output=tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def dataset(config: Config) -> Dataset:
    return load(config, progress=False)


@pytest.fixture(scope="module")
def twin(config: Config, dataset: Dataset) -> Released:
    return games.undefended_twin(config, dataset)


def test_answers_are_the_twins_and_send_few_bits(config, dataset, twin):
    released, task = MECHANISMS["answers"].release(config, 1.0, dataset), task_of(dataset, LABELS)
    assert released.codes.keys() == twin.logits.keys()
    for name, logits in released.logits.items():
        assert np.array_equal(predictions(logits, task), predictions(twin.logits[name], task))
    assert released.codes["test"].shape[1] == 1 + 5 + 4
    assert released.bits == 1 + 3 + 2


def test_answers_with_more_bits_keep_the_sign_and_show_more(config, dataset, twin):
    released = MECHANISMS["answers"].release(config, 4.0, dataset)
    assert released.bits == 4 * 10
    assert np.array_equal(released.logits["test"][:, 0] > 0, twin.logits["test"][:, 0] > 0)
    assert all(2 < len(np.unique(column)) <= 16 for column in released.codes["train"].T)
    z = np.linspace(-9, 9, 1001, dtype=np.float32)[:, None]
    assert len(np.unique(quantised(z, np.ones(1, np.float32), bits=3))) == 8
    assert np.abs(quantised(z, np.ones(1, np.float32), bits=8) - z.clip(-3, 3)).max() <= 3 / 256 + 1e-6


def test_subset_guesses_the_majority_for_what_is_not_sent(config, dataset):
    released, task = MECHANISMS["answers_subset"].release(config, 0.34, dataset), task_of(dataset, LABELS)
    (kept,) = (
        i for i, label in enumerate(task.labels) if released.codes["test"].shape[1] == (label.logits.stop - label.logits.start)
    )
    guess = majority_logits(dataset, task, rows=len(dataset.test))
    for i, label in enumerate(task.labels):
        assert np.allclose(released.logits["test"][:, label.logits], guess[:, label.logits]) is (i != kept)
    every = MECHANISMS["answers_subset"].release(config, 1.0, dataset)
    assert np.array_equal(every.codes["test"], MECHANISMS["answers"].release(config, 1.0, dataset).codes["test"])


def test_order_drops_first_what_costs_least_accuracy_per_r2(dataset, twin):
    """By an independent computation: least squares on the rows themselves, for each label that may go first."""
    task = task_of(dataset, LABELS)
    order = private_order(twin.logits, dataset, task)
    assert sorted(order) == [0, 1, 2]
    basis = np.linalg.svd(flat(dataset.train) - flat(dataset.train).mean(axis=0), full_matrices=False)[2][:64]
    targets = {split: (flat(getattr(dataset, split)) - flat(dataset.train).mean(axis=0)) @ basis.T for split in ("train", "val")}

    def r2(left: list[int]) -> float:
        x = {split: np.concatenate([one_hot(twin.logits[split], task, i) for i in left], axis=1) for split in targets}
        mean = x["train"].mean(axis=0)
        gram = (x["train"] - mean).T @ (x["train"] - mean)
        ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights = np.linalg.solve(gram + ridge, (x["train"] - mean).T @ targets["train"])
        errors = targets["val"] - (x["val"] - mean) @ weights
        return 1 - np.square(errors).sum() / np.square(targets["val"]).sum()

    y, guess = task.answers(dataset.val), majority_logits(dataset, task, rows=len(dataset.val))
    worth = accuracy(twin.logits["val"], y, task) - accuracy(guess, y, task)
    prices = [worth[i] / max(r2([0, 1, 2]) - r2([j for j in range(3) if j != i]), 1e-6) for i in range(3)]
    assert order[-1] == int(np.argmin(prices))


def flat(split) -> np.ndarray:
    values = np.asarray(split.take(np.arange(len(split))), np.float64).reshape(len(split), -1)
    return values / 127.5 - 1 if split.dtype == np.uint8 else values


def one_hot(logits: np.ndarray, task, i: int) -> np.ndarray:
    label, answer = task.labels[i], predictions(logits, task)[:, i]
    return answer[:, None].astype(float) if label.binary else np.eye(len(label.values))[answer]


def test_order_does_not_read_the_test_split(dataset, twin):
    only = {split: twin.logits[split] for split in ("train", "val")}
    without = dataclasses.replace(dataset, test=dataset.val)
    task = task_of(dataset, LABELS)
    assert private_order(only, without, task) == private_order(twin.logits, dataset, task)


def test_answers_attack_on_constant_answers_finds_nothing(dataset):
    constant = {split: np.ones((len(getattr(dataset, split)), 2), np.float32) for split in ("train", "val")}
    assert AnswersAttack(constant, dataset).r2([0, 1]) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_flipped_answers_are_other_values_of_the_label(dataset, flip):
    task = task_of(dataset, LABELS)
    hard = np.tile([1, 3, 2], (20_000, 1))
    sent = flipped(hard, task, flip, np.random.default_rng(0))
    assert (sent != hard).mean(axis=0) == pytest.approx(flip, abs=0.01)
    for column, count_ in zip(sent.T, task.num_values, strict=True):
        assert column.min() >= 0 and column.max() < count_
        if flip:
            others = np.bincount(column, minlength=count_)[np.arange(count_) != column[column == column][0]]
            assert len(others) == count_ - 1


def test_noisy_answers_of_fitting_rows_are_drawn_several_times(config, dataset):
    released = MECHANISMS["answers_noisy"].release(config, 0.2, dataset)
    assert {"train_draw1", "train_draw2", "train_draw3"} <= set(released.codes)
    assert not np.array_equal(released.codes["train"], released.codes["train_draw1"])
    assert len(released.codes["train_draw1"]) == len(dataset.train)
    again = MECHANISMS["answers_noisy"].release(config, 0.2, dataset)
    assert all(np.array_equal(z, again.codes[name]) for name, z in released.codes.items())


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("answers", 1.5, "bits per answer must be a whole number from 1 to 16"),
        ("answers", 0.0, "bits per answer must be a whole number from 1 to 16"),
        ("answers_noisy", 0.7, "flip probability must be from 0 to 0.5"),
        ("answers_noisy", float("nan"), "flip probability must be from 0 to 0.5"),
    ],
)
def test_answers_with_bad_setting_are_refused(name, setting, message, config, dataset):
    with pytest.raises(InputError, match=message):
        MECHANISMS[name].release(config, setting, dataset)


def test_twin_is_trained_once_for_all_that_need_it(config, dataset, twin, monkeypatch):
    played: list[Config] = []
    monkeypatch.setattr(games, "play_in_process", lambda *args, **more: played.append(args[0]))
    unrounded = dataclasses.replace(config, privatizer=dataclasses.replace(config.privatizer, quantization_step=0.0))
    bottleneck = MECHANISMS["bottleneck"].release(unrounded, 1.0, dataset)
    assert np.array_equal(bottleneck.codes["test"], twin.codes["test"])
    MECHANISMS["answers"].release(config, 1.0, dataset)
    assert played == []


def test_client_of_answers_computes_privatizer_and_head(config, dataset, twin):
    released = MECHANISMS["answers"].release(config, 1.0, dataset)
    height, width, channels = dataset.image_shape
    cost = client_cost(released.client, released.codes["train"], image_shape=dataset.image_shape, bits=released.bits)
    assert isinstance(released.client, torch.nn.Sequential) and twin.encoder is not None
    parts = [count(released.client[0], (channels, height, width)), count(released.client[1], (config.k,))]
    assert cost.multiply_adds == sum(part.multiply_adds for part in parts)
    assert cost.parameters == sum(part.parameters for part in parts)
    assert cost.bytes == 6 / 8 and cost.ms is not None and cost.ms > 0


def test_game_on_answers_starts_at_the_hard_answers_and_gives_some_up(config, dataset, twin):
    """Without a weight the answers stay those of the twin, on labels of two, four and five values; with a large one a ridge attack
    on the answers recovers less."""
    released = {weight: MECHANISMS["answers_game"].release(config, weight, dataset) for weight in (0.0, 3.0)}
    task = task_of(dataset, LABELS)
    agree = predictions(released[0.0].logits["test"], task) == predictions(twin.logits["test"], task)
    assert agree.mean() > 0.9, "Bob may read a rare answer as its opposite"
    assert released[0.0].bits == 1 + 3 + 2
    assert set(np.unique(released[0.0].codes["test"])) == {-1.0, 0.0}
    attack = {weight: AnswersAttack({s: r.codes[s] for s in ("train", "val")}, dataset) for weight, r in released.items()}
    columns = list(range(released[0.0].codes["test"].shape[1]))
    assert attack[3.0].r2(columns) < 0.8 * attack[0.0].r2(columns)
    again = MECHANISMS["answers_game"].release(config, 3.0, dataset)
    assert np.array_equal(again.codes["test"], released[3.0].codes["test"])


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b"", lambda content: b"no archive"])
def test_damaged_twin_of_a_comparison_is_refused_in_one_line(config, dataset, twin, tmp_path, damage):
    assert config.output is not None
    (path,) = (config.output / games.FEATURES).glob("*-twin.npz")
    (tmp_path / games.FEATURES).mkdir()
    (tmp_path / games.FEATURES / path.name).write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"-twin\.npz is damaged \(\w+\): delete it, its training is repeated") as error:
        games.undefended_twin(dataclasses.replace(config, output=tmp_path), dataset)
    assert "\n" not in str(error.value)
