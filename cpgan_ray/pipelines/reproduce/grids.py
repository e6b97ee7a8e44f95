"""The settings of every mechanism's knob, frozen in one file before a comparison starts.

Every comparison has a `grids.json`: the built-in settings, or the ones of a calibration (calibrate.py). Each cell records the
SHA-256 of this file, and cells of different files are never pooled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cpgan_ray.common.atomic_io import write_text
from cpgan_ray.common.json_files import parse_json, read_limited
from cpgan_ray.config import Config, ReproduceJob, flatten, local_names
from cpgan_ray.config.adversaries import of_kind
from cpgan_ray.config.io import adapter
from cpgan_ray.errors import InputError
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.calibration import Choice, Pilot

GRIDS = "grids.json"
FORMAT = 1
Rounding = Literal["on", "off"]
NOT_CALIBRATED = ("preset", "seed", "attacks.", "data.digest", "data.late_labels")
"""Fields of a configuration that do not change the accuracy of a mechanism's setting."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the settings of a calibrated file were found."""

    data: str
    """Digest of the data set."""
    config: dict[str, Any]
    """Dotted field -> value, for the fields that change what a training is."""
    pilot_seed: int
    num_pilots: int
    majority_accuracy: float
    undefended_accuracy: float
    """Validation accuracy of the undefended twin: `bottleneck` at full length, without rounding."""
    targets: tuple[float, ...]
    pilots: dict[str, dict[Rounding, tuple[Pilot, ...]]]


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The content of `grids.json`."""

    format: int = FORMAT
    source: Literal["built-in", "weights", "calibrated"]
    """`weights`: the built-in settings, but privacy weights that a flag has given."""
    grids: dict[str, dict[Rounding, tuple[Choice, ...]]] = field(default_factory=dict)
    """Mechanism -> with or without rounding -> settings, the most accurate first."""
    calibration: Calibration | None = None

    def text(self) -> str:
        return json.dumps(adapter(Grids).dump_python(self, mode="json"), indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, str]:
        """What every cell records."""
        return {"source": self.source, "sha256": self.sha256}

    def with_settings(self, rounding: Rounding) -> list[str]:
        """The mechanisms that have settings, with or without rounding."""
        return [mechanism for mechanism, by_rounding in self.grids.items() if by_rounding.get(rounding)]

    def settings(self, mechanism: str, *, rounded: bool) -> list[float]:
        """The settings of a mechanism.

        Raises: InputError if the file has none.
        """
        name: Rounding = "on" if rounded else "off"
        choices = self.grids.get(mechanism, {}).get(name)
        if not choices:
            known = ", ".join(self.with_settings(name)) or "none"
            raise InputError(
                f"{GRIDS} has no settings of {mechanism} with rounding {name}, only of {known}: name those with --mechanisms, or "
                "start a comparison with grids that have them"
            )
        return [choice.setting for choice in choices]


def built_in(weights: Sequence[float] = (), own: Sequence[str] = ()) -> Grids:
    """The settings in `MECHANISMS`, the same with and without rounding.

    weights: replace those of the mechanisms whose knob is the privacy weight; own: labels of mechanisms of the user's own.
    """
    grids: dict[str, dict[Rounding, tuple[Choice, ...]]] = {}
    for name in dict.fromkeys([*MECHANISMS.built_in, *own]):
        mechanism = MECHANISMS[name]
        settings = weights if weights and mechanism.knob == "privacy_weight" else mechanism.settings
        choices = tuple(Choice(setting=setting) for setting in settings)
        grids[name] = {"on": choices, "off": choices}
    return Grids(source="weights" if weights else "built-in", grids=grids)


def read_grids(path: Path) -> Grids:
    """Read a `grids.json`, which may come from another user.

    Raises: InputError if it cannot be read, has another format, or is damaged.
    """
    try:
        values = parse_json(read_limited(path))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        if (version := values.get("format")) != FORMAT:
            raise InputError(f"{path} has format {version!r:.40}, this version reads {FORMAT}: calibrate again, with --calibrate")
        grids = adapter(Grids).validate_python(values)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is damaged ({where:.80}: {first['msg']}): calibrate again, with --calibrate") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): give a {GRIDS} of a calibration with --grids") from e
    except ValueError as e:
        raise InputError(f"{path} is damaged ({e}): calibrate again, with --calibrate") from e
    if unknown := sorted(set(grids.grids) - set(MECHANISMS)):
        raise InputError(f"{path} has settings of {unknown[0]!r:.60}, which is no mechanism of this version: calibrate again")
    return grids


def ensure_usable(grids: Grids, path: Path, job: ReproduceJob, *, data: str) -> None:
    """Check that a comparison may use calibrated grids.

    A field that is newer than the file had its default when the settings were chosen. data: digest of the data set.

    Raises: InputError if it would use a seed that chose them, or if they were chosen on other data or for another configuration.
    """
    calibration = grids.calibration
    if calibration is None:
        return
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    if calibration.pilot_seed in seeds:
        raise InputError(
            f"seed {calibration.pilot_seed} chose the settings in {path} and cannot also judge them: take other seeds, with --seed"
        )
    if calibration.data != data:
        raise InputError(f"{path} was calibrated on the store {calibration.data}, this is {data}: calibrate on this data")
    recorded = {name: a for name, a in job.config.adversaries.items() if f"adversaries.{name}.kind" in calibration.config}
    defaults = Config(adversaries={name: of_kind(None, a.kind) for name, a in recorded.items()})
    config, calibrated = calibrated_fields(job.config), calibrated_fields(defaults) | calibration.config
    for name in {**config, **calibration.config}:
        if given(now := config.get(name)) != given(before := calibrated.get(name)):
            raise InputError(
                f"{path} was calibrated with {name} {before!r:.60}, here it is {now!r:.60}: calibrate again, or use the same value"
            )


def given(value: Any) -> Any:
    """The value of a field; None for an empty collection, which a flattened configuration has or leaves out by its type."""
    return None if isinstance(value, list | dict) and not value else value


def calibrated_fields(config: Config) -> dict[str, Any]:
    """Dotted field -> JSON-ready value, for the fields that change what a training is."""
    left_out = (*NOT_CALIBRATED, *local_names(Config))
    return {name: value for name, value in flatten(config).items() if not name.startswith(left_out)}


def ensure_same_grids(cells: Mapping[Path, Mapping[str, Any]], grids: Grids) -> None:
    """Check that cells may be pooled. cells: path -> content of each cell's file.

    Raises: InputError naming the first cell with other grids.
    """
    for path, values in cells.items():
        other = values.get("grids")
        if other != grids.provenance:
            digest = other.get("sha256", "") if isinstance(other, dict) else ""
            raise InputError(
                f"{path} was computed with the grids {digest!r:.14}, this comparison has {grids.sha256[:12]!r}: cells of different "
                "grids are not pooled; remove its folder, or start a new comparison"
            )


def write_grids(grids: Grids, folder: Path) -> Path:
    write_text(folder / GRIDS, grids.text())
    return folder / GRIDS


def evenly_spaced_subset(settings: Sequence[float], limit: int) -> list[float]:
    """At most `limit` of the settings, evenly spaced."""
    count = min(limit, len(settings))
    return [settings[round(i * (len(settings) - 1) / max(count - 1, 1))] for i in range(count)]
