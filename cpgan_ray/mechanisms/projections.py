"""Linear codes without a game: principal components, random directions, discriminant components. z is standardised."""

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.process import pick_device
from cpgan_ray.common.rng import stream
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.data.store import MISSING
from cpgan_ray.data.task import value_counts
from cpgan_ray.mechanisms.base import Released, Standardised, fraction_of_k, release, samples

RIDGE = 1e-3
"""For discriminant components: the share of the mean variance that is added to the diagonal of the total scatter."""


def pca(config: Config, share: float, dataset: Dataset) -> Released:
    """The leading principal components of the training samples."""
    basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
    return project(np.asarray(basis.components[: fraction_of_k(config, share)]), config, dataset, name="pca")


def random_projection(config: Config, share: float, dataset: Dataset) -> Released:
    """Orthonormal directions drawn at random."""
    dimension = int(np.prod(dataset.image_shape))
    matrix = stream(config.seed, "mechanism", "random_projection").normal(
        size=(dimension, min(fraction_of_k(config, share), dimension))
    )
    return project(np.linalg.qr(matrix)[0].T.astype(np.float32), config, dataset, name="random_projection")


def dca(config: Config, share: float, dataset: Dataset) -> Released:
    """Discriminant component analysis: the leading generalised eigenvectors of the between-class scatter and the total scatter plus
    a ridge.

    S. Y. Kung, T. Chanyaswad, J. M. Chang, P.-Y. Wu, Collaborative PCA/DCA learning methods for compressive privacy, ACM TECS
    16(3):76, 2017. Computed on the leading principal components; samples without an answer to a label are in none of its classes.
    """
    from scipy import linalg  # takes 0.1 s

    basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
    coordinates = np.asarray(basis.coordinates, np.float64)
    labels = task_of(dataset, config.data.labels).answers(dataset.train)
    centred = coordinates - coordinates.mean(axis=0)
    between = np.zeros((centred.shape[1],) * 2)
    for column in labels.T:
        for value in np.unique(column[column != MISSING]):
            members = centred[column == value]
            between += len(members) * np.outer(members.mean(axis=0), members.mean(axis=0))
    total = centred.T @ centred
    total[np.diag_indices_from(total)] += RIDGE * np.trace(total) / len(total)
    _, vectors = linalg.eigh(between, total)
    leading = vectors[:, ::-1][:, : discriminant_length(config, share, dataset)]
    return project((leading.T @ basis.components).astype(np.float32), config, dataset, name="dca")


def discriminant_length(config: Config, share: float, dataset: Dataset) -> int:
    """A share of k, or of the number of discriminating components if that is smaller: for each label one less than the number of
    its values."""
    task = task_of(dataset, config.data.labels)
    maximum = sum(int((counts > 0).sum()) - 1 for counts in value_counts(task.answers(dataset.train), task))
    return max(1, round(min(config.k, maximum) * share))


def project(directions: np.ndarray, config: Config, dataset: Dataset, *, name: str) -> Released:
    """The samples projected on directions (k, D), standardised, with a utility head trained on them."""
    device = pick_device(config.runtime.device)
    matrix = torch.from_numpy(np.ascontiguousarray(directions.T)).to(device)
    standardised = Standardised.fit(samples(dataset, "train") @ directions.T, device=device)

    def encode(x: Tensor, rng: np.random.Generator) -> Tensor:
        return standardised(x.permute(0, 2, 3, 1).flatten(1) @ matrix)

    client = nn.Sequential(nn.Flatten(), nn.Linear(directions.shape[1], len(directions)))
    return release(encode, dataset, config, name=name, client=client)
