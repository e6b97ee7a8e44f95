"""The attribute map: which other attributes can be inferred from z? Hiding the picture does not hide all its properties (Stadler et
al., ICML 2024: any useful z reveals some attribute that is not the task)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cpgan_ray.common.optimisers import AdamW
from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.config import NeuralConfig
from cpgan_ray.data.task import Task, frequencies, value_counts
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, predict
from cpgan_ray.evaluation.scoring import accuracy_intervals
from cpgan_ray.models.decoders import mlp
from cpgan_ray.training.accuracy import balanced_accuracy, correct_predictions, mean_of_finite
from cpgan_ray.training.losses import utility_loss

EPOCHS, PATIENCE, BATCH, WIDTH = 30, 4, 256, 256


@dataclass(frozen=True)
class InferredAttribute:
    """How well a classifier that was trained on other people infers one attribute from z."""

    name: str
    task: bool  # whether it belongs to the task
    late: bool  # whether it belongs to the late tasks: then it is meant to be inferred, and no leak
    balanced_accuracy: float
    chance: float  # balanced accuracy of the majority guess: 1 / number of values
    low: float | None  # 95 % bootstrap interval over people; None if too few samples have an answer
    high: float | None
    positive_share: float | None  # of a binary attribute: the share of its second value on the score set

    @property
    def scaled_accuracy(self) -> float:
        """The balanced accuracy on the scale of a binary attribute: 0.5 is the majority guess, 1 is perfect."""
        if self.chance == 0.5:
            return self.balanced_accuracy
        return 0.5 + 0.5 * (self.balanced_accuracy - self.chance) / (1 - self.chance)


@dataclass(frozen=True, eq=False)
class Inferred:
    """The answers of the best classifiers to the score rows, for the labels of which two values occur in all sets."""

    of: Task  # these labels
    labels: np.ndarray  # (N, L) true answers to the score rows
    right: np.ndarray  # (N, L) bool
    balanced_accuracy: np.ndarray  # (L,) on the score rows


def attribute_map(
    data: AttackData, labels: dict[str, np.ndarray], *, of: Task, task: set[str], late: Collection[str] = ()
) -> list[InferredAttribute]:
    """How well each attribute is inferred from the codes, by `infer`.

    labels: see `infer`; of: the attributes; task: names of those that belong to the task; late: of those of late tasks.
    """
    inferred = infer({name: getattr(data, name).z for name in ("fit", "tune", "score")}, labels, of=of, seed=data.seed)
    if inferred is None:
        return []
    of, num_values = inferred.of, inferred.of.num_values
    _, ends = accuracy_intervals(inferred.right, inferred.labels, data.score.identity, num_values=num_values, seed=data.seed)
    positive = frequencies(inferred.labels, of)
    return [
        InferredAttribute(
            name=label.name,
            task=label.name in task,
            late=label.name in late,
            balanced_accuracy=float(inferred.balanced_accuracy[i]),
            low=float(ends[i, 0]) if np.isfinite(ends[i, 0]) else None,
            high=float(ends[i, 1]) if np.isfinite(ends[i, 1]) else None,
            chance=1 / len(label.values),
            positive_share=float(positive[label.first_logit]) if label.binary else None,
        )
        for i, label in enumerate(of.labels)
    ]


def infer(codes: Mapping[str, torch.Tensor], labels: Mapping[str, np.ndarray], *, of: Task, seed: int) -> Inferred | None:
    """Train a linear and a two-layer classifier of all labels at once, class-weighted, on standardised codes. For each label the
    classifier that is better on the tuning rows answers the score rows. Missing answers do not count.

    codes: `fit`, `tune`, `score`, each (N, k); labels: the same sets, each (N, columns) with the answers of `of`. Labels of which
    fewer than two values occur in one of the three are left out; None if no others are left.
    """
    counts = {name: value_counts(values[:, of.columns], of) for name, values in labels.items()}
    varying = [all((c[i] > 0).sum() > 1 for c in counts.values()) for i in range(len(of.labels))]
    if not any(varying):
        return None
    chosen = [label for label, varies in zip(of.labels, varying, strict=True) if varies]
    classes = {label.name: label.values for label in chosen}
    labels = {s: np.ascontiguousarray(y[:, [label.column for label in chosen]]) for s, y in labels.items()}
    of = Task.of([label.name for label in chosen], classes=classes)
    prepare = CodeMap(codes["fit"], how="standardised")
    z = {name: predict(prepare, values) for name, values in codes.items()}
    share = torch.from_numpy(frequencies(labels["fit"], of)).float().to(z["fit"].device)
    all_logits = []
    for depth in (0, 2):
        config = NeuralConfig(architecture="mlp", width=WIDTH, depth=max(depth, 1), dropout=0.3)
        with torch_stream(seed, "attribute_map", depth):
            k, outputs = z["fit"].shape[1], of.num_logits
            network = nn.Linear(k, outputs) if depth == 0 else mlp(config, k=k, target=outputs)
            all_logits.append(train_classifiers(network.to(z["fit"].device), z, labels, of, share=share, seed=seed))
    tuned = np.stack([balanced_accuracy(logits["tune"], labels["tune"], of) for logits in all_logits])
    scored = np.stack([balanced_accuracy(logits["score"], labels["score"], of) for logits in all_logits])
    best = np.argmax(tuned, axis=0)
    right = np.stack([correct_predictions(logits["score"], labels["score"], of) for logits in all_logits])
    right = right[best, :, np.arange(len(best))].T
    return Inferred(of, labels["score"], right, scored[best, np.arange(len(best))])


def train_classifiers(
    network: nn.Module, z: dict[str, torch.Tensor], labels: dict[str, np.ndarray], of: Task, *, share: torch.Tensor, seed: int
) -> dict[str, np.ndarray]:
    """Logits on the tuning rows and the score rows at the network's best epoch, by mean balanced accuracy on the tuning rows."""
    y = torch.from_numpy(labels["fit"]).to(z["fit"].device)
    rng = stream(seed, "attribute_map")
    optimiser = AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    best, best_logits, epochs_since_best = -1.0, {}, 0
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.from_numpy(rng.permutation(len(y))).split(BATCH):
            loss = utility_loss(network(z["fit"][rows]), y[rows], of, positive_share=share)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        network.eval()
        logits = {name: predict(network, z[name]).cpu().numpy() for name in ("tune", "score")}
        mean = mean_of_finite(balanced_accuracy(logits["tune"], labels["tune"], of))
        if mean > best:
            best, best_logits, epochs_since_best = mean, logits, 0
        elif (epochs_since_best := epochs_since_best + 1) >= PATIENCE:
            break
    return best_logits
