"""Tests of a cell of a comparison."""

from dataclasses import replace

import numpy as np

from cpgan_ray.analysis.cells import CELL, Cell, trial
from cpgan_ray.config import AttackConfig
from cpgan_ray.data import load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.evaluation.fitting import FLOOR, AttackSpec, EvaluationContext, fit_attack
from cpgan_ray.mechanisms import Released
from cpgan_ray.pipelines.reproduce.cell_attacks import attack, context_of, floor_attacks, tournament
from cpgan_ray.pipelines.reproduce.mechanisms import release
from cpgan_ray.pipelines.reproduce.play import play
from cpgan_ray.pipelines.reproduce.results import cell_metrics, read_cell, row, settings_table


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


def test_equal_hard_answers_are_attacked_once(tiny, tmp_path):
    config = replace(tiny("ridge", epochs=1, **{"data.labels": ("Smiling", "Eyeglasses")}), output=tmp_path)
    dataset = load(config, progress=False)

    def of(mechanism: str, setting: float, *, seed: int = 0) -> tuple[Released, EvaluationContext]:
        released = release(mechanism, replace(config, seed=seed), setting, dataset)
        cell = Cell(mechanism=mechanism, setting=setting, rounded=False, seed=seed)
        return released, context_of(released, cell, config, dataset)

    hard = attack(*of("answers", 1.0), brief=False)
    assert attack(*of("answers_subset", 1.0), brief=False) is hard
    alone = tournament(*of("answers_subset", 1.0), brief=False)
    assert [(a.spec, a.score) for a in alone.attacks] == [(a.spec, a.score) for a in hard.attacks]
    fewer = attack(*of("answers_subset", 0.5), brief=False)
    assert fewer.strongest.score.r2 != hard.strongest.score.r2
    assert attack(*of("answers_noisy", 0.3), brief=False).strongest.score.r2 < hard.strongest.score.r2
    assert attack(*of("answers", 1.0, seed=1), brief=False) is not hard


def test_cells_have_late_tasks_and_answers_gain_nothing_over_themselves(tiny, tmp_path):
    config = tiny("ridge", epochs=1, **{"data.labels": ("Smiling", "Eyeglasses"), "data.late_labels": ("Male",)})
    values = {}
    for mechanism, setting in (("answers", 1.0), ("bottleneck", 1.0)):
        cell = Cell(mechanism=mechanism, setting=setting, rounded=False, seed=0)
        play(cell, replace(config, output=tmp_path), tmp_path / "cells" / cell.name, {})
        values[mechanism] = read_cell(tmp_path / "cells" / cell.name / CELL)
    inputs = values["answers"]["late_tasks"]["inputs"]
    assert inputs["code"]["numbers"] == 2 and inputs["answers"]["gain"] == 0
    assert values["bottleneck"]["late_tasks"]["inputs"]["answers"]["numbers"] == 2
    of_code = values["bottleneck"]["late_tasks"]["inputs"]["code"]
    assert of_code["numbers"] == config.k
    cells = [*values.values()]
    trials = [trial(v, tmp_path) for v in cells]
    assert trials[1].late_balanced_accuracy == of_code["balanced_accuracy"]
    table = settings_table(cells, trials)
    assert "balanced accuracy of late tasks" in table and f"{of_code['balanced_accuracy']:.3f}" in table
    assert row(cells[1])["late_answers_gain"] == values["bottleneck"]["late_tasks"]["inputs"]["answers"]["gain"]
    assert cell_metrics(cells[1])["late/balanced_accuracy"] == of_code["balanced_accuracy"]
