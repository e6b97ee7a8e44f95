"""What a run is told: frozen dataclasses, checked when made. Imports neither torch nor Ray, so `--help` answers at once.

Every field is a command-line flag (`--privatizer.width 64`, `--adversaries.rbf.memory-batches 5`) and can be searched (space.py);
where a search looks, unless told otherwise, is declared beside the default (`Range`, `Choices`). Which adversaries play is decided
by a preset (presets.py); flags tune them.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict

from cpgan_ray.errors import InputError

STRICT = ConfigDict(extra="forbid")
NAME = re.compile(r"[\w.+-]{1,60}")


def _require(ok: bool, where: str, value: object, need: str) -> None:
    if not ok:
        raise InputError(f"{where} is {value!r}; it must be {need}")


def folder_or_uri(value: str | Path | None) -> str | Path | None:
    """A URI (`s3://...`) stays text; anything else is a folder."""
    return Path(value) if isinstance(value, str) and "://" not in value else value


@dataclass(frozen=True)
class Range:
    """Where a search looks for a field's value: between two bounds, or on a grid."""

    low: float
    high: float
    grid: tuple[float, ...]
    """What a grid search tries."""
    log: bool = True
    """Whether the factor counts, not the difference."""


@dataclass(frozen=True)
class Choices:
    """Among which values a search looks for a field's, of which not all go with any data. All others have to be asked for."""

    values: tuple[str, ...]


class Origin(Enum):
    """Whether a field is taken from the files of a folder that another user has written. Every field that may hold any text or path
    has one of the two marks."""

    LOCAL = "it says where something is, runs or is tracked"
    """From another user's folder it would lead this user's credentials and writes to a place of that user's choice: it is taken
    from this user's own flags and environment only."""
    PORTABLE = "it says what is trained"


LOCAL, PORTABLE = Origin.LOCAL, Origin.PORTABLE


