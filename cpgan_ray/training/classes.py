"""Hidden labels as numbers, and as the classes of a network that recovers them from the codes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cpgan_ray.data.store import MISSING
from cpgan_ray.data.task import Task, frequencies


@dataclass(frozen=True, eq=False)
class Classes:
    """The hidden labels of an attribute target, whose classifier has a logit for each value of the target."""

    task: Task
    share: Tensor  # (p,) training frequency of the value that each logit stands for
    deviation: Tensor  # (p,) by which values are divided

    @staticmethod
    def of(task: Task, y: np.ndarray) -> "Classes":
        """y: (N, L) training answers."""
        share = frequencies(y, task)
        deviation = np.sqrt(share * (1 - share))
        for label in task.labels:
            if not label.binary:
                deviation[label.logits] = np.sqrt(np.square(deviation[label.logits]).mean())
        return Classes(task, torch.from_numpy(share).float(), torch.from_numpy(deviation).float())

    def values(self, y: np.ndarray) -> np.ndarray:
        """The values (N, p) float32 of answers (N, L); 0 where an answer is missing."""
        columns = []
        for column, label in zip(y.T, self.task.labels, strict=True):
            truth = (column == 1)[:, None] if label.binary else column[:, None] == np.arange(len(label.values))
            values = (truth - self.share[label.logits].numpy()) / self.deviation[label.logits].numpy()
            columns.append(np.where((column == MISSING)[:, None], 0.0, values))
        return np.concatenate(columns, axis=1).astype(np.float32)

    def predicted(self, logits: Tensor) -> Tensor:
        """The values (B, p) that logits (B, p) predict: the same map of their probabilities."""
        parts = [
            torch.sigmoid(part) if label.binary else part.softmax(1)
            for label in self.task.labels
            for part in (logits[:, label.logits],)
        ]
        return (torch.cat(parts, dim=1) - self.share.to(logits)) / self.deviation.to(logits)

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """Mean cross-entropy over rows and labels, a scalar.

        values: (B, p), see `values`: above 0 for the true value of a label, and below 0 for its other values.
        """
        truth = (values > 0).to(logits.dtype)
        parts = [
            F.binary_cross_entropy_with_logits(logits[:, label.logits], truth[:, label.logits])
            if label.binary
            else F.cross_entropy(logits[:, label.logits], truth[:, label.logits])
            for label in self.task.labels
        ]
        return torch.stack(parts).mean()

    def to(self, device: torch.device) -> "Classes":
        return Classes(self.task, self.share.to(device), self.deviation.to(device))
