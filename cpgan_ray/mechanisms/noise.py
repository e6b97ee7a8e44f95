"""Mechanisms that add noise to the sample itself, or to principal components of undefended features.

A client releases a sample once, because several releases would allow averaging over the noise: the pictures on which Bob and the
attacks are scored have one draw. Bob and the attackers know the mechanism and can draw as often as they like: Bob's training draws
the noise again in each batch, and attackers have several draws of each of their pictures.

The knob is the standard deviation of the noise, in units of the root mean square deviation from the mean sample (for a component:
in units of its standard deviation). The Laplace scales of the reference implementation are these numbers divided by sqrt(2).
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.process import pick_device, torch_stream
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.data.code_sets import DRAWS, code_sets
from cpgan_ray.data.pca import projection
from cpgan_ray.mechanisms.base import (
    Released,
    Standardised,
    encode_all,
    encode_set,
    release,
    train_classifier,
)
from cpgan_ray.mechanisms.games import features
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.cost import count
from cpgan_ray.training.inputs import fit_whitening

LONGEST_CODE = 1024
"""Longer noisy samples are attacked in their leading principal components, because the others are small compared with the noise."""
NOISE_COMPONENTS = 512
Kind = Literal["laplace", "gaussian"]


def laplace_noise(config: Config, noise: float, dataset: Dataset) -> Released:
    """The sample with Laplace noise (Noise in the reference implementation)."""
    return add_noise(config, noise, dataset, kind="laplace")


def gaussian_noise(config: Config, noise: float, dataset: Dataset) -> Released:
    """The sample with Gaussian noise."""
    return add_noise(config, noise, dataset, kind="gaussian")


def add_noise(config: Config, noise: float, dataset: Dataset, *, kind: Kind) -> Released:
    """Noisy samples, the logits of a classifier with the configuration's backbone trained on them, and codes for the attacks.

    Rounded samples are multiples of the step in standard deviations of each noisy value; Bob sees them in the unit of the samples.
    Bob's own backbone does not round: he releases nothing.
    """
    device = pick_device(config.runtime.device)
    basis = projection(dataset, components=NOISE_COMPONENTS, progress=False)
    deviation = noise * (basis.total_variance / len(basis.mean)) ** 0.5

    def noisy(x: Tensor, rng: np.random.Generator) -> Tensor:
        return x + draw_noise(tuple(x.shape), kind=kind, deviation=deviation, rng=rng).to(device)

    step, levels = config.privatizer.quantization_step, config.privatizer.levels
    sets = code_sets(dataset)
    drawn = encode_set(noisy, sets["train"], config, name=kind, key="train")
    standardised = Standardised.fit(drawn, step=step, levels=levels, device=device)

    def released_sample(x: Tensor, rng: np.random.Generator) -> Tensor:
        """What the client sends, in the unit of the samples."""
        return standardised.inverse(standardised(noisy(x, rng))) if step else noisy(x, rng)

    def code_for_attacks(x: Tensor, rng: np.random.Generator) -> Tensor:
        """What the client sends, (B, D), standardised if it is rounded; of long samples the leading principal components."""
        if len(basis.mean) <= LONGEST_CODE:
            return flat(standardised(noisy(x, rng)) if step else noisy(x, rng))
        return torch.from_numpy(basis.project(flat(released_sample(x, rng)).cpu().numpy()))

    with torch_stream(config.seed, "mechanism", kind, "weights"):
        own = replace(config.without_rounding().privatizer, noise=0.0)
        encoder = build_privatizer(own, k=config.k, image_shape=dataset.image_shape)
        fit_whitening(encoder, dataset)
        outputs = task_of(dataset, config.data.labels).num_logits
        head = build_head(config.utility, k=config.k, num_logits=outputs, image_shape=dataset.image_shape)
    train_classifier(nn.ModuleDict({"encoder": encoder, "head": head}), released_sample, dataset, config, name=kind)
    draws = DRAWS if noise else 1
    codes = encode_all(code_for_attacks, dataset, config, name=kind, draws=draws)
    sets = code_sets(dataset, draws=draws, attacks=config.attacks, k=codes["train"].shape[1])
    bob = nn.Sequential(encoder, head).eval()

    def answer(x: Tensor, rng: np.random.Generator) -> Tensor:
        """Bob's logits on what the client sends, (B, num_logits)."""
        return bob(released_sample(x, rng))

    answered = codes if config.attacks.answers_floor else ("val", "test")
    logits = {key: encode_set(answer, sets[key], config, name=kind, key=key) for key in answered}
    sent = encode_set(released_sample, sets["test"], config, name=kind, key="test")
    direct = np.ascontiguousarray(sent.transpose(0, 2, 3, 1)).reshape(len(dataset.test), -1)
    return Released(codes, logits, direct=direct, client=nn.Identity(), cloud=count(bob, sent.shape[1:]))


def flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, D) in the order H, W, C of the samples."""
    return x.permute(0, 2, 3, 1).flatten(1)


def draw_noise(shape: tuple[int, ...], *, kind: Kind, deviation: float, rng: np.random.Generator) -> Tensor:
    """Independent noise with the given standard deviation, float32."""
    draw = rng.laplace(0, deviation / 2**0.5, shape) if kind == "laplace" else rng.normal(0, deviation, shape)
    return torch.from_numpy(draw.astype(np.float32))


def resize(config: Config, noise: float, dataset: Dataset) -> Released:
    """k principal components of undefended features, with Laplace noise in standard deviations, and a utility head trained on them.

    This is DNN (Resize) of the reference implementation. The features of augmented pictures are computed by the trained stages.
    """
    device = pick_device(config.runtime.device)
    undefended = features(config, dataset)
    assert undefended.encoder is not None
    stages, train = undefended.encoder.to(device), undefended.codes["train"]
    centre = train.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((train - centre).T))
    leading = np.ascontiguousarray(vectors[:, ::-1][:, : config.k].astype(np.float32))
    clean = Standardised.fit((train - centre) @ leading, device=device)
    offset, directions = torch.from_numpy(centre).to(device), torch.from_numpy(leading).to(device)

    def encode(x: Tensor, rng: np.random.Generator) -> Tensor:
        z = clean((stages(x) - offset) @ directions)
        return z + draw_noise(tuple(z.shape), kind="laplace", deviation=noise, rng=rng).to(device)

    client = nn.Sequential(stages, nn.Linear(train.shape[1], leading.shape[1]))
    return release(encode, dataset, config, name="resize", draws=DRAWS if noise else 1, client=client)
