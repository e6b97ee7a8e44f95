"""The players of the game: the privatizer, the utility head, their adversaries, and the rules between them."""

from dataclasses import field
from typing import Annotated, Any, Literal

import pydantic
import tyro
from pydantic import Field, NonNegativeInt

from cpgan_ray.common.registry import remember
from cpgan_ray.config.constraints import (
    ClosedFraction,
    Fraction,
    NonNegative,
    OpenFraction,
    Positive,
    PositiveFraction,
    PositiveInt,
    config_class,
)
from cpgan_ray.config.marks import LOCAL, PORTABLE, Choices, Range
from cpgan_ray.config.parts import Options, PartName
from cpgan_ray.config.targets import PICTURE, TargetName
from cpgan_ray.config.weights import Weights
from cpgan_ray.errors import InputError

Penalties = Annotated[tuple[Positive, ...], Field(min_length=1)]
"""Ridge penalties per fitted row to choose among, at least one."""


ANSWERS = "answers"
"""The family of privatizers and of utility heads whose codes are answers, one number for each label."""
ANSWER_STEP = 1.0
"""Their step. It is in units of the spread of the logits."""


@config_class("privatizer")
class PrivatizerConfig:
    family: Annotated[PartName, PORTABLE, Choices(("conv", "residual"))] = "conv"
    """`conv`: strided 3x3 convolutions with batch norm, similar to the reference implementation's network for one attribute of
    CelebA. `residual`: pre-activation residual blocks. For clients that can spend little: `separable`, patches of 4 x 4 pixels and
    depthwise-separable convolutions, and `patch`, patches of an eighth of the picture's side and pointwise layers. Networks of the
    reference implementation: `lenet` (MNIST, GENKI, HAR), `generator` (CIFAR-10), `picture` (CIFAR-10, SVHN) and `picture_conv`
    (SVHN), whose code has the shape of the picture, `celeba_single` (112 x 112), `celeba_multi` (175 x 175, two sub-networks with
    half of the code each), `linear` (Gaussian). `whitened`: linear, on principal components of unit variance. Width and depth apply
    to the first four. `answers`: the client runs a trained classifier (`classifier`) and sends its answers, as the game has changed
    them. `timm:NAME`: a network of timm. Code of your own: FILE.py:NAME or PACKAGE.MODULE:NAME."""
    options: Annotated[Options, PORTABLE] = field(default_factory=dict)
    """Keyword arguments of your own family, or of a network of timm, as a JSON object."""
    weights: Annotated[str | None, LOCAL] = None
    """File with pretrained weights of the family's network (.safetensors, or a state dict in a .pt file). Its digest is checked in
    every process."""
    classifier: Annotated[str | None, LOCAL] = None
    """Family `answers` only: the classifier that the client runs. A preset, which is trained first, undefended, on this run's data
    and with its seed, or the output folder of a finished undefended run."""
    frozen_stages: NonNegativeInt = 0
    """Number of first stages whose weights and batch norm statistics stay as they are (networks of timm)."""
    norm_momentum: PositiveFraction = 0.1
    """Weight of a batch in the running statistics of the batch norms of `picture`; the reference implementation uses 0.1 on
    CIFAR-10 and 0.01 on SVHN."""
    bottleneck: bool = True
    """Map the features linearly to k numbers; without it the features themselves are the code, and k must be their number."""
    code_activation: Literal["normalised", "relu", "raw"] = "normalised"
    """The last step to z: `normalised` by batch statistics (rescaling gains nothing), `relu` (the reference implementation's), or
    `raw` (none)."""
    width: Annotated[PositiveInt, Range(8, 64, (16, 32, 64))] = 32
    """Number of channels of the first stage; each further stage doubles it, except in `patch`."""
    depth: Annotated[int, Field(ge=1, le=8), Range(3, 5, (3, 4, 5), log=False)] = 4
    """Number of stages; each halves the side of the picture. Of `patch`: number of pointwise layers."""
    max_multiply_adds: PositiveInt | None = None
    """Budget of the client: multiply-adds for one picture, checked before anything is trained. Default: no limit."""
    symmetric: bool = False
    """Encode the picture and its mirror image and average both before normalising, so z cannot distinguish left from right. Doubles
    the compute."""
    quantization_step: Annotated[NonNegative, Range(0.5, 4.0, (0.5, 1.0, 2.0, 4.0))] = 0.0
    """Round z to multiples of this many standard deviations, in training and in use; 0: no rounding. Codes of any activation are
    normalised first. Information in the low digits of z survives every adversary that does not look there; rounding removes these
    digits."""
    levels: Annotated[int, Field(ge=0, le=4096), Range(2, 5, (2, 3, 5), log=False)] = 0
    """Number of values that each rounded number of z can have, so that a code has at most k ceil(log2 levels) bits; 0: any number.
    Numbers beyond the last level are clipped to it. An even number of levels has a border at the mean, an odd one a level. The
    privatizer learns a factor for each number, so that it can give up numbers that are not worth their bits."""
    noise: Annotated[NonNegative, Range(0.25, 4.0, (0.5, 1.0, 2.0))] = 0.0
    """Standard deviation of the Gaussian noise that is added to z before it is rounded, in standard deviations of z: in training,
    in evaluation and on the client, which draws it again for each picture; 0: z is deterministic. Codes of any activation are
    normalised first. Noise leads to bounds on every attacker."""
    noise_clip: Positive = 3.0
    """With noise, z is clipped to this many standard deviations before the noise is added."""
    learning_rate: Annotated[Positive, Range(5e-4, 8e-3, (1e-3, 2e-3, 4e-3))] = 2e-3
    """Peak learning rate of Adam."""
    weight_decay: Annotated[NonNegative, Range(1e-5, 1e-1, (1e-4, 1e-3, 1e-2))] = 0.0
    """Decoupled weight decay (AdamW)."""
    lr_schedule: Literal["constant", "cosine", "steps"] = "cosine"
    """Schedule of the learning rate over the run, for the privatizer and the utility head. `steps`: a tenth of the peak after half
    of the run, a hundredth after three quarters."""
    ema_decay: Fraction = 0.0
    """Decay of the exponential moving average of the weights that is released at the end; 0: the last weights."""
    num_workers: PositiveInt = 1
    """Number of processes that share each batch, data-parallel; more than one: a worker group of Ray Train."""

    def __post_init__(self) -> None:
        if self.norm_momentum != 0.1 and self.family != "picture":
            raise InputError(
                f"privatizer.norm_momentum is {self.norm_momentum}, but only family 'picture' has it and the family is "
                f"{self.family!r}: leave out one of the two"
            )
        if (self.family == ANSWERS) != (self.classifier is not None):
            raise InputError(
                f"privatizer.family is {self.family!r} and privatizer.classifier {self.classifier!r}; only family 'answers' runs a "
                "classifier, and it needs one: give both, such as --privatizer.family answers --privatizer.classifier celeba"
            )
        if self.family == ANSWERS and (self.levels < 2 or self.levels % 2 or self.quantization_step != ANSWER_STEP):
            raise InputError(
                f"privatizer.levels is {self.levels} and privatizer.quantization_step {self.quantization_step:g}, but answers have "
                "an even number of levels and step 1: set --privatizer.levels 2 --privatizer.quantization-step 1"
            )
        if self.levels == 1 or (self.levels and not self.quantization_step):
            raise InputError(
                f"privatizer.levels is {self.levels} and privatizer.quantization_step {self.quantization_step:g}; finite codes "
                "need at least 2 levels and a step, such as --privatizer.levels 3 --privatizer.quantization-step 1"
            )
        if self.levels and self.noise:
            raise InputError(
                f"privatizer.levels is {self.levels}, but privatizer.noise is {self.noise:g}, which would leave the levels: leave "
                "out one of the two"
            )


