"""What the page states about each bundle: `/page/bundles.json`."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cpgan_ray.deploy.bundle import CODEC, EVE, PRIVATIZER, TWIN_EVE, TWIN_PRIVATIZER, Bundle

URL_NAMES = {PRIVATIZER: "privatizer", EVE: "eve", TWIN_PRIVATIZER: "twinPrivatizer", TWIN_EVE: "twinEve"}
"""The models that run in the browser. The utility head stays with the service."""


def by_privacy(bundles: Sequence[Bundle]) -> list[Bundle]:
    """The bundles that take pictures: those of one name together, by rising privacy weight, and by rising noise."""
    taken = [bundle for bundle in bundles if bundle.manifest.preprocessing.kind == "picture"]
    return sorted(taken, key=order)


def order(bundle: Bundle) -> tuple[Any, ...]:
    noise = bundle.manifest.noise
    return bundle.manifest.name, number(bundle, "run", "privacy_weight") or 0.0, noise.std if noise else 0.0, bundle.digest


def described(bundle: Bundle, *, urls: Mapping[str, str]) -> dict[str, Any]:
    """A bundle's entry. urls: the path of each model, by its name in the bundle."""
    manifest = bundle.manifest
    return {
        "digest": bundle.digest,
        "name": manifest.name,
        "k": manifest.k,
        "codec": json.loads(bundle.files[CODEC]),
        "preprocessing": manifest.preprocessing.as_json(),
        "noise": manifest.noise and dataclasses.asdict(manifest.noise),
        "labels": [label.as_json() for label in manifest.labels],
        "privacyWeight": number(bundle, "run", "privacy_weight"),
        "accuracy": number(bundle, "bundle", "accuracy"),
        "r2": number(bundle, "bundle", "strongest", "r2"),
        "eve": attack_of(bundle, "eve") if EVE in urls else None,
        "twin": twin_of(bundle) if TWIN_EVE in urls and TWIN_PRIVATIZER in urls else None,
        "files": {URL_NAMES[name]: url for name, url in urls.items()},
    }


def twin_of(bundle: Bundle) -> dict[str, Any]:
    return attack_of(bundle, "twin") | {"accuracy": number(bundle, "twin", "accuracy")}


def attack_of(bundle: Bundle, part: str) -> dict[str, Any]:
    """The name of an attack and its R2, from one part of the manifest."""
    values = bundle.manifest.values.get(part)
    name = values.get("attack") if isinstance(values, Mapping) else None
    return {"attack": name if isinstance(name, str) else "attack", "r2": number(bundle, part, "r2")}


def number(bundle: Bundle, *path: str) -> float | None:
    """A number of the manifest that only people read; None if it is absent or no finite number."""
    value: Any = bundle.manifest.values
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
