"""Where a run computes, how it survives failures, and where it is tracked."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import NonNegativeInt

from cpgan_ray.config.constraints import NonNegative, Positive, PositiveInt, config_class
from cpgan_ray.config.marks import LOCAL


@config_class("runtime")
class RuntimeConfig:
    backend: Literal["auto", "local", "ray"] = "auto"
    """`local`: all players in one process. `ray`: one actor each. `auto`: Ray for two adversaries or more, else local."""
    address: Annotated[str | None, LOCAL] = None
    """Ray cluster to join. Default: that of the job, that of RAY_ADDRESS, or a new local one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where players compute. `auto`: CUDA for a player that has a GPU."""
    compile: bool = False
    """Compile the trained networks (torch.compile): useful on a GPU and in long runs. Needs a C++ compiler."""
    threads: NonNegativeInt = 0
    """Torch threads of each process; 0: as many as its CPUs (all cores for the local backend)."""
    privatizer_cpus: NonNegative | None = None
    """CPUs of the privatizer actor, or of each of its workers. Default: 1, or an equal share on a cluster with fewer CPUs."""
    privatizer_gpus: NonNegative = 0.0
    """GPUs of the privatizer actor, fractions allowed, or of each of its workers."""
    adversary_cpus: NonNegative | None = None
    """CPUs of each adversary actor. Default: 1, or an equal share on a cluster with fewer CPUs."""
    adversary_gpus: NonNegative = 0.0
    """GPUs of each adversary actor, fractions allowed."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Strategy of the placement group that holds all actors."""
    startup_timeout_s: NonNegative = 0.0
    """How long to wait for a cluster that is still too small (for example while an autoscaler adds nodes), in seconds."""
    reply_timeout_s: Positive = 600.0
    """How long a reply of an adversary may take, in seconds."""


@config_class("recovery")
class RecoveryConfig:
    """How a run survives the loss of a process or a node."""

    snapshot_every: PositiveInt = 50
    """Rounds between two snapshots of the whole game in the memory of its host (`stale1` and `epochwise`: at the end of an
    epoch)."""
    checkpoint_every: NonNegativeInt = 200
    """Rounds between two checkpoints; 0: no checkpoints, and the run cannot be resumed."""
    checkpoints: Annotated[str | None, LOCAL] = None
    """Folder of the checkpoints, or its URI on a file system of pyarrow (s3://, gs://). Default: `<output>/checkpoints`."""
    num_checkpoints: PositiveInt = 2
    """Number of newest checkpoints to keep, in addition to the one with the best validation accuracy."""
    max_failures: NonNegativeInt = 10
    """Number of losses after which a run gives up."""
    backoff_s: NonNegative = 0.5
    """Wait before the second replacement in a row, in seconds; doubled for each further one, up to a minute."""
    num_spares: NonNegativeInt = 0
    """Number of warm processes ready to replace a lost adversary."""
    replacement_timeout_s: NonNegative = 300.0
    """How long a replacement may wait for resources on a cluster that has shrunk, in seconds."""


@config_class("tracking")
class TrackingConfig:
    uri: Annotated[str | None, LOCAL] = None
    """MLflow tracking URI. Default: MLFLOW_TRACKING_URI, or `mlflow.db` next to the output folder (SQLite)."""
    experiment: Annotated[str, LOCAL] = "cpgan"
    """MLflow experiment."""
    run_name: Annotated[str | None, LOCAL] = None
    """Name of the MLflow run. Default: preset, k and privacy weight."""
    panel_every: NonNegativeInt = 0
    """Epochs between two panels of reconstructed pictures; 0: only at the end."""
    undefended: Annotated[Path | None, LOCAL] = None
    """Output folder of a finished undefended twin, for the panels. Default: the best linear code of k numbers is shown instead."""
    log_models: bool = True
    """Log the privatizer and the utility head as MLflow models."""
    system_metrics: bool = True
    """Log the use of CPU, memory and GPU."""
