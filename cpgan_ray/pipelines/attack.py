"""The whole job of attacking what is there already: a finished run, or anybody's encoder as a file."""

import dataclasses
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.config import AttackJob, Config, EncoderConfig
from cpgan_ray.config.folders import Target
from cpgan_ray.data import Dataset, label_frequencies, load
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.data.registry import RESIZED
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import Encoder, encode_all, open_encoder, open_program
from cpgan_ray.evaluation.encoders.sandbox import ProgramError, SandboxError
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, trained_against
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.report.paired import read_errors
from cpgan_ray.evaluation.report.report import degenerate
from cpgan_ray.evaluation.tournament import metrics
from cpgan_ray.pipelines.evaluate import attacks_on_ray, evaluate_codes
from cpgan_ray.pipelines.output_folder import ensure_unused, output_folder
from cpgan_ray.pipelines.train import about, check_undefended, headline
from cpgan_ray.tracking import STORE, Tracker, ensure_trackable, read_curves


@dataclass(frozen=True)
class GateResult:
    """What the job prints, and why the gate does not let it pass, if so."""

    summary: dict[str, Any]
    failures: tuple[str, ...]


def attack(target: Target, job: AttackJob) -> GateResult:
    """The tournament on a target; leaves `report/` in the output folder and a run in MLflow, below the attacked one if it is there.

    Raises: InputError for anything the user can mend, before anything is written to the output folder.
    """
    started = time.perf_counter()
    if attacks_on_ray(job.runtime):
        ensure_unchanged()
    set_up_process(threads=job.runtime.threads or available_cpus())
    beside = target.folder if target.kept else None
    place = job.output or (beside or Path("outputs").resolve()) / "attack"
    if job.output is not None:
        ensure_unused(job.output, resume=False)  # now, not after the codes of a whole data set
    encoder = open_encoder(target.program, job.encoder)
    config = attacked_config(target, job, encoder, place)
    ensure_trackable(config.tracking, place)
    check_undefended(config)
    other = read_errors(job.against) if job.against is not None else None
    dataset = load(config)
    if other is not None and not np.array_equal(other.identity, dataset.test.identity):
        raise InputError(f"{job.against} was scored on pictures of other people: give a report on the same prepared store")
    attack_specs(config.attacks, dataset)
    projection(dataset, components=DEFAULT_COMPONENTS)
    codes = encode_all(encoder, dataset)
    encoder.close()
    config = dataclasses.replace(config, k=codes["test"].shape[1])
    logits = head_logits(target, codes, dataset, config, job.encoder)
    curves = read_curves(target.folder / "metrics.jsonl") if target.folder else {}
    if attacks_on_ray(config.runtime):
        from cpgan_ray.distributed.cluster import connect

        connect(config.runtime)
    tags = {"attacked": target.run_id or str(target.program)}
    tracked = partial(Tracker, dataset=dataset, tags=tags, parent=target.run_id)
    context = EvaluationContext(dataset, codes, config.attacks, config.seed, trained_against(config), config.data.labels)
    description = (about(config) if target.config else about_encoder(config, encoder)) | {"attacked": encoder.about()}
    with output_folder(job.output, "attack", parent=beside) as output:
        config = dataclasses.replace(config, output=output)
        with defer_signals() as stop, tracked(config, output) as tracker, stop.allowed():
            evaluated = evaluate_codes(
                context,
                runtime=config.runtime,
                logits=logits,
                about=description,
                curves=curves,
                undefended=config.tracking.undefended,
                against=job.against,
            )
            utility = {f"utility/{name}": value for name, value in evaluated.report["utility"].items()}
            seconds = {"time/total_s": time.perf_counter() - started}
            tracker.log(metrics(evaluated.result) | utility | seconds, step=0)
            tracker.tag("strongest.attack", evaluated.result.strongest.spec.name)
            evaluated.write(output / "report")
            tracker.log_folder(output / "report", "report")
            if why := degenerate(evaluated.report):
                tracker.tag("code.degenerate", why[0])
            stop.complete()
    failures = gate_failures(evaluated.report, job.fail_above)
    summary = {"run_id": tracker.run_id, "output": str(output), **headline(evaluated.report)}
    summary |= {"passed": not failures, "seconds": round(time.perf_counter() - started, 1)}
    return GateResult(summary, failures)


