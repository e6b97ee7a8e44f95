"""An attack from a user's code: it does not see the score set, and what it returns is checked."""

import dataclasses
from typing import Any

import numpy as np
import torch

from cpgan_ray.common.plugins import label, own_code
from cpgan_ray.config import AttackConfig
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, JoinedPixels, Pairs

SPACES = ("components", "pixels")


def fit_own(name: str, data: AttackData, config: AttackConfig) -> Fitted:
    """Fit an attack of the user's own on `fit` and `tune`; the score set that it sees is empty.

    Raises: InputError with file and line if its code fails, or if it does not return a usable `Fitted`.
    """
    fitted: Any = ATTACKS.call(name, dataclasses.replace(data, score=no_rows(data.score)), config)
    if not isinstance(fitted, Fitted) or fitted.space not in SPACES:
        got = f"space {fitted.space!r}" if isinstance(fitted, Fitted) else type(fitted).__name__
        raise InputError(f"attack {label(name)} returns {got}; it must return a Fitted with space {' or '.join(SPACES)}")
    width = len(data.components) if fitted.space == "components" else data.tune.target.dimension
    with own_code(name, doing="reconstructing with the attack"), torch.no_grad():
        sample = fitted.reconstruct(data.tune.z[:2])
    if tuple(sample.shape) != (2, width):
        raise InputError(
            f"attack {label(name)} reconstructs {tuple(sample.shape)} from 2 codes; in space {fitted.space!r} it must "
            f"be (2, {width})"
        )
    if not np.isfinite(fitted.tune_r2):
        raise InputError(f"attack {label(name)} has tune_r2 {fitted.tune_r2}; it must be its R2 on the tuning rows (r2_score)")
    return fitted


def no_rows(pairs: Pairs) -> Pairs:
    """The same set without any row."""
    return Pairs(pairs.z[:0], pairs.target[:0], JoinedPixels(()), pairs.identity[:0])
