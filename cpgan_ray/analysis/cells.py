"""One cell of a comparison: a mechanism at one setting, with or without rounding, with one seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.fronts import Trial
from cpgan_ray.analysis.outcome import trial_outcome
from cpgan_ray.mechanisms import MECHANISMS

CELL = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training that a comparison needs."""

    mechanism: str
    setting: float
    rounded: bool
    """Whether the codes are rounded."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mechanism}-{self.setting:g}-{'rounded' if self.rounded else 'unrounded'}-{self.seed}"


def strongest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The strongest of a cell's attacks. If the code is itself a picture, the code also counts, as the attack "itself"."""
    best = values["privacy"]["strongest"]
    direct = values["direct"]
    return best if direct is None or direct["r2"] <= best["r2"] else {"attack": "itself", "variant": "", **direct}


def by_name(values: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Each attack on a cell by its name; of its variants the stronger one."""
    weakest_first = sorted(values["attacks"], key=lambda attack: attack["r2"])
    return {attack["name"]: attack for attack in weakest_first}


def field_of(mechanism: str) -> str:
    """The field that a mechanism's knob sets. If the knob is a share of k, the field is `k`, the resulting length of the code."""
    spec = MECHANISMS[mechanism]
    return "k" if spec.length else spec.knob


def trial(values: Mapping[str, Any], folder: Path) -> Trial:
    """A cell as a trial, which can be placed on a front."""
    cell = Cell(**values["cell"])
    field = field_of(cell.mechanism)
    return Trial(
        name=cell.name,
        method=cell.mechanism,
        setting={field: values["k"] if field == "k" else cell.setting},
        seed=cell.seed,
        state="finished",
        seconds=values["seconds"],
        output=str(folder),
        data=values["data"],
        **trial_outcome(values, strongest=strongest(values)),
    )
