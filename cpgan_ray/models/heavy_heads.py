"""Utility heads for a cloud that can spend much: what they cost is not the client's cost."""

import math

import torch
from torch import Tensor, nn

MAX_TOKENS = 32
"""Coordinates of longer codes share tokens."""
HEAD_WIDTH = 16
"""Width of an attention head."""


class ResidualHead(nn.Module):
    """A residual perceptron: (B, k) -> (B, num_logits). A linear map to `width` units, blocks of batch norm, ReLU and a linear map,
    twice, added to their input (Y. Gorishniy et al., Revisiting Deep Learning Models for Tabular Data, NeurIPS 2021), and a linear
    map to the logits."""

    def __init__(self, k: int, *, num_logits: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(k, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(width, width),
            )
            for _ in range(depth)
        )
        self.last = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_logits))

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class TransformerHead(nn.Module):
    """A transformer over the coordinates of the code: (B, k) -> (B, num_logits).

    Each coordinate is a token, an affine map of its value (Gorishniy et al. 2021); of codes with more than 32 numbers each token
    has several neighbouring ones. One more token, learned, collects the answer.
    """

    def __init__(self, k: int, *, num_logits: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.size = math.ceil(k / MAX_TOKENS)
        self.tokens = math.ceil(k / self.size)
        self.padding = self.tokens * self.size - k
        self.weight = nn.Parameter(torch.randn(self.tokens, self.size, width) / math.sqrt(self.size))
        self.bias = nn.Parameter(torch.randn(self.tokens, width))
        self.answer = nn.Parameter(torch.randn(1, width))
        self.layers = nn.ModuleList(Encoder(width, dropout=dropout) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, num_logits))

    def forward(self, z: Tensor) -> Tensor:
        padded = nn.functional.pad(z, (0, self.padding)).unflatten(1, (self.tokens, self.size))
        coordinates = torch.einsum("btg,tgd->btd", padded, self.weight) + self.bias
        x = torch.cat([self.answer.expand(z.shape[0], 1, -1).to(coordinates.dtype), coordinates], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.last(x[:, 0])


class Encoder(nn.Module):
    """One layer with layer norms in front of self-attention and of a perceptron: (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.norm, self.project, self.merge = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(dim=3)
        x = x + self.dropout(self.merge((attention @ value).transpose(1, 2).flatten(2)))
        return x + self.dropout(self.perceptron(x))


class EnsembleHead(nn.Module):
    """The mean of the logits of several classifiers, which are trained together: (B, k) -> (B, num_logits)."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([member(z) for member in self.members]).mean(dim=0)
