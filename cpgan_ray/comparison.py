"""Mechanisms held against each other: one cell is a mechanism at one setting under one seed, and what fresh attacks make of it.

All cells of a comparison have the same data set, backbone, longest code and attacks; a seed is the same for all of them, so that
differences are taken in pairs.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray import theory
from cpgan_ray.common.atomic_io import atomic_path, make_folder, write_text
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.gaussian import mixture
from cpgan_ray.evaluation.degenerate import code_warnings, says_nothing
from cpgan_ray.evaluation.fitting import Material, entries, in_process, trained_against
from cpgan_ray.evaluation.panels import verdict_panels
from cpgan_ray.evaluation.scoring import RowErrors, interval
from cpgan_ray.evaluation.tournament import Verdict, as_json, judge
from cpgan_ray.frontier import (
    Estimate,
    Recommendation,
    Reference,
    Trial,
    across,
    finite,
    hypervolume,
    mean,
    points,
    spearman,
)
from cpgan_ray.judging import degenerate, utility_of
from cpgan_ray.mechanisms import MECHANISMS, Released
from cpgan_ray.mechanisms.base import samples
from cpgan_ray.process import set_up_process

CELL = "cell.json"
OURS = "cpgan"
TOLERATED_LOSS = 0.01
"""Accuracy that the recommended setting may give up."""
NO_NOISE = 1e-6
"""Share of a code's variance that rounding to float32 may make."""
UNDEFENDED = "bottleneck"
"""Whose setting of full length is the undefended twin: the same network, trained for the task alone."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training that a comparison needs."""

    mechanism: str
    setting: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mechanism}-{self.setting:g}-{self.seed}"


