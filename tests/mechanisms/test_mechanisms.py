"""Tests that each mechanism releases what the attacks need, and that its knob has the described effect."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray import theory
from cpgan_ray.common.codec import level_range
from cpgan_ray.common.process import torch_stream
from cpgan_ray.config import Config, NeuralConfig, ReproduceJob, override
from cpgan_ray.config.presets import for_comparison, preset
from cpgan_ray.data import Dataset, load, store, task_of
from cpgan_ray.data.batching import pictures, representative_rows, training_batch
from cpgan_ray.data.code_sets import DRAWS
from cpgan_ray.data.datasets.gaussian import mixture
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.mechanisms import MECHANISMS, base, games
from cpgan_ray.mechanisms.base import Encode, Standardised, samples, train_classifier
from cpgan_ray.mechanisms.games import feature_length, undefended_config
from cpgan_ray.mechanisms.noise import draw_noise
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.pipelines import teachers
from cpgan_ray.pipelines.reproduce import mechanisms
from cpgan_ray.pipelines.reproduce.grids import built_in
from cpgan_ray.pipelines.reproduce.job import cells, settings_of
from cpgan_ray.pipelines.reproduce.play import compare_with_theory, linear_code
from cpgan_ray.training.accuracy import accuracy
from cpgan_ray.training.inputs import corrupt_inputs, fit_whitening, to_input
from cpgan_ray.training.losses import distillation_loss, utility_loss
from cpgan_ray.training.teachers import read_answers
from tests.mixed import LABELS, mixed_config

NOISY = ("noise", "gaussian_noise", "answers_noisy")
"""Mechanisms that draw noise at their first setting."""
ROUNDED = [name for name in MECHANISMS if MECHANISMS[name].rounds]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    base = for_comparison(preset("digits"))
    data = dataclasses.replace(base.data, max_train_samples=600)
    config = dataclasses.replace(base, cache_dir=tmp_path_factory.mktemp("digits"), data=data, epochs=12, batch_size=100, k=6)
    return rounding(config, 0.0)


def rounding(config: Config, step: float) -> Config:
    return dataclasses.replace(config, privatizer=dataclasses.replace(config.privatizer, quantization_step=step))


@pytest.fixture(scope="module")
def dataset(config):
    return load(config, progress=False)


@pytest.fixture(scope="module")
def released(config, dataset):
    """Mechanism, setting -> `Released`, cached."""
    cache = {}

    def make(name, setting):
        if (name, setting) not in cache:
            cache[name, setting] = MECHANISMS[name].release(config, setting, dataset)
        return cache[name, setting]

    return make


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanism_releases_codes_and_logits_for_all_samples(name, released, dataset):
    release = released(name, MECHANISMS[name].settings[0])
    draws = {f"{split}_draw{i}" for split in ("train", "attacker") for i in range(1, DRAWS) if name in NOISY}
    assert set(release.codes) == {"train", "val", "test", "attacker"} | draws, "digits have no mirror images"
    for key, z in release.codes.items():
        assert z.shape == (len(dataset.splits[key.partition("_")[0]]), release.codes["train"].shape[1])
        assert z.dtype == np.float32
        assert np.isfinite(z).all()
    assert set(release.logits) == set(release.codes), "the answers floor needs the answers of all sets"
    for key, logits in release.logits.items():
        assert logits.shape == (len(release.codes[key]), 10)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", ["cpgan", "ran", "noise", "dca", "answers"])
def test_mechanism_on_mixed_labels_has_all_their_logits(name, config, tmp_path_factory):
    """One of each kind: a game, a training loop of its own, a classifier of noisy samples, directions computed from the labels."""
    mixed = mixed_config(dataclasses.replace(config, epochs=1), tmp_path_factory.getbasetemp() / "mixed")
    dataset = load(mixed, progress=False)
    task = task_of(dataset, LABELS)
    release = MECHANISMS[name].release(mixed, MECHANISMS[name].settings[0], dataset)
    for split, logits in release.logits.items():
        assert logits.shape == (len(release.codes[split]), 1 + 5 + 4) and np.isfinite(logits).all()
    if name == "dca":
        assert release.codes["train"].shape[1] == min(mixed.k, 1 + 4 + 3)
        assert (accuracy(release.logits["test"], task.answers(dataset.test), task) > 1 / np.array(task.num_values)).all()


@pytest.mark.parametrize("name", sorted(set(MECHANISMS) - {"random_projection"}))
def test_mechanism_learns_the_task(name, released, dataset):
    share_right = accuracy(released(name, MECHANISMS[name].settings[0]).logits["test"], dataset.test.labels, task_of(dataset, ()))[
        0
    ]
    assert share_right > 0.3, "a tenth is chance; twelve epochs on 300 digits are few"


@pytest.fixture(scope="module")
def documented() -> dict[str, dict[str, str]]:
    """The table of docs/baselines.md that shows how each mechanism is trained: mechanism -> column -> text."""
    page = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text().partition("## Equal conditions")[2]
    header, _, *rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return {row[0].strip("`"): dict(zip(header, row, strict=True)) for row in rows}


def test_documented_conditions_name_every_mechanism_and_its_knob(documented):
    assert {name: row["tuned"] for name, row in documented.items()} == {name: MECHANISMS[name].knob for name in MECHANISMS.built_in}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_codes_are_multiples_of_the_step(name, config, dataset, released, documented):
    """Multiples of 0.5 standard deviations of the code that is released."""
    setting = {"noise": 1.0, "gaussian_noise": 1.0, "resize": 1.0}.get(name, MECHANISMS[name].settings[0])
    release = MECHANISMS[name].release(dataclasses.replace(rounding(config, 0.5), epochs=2), setting, dataset)
    for key, z in release.codes.items():
        multiples = np.round(z / 0.5)
        assert multiples == pytest.approx(z / 0.5, abs=1e-4), key
        assert len(np.unique(multiples)) > 2, key
    trained_through = getattr(release.encoder, "step", 0.0) == 0.5
    assert documented[name]["rounding"] == ("in training" if trained_through else "before Bob")
    draws = 1 + len([key for key in release.codes if key.startswith("train_draw")])
    assert documented[name]["codes per picture for the attack"] == ("1" if draws == 1 else f"{draws} draws")
    unrounded = released(name, MECHANISMS[name].settings[0]).codes["test"]
    assert np.abs(unrounded / 0.5 - np.round(unrounded / 0.5)).max() > 0.1
    if name != "cpgan_paper":  # a ReLU unit that is always 0 stays 0
        assert release.codes["train"].std(axis=0) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("name", ["pca", "ran", "cpgan", "bottleneck"])
def test_rounded_codes_of_every_mechanism_have_the_levels(name, levels, config, dataset):
    finite = dataclasses.replace(config.privatizer, quantization_step=1.0, levels=levels)
    few = dataclasses.replace(config, privatizer=finite, epochs=1, game=dataclasses.replace(config.game, rate_weight=1e-4))
    codes = MECHANISMS[name].release(few, MECHANISMS[name].settings[0], dataset).codes
    lowest, highest = level_range(levels)
    assert set(np.unique(codes["test"])) <= set(np.arange(lowest, highest + 1.0))
    assert len(np.unique(codes["train"])) == levels


@pytest.mark.parametrize(("levels", "error"), [(0, 1 / 12), (2, None), (3, None)])
def test_rounded_samples_are_the_nearest_that_their_levels_stand_for(levels, error):
    codes = np.random.default_rng(0).normal(3.0, 2.0, (4000, 2)).astype(np.float32)
    standardised = Standardised.fit(codes, step=1.0, levels=levels, device=torch.device("cpu"))
    sent = standardised(torch.from_numpy(codes))
    values = standardised.inverse(torch.from_numpy(np.unique(sent.numpy())[:, None].repeat(2, 1).astype(np.float32))).numpy()[:, 0]
    nearest = values[np.abs(codes[:, :1] - values).argmin(axis=1)]
    assert standardised.inverse(sent).numpy()[:, 0] == pytest.approx(nearest, abs=1e-2)
    if error is not None:
        assert np.square(standardised.inverse(sent).numpy() - codes).mean() == pytest.approx(error * 4, rel=0.05)


def test_undefended_twin_has_no_part_of_the_defence(config):
    defence = {"utility.label_weights": {"digit": 0.1}, "privatizer.noise": 0.5, "privatizer.quantization_step": 1.0}
    plain = undefended_config(config)
    assert undefended_config(override(config, defence)) == plain
    levels = {"privatizer.quantization_step": 1.0, "privatizer.levels": 3, "game.rate_weight": 1e-4}
    assert undefended_config(override(config, levels)) == plain
    assert undefended_config(override(config, {"utility.train_teachers": 2})).utility.train_teachers == 2, "all learn from teachers"


def test_teachers_of_a_seed_are_trained_once_for_all_mechanisms(config, dataset, monkeypatch):
    trained, train = [], teachers.train_teacher
    monkeypatch.setattr(teachers, "train_teacher", lambda teacher, threads: trained.append(teacher) or train(teacher, threads))
    taught = override(config, {"utility.train_teachers": 1, "utility.teacher_weight": 1.0, "epochs": 1, "seed": 77})
    losses = []
    monkeypatch.setattr(base, "distillation_loss", lambda *args, **more: losses.append(1) or distillation_loss(*args, **more))
    for name, setting in (("cpgan", 1.0), ("pca", 1.0), ("pca", 0.5)):
        mechanisms.release(name, taught, setting, dataset)
    assert len(trained) == 1
    assert losses, "Bob of a mechanism without a game learns from the teachers, too"


def test_task_loss_mixes_labels_and_teachers(config, dataset):
    task, batch = task_of(dataset, ()), training_batch(0, dataset, config)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(len(batch.rows), task.num_logits)).astype(np.float32))
    taught = teachers.with_teachers(override(config, {"utility.train_teachers": 1, "epochs": 1, "seed": 77}), parallel=False)
    share = taught.utility.teacher_weight
    soft = read_answers(str(taught.utility.teacher_answers), dataset, task).of(batch)
    soft_loss = -(soft * torch.log_softmax(logits, dim=1).numpy()).sum(axis=1).mean()
    hard_loss = nn.functional.cross_entropy(logits, torch.from_numpy(task.answers(dataset.train)[batch.rows, 0]).long())
    for of, expected in ((config, float(hard_loss)), (taught, (1 - share) * float(hard_loss) + share * float(soft_loss))):
        assert float(base.task_loss(of, dataset, task, device=torch.device("cpu"))(logits, batch)) == pytest.approx(
            expected, rel=1e-5
        )


def test_head_of_rounded_codes_is_trained_on_rounded_codes(config, dataset, monkeypatch):
    seen = []

    def watched(net, encode, data, run, **more):
        x = torch.from_numpy(samples(dataset, "train").reshape(-1, 1, 8, 8))
        with torch.no_grad():
            seen.append(encode(x, np.random.default_rng(0)).numpy())
        return train_classifier(net, encode, data, run, **more)

    monkeypatch.setattr("cpgan_ray.mechanisms.base.train_classifier", watched)
    few = dataclasses.replace(rounding(config, 0.5), epochs=1)
    for name in ("pca", "dnn"):
        release = MECHANISMS[name].release(few, MECHANISMS[name].settings[0], dataset)
        assert np.array_equal(seen.pop(), release.codes["train"]), name


def poisoned(dataset: Dataset) -> Dataset:
    """The attacker's pictures, labels and identities in another order: whatever is fitted on them changes."""
    attacker = dataset.attacker
    assert attacker is not None
    assert attacker.stored_rows is not None
    backwards = dataclasses.replace(
        attacker, stored_rows=attacker.stored_rows[::-1], labels=1 - attacker.labels // 9, identity=attacker.identity[::-1]
    )
    return dataclasses.replace(dataset, attacker=backwards)


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanism_is_not_fitted_on_the_attackers_people(name, config, dataset, monkeypatch):
    """Changing the attacker's pictures changes nothing but the codes of these pictures."""
    few = dataclasses.replace(rounding(config, 0.5), epochs=1)
    setting = MECHANISMS[name].settings[0]
    first = MECHANISMS[name].release(few, setting, dataset)
    withhold = store.withhold
    monkeypatch.setattr(store, "withhold", lambda dataset, *, share: poisoned(withhold(dataset, share=share)))
    second = MECHANISMS[name].release(few, setting, poisoned(dataset))
    own = [key for key in first.codes if not key.startswith("attacker")]
    assert all(np.array_equal(first.codes[key], second.codes[key]) for key in own)
    assert all(np.array_equal(first.logits[split], second.logits[split]) for split in ("val", "test"))
    if name not in NOISY:
        assert np.array_equal(first.codes["attacker"], second.codes["attacker"][::-1])


