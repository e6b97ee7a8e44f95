"""Run configuration: what a run, a search, a comparison and an attack can be set to.

`schema` has the frozen dataclasses, `jobs` what each job takes in addition, `io` reads, overrides and flattens them, `presets` are
whole configurations by name, `search_space` what a search may vary, `folders` what a job's output folder records of it. Imports
neither torch nor Ray, so `--help` answers at once.
"""

from cpgan_ray.config.io import flatten, from_json, local_names, override, to_json
from cpgan_ray.config.jobs import AttackJob, EncoderConfig, FrontierJob, ReproduceJob, SearchJob
from cpgan_ray.config.schema import (
    AdversaryConfig,
    AttackConfig,
    Config,
    DataConfig,
    GameConfig,
    KernelConfig,
    NeuralConfig,
    Origin,
    PrivatizerConfig,
    Range,
    RecoveryConfig,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    UtilityConfig,
)

__all__ = [
    "AdversaryConfig",
    "AttackConfig",
    "AttackJob",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "FrontierJob",
    "GameConfig",
    "KernelConfig",
    "NeuralConfig",
    "Origin",
    "PrivatizerConfig",
    "Range",
    "RecoveryConfig",
    "ReproduceJob",
    "RidgeConfig",
    "RuntimeConfig",
    "SearchJob",
    "TrackingConfig",
    "UtilityConfig",
    "flatten",
    "from_json",
    "local_names",
    "override",
    "to_json",
]
