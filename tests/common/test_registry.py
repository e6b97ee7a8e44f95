"""Tests that a registry changed at run time works in one process and is refused on Ray."""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

import cpgan_ray
from cpgan_ray.common import registry
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.config import override
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.models import privatizers
from cpgan_ray.models.privatizers import FAMILIES

PER_DRIVER = {"cpgan_ray.config.presets PRESETS"}
"""Only the driver reads the presets: it sends complete configurations to the other processes."""


def test_every_registry_of_the_package_is_remembered():
    ids = set()
    for module in pkgutil.walk_packages(cpgan_ray.__path__, "cpgan_ray."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.isupper() and isinstance(value, dict) and value and all(map(is_part, value.values())):
                ids.add(id(value))
    remembered = {id(getattr(importlib.import_module(module), name)): f"{module} {name}" for module, name in registry._as_imported}
    missing = [name for name in registry_names(ids) if name not in PER_DRIVER and name not in remembered.values()]
    assert missing == []
    ensure_unchanged()


def is_part(value: object) -> bool:
    return callable(value) or any(callable(getattr(value, field, None)) for field in getattr(value, "__dataclass_fields__", ()))


def registry_names(ids: set[int]) -> list[str]:
    """Module and name of dicts: the module is the one whose source assigns the dict."""
    names = []
    for module in pkgutil.walk_packages(cpgan_ray.__path__, "cpgan_ray."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        source = Path(str(loaded.__file__)).read_text()
        names += [
            f"{module.name} {n}"
            for n, v in vars(loaded).items()
            if id(v) in ids and (f"\n{n}: dict[" in source or f"\n{n}: Parts[" in source)
        ]
    return names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda patch: patch.setitem(FAMILIES, "conv", FAMILIES["lenet"]),
            r"FAMILIES\['conv'\] of cpgan_ray\.models\.privatizers was repl",
        ),
        (
            lambda patch: patch.setitem(ATTACKS, "mine", ATTACKS["ridge"]),
            r"ATTACKS\['mine'\] of cpgan_ray\.evaluation\.attacks was added",
        ),
        (lambda patch: patch.delitem(ATTACKS, "mlp"), r"ATTACKS\['mlp'\] .* was removed .*--runtime\.backend local"),
        (lambda patch: patch.setattr(privatizers, "CODE_ACTIVATIONS", {}), r"CODE_ACTIVATIONS\['normalised'\] .* was removed"),
    ],
    ids=["replaced", "added", "removed", "the whole registry replaced"],
)
def test_ensure_unchanged_after_a_change_names_the_entry(change: Callable, message, monkeypatch):
    ensure_unchanged()
    change(monkeypatch)
    with pytest.raises(InputError, match=message):
        ensure_unchanged()


@pytest.mark.usefixtures("process_left_as_it_was")
def test_replaced_network_is_refused_on_ray_and_used_in_process(tiny, monkeypatch, tmp_path):
    """Every function that starts Ray refuses it, before it creates the output folder."""
    from cpgan_ray.config import ReproduceJob, SearchJob
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.distributed.tasks import fit_on_ray
    from cpgan_ray.pipelines.reproduce.job import reproduce
    from cpgan_ray.pipelines.train import train
    from cpgan_ray.pipelines.tune.job import search
    from cpgan_ray.training.game import play_in_process

    used = []

    def recording_network(*arguments):
        used.append(arguments)
        return original_network(*arguments)

    original_network = FAMILIES["conv"]
    monkeypatch.setitem(FAMILIES, "conv", recording_network)
    config = tiny("ridge", output=str(tmp_path / "out"))
    on_ray = override(config, {"runtime.backend": "ray"})
    starts = [
        lambda: train(on_ray),
        lambda: RayGame(on_ray),
        lambda: fit_on_ray([], None, runtime=on_ray.runtime, done=lambda made: None),  # pyright: ignore[reportArgumentType]
        lambda: search(SearchJob(search_space=("k=4,5",), searcher="grid", config=config)),
        lambda: reproduce(ReproduceJob(config=on_ray, mechanisms=("cpgan",)), resume=False),
    ]
    for start in starts:
        with pytest.raises(InputError, match=r"FAMILIES\['conv'\]"):
            start()
    assert used == []
    assert not (tmp_path / "out").exists()
    play_in_process(config, threads=1).play(1)
    assert used
