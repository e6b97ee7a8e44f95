"""What an adversary recovers from the codes: the picture, labels that are hidden, or the identity.

All targets are numbers relative to their mean over the training pictures, so one protocol serves all adversaries: the recovered
share of the target's variance, on rows that the adversary was not fitted on.

* `picture`: pixels or leading principal components.
* `attribute:<labels>`: each label of two values is one number, (y - p) / sqrt(p (1 - p)) for y in {0, 1} with the training
  frequency p; a label of C classes is C numbers, (one-hot - p) / s, with one s for which their mean variance is 1. A closed-form
  adversary regresses these; a network is a classifier, whose probabilities become the same numbers (classes.py).
* `identity`: where the person is among all people: the mean over the person's pictures of the coordinates in which people differ
  most (Fisher's discriminant on the principal components: people's means, whitened by the covariance within people, in decreasing
  order of variance; at most 64 numbers), each with unit variance. People with one picture are left out. No face recogniser is used:
  the judge of the evaluation stays one that the privatizer was not trained against.

Rows whose target is not known (a missing answer, a person with one picture) are left out of fit and score.
"""

from typing import Protocol

import numpy as np
import torch

from cpgan_ray.common.types import Release
from cpgan_ray.config.targets import IDENTITY, PICTURE, labels_of
from cpgan_ray.data import Dataset, Task, ensure_learnable, task_of
from cpgan_ray.data.batching import pictures
from cpgan_ray.data.discriminant import FisherDiscriminant
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale, targets
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import InputError
from cpgan_ray.training.adversaries.base import Target
from cpgan_ray.training.classes import Classes

MIN_ROWS = 8
"""An adversary is fitted and scored on at least this many rows of a release with a known target; with fewer it recovers nothing."""
COORDINATE_ROWS = 512
"""Pictures whose coordinates are computed at once."""


class TargetSource(Protocol):
    """Makes the targets of a release from the data of this node."""

    size: int  # number of values p of a target
    classes: Classes | None  # of hidden labels

    def __call__(self, release: Release, device: torch.device) -> Target:
        """The targets of a release."""
        ...

    def known(self, release: Release) -> np.ndarray | None:
        """The rows of the batch whose target is known (n,); None: all."""
        ...


class PictureSource:
    """The pictures of a release, relative to the mean training picture."""

    classes: Classes | None = None

    def __init__(self, dataset: Dataset, *, components: int) -> None:
        """components: number of principal components; 0: pixels."""
        self.dataset, self.components = dataset, components
        self.projection = projection(dataset, components=components or DEFAULT_COMPONENTS)
        self.dimension = int(np.prod(dataset.image_shape))
        self.size = len(self.projection.components) if components else self.dimension

    def __call__(self, release: Release, device: torch.device) -> Target:
        split = self.dataset.splits[release.split]
        if self.components:
            values, residual = targets(self.projection, split, release.batch)
        else:
            values = scale(pictures(split, release.batch))
            values -= self.projection.mean
            residual = np.zeros(len(values), np.float32)
        return Target(torch.from_numpy(values).to(device), torch.from_numpy(residual).to(device), self.dimension)

    def known(self, release: Release) -> np.ndarray | None:
        return None


class FixedSource:
    """Targets that do not depend on how a picture is mirrored or shifted: a table with a row for each picture of a split."""

    def __init__(self, values: dict[str, np.ndarray], known: dict[str, np.ndarray], *, classes: Classes | None = None) -> None:
        """values: (N, p) float32 of each split; known: (N,) bool, whether they are."""
        self.values, self.is_known, self.classes = values, known, classes
        self.size = values["train"].shape[1]
        self.complete = all(rows.all() for rows in known.values())

    def __call__(self, release: Release, device: torch.device) -> Target:
        values = torch.from_numpy(self.values[release.split][release.batch.rows]).to(device)
        return Target(values, torch.zeros(len(values), device=device), self.size)

    def known(self, release: Release) -> np.ndarray | None:
        return None if self.complete else np.flatnonzero(self.is_known[release.split][release.batch.rows])


def target_source(target: str, dataset: Dataset, *, components: int) -> TargetSource:
    """The source of a target by name (config/targets.py).

    components: of the target `picture`.

    Raises: InputError if the data set does not have the target.
    """
    if target == PICTURE:
        return PictureSource(dataset, components=components)
    if target == IDENTITY:
        return identity_source(dataset)
    task = attribute_task(target, dataset)
    answers = {name: task.answers(split) for name, split in dataset.splits.items()}
    classes = Classes.of(task, answers["train"])
    known = {name: (y != MISSING).all(axis=1) for name, y in answers.items()}
    return FixedSource({name: classes.values(y) for name, y in answers.items()}, known, classes=classes)


def attribute_task(target: str, dataset: Dataset) -> Task:
    """The labels of an attribute target.

    Raises: InputError if a label does not exist or has fewer than two values.
    """
    try:
        task = task_of(dataset, labels_of(target))
        ensure_learnable(dataset, task)
    except InputError as e:
        raise InputError(f"target {target!r}: {e}") from e
    return task


def identity_source(dataset: Dataset) -> FixedSource:
    """The identity of the people on the pictures.

    Raises: InputError if identities are not known, or too few people have two training pictures.
    """
    if dataset.info.anonymous:
        raise InputError(
            "target 'identity': it is not known who is on the pictures: name their column with --data.identity-column, or leave "
            "the target out"
        )
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    try:
        directions = FisherDiscriminant(np.asarray(basis.coordinates), dataset.train.identity).directions
    except ValueError as e:
        raise InputError(
            "target 'identity': fewer than two people have two training pictures each: leave the target out, or add pictures"
        ) from e
    means = {
        name: people_means(plain_coordinates(dataset, name) @ directions, split.identity) for name, split in dataset.splits.items()
    }
    known = {name: repeated(split.identity) for name, split in dataset.splits.items()}
    centre, deviation = means["train"][known["train"]].mean(axis=0), means["train"][known["train"]].std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    return FixedSource({name: ((m - centre) / deviation).astype(np.float32) for name, m in means.items()}, known)


def plain_coordinates(dataset: Dataset, name: str) -> np.ndarray:
    """Coordinates (N, p) of the pictures of a split in the principal components."""
    split, basis = dataset.splits[name], projection(dataset, components=DEFAULT_COMPONENTS)
    if name == "train":
        return np.asarray(basis.coordinates)
    return np.concatenate([basis.project(scale(block)) for block in split.iter_batches(COORDINATE_ROWS)])


def people_means(vectors: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """For each row the mean of the vectors (N, q) of the same person."""
    _, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, person, vectors)
    return (sums / counts[:, None])[person]


def repeated(identity: np.ndarray) -> np.ndarray:
    """Whether the person of each row has another row (N,)."""
    _, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
    return counts[person] > 1