@pytest.mark.parametrize(("name", "setting"), [("gaussian_noise", 1.0), ("noise", 1.0), ("resize", 1.0)])
def test_noise_differs_per_batch_and_draw_and_is_reproducible(name, setting, config, dataset, monkeypatch):
    """Bob's training sees a new draw in every batch; the same run draws the same noise again."""
    drawn: list[np.ndarray] = []

    def watched(shape, **more):
        noise = draw_noise(shape, **more)
        drawn.append(noise.numpy().ravel()[:6].copy())
        return noise

    monkeypatch.setattr("cpgan_ray.mechanisms.noise.draw_noise", watched)
    few = dataclasses.replace(config, epochs=2)
    first = MECHANISMS[name].release(few, setting, dataset)
    rounds, blocks = 2 * 3, 1 + 2 * 2 + (len(first.codes) - 4)
    assert len(drawn) >= rounds + blocks
    kinds = {tuple(noise) for noise in drawn}
    # codes of all sets again for Bob's answers, `test` once more for the picture itself, `train` for the fit of the rounding
    released_twice = {"gaussian_noise": len(first.codes) + 2, "noise": len(first.codes) + 2, "resize": 0}[name]
    assert len(kinds) == len(drawn) - released_twice, "no two batches, draws or splits share their noise"
    second = MECHANISMS[name].release(few, setting, dataset)
    assert all(np.array_equal(z, second.codes[key]) for key, z in first.codes.items())
    assert np.array_equal(first.logits["test"], second.logits["test"])


