"""The players as plain classes with numpy at the border: each holds its networks and its node's view of the pictures.

Ray is applied where they are created (actors/); in one process they are called directly.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.process import pick_device, set_up_process, torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Batch, Feedback, Metrics, Outcome, Release
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_columns, label_frequencies, load, majority_logits
from cpgan_ray.data.batching import consecutive_batch, pictures, representative_rows, rounds_per_epoch, training_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection, scale, targets
from cpgan_ray.data.store import Split
from cpgan_ray.models.export import export_programs
from cpgan_ray.training.adversaries import Target, build_adversary
from cpgan_ray.training.adversaries.base import EpochFitted
from cpgan_ray.training.checkpoint import pack, unpack
from cpgan_ray.training.defender import DataParallelGroup, Defender, SingleProcess, corrupt_inputs, fit_input, to_input
from cpgan_ray.training.losses import (
    accuracy,
    aggregate_weights,
    mean_balanced_accuracy,
    privacy_term,
    recovered_share,
    utility_loss,
)

EVALUATION_BLOCK = 500


class PrivatizerWorker:
    """The central player: privatizer, utility head, and the pictures and labels they learn from.

    With peers each computes on its own rows, and all have the whole of every result.
    """

    def __init__(self, config: Config, *, threads: int, gpu_share: float = 0.0, peers: DataParallelGroup | None = None) -> None:
        set_up_process(threads=threads, gpu_share=gpu_share)
        self.config, self.peers = config, peers or SingleProcess()
        self.device = pick_device(config.runtime.device)
        self.dataset: Dataset = load(config)
        self.columns = label_columns(self.dataset, config.data.labels)
        self.labels = {name: np.ascontiguousarray(self.split(name).labels[:, self.columns]) for name in ("train", "val", "test")}
        self.rounds_per_epoch = rounds_per_epoch(len(self.dataset.train), config.batch_size)
        self.defender = Defender(
            config,
            image_shape=self.dataset.image_shape,
            positive_share=label_frequencies(self.dataset, config.data.labels),
            total_rounds=self.rounds_per_epoch * config.epochs,
            device=self.device,
            peers=self.peers,
            pictures=self.representative_pictures,
        )
        fit_input(self.defender.net["privatizer"], self.dataset)

    def representative_pictures(self) -> Iterator[Tensor]:
        """Batches of training pictures (B, C, H, W), as they will be seen in use; whole ones, also with peers."""
        for rows in representative_rows(len(self.dataset.train), self.config.batch_size):
            yield to_input(self.dataset.train.take(rows), self.device)

    def split(self, name: str) -> Split:
        return getattr(self.dataset, name)

    def release(self, round: int, *, ahead: bool = False) -> Release:
        """z of the round's pictures; keeps the graph. `ahead`: before the update on what was released last."""
        chosen = training_batch(round, self.dataset, self.config)
        x, count = to_input(pictures(self.dataset.train, self.part(chosen)), self.device), len(chosen.rows)
        x = corrupt_inputs(x, self.config, round=round, num_rows=count, own=self.peers.local_slice(count))
        z = self.peers.gather(self.defender.release(x, ahead=ahead), count)
        if not bool(torch.isfinite(z).all()):
            raise FloatingPointError(f"the privatizer's codes are not finite in round {round}: lower the learning rates")
        return Release(round=round, batch=chosen, z=z.cpu().numpy())

    def part(self, chosen: Batch) -> Batch:
        """This one's rows of a batch."""
        own = self.peers.local_slice(len(chosen.rows))
        return Batch(rows=chosen.rows[own], mirrored=chosen.mirrored[own], shift=chosen.shift[own])

    def utility(self, release: Release) -> Metrics:
        """Utility loss and its gradients on what was just released."""
        y = self.labels["train"][release.batch.rows]
        own = torch.from_numpy(y[self.peers.local_slice(len(y))]).float().to(self.device)
        loss, logits = self.defender.utility(own, round=release.round)
        logits = self.peers.gather(logits, len(y))
        return {"utility/loss": loss, "utility/batch_accuracy": float(accuracy(logits.cpu().numpy(), y).mean())}

    def privacy_weight(self, round: int) -> float:
        """The weight of the privacy term in a round."""
        warmup = self.config.game.warmup_epochs * self.rounds_per_epoch
        return self.config.privacy_weight * (min(1.0, round / warmup) if warmup else 1.0)

    def update(self, feedback: list[Feedback], *, move_head: bool = True) -> Metrics:
        """One step against the aggregate of the adversaries; nothing has changed before."""
        if not feedback:
            return self.defender.step(None, move_head=move_head)
        game = self.config.game
        weights = aggregate_weights([f.r2 for f in feedback], kind=game.aggregate, temperature=game.temperature)
        grad = sum(w * f.grad_z for w, f in zip(weights, feedback, strict=True) if w)
        scaled = torch.from_numpy(np.asarray(self.privacy_weight(feedback[0].round) * grad, dtype=np.float32))
        metrics = self.defender.step(scaled.to(self.device), move_head=move_head)
        metrics["privacy/training_r2"] = max(f.r2 for f in feedback)
        for w, f in zip(weights, feedback, strict=True):
            metrics |= {f"adversary/{f.name}/{key}": value for key, value in f.metrics.items()}
            metrics |= {f"adversary/{f.name}/r2": f.r2, f"adversary/{f.name}/weight": float(w)}
        return metrics

    def step_head(self) -> None:
        self.defender.step_head()

    def released_blocks(self, split: str, *, round: int) -> Iterator[Release]:
        """The codes of a whole split, block by block, as the adversaries that are fitted once per epoch read them."""
        num_rows = len(self.split(split))
        edges = np.linspace(0, num_rows, -(-num_rows // EVALUATION_BLOCK) + 1).astype(int)  # even: batch statistics need rows
        for start, stop in pairwise(edges.tolist()):
            rows = consecutive_batch(start, stop)
            own = self.split(split).take(self.part(rows).rows)
            z = self.peers.gather(self.defender.current_codes(to_input(own, self.device)), len(rows.rows))
            yield Release(round=round, batch=rows, z=z.cpu().numpy(), split=split)

    def encode(self, block: np.ndarray) -> tuple[Tensor, Tensor]:
        """Codes and logits of pictures (B, H, W, C), by the weights that are handed out."""
        z, logits = self.defender.codes(to_input(block[self.peers.local_slice(len(block))], self.device))
        return self.peers.gather(z, len(block)), self.peers.gather(logits, len(block))

    def codes(self, split: str, *, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N, k) and logits (N, L or C) of a whole split, of its mirrored pictures if wanted."""
        blocks = self.split(split).iter_batches(EVALUATION_BLOCK)
        parts = [self.encode(b[:, :, ::-1].copy() if mirrored else b) for b in blocks]
        z, logits = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
        return z, logits

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of `train` and `val`, rows (n,) evenly spread over the split, at most `count`, and their codes (n, k)."""
        found = {}
        for name in ("train", "val"):
            split = self.split(name)
            rows = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
            blocks = np.array_split(rows, -(-len(rows) // EVALUATION_BLOCK))
            parts = [self.encode(split.take(block))[0] for block in blocks]
            found[name] = (rows, torch.cat(parts).cpu().numpy())
        return found

    def outcome(self) -> Outcome:
        """All that the evaluation needs, so that the players can go; the programs are with the first of the peers alone."""
        found = {split: self.codes(split) for split in ("train", "val", "test")}
        codes = {split: z for split, (z, _) in found.items()}
        if self.dataset.info.mirrored:
            codes |= {f"{split}_mirrored": self.codes(split, mirrored=True)[0] for split in ("train", "val")}
        train = self.dataset.train
        first, shape = self.peers.rank == 0, train.image_shape
        programs = export_programs(self.defender.released, k=self.config.k, image_shape=shape, dtype=train.dtype) if first else {}
        return Outcome(codes=codes, logits={split: found[split][1] for split in ("val", "test")}, programs=programs)

    def utility_on(self, split: str, logits: np.ndarray) -> Metrics:
        """Loss and accuracies, averaged over the labels, of logits (N, L or C) on a split."""
        y = self.labels[split]
        loss = utility_loss(torch.from_numpy(logits), torch.from_numpy(y).float())
        return {
            "loss": float(loss),
            "accuracy": float(accuracy(logits, y).mean()),
            "balanced_accuracy": mean_balanced_accuracy(logits, y),
        }

    def validate(self) -> Metrics:
        """Utility on the validation split, and what the majority guess has there."""
        _, logits = self.codes("val")
        y = self.labels["val"]
        guess = accuracy(majority_logits(self.dataset, self.config.data.labels, rows=len(y)), y)
        found = self.utility_on("val", logits) | {"majority_accuracy": float(guess.mean())}
        return {f"utility/val_{name}": value for name, value in found.items()}

    def weights(self) -> dict[str, Any]:
        return self.defender.state_dict()

    def snapshot(self) -> bytes:
        """All that the next round depends on, between two rounds."""
        return pack(self.defender.state_dict())

    def restore(self, snapshot: bytes) -> None:
        self.defender.load_state_dict(unpack(snapshot, self.device))


class AdversaryWorker:
    """One adversary with its node's view of the pictures.

    It answers a release first and learns from it afterwards: with `overlap`, in a thread of its own while the privatizer makes its
    step; otherwise when it is next called. The order of its steps, and so the result, is the same.
    """

    def __init__(self, name: str, config: Config, *, threads: int, gpu_share: float = 0.0, overlap: bool = False) -> None:
        set_up_process(threads=threads, gpu_share=gpu_share)
        self.name, self.config, self.settings = name, config, config.adversaries[name]
        self.device = pick_device(config.runtime.device)
        self.dataset = load(config)
        self.projection = projection(self.dataset, components=self.settings.components or DEFAULT_COMPONENTS)
        self.dimension = int(np.prod(self.dataset.image_shape))
        with torch_stream(config.seed, "adversary", name, "weights"):
            self.adversary = build_adversary(
                self.settings,
                k=config.k,
                target=len(self.projection.components) if self.settings.components else self.dimension,
                image_shape=self.dataset.image_shape,
                holdout_fraction=config.game.holdout_fraction,
                rng=stream(config.seed, "adversary", name),
                device=self.device,
                precision=config.precision,
                compiled=config.runtime.compile,
            )
        self.thread = ThreadPoolExecutor(1) if overlap else None
        self.to_learn: tuple[Release, Tensor, Target] | None = None
        self.learning: Future[None] | None = None

    def target(self, release: Release) -> Target:
        """The pictures of a release, relative to the mean training picture."""
        split: Split = getattr(self.dataset, release.split)
        if self.settings.components:
            values, residual = targets(self.projection, split, release.batch)
        else:
            values = scale(pictures(split, release.batch))
            values -= self.projection.mean
            residual = np.zeros(len(values), np.float32)
        return Target(torch.from_numpy(values).to(self.device), torch.from_numpy(residual).to(self.device), self.dimension)

    def codes(self, release: Release) -> Tensor:
        return torch.from_numpy(release.z.copy()).to(self.device)

    def respond(self, release: Release) -> Feedback:
        """How much of the pictures it recovers from z, and the gradient of its privacy term."""
        self.finish_learning()
        z, target = self.codes(release).requires_grad_(), self.target(release)
        feedback = self.feedback(release, z, target)
        self.to_learn = (release, z.detach(), target)
        if self.thread:
            self.learning = self.thread.submit(self.learn_from, *self.to_learn)
        return feedback

    def feedback(self, release: Release, z: Tensor, target: Target) -> Feedback:
        errors, rows = self.adversary.recover(z, target)
        mean_errors = target[rows].mean_errors()
        loss = self.settings.loss_weight * privacy_term(errors, mean_errors, kind=self.config.game.privacy_loss)
        (grad,) = torch.autograd.grad(loss, z, allow_unused=True)  # of the codes alone: the network's own would be thrown away
        r2, mse = float(recovered_share(errors.detach(), mean_errors)), float(errors.detach().mean())
        grad = torch.zeros_like(z) if grad is None else grad
        if not (np.isfinite(r2) and bool(torch.isfinite(grad).all())):
            raise FloatingPointError(f"adversary {self.name!r} answered a value that is not finite in round {release.round}")
        return Feedback(name=self.name, round=release.round, grad_z=grad.cpu().numpy(), r2=r2, metrics={"mse": mse})

    def finish_learning(self) -> None:
        """Wait for, or do, the learning that is due from the last release."""
        if self.learning is not None:
            self.learning.result()
        elif self.to_learn is not None:
            self.learn_from(*self.to_learn)
        self.learning = self.to_learn = None

    def learn_from(self, release: Release, z: Tensor, target: Target) -> None:
        with torch_stream(self.config.seed, "adversary", self.name, release.round):
            self.adversary.improve(z, target)

    def learn(self, release: Release) -> None:
        """Improve on a release without answering it (the first pass of the epochwise schedule)."""
        self.finish_learning()
        self.learn_from(release, self.codes(release), self.target(release))

    def respond_without_learning(self, release: Release) -> Feedback:
        """Answer a release without learning from it (the second pass of the epochwise schedule)."""
        self.finish_learning()
        return self.feedback(release, self.codes(release).requires_grad_(), self.target(release))

    def accumulate(self, release: Release) -> None:
        cast(EpochFitted, self.adversary).accumulate(self.codes(release), self.target(release))

    def solve(self) -> None:
        cast(EpochFitted, self.adversary).solve()

    @torch.no_grad()
    def score(self, release: Release) -> tuple[float, float]:
        """Sums over a release of the squared errors and of the mean picture's: the adversary as it stands, not fitted to it."""
        target = self.target(release)
        errors, rows = self.adversary.recover(self.codes(release), target)
        return float(errors.sum()), float(target[rows].mean_errors().sum())

    def weights(self) -> dict[str, Any]:
        self.finish_learning()
        return self.adversary.state_dict()

    def snapshot(self) -> bytes:
        """All that its next answer depends on, after it has learned from its last release."""
        return pack(self.weights())

    def restore(self, snapshot: bytes) -> None:
        """Go back to a snapshot, whatever it was about to learn."""
        if self.learning is not None:
            self.learning.exception()  # until it is over; what it raised belongs to what is undone
        self.learning = self.to_learn = None
        self.adversary.load_state_dict(unpack(snapshot, self.device))
