"""Adversaries: the reconstructors that the privatizer trains against. Each learns from the released codes and reports which share
of the picture it recovers, with the gradient.

`ridge` and `kernel` are solved in closed form: with `fit="holdout"` they are at their optimum in every round. `neural` covers MLPs
and convolutional decoders. To add an adversary, write a config dataclass in config/players.py, a class with the `Adversary`
protocol (base.py), and a case in `build_adversary`.
"""

import numpy as np
import torch

from cpgan_ray.common.process import Precision, compile_networks
from cpgan_ray.config import AdversaryConfig, KernelConfig, NeuralConfig, RidgeConfig
from cpgan_ray.models import build_reconstructor
from cpgan_ray.training.adversaries.base import Adversary, Target
from cpgan_ray.training.adversaries.kernel import KernelAdversary
from cpgan_ray.training.adversaries.neural import NeuralAdversary
from cpgan_ray.training.adversaries.ridge import RidgeAdversary
from cpgan_ray.training.adversaries.streamed import StreamedAdversary

__all__ = ["Adversary", "Target", "build_adversary"]


def build_adversary(
    config: AdversaryConfig,
    *,
    k: int,
    target: int,
    image_shape: tuple[int, int, int],
    holdout_fraction: float,
    rng: np.random.Generator,
    device: torch.device,
    precision: Precision = "float32",
    compiled: bool = False,
) -> Adversary:
    """Builds the adversary of a configuration, for codes of k numbers and targets of `target` numbers.

    `precision` (of training) and `compiled` apply only to networks, not to closed forms. Network weights are drawn from torch's
    global stream: call this inside `torch_stream`.
    """
    match config:
        case RidgeConfig(fit="epoch") | KernelConfig(fit="epoch"):
            return StreamedAdversary(config, k=k, rng=rng, device=device)
        case RidgeConfig():
            return RidgeAdversary(config, holdout_fraction=holdout_fraction)
        case KernelConfig():
            return KernelAdversary(config, holdout_fraction=holdout_fraction, k=k, rng=rng, device=device)
        case NeuralConfig():
            network = build_reconstructor(config, k=k, image_shape=image_shape, target=target).to(device)
            if compiled:
                compile_networks(network)
            return NeuralAdversary(config, network, rng=rng, precision=precision)
