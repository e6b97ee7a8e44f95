"""Run configuration: what a run, a search, a comparison and an attack can be set to.

`schema` has the configuration of a run, made of sections (`data`, `players`, `runtime`, `attacks`), `jobs` what each job takes in
addition. `constraints` checks values, `marks` says what a search varies and what is never read from another user's folder. `io`
reads, overrides and flattens configurations, `presets` are whole configurations by name, `search_space` what a search may vary,
`folders` what a job's output folder records of it. Imports neither torch nor Ray, so `--help` answers at once.
"""

from cpgan_ray.config.attacks import AttackConfig
from cpgan_ray.config.data import DataConfig
from cpgan_ray.config.encoders import EncoderConfig
from cpgan_ray.config.io import flatten, from_json, local_names, override, to_json
from cpgan_ray.config.jobs import MIN_SEEDS, AttackJob, ExportJob, FrontierJob, ReproduceJob, SearchJob
from cpgan_ray.config.marks import Origin, Range
from cpgan_ray.config.objectives import Objective
from cpgan_ray.config.players import (
    AdversaryConfig,
    GameConfig,
    KernelConfig,
    NeuralConfig,
    OwnConfig,
    PrivatizerConfig,
    RidgeConfig,
    UtilityConfig,
)
from cpgan_ray.config.runtime import RecoveryConfig, RuntimeConfig, TrackingConfig
from cpgan_ray.config.schema import Config
from cpgan_ray.config.seeds import SeedsJob
from cpgan_ray.config.service import ServeJob, ServiceLimits

__all__ = [
    "MIN_SEEDS",
    "AdversaryConfig",
    "AttackConfig",
    "AttackJob",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "ExportJob",
    "FrontierJob",
    "GameConfig",
    "KernelConfig",
    "NeuralConfig",
    "Objective",
    "Origin",
    "OwnConfig",
    "PrivatizerConfig",
    "Range",
    "RecoveryConfig",
    "ReproduceJob",
    "RidgeConfig",
    "RuntimeConfig",
    "SearchJob",
    "SeedsJob",
    "ServeJob",
    "ServiceLimits",
    "TrackingConfig",
    "UtilityConfig",
    "flatten",
    "from_json",
    "local_names",
    "override",
    "to_json",
]
