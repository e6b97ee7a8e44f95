"""Tests of the stack: its weights against a reference, and that it is never weaker than its members on the tuning rows."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, Mean, r2_score, to_pixels
from cpgan_ray.evaluation.attacks.stack import nonnegative_weights, stack_attack

torch.set_num_threads(1)

SETTINGS = AttackConfig(mlp_widths=(32,), epochs=8, max_budget_doublings=0)


@pytest.fixture(scope="module")
def data(data_of) -> AttackData:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1000, 4))
    x = np.sin(z @ rng.normal(size=(4, 12))) + 0.5 * rng.normal(size=(1000, 12))
    bounds = torch.full((12,), -2.0), torch.full((12,), 2.0)
    return dataclasses.replace(data_of(z, x, components=6), bounds=bounds)


@pytest.fixture(scope="module")
def members(data: AttackData) -> dict[str, Fitted]:
    return {name: ATTACKS[name](data, SETTINGS) for name in ("ridge", "kernel", "mlp", "nearest")}


@pytest.fixture(scope="module")
def stack(data: AttackData, members: dict[str, Fitted]) -> Fitted:
    return stack_attack(data, members)


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_the_nonnegative_least_squares_solution(seed):
    rng = np.random.default_rng(seed)
    a, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    a[:, 3] = a[:, 2] if seed == 4 else a[:, 3]  # two equal attacks
    weights = nonnegative_weights(a.T @ a, a.T @ y)
    reference = lsq_linear(a, y, bounds=(0, np.inf), tol=1e-12)
    assert weights.min() >= 0
    assert np.square(a @ weights - y).sum() == pytest.approx(np.square(a @ reference.x - y).sum(), rel=1e-6)


def test_weights_of_attacks_that_recover_nothing_are_zero():
    assert nonnegative_weights(np.zeros((3, 3)), np.zeros(3)).tolist() == [0, 0, 0]


def test_stack_is_never_weaker_than_its_members_on_tuning_rows(stack, members, data):
    assert stack.before_refit is not None
    assert stack.tune_r2 >= max(member.tune_r2 for member in members.values()) - 1e-6
    assert r2_score(data.tune, stack.before_refit, space="pixels") == pytest.approx(stack.tune_r2, abs=1e-4)


def test_stack_applies_its_weights_to_refitted_attacks(stack, members, data):
    weights = stack.settings["weights"]
    assert isinstance(weights, dict)
    expected = sum(weights[name] * to_pixels(data, member, data.score.z) for name, member in members.items())
    assert torch.allclose(to_pixels(data, stack, data.score.z), expected.clamp(-2, 2), atol=2e-3)
    assert torch.equal(pickle.loads(pickle.dumps(stack.reconstruct))(data.score.z), stack.reconstruct(data.score.z))


def test_stack_restart_uses_the_same_restart_of_each_member(members, data):
    mlp = dataclasses.replace(members["mlp"], averaged=True, reconstruct=Mean(members["mlp"].restarts))
    stack = stack_attack(data, {"ridge": members["ridge"], "mlp": mlp})
    assert stack.averaged
    assert len(stack.restarts) == len(mlp.restarts) == SETTINGS.restarts
    alone = [restart(data.score.z) for restart in stack.restarts]
    assert not torch.equal(*alone)
    assert torch.allclose((alone[0] + alone[1]) / 2, stack.reconstruct(data.score.z), atol=1e-3), "it is linear in its members"


def test_stack_does_not_read_score_rows(members, data):
    other = dataclasses.replace(data, score=dataclasses.replace(data.score, z=data.score.z + 1))
    assert stack_attack(other, members).settings == stack_attack(data, members).settings


def test_stack_of_unsaturated_attack_is_not_saturated(members, data):
    assert stack_attack(data, {name: dataclasses.replace(m, saturated=True) for name, m in members.items()}).saturated
    assert not stack_attack(data, members | {"mlp": dataclasses.replace(members["mlp"], saturated=False)}).saturated
