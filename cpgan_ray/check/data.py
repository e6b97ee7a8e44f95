"""Checks of data sets and mechanisms."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.check.findings import Findings, require
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.config.presets import digits, for_comparison
from cpgan_ray.data import DATASETS, load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.mechanisms import MECHANISMS, Mechanism, Released


def check_dataset(findings: Findings, name: str, options: dict[str, Any], data_dir: Path | None) -> None:
    """The prepared store of a data set, made in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="cpgan-check-") as folder:
        data = DataConfig(dataset=DATASETS.pin(name), options=options)

        def store(cache: str) -> str:
            config = Config(data=data, data_dir=data_dir, cache_dir=Path(folder) / cache)
            dataset = load(config, progress=False)
            parts = ", ".join(f"{split} {len(part)}" for split, part in dataset.splits.items())
            labels = ", ".join(dataset.label_names[:5])
            digests.append(dataset.digest)
            return f"samples {dataset.image_shape} {dataset.train.dtype}, {parts}; labels {labels}"

        digests: list[str] = []
        if findings.check("reads, and makes a store", lambda: store("first")) is not None:
            findings.check("determinism", lambda: same_store(store("second"), digests))


def same_store(text: str, digests: list[str]) -> str:
    require(len(set(digests)) == 1, f"two readings make stores {digests}: the files or the code changed in between")
    return f"store {digests[0]}"


def check_mechanism(findings: Findings, name: str) -> None:
    """A mechanism on scikit-learn's digits, for two epochs, at its first setting."""
    part = MECHANISMS[name]
    findings.check("is a Mechanism", lambda: require(isinstance(part, Mechanism), f"it is {type(part).__name__}"))
    if findings.failed:
        return
    with tempfile.TemporaryDirectory(prefix="cpgan-check-") as folder:
        preset = for_comparison(digits())
        config = replace(preset, epochs=2, k=8, cache_dir=Path(folder), runtime=replace(preset.runtime, backend="local"))
        dataset = load(config, progress=False)
        first = findings.check("releases codes of every set", lambda: codes_of(part, config, dataset))
        if first is not None:
            findings.check("determinism", lambda: equal(first, codes_of(part, config, dataset)))


def codes_of(part: Mechanism, config: Config, dataset: Any) -> Released:
    released = part.release(config, part.settings[0], dataset)
    for key, code_set in code_sets(dataset).items():
        require(key in released.codes, f"codes of the set {key!r} are missing: see encode_all in cpgan_ray.mechanisms.base")
        z = released.codes[key]
        count = sum(len(block) for block in code_set.blocks())
        require(
            z.dtype == np.float32 and z.ndim == 2 and len(z) == count, f"codes of {key!r} are {z.dtype} {z.shape}, not ({count}, k)"
        )
        require(bool(np.isfinite(z).all()), f"codes of {key!r} are not finite")
    for split in ("val", "test"):
        require(split in released.logits, f"logits of {split!r} are missing")
    return released


def equal(first: Released, second: Released) -> None:
    differing = [key for key in first.codes if not np.array_equal(first.codes[key], second.codes[key])]
    require(not differing, f"codes of {differing[:1]} differ for the same seed")
