"""From the report of a training to the numbers of a `Trial`: for the trials of a search and the cells of a comparison alike."""

from collections.abc import Mapping
from typing import Any

from cpgan_ray.analysis.fronts import CLIENT, CLOUD, UTILITY
from cpgan_ray.evaluation.identity.result import strongest_linkage
from cpgan_ray.evaluation.report.report import degeneracy_reasons


def trial_outcome(report: Mapping[str, Any], *, strongest: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Trial` (analysis/fronts/trials.py).

    report: has `utility`, `privacy`, `code`, `identity_linkage`, `client`, `cost` and `warnings`, as in `report.json`; strongest:
    name, R2 and interval of the attack that counts.
    """
    utility, privacy = report["utility"], report["privacy"]
    excess = privacy["excess"] or {}
    return {
        **{name: utility[name] for name in UTILITY},
        "strongest_r2": strongest["r2"],
        "strongest_r2_low": strongest["low"],
        "strongest_r2_high": strongest["high"],
        "attack": strongest["attack"],
        "val_r2": privacy["val_r2"],
        "label_floor_r2": privacy["label_floor_r2"],
        "answers_floor_r2": privacy["answers_floor_r2"],
        **late_outcome(report),
        **{f"excess_{end}": excess.get(name) for end, name in (("r2", "r2"), ("r2_low", "low"), ("r2_high", "high"))},
        **strongest_linkage(report["identity_linkage"]),
        **{field: report["client"][name] for field, name in CLIENT.items()},
        **{field: report["cost"].get("utility_head", {}).get(name) for field, name in CLOUD.items()},
        **wire_bits(report["code"]),
        "degenerate": next(iter(degeneracy_reasons(report)), None),
    }


def late_outcome(report: Mapping[str, Any]) -> dict[str, float]:
    """The balanced accuracy of late tasks on the codes with the ends of its interval; empty if the report has no late tasks."""
    if (late := report.get("late_tasks")) is None:
        return {}
    names = ("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high")
    return {f"late_{name}": late["inputs"]["code"][name] for name in names}


def wire_bits(code: Mapping[str, Any]) -> dict[str, float | None]:
    """The bits of a code on the wire, with the ends of their interval: coded, or as it is, without an interval, if it has no coded
    length. code: as in `report.json`."""
    lengths = {name: code["raw"] if code[name] is None else code[name] for name in ("bits", "val_bits")}
    return lengths | {"bits_low": code["low"], "bits_high": code["high"]}