def gate_failures(report: dict[str, Any], fail_above: float | None) -> tuple[str, ...]:
    """Why a report does not pass the gate at this R2; nothing without a gate."""
    if fail_above is None:
        return ()
    r2 = report["privacy"]["strongest"]["r2"]
    return (*degenerate(report), *([f"strongest R2 {r2:.4f} is above {fail_above}"] if r2 > fail_above else []))


def attacked_config(target: Target, job: AttackJob, encoder: Encoder, output: Path) -> Config:
    """The configuration under which the target is attacked: the run's own, changed as the job says.

    Raises: InputError where the pictures cannot have the size that the encoder takes.
    """
    height, width, _ = encoder.image_shape
    name = job.dataset or job.data.dataset
    if height != width and name in RESIZED:
        raise InputError(f"encoder {encoder.path} takes pictures of {height} x {width}: the stores hold square ones")
    attacks = job.attacks
    if job.variant != "both":
        attacks = dataclasses.replace(attacks, variants=(job.variant,))
    data = dataclasses.replace(job.data, dataset=name, **({"image_size": height} if name in RESIZED else {}))
    beside = target.folder if target.kept else None
    base = target.config or Config(preset="encoder", adversaries={})
    uri = job.tracking.uri or (
        None if os.environ.get("MLFLOW_TRACKING_URI") or not beside else f"sqlite:///{beside.parent / STORE}"
    )
    tracking = dataclasses.replace(job.tracking, uri=uri, run_name=job.tracking.run_name or f"attack on {target.name}")
    return dataclasses.replace(
        base,
        data=data,
        data_dir=job.data_dir,
        cache_dir=job.cache_dir,
        shared_cache=job.shared_cache,
        output=output,
        seed=job.seed,
        skip_corrupt=job.skip_corrupt,
        trust=job.trust,
        attacks=attacks,
        runtime=job.runtime,
        tracking=tracking,
    )


def head_logits(
    target: Target, codes: Codes, dataset: Dataset, config: Config, settings: EncoderConfig | None = None
) -> dict[str, np.ndarray]:
    """What the run's own utility head answers to the codes of `test` and `val`, (N, L or C) each; nothing for an encoder that came
    alone, or on data that have other labels.

    Raises: InputError where the head is damaged, or another encoder's.
    """
    if target.folder is None or not (path := target.folder / "utility_head.pt2").is_file():
        return {}
    head = open_program(path, what="utility head", settings=settings or EncoderConfig())

    def answers(z: np.ndarray) -> np.ndarray:
        (logits,) = head.run(z).values()
        if logits.ndim != 2 or len(logits) != len(z) or logits.dtype != np.float32:
            raise ProgramError(f"answers of shape {logits.shape}")
        return logits

    try:
        logits = {
            split: np.concatenate([answers(codes[split][start : start + 1000]) for start in range(0, len(codes[split]), 1000)])
            for split in ("test", "val")
        }
    except (ValueError, RuntimeError) as e:  # of its operations, its limits or its shapes
        why = str(e) if isinstance(e, ProgramError | SandboxError) else type(e).__name__
        raise InputError(f"utility head {path} fails on the codes ({why}): attack the privatizer.pt2 alone") from e
    finally:
        head.close()
    return logits if logits["test"].shape[1] == len(label_frequencies(dataset, config.data.labels)) else {}


def about_encoder(config: Config, encoder: Encoder) -> dict[str, Any]:
    """What a report says of an encoder of which nothing but the file is known."""
    return about(config) | {
        "name": encoder.path.name,
        "privacy_weight": None,
        "settings": {name: value for name, value in about(config)["settings"].items() if name in ("data", "attacks")},
    }
