"""Mechanisms that add noise: to the sample itself, or to principal components of undefended features. It is drawn once per sample:
a client that released a sample twice would give it away by averaging.

The knob is the noise's standard deviation, in root mean squares of the sample's deviations from the mean sample (of a component: in
its own standard deviations). The original's Laplace scales are these over sqrt(2).
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
from cpgan_ray.data.pca import Projection, projection
from cpgan_ray.mechanisms.base import SPLITS, Released, samples, train_classifier
from cpgan_ray.mechanisms.games import features
from cpgan_ray.mechanisms.projections import classified, mirrored, standardised
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.training.defender import fit_whitening

LONGEST_CODE = 1024
"""Noisy samples of more values are attacked in their leading principal components: what noise leaves of the rest is less."""
KEPT_COMPONENTS = 512


def laplace_noise(config: Config, noise: float, dataset: Dataset) -> Released:
    """The sample with Laplace noise (the original's Noise)."""
    return noisy(config, noise, dataset, kind="laplace")


def gaussian_noise(config: Config, noise: float, dataset: Dataset) -> Released:
    """The sample with Gaussian noise."""
    return noisy(config, noise, dataset, kind="gaussian")


def noisy(config: Config, noise: float, dataset: Dataset, *, kind: Literal["laplace", "gaussian"]) -> Released:
    """Noisy samples, a classifier with the configuration's backbone taught on them, and codes for the attacks."""
    basis = projection(dataset, components=KEPT_COMPONENTS, progress=False)
    deviation = noise * (basis.total_variance / len(basis.mean)) ** 0.5
    x = {split: samples(dataset, split) for split in SPLITS}
    if dataset.info.mirrored:
        x |= {f"{split}_mirrored": mirrored(x[split], dataset) for split in ("train", "val")}
    for name, values in x.items():
        values += drawn(values.shape, kind=kind, deviation=deviation, seed=config.seed, name=name)
    images = {split: x[split].reshape(-1, *dataset.image_shape) for split in SPLITS}
    scored = {split: channels_first(images[split]) for split in ("val", "test")}
    with torch_stream(config.seed, "mechanism", kind, "weights"):
        encoder = build_privatizer(config.privatizer, k=config.k, image_shape=dataset.image_shape)
        fit_whitening(encoder, dataset)
        outputs = len(label_frequencies(dataset, config.data.labels))
        head = build_head(config.utility, k=config.k, num_labels=outputs, image_shape=dataset.image_shape)
    logits = train_classifier(
        nn.Sequential(encoder, head),
        scored,
        dataset,
        config,
        name=kind,
        varied=lambda chosen: channels_first(augment(images["train"][chosen.rows], chosen)),
    )
    return Released({name: short(values, basis) for name, values in x.items()}, logits, direct=x["test"])


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) -> (N, C, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def drawn(shape: tuple[int, ...], *, kind: str, deviation: float, seed: int, name: str) -> np.ndarray:
    """Independent noise of that standard deviation, float32."""
    rng = stream(seed, "mechanism", "noise", kind, name)
    draw = rng.laplace(0, deviation / 2**0.5, shape) if kind == "laplace" else rng.normal(0, deviation, shape)
    return draw.astype(np.float32)


def short(x: np.ndarray, basis: Projection) -> np.ndarray:
    return x if x.shape[1] <= LONGEST_CODE else basis.project(x)


def resized(config: Config, noise: float, dataset: Dataset) -> Released:
    """k principal components of undefended features, with Laplace noise in standard deviations; a head is taught on the noisy ones
    (the original's DNN (Resize); here all attacks and the head see the same draw, there some attacks saw another)."""
    whole = features(config, dataset).codes
    centre = whole["train"].mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((whole["train"] - centre).T))
    leading = vectors[:, ::-1][:, : config.k].astype(np.float32)
    codes = standardised({name: (z - centre) @ leading for name, z in whole.items()})
    for name, z in codes.items():
        z += drawn(z.shape, kind="laplace", deviation=noise, seed=config.seed, name=f"features {name}")

    def varied(chosen: Batch) -> np.ndarray:
        """Shifted pictures have no features here, mirrored ones do."""
        z = codes["train"][chosen.rows]
        if chosen.mirrored.any():
            z[chosen.mirrored] = codes["train_mirrored"][chosen.rows[chosen.mirrored]]
        return z

    return classified(codes, config, dataset, name="resize", varied=varied)
