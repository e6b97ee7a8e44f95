"""Adversaries: the reconstructors that the privatizer trains against. Each learns from the released codes and reports which share
of the picture it recovers, with the gradient.

`ridge` and `kernel` are solved in closed form: with `fit="holdout"` they are at their optimum in every round. `neural` covers MLPs
and convolutional decoders. An entry of `ADVERSARIES` is a function from the adversary's configuration and its `AdversaryContext` to
an object with the `Adversary` protocol (base.py); a class with that constructor is such a function.
"""

from collections.abc import Callable

import numpy as np
import torch

from cpgan_ray.common.plugins import Parts
from cpgan_ray.common.process import Precision, compile_networks
from cpgan_ray.common.registry import remember
from cpgan_ray.config import AdversaryConfig, KernelConfig, NeuralConfig, OwnConfig, RidgeConfig
from cpgan_ray.models import build_reconstructor
from cpgan_ray.training.adversaries.base import Adversary, AdversaryContext, Target
from cpgan_ray.training.adversaries.kernel import KernelAdversary
from cpgan_ray.training.adversaries.neural import NeuralAdversary
from cpgan_ray.training.adversaries.own import OwnAdversary
from cpgan_ray.training.adversaries.ridge import RidgeAdversary
from cpgan_ray.training.adversaries.streamed import StreamedAdversary
from cpgan_ray.training.classes import Classes

__all__ = ["ADVERSARIES", "Adversary", "AdversaryContext", "Target", "build_adversary"]


def build_ridge(config: RidgeConfig, context: AdversaryContext) -> Adversary:
    """Linear ridge regression."""
    if config.fit == "epoch":
        return StreamedAdversary(config, k=context.k, rng=context.rng, device=context.device)
    return RidgeAdversary(config, holdout_fraction=context.holdout_fraction)


def build_kernel(config: KernelConfig, context: AdversaryContext) -> Adversary:
    """Kernel ridge regression."""
    if config.fit == "epoch":
        return StreamedAdversary(config, k=context.k, rng=context.rng, device=context.device)
    return KernelAdversary(config, holdout_fraction=context.holdout_fraction, k=context.k, rng=context.rng, device=context.device)


def build_neural(config: NeuralConfig, context: AdversaryContext) -> Adversary:
    """A network that makes a few gradient steps per round."""
    network = build_reconstructor(config, k=context.k, image_shape=context.image_shape, target=context.target)
    network = network.to(context.device)
    if context.compiled:
        compile_networks(network)
    return NeuralAdversary(config, network, rng=context.rng, precision=context.precision, classes=context.classes)


ADVERSARIES: Parts[Callable[..., Adversary]] = Parts(
    {"ridge": build_ridge, "kernel": build_kernel, "neural": build_neural},
    kind="adversary",
    group="cpgan_ray.adversaries",
    field="adversaries.<name>.kind",
)
remember(__name__, "ADVERSARIES")


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
    classes: Classes | None = None,
) -> Adversary:
    """Builds the adversary of a configuration, for codes of k numbers and targets of `target` numbers. classes: of these, if they
    are hidden labels.

    `precision` (of training) and `compiled` apply only to networks, not to closed forms. Network weights are drawn from torch's
    global stream: call this inside `torch_stream`.

    Raises: InputError with file and line if the code of a user's own adversary fails, or does not have the protocol.
    """
    context = AdversaryContext(
        k=k,
        target=target,
        image_shape=image_shape,
        holdout_fraction=holdout_fraction,
        rng=rng,
        device=device,
        precision=precision,
        compiled=compiled,
        classes=classes,
    )
    options = config.options if isinstance(config, OwnConfig) else {}
    adversary = ADVERSARIES.call(config.kind, config, context, options=options)
    return OwnAdversary(adversary, name=config.kind) if ADVERSARIES.is_own(config.kind) else adversary
