"""The weights of the labels in the utility loss."""

import difflib

import numpy as np

from cpgan_ray.config import UtilityConfig
from cpgan_ray.data import Task
from cpgan_ray.errors import InputError


def label_weights(config: UtilityConfig, task: Task) -> np.ndarray | None:
    """The weight of each label of a task, float32 (L,): the given one, else the learned one, else 1. None if all are 1.

    Raises: InputError if a weight is given to a label that the task does not have.
    """
    given = config.learned_label_weights | config.label_weights
    for name in given:
        if name not in task.names:
            near = difflib.get_close_matches(name, task.names, n=3) or task.names[:10]
            raise InputError(f"utility.label_weights names {name!r}, which is no label of the task; nearest: {', '.join(near)}")
    return np.array([given.get(name, 1.0) for name in task.names], np.float32) if given else None