@config_class("utility")
class UtilityConfig:
    family: Annotated[PartName, PORTABLE, Choices(("mlp", "lenet"))] = "mlp"
    """`mlp`: hidden layers with batch norm and dropout. For a cloud that can spend much: `residual`, a residual perceptron;
    `transformer`, over the coordinates of the code; `ensemble`, several perceptrons. `answers`: for privatizer family
    `answers`, which then minimises the share of wrong answers. Networks of the reference implementation:
    `lenet` (fully connected, 120 and 84); for codes that are pictures `shake` (Shake-Shake 26) and `wide` (WRN-16-8), of any depth
    and width; `celeba_single`; `celeba_multi` (the first 8 attributes from the first half of the code, the other 14 and 18 from the
    second half). Code of your own: FILE.py:NAME or PACKAGE.MODULE:NAME."""
    options: Annotated[Options, PORTABLE] = field(default_factory=dict)
    """Keyword arguments of your own family, as a JSON object."""
    depth: NonNegativeInt = 0
    """Number of layers of `shake`, `wide` and `transformer`, of blocks of `residual`; 0: 26, 16, 2 and 3."""
    width: NonNegativeInt = 0
    """Number of channels of the first stage of `shake`, widening factor of `wide`, width of `transformer`; 0: 32, 8 and 64."""
    members: PositiveInt = 4
    """Number of perceptrons of `ensemble`, whose logits are averaged."""
    hidden: Annotated[NonNegativeInt, Range(64, 1024, (128, 256, 512))] = 256
    """Width of the hidden layers of `mlp`, `residual` and each member of `ensemble`; 0: a linear classifier."""
    dropout: Annotated[Fraction, Range(0.0, 0.6, (0.0, 0.3, 0.6), log=False)] = 0.3
    """Fraction of hidden units dropped in training."""
    class_weighted_loss: bool = False
    """Give all values of a label the same weight in its cross-entropy (for rare values)."""
    learning_rate: Annotated[Positive, Range(5e-4, 8e-3, (1e-3, 2e-3, 4e-3))] = 2e-3
    """Peak learning rate of Adam."""
    label_weights: Annotated[Weights, PORTABLE] = field(default_factory=dict)
    """Weights of labels in the utility loss, such as `Blond_Hair=0.2`; the others have weight 1. A small weight lets the privatizer
    give a label up; leave a label that Bob does not need out of `data.labels`."""
    learn_label_weights: Annotated[NonNegative, Range(0.1, 2.0, (0.1, 0.3, 1.0))] = 0.0
    """Derive the weights of the labels from the teachers' answers: labels that show much of the picture for little accuracy get
    small ones. The value is the accuracy that one is ready to lose per R2 that the attacker loses: a label of that price gets
    weight 1/2. Labels in `label_weights` keep theirs. 0: all weights are 1."""
    learned_label_weights: Annotated[Weights, PORTABLE, tyro.conf.Suppress] = field(default_factory=dict)
    """The derived weights, which the job sets."""
    teachers: Annotated[tuple[str, ...], LOCAL] = ()
    """Output folders of finished undefended runs on the same data (privacy weight 0), or their URIs (s3://, gs://): the utility
    loss then mixes the labels with the mean of their answers (distillation)."""
    train_teachers: NonNegativeInt = 0
    """Number of teachers to train first, each with a seed of its own: this run's networks and schedule without adversaries,
    rounding and noise. Their answers are kept next to the prepared store, for later runs. 0: none."""
    teacher_weight: Annotated[ClosedFraction, Range(0.25, 1.0, (0.25, 0.5, 1.0), log=False)] = 0.5
    """Share of the teachers' answers in the utility loss, if there are teachers; the rest are the labels."""
    teacher_answers: Annotated[str | None, LOCAL, tyro.conf.Suppress] = None
    """File of the teachers' answers with its digest, which the job sets."""

    def __post_init__(self) -> None:
        if ignored := [name for name, weight in self.label_weights.items() if not weight]:
            raise InputError(
                f"utility.label_weights gives {ignored[0]} the weight 0, with which Bob's answer would be arbitrary: give a small "
                f"one, such as {ignored[0]}=0.02, or leave the label out of data.labels"
            )
        if self.learn_label_weights and not (self.teachers or self.train_teachers or self.teacher_answers):
            raise InputError(
                f"utility.learn_label_weights is {self.learn_label_weights:g}, but the weights are derived from the answers of "
                "teachers: add --utility.train-teachers 1, or --utility.teachers with a finished undefended run"
            )
        if self.teachers and self.train_teachers:
            raise InputError(
                f"utility.train_teachers is {self.train_teachers}, but utility.teachers names {len(self.teachers)} finished ones: "
                "leave out one of the two"
            )


