"""The mechanisms of a comparison, with those of the user's own code."""

import dataclasses
from collections.abc import Sequence

from cpgan_ray.common.plugins import label, own_code
from cpgan_ray.config import Config, ReproduceJob
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError
from cpgan_ray.mechanisms import MECHANISMS, Mechanism, Released
from cpgan_ray.pipelines.label_weights import with_label_weights
from cpgan_ray.pipelines.parts import pinned
from cpgan_ray.pipelines.teachers import with_teachers


def pinned_job(job: ReproduceJob) -> ReproduceJob:
    """The job with pinned names; its own mechanisms are known in this process from now on.

    Raises: InputError if a name leads to nothing, or to another object than a `Mechanism`.
    """
    mechanisms = tuple(MECHANISMS.pin(name) for name in job.mechanisms)
    labels: dict[str, str] = {}
    for name in mechanisms:
        if labels.setdefault(label(name), name) != name:
            raise InputError(f"mechanisms has two parts with the name {label(name)}: give the files different names")
    for name in mechanisms:
        if not isinstance(part := MECHANISMS[name], Mechanism):
            raise InputError(f"mechanism {label(name)} is {type(part).__name__}; it must be a cpgan_ray.mechanisms.Mechanism")
    add(mechanisms)
    return dataclasses.replace(job, config=pinned(job.config), mechanisms=mechanisms)


def add(names: Sequence[str]) -> None:
    """Make the user's own mechanisms known in this process under their labels."""
    for name in names:
        MECHANISMS.add(name)


def compared(job: ReproduceJob) -> list[str]:
    """The mechanisms of a comparison by the names that its files use: a built-in name, or the label of a user's own."""
    return [MECHANISMS.add(name) for name in job.mechanisms] or MECHANISMS.built_in


def roundings_of(name: str, roundings: Sequence[bool]) -> Sequence[bool]:
    """Those of a comparison's two kinds of cells that a mechanism has: codes that are finite without rounding have one."""
    return roundings if MECHANISMS[name].rounds else (False,)


def release(name: str, config: Config, setting: float, dataset: Dataset) -> Released:
    """What a mechanism releases at a setting. Teachers are trained first, unless another cell of the seed has trained them.

    Raises: InputError with file and line if the code of a user's own fails; FloatingPointError if a training diverges.
    """
    mechanism = MECHANISMS[name]
    config = with_label_weights(with_teachers(config, parallel=False))
    if name not in MECHANISMS.added:
        return mechanism.release(config, setting, dataset)
    with own_code(name, doing="releasing codes by the mechanism"):
        return mechanism.release(config, setting, dataset)
