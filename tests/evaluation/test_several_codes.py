"""Tests of what several codes of one person give away, against numpy and on data where averaging must help."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ridge_attack
from cpgan_ray.evaluation.attacks.base import AttackData
from cpgan_ray.evaluation.several_codes import auc, groups_of, pooled_errors, several_codes

PEOPLE, PICTURES, VALUES = 200, 6, 12


@pytest.fixture(scope="module")
def noisy(data_of) -> AttackData:
    """Six pictures of each person: what they share plus their own part; the code is the picture with noise."""
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=(PEOPLE, VALUES)), PICTURES, axis=0)
    x = shared + 0.3 * rng.normal(size=shared.shape)
    z = x + 2 * rng.normal(size=x.shape)
    data = data_of(z, x)
    sets: dict[str, Any] = {}
    start = 0
    for name in ("fit", "tune", "score"):
        pairs = getattr(data, name)
        sets[name] = dataclasses.replace(pairs, identity=np.arange(start, start + len(pairs)) // PICTURES)
        start += len(pairs)
    return dataclasses.replace(data, views=1, **sets)


def test_groups_of_identity_are_disjoint_and_of_one_person():
    identity = np.array([3, 1, 3, 1, 3, 2, 3, 3])
    groups = groups_of(identity, 2)
    assert groups.tolist() == [[1, 3], [0, 2], [4, 6]]
    assert groups_of(identity, 2, once=True).tolist() == [[1, 3], [0, 2]]
    assert groups_of(identity, 6).shape == (0, 6)


def test_pooled_errors_match_numpy(noisy):
    attack = ridge_attack(noisy, AttackConfig())
    groups = groups_of(noisy.score.identity, 3)
    pooled, single = pooled_errors(noisy, attack, groups)
    x = noisy.score.pixels[slice(None)].double().numpy()[groups]
    x_hat = attack.reconstruct(noisy.score.z).double().numpy()[groups]
    assert pooled.errors == pytest.approx(np.square(x_hat.mean(1) - x.mean(1)).mean(1), rel=1e-4)
    assert pooled.mean_errors == pytest.approx(np.square(x.mean(1)).mean(1), rel=1e-4)
    assert single.errors == pytest.approx(np.square(x_hat - x).mean(2).ravel(), rel=1e-4)


def test_averaging_noisy_codes_recovers_more_and_links_better(noisy):
    two, five = several_codes(noisy, ridge_attack(noisy, AttackConfig()), numbers=(2, 5, 20))
    assert (two.codes, five.codes) == (2, 5), "nobody has twenty pictures"
    assert five.single_r2 < two.r2
    assert five.low > five.single_r2
    assert two.r2 < five.r2
    assert two.linkage_auc is not None and five.linkage_auc is not None and five.single_linkage_auc is not None
    assert five.single_linkage_auc < two.linkage_auc < five.linkage_auc
    assert five.linkage_low is not None and five.linkage_low < five.linkage_auc


def test_several_codes_of_too_few_people_are_left_out(noisy):
    few = dataclasses.replace(noisy, score=dataclasses.replace(noisy.score, identity=np.arange(len(noisy.score))))
    assert several_codes(few, ridge_attack(noisy, AttackConfig())) == []


def test_auc_matches_scikit_learn_and_ignores_repeated_people():
    scores = np.random.default_rng(1).normal(size=(30, 30)) + np.eye(30)
    truth = np.eye(30).astype(bool)
    assert auc(scores, np.arange(30)) == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()))
    assert auc(np.eye(3), np.array([0, 0, 1])) == 1.0, "a person drawn twice is not two people"
