"""Tests of the three disjoint sets of an evaluation."""

import dataclasses

import numpy as np
import pytest
import torch

from cpgan_ray.config.presets import preset
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.batching import pictures
from cpgan_ray.data.code_sets import set_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks.closed_form import ridge_attack
from cpgan_ray.evaluation.protocol import VARIANTS, attack_data, split_by_identity
from cpgan_ray.evaluation.scoring import score

torch.set_num_threads(1)


@pytest.fixture
def dataset(tiny) -> Dataset:
    return load(tiny(), progress=False)


def codes_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """Codes that identify their picture: split, row, and 1 if it is mirrored, 2 and 3 if it is a shifted copy."""
    codes = {}
    for i, name in enumerate(("train", "val", "test")):
        rows = np.arange(len(getattr(dataset, name)), dtype=np.float32)
        codes[name] = np.column_stack([np.full_like(rows, i), rows, np.zeros_like(rows)])
        for number, suffix in enumerate(("_mirrored", "_shifted1", "_shifted2"), 1):
            codes[f"{name}{suffix}"] = np.column_stack([np.full_like(rows, i), rows, np.full_like(rows, number)])
    return codes


def sets(dataset: Dataset, variant: str, **options):
    basis = projection(dataset, components=16, progress=False)
    return attack_data(dataset, codes_of(dataset), basis=basis, variant=variant, seed=0, shift=2, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"share": 0.5}, {"max_rows": 9}])
def test_attack_data_sets_are_disjoint(variant, options, dataset):
    data = sets(dataset, variant, **options)
    parts = [data.fit, data.tune, data.score]
    seen = [{(int(split), int(row)) for split, row, _ in part.z.tolist()} for part in parts]
    people = [set(part.identity.tolist()) for part in parts]
    for i in range(3):
        for j in range(i):
            assert seen[i] & seen[j] == set()
            assert people[i] & people[j] == set()


def test_attack_data_fresh_shares_nothing_with_defender(dataset):
    data = sets(dataset, "fresh")
    assert not (data.fit.z[:, 0] == 0).any()
    assert np.intersect1d(data.fit.identity, dataset.train.identity).size == 0
    leaked = sets(dataset, "leaked")
    assert (leaked.fit.z[:, 0] == 0).all()
    assert len(leaked.fit) == 2 * len(dataset.train)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attack_data_arrays_belong_to_same_row(variant, dataset):
    data = sets(dataset, variant)
    names = ("train", "val", "test")
    for part in (data.all_rows(), data.score):
        pixels = part.pixels[slice(None)].numpy()
        for i in range(0, len(part), 7):
            split, row, copy = (int(v) for v in part.z[i])
            stored = getattr(dataset, names[split])
            name = names[split] + ("", "_mirrored", "_shifted1", "_shifted2")[copy]
            picture = pictures(stored, set_batch(name, dataset, shift=2)[np.array([row])])[0]
            mean = np.asarray(projection(dataset, components=16, progress=False).mean)
            assert pixels[i] == pytest.approx(picture.ravel() / 127.5 - 1 - mean, abs=1e-5)
            assert part.identity[i] == stored.identity[row]
            assert part.target.values[i].numpy() == pytest.approx(data.components.numpy() @ pixels[i], abs=1e-3)
            energy = float((part.target.values[i] ** 2).sum() + part.target.residual[i])
            assert energy == pytest.approx(float(np.square(pixels[i]).sum()), rel=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attack_data_copies_are_of_the_same_pictures(variant, dataset):
    """Shifted copies of the pictures in `fit`, and for the refit the tuning rows with all their copies: nobody from the score
    set."""
    data = sets(dataset, variant, share=0.5)
    views, rows = data.fit_with_shifted(), data.all_rows()
    assert len(views) == 2 * len(data.fit)
    assert set(views.z[:, 1].tolist()) == set(data.fit.z[:, 1].tolist())
    assert len(rows) == len(views) + 4 * len(data.tune)
    assert set(rows.identity) == set(data.fit.identity) | set(data.tune.identity)
    assert set(rows.identity) & set(data.score.identity) == set()
    assert len(data.tune_with_mirrored()) == 2 * len(data.tune)


def test_attack_data_share_includes_mirror_images(dataset):
    data = sets(dataset, "leaked", share=0.1)
    rows, mirrored = data.fit.z[:, 1].numpy(), data.fit.z[:, 2].numpy()
    assert len(rows) == 2 * round(0.1 * len(dataset.train))
    assert sorted(rows[mirrored == 0]) == sorted(rows[mirrored == 1])


def test_stored_pixels_accept_slice_and_row_numbers(dataset):
    pixels = sets(dataset, "leaked").fit.pixels
    rows = torch.tensor([5, 0, 3])
    assert torch.equal(pixels[rows], pixels[slice(0, 6)][rows])


def test_split_by_identity_keeps_people_whole():
    identity = np.random.default_rng(0).integers(20, size=200)
    mine, kept = split_by_identity(identity, seed=1)
    assert sorted([*mine, *kept]) == list(range(200))
    assert set(identity[mine]) & set(identity[kept]) == set()
    assert len(set(identity[kept])) == 5
    assert not np.array_equal(kept, split_by_identity(identity, seed=2)[1])


def test_attack_data_person_in_two_sets_raises(dataset):
    crossed = dataset.test.identity.copy()
    crossed[0] = dataset.train.identity[0]
    object.__setattr__(dataset.test, "identity", crossed)
    with pytest.raises(InputError, match=rf"identity {crossed[0]} is in the attacks' fit set and in their score set"):
        sets(dataset, "leaked")


def test_attack_data_too_few_pictures_raises(dataset):
    with pytest.raises(InputError, match=r"'leaked' would be fitted on 1 pictures and tuned on \d+; each must be at least 4"):
        sets(dataset, "leaked", share=1e-4)


def test_attack_data_bounds_of_signals_and_pictures(dataset, tmp_path):
    """For a code far outside, a linear attack is as wrong as a guess within the bounds, not a million times more."""
    low, high = sets(dataset, "leaked").bounds
    assert (high - low).unique().tolist() == pytest.approx([2.0])
    config = preset("gaussian")
    mixture = load(dataclasses.replace(config, cache_dir=tmp_path), progress=False)
    basis = projection(mixture, components=DEFAULT_COMPONENTS, progress=False)
    x = {name: np.concatenate(list(getattr(mixture, name).iter_batches(1000))).reshape(-1, 32) for name in ("train", "val", "test")}
    codes = {name: rows[:, :1].astype(np.float32) for name, rows in x.items()}
    codes["test"][0] *= 1e6
    data = attack_data(mixture, codes, basis=basis, seed=0)
    seen = np.concatenate([x["train"], x["val"]]) - np.asarray(basis.mean)
    assert data.bounds is not None
    assert data.bounds[0].numpy() == pytest.approx(seen.min(axis=0), abs=1e-4)
    assert data.bounds[1].numpy() == pytest.approx(seen.max(axis=0), abs=1e-4)
    attack_score, rows = score(data, ridge_attack(data, config.attacks))
    assert attack_score.mse_raw is not None, "signals are in their own unit"
    assert rows.errors[0] < np.square(np.ptp(seen, axis=0)).mean()
    assert attack_score.r2 > 0
