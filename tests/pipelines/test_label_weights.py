"""Tests of learned weights of labels: their rule, and that a game with them does what leaving answers out does."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.common.plugins import shipping
from cpgan_ray.config import Config, DataConfig, override
from cpgan_ray.data import Dataset, load, store, task_of
from cpgan_ray.data.registry import DATASETS
from cpgan_ray.data.store import DatasetInfo
from cpgan_ray.mechanisms.answer_order import private_order
from cpgan_ray.pipelines.label_weights import LEAST_WEIGHT, weights_at, with_label_weights
from cpgan_ray.pipelines.teachers import with_teachers
from cpgan_ray.training.accuracy import accuracy
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.teachers import as_logits, read_answers

LOUD, QUIET = "loud", "quiet"
DIGEST = "00000000105d0000"
ROWS = {"train": 640, "val": 200, "test": 200, "final": 0}


def test_weights_rise_along_the_order_and_are_half_at_the_rate():
    weights = weights_at({"a": 0.0, "b": 0.1, "c": 0.05, "d": 0.3, "e": 30.0}, 0.1)
    assert list(weights) == ["a", "b", "c", "d", "e"]
    assert weights == {"a": LEAST_WEIGHT, "b": 0.5, "c": 0.5, "d": 0.75, "e": 0.997}
    assert math.isclose(weights["d"] / (1 - weights["d"]), 0.3 / 0.1), "the odds are price / rate"


# ------------------------------------------------------------------------------------------------- a constructed example


def made_store(folder: Path) -> None:
    """Pictures 8 x 8 of noise. `loud`, of which 70 % are 1, is the brightness of the left half: an answer to it shows nearly all of
    the picture. `quiet`, of which 50 % are 1, is that of four pixels on the right: worth more, and it shows little."""
    rng, total = np.random.default_rng(0), sum(ROWS.values())
    labels = np.stack([rng.random(total) < 0.7, rng.random(total) < 0.5], axis=1).astype(np.int8)
    values = 128 + 12 * rng.normal(size=(total, 8, 8, 1))
    values[:, :, :4] += (labels[:, 0, None, None, None] * 2 - 1) * 60
    values[:, 3:5, 5:7] += (labels[:, 1, None, None, None] * 2 - 1) * 60
    pictures, ends = np.clip(values, 0, 255).astype(np.uint8), np.cumsum(list(ROWS.values()))
    plan = store.Plan(
        digest=DIGEST,
        source=DATASETS["digits"].settings(Config(data=DataConfig(dataset="digits", final_fraction=0.0))),
        names=[str(row) for row in range(total)],
        label_names=(LOUD, QUIET),
        labels=labels,
        identity=np.arange(total, dtype=np.int64),
        image_shape=(8, 8, 1),
        rows={name: np.arange(end - ROWS[name], end) for name, end in zip(ROWS, ends, strict=True)},
        fetch=lambda rows: (pictures[rows], np.ones(len(rows), bool)),
        info=DatasetInfo(mirrored=False),
    )
    folder.mkdir(parents=True, exist_ok=True)
    store.build(folder / DIGEST, plan, progress=False)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> tuple[Config, Dataset]:
    """A game against ridge on these pictures, with its teacher's answers, and the data."""
    cache = tmp_path_factory.mktemp("made")
    made_store(cache)
    changes = {"epochs": 8, "privacy_weight": 0.15, "utility.train_teachers": 1, "privatizer.quantization_step": 1.0}
    changes |= {"utility.dropout": 0.0, "recovery.checkpoint_every": 0, "privatizer.learning_rate": 1e-2}
    config = override(tiny_config, changes)
    data = DataConfig(dataset="digits", final_fraction=0.0, digest=DIGEST)
    config = replace(config, cache_dir=cache, data=data, adversaries={"ridge": config.adversaries["ridge"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "_kept", {})  # a cluster of another module would have to be started again to get the file
        return with_teachers(config, parallel=False), load(config)


def with_rate(config: Config, rate: float, **given: float) -> Config:
    return replace(config, utility=replace(config.utility, learn_label_weights=rate, label_weights=given))


def test_label_that_shows_much_for_little_gets_the_small_weight(taught):
    config, dataset = taught
    weights = with_label_weights(with_rate(config, 1.0)).utility.learned_label_weights
    variances = {LOUD: 32 * 4 * 0.7 * 0.3 * 60**2, QUIET: 4 * 60**2, "noise": 64 * 12**2}
    for name, worth in ((LOUD, 0.3 / 2), (QUIET, 0.5 / 2)):  # what the guess loses, as a mean over both labels
        price = worth / (variances[name] / sum(variances.values()))
        assert weights[name] == pytest.approx(price / (price + 1), abs=0.05)
    task = task_of(dataset, ())
    answers = read_answers(config.utility.teacher_answers, dataset, task)
    logits = {"train": as_logits(answers.train[:, 0], task), "val": as_logits(answers.val, task)}
    assert [task.names[i] for i in private_order(logits, dataset, task)] == [QUIET, LOUD], "the order of `answers_subset`"
    smaller = with_label_weights(with_rate(config, 10.0)).utility.learned_label_weights
    assert all(smaller[name] < weights[name] for name in weights)


def test_given_weight_stays_and_a_resumed_run_keeps_its_weights(taught):
    config, _ = taught
    first = with_label_weights(with_rate(config, 1.0, **{LOUD: 2.0}))
    assert list(first.utility.learned_label_weights) == [QUIET]
    assert with_label_weights(first) == first


def test_game_with_learned_weights_leaves_out_what_answers_subset_does(taught):
    """At the same privacy weight: without weights the code carries both answers; with weights only `quiet`, the one that
    `answers_subset` keeps, and the attacker loses nearly all."""
    config, dataset = taught
    task, results = task_of(dataset, ()), {}
    for name, of_run in (("equal", config), ("learned", with_label_weights(with_rate(config, 3.0)))):
        game = play_in_process(of_run, threads=1)
        while game.round < game.total_rounds:
            metrics = game.play(100)[-1]
        right = accuracy(game.privatizer.codes("val")[1], task.answers(dataset.val), task)
        results[name] = dict(zip(task.names, right, strict=True)) | {"r2": metrics["adversary/ridge/r2"]}
    assert min(results["equal"][LOUD], results["equal"][QUIET]) > 0.95
    assert results["learned"][QUIET] > 0.95
    assert results["learned"][LOUD] < 0.8, "about the guess, 0.7"
    assert results["learned"]["r2"] < 0.3 < 0.7 < results["equal"]["r2"]