@config_class("game")
class GameConfig:
    privacy_loss: Literal["recovered", "negated_mse"] = "recovered"
    """`recovered`: the fraction of variance that an adversary recovers, clipped below at 0. `negated_mse`: the paper's -L_R."""
    aggregate: Literal["strongest", "softmax", "mean"] = "strongest"
    """How the privacy losses of all adversaries become one."""
    temperature: Positive = 0.05
    """Temperature of `softmax`, in units of R2."""
    schedule: Literal["sync", "stale1", "epochwise"] = "sync"
    """`sync`: exact. `stale1`: feedback is one round old; deterministic and faster. `epochwise`: the paper's schedule for several
    adversaries, which trains them for an epoch, then the privatizer for an epoch against the one with the smallest validation
    error."""
    warmup_epochs: Annotated[NonNegative, Range(0.0, 8.0, (0.0, 4.0, 8.0), log=False)] = 0.0
    """Number of first epochs over which the privacy weight rises linearly from 0."""
    holdout_fraction: Annotated[OpenFraction, Range(0.1, 0.5, (0.1, 0.25, 0.5), log=False)] = 0.25
    """Fraction of a batch on which hold-out adversaries are scored; they are fitted on the rest."""
    rate_weight: Annotated[NonNegative, Range(1e-5, 1e-3, (1e-5, 1e-4, 1e-3))] = 0.0
    """Weight of the mean length of a code, in bits, in the privatizer's loss; it rises during the warm-up, too. Only for finite
    codes (`privatizer.levels`)."""
    target_weights: Annotated[Weights, PORTABLE] = field(default_factory=dict)
    """Weights of what is hidden apart from the picture, whose weight is `--privacy-weight`: names of labels, and `identity`, as in
    `Male=1 identity=0.5`. Each needs an adversary with that target."""
    gradient_norms: bool = False
    """Log in every round the norm of each side's gradient at the weights of the privatizer (`utility/grad_norm`,
    `privacy/grad_norm`); takes a second backward pass."""