def test_draws_are_further_codes_of_the_same_samples(config, dataset):
    """The mean of several draws is nearer to the sample than one draw: by the square root of their number."""
    release = MECHANISMS["gaussian_noise"].release(dataclasses.replace(config, epochs=1), 1.0, dataset)
    x = samples(dataset, "train")
    draws = np.stack([release.codes[key] for key in ("train", *(f"train_draw{i}" for i in range(1, DRAWS)))])
    one, mean = (draws[0] - x).std(), (draws.mean(axis=0) - x).std()
    assert mean == pytest.approx(one / DRAWS**0.5, rel=0.02)


@pytest.mark.parametrize("name", ["pca", "ran", "laplace", "cpgan"])
def test_mechanism_with_the_same_seed_gives_the_same_codes(name, config, dataset, released):
    name, setting = ("noise", 0.5) if name == "laplace" else (name, MECHANISMS[name].settings[0])
    repeated = MECHANISMS[name].release(config, setting, dataset)
    other = MECHANISMS[name].release(dataclasses.replace(config, seed=1), setting, dataset)
    first = released(name, setting)
    assert np.array_equal(first.codes["test"], repeated.codes["test"])
    assert np.array_equal(first.logits["test"], repeated.logits["test"])
    assert not np.array_equal(first.logits["test"], other.logits["test"])


