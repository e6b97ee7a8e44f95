"""The command line of jobs/attack.py, and what it attacks."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from cpgan_ray.cli.flags import absolute, read_flags, take_trust
from cpgan_ray.cli.folders import ensure_complete, own_store, read_record
from cpgan_ray.cli.train import CONFIG, read_run_record
from cpgan_ray.common.environment import ensure_here
from cpgan_ray.config import AttackJob, Config
from cpgan_ray.errors import InputError


@dataclasses.dataclass(frozen=True)
class Target:
    """What `jobs/attack.py` attacks: a run, or an encoder's file alone."""

    name: str
    program: Path  # the encoder's file
    folder: Path | None = None  # the run's output folder, or what MLflow has of it
    config: Config | None = None  # the run's
    run_id: str | None = None
    own: bool = True  # whether this user's own run has written the folder, or he trusts it
    kept: bool = False  # whether `folder` stays: what MLflow has is downloaded to a temporary one


def parse_attack(arguments: Sequence[str], *, description: str) -> tuple[Target, AttackJob]:
    """`TARGET [--flag VALUE ...]`; the flags' values are the run's where the target is one.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_here()
    rest = list(arguments)
    if not rest or (rest[0].startswith("-") and not {"-h", "--help"} & set(rest)):
        raise InputError("nothing to attack: give a run's output folder, an MLflow run id, or an encoder file (.pt2, .onnx)")
    trust = take_trust(rest)
    if not rest:
        raise InputError("nothing to attack: give a run's output folder, an MLflow run id, or an encoder file (.pt2, .onnx)")
    target = None if rest[0].startswith("-") else find_target(rest.pop(0), trust=trust)
    base = AttackJob()
    if target is not None and (c := target.config) is not None:
        same = ("data_dir", "cache_dir", "shared_cache", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
        base = dataclasses.replace(base, **{name: getattr(c, name) for name in same})
        base = dataclasses.replace(base, tracking=dataclasses.replace(base.tracking, run_name=None))
    job = absolute(read_flags(AttackJob, dataclasses.replace(base, trust=trust), rest, usage=description))
    if target is None:  # --help has ended the process
        raise InputError("nothing to attack")
    if target.folder is not None:
        ensure_complete(job, read_record(target.folder / CONFIG))
    if not target.own:
        job = own_store(job)
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return target, job


def find_target(name: str, *, trust: bool = False) -> Target:
    """trust: the user says that a folder's files, or an MLflow run's, are his own, whoever has written them.

    Raises: InputError where it is no finished run's folder, no MLflow run and no file.
    """
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        return dataclasses.replace(run_target(path, name=path.name, trust=trust), kept=True)
    if path.is_file():
        return Target(path.name, path)
    if re.fullmatch(r"[0-9a-f]{32}", name):
        from cpgan_ray.tracking import fetch_run

        return run_target(fetch_run(name), name=name, trust=trust)
    raise InputError(f"{name} is no folder, no file and no MLflow run id: give a run's output folder or an encoder (.pt2, .onnx)")


def run_target(folder: Path, *, name: str, trust: bool) -> Target:
    """Raises: InputError where the folder is not a finished run's."""
    config, run_id, record = read_run_record(folder, trust=trust)
    if not (folder / "privatizer.pt2").is_file():
        raise InputError(f"{folder} has no privatizer.pt2: give the output folder of a finished run")
    return Target(name, folder / "privatizer.pt2", folder, config, run_id, own=record.own or trust)