@config_class("adversary")
class RidgeConfig:
    """Linear ridge regression with intercept (LRR), solved in closed form."""

    kind: Literal["ridge"] = "ridge"
    """Which adversary this is."""
    fit: Literal["holdout", "epoch"] = "holdout"
    """`holdout`: on a part of the batch and the memory, in every round. `epoch`: on all training codes, once per epoch, by
    streaming."""
    penalties: Penalties = (1e-4, 1e-3, 1e-2, 1e-1)
    """Candidate penalties, per fitted row; the best one on held-out rows is used. With one candidate there is no selection."""
    code_normalization: Literal["raw", "standardised", "whitened"] = "raw"
    """How z is normalised first, by the statistics of the fitted rows."""
    memory_batches: Annotated[NonNegativeInt, Range(0, 6, (0, 3, 6), log=False)] = 3
    """Number of past batches that are fitted on, in addition to the current one."""
    target: Annotated[TargetName, PORTABLE] = PICTURE
    """What it recovers: `picture`, a label that is hidden (`attribute:Male`), or `identity`. `--game.target-weights` has the
    weights of the last two."""
    components: NonNegativeInt = 256
    """Target: this many leading principal components of the pictures; 0: the pixels."""
    loss_weight: NonNegative = 1.0
    """Factor on the privacy loss of this adversary."""
    cpus: NonNegative | None = None
    """CPUs of its actor. Default: `runtime.adversary_cpus`."""
    gpus: NonNegative | None = None
    """GPUs of its actor, fractions allowed. Default: `runtime.adversary_gpus`."""


