"""Utility heads: the classifier that Bob runs on z."""

from torch import nn

from cpgan_ray.config import UtilityConfig


def build_head(config: UtilityConfig, *, k: int, num_labels: int) -> nn.Module:
    """Classifier on z: (B, k) -> (B, num_labels) logits. Two hidden layers with batch norm and dropout, or none (SPEC 1.8)."""
    if config.hidden == 0:
        return nn.Linear(k, num_labels)
    layers: list[nn.Module] = []
    for width_in in (k, config.hidden):
        layers += [
            nn.Linear(width_in, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(config.dropout),
        ]
    return nn.Sequential(*layers, nn.Linear(config.hidden, num_labels))
