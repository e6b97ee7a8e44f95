"""What a tournament consists of, and the fitting of one of its attacks.

`attack_specs` lists the attacks to be fitted; `fit_attack` fits one, in whatever process it is called. The caller decides where:
one after the other in this process (`fit_in_process`), or as Ray tasks (distributed/tasks.py), whose processes import no more than
this.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpgan_ray.common.process import trim_memory
from cpgan_ray.config import AttackConfig, Config, NeuralConfig
from cpgan_ray.data import Dataset, task_targets
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, Projection, projection
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted
from cpgan_ray.evaluation.protocol import MIN_ROWS, VARIANTS, Codes, attack_data, split_by_identity

PIXEL_ATTACKS = ("resnet_decoder", "decoder")
"""The slow ones, which are begun first."""
MIN_SIDE = 8
"""They are made on pictures of at least this side, in pixels, and on series of at least so many steps. These have width 1 and
several channels; a vector, whose neighbouring numbers have nothing to do with each other, has one."""
LABEL_ATTACKS = ("ridge", "kernel", "mlp")
FLOOR = "labels"
"""The variant of the label floor: the true labels in the place of codes."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack that is to be made."""

    name: str
    variant: str
    share: float = 1.0  # of the pictures that the variant has

    @property
    def counts(self) -> bool:
        """Whether it may be the strongest: the label floor is a reference, the smaller shares belong to the sweep."""
        return self.variant != FLOOR and self.share == 1.0


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """What an attack is made of, in any process: the store pickles as its paths."""

    dataset: Dataset
    codes: Codes
    config: AttackConfig
    seed: int
    trained_against: tuple[str, ...] = ()
    task: tuple[str, ...] = ()  # names of the task's labels; none: all

    def pca_basis(self) -> Projection:
        return projection(self.dataset, components=DEFAULT_COMPONENTS)

    def data(self, variant: str, *, share: float = 1.0, device: torch.device | None = None) -> AttackData:
        """The three sets of a variant. For the label floor the codes are the true labels of the task."""
        codes = self.codes
        if variant == FLOOR:
            labels = {name: self.answers(name) for name in ("train", "val", "test")}
            codes = labels | {"train_mirrored": labels["train"], "val_mirrored": labels["val"]}
        return attack_data(
            self.dataset,
            codes,
            basis=self.pca_basis(),
            variant="leaked" if variant == FLOOR else variant,
            share=share,
            max_rows=self.config.max_rows,
            seed=self.seed,
            trained_against=self.trained_against,
            device=device,
        )

    def answers(self, split: str) -> np.ndarray:
        """The true labels of the task (N, L or C) float32: the codes of the label floor."""
        return task_targets(self.dataset, self.task, split=split)

    def floor(self, data: AttackData) -> AttackData:
        """The score set of some data with the true labels as codes; the other sets as they are."""
        z = torch.from_numpy(self.answers("test")).to(data.score.z.device)
        return dataclasses.replace(data, score=dataclasses.replace(data.score, z=z))


@dataclass(frozen=True, eq=False)
class FittedAttack:
    """A fitted attack, and how long it took."""

    spec: AttackSpec
    fitted: Fitted
    rows: int  # codes that it was fitted on, those of mirrored pictures included
    seconds: float


def trained_against(config: Config) -> tuple[str, ...]:
    """Architectures of the adversaries that the privatizer was trained against."""
    return tuple(a.architecture for a in config.adversaries.values() if isinstance(a, NeuralConfig))


def attack_specs(config: AttackConfig, dataset: Dataset, *, brief: bool = False) -> list[AttackSpec]:
    """All attacks of a tournament, the slowest first. The variant `fresh` is left out where `val` has too few people for it.

    brief: only what takes seconds, for a code in which there is nothing to find.

    Raises: InputError where no variant has enough pictures.
    """
    mine, kept = split_by_identity(dataset.val.identity, seed=0)
    sizes = {"leaked": len(dataset.train), "fresh": len(mine)}
    variants = [v for v in VARIANTS if v in config.variants and (v != "fresh" or min(len(mine), len(kept)) >= MIN_ROWS)]
    if not variants or min(len(dataset.train), len(dataset.val)) < MIN_ROWS:
        raise InputError(
            f"the attacks need {MIN_ROWS} pictures to be fitted on and {MIN_ROWS} to be tuned on: train has "
            f"{len(dataset.train)}, val {len(dataset.val)}, by people {len(mine)} and {len(kept)} for variant 'fresh'; "
            "give more pictures"
        )
    height, width, channels = dataset.image_shape
    series = width == 1 and channels > 1
    convolve = height >= MIN_SIDE and (series or width >= MIN_SIDE)
    if brief:
        return [AttackSpec("ridge", variants[0]), AttackSpec("ridge", FLOOR)]
    names = [name for name in config.names if convolve or name not in PIXEL_ATTACKS]
    if not names:
        raise InputError(
            f"attacks.names has {', '.join(config.names)}, for pictures of {MIN_SIDE} pixels and series of {MIN_SIDE} steps at "
            f"least; these are {height}x{width}x{channels}: add mlp"
        )
    found = [AttackSpec(name, variant) for variant in variants for name in names]
    found += [
        AttackSpec(name, variant, share)
        for variant in variants[:1]
        for share in config.fit_fractions
        for name in names
        if name not in PIXEL_ATTACKS and share * sizes[variant] >= MIN_ROWS
    ]
    found += [AttackSpec(name, FLOOR) for name in LABEL_ATTACKS]
    slow = (*PIXEL_ATTACKS, "mlp", "kernel")
    return sorted(found, key=lambda e: (e.share < 1, e.variant != "leaked", slow.index(e.name) if e.name in slow else len(slow)))


def fit_attack(spec: AttackSpec, context: EvaluationContext, *, device: torch.device | None = None) -> FittedAttack:
    """Fit one attack."""
    trim_memory()
    started = time.perf_counter()
    data = context.data(spec.variant, share=spec.share, device=device)
    config = context.config
    if not spec.counts:  # a lower floor is the stricter one, and a sweep shows how things grow
        config = dataclasses.replace(config, restarts=1, kernel_features=min(config.kernel_features, 1024))
    fitted = ATTACKS[spec.name](data, config)
    return FittedAttack(spec, fitted, len(data.fit), time.perf_counter() - started)


def fit_in_process(
    todo: Sequence[AttackSpec], context: EvaluationContext, *, done: Callable[[FittedAttack], None]
) -> list[FittedAttack]:
    """All attacks, one after the other, in this process."""
    made = []
    for spec in todo:
        made.append(fit_attack(spec, context))
        done(made[-1])
    return made