@config_class("adversary")
class KernelConfig:
    """RBF kernel ridge regression (KRR), exact or with random Fourier features, solved in closed form."""

    kind: Literal["kernel"] = "kernel"
    """Which adversary this is."""
    features: NonNegativeInt = 0
    """Number of random Fourier features; 0: the exact kernel on the batch and the memory."""
    bandwidths: Penalties = (0.5, 1.0, 2.0)
    """Candidate widths of the kernel, as multiples of the median distance between codes."""
    fit: Literal["holdout", "epoch"] = "holdout"
    """`holdout`: on a part of the batch and the memory, in every round. `epoch` (random features only): on all training codes."""
    penalties: Penalties = (1e-4, 1e-3, 1e-2)
    """Candidate penalties, per fitted row; the best one on held-out rows is used."""
    code_normalization: Literal["raw", "standardised", "whitened"] = "raw"
    """How z is normalised first, by the statistics of the fitted rows."""
    memory_batches: Annotated[NonNegativeInt, Range(0, 6, (0, 3, 6), log=False)] = 3
    """Number of past batches that are fitted on, in addition to the current one."""
    target: Annotated[TargetName, PORTABLE] = PICTURE
    """What it recovers: `picture`, a label that is hidden (`attribute:Male`), or `identity`. `--game.target-weights` has the
    weights of the last two."""
    components: NonNegativeInt = 256
    """Target: this many leading principal components of the pictures; 0: the pixels."""
    tune_every: PositiveInt = 10
    """Rounds between two selections of bandwidth and penalty."""
    loss_weight: NonNegative = 1.0
    """Factor on the privacy loss of this adversary."""
    cpus: NonNegative | None = None
    """CPUs of its actor. Default: `runtime.adversary_cpus`."""
    gpus: NonNegative | None = None
    """GPUs of its actor, fractions allowed. Default: `runtime.adversary_gpus`."""

    def __post_init__(self) -> None:
        if self.fit == "epoch" and self.features == 0:
            raise InputError(
                "fit='epoch' needs random features; got features=0: set features (1024 for example), or fit to 'holdout'"
            )


