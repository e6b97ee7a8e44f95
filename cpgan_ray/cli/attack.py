"""The command line of jobs/attack.py, and what it attacks."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cpgan_ray.cli.flags import absolute, read_flags, take_trust
from cpgan_ray.cli.help import ATTACK, HELP, HELP_ALL
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.config import AttackJob
from cpgan_ray.config.folders import CONFIG, Target, ensure_complete, own_store, read_record, run_target
from cpgan_ray.errors import InputError

CALL = "attack.py RUN_FOLDER | RUN_ID | ENCODER_FILE [--flag VALUE ...]"


def parse_attack(arguments: Sequence[str], *, description: str, fetch: Callable[[str], Path]) -> tuple[Target, AttackJob]:
    """`TARGET [--flag VALUE ...]`; if the target is a run, flags default to its values.

    fetch: downloads what MLflow has of a run, by its id, into a folder (see `tracking.fetch_run`); called only for a run id.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    rest = list(arguments)
    if not rest or (rest[0].startswith("-") and not {*HELP, HELP_ALL} & set(rest)):
        raise InputError("nothing to attack: give a run's output folder, an MLflow run id, or an encoder file (.pt2, .onnx)")
    trust = take_trust(rest)
    if not rest:
        raise InputError("nothing to attack: give a run's output folder, an MLflow run id, or an encoder file (.pt2, .onnx)")
    target = None if rest[0].startswith("-") else find_target(rest.pop(0), trust=trust, fetch=fetch)
    base = AttackJob()
    if target is not None and (c := target.config) is not None:
        same = ("data_dir", "cache_dir", "shared_cache", "seed", "skip_corrupt", "data", "attacks", "runtime", "tracking")
        base = dataclasses.replace(base, **{name: getattr(c, name) for name in same})
        base = dataclasses.replace(base, tracking=dataclasses.replace(base.tracking, run_name=None))
    job = absolute(read_flags(AttackJob, dataclasses.replace(base, trust=trust), rest, usage=description, call=CALL, main=ATTACK))
    if target is None:  # --help has ended the process
        raise InputError("nothing to attack")
    if target.folder is not None:
        ensure_complete(job, read_record(target.folder / CONFIG))
    if not target.own:
        job = own_store(job)
    if job.dataset is None and job.data_dir is not None and job.data.dataset == "faces":
        job = dataclasses.replace(job, dataset="celeba")
    return target, job


def find_target(name: str, *, fetch: Callable[[str], Path], trust: bool = False) -> Target:
    """fetch: see `parse_attack`; trust: use a folder or an MLflow run that another user has written.

    Raises: InputError where it is no finished run's folder, no MLflow run and no file.
    """
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        return dataclasses.replace(run_target(path, name=path.name, trust=trust), kept=True)
    if path.is_file():
        return Target(path.name, path)
    if re.fullmatch(r"[0-9a-f]{32}", name):
        return run_target(fetch(name), name=name, trust=trust)
    raise InputError(f"{name} is no folder, no file and no MLflow run id: give a run's output folder or an encoder (.pt2, .onnx)")
