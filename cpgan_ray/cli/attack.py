"""The command line of jobs/attack.py, and its target."""

import atexit
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cpgan_ray.cli.flags import absolute, read_flags, take_trust
from cpgan_ray.cli.help import ATTACK, HELP, HELP_ALL
from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.common.environment import ensure_current_folder
from cpgan_ray.common.plugins.names import is_code
from cpgan_ray.config import AttackJob, DataConfig, PrivatizerConfig, from_json
from cpgan_ray.config.folders.targets import Target, attack_job_of, black_box_target, complete_attack_job, run_target
from cpgan_ray.config.io import with_local
from cpgan_ray.deploy.bundle import HEAD, PRIVATIZER, is_bundle, read_bundle
from cpgan_ray.errors import InputError

CALL = "attack.py RUN_FOLDER | RUN_ID | BUNDLE | ENCODER_FILE | URL | --encoder.command COMMAND [--flag VALUE ...]"


def parse_attack(arguments: Sequence[str], *, description: str, fetch: Callable[[str], Path]) -> tuple[Target, AttackJob]:
    """Parse `TARGET [--flag VALUE ...]`, or only flags with an `--encoder.command`; if the target is a run, flags default to its
    values.

    fetch: downloads the files of an MLflow run, by its id, into a folder (see `tracking.fetch_run`); called only for a run id.

    Raises: InputError in one line; SystemExit(0) after `--help`.
    """
    ensure_current_folder()
    rest = list(arguments)
    trust = take_trust(rest)
    target = None if not rest or rest[0].startswith("-") else find_target(rest.pop(0), trust=trust, fetch=fetch)
    needs_target = target is None and not {*HELP, HELP_ALL} & set(rest)
    if needs_target and not any(argument.partition("=")[0] == "--encoder.command" for argument in rest):
        raise InputError(
            "nothing to attack: give a run's output folder, an MLflow run id, a bundle, an encoder file (.pt2, .onnx), a URL, or a "
            "command with --encoder.command"
        )
    base = AttackJob() if target is None else attack_job_of(target)
    job = absolute(read_flags(AttackJob, dataclasses.replace(base, trust=trust), rest, usage=description, call=CALL, main=ATTACK))
    target = with_command(target, job)
    return target, complete_attack_job(job, target)


def find_target(name: str, *, fetch: Callable[[str], Path], trust: bool = False) -> Target:
    """The target with this name: a run folder, a bundle, an encoder file, an MLflow run id or the URL of an encoder.

    fetch: see `parse_attack`; trust: use a folder or an MLflow run that another user has written.

    Raises: InputError if it is neither the folder of a finished run, nor a bundle, nor a file, nor an MLflow run id, nor a URL.
    """
    if re.match(r"https?://", name, re.IGNORECASE):
        return black_box_target(name)
    path = Path(name).expanduser().resolve()
    if is_bundle(path):
        return bundle_target(path, trust=trust)
    if path.is_dir():
        return dataclasses.replace(run_target(path, name=path.name, trust=trust), kept=True)
    if path.is_file():
        return Target(path.name, path)
    if re.fullmatch(r"[0-9a-f]{32}", name):
        return run_target(fetch(name), name=name, trust=trust)
    raise InputError(
        f"{name} is neither a folder, nor a file, nor an MLflow run id, nor a URL: give a run's output folder, a bundle "
        "or an encoder (.pt2, .onnx, http://...)"
    )


def with_command(target: Target | None, job: AttackJob) -> Target:
    """The target, or the command of `job` if there is none.

    Raises: InputError if there are both.
    """
    command = job.encoder.command
    if target is None:
        return black_box_target(command or "")
    if command is not None:
        raise InputError(f"encoder.command is {command!r}, but {target.name} is to be attacked, too: give one of the two")
    return target


def bundle_target(path: Path, *, trust: bool) -> Target:
    """The privatizer of a bundle, with its utility head and the settings of its data.

    The models are copied to a temporary folder, so that what was checked is what is attacked.

    trust: use all settings of the data, also where they are read, and code that they name.

    Raises: InputError if the bundle is damaged, or contains what no bundle contains.
    """
    bundle = read_bundle(path)
    try:
        data = from_json(bundle.manifest.values.get("data"), kind=DataConfig)
    except InputError as e:
        raise InputError(f"bundle {path}: manifest.json: data: {e}") from e
    if is_code(data.dataset) and not trust:
        raise InputError(
            f"bundle {path}: manifest.json: data: dataset names code, {data.dataset!r:.100}: look at that code, and add --trust to "
            "run it"
        )
    temporary = Path(tempfile.mkdtemp(prefix="cpgan-attacked-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    folder = temporary / path.name  # so that messages name the bundle
    folder.mkdir()
    for name in (PRIVATIZER, HEAD):
        (folder / name).write_bytes(bundle.files[name])
    data = data if trust else with_local(data, DataConfig())[0]
    noise, step = bundle.manifest.noise, bundle.codec.step if isinstance(bundle.codec, LevelCodec) else 0.0
    release = PrivatizerConfig(quantization_step=step)
    if noise is not None:
        release = dataclasses.replace(release, noise=noise.std, noise_clip=noise.clip)
    return Target(path.name, folder / PRIVATIZER, head=folder / HEAD, data=data, release=release)
