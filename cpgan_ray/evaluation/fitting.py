"""The attacks of a tournament, and how one of them is fitted.

`attack_specs` lists the attacks; `fit_attack` fits one in the calling process. The caller decides where: one after the other in
this process (`fit_in_process`), or as Ray tasks (distributed/tasks.py), whose processes import only this module and its imports.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cpgan_ray.common.plugins import label
from cpgan_ray.common.process import trim_memory
from cpgan_ray.config import AttackConfig, Config, NeuralConfig
from cpgan_ray.data import Dataset, Task, task_of, task_targets
from cpgan_ray.data.answers import answer_numbers
from cpgan_ray.data.code_sets import max_shift_px
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, Projection, projection
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted
from cpgan_ray.evaluation.attacks.own import fit_own
from cpgan_ray.evaluation.attacks.stack import stack_attack
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.identity.embedding_target import embedding_data
from cpgan_ray.evaluation.protocol import (
    MIN_ROWS,
    OTHER_DATA,
    QUERIES,
    VARIANTS,
    Codes,
    OtherData,
    attack_data,
    attackers_rows,
    fit_size,
    query_sizes,
)
from cpgan_ray.training.accuracy import predictions

PIXEL_ATTACKS = ("resnet_decoder", "decoder")
"""The slow attacks, which are started first."""
MIN_SIDE = 8
"""Pixel attacks need pictures with sides of at least this many pixels, or series of at least this many steps. A series has width 1
and several channels. A vector, in which neighbouring numbers are unrelated, has one channel."""
SWEPT_ATTACKS = ("ridge", "kernel", "nearest")
"""The fast attacks, which are also fitted on smaller shares of the pictures."""
LABEL_ATTACKS = ("ridge", "kernel", "mlp")
STACK = "stack"
"""Name of the weighted average of all attacks of a variant."""
FLOOR = "labels"
"""Variant of the label floor: its codes are the true labels."""
ANSWERS = "answers"
"""Variant of the answers floor: its codes are the hard answers of the run's own utility head. Its pictures are those of the first
variant of the attacks on z."""
EMBEDDING = "embedding"
"""Variant of the attacks whose target is the judge's embedding of the picture. Its pictures are those of the first variant of the
attacks on z."""
REFERENCES = (FLOOR, ANSWERS)
UNRANKED = (*REFERENCES, EMBEDDING)
"""Variants whose R2 is never that of the strongest attack."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a tournament, before it is fitted."""

    name: str  # of an attack of the user's own: the label of its name
    variant: str
    share: float = 1.0  # share of the variant's pictures that it is fitted on

    @property
    def counts(self) -> bool:
        """Whether it may be the strongest attack: both floors are references, embeddings are no pictures, and smaller shares belong
        to the sweep."""
        return self.variant not in UNRANKED and self.share == 1.0

    @property
    def is_floor(self) -> bool:
        """Whether it may be the label floor."""
        return self.variant == FLOOR and self.share == 1.0


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """Everything that an attack needs. Can be sent to any process: the data set pickles as the paths of its store."""

    dataset: Dataset
    codes: Codes
    config: AttackConfig
    seed: int
    trained_against: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # names of the task's labels; if empty, all labels
    answers: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The hard answers of the run's own utility head, (N, L) of every set of `codes`; empty if they are not known."""
    channel: Channel = field(default_factory=Channel)
    """How the codes are released, for the bounds on every attacker."""

    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The judge's embeddings of the attacker's pictures, by split (identity/embedding_target.py); empty: nothing is attacked to
    predict them."""

    other: OtherData | None = None
    """The pictures of variant `other_data`; None: there is no such attacker."""

    late_labels: tuple[str, ...] = ()
    """Names of the labels of late tasks (late_tasks.py)."""

    @property
    def has_answers(self) -> bool:
        """Whether the answers floor is measured."""
        return self.config.answers_floor and self.answers.keys() >= self.codes.keys()

    @property
    def sends_answers(self) -> bool:
        """Whether the codes are the hard answers themselves."""
        return self.has_answers and all(
            np.array_equal(z, answer_numbers(self.answers[name], self.task)) for name, z in self.codes.items()
        )

    @property
    def first_variant(self) -> str:
        """The first variant of the attacks on z, whose pictures the answers floor has, too."""
        return next(name for name in VARIANTS if name in self.config.variants)

    @property
    def task(self) -> Task:
        return task_of(self.dataset, self.labels)

    def pca_basis(self) -> Projection:
        return projection(self.dataset, components=DEFAULT_COMPONENTS)

    def data(self, variant: str, *, share: float = 1.0, device: torch.device | None = None) -> AttackData:
        """The three sets of a variant. In the label floor the codes are the true labels of the task, in the answers floor the run's
        own hard answers."""
        codes = self.codes
        if variant == FLOOR:
            labels = {name: self.true_answers(name) for name in self.dataset.splits}
            codes = {name: labels[name.partition("_")[0]] for name in codes if "_draw" not in name}
        if variant == ANSWERS:
            codes = {name: answer_numbers(self.answers[name], self.task) for name in codes}
        return attack_data(
            self.dataset,
            codes,
            basis=self.pca_basis(),
            variant={FLOOR: "leaked", ANSWERS: self.first_variant}.get(variant, variant),
            share=share,
            max_rows=self.config.max_rows,
            shift=max_shift_px(self.dataset, self.config),
            seed=self.seed,
            trained_against=self.trained_against,
            device=device,
            other=self.other if variant == OTHER_DATA else None,
        )

    def embedding_data(self, *, device: torch.device | None = None) -> tuple[AttackData, torch.Tensor]:
        """The sets of the attacks that predict embeddings, and the mean embedding that their targets are relative to."""
        return embedding_data(self.data(self.first_variant, device=device), self.embeddings)

    def true_answers(self, split: str) -> np.ndarray:
        """The true answers to the task as numbers, see `task_targets`: the codes of the label floor."""
        return task_targets(self.dataset, self.task, split=split)

    def floor(self, data: AttackData) -> AttackData:
        """The same data with the true labels as codes in the score set; the other sets are unchanged."""
        return with_score_codes(data, self.true_answers("test"))

    def answered(self, data: AttackData) -> AttackData:
        """The same data with the run's own hard answers as codes in the score set; the other sets are unchanged."""
        return with_score_codes(data, answer_numbers(self.answers["test"], self.task))


