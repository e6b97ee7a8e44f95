"""Resolves the names of parts in a configuration once, before a job writes anything."""

import dataclasses

from cpgan_ray.config import AttackConfig, Config, DataConfig, OwnConfig
from cpgan_ray.config.players import ANSWERS
from cpgan_ray.config.search_space import Dimension
from cpgan_ray.data import DATASETS
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.fitting import STACK
from cpgan_ray.models.pretrained import pinned_weights
from cpgan_ray.models.privatizers import FAMILIES
from cpgan_ray.models.utility_heads import HEADS
from cpgan_ray.training.adversaries import ADVERSARIES


def pinned(config: Config) -> Config:
    """The configuration with pinned names: each name of code ends in the digest of its file. Built-in names stay as they are.

    Raises: InputError if a name leads to nothing, or if its code cannot be imported.
    """
    p = config.privatizer
    weights = None if p.weights is None else pinned_weights(p.weights)
    return dataclasses.replace(
        config,
        privatizer=dataclasses.replace(p, family=pinned_family(p.family), weights=weights),
        utility=dataclasses.replace(config.utility, family=HEADS.pin(config.utility.family)),
        adversaries={
            name: dataclasses.replace(a, kind=ADVERSARIES.pin(a.kind)) if isinstance(a, OwnConfig) else a
            for name, a in config.adversaries.items()
        },
        data=pinned_data(config.data),
        attacks=pinned_attacks(config.attacks),
    )


def pinned_family(name: str) -> str:
    """The pinned family of a privatizer; `answers` is no network of its own, but runs one."""
    return name if name == ANSWERS else FAMILIES.pin(name)


def pinned_data(data: DataConfig) -> DataConfig:
    return dataclasses.replace(data, dataset=DATASETS.pin(data.dataset))


def pinned_attacks(attacks: AttackConfig) -> AttackConfig:
    return dataclasses.replace(attacks, names=tuple(name if name == STACK else ATTACKS.pin(name) for name in attacks.names))


def pinned_dimension(dimension: Dimension) -> Dimension:
    """A dimension of a search over names of parts, with pinned names."""
    parts = {"privatizer.family": FAMILIES, "utility.family": HEADS}.get(dimension.name)
    if parts is None:
        return dimension
    return dataclasses.replace(dimension, values=tuple(parts.pin(str(name)) for name in dimension.values))