def test_pca_codes_are_the_standardised_coordinates(released, dataset):
    basis = projection(dataset, components=256, progress=False)
    z = released("pca", 1.0).codes["test"]
    x = (samples(dataset, "test") - basis.mean) @ basis.components[:6].T
    for one, other in zip(z.T, x.T, strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) == pytest.approx(1, abs=1e-4)
    assert released("pca", 0.5).codes["test"] == pytest.approx(z[:, :3], abs=1e-5)


def test_dca_codes_solve_the_eigenproblem(released, dataset):
    z = released("dca", 1.0).codes["train"].astype(np.float64)
    y = dataset.train.labels[:, 0]
    assert np.cov(z.T) == pytest.approx(np.eye(6), abs=0.02), "uncorrelated in the total scatter, except for its ridge"
    between = sum((y == c).mean() * np.outer(z[y == c].mean(0), z[y == c].mean(0)) for c in range(10))
    assert between == pytest.approx(np.diag(np.diag(between)), abs=0.02)
    assert (np.diff(np.diag(between)) <= 1e-3).all(), "the most discriminating first"


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_noise_has_the_given_deviation_and_differs_between_splits(kind):
    rngs = (np.random.default_rng(seed) for seed in (0, 1))
    one, other = (draw_noise((2000, 50), kind=kind, deviation=0.7, rng=rng).numpy() for rng in rngs)
    assert one.std() == pytest.approx(0.7, rel=0.01)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02
    kurtosis = (one**4).mean() / (one**2).mean() ** 2
    assert kurtosis == pytest.approx(6 if kind == "laplace" else 3, rel=0.1)


