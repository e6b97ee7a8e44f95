"""The players as plain classes that receive and return numpy arrays. Each has its own networks and reads the pictures of its node.

The package distributed/ turns them into Ray actors; in one process they are called directly.
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
from cpgan_ray.data import Dataset, label_frequencies, load, majority_logits, task_of
from cpgan_ray.data.batching import consecutive_batch, pictures, representative_rows, rounds_per_epoch, training_batch
from cpgan_ray.data.code_sets import DRAWS, EVALUATION_BLOCK, CodeSet, code_sets
from cpgan_ray.data.store import Split
from cpgan_ray.models.export import export_programs
from cpgan_ray.training.accuracy import mean_accuracy, mean_balanced_accuracy
from cpgan_ray.training.adversaries import Target, build_adversary
from cpgan_ray.training.adversaries.base import EpochFitted
from cpgan_ray.training.aggregate import aggregate
from cpgan_ray.training.checkpoint import pack, unpack
from cpgan_ray.training.data_parallel import DataParallelGroup, SingleProcess
from cpgan_ray.training.defender import Defender
from cpgan_ray.training.inputs import corrupt_inputs, fit_whitening, to_input
from cpgan_ray.training.losses import privacy_term, r2_from_errors, utility_loss
from cpgan_ray.training.rate import rate_term
from cpgan_ray.training.targets import MIN_ROWS, target_source
from cpgan_ray.training.teachers import TeacherAnswers, read_answers


class PrivatizerWorker:
    """The central player: privatizer and utility head, with their pictures and labels.

    With peers, each computes on its own rows, and every peer gets the complete results.
    """

    def __init__(self, config: Config, *, threads: int, gpu_share: float = 0.0, peers: DataParallelGroup | None = None) -> None:
        set_up_process(threads=threads, gpu_share=gpu_share)
        self.config, self.peers = config, peers or SingleProcess()
        self.device = pick_device(config.runtime.device)
        self.dataset: Dataset = load(config)
        self.task = task_of(self.dataset, config.data.labels)
        self.labels = {name: self.task.answers(self.split(name)) for name in ("train", "val", "test")}
        self.teachers = self.teacher_answers()
        self.rounds_per_epoch = rounds_per_epoch(len(self.dataset.train), config.batch_size)
        self.defender = Defender(
            config,
            image_shape=self.dataset.image_shape,
            task=self.task,
            positive_share=label_frequencies(self.dataset, self.task),
            total_rounds=self.rounds_per_epoch * config.epochs,
            device=self.device,
            peers=self.peers,
            pictures=self.representative_pictures,
        )
        fit_whitening(self.defender.net["privatizer"], self.dataset)

    def teacher_answers(self) -> TeacherAnswers | None:
        """The teachers' answers to the training pictures; None without teachers."""
        utility = self.config.utility
        if utility.teacher_answers is None:
            if utility.teachers or utility.train_teachers:
                raise ValueError("utility.teacher_answers is not set: pipelines.teachers.with_teachers sets it")
            return None
        return read_answers(utility.teacher_answers, self.dataset, self.task)

    def representative_pictures(self) -> Iterator[Tensor]:
        """Batches of training pictures (B, C, H, W) without augmentation; complete batches, also with peers."""
        for rows in representative_rows(len(self.dataset.train), self.config.batch_size):
            yield to_input(self.dataset.train.take(rows), self.device)

    def split(self, name: str) -> Split:
        return self.dataset.splits[name]

    def release(self, round: int, *, ahead: bool = False) -> Release:
        """z of the round's pictures; keeps the graph. `ahead`: release before the update on the previous release."""
        batch = training_batch(round, self.dataset, self.config)
        x, count = to_input(pictures(self.dataset.train, self.local_part(batch)), self.device), len(batch.rows)
        x = corrupt_inputs(x, self.config, round=round, num_rows=count, local=self.peers.local_slice(count))
        noise = self.noise(count, round)
        z = self.peers.gather(self.defender.release(x, noise=noise, ahead=ahead), count)
        if not bool(torch.isfinite(z).all()):
            raise FloatingPointError(f"the privatizer's codes are not finite in round {round}: lower the learning rates")
        return Release(round=round, batch=batch, z=z.cpu().numpy())

    def noise(self, num_rows: int, *path: str | int) -> Tensor | None:
        """The noise of this peer's part of `num_rows` codes, drawn for all of them; None if the codes have none."""
        noise = self.defender.noise(num_rows, *path)
        return None if noise is None else noise[self.peers.local_slice(num_rows)]

    def local_part(self, batch: Batch) -> Batch:
        """The rows of a batch that belong to this peer."""
        local = self.peers.local_slice(len(batch.rows))
        return batch[local]

    def utility(self, release: Release) -> Metrics:
        """Computes the utility loss on a release and its gradients."""
        y = self.labels["train"][release.batch.rows]
        local_y = torch.from_numpy(y[self.peers.local_slice(len(y))]).to(self.device)
        soft = None if self.teachers is None else torch.from_numpy(self.teachers.of(self.local_part(release.batch))).to(self.device)
        loss, logits = self.defender.utility(local_y, round=release.round, soft=soft)
        logits = self.peers.gather(logits, len(y)).cpu().numpy()
        return {"utility/loss": loss, "utility/batch_accuracy": mean_accuracy(logits, y, self.task)}

    def warmed_up(self, round: int) -> float:
        """The share of the weights of privacy and rate that counts in a round; it rises linearly to 1 during the warm-up."""
        warmup = self.config.game.warmup_epochs * self.rounds_per_epoch
        return min(1.0, round / warmup) if warmup else 1.0

    def update(self, release: Release, feedback: list[Feedback], *, move_head: bool = True) -> Metrics:
        """One step against the aggregate of the adversaries of a release, and its rate. No weights have changed in this round
        before."""
        grads, metrics = [], Metrics()
        if feedback:
            against = aggregate(
                feedback, self.config, weight=lambda t: self.config.target_weight(t) * self.warmed_up(release.round)
            )
            grads.append(against.grad_z)
            metrics |= against.metrics
        if levels := self.config.privatizer.levels:
            bits, slope = rate_term(release.z, step=self.config.privatizer.quantization_step, levels=levels)
            grads.append(self.config.game.rate_weight * self.warmed_up(release.round) * slope)
            metrics["code/training_bits"] = bits
        total = torch.from_numpy(np.asarray(sum(grads), np.float32)).to(self.device) if grads else None
        return self.defender.step(total, move_head=move_head) | metrics

    def step_head(self) -> None:
        self.defender.step_head()

    def released_blocks(self, split: str, *, round: int) -> Iterator[Release]:
        """The codes of a whole split, block by block, for adversaries that are fitted once per epoch."""
        num_rows = len(self.split(split))
        edges = np.linspace(0, num_rows, -(-num_rows // EVALUATION_BLOCK) + 1).astype(
            int
        )  # blocks of equal size: batch statistics need many rows
        for start, stop in pairwise(edges.tolist()):
            block = consecutive_batch(start, stop)
            local = self.split(split).take(self.local_part(block).rows)
            noise = self.noise(len(block.rows), "epoch", split, round, start)
            z = self.peers.gather(self.defender.current_codes(to_input(local, self.device), noise), len(block.rows))
            yield Release(round=round, batch=block, z=z.cpu().numpy(), split=split)

    def encode(self, block: np.ndarray, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes and logits of pictures (B, H, W, C), by the released weights. noise: of all codes, (B, k)."""
        local = self.peers.local_slice(len(block))
        part = None if noise is None else noise[local]
        z, logits = self.defender.codes(to_input(block[local], self.device), part)
        return self.peers.gather(z, len(block)), self.peers.gather(logits, len(block))

    def codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N, k) and logits (N, num_logits) of a set, see `code_sets`."""
        code_set = self.code_sets()[name]
        noise = self.defender.noise(len(code_set), name)
        starts = range(0, len(code_set), EVALUATION_BLOCK)
        noises = [None if noise is None else noise[start : start + EVALUATION_BLOCK] for start in starts]
        parts = [self.encode(block, part) for block, part in zip(code_set.blocks(), noises, strict=True)]
        z, logits = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
        return z, logits

    def code_sets(self) -> dict[str, CodeSet]:
        """The sets whose codes the attacks need."""
        draws = DRAWS if self.config.privatizer.noise else 1
        return code_sets(self.dataset, draws=draws, attacks=self.config.attacks, k=self.config.k)

    def clean_codes(self) -> np.ndarray | None:
        """The codes (N, k) of `test` before noise and rounding; None if they have no noise."""
        if not self.config.privatizer.noise:
            return None
        return torch.cat([self.encode(block)[0] for block in self.code_sets()["test"].blocks()]).cpu().numpy()

    def sample(self, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For `train` and `val`: at most `count` rows (n,), evenly spaced over the split, and their codes (n, k)."""
        codes = {}
        for name in ("train", "val"):
            split = self.split(name)
            rows = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
            blocks = np.array_split(rows, -(-len(rows) // EVALUATION_BLOCK))
            noises = [self.defender.noise(len(block), "sample", name, i) for i, block in enumerate(blocks)]
            parts = [self.encode(split.take(block), noise)[0] for block, noise in zip(blocks, noises, strict=True)]
            codes[name] = (rows, torch.cat(parts).cpu().numpy())
        return codes

    def outcome(self) -> Outcome:
        """Everything that the evaluation needs, so that the players can end. Only the first peer exports the programs."""
        evaluated = {name: self.codes(name) for name in self.code_sets()}
        codes = {name: z for name, (z, _) in evaluated.items()}
        train = self.dataset.train
        first, shape = self.peers.rank == 0, train.image_shape
        programs = export_programs(self.defender.released, k=self.config.k, image_shape=shape, dtype=train.dtype) if first else {}
        logits = {name: logits for name, (_, logits) in evaluated.items()}
        return Outcome(codes=codes, logits=logits, programs=programs, clean=self.clean_codes())

    def utility_metrics(self, split: str, logits: np.ndarray) -> Metrics:
        """Loss and accuracies, averaged over the labels, for logits (N, num_logits) of a split."""
        y = self.labels[split]
        loss = utility_loss(torch.from_numpy(logits), torch.from_numpy(y), self.task)
        return {
            "loss": float(loss),
            "accuracy": mean_accuracy(logits, y, self.task),
            "balanced_accuracy": mean_balanced_accuracy(logits, y, self.task),
        }

    def validate(self) -> Metrics:
        """Utility on the validation split, and the accuracy of the majority guess."""
        _, logits = self.codes("val")
        y = self.labels["val"]
        guess = mean_accuracy(majority_logits(self.dataset, self.task, rows=len(y)), y, self.task)
        values = self.utility_metrics("val", logits) | {"majority_accuracy": guess}
        return {f"utility/val_{name}": value for name, value in values.items()}

    def weights(self) -> dict[str, Any]:
        return self.defender.state_dict()

    def snapshot(self) -> bytes:
        """All state that the next round depends on. Call it between two rounds."""
        return pack(self.defender.state_dict())

    def restore(self, snapshot: bytes) -> None:
        self.defender.load_state_dict(unpack(snapshot, self.device))


class AdversaryWorker:
    """One adversary, which reads the pictures of its node.

    It first responds to a release and learns from it afterwards: with `overlap`, in a separate thread during the privatizer's step;
    otherwise at its next call. The order of its steps, and therefore the result, is the same.
    """

    def __init__(self, name: str, config: Config, *, threads: int, gpu_share: float = 0.0, overlap: bool = False) -> None:
        set_up_process(threads=threads, gpu_share=gpu_share)
        self.name, self.config, self.settings = name, config, config.adversaries[name]
        self.device = pick_device(config.runtime.device)
        self.dataset = load(config)
        self.source = target_source(self.settings.target, self.dataset, components=self.settings.components)
        classes = self.source.classes
        with torch_stream(config.seed, "adversary", name, "weights"):
            self.adversary = build_adversary(
                self.settings,
                k=config.k,
                target=self.source.size,
                image_shape=self.dataset.image_shape,
                holdout_fraction=config.game.holdout_fraction,
                rng=stream(config.seed, "adversary", name),
                device=self.device,
                precision=config.precision,
                compiled=config.runtime.compile,
                classes=classes and classes.to(self.device),
            )
        self.thread = ThreadPoolExecutor(1) if overlap else None
        self.to_learn: tuple[Release, Tensor, Target] | None = None
        self.learning: Future[None] | None = None

    def known(self, release: Release) -> tuple[Tensor, Target]:
        """The codes of a release with a known target, and these targets."""
        z, target = torch.from_numpy(release.z.copy()).to(self.device), self.source(release, self.device)
        if (rows := self.source.known(release)) is None:
            return z, target
        of = torch.from_numpy(rows).to(self.device)
        return z[of], target[of]

    def respond(self, release: Release) -> Feedback:
        """The share of the target that it recovers from z, and the gradient of its privacy term."""
        self.finish_learning()
        z, target = self.known(release)
        feedback = self.feedback(release, z.requires_grad_(), target)
        self.to_learn = (release, z.detach(), target)
        if self.thread:
            self.learning = self.thread.submit(self.learn_from, *self.to_learn)
        return feedback

    def feedback(self, release: Release, z: Tensor, target: Target) -> Feedback:
        """z, target: see `known`. The gradient is 0 at codes without a known target."""
        if len(z) < MIN_ROWS:
            nothing = np.zeros_like(release.z)
            return Feedback(name=self.name, round=release.round, grad_z=nothing, r2=0.0, metrics={})
        errors, rows = self.adversary.recover(z, target)
        mean_errors = target[rows].mean_errors()
        loss = self.settings.loss_weight * privacy_term(errors, mean_errors, kind=self.config.game.privacy_loss)
        (grad,) = torch.autograd.grad(loss, z, allow_unused=True)  # only for the codes: the network's gradients are not used
        r2, mse = float(r2_from_errors(errors.detach(), mean_errors)), float(errors.detach().mean())
        grad = (torch.zeros_like(z) if grad is None else grad).cpu().numpy()
        if not (np.isfinite(r2) and np.isfinite(grad).all()):
            raise FloatingPointError(f"adversary {self.name!r} returned a value that is not finite in round {release.round}")
        if (known := self.source.known(release)) is not None:
            of_known, grad = grad, np.zeros_like(release.z)
            grad[known] = of_known
        return Feedback(name=self.name, round=release.round, grad_z=grad, r2=r2, metrics={"mse": mse})

    def finish_learning(self) -> None:
        """Finish learning from the last release: wait for the thread, or learn now."""
        if self.learning is not None:
            self.learning.result()
        elif self.to_learn is not None:
            self.learn_from(*self.to_learn)
        self.learning = self.to_learn = None

    def learn_from(self, release: Release, z: Tensor, target: Target) -> None:
        if len(z) < MIN_ROWS:
            return
        with torch_stream(self.config.seed, "adversary", self.name, release.round):
            self.adversary.improve(z, target)

    def learn(self, release: Release) -> None:
        """Learn from a release without a response (the first pass of the epochwise schedule)."""
        self.finish_learning()
        self.learn_from(release, *self.known(release))

    def respond_without_learning(self, release: Release) -> Feedback:
        """Respond to a release without learning from it (the second pass of the epochwise schedule)."""
        self.finish_learning()
        z, target = self.known(release)
        return self.feedback(release, z.requires_grad_(), target)

    def accumulate(self, release: Release) -> None:
        z, target = self.known(release)
        if len(z):
            cast(EpochFitted, self.adversary).accumulate(z, target)

    def solve(self) -> None:
        cast(EpochFitted, self.adversary).solve()

    @torch.no_grad()
    def score(self, release: Release) -> tuple[float, float]:
        """Sum of its squared errors and of the mean predictor's errors over a release, to which it is not fitted."""
        z, target = self.known(release)
        if len(z) < MIN_ROWS:
            return 0.0, 0.0
        errors, rows = self.adversary.recover(z, target)
        return float(errors.sum()), float(target[rows].mean_errors().sum())

    def weights(self) -> dict[str, Any]:
        self.finish_learning()
        return self.adversary.state_dict()

    def snapshot(self) -> bytes:
        """All state that its next response depends on, after learning from its last release."""
        return pack(self.weights())

    def restore(self, snapshot: bytes) -> None:
        """Restore a snapshot; learning that has not finished is dropped."""
        if self.learning is not None:
            self.learning.exception()  # wait for its end; its error belongs to the discarded state
        self.learning = self.to_learn = None
        self.adversary.load_state_dict(unpack(snapshot, self.device))
