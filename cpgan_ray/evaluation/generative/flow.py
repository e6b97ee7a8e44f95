"""A rectified flow from a prediction to the pictures: draws x from its conditional distribution given the code.

With m the prediction of x, S the second moments of its errors, r = S^(-1/2) (x - m) the whitened error, and e standard normal
noise, the flow starts at u_0 = NOISE e and ends at u_1 = r. On the straight line u_t = t u_1 + (1 - t) u_0 the velocity is v(u, t)
= E[u_1 - u_0 | u_t = u, z, m]. It is learned by least squares; a draw solves du/dt = v from u_0, and x = m + S^(1/2) u_1 (Liu et
al., Flow straight and fast, ICLR 2023).

If r were standard normal and independent of z, the velocity would be a(t) u with a = (t - (1 - t) NOISE^2) / d^2 and d^2 = t^2 +
(1 - t)^2 NOISE^2, and u_1 - u_0 would vary around it with the standard deviation b(t) = NOISE / d. The network learns only the
difference, in units of b: v = a(t) u + b(t) network(u / d, t, z, m) (in the manner of Karras et al., NeurIPS 2022). So it has
outputs of one scale at all times, and starts as a draw of normal errors that are independent of the code.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpgan_ray.common.optimisers import AdamW
from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.evaluation.attacks.base import CodeMap, predict

NOISE = 0.5
"""Standard deviation of the noise at the start, where that of the whitened error is 1."""
STEPS = 16
"""Number of steps of the midpoint method in which a draw is computed."""
FREQUENCIES = 8
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2
MIN_STEPS = 4
"""Smallest number of gradient steps of an epoch, for few pictures."""
MIN_RELATIVE_SCALE = 1e-4
"""Smallest standard deviation of the error in any direction, relative to the largest."""


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """Size and training of a flow's network."""

    width: int = 384
    blocks: int = 2
    dropout: float = 0.2
    epochs: int = 24
    batch: int = 256


@dataclass(frozen=True, eq=False)
class FlowRows:
    """What a flow is fitted on, row by row."""

    z: Tensor  # (N, k) codes
    start: Tensor  # (N, p) predictions by an attack that was not fitted on these rows
    x: Tensor  # (N, p) coordinates of the pictures

    def __len__(self) -> int:
        return len(self.x)