@pytest.mark.parametrize("name", ["noise", "gaussian_noise"])
def test_noisy_samples_have_noise_of_the_size_of_the_knob(name, released, dataset):
    basis = projection(dataset, components=512, progress=False)
    deviation = (basis.total_variance / len(basis.mean)) ** 0.5
    for knob in (0.5, 4.0):
        direct = released(name, knob).direct
        assert (direct - samples(dataset, "test")).std() == pytest.approx(knob * deviation, rel=0.04)


def test_dca_length_is_at_most_the_number_of_classes_minus_1(config, dataset):
    longer = dataclasses.replace(config, k=16)
    for share, length in ((1.0, 9), (0.5, 4), (0.125, 1)):
        assert MECHANISMS["dca"].release(longer, share, dataset).codes["test"].shape[1] == length


def test_comparison_has_every_code_length_once(config, dataset):
    job, grids = ReproduceJob(config=dataclasses.replace(config, k=3), num_settings=4), built_in()
    settings = [settings_of(name, job, dataset, grids, rounded=False) for name in ("pca", "noise")]
    assert settings == [[1.0, 0.5, 0.25], [0.5, 1.0, 2.0, 4.0]]
    tried = [cell.setting for cell in cells(job, dataset, grids) if cell.mechanism == "bottleneck" and cell.seed == 0]
    assert [MECHANISMS["bottleneck"].length(job.config, share, dataset) for share in tried] == [3, 2, 1]


def test_bottleneck_with_a_share_gives_a_shorter_code(released, config, dataset):
    assert released("bottleneck", 0.5).codes["test"].shape[1] == 3
    assert released("dnn", 0.0).codes["test"].shape[1] == feature_length(config.privatizer, dataset) == 32 * 2 * 2


def test_undefended_features_in_a_comparison_are_trained_once_per_seed(config, dataset, released, tmp_path, monkeypatch):
    trained, play = [], games.play_game

    def counted(run: Config):
        trained.append(run.seed)
        return play(run)

    expected = {name: released(name, setting) for name, setting in (("dnn", 0.0), ("resize", 2.0))}
    monkeypatch.setattr(games, "play_game", counted)
    for seed in (0, 1):
        seeded = dataclasses.replace(config, seed=seed, output=tmp_path)
        shared = {name: MECHANISMS[name].release(seeded, setting, dataset) for name, setting in (("dnn", 0.0), ("resize", 2.0))}
        for name, release in shared.items():
            same = [np.array_equal(z, release.codes[split]) for split, z in expected[name].codes.items()]
            same += [np.array_equal(z, release.logits[split]) for split, z in expected[name].logits.items()]
            assert same == [seed == 0] * len(same), name
    assert trained == [0, 1]


