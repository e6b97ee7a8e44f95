"""The configuration of a run: frozen dataclasses, checked when they are made. Imports neither torch nor Ray, so `--help` answers at
once.

Every field is a command-line flag (`--privatizer.width 64`, `--adversaries.rbf.memory-batches 5`) and can be searched
(search_space.py); where a search looks by default is declared next to the field (`Range`, `Choices`). A preset (presets.py) decides
which adversaries play, unless `--adversaries` does (adversaries.py); flags tune them.
"""

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, NonNegativeInt

from cpgan_ray.config.attacks import AttackConfig
from cpgan_ray.config.constraints import NonNegative, PositiveInt, config_class, text_like
from cpgan_ray.config.data import DataConfig
from cpgan_ray.config.marks import LOCAL, PORTABLE, Range
from cpgan_ray.config.players import ANSWERS, AdversaryConfig, GameConfig, PrivatizerConfig, UtilityConfig
from cpgan_ray.config.runtime import RecoveryConfig, RuntimeConfig, TrackingConfig
from cpgan_ray.config.targets import PICTURE, check_targets, sensitive_name
from cpgan_ray.errors import InputError

NAME = r"^[\w.+-]{1,60}$"
Name = Annotated[str, text_like(NAME, "1 to 60 letters, digits or any of _.+-")]
"""A name that becomes part of file, metric and run names."""


def folder_or_uri(value: str | Path | None) -> str | Path | None:
    """A URI (`s3://...`) stays text; anything else is a folder."""
    return Path(value) if isinstance(value, str) and "://" not in value else value


@config_class()
class Config:
    """One run."""

    preset: Annotated[Name, PORTABLE, tyro.conf.Suppress] = "custom"
    """Name of the preset that the run started from."""
    data_dir: Annotated[str | Path | None, LOCAL] = None
    """Folder in the official layout of the data set, or of your own pictures, or its URI (s3://, gs://, file://), which each node
    fetches once. Not needed for the embedded faces."""
    cache_dir: Annotated[Path | None, LOCAL] = None
    """Where a node keeps prepared stores and fetched files; `~` and $VARIABLES (in quotes) are expanded on each node. Default:
    `<data-dir>/.cpgan`, or the user's cache folder for a URI, for own pictures and for the embedded faces."""
    shared_cache: Annotated[str | Path | None, LOCAL] = None
    """Folder or URI where nodes share prepared stores: a node without a store takes it from there, a node that made one puts it
    there."""
    output: Annotated[Path | None, LOCAL] = None
    """Folder of the run (`config.json`, `metrics.jsonl`, exported models, report). Default: `outputs/<preset>-<time>`."""
    trust: Annotated[bool, LOCAL] = False
    """Use files that another user has written: prepared stores that came with the data folder, and with --resume that folder."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be decoded and report their number, instead of stopping at the first."""
    seed: NonNegativeInt = 0
    """Seed of every random stream of the run."""
    k: Annotated[PositiveInt, Range(8, 256, (16, 64, 256))] = 64
    """Length of the code z."""
    privacy_weight: Annotated[NonNegative, Range(0.05, 2.0, (0.1, 0.3, 1.0))] = 1.0
    """The privatizer minimises L_U + privacy_weight * P; 0 is the undefended control. The paper's lambda is its inverse."""
    epochs: Annotated[PositiveInt, Range(4, 32, (8, 16, 32))] = 12
    """Passes over the training pictures."""
    batch_size: Annotated[int, Field(ge=4), Range(160, 1280, (320, 640, 1280))] = 640
    """Pictures per round."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the networks' matrix products and convolutions in training. Codes, losses, closed-form adversaries, evaluation
    and exported models are float32 (or better) in both cases."""
    data: DataConfig = field(default_factory=DataConfig)
    privatizer: PrivatizerConfig = field(default_factory=PrivatizerConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)
    game: GameConfig = field(default_factory=GameConfig)
    adversaries: dict[Name, AdversaryConfig] = field(default_factory=dict)
    runtime: Annotated[RuntimeConfig, LOCAL] = field(default_factory=RuntimeConfig)
    recovery: Annotated[RecoveryConfig, LOCAL] = field(default_factory=RecoveryConfig)
    attacks: AttackConfig = field(default_factory=AttackConfig)
    tracking: Annotated[TrackingConfig, LOCAL] = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("data_dir", "shared_cache"):
            object.__setattr__(self, name, folder_or_uri(getattr(self, name)))
        _check_data(self.data)
        targets = {name: a.target for name, a in self.adversaries.items()}
        check_targets(self.game.target_weights, targets, task=self.data.labels, late=self.data.late_labels)
        if self.utility.family == ANSWERS and self.privatizer.family != ANSWERS:
            raise InputError(
                f"utility.family is 'answers', but privatizer.family is {self.privatizer.family!r}, whose codes are no answers: "
                "choose another head, such as mlp"
            )
        if self.privatizer.num_workers > 1:
            _check_workers(self)
        if self.game.rate_weight and not self.privatizer.levels:
            raise InputError(
                f"game.rate_weight is {self.game.rate_weight:g}, but codes without privatizer.levels have no fixed length in bits: "
                "add --privatizer.levels 3, or leave it out"
            )
        if self.game.gradient_norms and self.runtime.compile:
            raise InputError(
                "game.gradient_norms needs two backward passes, runtime.compile has only one: leave out one of the two"
            )

    def target_weight(self, target: str) -> float:
        """The weight in the game of what an adversary recovers (config/targets.py)."""
        return self.privacy_weight if target == PICTURE else self.game.target_weights[sensitive_name(target)]

    @property
    def is_defended(self) -> bool:
        """Whether anything has a weight: the undefended control has none."""
        return self.privacy_weight > 0 or any(weight > 0 for weight in self.game.target_weights.values())

    def without_defence(self) -> "Config":
        """The undefended control: the same run with all of these weights at 0."""
        game = replace(self.game, target_weights=dict.fromkeys(self.game.target_weights, 0.0))
        return replace(self, privacy_weight=0.0, game=game)

    def without_rounding(self) -> "Config":
        """The same run with codes that are not rounded, and so have no levels and no rate."""
        privatizer = replace(self.privatizer, quantization_step=0.0, levels=0)
        return replace(self, privatizer=privatizer, game=replace(self.game, rate_weight=0.0))

    def with_equal_labels(self) -> "Config":
        """The same run with weight 1 for all labels."""
        utility = replace(self.utility, label_weights={}, learn_label_weights=0.0, learned_label_weights={})
        return replace(self, utility=utility)


