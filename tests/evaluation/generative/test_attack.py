"""Tests of the generative attack on small procedural faces whose code shows part of the picture."""

import dataclasses
import json

import numpy as np
import pytest

from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.config import AttackConfig, Config
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.evaluation.fitting import FLOOR, AttackSpec, EvaluationContext, fit_in_process
from cpgan_ray.evaluation.generative.attack import DRAWS, SHOWN, GenerativeAttack, attack_by_draws
from cpgan_ray.evaluation.generative.controls import CONTROLS
from cpgan_ray.evaluation.generative.flow import FlowSettings
from cpgan_ray.evaluation.report.panels import attack_panels
from cpgan_ray.evaluation.tournament import TournamentResult, identity_judge, score_attacks
from cpgan_ray.evaluation.tournament_numbers import as_json, metrics

SMALL = AttackConfig(
    names=("ridge", "kernel"),
    fit_fractions=(),
    attributes=False,
    similarity=False,
    variants=("leaked",),
    num_shifted=0,
    answers_floor=False,
)
FLOW = FlowSettings(width=32, blocks=1, epochs=4)


def encode(x: np.ndarray) -> np.ndarray:
    """Small pictures as codes. x: (B, C, H, W)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 8, 8, w // 8, 8).mean(axis=(3, 5)).reshape(b, -1).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tiny_config: Config) -> Dataset:
    return load(tiny_config, progress=False)


@pytest.fixture(scope="module")
def context(dataset: Dataset) -> EvaluationContext:
    codes = {}
    for name, code_set in code_sets(dataset).items():
        codes[name] = encode(np.concatenate(list(code_set.blocks())).transpose(0, 3, 1, 2))
    return EvaluationContext(dataset, codes, SMALL, seed=0)


@pytest.fixture(scope="module")
def result(context: EvaluationContext) -> TournamentResult:
    specs = [AttackSpec(name, variant) for variant in ("leaked", FLOOR) for name in ("ridge", "kernel")]
    fitted = fit_in_process(specs, context, done=lambda _: None)
    result = score_attacks(fitted, context)
    best = {"strongest": result.strongest.attack, "floor": result.floor.attack}
    judge = identity_judge(context, context.data("leaked"))
    attack = attack_by_draws(context, fitted, **best, judge=judge, encode=encode, flow=FLOW)
    return dataclasses.replace(result, generative=attack)


@pytest.fixture(scope="module")
def attack(result: TournamentResult) -> GenerativeAttack:
    assert result.generative is not None
    return result.generative


def test_draws_are_more_similar_than_all_controls_that_do_not_know_the_code(attack):
    gains = {gain.control: gain for gain in attack.judgement.gains}
    assert gains.keys() == {*CONTROLS}
    for name in ("shuffled", "unconditional"):
        assert gains[name].likeness.low > 0
        assert gains[name].ssim.low > 0


def test_draws_count_neither_in_the_ranking_nor_in_the_strongest(result, attack):
    assert {a.spec.name for a in result.attacks} == {"ridge", "kernel"}
    assert "r2" not in json.dumps(attack.as_json())
    without = metrics(dataclasses.replace(result, generative=None))
    values = metrics(result)
    assert {name: values[name] for name in without} == without
    assert {name for name in values if name not in without} == {name for name in values if name.startswith("generative/")}


def test_all_generative_metrics_are_in_the_dictionary(result):
    names = {name for name in metrics(result) if name.startswith("generative/")}
    expected = {name.replace("<name>", control) for name in DICTIONARY if name.startswith("generative/") for control in CONTROLS}
    assert names == expected


def test_report_has_the_attack_and_the_panels_three_draws(result, context, attack):
    entry = json.loads(json.dumps(as_json(result)))["generative"]
    assert entry["draws"] == DRAWS and entry["selected"] and entry["pictures"] == len(context.dataset.test)
    assert [gain["control"] for gain in entry["gains"]] == [*CONTROLS]
    with_draws, without = (
        attack_panels(r, context, undefended=None)["pictures"].height
        for r in (result, dataclasses.replace(result, generative=None))
    )
    assert with_draws / without == pytest.approx((5 + SHOWN) / 5)


def test_attack_without_privatizer_does_not_select(context, result):
    fitted = [a.attack for a in result.attacks]
    best = {"strongest": result.strongest.attack, "floor": result.floor.attack}
    attack = attack_by_draws(context, fitted, **best, judge=None, encode=None, flow=dataclasses.replace(FLOW, epochs=1))
    assert attack is not None and not attack.selected and attack.judgement.judge is None
    kinds = {kind.name: kind for kind in attack.judgement.kinds}
    assert kinds["sample"].ssim == kinds["single"].ssim
