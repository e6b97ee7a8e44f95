"""What each job takes in addition to the configuration of a run."""

import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, NonNegativeInt

from cpgan_ray.config.attacks import AttackConfig
from cpgan_ray.config.constraints import ClosedFraction, NonNegative, PositiveInt, config_class, text_like
from cpgan_ray.config.data import DataConfig
from cpgan_ray.config.encoders import EncoderConfig
from cpgan_ray.config.marks import LOCAL, PORTABLE
from cpgan_ray.config.objectives import Objective, SearchObjective, check_objectives, utility_of
from cpgan_ray.config.parts import PartName
from cpgan_ray.config.players import ANSWERS
from cpgan_ray.config.runtime import RuntimeConfig, TrackingConfig
from cpgan_ray.config.schema import Config, folder_or_uri
from cpgan_ray.errors import InputError

DURATION = text_like(r"^\d+(\.\d+)?[hms]$", "a number and h, m or s, such as 2h, 90m or 3600s")
SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
MIN_SEEDS = 5
"""A comparison makes statements about mechanisms only from so many seeds on, fixed before its first training."""


LIMIT = Annotated[str, text_like(r"^.+=[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?$", "an attribute, = and a number, such as Male=0.6")]


@config_class()
class AttackJob:
    """The settings of `jobs/attack.py`, in addition to its target. If that is a run, the defaults are the settings of the run."""

    variant: Literal["both", "leaked", "fresh"] = "both"
    """Which variants are fitted: the attacker has the defender's training pictures, its own, or both in turn."""
    fail_above: ClosedFraction | None = None
    """Release gate: exit with status 1 if the upper end of the 95 % interval of the strongest attack's R2 is above this."""
    fail_above_linkage: ClosedFraction | None = None
    """Release gate: exit with status 1 if the upper end of the 95 % interval of the AUC with which codes, reconstructions or
    predicted embeddings link people is above this; 0.5 is chance."""
    fail_above_attribute: Annotated[tuple[LIMIT, ...], PORTABLE, tyro.conf.UseAppendAction] = ()
    """Release gate NAME=BALANCED_ACCURACY, such as `Male=0.6`: exit with status 1 if the upper end of the 95 % interval of the
    balanced accuracy with which this attribute is inferred from z is above that. May be repeated."""
    final: bool = False
    """Score on the final split, which is held out from everything (`--data.final-fraction`). Only for a result that is published:
    every opening is counted in MLflow and stated in the report."""
    against: Annotated[Path | None, LOCAL] = None
    """Run or report folder to compare with, picture by picture."""
    dataset: Annotated[PartName | None, PORTABLE] = None
    """Which data set is attacked. Default: that of the run; for an encoder file `celeba` if `--data-dir` is given."""
    data_dir: Annotated[str | Path | None, LOCAL] = None
    """Folder in the official layout of the data set, or its URI. Not needed for the embedded faces."""
    cache_dir: Annotated[Path | None, LOCAL] = None
    """Where prepared stores are kept; see train_celeba."""
    shared_cache: Annotated[str | Path | None, LOCAL] = None
    """Folder or URI where nodes share prepared stores; see train_celeba."""
    trust: Annotated[bool, LOCAL] = False
    """Use files that another user has written: paths and URIs in the attacked folder, prepared stores that came with the data."""
    output: Annotated[Path | None, LOCAL] = None
    """Folder of the report. Default: `<run>/attack-<time>`, or `outputs/attack-<time>`."""
    seed: NonNegativeInt = 0
    """Seed of the attacks."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be decoded."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    attacks: AttackConfig = field(default_factory=AttackConfig)
    runtime: Annotated[RuntimeConfig, LOCAL] = field(default_factory=RuntimeConfig)
    tracking: Annotated[TrackingConfig, LOCAL] = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("data_dir", "shared_cache"):
            object.__setattr__(self, name, folder_or_uri(getattr(self, name)))
        attribute_limits(self.fail_above_attribute)


def attribute_limits(limits: Sequence[str]) -> dict[str, float]:
    """The largest allowed balanced accuracy of each attribute, of entries NAME=BALANCED_ACCURACY.

    Raises: InputError if a number is not in [0, 1], or an attribute is given twice.
    """
    values: dict[str, float] = {}
    for entry in limits:
        name, _, number = entry.rpartition("=")
        if not 0 <= float(number) <= 1:
            raise InputError(f"fail_above_attribute is {entry!r}; the balanced accuracy must be in [0, 1], such as {name}=0.6")
        if name in values:
            raise InputError(f"fail_above_attribute: {name!r} is given twice: give it once")
        values[name] = float(number)
    return values


NAME_IN_REGISTRY = text_like(r"^[\w.-]{1,100}$", "letters, digits, '_', '.' and '-', at most 100")


@config_class()
class ExportJob:
    """The settings of `jobs/export.py`, in addition to the run that it exports."""

    output: Annotated[Path | None, LOCAL] = None
    """Folder of the bundle. Default: `<run>/bundle-<time>`, or `outputs/bundle-<time>`."""
    zip: bool = False
    """Also write the bundle as one file, `<output>.zip`."""
    weights: Literal["float32", "float16", "int8"] = "float16"
    """How the privatizer's weights are stored. It computes in float32 in any case."""
    full: bool = False
    """Attack the codes of the bundle with the whole tournament of the run instead of only its closed-form attacks."""
    eve: bool = False
    """Add the strongest attack on the codes, which the page of the demonstration shows. Leave it out of a bundle for production."""
    twin: Annotated[Path | None, LOCAL] = None
    """With `--eve`: output folder of the run's undefended twin (privacy weight 0), which the page shows next to it."""
    register: Annotated[str | None, LOCAL, NAME_IN_REGISTRY] = None
    """Also put both parts into MLflow's registry, as new versions of `NAME-privatizer` and `NAME-utility_head`."""
    alias: Annotated[str | None, LOCAL, NAME_IN_REGISTRY] = None
    """With `--register`: alias of the new versions, for example `champion`."""
    data_dir: Annotated[str | Path | None, LOCAL] = None
    """Folder in the official layout of the run's data set, or its URI. Default: that of the run."""
    cache_dir: Annotated[Path | None, LOCAL] = None
    """Where prepared stores are kept; see train_celeba."""
    shared_cache: Annotated[str | Path | None, LOCAL] = None
    """Folder or URI where nodes share prepared stores; see train_celeba."""
    trust: Annotated[bool, LOCAL] = False
    """Use files that another user has written: the run's programs, and paths and URIs in its folder."""
    runtime: Annotated[RuntimeConfig, LOCAL] = field(default_factory=RuntimeConfig)
    tracking: Annotated[TrackingConfig, LOCAL] = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("data_dir", "shared_cache"):
            object.__setattr__(self, name, folder_or_uri(getattr(self, name)))
        if self.twin is not None and not self.eve:
            raise InputError(f"twin is {self.twin}, but the bundle gets no Eve: add --eve")
        if self.alias is not None and self.register is None:
            raise InputError(f"alias is {self.alias!r}, but nothing is registered: add --register NAME")
        if self.alias is not None and (self.alias == "latest" or re.fullmatch(r"[vV]\d+", self.alias)):
            raise InputError(f"alias is {self.alias!r}, which MLflow reserves for versions: give another one, such as champion")