def test_resize_noise_is_in_standard_deviations_of_the_features(released):
    clean, noisy = (released("resize", noise).codes["train"] for noise in (0.0, 2.0))
    assert clean.std(axis=0) == pytest.approx(1, abs=1e-3)
    assert (noisy - clean).std() == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("name", "setting"), [("noise", 0.0), ("pca", 1.0), ("resize", 0.0)])
def test_classifier_inputs_are_augmented_like_the_game(name, setting, monkeypatch, cache_dir):
    """On faces, mirrored, shifted and with cutout: the input of a classifier in a round is the code of the game's pictures."""
    config = for_comparison(preset("smoke"))
    data = dataclasses.replace(config.data, max_shift_px=2, cutout=4)
    config = dataclasses.replace(rounding(config, 0.0), k=6, epochs=1, batch_size=20, cache_dir=cache_dir, data=data)
    dataset = load(config, progress=False)
    shown: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    encoders: list[Encode] = []

    def watched(net, encode, *rest, **more):
        encoders.append(encode)

        def recorded(x, rng):
            z = encode(x, rng)
            shown.append(x.permute(0, 2, 3, 1).flatten(1).numpy())
            codes.append(z.flatten(1).numpy())
            return z

        return train_classifier(net, recorded, *rest, **more)

    monkeypatch.setattr(f"cpgan_ray.mechanisms.{'noise' if name == 'noise' else 'base'}.train_classifier", watched)
    release = MECHANISMS[name].release(config, setting, dataset)
    batch = training_batch(0, dataset, config)
    assert batch.mirrored.any()
    assert (batch.shift != 0).any()
    expected = to_input(pictures(dataset.train, batch), torch.device("cpu"))
    expected = corrupt_inputs(expected, config, round=0, num_rows=20, local=slice(None))
    assert np.array_equal(shown[0], expected.permute(0, 2, 3, 1).flatten(1).numpy())
    if name == "noise":
        assert np.array_equal(codes[0], expected.flatten(1).numpy())
    if name == "pca":
        basis = projection(dataset, components=256, progress=False)
        for one, other in zip(codes[0].T, basis.components[:6] @ (shown[0] - basis.mean).T, strict=True):
            assert abs(np.corrcoef(one, other)[0, 1]) == pytest.approx(1, abs=1e-4)
    if name == "resize":  # computed by the encoder of the released codes, and not looked up by row
        plain = to_input(dataset.train.take(np.arange(len(dataset.train))), torch.device("cpu"))
        with torch.no_grad():
            again = encoders[0](plain, np.random.default_rng(0)).numpy()
        assert again == pytest.approx(release.codes["train"], abs=1e-4)
        moved = (batch.shift != 0).any(axis=1)
        assert np.abs(codes[0] - release.codes["train"][batch.rows])[moved].min(axis=0).max() > 1e-3


