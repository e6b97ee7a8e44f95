"""Attacks by gradient descent: perceptrons that predict the principal components, and convolutional decoders that predict pixels.

Each starts from the ridge reconstruction and learns its residual, so that too little training cannot make it weaker than ridge.
Several candidates are trained on a small budget. The best one is trained further: its budget is doubled until that gains nothing
twice in a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.config import AttackConfig, NeuralConfig
from cpgan_ray.evaluation.attacks.base import GAIN, IDLE_DOUBLINGS, AttackData, CodeMap, Fitted, Mean, Reconstructor, r2_score
from cpgan_ray.evaluation.attacks.closed_form import Affine, best_affine
from cpgan_ray.models.decoders import Decoder, mlp

MIN_STEPS = 16
"""Minimal number of steps in an epoch, for attacks on few pictures."""
PATIENCE = 3
"""Training ends after so many epochs in which the network does not exceed its own best R2 on the tuning rows, even if that best is
below the R2 of ridge."""
AVERAGING = 0.98
"""Decay per step of the moving average of the weights. The averaged weights are evaluated; this replaces a decreasing learning
rate."""
PIXEL_BATCH, CODE_BATCH = 64, 256
TRUNK = 512
"""Width of the perceptron in front of a decoder."""


@dataclass(frozen=True)
class Candidate:
    """A network, and the map of the codes in front of it ("standardised" or "whitened")."""

    network: NeuralConfig
    codes: str

    @property
    def settings(self) -> dict[str, object]:
        n = self.network
        network: dict[str, object] = {"architecture": n.architecture, "width": n.width, "depth": n.depth, "dropout": n.dropout}
        return network | {"codes": self.codes}


class CoarseToFineDecoder(nn.Module):
    """A perceptron predicts a picture at a quarter of the side, which is enlarged; a convolutional decoder predicts the rest.

    Without the perceptron, a decoder takes ten times as many steps to improve on the ridge reconstruction that it starts from.
    """

    def __init__(self, config: NeuralConfig, *, k: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.height, self.width, self.channels = image_shape
        self.small = (self.channels, -(-self.height // 4), -(-self.width // 4))
        self.trunk = mlp(NeuralConfig(architecture="mlp", width=TRUNK, depth=1), k=k, target=TRUNK)
        self.coarse = nn.Linear(TRUNK, math.prod(self.small))
        self.fine = Decoder(config, k=TRUNK, image_shape=image_shape)

    def forward(self, z: Tensor) -> Tensor:
        hidden = torch.relu(nn.functional.layer_norm(self.trunk(z), (TRUNK,)))
        coarse = self.coarse(hidden).unflatten(1, self.small)
        enlarged = nn.functional.interpolate(coarse, size=(self.height, self.width), mode="bilinear")
        return self.fine(hidden) + enlarged.permute(0, 2, 3, 1).flatten(1)


class ResidualOnRidge(nn.Module):
    """The ridge reconstruction plus the output of a network, which is zero at the start."""

    def __init__(self, base: Affine, prepare: CodeMap, network: nn.Module, *, scale: float) -> None:
        super().__init__()
        self.base, self.prepare, self.network, self.scale = base, prepare, network, scale

    def forward(self, z: Tensor) -> Tensor:
        return self.base(z) + self.network(self.prepare(z)) * self.scale


class Trainer:
    """Trains one network; training can continue where it stopped. Keeps the weights that were best on the tuning rows."""

    def __init__(self, data: AttackData, candidate: Candidate, *, base: Affine, base_r2: float, space: str, restart: int) -> None:
        self.data, self.candidate, self.base, self.space = data, candidate, base, space
        self.path = ("attack", *(str(v) for v in candidate.settings.values()), restart)
        self.rng = stream(data.seed, *self.path)
        self.batch = PIXEL_BATCH if space == "pixels" else CODE_BATCH
        prepare = CodeMap(data.fit.z, how=candidate.codes)
        k, outputs = prepare.matrix.shape[1], self.target(slice(0, 1)).shape[1]
        with torch_stream(data.seed, *self.path):
            network = self.build(k, outputs).to(data.fit.z.device)
        residual = self.target(slice(0, 512)) - base(data.fit.z[:512])
        scale = float(residual.square().mean().sqrt().clamp(min=1e-6))
        self.model = ResidualOnRidge(base, prepare, network, scale=scale)
        self.averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))
        self.evaluated = ResidualOnRidge(base, prepare, self.averaged.module, scale=scale).eval()
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=candidate.network.learning_rate, weight_decay=1e-4)
        self.r2, self.weights, self.epochs = base_r2, self.snapshot(), 0
        self.own_r2, self.epochs_since_best = float("-inf"), 0
        self.curve: list[float] = []

    def build(self, k: int, outputs: int) -> nn.Module:
        """The candidate's network, with its last layers set to zero."""
        if self.space == "components":
            network = mlp(self.candidate.network, k=k, target=outputs)
            last_layers = [network[-1]]  # pyright: ignore[reportIndexIssue]
        else:
            assert self.data.image_shape is not None
            network = CoarseToFineDecoder(self.candidate.network, k=k, image_shape=self.data.image_shape)
            last_layers = [network.coarse, network.fine.last]
        for parameter in (p for layer in last_layers for p in layer.parameters()):
            nn.init.zeros_(parameter)
        return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def target(self, rows: slice | Tensor) -> Tensor:
        return self.data.fit.pixels[rows] if self.space == "pixels" else self.data.fit.target.values[rows]

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.averaged.module.state_dict().items()}

    @property
    def ended(self) -> bool:
        return self.epochs_since_best >= PATIENCE

    def train_until(self, epochs: int) -> None:
        """Train until so many epochs are done in total, or until training has ended."""
        while self.epochs < epochs and not self.ended:
            with torch_stream(self.data.seed, *self.path, self.epochs):
                self.epoch()
            self.epochs += 1
            r2 = r2_score(self.data.tune, self.evaluated, space=self.space)
            self.curve.append(r2)
            if r2 > self.r2:
                self.r2, self.weights = r2, self.snapshot()
            if r2 > self.own_r2:
                self.own_r2, self.epochs_since_best = r2, 0
            else:
                self.epochs_since_best += 1

    def epoch(self) -> None:
        network = self.model.network.train()
        rows = self.rows()
        for batch in torch.from_numpy(rows).split(self.batch):
            z = self.data.fit.z[batch]
            with torch.no_grad():
                residual = (self.target(batch) - self.base(z)) / self.model.scale
            loss = nn.functional.mse_loss(network(self.model.prepare(z)), residual)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            self.averaged.update_parameters(network)

    def rows(self) -> np.ndarray:
        """Rows of one epoch: each row of `fit` once, or several times if there are few rows; for the slow decoders a random
        quarter."""
        count = len(self.data.fit)
        epoch_rows = count // 4 if self.space == "pixels" else count
        epoch_rows = max(epoch_rows, MIN_STEPS * self.batch)
        return np.concatenate([self.rng.permutation(count) for _ in range(-(-epoch_rows // count))])[:epoch_rows]

    def best(self) -> ResidualOnRidge:
        """The network with its best weights."""
        self.averaged.module.load_state_dict(self.weights)
        return self.evaluated.eval()


def train_candidates(data: AttackData, config: AttackConfig, candidates: Sequence[Candidate], *, space: str) -> Fitted:
    """Train all candidates, and the best one further until more budget no longer helps. The result is the average of its restarts,
    or the best restart if that is better."""
    base_r2, _, base = best_affine(data, space=space)

    def new_trainer(candidate: Candidate, restart: int) -> Trainer:
        return Trainer(data, candidate, base=base, base_r2=base_r2, space=space, restart=restart)

    budget, limit = config.epochs, config.epochs * 2**config.max_budget_doublings
    trainers = [new_trainer(candidate, 0) for candidate in candidates]
    for trainer in trainers:
        trainer.train_until(budget)
    best = max(trainers, key=lambda trainer: trainer.r2)
    budgets, idle = [(budget, best.r2)], 0
    while not (saturated := best.ended or idle == IDLE_DOUBLINGS) and budget < limit:
        previous_r2, budget = best.r2, 2 * budget
        best.train_until(budget)
        budgets.append((budget, best.r2))
        idle = idle + 1 if best.r2 - previous_r2 < GAIN else 0
    restarts: list[tuple[float, Reconstructor]] = [(best.r2, best.best())]
    for restart in range(1, config.restarts):
        trainer = new_trainer(best.candidate, restart)
        trainer.train_until(best.epochs)
        restarts.append((trainer.r2, trainer.best()))
    settings = best.candidate.settings | {"epochs": best.epochs, "restarts_r2": [round(r2, 4) for r2, _ in restarts]}
    averaged = Mean(tuple(network for _, network in restarts))
    averaged_r2 = r2_score(data.tune, averaged, space=space)
    r2, single = max(restarts, key=lambda restart: restart[0])
    curve = tuple(best.curve)
    if averaged_r2 > r2:
        return Fitted(averaged, space, averaged_r2, saturated, settings | {"averaged": len(restarts)}, tuple(budgets), curve)
    return Fitted(single, space, r2, saturated, settings, tuple(budgets), curve)


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
    """A convolutional decoder behind a perceptron, with an architecture that no training adversary has, if there is one."""
    unused = [a for a in ("upsample", "conv") if a not in data.trained_against]
    network = NeuralConfig(architecture="upsample" if not unused else unused[0], width=config.decoder_width)  # pyright: ignore[reportArgumentType]
    return train_candidates(data, config, [Candidate(network, codes) for codes in ("standardised", "whitened")], space="pixels")


def resnet_decoder_attack(data: AttackData, config: AttackConfig) -> Fitted:
    """A decoder of residual blocks, deeper and wider than `decoder_attack`."""
    network = NeuralConfig(architecture="resnet", width=config.decoder_width * 3 // 2, depth=1)
    return train_candidates(data, config, [Candidate(network, "standardised")], space="pixels")
