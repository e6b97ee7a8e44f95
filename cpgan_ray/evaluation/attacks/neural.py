"""Attacks by gradient descent: perceptrons that predict the principal components, and convolutional decoders that predict pixels.

Each starts from the ridge reconstruction and learns its residual. It is trained on the attacker's pictures, their mirror images and
their shifted copies, in cycles: within a cycle the learning rate falls to 0 along a cosine, and a cycle starts from the weights of
the last one (warm restarts: Loshchilov and Hutter, SGDR, ICLR 2017). Each cycle doubles the number of epochs so far, so every
budget is trained with a decay of its own. Several candidates are trained for one cycle; the best one is trained further until more
cycles gain nothing (saturation.py). A last cycle, as long as the first, is on fitting and tuning rows together.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.optimisers import AdamW
from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.config import AttackConfig, NeuralConfig
from cpgan_ray.evaluation.attacks.base import (
    AttackData,
    CodeMap,
    Fitted,
    Pairs,
    Reconstructor,
    averaged_if_better,
    is_saturated_on,
    r2_score,
)
from cpgan_ray.evaluation.attacks.closed_form import Affine, best_affine, ridge_sums
from cpgan_ray.evaluation.attacks.half_side import CoarseToFineDecoder, predicted_shape
from cpgan_ray.models.decoders import mlp

MIN_STEPS = 16
"""Minimal number of steps in an epoch, for attacks on few pictures."""
PIXEL_BATCH, CODE_BATCH = 64, 256


@dataclass(frozen=True)
class Candidate:
    """A network, the map of the codes in front of it ("standardised" or "whitened"), and for a decoder whether it predicts pictures
    that are not small at half the side."""

    network: NeuralConfig
    codes: str
    half_side: bool = False

    @property
    def settings(self) -> dict[str, object]:
        n = self.network
        network: dict[str, object] = {"architecture": n.architecture, "width": n.width, "depth": n.depth, "dropout": n.dropout}
        return network | {"codes": self.codes}


class ResidualOnRidge(nn.Module):
    """The ridge reconstruction plus the output of a network, which is zero at the start."""

    def __init__(self, base: Affine, prepare: CodeMap, network: nn.Module, *, scale: float) -> None:
        super().__init__()
        self.base, self.prepare, self.network, self.scale = base, prepare, network, scale

    def forward(self, z: Tensor) -> Tensor:
        return self.base(z) + self.network(self.prepare(z)) * self.scale


@dataclass(frozen=True, eq=False)
class Task:
    """What all networks of an attack have in common."""

    data: AttackData
    rows: Pairs  # `fit` and the shifted copies of its pictures
    space: str  # "components" or "pixels"
    base: Affine  # the ridge reconstruction
    base_r2: float  # its R2 on the tuning rows

    def target(self, rows: Pairs, part: slice | Tensor) -> Tensor:
        return rows.pixels[part] if self.space == "pixels" else rows.target.values[part]


class Trainer:
    """Trains one network in cycles. Keeps the weights after the cycle that was best on the tuning rows."""

    def __init__(self, task: Task, candidate: Candidate, *, restart: int) -> None:
        self.task, self.candidate = task, candidate
        data, fit = task.data, task.data.fit
        self.path = ("attack", *(str(v) for v in candidate.settings.values()), restart)
        self.rng = stream(data.seed, *self.path)
        self.batch = PIXEL_BATCH if task.space == "pixels" else CODE_BATCH
        prepare = CodeMap(fit.z, how=candidate.codes)
        first = slice(0, 512)
        target = task.target(fit, first)
        with torch_stream(data.seed, *self.path):
            network = self.build(prepare.matrix.shape[1], target.shape[1]).to(fit.z.device)
        scale = float((target - task.base(fit.z[first])).square().mean().sqrt().clamp(min=1e-6))
        self.model = ResidualOnRidge(task.base, prepare, network, scale=scale)
        self.epochs, self.best_epochs, self.r2, self.weights = 0, 0, task.base_r2, self.snapshot()
        self.curve: list[float] = []

    def build(self, k: int, outputs: int) -> nn.Module:
        """The candidate's network, with its last layers set to zero."""
        if self.task.space == "components":
            network = mlp(self.candidate.network, k=k, target=outputs)
            last_layers = [network[-1]]  # pyright: ignore[reportIndexIssue]
        else:
            assert self.task.data.image_shape is not None
            shape = self.task.data.image_shape
            fine = predicted_shape(shape) if self.candidate.half_side else shape
            network = CoarseToFineDecoder(self.candidate.network, k=k, image_shape=shape, fine=fine)
            last_layers = [network.coarse, network.fine.last]
        for parameter in (p for layer in last_layers for p in layer.parameters()):
            nn.init.zeros_(parameter)
        return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.network.state_dict().items()}

    def cycle(self, epochs: int) -> float:
        """Train for one cycle. Returns R2 on the tuning rows after it; the best cycle's weights are kept."""
        r2 = self.task.base_r2
        for r2 in self.train(self.task.rows, epochs, per_epoch=len(self.task.data.fit)):
            self.curve.append(r2)
        self.epochs += epochs
        if r2 > self.r2:
            self.r2, self.best_epochs, self.weights = r2, self.epochs, self.snapshot()
        return r2

    def train(self, rows: Pairs, epochs: int, *, per_epoch: int) -> Iterator[float]:
        """Train on `rows`, with a learning rate that falls to 0. An epoch has `per_epoch` of them, drawn again. Yields R2 on the
        tuning rows after each epoch."""
        steps = max(MIN_STEPS, per_epoch // self.batch)
        learning_rate = self.candidate.network.learning_rate
        optimiser = AdamW(self.model.network.parameters(), lr=learning_rate, weight_decay=1e-4, fused=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
        for epoch in range(epochs):
            with torch_stream(self.task.data.seed, *self.path, len(rows), self.epochs + epoch):
                self.epoch(rows, steps, optimiser, scheduler)
            yield r2_score(self.task.data.tune, self.model.eval(), space=self.task.space)

    def epoch(
        self, rows: Pairs, steps: int, optimiser: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        network, model = self.model.network.train(), self.model
        count = steps * self.batch
        drawn = np.concatenate([self.rng.permutation(len(rows)) for _ in range(-(-count // len(rows)))])[:count]
        for batch in torch.from_numpy(drawn).split(self.batch):
            z = rows.z[batch]
            with torch.no_grad():
                residual = (self.task.target(rows, batch) - model.base(z)) / model.scale
            loss = nn.functional.mse_loss(network(model.prepare(z)), residual)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            scheduler.step()

    def best(self) -> ResidualOnRidge:
        """A copy of the network with the weights of its best cycle."""
        best = copy.deepcopy(self.model)
        best.network.load_state_dict(self.weights)
        return best.eval().requires_grad_(False)

    def refit(self, rows: Pairs, epochs: int) -> Reconstructor:
        """The network after one more cycle on `rows`, from its best weights. If no cycle was better than ridge, it stays at
        ridge."""
        if not self.best_epochs:
            return self.best()
        self.model.network.load_state_dict(self.weights)
        for _ in self.train(rows, epochs, per_epoch=len(self.task.data.fit)):
            pass
        self.weights = self.snapshot()
        return self.best()


def train_candidates(data: AttackData, config: AttackConfig, candidates: Sequence[Candidate], *, space: str) -> Fitted:
    """Train all candidates, and the best one further until more budget no longer helps. The result is the average of its restarts,
    or the best restart if that is better on the tuning rows; after a last cycle on fitting and tuning rows together."""
    base_r2, _, base = best_affine(data, ridge_sums(data, space=space))
    task = Task(data, data.fit_with_shifted(), space, base, base_r2)
    first, num_restarts = (
        (config.decoder_epochs, config.decoder_restarts) if space == "pixels" else (config.epochs, config.restarts)
    )
    trainers = [Trainer(task, candidate, restart=0) for candidate in candidates]
    for trainer in trainers:
        trainer.cycle(first)
    best = max(trainers, key=lambda trainer: (trainer.r2, trainer.curve[-1]))  # if none is better than ridge, the closest
    del trainers
    budgets, cycles = [(first, best.curve[-1])], [first]
    limit = first * 2**config.max_budget_doublings
    while not (saturated := is_saturated_on(data, best.best(), budgets, space=space)) and best.epochs < limit:
        cycles.append(best.epochs)
        budgets.append((2 * best.epochs, best.cycle(best.epochs)))
    restarts = [best]
    for restart in range(1, num_restarts):
        restarts.append(Trainer(task, best.candidate, restart=restart))
        for epochs in cycles:
            restarts[-1].cycle(epochs)
    before = tuple(trainer.best() for trainer in restarts)
    rows = data.all_rows()
    refitted = tuple(trainer.refit(rows, first) for trainer in restarts)
    settings = best.candidate.settings | {"epochs": best.epochs}
    return averaged_if_better(data, before, refitted, space, saturated, settings, tuple(budgets), tuple(best.curve))


def mlp_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """Two-layer perceptrons of several widths, with and without dropout, on standardised and whitened codes."""
    variants = (("standardised", 0.0), ("standardised", 0.5), ("whitened", 0.5))
    candidates = [
        Candidate(NeuralConfig(architecture="mlp", width=width, depth=2, dropout=dropout), codes)
        for width in config.mlp_widths
        for codes, dropout in variants
    ]
    return train_candidates(data, config, candidates, space="components")


def decoder_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """A convolutional decoder behind a perceptron, with an architecture that no training adversary has, if there is one.
    Pictures that are not small are predicted at half the side (half_side.py)."""
    unused = [a for a in ("upsample", "conv") if a not in data.trained_against]
    network = NeuralConfig(architecture="upsample" if not unused else unused[0], width=config.decoder_width)  # pyright: ignore[reportArgumentType]
    candidates = [Candidate(network, codes, half_side=True) for codes in ("standardised", "whitened")]
    return train_candidates(data, config, candidates, space="pixels")


def resnet_decoder_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """A decoder of residual blocks, deeper and wider than `decoder_attack`."""
    network = NeuralConfig(architecture="resnet", width=config.decoder_width * 3 // 2, depth=1)
    return train_candidates(data, config, [Candidate(network, "standardised")], space="pixels")
