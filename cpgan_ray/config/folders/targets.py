"""What `jobs/attack.py` attacks, and the settings of the attack that depend on it."""

import dataclasses
from pathlib import Path

from cpgan_ray.config.folders.records import ensure_complete, own_store, read_record
from cpgan_ray.config.folders.runs import CONFIG, read_run_record
from cpgan_ray.config.jobs import AttackJob
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError


@dataclasses.dataclass(frozen=True)
class Target:
    """What `jobs/attack.py` attacks: a run, or only the file of an encoder."""

    name: str
    program: Path  # the encoder's file
    folder: Path | None = None  # output folder of the run, or the folder into which MLflow's copy was downloaded
    config: Config | None = None  # of the run
    run_id: str | None = None
    own: bool = True  # whether a run of this user has written the folder, or it is trusted
    kept: bool = False  # whether `folder` is permanent: a download from MLflow is temporary


DRAWN = ("split", "final_fraction", "attacker_share", "table", "identity_column", "split_column")
"""Fields of the data that decide who is in which split. With other values than the run's, an attack would be scored on people whom
the run was trained or selected on."""


def run_target(folder: Path, *, name: str, trust: bool) -> Target:
    """Raises: InputError if it is not the folder of a finished run."""
    config, run_id, record = read_run_record(folder, trust=trust)
    if not (folder / "privatizer.pt2").is_file():
        raise InputError(f"{folder} has no privatizer.pt2: give the output folder of a finished run")
    return Target(name, folder / "privatizer.pt2", folder, config, run_id, own=record.own or trust)


def attack_job_of(target: Target) -> AttackJob:
    """The default settings of an attack: those of the attacked run if the target is one."""
    job = AttackJob()
    if target.config is None:
        return job
    same = ("data_dir", "cache_dir", "shared_cache", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
    job = dataclasses.replace(job, **{name: getattr(target.config, name) for name in same})
    return dataclasses.replace(job, tracking=dataclasses.replace(job.tracking, run_name=None))


def complete_attack_job(job: AttackJob, target: Target) -> AttackJob:
    """The settings of an attack with what depends on its target: the tracking store if another user has written the folder, and the
    data set if a data folder is given without one.

    Raises: InputError if a URI of the attacked folder is incomplete without its secret, or if the attack would draw other splits
    than the run.
    """
    if target.folder is not None:
        ensure_complete(job, read_record(target.folder / CONFIG))
    if target.config is not None:
        ensure_same_people(job, target.config)
    if not target.own:
        job = own_store(job)
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return job


def ensure_same_people(job: AttackJob, run: Config) -> None:
    """Raises: InputError if the attack would draw other splits than the run, from the same data set."""
    if (job.dataset or job.data.dataset) != run.data.dataset:
        return
    for name in DRAWN:
        value, of_run = getattr(job.data, name), getattr(run.data, name)
        if value != of_run:
            raise InputError(
                f"data.{name} is {value!r}, but the run had {of_run!r}: the attack would be scored on people whom the run was "
                "trained or selected on; leave the flag out"
            )
