"""CelebA networks of the reference implementation, for one attribute and for all 40: privatizer stages and utility heads."""

import torch
from torch import Tensor, nn

from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.same_padding import Same, initialise
from cpgan_ray.models.pointwise import StridedPointwise


def leaky_stages(channels: int) -> nn.Sequential:
    """CelebA-single: four strided 3x3 convolutions, leaky ReLU before batch norm, N(0, 0.02); 112x112 -> (B, 256, 7, 7)."""
    stages: list[nn.Module] = []
    for inputs, out in ((channels, 32), (32, 64), (64, 128), (128, 256)):
        stages += [Same(3, stride=2), nn.Conv2d(inputs, out, 3, stride=2), nn.LeakyReLU(0.2), nn.BatchNorm2d(out)]
    return initialise(nn.Sequential(*stages), normal=0.02)


def leaky_head(k: int, *, outputs: int, hidden: int = 256, dropout: float = 0.5) -> nn.Sequential:
    """CelebA-single: two hidden layers, leaky ReLU before batch norm, dropout: (B, k) -> (B, outputs)."""
    layers: list[nn.Module] = []
    for width in (k, hidden):
        layers += [nn.Linear(width, hidden), nn.LeakyReLU(0.2), nn.BatchNorm1d(hidden), nn.Dropout(dropout)]
    return initialise(nn.Sequential(*layers, nn.Linear(hidden, outputs)))


def pool() -> nn.Sequential:
    """3x3 max-pool with stride 2, SAME."""
    return nn.Sequential(Same(3, stride=2, value=-torch.inf), nn.MaxPool2d(3, 2))


def halve(channels: int) -> nn.Sequential:
    """Strided 3x3 convolution, SAME, and ReLU."""
    return nn.Sequential(Same(3, stride=2), nn.Conv2d(channels, 64, 3, stride=2), nn.ReLU())


class SubNet(nn.Module):
    """Three branches that each halve the picture twice; their outputs are joined along the width, pooled and flattened:
    (B, 64, 22, 22) -> (B, 1728)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(pool(), halve(64))])
        self.branches.extend(nn.Sequential(StridedPointwise(64, 64, stride=2, bias=True), nn.ReLU(), halve(64)) for _ in range(2))
        self.pool = pool()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.cat([branch(x) for branch in self.branches], 3)).flatten(1)


class SubNets(nn.Module):
    """CelebA-multi: a common trunk and two sub-nets, (B, C, 175, 175) -> (B, 3456), the output of the first sub-net first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.ReLU(),
            pool(),
        )
        self.first, self.second = SubNet(), SubNet()
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.trunk(x)
        return torch.cat([self.first(trunk), self.second(trunk)], 1)


def halves_map(flat: int, k: int) -> nn.Sequential:
    """The linear map for `SubNets`, (B, flat) -> (B, k): each half of the code comes from one half of the features.

    Raises:
        InputError: k is odd.
    """
    if k % 2:
        raise InputError(f"k is {k}; each of the two sub-nets gives half of the code: set k to an even number")
    return initialise(nn.Sequential(nn.Unflatten(1, (flat, 1)), nn.Conv1d(flat, k, 1, groups=2), nn.Flatten()))


class GroupedHead(nn.Module):
    """CelebA-multi: three groups of attributes; the first reads the first half of the code, the other two read the second half.

    (B, k) -> (B, sum(groups)) logits, one per attribute (the reference implementation has two and a softmax). Each group has its
    own two hidden layers, and its outputs read the second layer (in the reference implementation the last two groups read the first
    layer, by mistake).

    Raises:
        InputError: k is odd.
    """

    def __init__(self, k: int, *, groups: tuple[int, int, int] = (8, 14, 18), hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        if k % 2:
            raise InputError(f"k is {k}; each group of attributes reads half of the code: set k to an even number")
        self.outputs = sum(groups)
        self.groups = nn.ModuleList(
            nn.Sequential(
                nn.Linear(k // 2, hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, group),
            )
            for group in groups
        )
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        first, second = z.chunk(2, 1)
        return torch.cat([group(half) for group, half in zip(self.groups, (first, second, second), strict=True)], 1)