def test_ran_with_small_alpha_lowers_the_recovery(config, dataset, released):
    """At alpha = 0.02 the encoder works against the decoder: a ridge attack recovers less than at alpha = 1."""

    def ridge_r2(codes):
        x = {split: samples(dataset, split) for split in ("train", "test")}
        z = {split: np.c_[codes[split], np.ones(len(codes[split]))] for split in ("train", "test")}
        w = np.linalg.solve(z["train"].T @ z["train"] + np.eye(z["train"].shape[1]), z["train"].T @ x["train"])
        return 1 - ((z["test"] @ w - x["test"]) ** 2).sum() / ((x["test"] - x["train"].mean(0)) ** 2).sum()

    longer = dataclasses.replace(config, epochs=20, adversaries={"decoder": NeuralConfig(architecture="mlp", width=64)})
    r2 = {alpha: ridge_r2(MECHANISMS["ran"].release(longer, alpha, dataset).codes) for alpha in (1.0, 0.02)}
    assert r2[0.02] < r2[1.0]


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_ran_equals_its_definition(decay, config, dataset):
    """Repeats the definition: three times one step for the task and one step of the decoder, then one adversarial step. With a
    decay the released weights are the moving average of those after each batch."""
    alpha, epochs = 0.3, 2
    plain = dataclasses.replace(
        config,
        epochs=epochs,
        privatizer=dataclasses.replace(config.privatizer, family="linear", code_activation="raw", ema_decay=decay),
        utility=dataclasses.replace(config.utility, dropout=0.0),
        adversaries={"decoder": NeuralConfig(architecture="mlp", width=32, dropout=0.0)},
    )
    (settings,) = plain.adversaries.values()
    with torch_stream(plain.seed, "mechanism", "ran", "weights"):
        encoder = build_privatizer(plain.privatizer, k=plain.k, image_shape=dataset.image_shape)
        head = build_head(plain.utility, k=plain.k, num_logits=10, image_shape=dataset.image_shape)
        fit_whitening(encoder, dataset)
        decoder = build_reconstructor(settings, k=plain.k, image_shape=dataset.image_shape, target=64)
    mean = torch.from_numpy(np.array(projection(dataset, components=DEFAULT_COMPONENTS, progress=False).mean))
    task, encoder_parameters = task_of(dataset, ()), [*encoder.parameters(), *head.parameters()]
    task_optimiser, adversarial_optimiser = (
        torch.optim.Adam(encoder_parameters, lr=plain.privatizer.learning_rate) for _ in range(2)
    )
    rounds, averages = epochs * 3, list[torch.Tensor]()
    decoder_optimiser = torch.optim.Adam(decoder.parameters(), lr=settings.learning_rate)
    for round in range(rounds):
        batch = training_batch(round, dataset, plain)
        for optimiser in (task_optimiser, adversarial_optimiser):  # the cosine schedule of the game
            optimiser.param_groups[0]["lr"] = plain.privatizer.learning_rate * 0.5 * (1 + np.cos(np.pi * round / rounds))
        x = to_input(pictures(dataset.train, batch), torch.device("cpu"))
        target = x.permute(0, 2, 3, 1).flatten(1) - mean
        y = torch.from_numpy(dataset.train.labels[batch.rows])

        def step(optimiser, loss):
            for net in (encoder, head, decoder):
                net.zero_grad()
            loss.backward()
            optimiser.step()

        for _ in range(3):
            step(task_optimiser, utility_loss(head(encoder(x)), y, task))
            step(decoder_optimiser, nn.functional.mse_loss(decoder(encoder(x)), target))
        z = encoder(x)
        step(
            adversarial_optimiser, alpha * utility_loss(head(z), y, task) - (1 - alpha) * nn.functional.mse_loss(decoder(z), target)
        )
        now = [p.detach().clone() for p in encoder_parameters]
        averages = [decay * a + (1 - decay) * p for a, p in zip(averages, now, strict=True)] if averages else now
    with torch.no_grad():
        for parameter, average in zip(encoder_parameters, averages, strict=True):
            parameter.copy_(average)
    inputs = [
        to_input(dataset.train.take(rows), torch.device("cpu"))
        for rows in representative_rows(len(dataset.train), plain.batch_size)
    ]
    refresh_statistics(head, [encoder(x).detach() for x in inputs])
    release = MECHANISMS["ran"].release(plain, alpha, dataset)
    with torch.no_grad():
        codes = encoder(to_input(np.concatenate(list(dataset.test.iter_batches(500))), torch.device("cpu")))
        logits = head(codes)
    assert release.codes["test"] == pytest.approx(codes.numpy(), abs=1e-5)
    assert release.logits["test"] == pytest.approx(logits.numpy(), abs=1e-4)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Config, Dataset]:
    """The mixture, with few rows and few epochs."""
    base = for_comparison(preset("gaussian"))
    data = dataclasses.replace(base.data, max_train_samples=4000)
    config = dataclasses.replace(base, cache_dir=tmp_path_factory.mktemp("mixture"), data=data, epochs=10, batch_size=500)
    return config, load(config, progress=False)


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanism_on_the_mixture_is_not_better_than_the_theory(name, mixed):
    config, dataset = mixed
    release = MECHANISMS[name].release(config, MECHANISMS[name].settings[0], dataset)
    lengths = {"dnn": 24, "noise": 32, "gaussian_noise": 32}
    assert release.codes["test"].shape == (len(dataset.test), lengths.get(name, 1))
    comparison = compare_with_theory(release, dataset, {"utility": {"accuracy": 0.9}, "attacks": [{"mse_raw": 14.0}]}, seed=9)
    assert 0.5 <= comparison["accuracy"] < 0.98474, "the accuracy on the complete sample"
    assert comparison["shortfall"] > -1e-9
    assert 0 <= comparison["mse"] < 14.636, "the MSE of the mean sample"


