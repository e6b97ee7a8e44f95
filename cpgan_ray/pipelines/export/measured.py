"""The numbers of a bundle, next to those of its run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.text import printable_values
from cpgan_ray.config import AttackConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.report import degeneracy_reasons

CLOSED_FORM = ("ridge", "kernel")
"""The attacks of the quick tournament: they take seconds, and equal codes give equal numbers."""
UTILITY = ("accuracy", "balanced_accuracy")


def quick_attacks(attacks: AttackConfig) -> AttackConfig:
    """Only the closed-form attacks of a run, with its settings; both if it had none."""
    names = tuple(name for name in CLOSED_FORM if name in attacks.names) or CLOSED_FORM
    return dataclasses.replace(
        attacks,
        names=names,
        fit_fractions=(),
        identity=False,
        attributes=False,
        similarity=False,
        generative=False,
        legacy=False,
        answers_floor=False,
    )


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run.

    Raises: InputError if there is none, or it does not have the numbers that a bundle is compared with.
    """
    path = folder / "report" / "report.json"
    if not path.is_file():
        raise InputError(f"{folder} has no report, with which a bundle is compared: give the output folder of a finished run")
    try:
        report = printable_values(read_json(path))
        numbers = numbers_of(report)
        for name in UTILITY:
            if not all(0 <= float(numbers[name + end]) <= 1 for end in ("", "_low", "_high")):
                raise ValueError(name)
        for row in [numbers["strongest"], *report["attacks"]]:
            if not float(row["r2"]) <= float(row["high"]) <= 1:
                raise ValueError("r2")
        degeneracy_reasons(report)
        return report
    except Exception as e:  # a damaged file may lead to any exception
        raise InputError(f"{path} is damaged ({type(e).__name__}): train that run again") from e


def numbers_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest repeats of a report."""
    utility = {name: report["utility"][name] for name in (*UTILITY, "majority_accuracy")}
    ends = {f"{name}_{end}": report["utility"][f"{name}_{end}"] for name in UTILITY for end in ("low", "high")}
    strongest = {key: report["privacy"]["strongest"][key] for key in ("attack", "variant", "r2", "low", "high")}
    return utility | ends | {"strongest": strongest, "attacks": sorted({row["name"] for row in report["attacks"]})}


def failures_of(run: Mapping[str, Any], bundle: Mapping[str, Any]) -> tuple[str, ...]:
    """The reasons why a bundle does not measure up to its run, from both reports; none if it does.

    Reasons are an accuracy below the 95 % interval of the run's; an R2 above the interval of the run's same attack (of the
    strongest one, if the run had none of the bundle's attacks); and a degenerate code if the run's is not.
    """
    reasons: list[str] = []
    for name in UTILITY:
        value, low = bundle["utility"][name], run["utility"][f"{name}_low"]
        if value < low:
            reasons.append(f"{name.replace('_', ' ')} {value:.4f}, below {low:.4f}, where the run's 95 % interval begins")
    strongest = bundle["privacy"]["strongest"]
    names = {(row["name"], row["variant"]) for row in bundle["attacks"]}
    same = [row for row in run["attacks"] if (row["name"], row["variant"]) in names]
    reference = max(same, key=lambda row: row["r2"]) if same else run["privacy"]["strongest"]
    if strongest["r2"] > reference["high"]:
        name = reference.get("name", reference.get("attack"))
        reasons.append(
            f"R2 {strongest['r2']:.4f} ({strongest['attack']}), above {reference['high']:.4f}, where the 95 % interval of the "
            f"run's {name} ends"
        )
    return (*reasons, *(degeneracy_reasons(bundle) if not degeneracy_reasons(run) else ()))
