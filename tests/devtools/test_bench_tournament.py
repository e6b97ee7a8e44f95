"""Tests that the benchmark of a tournament measures the attacks that it is asked for."""

import numpy as np
import pytest

from cpgan_ray.config import AttackConfig, Config
from cpgan_ray.data import load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.devtools.bench.settings import Settings
from cpgan_ray.devtools.bench.tournament import context_of_run, measure_attacks
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, fit_attack

SMALL = AttackConfig(names=("ridge", "nearest"), fit_fractions=(), num_shifted=0)


@pytest.fixture(scope="module")
def context(tiny_config: Config) -> EvaluationContext:
    """Codes of four numbers: the mean of each quarter of a picture."""
    dataset = load(tiny_config, progress=False)
    codes = {}
    for name, part in code_sets(dataset).items():
        halves = part.take(slice(None)).mean(axis=3).reshape(len(part), 2, dataset.image_shape[0] // 2, 2, -1)
        codes[name] = halves.mean(axis=(2, 4)).reshape(len(part), 4).astype(np.float32)
    return EvaluationContext(dataset, codes, SMALL, seed=0, labels=("Male",))


def test_bench_tournament_reports_each_attack(context):
    result = measure_attacks(context, names=(), variant="leaked")
    assert set(result) == {f"{name}_{what}" for name in SMALL.names for what in ("cpu_s", "tune_r2", "r2")} | {"total_cpu_s"}
    assert result["total_cpu_s"] == pytest.approx(sum(result[f"{name}_cpu_s"] for name in SMALL.names))
    assert result["ridge_r2"] > 0.2


def test_bench_tournament_r2_is_that_of_the_attack(context):
    result = measure_attacks(context, names=("ridge",), variant="labels")
    spec = next(s for s in attack_specs(SMALL, context.dataset) if s.name == "ridge" and s.variant == "labels")
    assert result["ridge_tune_r2"] == fit_attack(spec, context).fitted.tune_r2


def test_bench_tournament_refuses_unknown_names_in_one_line(context, tmp_path):
    with pytest.raises(InputError, match="tournament_attacks has 'mpl'; variant 'leaked' of the run has ridge, nearest"):
        measure_attacks(context, names=("mpl",), variant="leaked")
    with pytest.raises(InputError, match="tournament_variant is 'leeked'; choose from leaked, labels, fresh"):
        measure_attacks(context, names=(), variant="leeked")
    with pytest.raises(InputError, match="tournament_attacks is only for"):
        Settings(tournament_attacks=("ridge",))
    with pytest.raises(InputError, match="has no config.json: give the output folder of a run"):
        context_of_run(tmp_path)