def play(cell: Cell, config: Config, folder: Path) -> None:
    """Make the codes, attack them, and leave `cell.json`, written last, `errors.npz` and pictures in the cell's folder.

    A training that diverges is a result too: `cell.json` then says how it failed.
    """
    started = time.perf_counter()
    set_up_process(threads=config.runtime.threads or 1)
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    make_folder(make_folder(folder.parent) / folder.name)
    mechanism = MECHANISMS[cell.mechanism]
    dataset = load(config, progress=False)
    seeded = dataclasses.replace(config, seed=cell.seed)
    try:
        released = mechanism.release(seeded, cell.setting, dataset)
    except FloatingPointError as e:
        write(folder, {"cell": asdict(cell), "failed": str(e)})
        return
    material = Material(dataset, released.codes, config.attacks, cell.seed, trained_against(config), config.data.labels)
    warnings = code_warnings(released.codes, dataset, config.data.labels, logits=released.logits, seed=cell.seed)
    todo = entries(config.attacks, dataset, brief=says_nothing(warnings))
    verdict = judge(in_process(todo, material, done=lambda made: None), material)
    utility = utility_of(released.logits, dataset, config.data.labels, seed=cell.seed)
    values = {"cell": asdict(cell), "k": released.codes["test"].shape[1], "utility": utility, **as_json(verdict)}
    values |= {"warnings": [asdict(warning) for warning in warnings]}
    values |= {"direct": direct(released, dataset, verdict, seed=cell.seed), "data": dataset.digest}
    if config.data.dataset == "gaussian":
        values["theory"] = held_to_theory(released, dataset, values, seed=config.data.mixture_seed)
    values |= {"seconds": round(time.perf_counter() - started, 1)}
    for name, picture in verdict_panels(verdict, material, undefended=None).items():
        with atomic_path(folder / f"{name}.png") as temporary:
            picture.save(temporary, "PNG")
    rows = verdict.strongest.errors
    with atomic_path(folder / "errors.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, errors=rows.errors, mean_errors=rows.mean_errors, identity=rows.identity)
    write(folder, values)


def write(folder: Path, values: Mapping[str, Any]) -> None:
    write_text(folder / CELL, json.dumps(values, indent=1) + "\n")


def direct(released: Released, dataset: Dataset, verdict: Verdict, *, seed: int) -> dict[str, float] | None:
    """R2 of the code itself as a reconstruction, where it is a sample: no attack at all, but it may be the strongest."""
    if released.direct is None:
        return None
    rows = verdict.strongest.errors
    errors = np.square(released.direct - samples(dataset, "test"), dtype=np.float64).mean(axis=1)
    found = RowErrors(errors, rows.mean_errors, rows.identity)
    low, high = interval(found, seed=seed)
    return {"r2": found.r2, "low": low, "high": high}


def held_to_theory(released: Released, dataset: Dataset, values: Mapping[str, Any], *, seed: int) -> dict[str, float]:
    """How a code of the Gaussian mixture stands to the best one possible, by the population's moments.

    `accuracy`, `mse`: of the best classifier and the best linear attack on a linear code's directions, which are found from the
    codes themselves, with what these do not explain as its noise; `shortfall`: of this MSE below the frontier's at this accuracy.
    `measured_shortfall`: of the strongest fresh attack's below the exact attacker's frontier at the measured accuracy, which may be
    off by 0.005.
    `exact_mse`, `exact_shortfall`: the same of the best attack of any kind, of one number without noise.
    """
    drawn = mixture(seed)
    moments = theory.population_moments(drawn.mean, within=drawn.covariance)
    x, z = (v.astype(np.float64) for v in (samples(dataset, "train"), released.codes["train"]))
    directions, noise_variance = linear_code(x * dataset.nature.unit, z)
    accuracy = theory.bayes_accuracy(directions, mean=moments.mean, within=moments.within, noise_variance=noise_variance)
    mse = theory.lmmse(directions, total=moments.total, noise_variance=noise_variance)
    short = float(theory.shortfall([accuracy], [mse], moments=moments)[0])
    found, fresh = values["utility"]["accuracy"], min(a["mse_raw"] for a in values["attacks"])
    measured = theory.shortfall([found], [fresh], moments=moments, attacker="exact", accuracy_tolerance=0.005)
    told = {"accuracy": accuracy, "mse": mse, "shortfall": short, "measured_accuracy": found, "measured_mse": fresh}
    told |= {"measured_shortfall": float(measured[0])}
    if len(directions) == 1 and noise_variance == 0:
        exact = theory.mmse(directions[0], mean=moments.mean, within=moments.within)
        told |= {"exact_mse": exact}
        told |= {"exact_shortfall": float(theory.shortfall([accuracy], [exact], moments=moments, attacker="exact")[0])}
    return told


def linear_code(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, float]:
    """A (k, d) and s^2 of codes z = A x + noise of covariance s^2 I, as good as (N, k) codes z of samples x (N, d): of noisy ones
    those made white by their noise, s = 1; of others themselves, s = 0."""
    x, z = x - x.mean(axis=0), z - z.mean(axis=0)
    directions = np.linalg.lstsq(x, z, rcond=None)[0].T
    left = z - x @ directions.T
    if np.square(left).mean() <= NO_NOISE * np.square(z).mean():
        return directions, 0.0
    return np.linalg.solve(np.linalg.cholesky(left.T @ left / len(left)), directions), 1.0


def strongest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a cell's attacks, and the code itself where it is a sample, the one that recovers most."""
    best = values["privacy"]["strongest"]
    itself = values["direct"]
    return best if itself is None or itself["r2"] <= best["r2"] else {"attack": "itself", "variant": "", **itself}


def field_of(mechanism: str) -> str:
    """The field that a mechanism's knob sets: of a share of k the length that it comes to."""
    known = MECHANISMS[mechanism]
    return "k" if known.length else known.knob


def trial(values: Mapping[str, Any], folder: Path) -> Trial:
    """A cell as a place in the plane of accuracy and R2."""
    cell, best, utility = Cell(**values["cell"]), strongest(values), values["utility"]
    field = field_of(cell.mechanism)
    return Trial(
        name=cell.name,
        method=cell.mechanism,
        setting={field: values["k"] if field == "k" else cell.setting},
        seed=cell.seed,
        state="finished",
        accuracy=utility["accuracy"],
        accuracy_low=utility["accuracy_low"],
        accuracy_high=utility["accuracy_high"],
        strongest_r2=best["r2"],
        strongest_r2_low=best["low"],
        strongest_r2_high=best["high"],
        attack=best["attack"],
        val_accuracy=utility["val_accuracy"],
        val_r2=values["privacy"]["val_r2"],
        majority_accuracy=utility["majority_accuracy"],
        label_floor_r2=values["privacy"]["label_floor_r2"],
        seconds=values["seconds"],
        output=str(folder),
        data=values["data"],
        degenerate=next(iter(degenerate(values)), None),
    )


# What the cells amount to


def volumes(trials: Sequence[Trial], reference: Reference) -> dict[str, dict[int, float]]:
    """Mechanism -> seed -> hypervolume under that seed of the settings that it was played at under all of its seeds; none of a
    mechanism without such a setting."""
    found: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(t.method for t in trials):
        mine = [t for t in trials if t.method == method]
        seeds = {t.seed for t in mine}
        always = [t for t in mine if {other.seed for other in mine if other.setting == t.setting} == seeds]
        if always:
            found[method] = {s: hypervolume(points([t for t in always if t.seed == s]), reference) for s in sorted(seeds)}
    return found


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """Mean difference over the seeds that both have, with Student's 95 % interval."""
    shared = sorted(one.keys() & other.keys())
    return across([Estimate(one[seed] - other[seed]) for seed in shared]) if shared else Estimate(None)


def findings(cells: Sequence[Mapping[str, Any]], trials: Sequence[Trial], reference: Reference) -> dict[str, Any]:
    """Hypervolumes with paired differences, the utility gap and excess R2 of the recommended setting, who attacks best, whether the
    knob tunes: the numbers behind the claims."""
    by_method = volumes(trials, reference)
    ours = by_method.get(OURS, {})
    told: dict[str, Any] = {
        "hypervolume": {method: across([Estimate(v) for v in seeds.values()])._asdict() for method, seeds in by_method.items()},
        "ours_less": {method: paired(ours, seeds)._asdict() for method, seeds in by_method.items() if method != OURS},
        "gap": gap(trials),
        "strongest_attacks": winners(cells),
        "neural_less_closed_form": neural_gain(cells),
        "spearman": knob_correlations(trials),
    }
    return finite(told)


def twins_of(trials: Sequence[Trial]) -> dict[int, Trial]:
    """Seed -> the undefended twin: the same network with the longest code."""
    undefended = [t for t in trials if t.method == UNDEFENDED]
    longest = max((t.setting["k"] for t in undefended), default=None)
    return {t.seed: t for t in undefended if t.setting["k"] == longest}


def recommended(trials: Sequence[Trial]) -> Recommendation | None:
    """Of our settings that lose at most `TOLERATED_LOSS` to the undefended twin the one with the smallest R2; where none does, the
    most accurate one. All on the validation split, means over seeds; None without a twin."""
    playable = [p for p in points([t for t in trials if t.method == OURS]) if not p.degenerate]
    ours = [p for p in playable if p.val_accuracy is not None and p.val_r2 is not None]
    twin = mean(t.val_accuracy for t in twins_of(trials).values())
    if twin is None or not ours:
        return None
    close = [p for p in ours if (p.val_accuracy or 0.0) >= twin - TOLERATED_LOSS]
    if close:
        rule = f"smallest validation R2 among settings whose validation accuracy is at least {twin - TOLERATED_LOSS:.3f}"
        return Recommendation(point=min(close, key=lambda p: p.val_r2 or 0.0), rule=rule)
    return Recommendation(point=max(ours, key=lambda p: p.val_accuracy or 0.0), rule="largest validation accuracy")


def gap(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """At the recommended setting: accuracy below the undefended twin's, and R2 above the label floor; paired over seeds."""
    chosen = recommended(trials)
    if chosen is None:
        return None
    at = {t.seed: t for t in trials if t.name in chosen.point.trials}
    twins = twins_of(trials)

    def numbers(some: Mapping[int, Trial], name: str) -> dict[int, float]:
        return {seed: getattr(t, name) for seed, t in some.items()}

    return {
        "setting": next(iter(chosen.point.setting.values())),
        "rule": chosen.rule,
        "accuracy": across([Estimate(t.accuracy) for t in at.values()])._asdict(),
        "strongest_r2": across([Estimate(t.strongest_r2) for t in at.values()])._asdict(),
        "undefended_accuracy": across([Estimate(t.accuracy) for t in twins.values()])._asdict(),
        "undefended_r2": across([Estimate(t.strongest_r2) for t in twins.values()])._asdict(),
        "utility_loss": paired(numbers(twins, "accuracy"), numbers(at, "accuracy"))._asdict(),
        "excess_r2": paired(numbers(at, "strongest_r2"), numbers(at, "label_floor_r2"))._asdict(),
    }


def winners(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Mechanism -> attack -> in how many cells it was the strongest."""
    found: dict[str, dict[str, int]] = {}
    for values in cells:
        counts = found.setdefault(values["cell"]["mechanism"], {})
        name = strongest(values)["attack"]
        counts[name] = counts.get(name, 0) + 1
    return found


NEURAL = ("mlp", "decoder", "resnet_decoder")


def neural_gain(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mechanism -> best neural R2 less the best of the others, over its cells; claim C4 says that this is not always above 0."""
    found: dict[str, list[Estimate]] = {}
    for values in cells:
        r2 = {a["name"]: a["r2"] for a in values["attacks"]}
        sides = [[v for n, v in r2.items() if (n in NEURAL) == side] for side in (True, False)]
        if all(sides):
            found.setdefault(values["cell"]["mechanism"], []).append(Estimate(max(sides[0]) - max(sides[1])))
    return {method: across(gains)._asdict() for method, gains in found.items()}


def knob_correlations(trials: Sequence[Trial]) -> dict[str, dict[str, float | None]]:
    """Mechanism -> Spearman's rank correlation of its knob with accuracy and with R2, over the means of its settings."""
    found = {}
    for method in dict.fromkeys(t.method for t in trials):
        mine = points([t for t in trials if t.method == method])
        found[method] = {of: spearman(mine, field_of(method), of) for of in ("accuracy", "strongest_r2")}
    return found
