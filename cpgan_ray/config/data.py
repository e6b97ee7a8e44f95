"""Which data set a run uses, and how its pictures are prepared and augmented."""

import itertools
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from cpgan_ray.config.constraints import Fraction, NonNegative, PositiveFraction, PositiveInt, config_class, text_like
from cpgan_ray.config.marks import PORTABLE
from cpgan_ray.config.parts import Options, PartName
from cpgan_ray.errors import InputError

MIN_SIDE, MAX_SIDE = 8, 1024
"""Bounds of the sides of pictures that are resized for a store, in pixels."""
BINS = r"^.+=[-+.\d]+(e[-+]?\d+)?(,[-+.\d]+(e[-+]?\d+)?)*$"
"""A column and the bounds of its classes."""


@config_class("data")
class DataConfig:
    dataset: Annotated[PartName, PORTABLE] = "faces"
    """`faces`: procedural faces, drawn on first use. `celeba`: the official layout in `--data-dir` (implied by it). `digits`: those
    of scikit-learn. `gaussian`: a mixture, drawn. The last two and `faces` need no folder. `pictures`: your own pictures in
    `--data-dir`, in a folder for each class, with a table (`--data.table`), or inside Parquet files. All others are read from their
    official layout in `--data-dir`. A reader of your own: FILE.py:NAME or PACKAGE.MODULE:NAME."""
    options: Annotated[Options, PORTABLE] = field(default_factory=dict)
    """Keyword arguments of your own reader, as a JSON object."""
    image_size: Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)] = 64
    """Side of the square pictures in the store, in pixels (faces, celeba, genki4k and pictures; the others have a fixed
    size)."""
    image_width: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Width of the pictures in the store, if they are not square: `data.image_size` is then their height, and the largest centred
    rectangle of this shape is cut from each picture instead of a square. 0: square."""
    crop: PositiveFraction = 1.0
    """Side of the centred square that is cut from each picture, as a fraction of its shorter side (usual for CelebA: 148 of 178
    pixels, 0.83)."""
    split: Literal["official", "identity"] = "official"
    """`official`: the partition file, or the splits that own pictures come with. `identity`: 80/10/10 % of the identities, drawn by
    a hash of the identity number; of the pictures if the identities are unknown."""
    final_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Fraction of the identities, drawn by a hash of the identity number, that is held out from all splits for a published result
    (`jobs/attack.py RUN --final`); 0: none."""
    labels: Annotated[tuple[str, ...], PORTABLE] = ()
    """The labels of the task by name, for CelebA its attributes by their official names, for own pictures columns of the table;
    empty: all labels of the data. The label of a folder for each class is `class`."""
    late_labels: Annotated[tuple[str, ...], PORTABLE] = ()
    """Labels of tasks that come later, by name. The privatizer is trained without them; afterwards classifiers of them are trained
    on its frozen codes and on hard answers (docs/late_tasks.md). If `data.labels` is empty, the task is all other labels."""
    table: Annotated[str, PORTABLE] = ""
    """Own pictures: the file that lists them with their labels, CSV or Parquet, by its path in `--data-dir`. Empty: there is a
    folder for each class, or the pictures are inside Parquet files."""
    path_column: Annotated[str, PORTABLE] = ""
    """Own pictures: the column of the table with the paths of the files, relative to `--data-dir`. Empty: the only column whose
    values are existing files."""
    identity_column: Annotated[str, PORTABLE] = ""
    """Own pictures: the column with the person (or thing) on each picture, as text or number. Empty: unknown; a person may then be
    in several splits, and identity linkage is not measured."""
    split_column: Annotated[str, PORTABLE] = ""
    """Own pictures: the column with `train`, `val` or `test`. Empty: the splits are drawn as with `--data.split identity`."""
    missing: Annotated[tuple[str, ...], PORTABLE] = ()
    """Own pictures: values that stand for a missing label, such as `-1`, or `age=-1` for one column; empty cells, NA, N/A, NaN and
    null always do."""
    bins: Annotated[tuple[Annotated[str, text_like(BINS, "a column, = and numbers, such as age=10,20,40")], ...], PORTABLE] = ()
    """Own pictures: columns of numbers that become classes, by the bounds of these: `age=10,20,40` makes four classes. A number
    that equals a bound is in the class above it."""
    balanced: bool = False
    """Keep equally many samples of both values of the only 0/1 label, in each of training, validation and test: all samples of the
    rarer value, and a random subset of the others. The majority guess is then 0.5."""
    balanced_seed: NonNegativeInt = 0
    """Seed of that subset. It is not the seed of the run, so runs with different seeds use the same samples."""
    extra: bool = False
    """Also train on `extra_32x32.mat` of SVHN, 531,131 easier digits; validation and test do not change. Preparing them takes 2 GB
    of memory."""
    max_train_samples: NonNegativeInt = 0
    """Largest number of training samples, evenly spaced, and a quarter as many for validation; 0: all. Not for faces, celeba and
    pictures."""
    mixture_seed: NonNegativeInt = 9
    """Seed of the mixture `gaussian`; 9 is the mixture of the reference implementation."""
    digest: Annotated[str, text_like("^([0-9a-f]{16})?$", "16 digits of 0-9 and a-f"), PORTABLE] = ""
    """Name of the prepared store (the end of `store` in a run's `config.json`): only this store is used, and no source is needed if
    the cache or the shared cache has it. Empty: the store that the source makes."""
    horizontal_flip: bool = True
    """Show each training picture mirrored in half of the rounds (its target too), except digits and signals."""
    max_shift_px: NonNegativeInt = 0
    """Largest random shift of a training picture in each direction, in pixels (its target is shifted too)."""
    cutout: NonNegativeInt = 0
    """Side of a grey square at a random position of each training picture that the privatizer sees, in pixels (the target stays
    whole); 0: none."""
    input_noise: NonNegative = 0.0
    """Standard deviation of the Gaussian noise added to each value that the privatizer sees in training; pictures are in [-1,
    1]."""
    attacker_share: Fraction = 0.0
    """Share of the people of the training split whom the defender never sees: the attacker's own pictures, on which the attacks of
    variant `fresh` are fitted. The defender trains on the others. 0: it trains on all, and `fresh` has people of the validation
    split. All seeds withhold the same people."""
    num_identities: Annotated[int, Field(ge=10)] = 1200
    """Number of people drawn (procedural faces only)."""
    pictures_per_identity: PositiveInt = 4
    """Number of pictures of each person (procedural faces only)."""

    def __post_init__(self) -> None:
        if 0 < self.image_width < MIN_SIDE:
            raise InputError(f"data.image_width is {self.image_width}; it must be at least {MIN_SIDE}, or 0 for square pictures")
        if self.max_shift_px >= min(self.size) // 2:
            name = "data.image_size" if self.size[0] <= self.size[1] else "data.image_width"
            raise InputError(
                f"data.max_shift_px is {self.max_shift_px}; it must be below half of {name}, which is {min(self.size)}"
            )
        if shared := [label for label in self.late_labels if label in self.labels]:
            raise InputError(
                f"data.labels and data.late_labels both have {shared[0]!r}: a late task is no part of the task; leave it out of "
                "one of the two"
            )
        bin_bounds(self.bins)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures in the store, for data sets whose pictures are resized."""
        return self.image_size, self.image_width or self.image_size


def bin_bounds(bins: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The bounds of each column in `data.bins`, rising.

    Raises:
        InputError: a bound is not a number, the bounds do not rise, or a column is given twice.
    """
    bounds: dict[str, tuple[float, ...]] = {}
    for entry in bins:
        column, _, numbers = entry.rpartition("=")
        try:
            values = tuple(float(number) for number in numbers.split(","))
        except ValueError as e:
            raise InputError(f"data.bins is {entry!r}; its bounds must be numbers, such as age=10,20,40") from e
        if any(low >= high for low, high in itertools.pairwise(values)):
            raise InputError(f"data.bins is {entry!r}; its bounds must rise, such as age=10,20,40")
        if column in bounds:
            raise InputError(f"data.bins: {column!r} is given twice: give it once")
        bounds[column] = values
    return bounds
