"""What a cell was computed by: only cells of the same code and the same configuration are pooled."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpgan_ray.analysis.cells import Cell
from cpgan_ray.config import Config, flatten, local_names
from cpgan_ray.errors import InputError


def provenance(config: Config) -> dict[str, str]:
    """Digests of the source code of the package, and of the configuration that all cells of a comparison have in common: all fields
    except the seed, and those that only say where something is, runs or is tracked."""
    return {"code": code_digest(), "config": config_digest(config)}


def code_digest() -> str:
    root = Path(__file__).parents[2]
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def config_digest(config: Config) -> str:
    local = local_names(Config)
    fields = {
        name: value
        for name, value in flatten(config).items()
        if name != "seed" and not any(name == field or name.startswith(f"{field}.") for field in local)
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


def ensure_same_provenance(cells: Sequence[Mapping[str, Any]], config: Config, folder: Path) -> None:
    """Raises: InputError if a cell was computed by other code or with another configuration than cells that are computed now."""
    now = provenance(config)
    for values in cells:
        name, made_by = Cell(**values["cell"]).name, values["made_by"]
        for what, label in (("code", "other code"), ("config", "another configuration")):
            if made_by[what] != now[what]:
                digests = f"digest {made_by[what]:.16}, now {now[what]}"
                raise InputError(
                    f"cell {name} in {folder} was computed by {label} ({digests}), and results of both cannot be pooled: use the "
                    "version that began the comparison, or start a new comparison in another folder"
                )
