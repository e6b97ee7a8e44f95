"""One cell of a comparison: a mechanism at one setting under one seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.fronts import Trial
from cpgan_ray.evaluation.report.report import degenerate
from cpgan_ray.mechanisms import MECHANISMS

CELL = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training that a comparison needs."""

    mechanism: str
    setting: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mechanism}-{self.setting:g}-{self.seed}"


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
