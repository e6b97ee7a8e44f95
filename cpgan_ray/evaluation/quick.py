"""A quick fresh attack while a privatizer is still being trained: no result, but no lagging number either.

A search stops hopeless trials by it. It sees nobody of the score set: it is fitted on a part of the training pictures, and its
settings are chosen and its R2 is taken on validation people (the prepared store holds no person in two splits).
"""

from collections.abc import Mapping

import numpy as np
import torch

from cpgan_ray.config import AttackConfig
from cpgan_ray.data import Dataset
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.evaluation.attacks import kernel_attack
from cpgan_ray.evaluation.attacks.base import AttackData
from cpgan_ray.evaluation.attacks.closed_form import best_affine
from cpgan_ray.evaluation.protocol import pairs

QUICK_ROWS = 4096
"""Pictures fitted on, and tuned on, at most."""
QUICK_CONFIG = AttackConfig(kernel_features=512, restarts=1)


def quick_r2(codes: Mapping[str, tuple[np.ndarray, np.ndarray]], dataset: Dataset, *, seed: int) -> float:
    """R2 of the stronger of ridge and a small kernel attack. `codes`: of `train` and `val`, rows (n,) and their codes (n, k)."""
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    fit, tune = (pairs(getattr(dataset, name), *codes[name], None, basis=basis, device=None) for name in ("train", "val"))
    components = torch.from_numpy(np.require(basis.components, np.float32, ["C", "W"]))
    data = AttackData(fit, tune, tune, components, None, dataset.image_shape, seed)
    return max(best_affine(data, space="components")[0], kernel_attack(data, QUICK_CONFIG).tune_r2)