DatasetName = Literal["faces", "celeba", "mnist", "digits", "har", "genki4k", "cifar10", "svhn", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    __pydantic_config__ = STRICT

    dataset: DatasetName = "faces"
    """`faces`: procedural faces, drawn on first use. `celeba`: the official layout in `--data-dir` (which implies it). `digits`:
    scikit-learn's, `gaussian`: a mixture that is drawn; both need no folder. The others: their official layout in `--data-dir`."""
    image_size: int = 64
    """Side of the square pictures in the store, in pixels (faces, celeba and genki4k; the others have their own)."""
    crop: float = 1.0
    """Side of the centred square cut from each picture, as a share of its shorter side (CelebA's usual 148 of 178: 0.83)."""
    split: Literal["official", "identity"] = "official"
    """`official`: the partition file. `identity`: 80/10/10 % of the identities, drawn by a hash of the identity number."""
    labels: Annotated[tuple[str, ...], PORTABLE] = ()
    """The attributes of the task, by their official names; none given: all that the attribute file has."""
    balanced: bool = False
    """Keep equally many samples of both values of the task's one 0/1 label in training, validation and test each: all of the rarer
    value, as many of the other by chance. The majority guess is then 0.5."""
    balanced_seed: int = 0
    """Of that chance; not the run's seed, so that runs under several seeds have the same samples."""
    extra: bool = False
    """Train on SVHN's `extra_32x32.mat` too, 531,131 easier digits; validation and test stay as they are. Preparing them takes
    2 GB of memory."""
    max_train_samples: int = 0
    """At most so many training samples, evenly spaced, and a quarter as many for validation (small data sets only); 0: all."""
    mixture_seed: int = 9
    """Which mixture `gaussian` is; 9 is the reference's."""
    digest: Annotated[str, PORTABLE] = ""
    """Name of the prepared store (`store` in a run's `config.json` ends with it): that one or none; where the cache or the shared
    cache has it, no source is needed. None given: the store that the source makes."""
    horizontal_flip: bool = True
    """Show each training picture mirrored in half of the rounds (its target is mirrored too), unless it is a digit or a signal."""
    max_shift_px: int = 0
    """Largest random shift of a training picture, in pixels each way (its target is shifted too)."""
    cutout: int = 0
    """Side of a grey square, in pixels, laid over a random place of each training picture that the privatizer sees (its target is
    whole); 0: none."""
    input_noise: float = 0.0
    """Standard deviation of Gaussian noise on each value that the privatizer sees in training, where pictures are in [-1, 1]."""
    num_identities: int = 1200
    """Procedural faces only: how many people are drawn."""
    pictures_per_identity: int = 4
    """Procedural faces only: how many pictures each of them has."""

    def __post_init__(self) -> None:
        _require(8 <= self.image_size <= 1024, "data.image_size", self.image_size, "between 8 and 1024")
        _require(0 < self.crop <= 1, "data.crop", self.crop, "in (0, 1]")
        _require(
            0 <= self.max_shift_px < self.image_size // 2,
            "data.max_shift_px",
            self.max_shift_px,
            "at least 0 and below half of data.image_size",
        )
        _require(self.cutout >= 0, "data.cutout", self.cutout, "at least 0")
        _require(self.input_noise >= 0, "data.input_noise", self.input_noise, "at least 0")
        _require(self.max_train_samples >= 0, "data.max_train_samples", self.max_train_samples, "at least 0")
        _require(self.balanced_seed >= 0, "data.balanced_seed", self.balanced_seed, "at least 0")
        _require(self.mixture_seed >= 0, "data.mixture_seed", self.mixture_seed, "at least 0")
        _require(re.fullmatch("([0-9a-f]{16})?", self.digest) is not None, "data.digest", self.digest, "16 digits of 0-9 and a-f")
        _require(self.num_identities >= 10, "data.num_identities", self.num_identities, "at least 10")
        _require(self.pictures_per_identity >= 1, "data.pictures_per_identity", self.pictures_per_identity, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PrivatizerConfig:
    __pydantic_config__ = STRICT

    family: Annotated[
        Literal[
            "conv",
            "residual",
            "lenet",
            "generator",
            "picture",
            "picture_conv",
            "celeba_single",
            "celeba_multi",
            "linear",
            "whitened",
        ],
        Choices(("conv", "residual")),
    ] = "conv"
    """`conv`: strided 3x3 convolutions with batch norm, after the original's for one attribute of CelebA. `residual`:
    pre-activation residual blocks. The original's: `lenet` (MNIST, GENKI, HAR), `generator` (CIFAR-10), `picture` (CIFAR-10, SVHN)
    and `picture_conv` (SVHN), which keep the shape, `celeba_single` (112 x 112), `celeba_multi` (175 x 175, two sub-nets with half
    of the code each), `linear` (Gaussian). `whitened` is linear too, on principal components of unit variance. Width and depth are
    of `conv` and `residual`."""
    norm_momentum: float = 0.1
    """Of `picture`: share of a batch in the running statistics of its batch norms; the original's are 0.1 on CIFAR-10, 0.01 on
    SVHN."""
    bottleneck: bool = True
    """A linear map to k numbers; without it the features themselves are the code, and k must be as many."""
    code_activation: Literal["normalised", "relu", "raw"] = "normalised"
    """How z leaves: `normalised` by batch statistics (rescaling gains nothing), through a `relu` (the original), or as it is."""
    width: Annotated[int, Range(8, 64, (16, 32, 64))] = 32
    """Channels of the first stage; each further stage doubles them."""
    depth: Annotated[int, Range(3, 5, (3, 4, 5), log=False)] = 4
    """Stages; each halves the picture's side."""
    symmetric: bool = False
    """Encode the picture and its mirror image and average before normalising: z cannot tell left from right. Twice the compute."""
    quantization_step: Annotated[float, Range(0.5, 4.0, (0.5, 1.0, 2.0, 4.0))] = 0.0
    """z is rounded to multiples of this many standard deviations, in training as in use; 0: not rounded. What hides in low digits
    of z survives any adversary that does not look there; rounding removes the digits."""
    learning_rate: Annotated[float, Range(5e-4, 8e-3, (1e-3, 2e-3, 4e-3))] = 2e-3
    """Adam's peak rate."""
    weight_decay: Annotated[float, Range(1e-5, 1e-1, (1e-4, 1e-3, 1e-2))] = 0.0
    """Decoupled (AdamW)."""
    lr_schedule: Literal["constant", "cosine", "steps"] = "cosine"
    """How the rate goes from its peak over the run, for the privatizer and the utility head; `steps`: a tenth of it after half of
    the run, a hundredth after three quarters."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights that is released in the end; 0: the last weights."""
    num_workers: int = 1
    """Processes that share each batch between them, data-parallel; more than one: a worker group of Ray Train."""

    def __post_init__(self) -> None:
        _require(0 < self.norm_momentum <= 1, "privatizer.norm_momentum", self.norm_momentum, "in (0, 1]")
        if self.norm_momentum != 0.1 and self.family != "picture":
            raise InputError(
                f"privatizer.norm_momentum is {self.norm_momentum}, which family 'picture' takes alone; the family is "
                f"{self.family!r}: leave one of the two out"
            )
        _require(self.width >= 1, "privatizer.width", self.width, "at least 1")
        _require(1 <= self.depth <= 8, "privatizer.depth", self.depth, "between 1 and 8")
        _require(self.quantization_step >= 0, "privatizer.quantization_step", self.quantization_step, "at least 0")
        _require(self.learning_rate > 0, "privatizer.learning_rate", self.learning_rate, "positive")
        _require(self.weight_decay >= 0, "privatizer.weight_decay", self.weight_decay, "at least 0")
        _require(0 <= self.ema_decay < 1, "privatizer.ema_decay", self.ema_decay, "in [0, 1)")
        _require(self.num_workers >= 1, "privatizer.num_workers", self.num_workers, "at least 1")


@dataclass(frozen=True, kw_only=True)
class UtilityConfig:
    __pydantic_config__ = STRICT

    family: Annotated[Literal["mlp", "lenet", "shake", "wide", "celeba_single", "celeba_multi"], Choices(("mlp", "lenet"))] = "mlp"
    """`mlp`: hidden layers with batch norm and dropout. The original's: `lenet` (FC 120 and 84); on codes that are pictures `shake`
    (Shake-Shake 26) and `wide` (WRN-16-8), of any depth and width; `celeba_single`; `celeba_multi` (the first 8 attributes from the
    first half of the code, the other 14 and 18 from the second)."""
    depth: int = 0
    """Layers of `shake` and `wide`; 0: 26 and 16."""
    width: int = 0
    """Channels of the first stage of `shake`, widening of `wide`; 0: 32 and 8."""
    hidden: Annotated[int, Range(64, 1024, (128, 256, 512))] = 256
    """Width of the two hidden layers of the classifier on z; 0: a linear classifier."""
    dropout: Annotated[float, Range(0.0, 0.6, (0.0, 0.3, 0.6), log=False)] = 0.3
    """Share of hidden units dropped in training."""
    class_weighted_loss: bool = False
    """Weigh the two values of each attribute equally (class-weighted cross-entropy; for single rare attributes)."""
    learning_rate: Annotated[float, Range(5e-4, 8e-3, (1e-3, 2e-3, 4e-3))] = 2e-3
    """Adam's peak rate."""

    def __post_init__(self) -> None:
        for name in ("hidden", "depth", "width"):
            _require(getattr(self, name) >= 0, f"utility.{name}", getattr(self, name), "at least 0")
        _require(0 <= self.dropout < 1, "utility.dropout", self.dropout, "in [0, 1)")
        _require(self.learning_rate > 0, "utility.learning_rate", self.learning_rate, "positive")


@dataclass(frozen=True, kw_only=True)
class GameConfig:
    __pydantic_config__ = STRICT

    privacy_loss: Literal["recovered", "negated_mse"] = "recovered"
    """The privacy term: the share of variance an adversary recovers, clipped below at 0; or the paper's raw `-L_R`."""
    aggregate: Literal["strongest", "softmax", "mean"] = "strongest"
    """How the adversaries' terms become one."""
    temperature: float = 0.05
    """Of `softmax`, in units of R2."""
    schedule: Literal["sync", "stale1", "epochwise"] = "sync"
    """`sync`: exact. `stale1`: feedback is one round old, deterministic, faster. `epochwise`: the paper's for several
    adversaries: an epoch of teaching them, then an epoch of the privatizer against the one with the smallest validation error."""
    warmup_epochs: Annotated[float, Range(0.0, 8.0, (0.0, 4.0, 8.0), log=False)] = 0.0
    """Over so many first epochs the privacy weight rises linearly from 0."""
    holdout_fraction: Annotated[float, Range(0.1, 0.5, (0.1, 0.25, 0.5), log=False)] = 0.25
    """Share of a batch that the hold-out adversaries are scored on (they are fitted on the rest)."""
    gradient_norms: bool = False
    """Log in every round how strongly each side of the game pulls at the privatizer's weights (`utility/grad_norm`,
    `privacy/grad_norm`); takes a second backward pass."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, "game.temperature", self.temperature, "positive")
        _require(self.warmup_epochs >= 0, "game.warmup_epochs", self.warmup_epochs, "at least 0")
        _require(0 < self.holdout_fraction < 1, "game.holdout_fraction", self.holdout_fraction, "in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class RidgeConfig:
    """Linear ridge reconstructor with intercept (LRR), in closed form."""

    __pydantic_config__ = STRICT

    kind: Literal["ridge"] = "ridge"
    """Which adversary this is."""
    fit: Literal["holdout", "epoch"] = "holdout"
    """`holdout`: on a part of the batch and the bank, every round. `epoch`: on all training codes, once per epoch, by streaming."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    """Candidates, per fitted row; the best on held-out rows is used. One candidate: no choice."""
    code_normalization: Literal["raw", "standardised", "whitened"] = "raw"
    """What is done to z first, with the statistics of the rows fitted on."""
    memory_batches: Annotated[int, Range(0, 6, (0, 3, 6), log=False)] = 3
    """How many past batches are fitted on beside the current one."""
    components: int = 256
    """Target: this many leading principal components of the pictures; 0: the pixels."""
    loss_weight: float = 1.0
    """Factor on this adversary's privacy term."""
    cpus: float | None = None
    """CPUs of its actor; none given: `runtime.adversary_cpus`."""
    gpus: float | None = None
    """GPUs of its actor, fractions allowed; none given: `runtime.adversary_gpus`."""

    def __post_init__(self) -> None:
        _check_closed_form(self)


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """RBF kernel ridge reconstructor (KRR), exact or by random Fourier features, in closed form."""

    __pydantic_config__ = STRICT

    kind: Literal["kernel"] = "kernel"
    """Which adversary this is."""
    features: int = 0
    """Random Fourier features; 0: the exact kernel on the batch and the bank."""
    bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Candidates for the kernel's width, as multiples of the median distance between codes."""
    fit: Literal["holdout", "epoch"] = "holdout"
    """`holdout`: on a part of the batch and the bank, every round. `epoch` (random features only): on all training codes."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Candidates, per fitted row; the best on held-out rows is used."""
    code_normalization: Literal["raw", "standardised", "whitened"] = "raw"
    """What is done to z first, with the statistics of the rows fitted on."""
    memory_batches: Annotated[int, Range(0, 6, (0, 3, 6), log=False)] = 3
    """How many past batches are fitted on beside the current one."""
    components: int = 256
    """Target: this many leading principal components of the pictures; 0: the pixels."""
    tune_every: int = 10
    """Rounds between two choices of bandwidth and penalty."""
    loss_weight: float = 1.0
    """Factor on this adversary's privacy term."""
    cpus: float | None = None
    """CPUs of its actor; none given: `runtime.adversary_cpus`."""
    gpus: float | None = None
    """GPUs of its actor, fractions allowed; none given: `runtime.adversary_gpus`."""

    def __post_init__(self) -> None:
        _check_closed_form(self)
        _require(self.features >= 0, "adversary features", self.features, "at least 0")
        _require(
            len(self.bandwidths) > 0 and all(b > 0 for b in self.bandwidths),
            "adversary bandwidths",
            self.bandwidths,
            "positive numbers",
        )
        _require(self.tune_every >= 1, "adversary tune_every", self.tune_every, "at least 1")
        if self.fit == "epoch" and self.features == 0:
            raise InputError("fit='epoch' needs random features; got features=0: set features to 1024, say, or fit to 'holdout'")


@dataclass(frozen=True, kw_only=True)
class NeuralConfig:
    """Neural reconstructor, trained by gradient steps."""

    __pydantic_config__ = STRICT

    kind: Literal["neural"] = "neural"
    """Which adversary this is."""
    architecture: Annotated[
        Literal["mlp", "conv", "upsample", "resnet", "paper"], Choices(("mlp", "conv", "upsample", "resnet"))
    ] = "conv"
    """`mlp`, or a decoder of transposed convolutions (`conv`), of up-sampled convolutions, or of residual blocks; `paper`: the
    original's for pictures of that shape, of a fixed size."""
    paper_decoder: Literal["auto", "plain", "leaky", "cifar", "picture", "series", "odd"] = "auto"
    """`paper` only: which of the original's; `auto`: by the pictures' shape. `plain` (MNIST, GENKI), `leaky` and `odd` (CelebA at
    112 and 175), `cifar` (CIFAR-10, SVHN), `series` (HAR); `picture`: SVHN's as the one adversary, for codes that are pictures."""
    tanh_output: bool = False
    """`paper` only: end in a tanh, as the original does. What it cannot reach then looks private."""
    width: int = 64
    """Hidden units of an `mlp`; channels of a decoder's last stage but one."""
    depth: int = 2
    """Hidden layers of an `mlp`; residual blocks per stage of a `resnet`."""
    dropout: float = 0.0
    """In the hidden layers of an `mlp`."""
    steps: int = 1
    """Gradient steps per round."""
    learning_rate: float = 1e-3
    """Of Adam."""
    memory_batches: int = 0
    """How many past batches its steps draw rows from, beside the current one."""
    components: int = 0
    """Target: this many leading principal components of the pictures (`mlp` only); 0: the pixels."""
    loss_weight: float = 1.0
    """Factor on this adversary's privacy term."""
    cpus: float | None = None
    """CPUs of its actor; none given: `runtime.adversary_cpus`."""
    gpus: float | None = None
    """GPUs of its actor, fractions allowed; none given: `runtime.adversary_gpus`."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "steps"):
            _require(getattr(self, name) >= 1, f"adversary {name}", getattr(self, name), "at least 1")
        _require(0 <= self.dropout < 1, "adversary dropout", self.dropout, "in [0, 1)")
        _require(self.learning_rate > 0, "adversary learning_rate", self.learning_rate, "positive")
        _check_adversary(self)
        if self.paper_decoder != "auto" and self.architecture != "paper":
            raise InputError(
                f"paper_decoder={self.paper_decoder!r} needs architecture 'paper'; got {self.architecture!r}: "
                "set architecture to 'paper'"
            )
        if self.components and self.architecture != "mlp":
            raise InputError(
                f"components={self.components} needs architecture 'mlp'; got {self.architecture!r}: set components to 0"
            )


AdversaryConfig = Annotated[RidgeConfig | KernelConfig | NeuralConfig, pydantic.Discriminator("kind")]


def _check_closed_form(c: RidgeConfig | KernelConfig) -> None:
    _require(len(c.penalties) > 0 and all(p > 0 for p in c.penalties), "adversary penalties", c.penalties, "positive numbers")
    _check_adversary(c)


def _check_adversary(c: AdversaryConfig) -> None:
    _require(c.memory_batches >= 0, "adversary memory_batches", c.memory_batches, "at least 0")
    _require(c.components >= 0, "adversary components", c.components, "at least 0")
    _require(c.loss_weight >= 0, "adversary loss_weight", c.loss_weight, "at least 0")
    for name in ("cpus", "gpus"):
        value = getattr(c, name)
        _require(value is None or value >= 0, f"adversary {name}", value, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    __pydantic_config__ = STRICT

    backend: Literal["auto", "local", "ray"] = "auto"
    """`local`: all players in one process. `ray`: an actor each. `auto`: Ray for two adversaries or more, else local."""
    address: Annotated[str | None, LOCAL] = None
    """Ray cluster to join; none given: the job's own, RAY_ADDRESS's, or a new local one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where players compute; `auto`: CUDA where the player has been given a GPU."""
    compile: bool = False
    """Compile the networks that are trained (torch.compile): worth it on a GPU and in long runs. Needs a C++ compiler."""
    threads: int = 0
    """Torch threads of each process; 0: as many as its CPUs (all cores for the local backend)."""
    privatizer_cpus: float | None = None
    """CPUs of the privatizer's actor, or of each of its workers; none given: 1, or an equal share where the cluster is smaller than
    that."""
    privatizer_gpus: float = 0.0
    """GPUs of the privatizer's actor, fractions allowed, or of each of its workers."""
    adversary_cpus: float | None = None
    """CPUs of each adversary's actor; none given: 1, or an equal share where the cluster is smaller than that."""
    adversary_gpus: float = 0.0
    """GPUs of each adversary's actor, fractions allowed."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Strategy of the one placement group that holds all actors."""
    startup_timeout_s: float = 0.0
    """How long to wait for a cluster that is still too small (an autoscaler at work), in seconds."""
    reply_timeout_s: float = 600.0
    """How long one reply of an adversary may take, in seconds."""

    def __post_init__(self) -> None:
        for name in ("privatizer_cpus", "privatizer_gpus", "adversary_cpus", "adversary_gpus", "startup_timeout_s", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"runtime.{name}", value, "at least 0")
        _require(self.reply_timeout_s > 0, "runtime.reply_timeout_s", self.reply_timeout_s, "positive")


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """What is kept against the loss of a process or a node, and how often the game goes back to it."""

    __pydantic_config__ = STRICT

    snapshot_every: int = 50
    """Rounds between two snapshots of the whole game in the host's memory (of `stale1` and `epochwise` at the end of an epoch)."""
    checkpoint_every: int = 200
    """Rounds between two checkpoints; 0: none, and a run cannot be resumed."""
    checkpoints: Annotated[str | None, LOCAL] = None
    """Folder, or URI of a file system that pyarrow knows (s3://, gs://), of the checkpoints; none given: `<output>/checkpoints`."""
    num_checkpoints: int = 2
    """How many checkpoints stay, beside that of the best validation accuracy."""
    max_failures: int = 10
    """How many losses a run survives."""
    backoff_s: float = 0.5
    """Wait before the second replacement in a row, in seconds; doubled for each further one, up to a minute."""
    num_spares: int = 0
    """Warm processes that wait to take the place of a lost adversary."""
    replacement_timeout_s: float = 300.0
    """How long a replacement may wait for its place on a cluster that has shrunk, in seconds."""

    def __post_init__(self) -> None:
        _require(self.snapshot_every >= 1, "recovery.snapshot_every", self.snapshot_every, "at least 1")
        _require(self.num_checkpoints >= 1, "recovery.num_checkpoints", self.num_checkpoints, "at least 1")
        for name in ("checkpoint_every", "max_failures", "backoff_s", "num_spares", "replacement_timeout_s"):
            _require(getattr(self, name) >= 0, f"recovery.{name}", getattr(self, name), "at least 0")


AttackName = Literal["ridge", "kernel", "mlp", "decoder", "resnet_decoder", "nearest"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The tournament of fresh attacks at the end of a run, and of `jobs/attack.py`."""

    __pydantic_config__ = STRICT

    names: tuple[AttackName, ...] = ("ridge", "kernel", "mlp", "decoder", "resnet_decoder", "nearest")
    """Which attacks are made."""
    variants: tuple[Literal["leaked", "fresh"], ...] = ("leaked", "fresh")
    """`leaked`: fitted on the defender's training pictures. `fresh`: on the attacker's own, from the validation split."""
    fit_fractions: tuple[float, ...] = (0.01, 0.1)
    """Attack-set size sweep: the quick attacks are made again on these shares of the first variant's pictures."""
    restarts: int = 2
    """Seeds under which an attack is fitted; the average of the reconstructions counts where it is better on tuning rows."""
    epochs: int = 3
    """First budget of a neural attack; it is doubled until that gains less than 0.005 R2 on the tuning rows."""
    max_budget_doublings: int = 2
    """How often the budget is doubled at most; an attack that still gained then is reported as not saturated."""
    max_rows: int = 0
    """At most this many pictures are fitted on; 0: all."""
    mlp_widths: tuple[int, ...] = (1024,)
    """Hidden units of the MLP attacks; each is tried, the best on tuning rows counts."""
    decoder_width: int = 8
    """Channels of the convolutional decoder's last stage but one; the residual decoder has half as many again."""
    kernel_features: int = 4096
    """Most random Fourier features of the kernel attack."""
    quick_every: int = 0
    """Epochs between two quick fresh attacks in mid-training (on validation people; no result, but no lag either); 0: none."""
    identity: bool = True
    """Also measure identity linkage."""
    attributes: bool = True
    """Also measure what every attribute can be inferred to from z."""
    similarity: bool = True
    """Also report PSNR, SSIM and MS-SSIM of the reconstructed pictures."""
    legacy: bool = False
    """Also report the original's wrapped uint8 error, to compare with numbers published that way."""
    cpus: float = 1.0
    """CPUs of an attack's Ray task."""
    gpus: float = 0.0
    """GPUs of an attack's Ray task, fractions allowed."""

    def __post_init__(self) -> None:
        _require(len(self.names) > 0, "attacks.names", self.names, "at least one attack")
        _require(len(self.variants) > 0, "attacks.variants", self.variants, "at least one of leaked, fresh")
        _require(all(0 < s < 1 for s in self.fit_fractions), "attacks.fit_fractions", self.fit_fractions, "shares between 0 and 1")
        for name in ("restarts", "epochs", "decoder_width", "kernel_features"):
            _require(getattr(self, name) >= 1, f"attacks.{name}", getattr(self, name), "at least 1")
        for name in ("max_budget_doublings", "max_rows", "quick_every", "gpus"):
            _require(getattr(self, name) >= 0, f"attacks.{name}", getattr(self, name), "at least 0")
        _require(self.cpus > 0, "attacks.cpus", self.cpus, "positive")
        _require(len(self.mlp_widths) > 0 and min(self.mlp_widths) > 0, "attacks.mlp_widths", self.mlp_widths, "positive numbers")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    __pydantic_config__ = STRICT

    uri: Annotated[str | None, LOCAL] = None
    """MLflow tracking URI; none given: MLFLOW_TRACKING_URI, or `mlflow.db` beside the output folder (SQLite)."""
    experiment: Annotated[str, LOCAL] = "cpgan"
    """MLflow experiment."""
    run_name: Annotated[str | None, LOCAL] = None
    """MLflow run name; none given: preset, k and privacy weight."""
    panel_every: int = 0
    """Epochs between two reconstruction panels; 0: at the end only."""
    undefended: Annotated[Path | None, LOCAL] = None
    """Output folder of a finished undefended twin, for the panels; none given: the best linear code of k numbers stands there."""
    log_models: bool = True
    """Log the privatizer and the utility head as MLflow models."""
    system_metrics: bool = True
    """Log CPU, memory and GPU use."""

    def __post_init__(self) -> None:
        _require(self.panel_every >= 0, "tracking.panel_every", self.panel_every, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    __pydantic_config__ = STRICT

    preset: Annotated[str, PORTABLE] = "custom"
    """Name of the preset this started from."""
    data_dir: Annotated[str | Path | None, LOCAL] = None
    """Folder in the data set's official layout, or a URI of one (s3://, gs://, file://), which a node fetches once; none for the
    embedded faces."""
    cache_dir: Annotated[Path | None, LOCAL] = None
    """Where a node keeps prepared stores and what it has fetched; `~` and $VARIABLES (in quotes) are each node's own. None given:
    `<data-dir>/.cpgan`, or the user's cache folder for a URI and for the embedded faces."""
    shared_cache: Annotated[str | Path | None, LOCAL] = None
    """Folder or URI where nodes share prepared stores: who lacks one takes it from there, who has made one puts it there."""
    output: Annotated[Path | None, LOCAL] = None
    """The run's folder (`config.json`, `metrics.jsonl`, exported models, report); none given: `outputs/<preset>-<time>`."""
    trust: Annotated[bool, LOCAL] = False
    """Use files that another user has written: prepared stores that came with the data folder, and with --resume that folder."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be decoded and report how many, instead of stopping at the first."""
    seed: int = 0
    """Of every random stream of the run."""
    k: Annotated[int, Range(8, 256, (16, 64, 256))] = 64
    """Length of the code z."""
    privacy_weight: Annotated[float, Range(0.05, 2.0, (0.1, 0.3, 1.0))] = 1.0
    """The privatizer minimises L_U + privacy_weight * P; 0 is the undefended control. The paper's lambda is its inverse."""
    epochs: Annotated[int, Range(4, 32, (8, 16, 32))] = 12
    """Passes over the training pictures."""
    batch_size: Annotated[int, Range(160, 1280, (320, 640, 1280))] = 640
    """Pictures per round."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' matrix products and convolutions in training. Codes, losses, closed-form adversaries, evaluation and what is
    handed out are float32 (or better) either way."""
    data: DataConfig = field(default_factory=DataConfig)
    privatizer: PrivatizerConfig = field(default_factory=PrivatizerConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)
    game: GameConfig = field(default_factory=GameConfig)
    adversaries: dict[str, AdversaryConfig] = field(default_factory=dict)
    runtime: Annotated[RuntimeConfig, LOCAL] = field(default_factory=RuntimeConfig)
    recovery: Annotated[RecoveryConfig, LOCAL] = field(default_factory=RecoveryConfig)
    attacks: AttackConfig = field(default_factory=AttackConfig)
    tracking: Annotated[TrackingConfig, LOCAL] = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("data_dir", "shared_cache"):
            object.__setattr__(self, name, folder_or_uri(getattr(self, name)))
        for name in (self.preset, *self.adversaries):  # they become parts of file, metric and run names
            _require(
                NAME.fullmatch(name) is not None, "a preset's or adversary's name", name, "1 to 60 letters, digits or any of _.+-"
            )
        _require(self.k >= 1, "k", self.k, "at least 1")
        _require(self.privacy_weight >= 0, "privacy_weight", self.privacy_weight, "at least 0")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 4, "batch_size", self.batch_size, "at least 4")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _check_data(self.data)
        if self.privatizer.num_workers > 1:
            _check_workers(self)
        if self.game.gradient_norms and self.runtime.compile:
            raise InputError("game.gradient_norms takes two backward passes, runtime.compile has but one: leave one of the two out")


def _check_data(c: DataConfig) -> None:
    """What only some data sets have. Not a DataConfig's own check: the data set may be named beside it."""
    if c.extra and c.dataset != "svhn":
        raise InputError(f"data.extra is True, but data.dataset is {c.dataset!r} and svhn alone has it: set --data.no-extra")
    if c.balanced and c.dataset in ("mnist", "digits", "har", "cifar10", "svhn"):
        raise InputError(f"data.balanced is True, but the label of {c.dataset} has more than two values: set --data.no-balanced")
    if c.balanced and c.dataset in ("faces", "celeba") and len(c.labels) != 1:
        told = f"names {len(c.labels)}" if c.labels else "names none, which is all"
        raise InputError(f"data.balanced is True, but data.labels {told}: give one label, such as --data.labels Male")


def _check_workers(c: Config) -> None:
    """What a privatizer of several workers cannot be."""
    told = f"privatizer.num_workers is {c.privatizer.num_workers}"
    if c.runtime.backend == "local":
        raise InputError(f"{told}, but runtime.backend is 'local', one process: set --runtime.backend ray, or one worker")
    if c.privatizer.num_workers > c.batch_size:
        raise InputError(f"{told}, more than a batch has pictures, {c.batch_size}: lower it")
    if c.utility.family == "shake":
        raise InputError(f"{told}, but a utility head 'shake' mixes its branches by draws for the batch as a whole: set one worker")
    if c.game.gradient_norms:
        raise InputError(f"{told}, with game.gradient_norms: each would see those of its own rows; leave one of the two out")
    if c.runtime.compile:
        raise InputError(
            f"{told}, with --runtime.compile: their batch norms talk to each other in mid-network; leave one of the two out"
        )
    if c.runtime.privatizer_gpus % 1 and c.runtime.device != "cpu":
        raise InputError(
            f"{told}, on {c.runtime.privatizer_gpus:g} GPUs each: NCCL needs whole ones, set --runtime.privatizer-gpus 1"
        )
