"""Tests of the people who are withheld from the defender, as the attacker's own."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from cpgan_ray.config import Config
from cpgan_ray.config.presets import for_comparison, preset
from cpgan_ray.data import Dataset, label_frequencies, load, task_of
from cpgan_ray.data.batching import consecutive_batch, training_batch
from cpgan_ray.data.pca import projection, scale, targets
from cpgan_ray.data.store import withhold
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs
from cpgan_ray.evaluation.protocol import attack_data, ensure_disjoint
from cpgan_ray.evaluation.report.threat_model import threat_model
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.players import AdversaryWorker, PrivatizerWorker


@pytest.fixture
def config(tiny) -> Config:
    return tiny("ridge", "mlp", changes={"data.attacker_share": 0.4})


@pytest.fixture
def dataset(config) -> Dataset:
    return load(config, progress=False)


@pytest.fixture
def whole(tiny) -> Dataset:
    return load(tiny(), progress=False)


def codes_of(dataset: Dataset, k: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = [*dataset.splits, *(f"{split}_mirrored" for split in dataset.fit_splits)]
    return {name: rng.standard_normal((len(dataset.splits[name.partition("_")[0]]), k)).astype(np.float32) for name in names}


def test_withhold_divides_the_people_of_train(dataset, whole):
    assert dataset.attacker is not None
    own, other = np.unique(dataset.train.identity), np.unique(dataset.attacker.identity)
    assert np.intersect1d(own, other).size == 0
    assert np.array_equal(np.union1d(own, other), np.unique(whole.train.identity))
    assert len(other) == round(0.4 * len(np.unique(whole.train.identity)))
    assert len(dataset.train) + len(dataset.attacker) == len(whole.train)
    for part in (dataset.train, dataset.attacker):
        rows = np.flatnonzero(np.isin(whole.train.identity, part.identity))
        assert np.array_equal(part.take(np.arange(len(part))), whole.train.take(rows))
        assert np.array_equal(part.labels, whole.train.labels[rows])
        assert part.views is dataset.train.views, "nothing is copied"


def test_withheld_people_are_the_same_in_every_process_and_for_every_seed(config, dataset):
    other = load(dataclasses.replace(config, seed=5), progress=False)
    for copy in (pickle.loads(pickle.dumps(dataset)), other):  # noqa: S301
        for name, split in dataset.splits.items():
            assert np.array_equal(copy.splits[name].identity, split.identity)
            assert np.array_equal(copy.splits[name].take(np.arange(3)), split.take(np.arange(3)))
    split = pickle.loads(pickle.dumps(dataset.attacker))  # noqa: S301
    assert (split.name, len(split)) == ("attacker", len(dataset.attacker))


def test_withhold_needs_two_people(whole):
    alone = whole.train.select(np.arange(1), name="train")
    with pytest.raises(InputError, match=r"data\.attacker_share is 0\.5, but 1 person is in the training split"):
        withhold(dataclasses.replace(whole, train=alone), share=0.5)


def test_projection_and_frequencies_are_those_of_the_defenders_people(config, dataset, whole):
    x = np.concatenate([scale(block) for block in dataset.train.iter_batches(500)])
    mirrored = np.ascontiguousarray(x.reshape(-1, *dataset.image_shape)[:, :, ::-1]).reshape(len(x), -1)
    basis = projection(dataset, components=8, progress=False)
    assert np.asarray(basis.mean) == pytest.approx((x.mean(axis=0) + mirrored.mean(axis=0)) / 2, abs=1e-5)
    assert len(basis.coordinates) == len(dataset.train)
    assert basis.coordinates[5] == pytest.approx(basis.components @ (x[5] - basis.mean), abs=1e-3)
    assert len(projection(whole, components=8, progress=False).coordinates) == len(whole.train), "each has its own"
    assert label_frequencies(dataset, task_of(dataset, config.data.labels)) == pytest.approx(dataset.train.labels.mean(axis=0))
    values, _ = targets(basis, dataset.attacker, consecutive_batch(0, 4))
    assert values == pytest.approx((scale(dataset.attacker.take(np.arange(4))) - basis.mean) @ basis.components.T, abs=1e-3)


def test_players_see_only_the_defenders_people(config, dataset):
    privatizer, adversary = PrivatizerWorker(config, threads=1), AdversaryWorker("mlp", config, threads=1)
    for player in (privatizer, adversary):
        assert np.array_equal(player.dataset.train.identity, dataset.train.identity)
    assert privatizer.rounds_per_epoch == len(dataset.train) // config.batch_size
    rows = np.concatenate([training_batch(round, dataset, config).rows for round in range(privatizer.rounds_per_epoch)])
    assert rows.max() < len(dataset.train)
    shown = torch.cat(list(privatizer.representative_pictures()))
    stored = dataset.train.take(np.arange(len(dataset.train))).reshape(len(dataset.train), -1)
    known = {picture.tobytes() for picture in stored}
    pixels = ((shown + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).flatten(1).numpy()
    assert all(picture.tobytes() in known for picture in pixels)


def test_finished_game_has_codes_of_the_attackers_people(config, dataset):
    game = play_in_process(dataclasses.replace(config, epochs=1), threads=1)
    game.play(1)
    codes = game.privatizer.outcome().codes
    assert {"attacker", "attacker_mirrored", "train_mirrored"} <= codes.keys()
    assert "val_mirrored" not in codes, "no attack is fitted on it"
    assert len(codes["attacker"]) == len(codes["attacker_mirrored"]) == len(dataset.attacker)


def test_fresh_and_leaked_have_equal_sizes_and_no_people_in_common(config, dataset):
    basis = projection(dataset, components=8, progress=False)
    sets = {v: attack_data(dataset, codes_of(dataset), basis=basis, variant=v, seed=0) for v in ("leaked", "fresh")}
    fresh, leaked = sets["fresh"], sets["leaked"]
    assert len(fresh.fit) == len(leaked.fit) == 2 * min(len(dataset.train), len(dataset.attacker))
    assert np.intersect1d(fresh.fit.identity, leaked.fit.identity).size == 0
    assert np.isin(leaked.fit.identity, dataset.train.identity).all()
    assert np.isin(fresh.fit.identity, dataset.attacker.identity).all()
    for data in sets.values():
        assert np.array_equal(data.tune.identity, dataset.val.identity)
        ensure_disjoint(data)
    specs = attack_specs(dataclasses.replace(config.attacks, variants=("leaked", "fresh")), dataset)
    assert {spec.variant for spec in specs} == {"leaked", "fresh", "labels"}


def test_threat_model_names_the_attackers_people(config, dataset):
    context = EvaluationContext(dataset, codes_of(dataset), config.attacks, 0)
    by_name = {row["name"]: row for row in threat_model(context)["sets"]}
    assert by_name["attacker"]["pictures"] == len(dataset.attacker)
    assert "never seen by the defender" in by_name["attacker"]["use"]
    assert "fresh" not in by_name["val"]["use"]


def test_comparisons_withhold_half_of_the_people_and_training_nobody():
    assert preset("mnist").data.attacker_share == 0
    assert for_comparison(preset("mnist")).data.attacker_share == 0.5
    assert for_comparison(preset("mnist")).attacks.variants == ("leaked", "fresh")
