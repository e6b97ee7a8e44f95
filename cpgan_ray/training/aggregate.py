"""The feedback of all adversaries as one gradient: the adversaries of a target compete, and each target has a weight of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from cpgan_ray.common.types import Feedback, Metrics
from cpgan_ray.config import Config
from cpgan_ray.config.targets import PICTURE, sensitive_name
from cpgan_ray.training.losses import aggregate_weights


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The weighted privacy terms of a round."""

    grad_z: np.ndarray  # (B, k) float64: their gradient
    metrics: Metrics


def by_target(names: Sequence[str], config: Config) -> dict[str, list[str]]:
    """Target -> names of its adversaries, both in the order of the names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(config.adversaries[name].target, []).append(name)
    return groups


def aggregate(feedback: Sequence[Feedback], config: Config, *, weight: Callable[[str], float]) -> Aggregate:
    """sum_t weight(t) sum_a w_ta grad_a over the targets t and their adversaries a, with w_t of `aggregate_weights`.

    weight: of a target in this round.
    """
    answers, game = {f.name: f for f in feedback}, config.game
    parts: list[np.ndarray] = []
    metrics: Metrics = {}
    for target, names in by_target([*answers], config).items():
        of_target = [answers[name] for name in names]
        weights = aggregate_weights([f.r2 for f in of_target], kind=game.aggregate, temperature=game.temperature)
        grad = np.sum([w * f.grad_z for w, f in zip(weights, of_target, strict=True) if w], axis=0)
        parts.append(weight(target) * grad)
        strongest = "privacy/training_r2" if target == PICTURE else f"sensitive/{sensitive_name(target)}/training_r2"
        metrics[strongest] = max(f.r2 for f in of_target)
        for w, f in zip(weights, of_target, strict=True):
            metrics |= {f"adversary/{f.name}/{key}": value for key, value in f.metrics.items()}
            metrics |= {f"adversary/{f.name}/r2": f.r2, f"adversary/{f.name}/weight": float(w)}
    return Aggregate(reduce(np.add, parts), metrics)
