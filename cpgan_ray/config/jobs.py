"""What each job takes in addition to a run configuration."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpgan_ray.config.schema import (
    LOCAL,
    PORTABLE,
    STRICT,
    AttackConfig,
    Config,
    DataConfig,
    DatasetName,
    RuntimeConfig,
    TrackingConfig,
    _require,
    folder_or_uri,
)
from cpgan_ray.errors import InputError


def _check_one_process(c: Config, where: str) -> None:
    if c.privatizer.num_workers > 1:
        workers = c.privatizer.num_workers
        raise InputError(f"privatizer.num_workers is {workers}, but {where} gives each game one privatizer process: set it to 1")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How an encoder that comes as a file is called."""

    __pydantic_config__ = STRICT

    outputs: Annotated[tuple[str, ...], PORTABLE] = ()
    """Outputs that are attacked, by name; none given: all together."""
    stochastic: bool = False
    """Declare a stochastic release: the encoder may draw random numbers, and is tested for differing by independent noise only."""
    memory_gb: float = 8.0
    """Memory that the process of somebody else's encoder may take, in GB."""
    timeout_s: float = 300.0
    """How long it may take to open the encoder, or to encode a block of 250 pictures, in seconds."""

    def __post_init__(self) -> None:
        _require(len(set(self.outputs)) == len(self.outputs), "encoder.outputs", self.outputs, "each named once")
        for name in ("memory_gb", "timeout_s"):
            value = getattr(self, name)
            _require(0 < value < float("inf"), f"encoder.{name}", value, "above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class AttackJob:
    """What `jobs/attack.py` is told beside its target. Values shown are the attacked run's own, where it is a run."""

    __pydantic_config__ = STRICT

    variant: Literal["both", "leaked", "fresh"] = "both"
    """Which variants are played: the attacker has the defender's training pictures, its own, or each in turn."""
    fail_above: float | None = None
    """Release gate: exit with status 1 where the strongest attack's R2 is above this."""
    against: Annotated[Path | None, LOCAL] = None
    """Run or report folder to compare with, picture by picture."""
    dataset: DatasetName | None = None
    """Which data set is attacked; none given: the run's, or for an encoder file `celeba` where there is a `--data-dir`."""
    data_dir: Annotated[str | Path | None, LOCAL] = None
    """Folder in the data set's official layout, or a URI of one; none for the embedded faces."""
    cache_dir: Annotated[Path | None, LOCAL] = None
    """Where prepared stores are kept; see train_celeba."""
    shared_cache: Annotated[str | Path | None, LOCAL] = None
    """Folder or URI where nodes share prepared stores; see train_celeba."""
    trust: Annotated[bool, LOCAL] = False
    """Use files that another user has written: what the attacked folder says of places, prepared stores that came with the data."""
    output: Annotated[Path | None, LOCAL] = None
    """Where the report goes; none given: `<run>/attack-<time>`, or `outputs/attack-<time>`."""
    seed: int = 0
    """Of the attacks."""
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
        _require(self.fail_above is None or 0 <= self.fail_above <= 1, "fail_above", self.fail_above, "between 0 and 1")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """What `jobs/tune_celeba.py` is told: how to search, and the run that every trial starts from."""

    __pydantic_config__ = STRICT

    search_space: Annotated[tuple[str, ...], PORTABLE] = ("k", "privacy_weight")
    """Fields that are searched, by dotted name. Where: as declared in config.py, or `k=16,64,256` (these values), or
    `privacy_weight=0.1..10` (between these)."""
    searcher: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """Who proposes settings: Optuna's two multi-objective samplers, chance, or nobody: `grid` tries every combination."""
    num_samples: int = 12
    """Settings that are tried; a grid has its own number."""
    num_seeds: int = 1
    """Seeds under which each setting is trained, from --seed on; the mean over them counts."""
    scheduler: Literal["auto", "asha", "none"] = "auto"
    """`asha` stops hopeless trials early, on quick fresh attacks; `auto`: asha, but for a grid none."""
    train_undefended: bool = True
    """Also train the undefended control (privacy weight 0)."""
    max_failures: int = 1
    """How often a trial that failed is tried again."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the cluster has room for."""
    max_r2: float | None = None
    """Recommend the setting of the best utility whose strongest R2 is at most this."""
    min_accuracy: float | None = None
    """Recommend the setting of the least strongest R2 whose accuracy is at least this."""
    config: Config = field(default_factory=Config)
    """The run that every trial is a variant of; its `output` is the search's folder."""

    def __post_init__(self) -> None:
        _require(len(self.search_space) > 0, "search_space", self.search_space, "at least one field")
        for name in ("num_samples", "num_seeds"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("max_failures", "max_concurrent"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("max_r2", "min_accuracy"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, name, value, "between 0 and 1")
        _check_one_process(self.config, "a search")


MechanismName = Literal[
    "cpgan",
    "cpgan_one",
    "cpgan_paper",
    "ran",
    "bottleneck",
    "dnn",
    "resize",
    "noise",
    "gaussian_noise",
    "pca",
    "random_projection",
    "dca",
]


@dataclass(frozen=True, kw_only=True)
class ReproduceJob:
    """What `jobs/reproduce.py` is told: which mechanisms, how often, and the run that every cell is a variant of."""

    __pydantic_config__ = STRICT

    mechanisms: tuple[MechanismName, ...] = ()
    """Which are compared; none given: all."""
    num_settings: int = 3
    """Settings of each mechanism's knob, at most."""
    num_seeds: int = 3
    """Seeds under which each setting is trained, from --seed on."""
    full: bool = False
    """All training samples and the whole tournament instead of the quick comparison."""
    weights: tuple[float, ...] = ()
    """Privacy weights of the mechanisms that have one; none given: their own settings."""
    published: Annotated[Path | None, LOCAL] = None
    """Folder of the original's result files of this data set, to be drawn beside ours (mnist, genki4k, har, gaussian)."""
    theory: bool = False
    """`gaussian` only: print what theory says is best, and train nothing."""
    lambdas: tuple[float, ...] = (*range(1, 90), 100)
    """Weights of utility for --theory; those given are the original's."""
    config: Config = field(default_factory=Config)
    """The run that every cell is a variant of; its `output` is the comparison's folder."""

    def __post_init__(self) -> None:
        for name in ("num_settings", "num_seeds"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for value in self.lambdas:
            _require(0 <= value < float("inf"), "lambda", value, "finite and at least 0")
        _check_one_process(self.config, "a comparison")


@dataclass(frozen=True, kw_only=True)
class FrontierJob:
    """What `jobs/frontier.py` draws."""

    __pydantic_config__ = STRICT

    experiments: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPERIMENT...")]] = ()
    """MLflow experiments by name, or searches by the id of their MLflow run; each has a front of its own."""
    output: Path | None = None
    """Where `frontier.png`, `.json` and `.csv` go; none given: `outputs/frontier-<time>`."""
    max_r2: float | None = None
    """Recommend the setting of the best accuracy whose strongest R2 is at most this."""
    min_accuracy: float | None = None
    """Recommend the most private setting whose accuracy is at least this."""
    tracking_uri: str | None = None
    """Tracking store; none given: MLFLOW_TRACKING_URI, or `outputs/mlflow.db` (SQLite)."""

    def __post_init__(self) -> None:
        for name in ("max_r2", "min_accuracy"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, name, value, "between 0 and 1")
