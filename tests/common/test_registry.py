"""A registry that was changed at run time: allowed in one process, refused on Ray."""

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
"""A preset is a whole configuration by the time that it leaves the driver."""


def test_every_dict_of_functions_or_classes_is_remembered():
    found = set()
    for module in pkgutil.walk_packages(cpgan_ray.__path__, "cpgan_ray."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.isupper() and isinstance(value, dict) and value and all(map(is_part, value.values())):
                found.add(id(value))
    known = {id(getattr(importlib.import_module(module), name)): f"{module} {name}" for module, name in registry._as_imported}
    left = [name for name in named(found) if name not in PER_DRIVER and name not in known.values()]
    assert left == []
    ensure_unchanged()


def is_part(value: object) -> bool:
    return callable(value) or any(callable(getattr(value, field, None)) for field in getattr(value, "__dataclass_fields__", ()))


def named(ids: set[int]) -> list[str]:
    """Where dicts are defined: the module whose source assigns them."""
    names = []
    for module in pkgutil.walk_packages(cpgan_ray.__path__, "cpgan_ray."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        source = Path(str(loaded.__file__)).read_text()
        names += [f"{module.name} {n}" for n, v in vars(loaded).items() if id(v) in ids and f"\n{n}: dict[" in source]
    return names


@pytest.mark.parametrize(
    ("change", "said"),
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
    ids=["replaced", "added", "removed", "bound anew"],
)
def test_changed_registry_is_refused_with_the_entry(change: Callable, said, monkeypatch):
    ensure_unchanged()
    change(monkeypatch)
    with pytest.raises(InputError, match=said):
        ensure_unchanged()


@pytest.mark.usefixtures("process_left_as_it_was")
def test_own_network_is_refused_on_ray_before_the_folder_and_played_in_process(tiny, monkeypatch, tmp_path):
    """Through every way onto Ray; in one process it plays."""
    from cpgan_ray.config import ReproduceJob, SearchJob
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.distributed.tasks import fit_on_ray
    from cpgan_ray.pipelines.reproduce.job import reproduce
    from cpgan_ray.pipelines.train import train
    from cpgan_ray.pipelines.tune.job import search
    from cpgan_ray.training.game import play_in_process

    used = []

    def mine(*arguments):
        used.append(arguments)
        return stock(*arguments)

    stock = FAMILIES["conv"]
    monkeypatch.setitem(FAMILIES, "conv", mine)
    config = tiny("ridge", output=str(tmp_path / "out"))
    on_ray = override(config, {"runtime.backend": "ray"})
    ways = [
        lambda: train(on_ray),
        lambda: RayGame(on_ray),
        lambda: fit_on_ray([], None, runtime=on_ray.runtime, done=lambda made: None),  # pyright: ignore[reportArgumentType]
        lambda: search(SearchJob(search_space=("k=4,5",), searcher="grid", config=config)),
        lambda: reproduce(ReproduceJob(config=on_ray, mechanisms=("cpgan",)), resume=False),
    ]
    for way in ways:
        with pytest.raises(InputError, match=r"FAMILIES\['conv'\]"):
            way()
    assert used == []
    assert not (tmp_path / "out").exists()
    play_in_process(config, threads=1).play(1)
    assert used
