"""Pictures that do not come from the code, or not from this code. An attack that is no better than these has found nothing.

* shuffled: draws for the code of another person;
* labels: draws of the same kind of flow that knows only the true answers to the task, see `fit_generator`;
* unconditional: draws of a flow that knows nothing, see `fit_unconditional`;
* nearest: the picture of the attacker whose code is nearest. It is a real face, so that a judge of faces may well find it more
  similar than a draw.
"""

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.rng import stream
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, predict
from cpgan_ray.evaluation.attacks.nearest import Neighbours

CONTROLS = ("shuffled", "labels", "unconditional", "nearest")


def of_other_people(identity: np.ndarray, *, seed: int) -> np.ndarray:
    """For each row (N,) a row of another person: a permutation. With one person who has more than half of the rows, some rows keep
    the person.

    In random order within each person, rows that are sorted by person are moved on by the largest number of rows of one person.
    """
    _, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
    mixed = stream(seed, "generative", "shuffled").permutation(len(counts))[person]
    order = np.lexsort((stream(seed, "generative", "order").permutation(len(person)), mixed))
    result = np.empty(len(order), np.int64)
    result[order] = np.roll(order, -int(counts.max()))
    return result


def nearest_pictures(data: AttackData, z: Tensor) -> Tensor:
    """For each code (N, k) the coordinates (N, p) of the attacker's picture with the nearest standardised code."""
    prepare = CodeMap(data.fit.z, how="standardised")
    with torch.no_grad():
        return Neighbours(prepare, predict(prepare, data.fit.z), data.fit.target.values, 1)(z)
