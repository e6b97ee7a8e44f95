"""The first honest number: fresh attacks in the `leaked` variant, scored on pictures of people that nobody was fitted on.

The attacks are given the defender's own training pictures, plain and mirrored, with their codes; they choose their settings on the
validation split and are scored once on the test split. Identities are disjoint between the splits.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cpgan_ray.adversaries.base import Target
from cpgan_ray.config import AttackConfig, Config
from cpgan_ray.data import Dataset
from cpgan_ray.data.base import consecutive
from cpgan_ray.data.projection import DEFAULT_COMPONENTS, Projection, projection, targets
from cpgan_ray.evaluation.attacks import ATTACKS, AttackData, Fitted, Pairs
from cpgan_ray.evaluation.scoring import Score, score
from cpgan_ray.messages import Outcome
from cpgan_ray.streams import stream

LABEL_ATTACKS = ("ridge", "mlp")


@dataclass(frozen=True)
class Attacked:
    """An attack, what it found, and how long it took."""

    name: str
    fitted: Fitted
    score: Score
    seconds: float


def pairs(z: np.ndarray, values: np.ndarray, residual: np.ndarray, *, dimension: int) -> Pairs:
    tensors = [torch.from_numpy(np.require(a, np.float32, ["C", "W"])) for a in (z, values, residual)]
    return Pairs(tensors[0], Target(tensors[1], tensors[2], dimension))


def attack_data(dataset: Dataset, codes: dict[str, np.ndarray], *, basis: Projection, max_rows: int, seed: int) -> AttackData:
    """Three disjoint sets of pairs from codes of `train`, `train_mirrored`, `val`, `test`; at most `max_rows` training pictures."""
    dimension = int(np.prod(dataset.image_shape))
    rows = np.arange(len(dataset.train))
    if max_rows and max_rows < len(rows):
        rows = np.sort(stream(seed, "attack", "rows").choice(rows, max_rows, replace=False))
    plain, residual = np.asarray(basis.coordinates[rows]), np.asarray(basis.residual[rows])
    fit = pairs(
        np.concatenate([codes["train"][rows], codes["train_mirrored"][rows]]),
        np.concatenate([plain, plain * basis.parity]),
        np.concatenate([residual, residual]),
        dimension=dimension,
    )
    held_out = {}
    for name in ("val", "test"):
        split = getattr(dataset, name)
        held_out[name] = pairs(codes[name], *targets(basis, split, consecutive(0, len(split))), dimension=dimension)
    return AttackData(fit=fit, tune=held_out["val"], score=held_out["test"], seed=seed)


def attack_all(data: AttackData, config: AttackConfig, *, names: tuple[str, ...], identity: np.ndarray) -> list[Attacked]:
    """Each named attack, fitted and scored; the strongest first."""
    found = []
    for name in names:
        started = time.perf_counter()
        fitted = ATTACKS[name](data, config)
        found.append(Attacked(name, fitted, score(data, fitted, identity=identity), time.perf_counter() - started))
    return sorted(found, key=lambda a: -a.score.r2)


def attack_run(config: Config, dataset: Dataset, outcome: Outcome) -> tuple[AttackData, list[Attacked]]:
    """The fresh attacks on a finished game's codes, the strongest first."""
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    data = attack_data(dataset, outcome.codes, basis=basis, max_rows=config.attacks.max_rows, seed=config.seed)
    return data, attack_all(data, config.attacks, names=config.attacks.names, identity=dataset.test.identity)


def label_floor(config: Config, dataset: Dataset) -> Attacked:
    """Pictures predicted from all true labels, linear and neural: what an answer to the task gives away by itself."""
    labels = {name: getattr(dataset, name).labels.astype(np.float32) for name in ("train", "val", "test")}
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    codes = labels | {"train_mirrored": labels["train"]}
    data = attack_data(dataset, codes, basis=basis, max_rows=config.attacks.max_rows, seed=config.seed)
    return attack_all(data, config.attacks, names=LABEL_ATTACKS, identity=dataset.test.identity)[0]


def report(attacked: list[Attacked], floor: Attacked, *, utility: dict[str, float], config: Config) -> dict[str, Any]:
    """`report.json`: utility, the privacy headline, and every attack."""
    strongest = attacked[0]
    return {
        "preset": config.preset,
        "k": config.k,
        "privacy_weight": config.privacy_weight,
        "seed": config.seed,
        "utility": utility,
        "privacy": {
            "strongest": {
                "attack": strongest.name,
                "variant": "leaked",
                "r2": strongest.score.r2,
                "low": strongest.score.low,
                "high": strongest.score.high,
            },
            "label_floor_r2": floor.score.r2,
            "excess_r2": strongest.score.r2 - floor.score.r2,
        },
        "attacks": [
            {"name": a.name, "variant": "leaked", **asdict(a.score), "seconds": a.seconds, "settings": a.fitted.settings}
            for a in attacked
        ],
    }
