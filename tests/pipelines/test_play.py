"""Tests of a cell of a comparison."""

import numpy as np

from cpgan_ray.config import AttackConfig
from cpgan_ray.data import load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.evaluation.fitting import FLOOR, AttackSpec, EvaluationContext, fit_attack
from cpgan_ray.pipelines.reproduce.play import floor_attacks


def test_floor_attacks_are_shared_by_cells_with_equal_labels_and_seed(tiny):
    dataset = load(tiny(), progress=False)
    attacks = AttackConfig(names=("ridge",), num_shifted=0, fit_fractions=())

    def context(k: int, *, seed: int = 0) -> EvaluationContext:
        codes = {name: np.zeros((len(part), k), np.float32) for name, part in code_sets(dataset, attacks=attacks, k=k).items()}
        return EvaluationContext(dataset, codes, attacks, seed)

    specs = [AttackSpec("ridge", FLOOR)]
    first = floor_attacks(specs, context(2))
    assert floor_attacks(specs, context(5)) is first, "they do not depend on the codes"
    assert floor_attacks(specs, context(5, seed=1)) is not first
    assert first[0].fitted.tune_r2 == fit_attack(specs[0], context(5)).fitted.tune_r2 > 0