def test_noisy_mixture_matches_the_theory_of_noisy_samples(mixed):
    config, dataset = mixed
    release = MECHANISMS["gaussian_noise"].release(config, 2.0, dataset)
    comparison = compare_with_theory(release, dataset, {"utility": {"accuracy": 0.9}, "attacks": [{"mse_raw": 14.0}]}, seed=9)
    data = mixture(9)
    moments = theory.population_moments(data.mean, within=data.covariance)
    noise_variance = 2.0**2 * np.trace(moments.total) / 32
    accuracy = theory.bayes_accuracy(np.eye(32), mean=moments.mean, within=moments.within, noise_variance=noise_variance)
    assert comparison["accuracy"] == pytest.approx(accuracy, abs=0.02)
    assert comparison["mse"] == pytest.approx(
        theory.lmmse(np.eye(32), total=moments.total, noise_variance=noise_variance), rel=0.05
    )


@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_linear_code_estimates_the_noise_of_a_code(deviation):
    samples_drawn = mixture(9)
    moments = theory.population_moments(samples_drawn.mean, within=samples_drawn.covariance)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 32))
    z = samples_drawn.x @ a.T + deviation * rng.standard_normal((len(samples_drawn.x), 3))
    fitted, noise_variance = linear_code(samples_drawn.x, z)
    accuracy = theory.bayes_accuracy(a, mean=moments.mean, within=moments.within, noise_variance=deviation**2)
    mse = theory.lmmse(a, total=moments.total, noise_variance=deviation**2)
    fitted_accuracy = theory.bayes_accuracy(fitted, mean=moments.mean, within=moments.within, noise_variance=noise_variance)
    assert fitted_accuracy == pytest.approx(accuracy, abs=2e-3)
    assert theory.lmmse(fitted, total=moments.total, noise_variance=noise_variance) == pytest.approx(mse, rel=2e-3)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_kernel"])
def test_game_on_the_mixture_reaches_the_frontier_of_its_adversaries(name, tmp_path_factory):
    """The theory gives how much the best linear attack and the best attack of any kind recover from a code of one number."""
    base = for_comparison(preset(name))
    data = dataclasses.replace(base.data, mixture_seed=10, attacker_share=0.0)
    config = dataclasses.replace(base, cache_dir=tmp_path_factory.mktemp(name), data=data, epochs=40)
    dataset = load(config, progress=False)
    release = MECHANISMS["cpgan"].release(config, 1.36, dataset)
    comparison = compare_with_theory(release, dataset, {"utility": {"accuracy": 0.9}, "attacks": [{"mse_raw": 14.0}]}, seed=10)
    if name == "gaussian":
        assert comparison["shortfall"] < 0.01
        assert comparison["exact_shortfall"] > 0.25
    else:
        assert comparison["exact_shortfall"] < 0.05
    assert comparison["accuracy"] > 0.85
