"""Fresh attacks on frozen codes: reconstructors that took no part in training, each at the best of its settings.

An attack is fitted on one set of (code, picture) pairs, chooses its settings on a second, and is scored once on a third. Which
settings win is decided on the tuning rows alone.

To add an attack: a function of `AttackData` and the settings, and a line in ATTACKS.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpgan_ray.adversaries.base import Target, code_map
from cpgan_ray.adversaries.kernel import FourierFeatures, median_distance
from cpgan_ray.adversaries.linear import LinearMap, NormalEquations
from cpgan_ray.config import AttackConfig, NeuralConfig
from cpgan_ray.nets.reconstructors import mlp
from cpgan_ray.process import torch_stream
from cpgan_ray.streams import stream

BLOCK = 4096
RIDGE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
KERNEL_BANDWIDTHS = (0.5, 1.0, 2.0, 4.0)
KERNEL_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
MLP_BATCH = 512
MLP_PATIENCE = 4


@dataclass(frozen=True)
class Pairs:
    """Codes and the pictures behind them: z (N, k), the target of N rows."""

    z: Tensor
    target: Target

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.z.split(size), self.target.values.split(size), strict=True)


@dataclass(frozen=True)
class AttackData:
    """Three disjoint sets of pairs."""

    fit: Pairs
    tune: Pairs
    score: Pairs
    seed: int


Reconstructor = Callable[[Tensor], Tensor]
"""Codes (B, k) -> targets (B, p)."""


@dataclass(frozen=True)
class Fitted:
    """An attack at its best settings."""

    reconstruct: Reconstructor
    settings: dict[str, object]


@torch.no_grad()
def predict(reconstruct: Reconstructor, z: Tensor) -> Tensor:
    """Reconstructions (N, p), block by block."""
    return torch.cat([reconstruct(block) for block in z.split(BLOCK)])


def error_on(pairs: Pairs, reconstruct: Reconstructor) -> float:
    """Mean squared error per value."""
    return float(pairs.target.errors(predict(reconstruct, pairs.z)).double().mean())


def affine(fit: LinearMap) -> Reconstructor:
    weight, bias = fit.weight.float(), fit.bias.float()
    return lambda z: z @ weight + bias


def prepared(fitted: Tensor, how: str) -> Reconstructor:
    """The affine map that standardises or whitens codes with the statistics of those fitted on, in float64 inside."""
    origin, matrix = code_map(fitted, how=how)
    return lambda z: ((z.double() - origin) @ matrix).float()


def ridge_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """The best affine reconstruction, on whitened codes: no scale of a direction protects it. Penalty by the tuning rows."""
    prepare = prepared(data.fit.z, "whitened")
    sums = NormalEquations(prepare(data.fit.z[:1]).shape[1], data.fit.target.values.shape[1])
    for z, x in data.fit.blocks():
        sums.add(prepare(z), x)
    found = []
    for penalty in RIDGE_PENALTIES:
        solved = affine(sums.solve(penalty=penalty))
        whole = lambda z, solved=solved: solved(prepare(z))  # noqa: E731
        found.append((error_on(data.tune, whole), penalty, whole))
    _, penalty, best = min(found, key=lambda f: f[0])
    return Fitted(best, {"penalty": penalty})


def kernel_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """RBF kernel ridge by random Fourier features on standardised and on whitened codes; bandwidth and penalty by the tuning rows.

    The search uses a quarter of the features; the winner is fitted with all of them.
    """

    def fit(how: str, bandwidth: float, features: int, penalties: tuple[float, ...]) -> list[tuple[float, float, Reconstructor]]:
        prepare = prepared(data.fit.z, how)
        codes = prepare(data.fit.z[:512])
        width = bandwidth * median_distance(codes)
        phi = FourierFeatures(codes.shape[1], features, rng=stream(data.seed, "attack", "kernel", features), device=codes.device)
        lift = lambda z: phi(prepare(z), width=width)  # noqa: E731
        sums = NormalEquations(features, data.fit.target.values.shape[1])
        for z, x in data.fit.blocks():
            sums.add(lift(z), x)
        results = []
        for penalty in penalties:
            reconstruct = affine(sums.solve(penalty=penalty))
            whole = lambda z, reconstruct=reconstruct: reconstruct(lift(z))  # noqa: E731
            results.append((error_on(data.tune, whole), penalty, whole))
        return results

    grid = [(how, bandwidth) for how in ("standardised", "whitened") for bandwidth in KERNEL_BANDWIDTHS]
    few = max(1, config.kernel_features // 4)
    search = [(*min(fit(how, b, few, KERNEL_PENALTIES), key=lambda f: f[0])[:2], how, b) for how, b in grid]
    _, _, how, bandwidth = min(search, key=lambda s: s[0])
    _, penalty, best = min(fit(how, bandwidth, config.kernel_features, KERNEL_PENALTIES), key=lambda f: f[0])
    return Fitted(best, {"codes": how, "bandwidth": bandwidth, "penalty": penalty, "features": config.kernel_features})


def mlp_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """Two-layer perceptrons of several widths, with and without dropout, on standardised and on whitened codes.

    Adam, early stopping on the tuning rows; the best of all on the tuning rows is the attack.
    """
    found = []
    for width in config.mlp_widths:
        for how, dropout in (("standardised", 0.0), ("standardised", 0.5), ("whitened", 0.5)):
            found.append(
                (
                    *train_mlp(data, config, width=width, how=how, dropout=dropout),
                    {"width": width, "codes": how, "dropout": dropout},
                )
            )
    _, best, settings = min(found, key=lambda f: f[0])
    return Fitted(best, settings)


def train_mlp(data: AttackData, config: AttackConfig, *, width: int, how: str, dropout: float) -> tuple[float, Reconstructor]:
    """One perceptron: its tuning error and itself, as it was in its best epoch."""
    prepare = prepared(data.fit.z, how)
    z, x = prepare(data.fit.z), data.fit.target.values
    scale = x.std().clamp(min=1e-6)
    rng = stream(data.seed, "attack", "mlp", width, how, str(dropout))
    with torch_stream(data.seed, "attack", "mlp", width, how, str(dropout)):
        network = mlp(NeuralConfig(architecture="mlp", width=width, depth=2, dropout=dropout), k=z.shape[1], target=x.shape[1])
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
        reconstruct = lambda codes: network(prepare(codes)) * scale  # noqa: E731
        best, weights, since = float("inf"), network.state_dict(), 0
        for _ in range(config.mlp_epochs):
            network.train()
            for rows in torch.from_numpy(rng.permutation(len(z))).split(MLP_BATCH):
                loss = nn.functional.mse_loss(network(z[rows]), x[rows] / scale)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            network.eval()
            error = error_on(data.tune, reconstruct)
            if error < best:
                best, since = error, 0
                weights = {name: value.clone() for name, value in network.state_dict().items()}
            elif (since := since + 1) >= MLP_PATIENCE:
                break
        network.load_state_dict(weights)
    return best, reconstruct


ATTACKS: dict[str, Callable[[AttackData, AttackConfig], Fitted]] = {
    "ridge": ridge_attack,
    "kernel": kernel_attack,
    "mlp": mlp_attack,
}
