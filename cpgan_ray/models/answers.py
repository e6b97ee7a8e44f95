"""The game on answers: the client runs a whole classifier, and what it sends are answers, one number for each label.

A trained classifier stays as it is. A small network, which starts at zero, sees its features and logits and changes the logits
before they become answers. The game trains that network only: at first the code is the classifier's hard answers, and the game then
gives up those that show more of the picture than they are worth, each of them only on the pictures where it matters.

Nothing that Bob computes from a code can show more than the code does. So at the accuracy of some answers, and where the client can
afford the classifier, no code shows less than the best choice of answers.
"""

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cpgan_ray.common.codec import level_range
from cpgan_ray.config import PrivatizerConfig, UtilityConfig
from cpgan_ray.config.players import ANSWER_STEP
from cpgan_ray.errors import InputError
from cpgan_ray.models.pretrained import read_weights
from cpgan_ray.models.privatizers import Privatizer, round_to
from cpgan_ray.models.utility_heads import build_head

ARCHITECTURE, SPREAD = "architecture", "spread"
"""Entries of a classifier's file apart from its weights: the settings of its networks as JSON, and the standard deviation of each
logit over the training samples (num_logits,)."""
OF_PRIVATIZER = ("family", "options", "norm_momentum", "bottleneck", "code_activation", "width", "depth", "symmetric")
OF_HEAD = ("family", "options", "depth", "width", "members", "hidden", "dropout")
"""The settings on which the form of the two networks depends."""
HIDDEN = 256
"""Units in each of the two hidden layers of the network that changes the answers."""


class FixedNorm(nn.Module):
    """A batch norm in evaluation mode, as a scale and a shift for each channel (dimension 1), which nothing changes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = 1 / torch.sqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift if norm.bias is None else shift + norm.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)


def fix_norms(network: nn.Module) -> None:
    """Replace every batch norm in a network by a `FixedNorm`, in place."""
    for name, part in list(network.named_modules()):
        if isinstance(part, _BatchNorm):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, FixedNorm(part))


class Classifier(nn.Module):
    """A trained privatizer without rounding and its utility head, which stay as they are: pictures (B, C, H, W) -> features (B, K)
    and logits (B, num_logits)."""

    spread: Tensor

    def __init__(self, file: str, *, image_shape: tuple[int, int, int]) -> None:
        """file: of `classifier_bytes`, with its digest.

        Raises: InputError if it cannot be read, or is for other pictures.
        """
        super().__init__()
        weights = read_weights(file)
        try:
            settings = json.loads(bytes(weights.pop(ARCHITECTURE).tolist()))
            self.register_buffer(SPREAD, weights.pop(SPREAD))
            privatizer, head = PrivatizerConfig(**settings["privatizer"]), UtilityConfig(**settings["utility"])
            self.widths, shape = [int(width) for width in settings["widths"]], tuple(settings["image_shape"])
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(
                f"privatizer.weights {file.partition('@')[0]} is not the file of a classifier ({type(e).__name__}): delete it, "
                "it is made again"
            ) from e
        if shape != tuple(image_shape):
            raise InputError(f"privatizer.classifier takes samples of shape {shape}, the store has {image_shape}: give another one")
        self.k, self.num_logits = int(settings["k"]), sum(self.widths)
        self.privatizer = Privatizer(privatizer, k=self.k, image_shape=image_shape)
        self.head = build_head(head, k=self.k, num_logits=self.num_logits, image_shape=image_shape)
        if self.spread.device.type != "meta" and next(self.privatizer.parameters()).device.type != "meta":
            self.load_state_dict({SPREAD: self.spread, **weights}, strict=False)
        fix_norms(self)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Classifier":
        """Stays in evaluation mode: without dropout."""
        return super().train(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.privatizer(x)
        return features, self.head(features).float()


def classifier_bytes(
    networks: Mapping[str, Mapping[str, Tensor]],
    spread: np.ndarray,
    *,
    widths: Sequence[int],
    privatizer: PrivatizerConfig,
    utility: UtilityConfig,
    k: int,
    image_shape: tuple[int, int, int],
) -> bytes:
    """The file of a classifier: its weights, architecture and spread.

    networks: the state dicts of `privatizer` and `head`; spread: see SPREAD; widths: the number of logits of each label.
    """
    settings = {
        "privatizer": {name: getattr(privatizer, name) for name in OF_PRIVATIZER},
        "utility": {name: getattr(utility, name) for name in OF_HEAD},
        "k": k,
        "widths": list(widths),
        "image_shape": list(image_shape),
    }
    tensors = {f"{part}.{name}": value.detach().cpu().clone() for part, state in networks.items() for name, value in state.items()}
    tensors[SPREAD] = torch.from_numpy(spread.astype(np.float32))
    tensors[ARCHITECTURE] = torch.frombuffer(bytearray(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)
    torch.save(tensors, buffer := io.BytesIO())
    return buffer.getvalue()


class AnswersPrivatizer(nn.Module):
    """Pictures (B, C, H, W) -> answers (B, num_logits), whole numbers of `levels` levels; two levels, -1 and 0, are hard answers.

    With logits l of the classifier in units of their spread, the answers to labels of two values are round_to(l + c(features, l));
    c starts at 0. Of a label of several values the largest one is 0 and the others are -1; the gradient is that of their softmax.
    """

    def __init__(self, config: PrivatizerConfig, *, k: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if config.weights is None:
            raise ValueError("privatizer.weights is not set: pipelines.classifier.with_classifier sets it")
        self.levels = config.levels
        self.classifier = Classifier(config.weights, image_shape=image_shape)
        if k != (labels := self.classifier.num_logits):
            raise InputError(
                f"k is {k}, but privatizer.family 'answers' sends one number for each of the {labels} logits: set --k {labels}"
            )
        if self.levels != 2 and max(self.classifier.widths) > 1:
            raise InputError(
                f"privatizer.levels is {self.levels}, but a label has more than two values, whose answers are hard: set "
                "--privatizer.levels 2"
            )
        width = self.classifier.k + labels
        self.change = nn.Sequential(
            nn.BatchNorm1d(width, affine=False),
            nn.Linear(width, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, labels),
        )
        last = self.change[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: none; these codes have none."""
        features, logits = self.classifier(x)
        certainty = logits / self.classifier.spread
        certainty = certainty + self.change(torch.cat([features, certainty], dim=1)).float()
        if max(self.classifier.widths) == 1:
            return round_to(certainty, ANSWER_STEP, self.levels)
        parts = [
            round_to(part, ANSWER_STEP, self.levels) if part.shape[1] == 1 else largest(part)
            for part in certainty.split(self.classifier.widths, dim=1)
        ]
        return torch.cat(parts, dim=1)


def largest(values: Tensor) -> Tensor:
    """0 for the largest of the values (B, C) of a row and -1 for the others, with the gradient of their softmax."""
    soft = values.softmax(dim=1)
    hard = nn.functional.one_hot(values.argmax(dim=1), values.shape[1]).to(values.dtype)
    return soft + (hard - soft).detach() - 1


def answer_shares(z: Tensor, *, levels: int) -> Tensor:
    """Codes (B, num_logits) of answers, whole numbers, as values from 0 (surely not this value of the label) to 1 (surely)."""
    lowest, highest = level_range(levels)
    return (z - lowest) / (highest - lowest)
