"""A quick fresh attack during the training of a privatizer. Its R2 is not a result, but it does not lag behind the privatizer.

A search uses it to stop hopeless trials. The attack never sees people of the score set: it is fitted on a part of the training
pictures; its settings are chosen, and its R2 is measured, on validation people (in the prepared store no person is in two splits).
"""

from collections.abc import Mapping

import numpy as np
import torch

from cpgan_ray.data import Dataset
from cpgan_ray.data.batching import plain_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.evaluation.attacks.base import AttackData
from cpgan_ray.evaluation.attacks.closed_form import best_affine, ridge_sums
from cpgan_ray.evaluation.attacks.kernel import BANDWIDTHS, SEARCH_ROWS, Settings, new_stage
from cpgan_ray.evaluation.protocol import pairs

QUICK_ROWS = 4096
"""Maximal number of pictures to fit on, and to tune on."""
QUICK_KERNEL = Settings("standardised", "laplace", BANDWIDTHS.index(0.99), 0)
"""Where the search for the kernel's penalty and bandwidth starts."""


def quick_r2(codes: Mapping[str, tuple[np.ndarray, np.ndarray]], dataset: Dataset, *, seed: int) -> float:
    """R2 of the stronger of a ridge and a small kernel attack. `codes`: rows (n,) and their codes (n, k), of `train` and of
    `val`."""
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    shown = {name: [(plain_batch(rows), z)] for name, (rows, z) in codes.items()}
    fit, tune = (pairs(getattr(dataset, name), shown[name], basis=basis) for name in ("train", "val"))
    components = torch.from_numpy(np.require(basis.components, np.float32, ["C", "W"]))
    data = AttackData(fit, tune, tune, components, None, dataset.image_shape, seed)
    kernel = new_stage(data, data.fit, slice(None, None, -(-len(data.fit) // SEARCH_ROWS)))
    kernel_r2 = kernel.r2(kernel.climb(QUICK_KERNEL, ["log_ridge", "bandwidth"]))
    return max(best_affine(data, ridge_sums(data, space="components"))[0], kernel_r2)
