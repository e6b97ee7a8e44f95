"""Linear codes that no game trains: principal components, random directions, discriminant components. z is standardised."""

from collections.abc import Callable

import numpy as np
import scipy.linalg

from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_columns, label_frequencies
from cpgan_ray.data.batching import pictures
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale
from cpgan_ray.mechanisms.base import SPLITS, Released, samples, shared_k, train_classifier
from cpgan_ray.models import build_head

RIDGE = 1e-3
"""Of discriminant components: share of the mean variance that is added to the scatter's diagonal."""


def pca(config: Config, share: float, dataset: Dataset) -> Released:
    """The leading principal components of the training samples."""
    basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
    return projected(np.asarray(basis.components[: shared_k(config, share)]), config, dataset, name="pca")


def random_projection(config: Config, share: float, dataset: Dataset) -> Released:
    """Orthonormal directions drawn at random."""
    dimension = int(np.prod(dataset.image_shape))
    drawn = stream(config.seed, "mechanism", "random_projection").normal(size=(dimension, min(shared_k(config, share), dimension)))
    return projected(np.linalg.qr(drawn)[0].T.astype(np.float32), config, dataset, name="random_projection")


def dca(config: Config, share: float, dataset: Dataset) -> Released:
    """Discriminant component analysis: the leading generalised eigenvectors of the between-class scatter and the ridged total one.

    S. Y. Kung, T. Chanyaswad, J. M. Chang, P.-Y. Wu, Collaborative PCA/DCA learning methods for compressive privacy, ACM TECS
    16(3):76, 2017. Computed on the leading principal components.
    """
    basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
    coordinates = np.asarray(basis.coordinates, np.float64)
    labels = dataset.train.labels[:, label_columns(dataset, config.data.labels)]
    centred = coordinates - coordinates.mean(axis=0)
    between = np.zeros((centred.shape[1],) * 2)
    for column in labels.T:
        for value in np.unique(column):
            of = centred[column == value]
            between += len(of) * np.outer(of.mean(axis=0), of.mean(axis=0))
    total = centred.T @ centred
    total[np.diag_indices_from(total)] += RIDGE * np.trace(total) / len(total)
    _, vectors = scipy.linalg.eigh(between, total)
    leading = vectors[:, ::-1][:, : discriminants(config, share, dataset)]
    return projected((leading.T @ basis.components).astype(np.float32), config, dataset, name="dca")


def discriminants(config: Config, share: float, dataset: Dataset) -> int:
    """A share of k, or of as many components as discriminate: one fewer than there are classes, of several 0/1 labels one each."""
    labels = dataset.train.labels[:, label_columns(dataset, config.data.labels)]
    most = sum(len(np.unique(column)) - 1 for column in labels.T)
    return max(1, round(min(config.k, most) * share))


def projected(directions: np.ndarray, config: Config, dataset: Dataset, *, name: str) -> Released:
    """The samples in some directions (k, D), in standard deviations, with a utility head taught on them."""
    codes = {split: samples(dataset, split) @ directions.T for split in SPLITS}
    if dataset.info.mirrored:
        codes |= {f"{split}_mirrored": mirrored(samples(dataset, split), dataset) @ directions.T for split in ("train", "val")}
    mean, deviation = moments(codes["train"])

    def varied(chosen: Batch) -> np.ndarray:
        return ((scale(pictures(dataset.train, chosen)) @ directions.T - mean) / deviation).astype(np.float32)

    return classified(standardised(codes), config, dataset, name=name, varied=varied)


def mirrored(x: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Flat samples (N, D), mirrored left to right."""
    return np.ascontiguousarray(x.reshape(len(x), *dataset.image_shape)[:, :, ::-1].reshape(len(x), -1))


def standardised(codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Less the training codes' mean, over their standard deviation."""
    mean, deviation = moments(codes["train"])
    return {name: ((z - mean) / deviation).astype(np.float32) for name, z in codes.items()}


def moments(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each number."""
    return codes.mean(axis=0), np.maximum(codes.std(axis=0), 1e-12)


def classified(
    codes: dict[str, np.ndarray], config: Config, dataset: Dataset, *, name: str, varied: Callable[[Batch], np.ndarray]
) -> Released:
    """Codes with a utility head of the configuration's kind, taught on them; varied: see `train_classifier`."""
    outputs = len(label_frequencies(dataset, config.data.labels))
    with torch_stream(config.seed, "mechanism", name, "weights"):
        head = build_head(config.utility, k=codes["train"].shape[1], num_labels=outputs, image_shape=dataset.image_shape)
    return Released(codes, train_classifier(head, codes, dataset, config, name=name, varied=varied))