@config_class()
class SearchJob:
    """The settings of `jobs/tune_celeba.py`: how to search, and the run that every trial starts from."""

    search_space: Annotated[tuple[str, ...], Field(min_length=1), PORTABLE] = ("k", "privacy_weight")
    """Fields to search, by dotted name, over their declared range; or `k=16,64,256` (these values), or `privacy_weight=0.1..10`
    (between these)."""
    searcher: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """What proposes settings: one of the two multi-objective samplers of Optuna, random search, or `grid`: every combination."""
    num_samples: PositiveInt = 12
    """Number of settings tried; that of a grid is its own."""
    num_seeds: PositiveInt = 1
    """Number of seeds with which each setting is trained, from --seed on; the mean over them counts."""
    scheduler: Literal["auto", "asha", "none"] = "auto"
    """`asha` stops trials without prospects early, by quick fresh attacks. `auto`: asha, except for a grid."""
    train_undefended: bool = True
    """Also train the undefended control (privacy weight 0)."""
    max_failures: NonNegativeInt = 1
    """How often a failed trial is repeated."""
    max_concurrent: NonNegativeInt = 0
    """Number of trials at a time; 0: as many as fit into the cluster."""
    objectives: tuple[SearchObjective, ...] = ("accuracy", "r2")
    """What the search and its front trade off: a utility (`accuracy` or `balanced_accuracy`), `r2`, and if requested `bits`, the
    mean bits of a code on the wire. The utility is also that of the recommendation."""
    time_budget: Annotated[str | None, DURATION, PORTABLE] = None
    """Start no new trial after this time (2h, 90m, 3600s), counted from the first one. Running trials end, and the front is
    written. A resumed search counts again."""
    max_r2: ClosedFraction | None = None
    """Recommend the setting with the best utility whose strongest R2 on the validation split is at most this."""
    min_accuracy: ClosedFraction | None = None
    """Recommend the setting with the smallest strongest R2 whose utility on the validation split is at least this."""
    max_multiply_adds: PositiveInt | None = None
    """Recommend only a setting whose client spends at most so many multiply-adds on a sample."""
    config: Config = field(default_factory=Config)
    """The run of which every trial is a variant; its `output` is the folder of the search."""

    def __post_init__(self) -> None:
        _check_one_process(self.config, "a search")
        check_objectives(self.objectives)
        if self.time_budget is not None and not self.time_budget_s:
            raise InputError(f"time_budget is {self.time_budget!r}, in which no trial can start: give a longer time, such as 2h")

    @property
    def objective(self) -> Objective:
        """The utility."""
        return utility_of(self.objectives)

    @property
    def counts_bits(self) -> bool:
        """Whether bits on the wire are an objective."""
        return "bits" in self.objectives

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds; None if there is none."""
        return None if self.time_budget is None else float(self.time_budget[:-1]) * SECONDS[self.time_budget[-1]]


@config_class()
class ReproduceJob:
    """The settings of `jobs/reproduce.py`: which mechanisms, how often, and the run of which every cell is a variant."""

    mechanisms: Annotated[tuple[PartName, ...], PORTABLE] = ()
    """Which mechanisms are compared; empty: all built-in ones. Code of your own: FILE.py:NAME or PACKAGE.MODULE:NAME."""
    num_settings: PositiveInt = 3
    """Number of settings of each mechanism's knob: of the built-in ones at most this many; with --calibrate the number of targets.
    With --grids it is the number in the file."""
    num_seeds: PositiveInt = MIN_SEEDS
    """Number of seeds with which each setting is trained, from --seed on. Fix it beforehand: a comparison with fewer than 5 seeds,
    or with seeds that were added later, has no verdicts."""
    objectives: tuple[SearchObjective, ...] = ("accuracy", "r2")
    """What the fronts trade off: a utility (`accuracy` or `balanced_accuracy`), `r2`, and if requested `bits`. The differences of
    mechanisms and their verdicts are those of utility and R2."""
    rounding: tuple[Literal["on", "off"], ...] = ()
    """Whether the codes of every mechanism are rounded to multiples of `privatizer.quantization_step` standard deviations: `on`,
    `off`, or both (twice as many trainings). Empty: both, or `off` if that step is 0."""
    calibrate: bool = False
    """Compare nothing, but choose the settings of every mechanism by the same rule with pilot trainings, and write them to
    `grids.json`."""
    num_pilots: Annotated[int, Field(ge=2)] = 8
    """Number of pilot trainings of each mechanism, with --calibrate."""
    pilot_seed: NonNegativeInt = 1_000_000
    """Seed of the pilot trainings. A comparison with their grids cannot use this seed."""
    grids: Annotated[Path | None, LOCAL] = None
    """Settings of every mechanism: a `grids.json` that --calibrate has written. Default: the built-in settings."""
    final: bool = False
    """Score on the final split, whose people no split contains, for results that are published. MLflow counts how often it was
    opened."""
    estimate: bool = False
    """Train nothing but a few epochs, and print how many cells the comparison (or the calibration) has and the CPU time of each
    mechanism. With --resume, of what is missing, from the cells that have finished."""
    full: bool = False
    """Use all training samples and the whole tournament instead of the quick comparison."""
    weights: tuple[float, ...] = ()
    """Privacy weights of the mechanisms that have one, instead of their settings; for a study of these mechanisms alone, because
    the others keep theirs."""
    published: Annotated[Path | None, LOCAL] = None
    """Folder of the reference implementation's result files for this data set, to be drawn next to ours (mnist, genki4k, har,
    gaussian)."""
    theory: bool = False
    """Print the theoretical optimum and train nothing (`gaussian` only)."""
    lambdas: tuple[NonNegative, ...] = (*range(1, 90), 100)
    """Weights of utility for --theory; the default are those of the reference implementation."""
    config: Config = field(default_factory=Config)
    """The run of which every cell is a variant; its `output` is the folder of the comparison."""

    def __post_init__(self) -> None:
        _check_one_process(self.config, "a comparison")
        check_objectives(self.objectives)
        if self.config.attacks.attacker_data is not None:
            raise InputError(
                f"attacks.attacker_data is {self.config.attacks.attacker_data}, but the mechanisms of a comparison make codes of "
                "its own pictures only: leave it out, and attack single runs with jobs/attack.py"
            )
        if self.config.privatizer.family == ANSWERS:
            raise InputError(
                "privatizer.family is 'answers', but a comparison trains the game on answers as mechanism answers_game: give "
                "another preset, such as celeba"
            )
        if self.config.utility.teachers:
            raise InputError(
                f"utility.teachers is {self.config.utility.teachers!r}, but each seed of a comparison needs teachers of its own: "
                "give --utility.train-teachers 3 instead"
            )
        if self.config.privatizer.levels and self.rounding == ("off",):
            raise InputError(
                f"privatizer.levels is {self.config.privatizer.levels}, but rounding is off, without which codes have no levels: "
                "leave out one of the two"
            )
        if len(set(self.rounding)) < len(self.rounding):
            raise InputError(f"rounding is {self.rounding!r}; it must name each of on and off at most once")
        if "on" in self.rounding and not self.config.privatizer.quantization_step:
            raise InputError(
                "rounding is on, but privatizer.quantization_step is 0: give a step such as --privatizer.quantization-step 1, or "
                "set --rounding off"
            )
        if self.calibrate and self.grids is not None:
            raise InputError(f"grids is {self.grids}, but calibrate chooses the settings itself: leave out one of the two")
        if self.calibrate and self.final:
            raise InputError("final is True, but calibrate chooses settings, on the validation split: leave out --final")
        if self.weights and (self.calibrate or self.grids is not None):
            raise InputError(
                f"weights is {self.weights!r}, but calibrated settings follow one rule for all mechanisms: leave out one of the two"
            )

    @property
    def objective(self) -> Objective:
        """The utility."""
        return utility_of(self.objectives)

    @property
    def counts_bits(self) -> bool:
        """Whether bits on the wire are an objective."""
        return "bits" in self.objectives

    @property
    def roundings(self) -> tuple[bool, ...]:
        """Whether codes are rounded, for each of the two kinds of cells that the comparison has."""
        if self.rounding:
            return tuple(name == "on" for name in self.rounding)
        return (True, False) if self.config.privatizer.quantization_step else (False,)


@config_class()
class FrontierJob:
    """The settings of `jobs/frontier.py`."""

    experiments: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPERIMENT...")]] = ()
    """MLflow experiments by name, or searches by the id of their MLflow run; each has its own front."""
    output: Path | None = None
    """Folder of `frontier.png`, `.json` and `.csv`. Default: `outputs/frontier-<time>`."""
    objectives: tuple[SearchObjective, ...] = ("accuracy", "r2")
    """What the fronts trade off: a utility (`accuracy` or `balanced_accuracy`), `r2`, and if requested `bits`, the mean bits of a
    code on the wire. The utility is also that of the recommendation."""
    max_r2: ClosedFraction | None = None
    """Recommend the setting with the best utility whose strongest R2 on the validation split is at most this."""
    min_accuracy: ClosedFraction | None = None
    """Recommend the most private setting whose utility on the validation split is at least this."""
    max_multiply_adds: PositiveInt | None = None
    """Recommend only a setting whose client spends at most so many multiply-adds on a sample."""
    tracking_uri: str | None = None
    """Tracking store. Default: MLFLOW_TRACKING_URI, or `outputs/mlflow.db` (SQLite)."""

    def __post_init__(self) -> None:
        check_objectives(self.objectives)

    @property
    def objective(self) -> Objective:
        """The utility."""
        return utility_of(self.objectives)

    @property
    def counts_bits(self) -> bool:
        """Whether bits on the wire are an objective."""
        return "bits" in self.objectives


def _check_one_process(c: Config, job: str) -> None:
    """Raises: InputError if the privatizer has several workers."""
    if c.privatizer.num_workers > 1:
        workers = c.privatizer.num_workers
        raise InputError(f"privatizer.num_workers is {workers}, but {job} runs each privatizer in one process: set it to 1")