def with_score_codes(data: AttackData, z: np.ndarray) -> AttackData:
    """The same data with other codes (N, k) in the score set."""
    codes = torch.from_numpy(z).to(data.score.z.device)
    return dataclasses.replace(data, score=dataclasses.replace(data.score, z=codes))


def hard_answers(logits: Mapping[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
    """The answers (N, L) that logits (N, num_logits) give, set by set: int16."""
    return {name: predictions(values, task).astype(np.int16) for name, values in logits.items()}


@dataclass(frozen=True, eq=False)
class FittedAttack:
    """A fitted attack, and how long fitting took."""

    spec: AttackSpec
    fitted: Fitted
    rows: int  # number of codes that it was fitted on, including those of mirrored pictures
    pictures: int  # number of pictures that the attacker has of her own, to fit and to tune on
    seconds: float


def trained_against(config: Config) -> tuple[str, ...]:
    """Architectures of the adversaries that the privatizer was trained against."""
    return tuple(a.architecture for a in config.adversaries.values() if isinstance(a, NeuralConfig))


def attack_specs(
    config: AttackConfig,
    dataset: Dataset,
    *,
    brief: bool = False,
    answers: bool = False,
    embeddings: bool = False,
    other: Dataset | None = None,
) -> list[AttackSpec]:
    """All attacks of a tournament but the stacks, the slowest first. The variant `fresh` is left out if there are too few people
    for it.

    brief: only attacks that take seconds, for a code that contains nothing to find; answers: with those of the answers floor
    (`EvaluationContext.has_answers`); embeddings: with those that predict embeddings;
    other: the data set of variant `other_data`.

    Raises: InputError if no variant has enough pictures, or if none of the attacks can be fitted on pictures of this size.
    """
    sizes = {variant: fit_size(dataset, variant, seed=0) for variant in VARIANTS}
    fresh_tune = attackers_rows(dataset, "fresh", seed=0)[2]
    has_fresh = min(sizes["fresh"], len(fresh_tune)) >= MIN_ROWS
    variants = [v for v in VARIANTS if v in config.variants and (v != "fresh" or has_fresh)]
    if not variants or min(sizes["leaked"], len(dataset.val)) < MIN_ROWS:
        raise InputError(
            f"the attacks need {MIN_ROWS} pictures to fit on and {MIN_ROWS} to tune on: train has {len(dataset.train)}, val has "
            f"{len(dataset.val)}; variant 'fresh' has {sizes['fresh']} and {len(fresh_tune)}; add pictures"
        )
    if repeated := [number for number in config.queries if config.queries.count(number) > 1]:
        raise InputError(f"attacks.queries has {repeated[0]} twice: give each number once")
    for number in config.queries:
        query_sizes(dataset, number)
    if other is not None and min(len(other.train), len(other.val)) < MIN_ROWS:
        raise InputError(
            f"attacks.attacker_data has {len(other.train)} pictures to fit on and {len(other.val)} to tune on, but the attacks "
            f"need {MIN_ROWS} each: add pictures"
        )
    height, width, channels = dataset.image_shape
    is_series = width == 1 and channels > 1
    large_enough = height >= MIN_SIDE and (is_series or width >= MIN_SIDE)
    if brief:
        return [AttackSpec("ridge", variant) for variant in (variants[0], FLOOR, *((ANSWERS,) if answers else ()))]
    labels = [label(name) for name in config.names]
    if same := [name for name in labels if labels.count(name) > 1]:
        raise InputError(f"attacks.names has {same[0]} twice: name each attack once, and give files of your own different names")
    names = [name for name in labels if name != STACK and (large_enough or name not in PIXEL_ATTACKS)]
    if not names and set(config.names) == {STACK}:
        raise InputError(f"attacks.names has only {STACK}, which is the average of other attacks: add kernel and mlp")
    if not names:
        raise InputError(
            f"attacks.names has only {', '.join(config.names)}, which need pictures of at least {MIN_SIDE} pixels or series of at "
            f"least {MIN_SIDE} steps; these are {height}x{width}x{channels}: add mlp"
        )
    further = [f"{QUERIES}{number}" for number in config.queries] + ([OTHER_DATA] if other is not None else [])
    specs = [AttackSpec(name, variant) for variant in (*variants, *further) for name in names]
    specs += [AttackSpec(name, FLOOR) for name in LABEL_ATTACKS]
    if answers:  # only attacks that z gets, too, so that the two can be compared
        specs += [AttackSpec(name, ANSWERS) for name in LABEL_ATTACKS if name in names] or [AttackSpec("ridge", ANSWERS)]
    if embeddings:
        specs += [AttackSpec(name, EMBEDDING) for name in LABEL_ATTACKS if name in names] or [AttackSpec("ridge", EMBEDDING)]
    specs += [
        AttackSpec(name, variant, share)
        for variant, attacks in ((variants[0], names), (FLOOR, LABEL_ATTACKS))
        for share in config.fit_fractions
        for name in attacks
        if name in SWEPT_ATTACKS and share * sizes["leaked" if variant == FLOOR else variant] >= MIN_ROWS
    ]
    slow = (*PIXEL_ATTACKS, "mlp", "kernel")
    return sorted(specs, key=lambda s: (s.share < 1, s.variant != "leaked", slow.index(s.name) if s.name in slow else len(slow)))


def fit_attack(spec: AttackSpec, context: EvaluationContext, *, device: torch.device | None = None) -> FittedAttack:
    """Fit one attack."""
    trim_memory()
    started = time.perf_counter()
    config = context.config
    if spec.variant == EMBEDDING:
        data, _ = context.embedding_data(device=device)
    else:
        data = context.data(spec.variant, share=spec.share, device=device)
    if spec.share < 1:  # a sweep only needs the trend
        config = dataclasses.replace(config, restarts=1, decoder_restarts=1, kernel_features=min(config.kernel_features, 1024))
    name = next((name for name in config.names if label(name) == spec.name), spec.name)
    fitted = fit_own(name, data, config) if ATTACKS.is_own(name) else ATTACKS[name](data, config)
    pictures = len(data.fit) // data.views + len(data.tune)
    return FittedAttack(spec, fitted, len(data.fit), pictures, time.perf_counter() - started)


def answers_attacks(specs: Sequence[AttackSpec], attacks: Sequence[FittedAttack], context: EvaluationContext) -> list[FittedAttack]:
    """The attacks of the answers floor. If the codes are the answers themselves, they are those on z, and nothing is fitted.

    specs: of the tournament; attacks: on z.
    """
    if not context.sends_answers:
        return fit_in_process([spec for spec in specs if spec.variant == ANSWERS], context, done=lambda attack: None)
    names = {spec.name for spec in specs if spec.variant == ANSWERS}
    whole = [a for a in attacks if a.spec.variant == context.first_variant and a.spec.counts and a.spec.name in names]
    return [dataclasses.replace(a, spec=AttackSpec(a.spec.name, ANSWERS)) for a in whole]


def stack_specs(specs: Sequence[AttackSpec], config: AttackConfig) -> list[AttackSpec]:
    """The stacks of a tournament: one for each variant, and for the label floor, that has several attacks."""
    whole = [spec.variant for spec in specs if spec.share == 1 and spec.variant != EMBEDDING]
    return [AttackSpec(STACK, variant) for variant in dict.fromkeys(whole) if STACK in config.names and whole.count(variant) > 1]


def fit_stacks(
    attacks: Sequence[FittedAttack], context: EvaluationContext, *, done: Callable[[FittedAttack], None]
) -> list[FittedAttack]:
    """Fit the stacks of a tournament; `done` is called after each. This takes seconds, so it is done in the calling process, after
    all attacks are fitted."""
    stacks = []
    for spec in stack_specs([attack.spec for attack in attacks], context.config):
        started = time.perf_counter()
        members = {a.spec.name: a for a in attacks if a.spec.variant == spec.variant and a.spec.share == 1}
        fitted = stack_attack(context.data(spec.variant), {name: attack.fitted for name, attack in members.items()})
        rows, pictures = (max(getattr(attack, name) for attack in members.values()) for name in ("rows", "pictures"))
        stacks.append(FittedAttack(spec, fitted, rows, pictures, time.perf_counter() - started))
        done(stacks[-1])
    return stacks


def fit_in_process(
    specs: Sequence[AttackSpec], context: EvaluationContext, *, done: Callable[[FittedAttack], None]
) -> list[FittedAttack]:
    """Fit all attacks, one after the other, in this process; `done` is called after each."""
    attacks = []
    for spec in specs:
        attacks.append(fit_attack(spec, context))
        done(attacks[-1])
    return attacks
