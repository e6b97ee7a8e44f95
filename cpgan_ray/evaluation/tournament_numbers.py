"""The numbers of a tournament: the metrics that a run logs, its part of `report.json`, and the warning that it has failed."""

import dataclasses
from typing import Any

import numpy as np

from cpgan_ray.common.types import Metrics
from cpgan_ray.evaluation.bounds.words import all_words
from cpgan_ray.evaluation.degenerate import ReportWarning, failed_attacks
from cpgan_ray.evaluation.scoring import Difference, Score
from cpgan_ray.evaluation.tournament import ScoredAttack, TournamentResult


def failed_tournament(result: TournamentResult) -> ReportWarning | None:
    """A warning if the attacks on z find less than an attack on the answers; see `TournamentResult.weaker_than_answers`."""
    if result.answers_floor is None or not result.weaker_than_answers:
        return None
    return failed_attacks(r2=result.strongest.score.r2, answers_r2=result.answers_floor.score.r2)


def metrics(result: TournamentResult) -> Metrics:
    """The metrics that a run logs for a tournament: for each attack, those of its stronger variant."""
    values: Metrics = {
        "privacy/strongest_r2": result.strongest.score.r2,
        "privacy/strongest_r2_low": result.strongest.score.low,
        "privacy/strongest_r2_high": result.strongest.score.high,
        "privacy/val_r2": result.val_r2,
        "privacy/label_floor_r2": result.floor.score.r2,
        **with_ends("privacy/label_excess_r2", result.label_excess),
    }
    if result.answers_floor is not None and result.excess is not None:
        values |= with_ends("privacy/answers_floor_r2", result.answers_floor.score) | with_ends("privacy/excess_r2", result.excess)
    if (face := result.strongest_on_face) is not None:
        ends = {"": face.score.face_r2, "_low": face.score.face_low, "_high": face.score.face_high}
        values |= {f"privacy/strongest_r2_face{end}": value for end, value in ends.items() if value is not None}
    rate = result.rate
    values["code/bits_raw"] = rate.raw
    if rate.bits is not None and rate.low is not None and rate.high is not None:
        values |= {"code/bits": rate.bits, "code/bits_low": rate.low, "code/bits_high": rate.high}
    if rate.val_bits is not None:
        values["code/val_bits"] = rate.val_bits
    if (cap := result.bounds.tightest) is not None:
        values |= {"privacy/bound_r2": cap.r2, "privacy/bound_r2_low": cap.low, "privacy/bound_r2_high": cap.high}
    if result.bounds.information is not None:
        values["privacy/bound_bits"] = result.bounds.information
    for a in reversed(result.attacks):  # the stronger variant of an attack is written last
        values |= {
            f"attack/{a.spec.name}/{key}": value
            for key in ("r2", "mse_255", "mse_raw")
            if (value := getattr(a.score, key)) is not None
        }
        values |= {f"attack/{a.spec.name}/seconds": a.attack.seconds}
    values |= result.identity.metrics()
    values |= {} if result.generative is None else result.generative.metrics()
    others = [a.scaled_accuracy for a in result.attributes if not (a.task or a.late)]
    if others:
        values["privacy/other_attributes"] = float(np.mean(others))
    return values


def with_ends(name: str, value: Score | Difference) -> Metrics:
    """A number and the ends of its interval as metrics."""
    return {name: value.r2, f"{name}_low": value.low, f"{name}_high": value.high}


MARGIN = 0.01
"""Largest excess that counts as none: two numbers of R2 within it are called equivalent. Stated before any measurement."""


def excess_as_json(excess: Difference) -> dict[str, Any]:
    """The report's entry on an excess over a floor: value, 95 % interval, and what follows from it.

    `equivalent`: the interval lies within the margin on both sides of 0, so an excess as large as the margin is excluded; else
    `more` or `less` if it does not contain 0; else `undecided`.
    """
    if max(-excess.low, excess.high) <= MARGIN:
        verdict = "equivalent"
    else:
        verdict = "more" if excess.low > 0 else "less" if excess.high < 0 else "undecided"
    return {"r2": excess.r2, "low": excess.low, "high": excess.high, "margin": MARGIN, "verdict": verdict}


def as_json(result: TournamentResult) -> dict[str, Any]:
    """The tournament's part of `report.json`."""

    def row(a: ScoredAttack) -> dict[str, Any]:
        values = {name: value for name, value in dataclasses.asdict(a.score).items() if value is not None}
        fitted = a.attack.fitted
        return {
            "name": a.spec.name,
            "variant": a.spec.variant,
            "share": a.spec.share,
            **values,
            "saturated": result.is_saturated(a),
            "seconds": round(a.attack.seconds, 2),
            "rows": a.attack.rows,
            "tune_r2": fitted.tune_r2,
            "budgets": [list(b) for b in fitted.budgets],
            "curve": [round(r2, 5) for r2 in fitted.curve],
            "settings": fitted.settings,
        }

    best, face = result.strongest, result.strongest_on_face
    return {
        "privacy": {
            "strongest": {
                "attack": best.spec.name,
                "variant": best.spec.variant,
                **{name: getattr(best.score, name) for name in ("r2", "low", "high")},
            },
            "strongest_face": None
            if face is None
            else {
                "attack": face.spec.name,
                "variant": face.spec.variant,
                **{name: getattr(face.score, f"face_{name}") for name in ("r2", "low", "high")},
            },
            "val_r2": result.val_r2,
            "label_floor_r2": result.floor.score.r2,
            "answers_floor_r2": None if result.answers_floor is None else result.answers_floor.score.r2,
            "excess": None if result.excess is None else excess_as_json(result.excess),
            "label_excess": excess_as_json(result.label_excess),
            "weaker_than_answers": result.weaker_than_answers,
            "linear_code_r2": result.linear_code_r2,
        },
        "code": dataclasses.asdict(result.rate),
        "bounds": result.bounds.as_json() | {"words": all_words(result.bounds, result.rate)},
        "attacks": [row(a) for a in result.attacks],
        "label_floor": row(result.floor),
        "answers_floor": None if result.answers_floor is None else row(result.answers_floor),
        "sweep": [row(a) for a in result.sweep],
        "identity_linkage": {name: dataclasses.asdict(value) for name, value in result.identity.linkage.items()},
        "identification": result.identity.as_json(),
        "generative": None if result.generative is None else result.generative.as_json(),
        "attributes": [dataclasses.asdict(a) for a in result.attributes],
        "several_codes": [dataclasses.asdict(s) for s in result.several_codes],
        "learning_curves": {name: dataclasses.asdict(curve) for name, curve in result.learning_curves.items()}
        | (
            {}
            if result.learning_excess is None
            else {"excess": dict(zip(("r2", "low", "high"), result.learning_excess, strict=True))}
        ),
    }
