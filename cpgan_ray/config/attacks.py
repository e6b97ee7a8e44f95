"""The tournament of fresh attacks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from cpgan_ray.config.constraints import NonNegative, OpenFraction, Positive, PositiveInt, config_class
from cpgan_ray.config.marks import LOCAL, PORTABLE
from cpgan_ray.config.parts import PartName

MIN_QUERIES = 16
"""A quarter of the pairs is to tune on, and four are the least."""
ALL_ATTACKS = ("ridge", "kernel", "mlp", "decoder", "resnet_decoder", "nearest", "stack")


@config_class("attacks")
class AttackConfig:
    """The tournament of fresh attacks at the end of a run, and of `jobs/attack.py`."""

    names: Annotated[tuple[PartName, ...], Field(min_length=1), PORTABLE] = ALL_ATTACKS
    """Which attacks are fitted. `stack` is the weighted average of all others of a variant. Code of your own: FILE.py:NAME or
    PACKAGE.MODULE:NAME."""
    variants: Annotated[tuple[Literal["leaked", "fresh"], ...], Field(min_length=1)] = ("leaked", "fresh")
    """`leaked`: fitted on the defender's training pictures. `fresh`: fitted on the attacker's own, from the validation split."""
    fit_fractions: tuple[OpenFraction, ...] = (0.125, 0.25, 0.5)
    """Fractions of the first variant's pictures on which the quick attacks are fitted again, to show the effect of the attacker's
    sample size."""
    queries: tuple[Annotated[int, Field(ge=MIN_QUERIES)], ...] = ()
    """Also attack with only so many pairs of a picture and its code, those to tune on included, and without codes of mirrored or
    shifted pictures: variant `queries_<number>`. Several numbers show the effect of a limit on queries."""
    attacker_data: Annotated[Path | None, LOCAL] = None
    """Also attack with pictures of another data set: variant `other_data`, fitted and tuned on codes of the pictures in this folder
    (any depth; or Parquet files with pictures inside), and scored on the test pictures like all others. Labels are not needed."""
    restarts: PositiveInt = 2
    """Number of seeds with which an attack is fitted, except the decoders; the average of the reconstructions is used if it is
    better on the tuning rows."""
    epochs: PositiveInt = 3
    """First budget of the perceptrons. It is doubled until two doublings in a row each gain less than 2 % of the R2 found, and less
    than a quarter of the half-width of its 95 % interval on the tuning rows (or less than 0.0002). An epoch has as many rows as
    there are codes to fit on, drawn from them and from the shifted copies."""
    decoder_epochs: PositiveInt = 1
    """The same for the convolutional decoders."""
    decoder_restarts: PositiveInt = 1
    """The same for a convolutional decoder, which takes much longer."""
    num_shifted: NonNegativeInt = 8
    """Number of shifted copies of each picture that the attacker encodes, to fit on; fewer if the data set or the codes are
    large."""
    max_shift_px: NonNegativeInt | None = None
    """Largest shift of these copies to each side; by default in proportion to the side: 3 pixels for 64. Only pictures are
    shifted."""
    max_budget_doublings: NonNegativeInt = 3
    """Largest number of doublings; an attack that still gains after the last one is reported as not saturated."""
    max_rows: NonNegativeInt = 0
    """Largest number of pictures that an attack is fitted on; 0: all."""
    mlp_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1024,)
    """Numbers of hidden units of the MLP attacks; each is fitted, and the best on the tuning rows is used."""
    decoder_width: PositiveInt = 8
    """Number of channels of the last stage but one of the convolutional decoder; the residual decoder has half as many again."""
    kernel_rows: PositiveInt = 16_384
    """The kernel attack is exact up to this number of rows, and uses random features beyond. 16,384 rows take 2.1 GB."""
    kernel_features: PositiveInt = 4096
    """Largest number of random Fourier features of the kernel attack."""
    answers_floor: bool = True
    """Also attack the run's own hard answers: what its code gives away beyond them is not needed for the task."""
    quick_every: NonNegativeInt = 0
    """Epochs between two quick fresh attacks during training (on validation people; not a result); 0: none."""
    identity: bool = True
    """Also measure identity linkage."""
    attributes: bool = True
    """Also measure how well every attribute can be inferred from z."""
    similarity: bool = True
    """Also report PSNR, SSIM and MS-SSIM of the reconstructed pictures."""
    generative: bool = True
    """Also draw pictures that could belong to a code, and judge them by likeness, not by R2. Only for pictures; takes minutes."""
    legacy: bool = False
    """Also report the reference implementation's error with its uint8 overflow, to compare with published numbers."""
    cpus: Positive = 1.0
    """CPUs of the Ray task of an attack."""
    gpus: NonNegative = 0.0
    """GPUs of the Ray task of an attack, fractions allowed."""
