"""Compressive Privacy GANs on Ray: codes that keep a task solvable and defeat reconstruction, tested by fresh attacks.

The Python interface; the commands in `jobs/` do the same from a shell. Importing this package is cheap: torch, Ray and MLflow are
imported when a function needs them.

    train(config)             train a privatizer, attack it with fresh attacks, write an output folder
    attack(target)            attack a finished run, or any encoder
    load_privatizer(folder)   the encoder of a finished run
    load_report(folder)       the report of a run or an attack
    presets                   whole configurations by name: `presets.celeba()`
    Config                    the configuration of a run

Import it before torch, or set OMP_WAIT_POLICY=PASSIVE: torch reads when it is imported whether its waiting threads sleep. Threads
that spin slow down other processes several times. The processes of a local Ray inherit the setting in either case.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

    from cpgan_ray.config import Config, presets
    from cpgan_ray.evaluation.encoders.encoder import Encoder

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Config", "attack", "load_privatizer", "load_report", "presets", "train"]


def __getattr__(name: str) -> Any:
    """`Config` and `presets`, imported on first use."""
    if name == "Config":
        from cpgan_ray.config import Config

        return Config
    if name == "presets":
        from cpgan_ray.config import presets

        return presets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def train(
    config: "Config | None" = None,
    *,
    privatizer: "Module | None" = None,
    resume: str | Path | None = None,
    trust: bool = False,
    log_level: str = "info",
) -> dict[str, Any]:
    """Train a privatizer against its adversaries, then attack its codes with fresh attacks.

    >>> from dataclasses import replace
    >>> import cpgan_ray
    >>> small = cpgan_ray.presets.smoke()
    >>> quick = replace(small.attacks, names=("ridge",), fit_fractions=(), restarts=1)
    >>> in_process = replace(small.runtime, backend="local")
    >>> config = replace(small, epochs=1, attacks=quick, runtime=in_process, output=folder, cache_dir=cache)
    >>> result = cpgan_ray.train(config, log_level="error")
    >>> sorted(result)[:3], result["output"] == str(folder)
    (['accuracy', 'answers_floor_r2', 'balanced_accuracy'], True)

    Args:
        config: of the run, for example a preset with `dataclasses.replace`. `config.output` is the folder that is written
            (`config.json`, `metrics.jsonl`, `privatizer.pt2`, `utility_head.pt2`, `report/`).
        privatizer: a network, with its present weights, in place of the stages that `config.privatizer.family` names: float32
            pictures (B, C, H, W) in [-1, 1] to features (B, ...). The bottleneck, the normalisation and the rounding are put behind
            a copy of it. Such a run cannot be resumed.
        resume: instead of a configuration, the folder of an interrupted run to continue.
        trust: with resume, also use the paths and the tracking store in a folder that another user has written.
        log_level: least level of the lines on standard error: debug, info, warning or error.

    Returns:
        The summary that `jobs/train_celeba.py` prints: run_id (of MLflow), output, accuracy, majority_accuracy, balanced_accuracy,
        strongest (attack, variant, r2, low, high), answers_floor_r2, label_floor_r2, warnings, seconds.

    Raises:
        cpgan_ray.errors.InputError: for anything that the user can correct, before anything is written to the output folder.
    """
    import dataclasses

    from cpgan_ray.cli.flags import absolute
    from cpgan_ray.common import logs
    from cpgan_ray.config.folders.records import ensure_complete, own_store
    from cpgan_ray.config.folders.runs import interrupted_run
    from cpgan_ray.errors import InputError
    from cpgan_ray.pipelines import train as pipeline

    logs.configure(log_level)
    if (config is None) == (resume is None):
        raise InputError("train() takes a configuration, or the folder of an interrupted run as resume: give one of the two")
    if resume is not None and privatizer is not None:
        raise InputError("train() takes a privatizer only for a new run: a resumed run has the network that it began with")
    if resume is not None:
        interrupted, run_id, record = interrupted_run(Path(resume).expanduser().resolve(), trust=trust)
        interrupted = absolute(dataclasses.replace(interrupted, trust=trust))
        ensure_complete(interrupted, record)
        return pipeline.train(interrupted if record.own or trust else own_store(interrupted), resume=run_id)
    assert config is not None
    if privatizer is not None:
        from cpgan_ray.models.own import family_of

        config = dataclasses.replace(
            config, privatizer=dataclasses.replace(config.privatizer, family=family_of(privatizer), options={})
        )
    return pipeline.train(absolute(config))


def attack(target: str | Path | None = None, *, trust: bool = False, log_level: str = "info", **settings: Any) -> dict[str, Any]:
    """Attack a finished run, or anybody's encoder, with the tournament of fresh attacks.

    >>> gate = cpgan_ray.attack(folder, variant="leaked", fail_above=0.01, log_level="error")
    >>> gate["strongest"]["variant"], gate["passed"]
    ('leaked', False)

    Args:
        target: the output folder of a run, the id of an MLflow run, an encoder (torch.export `.pt2` or `.onnx`) or the URL of one;
            None: the command `encoder.command`. docs/auditing.md says what an encoder takes and returns.
        trust: use paths and files of a folder that another user has written.
        log_level: least level of the lines on standard error.
        settings: fields of `cpgan_ray.config.AttackJob`, such as `data_dir`, `dataset`, `output`, `fail_above`, `attacks`. If the
            target is a run, they default to the settings of the run.

    Returns:
        The summary that `jobs/attack.py` prints: run_id, output, strongest (attack, variant, r2, low, high), answers_floor_r2,
        label_floor_r2, warnings, passed, seconds. `passed`: whether the upper ends of the intervals are at most `fail_above`,
        `fail_above_linkage` and those in `fail_above_attribute`, the code is not degenerate and the attacks have not failed; always
        true without these.

    Raises:
        cpgan_ray.errors.InputError: for anything that the user can correct, before anything is written.
    """
    import dataclasses

    from cpgan_ray.cli.attack import find_target, with_command
    from cpgan_ray.cli.flags import absolute
    from cpgan_ray.common import logs
    from cpgan_ray.config import AttackJob
    from cpgan_ray.config.folders.targets import attack_job_of, complete_attack_job
    from cpgan_ray.errors import InputError
    from cpgan_ray.pipelines import attack as pipeline
    from cpgan_ray.tracking import fetch_run

    logs.configure(log_level)
    found = None if target is None else find_target(str(target), fetch=fetch_run, trust=trust)
    job = AttackJob() if found is None else attack_job_of(found)
    if unknown := sorted(settings.keys() - {field.name for field in dataclasses.fields(job)}):
        raise InputError(f"attack() has no setting {unknown[0]!r}: see the fields of cpgan_ray.config.AttackJob")
    job = absolute(dataclasses.replace(job, trust=trust, **settings))
    if found is None and job.encoder.command is None:
        raise InputError("attack() has nothing to attack: give a target, or a command as encoder=EncoderConfig(command=...)")
    found = with_command(found, job)
    return pipeline.attack(found, complete_attack_job(job, found)).summary


def load_privatizer(folder: str | Path) -> "Encoder":
    """The privatizer of a finished run, ready to encode pictures.

    >>> import numpy as np
    >>> privatizer = cpgan_ray.load_privatizer(folder)
    >>> pictures = np.zeros((2, 3, 32, 32), np.uint8)
    >>> privatizer.encode(pictures).shape
    (2, 16)

    Args:
        folder: the output folder of a run.

    Returns:
        An encoder: `encode` turns uint8 pictures (B, C, H, W) into codes z, float32 (B, k); `image_shape` is (H, W, C); `close`
        ends it. A program that another user has written runs in a process of its own, with limits on memory and time.

    Raises:
        cpgan_ray.errors.InputError: if the folder has no privatizer, or the file is damaged.
    """
    from cpgan_ray.evaluation.encoders.encoder import open_own

    return open_own(Path(folder).expanduser() / "privatizer.pt2")


def load_report(folder: str | Path) -> dict[str, Any]:
    """The report of a run or of an attack, as docs/outputs.md describes it.

    >>> report = cpgan_ray.load_report(folder)
    >>> report["k"], round(report["privacy"]["strongest"]["r2"], 4) == result["strongest"]["r2"]
    (16, True)

    Args:
        folder: the output folder of a run or an attack, or its `report` folder.

    Returns:
        The content of `report.json`: `privacy`, `attacks`, `utility`, `labels`, `warnings`, `threat_model`, `limits` and more.

    Raises:
        cpgan_ray.errors.InputError: if there is no report, or it is damaged.
    """
    from cpgan_ray.common.json_files import read_json
    from cpgan_ray.errors import InputError

    given = Path(folder).expanduser()
    for path in (given / "report" / "report.json", given / "report.json"):
        if path.is_file():
            try:
                report = read_json(path)
            except (OSError, ValueError) as e:
                raise InputError(f"{path} is damaged ({e}): attack that run again") from e
            if not (isinstance(report, dict) and "privacy" in report):
                raise InputError(
                    f"{path} is not a report (it has no field 'privacy'): give the output folder of a run or an attack"
                )
            return report
    raise InputError(f"{folder} has no report: give the output folder of a finished run or attack")
