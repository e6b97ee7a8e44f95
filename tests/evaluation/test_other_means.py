"""Tests of attackers with other means: few queries, or pictures of another data set."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.config import AttackConfig, Config, ReproduceJob
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, fit_attack
from cpgan_ray.evaluation.protocol import OTHER_DATA, OtherData
from cpgan_ray.evaluation.report.threat_model import threat_model
from cpgan_ray.pipelines.other_data import load_other

SMALL = AttackConfig(names=("ridge",), fit_fractions=(), queries=(40, 100))


def small_pictures(dataset: Dataset) -> dict[str, np.ndarray]:
    """The codes of all sets: the pictures in 8 x 8 blocks."""
    codes = {}
    for name, code_set in code_sets(dataset, attacks=SMALL, k=192).items():
        x = np.concatenate(list(code_set.blocks()))
        b, h, w, c = x.shape
        codes[name] = x.reshape(b, h // 8, 8, w // 8, 8, c).mean(axis=(2, 4)).reshape(b, -1).astype(np.float32)
    return codes


@pytest.fixture(scope="module")
def dataset(tiny_config: Config) -> Dataset:
    return load(tiny_config, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes in no class folders."""
    folder = tmp_path_factory.mktemp("others")
    rng = np.random.default_rng(0)
    for number in range(60):
        side = int(rng.integers(20, 90))
        shade = np.add.outer(rng.uniform(0, 120) * np.linspace(0, 1, side), rng.uniform(0, 120) * np.linspace(1, 0, side + 5))
        where = folder / ("deep/er" if number % 3 else ".")
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(shade[:, :, None], 3, axis=2).astype(np.uint8)).save(where / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def other(tiny_config: Config, dataset: Dataset, folder: Path) -> Dataset:
    config = replace(tiny_config, attacks=replace(SMALL, attacker_data=folder))
    other = load_other(config, dataset, noise=0)
    assert other is not None
    return other


@pytest.fixture(scope="module")
def context(dataset: Dataset, other: Dataset) -> EvaluationContext:
    encoded = OtherData(other, small_pictures(other))
    return EvaluationContext(dataset, small_pictures(dataset), SMALL, seed=0, other=encoded)


def test_query_only_attacker_has_exactly_the_pairs_it_queried(context):
    data = context.data("queries_40")
    assert (len(data.fit), len(data.tune), data.views) == (30, 10, 1)
    assert len(data.all_rows()) == 40, "no mirrored or shifted copies beyond them"
    assert len(data.score) == len(context.dataset.test)


def test_attack_with_more_queries_recovers_more(context):
    fitted = {spec.variant: fit_attack(spec, context) for spec in attack_specs(SMALL, context.dataset) if spec.counts}
    assert [fitted[f"queries_{number}"].pictures for number in SMALL.queries] == [*SMALL.queries]
    r2 = [fitted[name].fitted.tune_r2 for name in ("queries_40", "queries_100", "leaked")]
    assert r2[0] < r2[2]
    assert r2[1] < r2[2]


def test_too_many_queries_are_refused(dataset):
    with pytest.raises(InputError, match="attacks.queries has 100000, but train and val have"):
        attack_specs(replace(SMALL, queries=(100_000,)), dataset)
    with pytest.raises(InputError, match="attacks.queries has 40 twice"):
        attack_specs(replace(SMALL, queries=(40, 40)), dataset)
    with pytest.raises(InputError, match="attacks.queries is .*at least 16"):
        AttackConfig(queries=(15,))


def test_other_data_are_fitted_and_tuned_on_those_pictures_only(context, other):
    data = context.data(OTHER_DATA)
    plain = data.fit.pixels[np.arange(len(other.train))].numpy() + np.asarray(context.pca_basis().mean)
    stored = other.train.take(np.arange(len(other.train))).reshape(len(other.train), -1) / 127.5 - 1
    np.testing.assert_allclose(plain, stored, atol=1e-5)
    np.testing.assert_array_equal(data.fit.z[: len(other.train)].numpy(), context.other.codes["train"])
    assert len(data.tune) == len(other.val)
    values = data.fit.target.values[: len(other.train)].numpy()
    np.testing.assert_allclose(values, context.pca_basis().project(stored.astype(np.float32)), atol=1e-4)
    np.testing.assert_array_equal(data.score.identity, context.dataset.test.identity)


def test_other_data_add_a_variant_that_reaches_other_processes(context, other):
    specs = attack_specs(SMALL, context.dataset, other=other)
    assert [spec.variant for spec in specs if spec.counts] == ["leaked", "fresh", "queries_40", "queries_100", OTHER_DATA]
    again = pickle.loads(pickle.dumps(context)).data(OTHER_DATA)
    np.testing.assert_array_equal(again.fit.target.values.numpy(), context.data(OTHER_DATA).fit.target.values.numpy())


def test_threat_model_names_the_other_attackers(context, other):
    sentences = threat_model(context)["attacker"]
    assert "Variant 'queries_40': she can only query. She has the codes of 40 pictures (30 to fit on, 10 to tune on)" in sentences
    assert f"but {len(other.train) + len(other.val)} of another data set" in sentences
    assert "other_data" not in threat_model(replace(context, other=None))["attacker"]


def test_other_data_that_do_not_fit_the_encoder_are_refused(tiny_config, dataset, folder, tmp_path):
    config = replace(tiny_config, attacks=replace(SMALL, attacker_data=folder))
    with pytest.raises(InputError, match="the encoder takes pictures of 28 x 28 x 1, and own pictures have 3 channels"):
        load_other(config, replace(dataset, image_shape=(28, 28, 1)), noise=0)
    with pytest.raises(InputError, match=r"the release has noise \(0\.5\), with which it is not measured: leave it out"):
        load_other(config, dataset, noise=0.5)
    with pytest.raises(InputError, match="attacks.attacker_data: .* has no pictures"):
        load_other(replace(config, attacks=replace(SMALL, attacker_data=tmp_path)), dataset, noise=0)
    with pytest.raises(InputError, match="attacks.attacker_data: .* does not exist"):
        load_other(replace(config, attacks=replace(SMALL, attacker_data=tmp_path / "absent")), dataset, noise=0)


def test_comparison_with_other_data_is_refused(tiny_config, folder):
    with pytest.raises(InputError, match="the mechanisms of a comparison make codes of its own pictures only"):
        ReproduceJob(config=replace(tiny_config, attacks=replace(SMALL, attacker_data=folder)))
