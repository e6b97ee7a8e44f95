"""Mechanisms that add noise to the sample itself, or to principal components of undefended features.

The noise is drawn once per sample, because a client that released a sample twice would allow averaging over the noise. The knob is
the standard deviation of the noise, in units of the root mean square deviation from the mean sample (for a component: in units of
its standard deviation). The Laplace scales of the reference implementation are these numbers divided by sqrt(2).
"""

from typing import Literal

import numpy as np
from torch import nn

from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_frequencies
from cpgan_ray.data.batching import augment
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.data.pca import Projection, projection
from cpgan_ray.mechanisms.base import Released, samples, train_classifier
from cpgan_ray.mechanisms.games import features
from cpgan_ray.mechanisms.projections import standardise, with_classifier
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.training.inputs import fit_whitening

LONGEST_CODE = 1024
"""Longer noisy samples are attacked in their leading principal components, because the others are small compared with the noise."""
NOISE_COMPONENTS = 512


def laplace_noise(config: Config, noise: float, dataset: Dataset) -> Released:
    """The sample with Laplace noise (Noise in the reference implementation)."""
    return add_noise(config, noise, dataset, kind="laplace")


def gaussian_noise(config: Config, noise: float, dataset: Dataset) -> Released:
    """The sample with Gaussian noise."""
    return add_noise(config, noise, dataset, kind="gaussian")


def add_noise(config: Config, noise: float, dataset: Dataset, *, kind: Literal["laplace", "gaussian"]) -> Released:
    """Noisy samples, the logits of a classifier with the configuration's backbone trained on them, and codes for the attacks."""
    basis = projection(dataset, components=NOISE_COMPONENTS, progress=False)
    deviation = noise * (basis.total_variance / len(basis.mean)) ** 0.5
    x = {name: samples(dataset, name) for name in code_sets(dataset)}
    for name, values in x.items():
        values += noise_like(values.shape, kind=kind, deviation=deviation, seed=config.seed, name=name)
    images = {split: x[split].reshape(-1, *dataset.image_shape) for split in ("train", "val", "test")}
    inputs = {split: channels_first(images[split]) for split in ("val", "test")}
    with torch_stream(config.seed, "mechanism", kind, "weights"):
        encoder = build_privatizer(config.privatizer, k=config.k, image_shape=dataset.image_shape)
        fit_whitening(encoder, dataset)
        outputs = len(label_frequencies(dataset, config.data.labels))
        head = build_head(config.utility, k=config.k, num_labels=outputs, image_shape=dataset.image_shape)
    logits = train_classifier(
        nn.Sequential(encoder, head),
        inputs,
        dataset,
        config,
        name=kind,
        batch_inputs=lambda batch: channels_first(augment(images["train"][batch.rows], batch)),
    )
    return Released({name: code_for_attacks(values, basis) for name, values in x.items()}, logits, direct=x["test"])


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N, C, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def noise_like(shape: tuple[int, ...], *, kind: str, deviation: float, seed: int, name: str) -> np.ndarray:
    """Independent noise with the given standard deviation, float32."""
    rng = stream(seed, "mechanism", "noise", kind, name)
    draw = rng.laplace(0, deviation / 2**0.5, shape) if kind == "laplace" else rng.normal(0, deviation, shape)
    return draw.astype(np.float32)


def code_for_attacks(x: np.ndarray, basis: Projection) -> np.ndarray:
    """Samples as codes for the attacks: their principal components if they are longer than LONGEST_CODE."""
    return x if x.shape[1] <= LONGEST_CODE else basis.project(x)


def resize(config: Config, noise: float, dataset: Dataset) -> Released:
    """k principal components of undefended features, with Laplace noise in standard deviations, and a utility head trained on them.

    This is DNN (Resize) of the reference implementation, with one difference: here the head and all attacks see the same noise,
    there some attacks saw another draw.
    """
    feature_codes = features(config, dataset).codes
    centre = feature_codes["train"].mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((feature_codes["train"] - centre).T))
    leading = vectors[:, ::-1][:, : config.k].astype(np.float32)
    codes = standardise({name: (z - centre) @ leading for name, z in feature_codes.items()})
    for name, z in codes.items():
        z += noise_like(z.shape, kind="laplace", deviation=noise, seed=config.seed, name=f"features {name}")

    def batch_inputs(batch: Batch) -> np.ndarray:
        """Codes of a batch; mirrored pictures have their own features, shifts are ignored."""
        z = codes["train"][batch.rows]
        if batch.mirrored.any():
            z[batch.mirrored] = codes["train_mirrored"][batch.rows[batch.mirrored]]
        return z

    return with_classifier(codes, config, dataset, name="resize", batch_inputs=batch_inputs)
