"""What `jobs/attack.py` attacks or `jobs/export.py` exports, and the settings that depend on it."""

import dataclasses
import logging
from pathlib import Path

from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.plugins.names import is_code, label, parse
from cpgan_ray.config.attacks import ALL_ATTACKS
from cpgan_ray.config.data import DataConfig
from cpgan_ray.config.folders.records import ensure_complete, own_store, read_record
from cpgan_ray.config.folders.runs import CONFIG, read_run_record
from cpgan_ray.config.jobs import AttackJob, ExportJob
from cpgan_ray.config.players import PrivatizerConfig
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """What `jobs/attack.py` attacks: a run, a bundle, only the file of an encoder, or a black box."""

    name: str
    program: Path | None  # file of the encoder; None: a black box
    folder: Path | None = None  # output folder of the run, or the folder into which MLflow's copy was downloaded
    config: Config | None = None  # of the run
    run_id: str | None = None
    own: bool = True  # whether a run of this user has written the folder, or it is trusted
    kept: bool = False  # whether `folder` is permanent: a download from MLflow is temporary
    head: Path | None = None  # the utility head's file
    data: DataConfig | None = None  # of the run that a bundle was exported from
    release: PrivatizerConfig | None = None  # of a bundle: only its rounding, noise and clip
    black_box: str | None = None  # the command or the URL of an encoder that is no file


DRAWN = ("split", "final_fraction", "attacker_share", "table", "identity_column", "split_column")
"""Fields of the data that decide who is in which split. With other values than the run's, an attack would be scored on people whom
the run was trained or selected on."""


def run_target(folder: Path, *, name: str, trust: bool) -> Target:
    """Raises: InputError if it is not the folder of a finished run."""
    config, run_id, record = read_run_record(folder, trust=trust)
    if not (folder / "privatizer.pt2").is_file():
        raise InputError(f"{folder} has no privatizer.pt2: give the output folder of a finished run")
    head = folder / "utility_head.pt2"
    own = record.own or trust
    return Target(name, folder / "privatizer.pt2", folder, config, run_id, own=own, head=head if head.is_file() else None)


def black_box_target(source: str) -> Target:
    """source: a command or a URL."""
    return Target(redacted(source, whole=True), None, black_box=source)


def attack_job_of(target: Target) -> AttackJob:
    """The default settings of an attack: those of the attacked run if the target is one. Code that the run's folder names is left
    out: it is run only if a flag names it."""
    job = AttackJob()
    if target.config is None:
        return job if target.data is None else dataclasses.replace(job, data=target.data)
    same = ("data_dir", "cache_dir", "shared_cache", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
    job = dataclasses.replace(job, **{name: getattr(target.config, name) for name in same})
    built_in = tuple(name for name in job.attacks.names if name in ALL_ATTACKS)
    if left_out := [label(name) for name in job.attacks.names if name not in ALL_ATTACKS]:
        logger.info(f"the run names code of its own as attacks ({', '.join(left_out)}), which is left out: --attacks.names adds it")
        job = dataclasses.replace(job, attacks=dataclasses.replace(job.attacks, names=built_in or ALL_ATTACKS))
    return dataclasses.replace(job, tracking=dataclasses.replace(job.tracking, run_name=None))


def complete_attack_job(job: AttackJob, target: Target) -> AttackJob:
    """The settings of an attack with what depends on its target: the tracking store if another user has written the folder, and the
    data set if a data folder is given without one.

    Raises: InputError if a URI of the attacked folder is incomplete without its secret, or if the attack would draw other splits
    than the run.
    """
    if target.folder is not None:
        ensure_complete(job, read_record(target.folder / CONFIG))
    if job.dataset is None and target.config is not None and is_code(job.data.dataset):
        raise InputError(
            f"the data set of {target.name} is read by code, {job.data.dataset!r:.100}, which an attack runs only if you name it: "
            "add --dataset with that name"
        )
    if target.config is not None:
        ensure_same_people(job, target.config)
    if not target.own:
        job = own_store(job)
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return job


def export_job_of(target: Target) -> ExportJob:
    """The default settings of an export: those of the run."""
    job = ExportJob()
    if target.config is None:
        raise InputError(f"{target.name} is not a run: give a run's output folder, an MLflow run id, or models:/NAME@ALIAS")
    same = ("data_dir", "cache_dir", "shared_cache", "runtime", "tracking")
    job = dataclasses.replace(job, **{name: getattr(target.config, name) for name in same})
    return dataclasses.replace(job, tracking=dataclasses.replace(job.tracking, run_name=None))


def complete_export_job(job: ExportJob, target: Target) -> ExportJob:
    """The settings of an export with what depends on its run, like `complete_attack_job`.

    Raises: InputError if a URI of the run's folder is incomplete without its secret.
    """
    if target.folder is not None:
        ensure_complete(job, read_record(target.folder / CONFIG))
    return job if target.own else own_store(job)


def ensure_same_people(job: AttackJob, run: Config) -> None:
    """Raises: InputError if the attack would draw other splits than the run, from the same data set."""
    if parse(job.dataset or job.data.dataset).text != parse(run.data.dataset).text:
        return
    for name in DRAWN:
        value, of_run = getattr(job.data, name), getattr(run.data, name)
        if value != of_run:
            raise InputError(
                f"data.{name} is {value!r}, but the run had {of_run!r}: the attack would be scored on people whom the run was "
                "trained or selected on; leave the flag out"
            )