@config_class("adversary")
class NeuralConfig:
    """Neural reconstructor, trained by gradient steps."""

    kind: Literal["neural"] = "neural"
    """Which adversary this is."""
    architecture: Annotated[
        Literal["mlp", "conv", "upsample", "resnet", "paper"], Choices(("mlp", "conv", "upsample", "resnet"))
    ] = "conv"
    """`mlp`, or a decoder of transposed convolutions (`conv`), of up-sampled convolutions, or of residual blocks; `paper`: the
    decoder of the reference implementation for pictures of that shape, of a fixed size."""
    paper_decoder: Literal["auto", "plain", "leaky", "cifar", "picture", "series", "odd"] = "auto"
    """Which decoder of the reference implementation (`paper` only). `auto`: by the shape of the pictures. `plain` (MNIST, GENKI),
    `leaky` and `odd` (CelebA at 112 and 175), `cifar` (CIFAR-10, SVHN), `series` (HAR); `picture`: that of SVHN for codes that are
    pictures."""
    tanh_output: bool = False
    """End in a tanh, as the reference implementation does (`paper` only). Values that a tanh cannot reach then look private."""
    width: PositiveInt = 64
    """Number of hidden units of an `mlp`; number of channels of the last stage but one of a decoder."""
    depth: PositiveInt = 2
    """Number of hidden layers of an `mlp`; number of residual blocks per stage of a `resnet`."""
    dropout: Fraction = 0.0
    """Fraction of hidden units dropped in an `mlp`."""
    steps: PositiveInt = 1
    """Gradient steps per round."""
    learning_rate: Positive = 1e-3
    """Learning rate of Adam."""
    memory_batches: NonNegativeInt = 0
    """Number of past batches whose rows its steps also use."""
    target: Annotated[TargetName, PORTABLE] = PICTURE
    """What it recovers: `picture`, a label that is hidden (`attribute:Male`), or `identity`. `--game.target-weights` has the
    weights of the last two. For a label, a network is a classifier, trained by cross-entropy."""
    components: NonNegativeInt = 0
    """Target: this many leading principal components of the pictures (`mlp` only); 0: the pixels."""
    loss_weight: NonNegative = 1.0
    """Factor on the privacy loss of this adversary."""
    cpus: NonNegative | None = None
    """CPUs of its actor. Default: `runtime.adversary_cpus`."""
    gpus: NonNegative | None = None
    """GPUs of its actor, fractions allowed. Default: `runtime.adversary_gpus`."""

    def __post_init__(self) -> None:
        if self.paper_decoder != "auto" and self.architecture != "paper":
            raise InputError(
                f"paper_decoder={self.paper_decoder!r} needs architecture 'paper'; got {self.architecture!r}: "
                "set architecture to 'paper'"
            )
        if self.components and self.architecture != "mlp":
            raise InputError(
                f"components={self.components} needs architecture 'mlp'; got {self.architecture!r}: set components to 0"
            )
        if self.target != PICTURE and self.architecture != "mlp":
            raise InputError(
                f"target={self.target!r} needs architecture 'mlp'; got {self.architecture!r}: set architecture to 'mlp'"
            )


@config_class("adversary")
class OwnConfig:
    """An adversary of your own, or one that an installed package registers."""

    kind: Annotated[PartName, PORTABLE]
    """Which adversary this is: FILE.py:NAME, PACKAGE.MODULE:NAME, or a registered name."""
    options: Annotated[Options, PORTABLE] = field(default_factory=dict)
    """Its keyword arguments, as a JSON object."""
    target: Annotated[TargetName, PORTABLE] = PICTURE
    """What it recovers: `picture`, a label that is hidden (`attribute:Male`), or `identity`. `--game.target-weights` has the
    weights of the last two."""
    components: NonNegativeInt = 0
    """Target: this many leading principal components of the pictures; 0: the pixels."""
    loss_weight: NonNegative = 1.0
    """Factor on the privacy loss of this adversary."""
    cpus: NonNegative | None = None
    """CPUs of its actor. Default: `runtime.adversary_cpus`."""
    gpus: NonNegative | None = None
    """GPUs of its actor, fractions allowed. Default: `runtime.adversary_gpus`."""


BUILT_IN_ADVERSARIES: dict[str, type[RidgeConfig | KernelConfig | NeuralConfig]] = {
    "ridge": RidgeConfig,
    "kernel": KernelConfig,
    "neural": NeuralConfig,
}
"""Kind -> configuration class; any other kind has an `OwnConfig`."""
remember(__name__, "BUILT_IN_ADVERSARIES")


def adversary_tag(value: Any) -> str:
    """Which configuration class belongs to a value: the kind of a built-in adversary, or `own`."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) and kind in BUILT_IN_ADVERSARIES else "own"


AdversaryConfig = Annotated[
    Annotated[RidgeConfig, pydantic.Tag("ridge")]
    | Annotated[KernelConfig, pydantic.Tag("kernel")]
    | Annotated[NeuralConfig, pydantic.Tag("neural")]
    | Annotated[OwnConfig, pydantic.Tag("own")],
    pydantic.Discriminator(adversary_tag),
]
"""The configuration of any adversary; its field `kind` names the class."""