def _check_data(c: DataConfig) -> None:
    """Settings that only some data sets have. Not checked in DataConfig, because the data set may be given by another flag."""
    of_pictures = ("table", "path_column", "identity_column", "split_column", "missing", "bins")
    if c.dataset != "pictures" and (given := [name for name in of_pictures if getattr(c, name)]):
        raise InputError(
            f"data.{given[0]} is {getattr(c, given[0])!r}, but data.dataset is {c.dataset!r} and only pictures has it: leave it "
            "out, or add --data.dataset pictures"
        )
    if c.split == "identity" and c.split_column:
        raise InputError(
            f"data.split_column is {c.split_column!r}, but data.split is 'identity', which draws the splits: leave out one of the "
            "two"
        )
    if c.max_train_samples and c.dataset in ("faces", "celeba", "pictures"):
        raise InputError(f"data.max_train_samples is {c.max_train_samples}, but {c.dataset} is used whole: leave it out")
    if c.extra and c.dataset != "svhn":
        raise InputError(f"data.extra is True, but data.dataset is {c.dataset!r} and only svhn has it: set --data.no-extra")
    if c.balanced and c.dataset in ("mnist", "digits", "har", "cifar10", "svhn"):
        raise InputError(f"data.balanced is True, but the label of {c.dataset} has more than two values: set --data.no-balanced")
    if c.balanced and c.dataset in ("faces", "celeba", "pictures") and len(c.labels) != 1:
        number = f"names {len(c.labels)}" if c.labels else "is empty, which means all"
        raise InputError(f"data.balanced is True, but data.labels {number}: give one label, such as --data.labels Male")


def _check_workers(c: Config) -> None:
    """Settings that a privatizer with several workers cannot have."""
    workers = f"privatizer.num_workers is {c.privatizer.num_workers}"
    if c.runtime.backend == "local":
        raise InputError(f"{workers}, but runtime.backend is 'local', one process: set --runtime.backend ray, or one worker")
    if c.privatizer.num_workers > c.batch_size:
        raise InputError(f"{workers}, but a batch has only {c.batch_size} pictures: lower it")
    if c.utility.family == "shake":
        raise InputError(f"{workers}, but the utility head 'shake' draws one mixture for the whole batch: set one worker")
    if c.game.gradient_norms:
        raise InputError(f"{workers}, but game.gradient_norms would measure the rows of one worker only: leave out one of the two")
    if c.runtime.compile:
        raise InputError(
            f"{workers}, but with --runtime.compile the batch norms cannot exchange statistics in mid-network: leave out one of "
            "the two"
        )
    if c.runtime.privatizer_gpus % 1 and c.runtime.device != "cpu":
        raise InputError(
            f"{workers} with {c.runtime.privatizer_gpus:g} GPUs each, but NCCL needs whole ones: set --runtime.privatizer-gpus 1"
        )
