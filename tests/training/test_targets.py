"""Tests of what adversaries recover: values of hidden labels and identities, their gradients, and games that hide them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cpgan_ray.common.types import Batch, Feedback, Release
from cpgan_ray.config import Config, NeuralConfig, RidgeConfig, override
from cpgan_ray.config.search_space import dimensions
from cpgan_ray.data import Task, load
from cpgan_ray.data.batching import plain_batch
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.fit_to_data import fit_to_data
from cpgan_ray.training.aggregate import aggregate
from cpgan_ray.training.classes import Classes
from cpgan_ray.training.game import active_adversaries, play_in_process
from cpgan_ray.training.players import AdversaryWorker
from cpgan_ray.training.targets import MIN_ROWS, FixedSource, target_source

torch.set_num_threads(1)
CPU = torch.device("cpu")
MIXED = Task.of(["a", "b"], classes={"b": ("x", "y", "z")})


@pytest.fixture
def answers() -> np.ndarray:
    """Answers (N, 2) to MIXED."""
    rng = np.random.default_rng(0)
    return np.stack([rng.random(400) < 0.2, rng.choice(3, 400, p=(0.6, 0.3, 0.1))], axis=1).astype(np.int8)


def hidden(tiny, **changes) -> Config:
    """A tiny game in which a linear adversary and a network recover one label, and another adversary the identity."""
    config = tiny("ridge", changes={"data.labels": ("Smiling",)})
    adversaries = {
        **config.adversaries,
        "male": RidgeConfig(memory_batches=1, target="attribute:Male"),
        "male_net": NeuralConfig(architecture="mlp", width=16, learning_rate=1e-2, target="attribute:Male"),
        "who": RidgeConfig(memory_batches=1, target="identity"),
    }
    game = replace(config.game, target_weights={"Male": 1.0, "identity": 0.5})
    return override(replace(config, adversaries=adversaries, game=game), changes)


def release_of(rows: np.ndarray, *, k: int, seed: int = 0) -> Release:
    z = np.random.default_rng(seed).normal(size=(len(rows), k)).astype(np.float32)
    return Release(round=0, batch=plain_batch(rows), z=z)


# ------------------------------------------------------------------------------------------------------ hidden labels


def test_values_of_labels_have_zero_mean_and_unit_variance(answers):
    values = Classes.of(MIXED, answers).values(answers)
    assert values.shape == (400, 4)
    assert values.mean(axis=0) == pytest.approx(np.zeros(4), abs=1e-6)
    assert np.square(values[:, 0]).mean() == pytest.approx(1, abs=1e-5)
    assert np.square(values[:, 1:]).mean() == pytest.approx(1, abs=1e-5)


def test_predicted_values_are_the_targets_for_certain_right_answers_and_zero_for_frequencies(answers):
    classes = Classes.of(MIXED, answers)
    one_hot = np.concatenate([answers[:, :1] == 1, answers[:, 1:] == np.arange(3)], axis=1)
    certain = torch.from_numpy(np.where(one_hot, 50.0, -50.0)).float()
    assert classes.predicted(certain).numpy() == pytest.approx(classes.values(answers), abs=1e-5)
    guess = torch.cat([torch.logit(classes.share[:1]), classes.share[1:].log()])[None]
    assert classes.predicted(guess).abs().max() < 1e-6


def test_loss_of_classes_is_the_mean_cross_entropy(answers):
    classes, logits = Classes.of(MIXED, answers), torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    y = torch.from_numpy(answers)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], y[:, 0].float()) + F.cross_entropy(logits[:, 1:], y[:, 1].long())
    assert classes.loss(logits, torch.from_numpy(classes.values(answers))) == pytest.approx(float(expected) / 2, abs=1e-6)


def test_attribute_source_has_the_standardised_answers_whatever_the_augmentation(tiny):
    dataset = load(tiny())
    source, rows = target_source("attribute:Male", dataset, components=0), np.arange(12)
    y = dataset.train.labels[:, dataset.label_names.index("Male")].astype(float)
    batch = Batch(rows=rows, mirrored=np.ones(12, bool), shift=np.full((12, 2), 2, np.int16))
    target = source(Release(0, batch, np.zeros((12, 1), np.float32)), CPU)
    assert target.values[:, 0].numpy() == pytest.approx(((y - y.mean()) / y.std())[rows], abs=1e-5)
    assert float(target.mean_errors().mean()) == pytest.approx(float(target.values.square().mean()))


def test_several_labels_are_one_target(tiny):
    source = target_source("attribute:Male,Smiling", load(tiny()), components=0)
    assert source.size == 2


def test_network_with_a_label_as_target_learns_the_classifier(tiny):
    config = hidden(tiny)
    worker, source = AdversaryWorker("male_net", config, threads=1), target_source("attribute:Male", load(config), components=0)
    rows = np.arange(64)
    z = np.random.default_rng(0).normal(size=(64, config.k)).astype(np.float32)
    z[:, 0] = source(release_of(rows, k=1), CPU).values[:, 0]
    release = Release(0, plain_batch(rows), z)
    before = worker.respond(release).r2
    for _ in range(60):
        worker.learn(release)
    assert worker.respond(release).r2 > max(0.8, before)


# ------------------------------------------------------------------------------------------------------------ identity


def test_identity_target_is_the_same_for_all_pictures_of_a_person_and_has_unit_variance(tiny):
    dataset = load(tiny())
    source, rows = target_source("identity", dataset, components=0), np.arange(len(dataset.train))
    values = source(release_of(rows, k=1), CPU).values.numpy()
    known = source.known(release_of(rows, k=1))
    known = rows if known is None else known
    people = dataset.train.identity
    for person in np.unique(people[known])[:20]:
        of_person = values[people == person]
        assert len(of_person) > 1
        assert of_person == pytest.approx(np.broadcast_to(of_person[0], of_person.shape), abs=1e-5)
    assert values[known].mean(axis=0) == pytest.approx(np.zeros(source.size), abs=1e-4)
    assert values[known].std(axis=0) == pytest.approx(np.ones(source.size), abs=1e-3)
    assert source.size <= 64


def test_identity_target_is_refused_without_identities(tiny):
    dataset = load(tiny())
    anonymous = replace(dataset, info=replace(dataset.info, anonymous=True))
    with pytest.raises(InputError, match="target 'identity': it is not known who is on the pictures"):
        target_source("identity", anonymous, components=0)


# ------------------------------------------------------------------------------------------------- rows without target


@pytest.mark.parametrize("name", ["male", "male_net"])
def test_rows_without_a_known_target_count_neither_in_fit_nor_score_nor_gradient(tiny, name):
    config, rows = hidden(tiny), np.arange(40)
    dataset = load(config)
    whole = target_source("attribute:Male", dataset, components=0)
    assert isinstance(whole, FixedSource)
    is_known = np.arange(len(dataset.train)) % 2 == 0
    release, even = release_of(rows, k=config.k), release_of(rows, k=config.k)
    even = Release(0, plain_batch(rows[::2]), even.z[::2])
    answers = []
    for known, shown in ((is_known, release), (np.ones(len(dataset.train), bool), even)):
        worker = AdversaryWorker(name, config, threads=1)
        worker.source = FixedSource(whole.values, {"train": known}, classes=whole.classes)
        worker.learn(shown)
        answers.append(worker.respond(shown))
    assert answers[0].r2 == pytest.approx(answers[1].r2, abs=1e-6)
    assert (answers[0].grad_z[1::2] == 0).all()
    assert answers[0].grad_z[::2] == pytest.approx(answers[1].grad_z, abs=1e-7)


def test_release_with_too_few_known_targets_recovers_nothing(tiny):
    config = hidden(tiny)
    worker = AdversaryWorker("male", config, threads=1)
    whole = worker.source
    assert isinstance(whole, FixedSource)
    few = {"train": np.arange(len(whole.values["train"])) < MIN_ROWS - 1}
    worker.source = FixedSource(whole.values, few, classes=whole.classes)
    answer = worker.respond(release_of(np.arange(40), k=config.k))
    assert answer.r2 == 0
    assert not answer.grad_z.any()


def test_missing_answers_have_the_value_of_the_mean(answers):
    classes = Classes.of(MIXED, answers)
    assert not classes.values(np.full((3, 2), MISSING, np.int8)).any()


# ------------------------------------------------------------------------------------------------------------- the game


def test_aggregate_adds_the_targets_with_their_weights_and_takes_the_strongest_of_each(tiny):
    config = hidden(tiny)
    rng = np.random.default_rng(0)
    r2 = {"ridge": 0.3, "male": 0.1, "male_net": 0.2, "who": 0.4}
    grads = {name: rng.normal(size=(5, 3)).astype(np.float32) for name in r2}
    feedback = [Feedback(name, 0, grads[name], value, {}) for name, value in r2.items()]
    weights = {"picture": 2.0, "attribute:Male": 3.0, "identity": 5.0}
    result = aggregate(feedback, config, weight=weights.__getitem__)
    assert result.grad_z == pytest.approx(2 * grads["ridge"] + 3 * grads["male_net"] + 5 * grads["who"], abs=1e-6)
    assert result.metrics["privacy/training_r2"] == 0.3
    assert result.metrics["sensitive/Male/training_r2"] == 0.2
    assert result.metrics["sensitive/identity/training_r2"] == 0.4
    assert [result.metrics[f"adversary/{name}/weight"] for name in r2] == [1, 0, 1, 1]


@pytest.mark.parametrize("schedule", ["sync", "stale1", "epochwise"])
def test_game_against_several_targets_is_finite_and_repeatable(tiny, differing, schedule):
    config, games = hidden(tiny, **{"game.schedule": schedule}), []
    for _ in range(2):
        game = play_in_process(config, threads=1)
        metrics = game.play(game.rounds_per_epoch)
        assert all(math.isfinite(value) for of_round in metrics for value in of_round.values())
        assert {"privacy/training_r2", "sensitive/Male/training_r2", "sensitive/identity/training_r2"} <= metrics[-1].keys()
        games.append(game.weights())
    assert not differing(*games)


def test_weight_of_a_label_lowers_what_is_recovered_of_it(tiny):
    recovered = {}
    for weight in (1e-3, 10.0):
        config = hidden(tiny, **{"game.target_weights.Male": weight, "privacy_weight": 0.0, "epochs": 8})
        game = play_in_process(config, threads=1)
        metrics = [m for _ in range(config.epochs) for m in game.play(1000)]
        recovered[weight] = np.mean([m["sensitive/Male/training_r2"] for m in metrics[-4:]])
    assert recovered[10.0] < recovered[1e-3] - 0.1


def test_only_adversaries_whose_target_has_a_weight_play(tiny):
    config = hidden(tiny)
    assert active_adversaries(config) == ["ridge", "male", "male_net", "who"]
    assert active_adversaries(replace(config, privacy_weight=0.0)) == ["male", "male_net", "who"]
    assert active_adversaries(override(config, {"game.target_weights.Male": 0.0})) == ["ridge", "who"]
    assert active_adversaries(config.without_defence()) == []
    assert not config.without_defence().is_defended


# ------------------------------------------------------------------------------------------------------- configuration


def test_search_varies_the_weight_of_a_target(tiny):
    config = hidden(tiny)
    (found,) = dimensions(["game.target_weights.Male"], config, grid=True)
    assert found.values == (0.1, 0.3, 1.0)
    (found,) = dimensions(["game.target_weights.Male=0.01..10"], config, grid=False)
    assert (found.low, found.high, found.log) == (0.01, 10, True)
    with pytest.raises(InputError, match="game.target_weights.Young"):
        dimensions(["game.target_weights.Young"], config, grid=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_weights": {"Male": 1.0, "identity": 1.0, "Young": 1.0}}, "no adversary has the target 'attribute:Young'"),
        ({"target_weights": {"Male": 1.0}}, "adversaries.who.target is 'identity', but game.target_weights has no 'identity'"),
        ({"target_weights": {"Male": -1.0, "identity": 1.0}}, "at least 0"),
    ],
)
def test_weights_without_targets_and_targets_without_weights_are_refused(tiny, change, message):
    config = hidden(tiny)
    with pytest.raises(InputError, match=message):
        replace(config, game=replace(config.game, **change))


def test_label_that_is_answered_cannot_be_hidden(tiny):
    config = hidden(tiny)
    with pytest.raises(InputError, match="data.labels and game.target_weights both have 'Male'"):
        replace(config, data=replace(config.data, labels=("Smiling", "Male")))


def test_task_of_all_labels_leaves_out_those_that_are_hidden(tiny):
    config = hidden(tiny, **{"data.labels": ()})
    names = load(config).label_names
    assert fit_to_data(config).data.labels == tuple(name for name in names if name != "Male")
    assert fit_to_data(hidden(tiny)).data.labels == ("Smiling",)


@pytest.mark.parametrize("target", ["attribute:", "attribute", "Male", "attribute:Male,", "pictures"])
def test_target_of_another_form_is_refused(target):
    with pytest.raises(InputError, match="picture, identity, or attribute: and the name of a label"):
        RidgeConfig(target=target)


def test_network_with_another_target_than_the_picture_is_a_perceptron():
    with pytest.raises(InputError, match="needs architecture 'mlp'"):
        NeuralConfig(target="attribute:Male")
