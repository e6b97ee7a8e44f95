"""The attribute map: which other attributes can be inferred from z? Hiding the picture does not hide all its properties (Stadler et
al., ICML 2024: any useful z reveals some attribute that is not the task)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.config import NeuralConfig
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, predict
from cpgan_ray.models.decoders import mlp
from cpgan_ray.training.losses import balanced_accuracy, utility_loss

EPOCHS, PATIENCE, BATCH, WIDTH = 30, 4, 256, 256


@dataclass(frozen=True)
class InferredAttribute:
    """How well a classifier that was trained on other people infers one attribute from z; 0.5 is the majority guess."""

    name: str
    task: bool  # whether it belongs to the task
    balanced_accuracy: float
    positive_share: float  # on the score set


def attribute_map(
    data: AttackData, labels: dict[str, np.ndarray], *, names: tuple[str, ...], task: set[str]
) -> list[InferredAttribute]:
    """Train a linear and a two-layer classifier of all attributes at once, class-weighted, on standardised codes. For each
    attribute the classifier that is better on the tuning rows is scored on the score rows.

    labels: `fit`, `tune`, `score`, each (N, L) of 0/1. Attributes that are constant in one of the three are left out.
    """
    varying = np.all([labels[s].min(axis=0) < labels[s].max(axis=0) for s in ("fit", "tune", "score")], axis=0)
    if not varying.any():
        return []
    names = tuple(name for name, varies in zip(names, varying, strict=True) if varies)
    labels = {s: np.ascontiguousarray(y[:, varying]) for s, y in labels.items()}
    prepare = CodeMap(data.fit.z, how="standardised")
    z = {name: predict(prepare, getattr(data, name).z) for name in ("fit", "tune", "score")}
    share = torch.from_numpy(labels["fit"].mean(axis=0, dtype=np.float64)).float().to(z["fit"].device)
    all_logits = []
    for depth in (0, 2):
        config = NeuralConfig(architecture="mlp", width=WIDTH, depth=max(depth, 1), dropout=0.3)
        with torch_stream(data.seed, "attribute_map", depth):
            k, outputs = z["fit"].shape[1], len(names)
            network = nn.Linear(k, outputs) if depth == 0 else mlp(config, k=k, target=outputs)
            all_logits.append(train_classifiers(network.to(z["fit"].device), z, labels, share=share, seed=data.seed))
    tuned = np.stack([balanced_accuracy(logits["tune"], labels["tune"]) for logits in all_logits])
    scored = np.stack([balanced_accuracy(logits["score"], labels["score"]) for logits in all_logits])
    return [
        InferredAttribute(name, name in task, float(scored[np.argmax(tuned[:, i]), i]), float(labels["score"][:, i].mean()))
        for i, name in enumerate(names)
    ]


def train_classifiers(
    network: nn.Module, z: dict[str, torch.Tensor], labels: dict[str, np.ndarray], *, share: torch.Tensor, seed: int
) -> dict[str, np.ndarray]:
    """Logits on the tuning rows and the score rows at the network's best epoch, by mean balanced accuracy on the tuning rows."""
    y = torch.from_numpy(labels["fit"]).to(z["fit"].device)
    rng = stream(seed, "attribute_map")
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    best, best_logits, epochs_since_best = -1.0, {}, 0
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.from_numpy(rng.permutation(len(y))).split(BATCH):
            loss = utility_loss(network(z["fit"][rows]), y[rows].float(), positive_share=share)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        network.eval()
        logits = {name: predict(network, z[name]).cpu().numpy() for name in ("tune", "score")}
        mean = float(np.nanmean(balanced_accuracy(logits["tune"], labels["tune"])))
        if mean > best:
            best, best_logits, epochs_since_best = mean, logits, 0
        elif (epochs_since_best := epochs_since_best + 1) >= PATIENCE:
            break
    return best_logits