class ResidualBlock(nn.Module):
    """Normalise, widen to twice the width, narrow, and add."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Velocity(nn.Module):
    """v(u, t) for u (B, p), times t (B, 1) and conditions (B, c)."""

    def __init__(self, components: int, conditions: int, settings: FlowSettings) -> None:
        super().__init__()
        width = settings.width
        blocks = (ResidualBlock(width, dropout=settings.dropout) for _ in range(settings.blocks))
        self.stem = nn.Linear(components + conditions + 2 * FREQUENCIES, width)
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width), nn.SiLU())
        self.last = nn.Linear(width, components)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def correction(self, u: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """What is added to a(t) u, in units of b(t)."""
        angles = t * math.pi * torch.arange(1, FREQUENCIES + 1, device=t.device)
        inputs = torch.cat([u / spread(t), angles.sin(), angles.cos(), conditions], dim=1)
        return self.last(self.blocks(self.stem(inputs)))

    def forward(self, u: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        return independent_velocity(u, t) + NOISE / spread(t) * self.correction(u, t, conditions)


def spread(t: Tensor) -> Tensor:
    """Standard deviation d(t) of u_t for standard normal errors."""
    return (t.square() + (1 - t).square() * NOISE**2).sqrt()


def independent_velocity(u: Tensor, t: Tensor) -> Tensor:
    """a(t) u: the velocity for standard normal errors that are independent of the conditions."""
    return (t - (1 - t) * NOISE**2) / spread(t).square() * u


@dataclass(frozen=True, eq=False)
class Flow:
    """A fitted flow."""

    prepare: CodeMap | None  # None: no codes are used
    start_scale: Tensor  # () of the predictions
    root: Tensor  # (p, p) S^(1/2) of the predictions' errors
    inverse_root: Tensor  # (p, p)
    velocity: Velocity

    def conditions(self, z: Tensor, start: Tensor) -> Tensor:
        """The standardised code and the prediction in one row (N, c)."""
        if self.prepare is None:
            return start[:, :0]
        return torch.cat([predict(self.prepare, z), start / self.start_scale], dim=1)

    @torch.no_grad()
    def draw(self, z: Tensor, start: Tensor, *, path: Sequence[str | int], seed: int) -> Tensor:
        """One draw (N, p) for each code (N, k) and prediction (N, p). path: of the random stream."""
        conditions = self.conditions(z, start)
        with torch_stream(seed, "generative", "draw", *path):
            u = NOISE * torch.randn_like(start)
        for step in range(STEPS):
            t = torch.full((len(u), 1), step / STEPS, device=u.device)
            middle = u + self.velocity(u, t, conditions) / (2 * STEPS)
            u += self.velocity(middle, t + 1 / (2 * STEPS), conditions) / STEPS
        return start + u @ self.root


def fit_flow(
    fit: FlowRows,
    tune: FlowRows,
    settings: FlowSettings | None = None,
    *,
    use_codes: bool = True,
    path: Sequence[str | int],
    seed: int,
) -> Flow:
    """Fit a flow on some rows. The weights after the epoch with the smallest loss on the tuning rows are kept.

    use_codes: whether it knows codes and predictions; path: of the random streams.
    """
    settings = settings or FlowSettings()
    roots = whitening(fit.x - fit.start)
    start_scale = fit.start.square().mean().sqrt().clamp(min=1e-6)
    prepare = CodeMap(fit.z, how="standardised") if use_codes else None
    conditions = fit.start.shape[1] + fit.z.shape[1] if use_codes else 0
    with torch_stream(seed, "generative", "weights", *path):
        flow = Flow(prepare, start_scale, *roots, Velocity(fit.x.shape[1], conditions, settings).to(fit.x.device))
    train(flow, fit, tune, settings, path=path, seed=seed)
    return flow


def whitening(errors: Tensor) -> tuple[Tensor, Tensor]:
    """S^(1/2) and S^(-1/2) of the second moments S (p, p) of errors (N, p)."""
    errors = errors.double()
    values, vectors = torch.linalg.eigh(errors.T @ errors / len(errors))
    scales = values.clamp(min=0).sqrt()
    scales = scales.clamp(min=max(float(scales[-1]) * MIN_RELATIVE_SCALE, 1e-12))
    return ((vectors * scales) @ vectors.T).float(), ((vectors / scales) @ vectors.T).float()


def train(flow: Flow, fit: FlowRows, tune: FlowRows, settings: FlowSettings, *, path: Sequence[str | int], seed: int) -> None:
    """Train the velocity in place."""
    network, rng = flow.velocity, stream(seed, "generative", "rows", *path)
    conditions, errors = flow.conditions(fit.z, fit.start), (fit.x - fit.start) @ flow.inverse_root
    tuning = flow.conditions(tune.z, tune.start), (tune.x - tune.start) @ flow.inverse_root
    steps = max(MIN_STEPS, len(fit) // settings.batch)
    optimiser = AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * steps)
    best, weights = math.inf, {}
    for epoch in range(settings.epochs):
        network.train()
        with torch_stream(seed, "generative", "epoch", *path, epoch):
            for _ in range(steps):
                rows = torch.from_numpy(rng.integers(len(fit), size=settings.batch)).to(fit.x.device)
                loss = flow_loss(network, conditions[rows], errors[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                scheduler.step()
        network.eval()
        with torch.no_grad(), torch_stream(seed, "generative", "tune", *path):  # the same noise and times in every epoch
            tuned = float(flow_loss(network, *tuning))
        if tuned < best:
            best, weights = tuned, copy.deepcopy(network.state_dict())
    network.load_state_dict(weights)
    network.requires_grad_(False)


def flow_loss(network: Velocity, conditions: Tensor, errors: Tensor) -> Tensor:
    """Mean squared error of the correction, at a random time for each row. errors: (B, p), whitened."""
    t, start = torch.rand(len(errors), 1, device=errors.device), NOISE * torch.randn_like(errors)
    u = t * errors + (1 - t) * start
    target = (errors - start - independent_velocity(u, t)) * spread(t) / NOISE
    return nn.functional.mse_loss(network.correction(u, t, conditions), target)
