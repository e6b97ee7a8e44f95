"""The job of jobs/attack.py: attack a finished run, or any encoder in a file, behind a command or at a URL."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.config import AttackJob, Config, EncoderConfig, PrivatizerConfig
from cpgan_ray.config.data import MAX_SIDE, MIN_SIDE
from cpgan_ray.config.folders.targets import Target
from cpgan_ray.data import Dataset, load, task_of
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.data.registry import RESIZED
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.evaluation.client import client_cost, cost_metrics
from cpgan_ray.evaluation.encoders import heads
from cpgan_ray.evaluation.encoders.encoder import Encoder, encode_all, open_black_box, open_encoder
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, trained_against
from cpgan_ray.evaluation.generative.selection import Encode
from cpgan_ray.evaluation.identity.judges import check_judge
from cpgan_ray.evaluation.late_tasks import late_metrics
from cpgan_ray.evaluation.noisy import noisy_codes
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.report.paired import read_errors
from cpgan_ray.evaluation.report.report import degeneracy_reasons
from cpgan_ray.evaluation.tournament_numbers import metrics
from cpgan_ray.pipelines.evaluate import attacks_on_ray, client_of_run, evaluate_codes
from cpgan_ray.pipelines.fit_to_data import ensure_enough
from cpgan_ray.pipelines.gates import ensure_measurable, gate_failures
from cpgan_ray.pipelines.late_labels import check_late_labels, with_attacked_task
from cpgan_ray.pipelines.other_data import encode_other, load_other
from cpgan_ray.pipelines.output_folder import ensure_unused, output_folder
from cpgan_ray.pipelines.parts import pinned_attacks, pinned_data
from cpgan_ray.pipelines.train import check_undefended, describe_run, headline
from cpgan_ray.tracking import STORE, Tracker, ensure_trackable, read_curves


@dataclass(frozen=True)
class GateResult:
    """The summary that the job prints, and the reasons why the target fails the gate; no reasons if it passes."""

    summary: dict[str, Any]
    failures: tuple[str, ...]


def attack(target: Target, job: AttackJob) -> GateResult:
    """Run the tournament on a target. Writes `report/` to the output folder and logs a run to MLflow, as a child of the attacked
    run if that is tracked there.

    Raises: InputError for anything the user can fix, before anything is written to the output folder.
    """
    started = time.perf_counter()
    if attacks_on_ray(job.runtime):
        ensure_unchanged()
    set_up_process(threads=job.runtime.threads or available_cpus())
    run_folder = target.folder if target.kept else None
    planned_output = job.output or (run_folder or Path("outputs").resolve()) / "attack"
    if job.output is not None:
        ensure_unused(job.output, resume=False)  # before a whole data set is encoded
    with contextlib.closing(open_target(target, job)) as encoder:
        encoder.check(job.data.size)
        config = with_attacked_task(attacked_config(target, job, encoder, planned_output), target)
        ensure_trackable(config.tracking, planned_output)
        check_undefended(config)
        other_errors = read_errors(job.against) if job.against is not None else None
        dataset = load(config)
        check_late_labels(config, dataset)
        if config.data.dataset == "pictures":
            ensure_enough(dataset)
        if job.final:
            dataset = dataset.open_final()
        if other_errors is not None and not np.array_equal(other_errors.identity, dataset.test.identity):
            raise InputError(f"{job.against} was scored on pictures of other people: give a report on the same prepared store")
        ensure_measurable(job, dataset)
        release = release_of(target)
        other = load_other(config, dataset, noise=release.noise if release else 0.0)
        attack_specs(config.attacks, dataset, other=other)
        check_judge(config.attacks, dataset)
        projection(dataset, components=DEFAULT_COMPONENTS)
        limit = None if target.config else job.encoder.max_numbers or None
        encoded = None if other is None else encode_other(encoder, other, config, max_numbers=limit)
        codes = encode_all(encoder, dataset, config.attacks, max_numbers=limit)
    codes, channel = released_codes(target, codes, dataset, seed=config.seed, stochastic=job.encoder.stochastic)
    config = dataclasses.replace(config, k=codes["test"].shape[1])
    logits = head_logits(target, codes, dataset, config, job.encoder)
    curves = read_curves(target.folder / "metrics.jsonl") if target.folder else {}
    if attacks_on_ray(config.runtime):
        from cpgan_ray.distributed.cluster import connect

        connect(config.runtime)
    tags = {"attacked": target.run_id or str(target.program or target.name)}
    new_tracker = partial(Tracker, dataset=dataset, tags=tags, parent=target.run_id)
    context = EvaluationContext(
        dataset,
        codes,
        config.attacks,
        config.seed,
        trained_against(config),
        config.data.labels,
        channel=channel,
        other=encoded,
        late_labels=config.data.late_labels,
    )
    description = (describe_run(config) if target.config else describe_encoder(config, encoder)) | {
        "attacked": encoder.description(),
        "client": client_of_run(config, codes, dataset)
        if target.config and target.own  # another user's configuration may name code
        else asdict(client_cost(None, codes["train"], image_shape=dataset.image_shape)),
    }
    with output_folder(job.output, "attack", parent=run_folder) as output:
        config = dataclasses.replace(config, output=output)
        again = reopened(target, job, needed=config.attacks.generative and not encoder.reduced_to)
        with defer_signals() as stop, new_tracker(config, output) as tracker, stop.allowed(), again as encode:
            if job.final:
                description["final"] = {"opening": tracker.count_opening(dataset.digest)}
            evaluated = evaluate_codes(
                context,
                runtime=config.runtime,
                logits=logits,
                description=description,
                curves=curves,
                undefended=config.tracking.undefended,
                against=job.against,
                encode=encode,
            )
            utility = {f"utility/{name}": value for name, value in evaluated.report["utility"].items()}
            seconds = {"time/total_s": time.perf_counter() - started}
            late = late_metrics(evaluated.report)
            tracker.log(metrics(evaluated.result) | utility | late | cost_metrics(evaluated.report) | seconds, step=0)
            tracker.tag("strongest.attack", evaluated.result.strongest.spec.name)
            evaluated.write(output / "report")
            tracker.log_folder(output / "report", "report")
            if reasons := degeneracy_reasons(evaluated.report):
                tracker.tag("code.degenerate", reasons[0])
            stop.complete()
    failures = gate_failures(evaluated.report, job)
    summary = {"run_id": tracker.run_id, "output": str(output), **headline(evaluated.report)}
    summary |= {"split": "final" if job.final else "test"}
    summary |= {"passed": not failures, "seconds": round(time.perf_counter() - started, 1)}
    return GateResult(summary, failures)


def release_of(target: Target) -> PrivatizerConfig | None:
    """How a run or a bundle releases its codes; None if that is not known."""
    return target.config.privatizer if target.config else target.release


def released_codes(target: Target, codes: Codes, dataset: Dataset, *, seed: int, stochastic: bool = False) -> tuple[Codes, Channel]:
    """The codes that the target releases, from those that its encoder returns; and how they are released. The noise of a stochastic
    release is no part of an exported program.

    stochastic: whether an encoder that is no run is declared to draw random numbers.
    """
    release = release_of(target)
    if release is None:
        return codes, Channel(random=stochastic)
    if not release.noise:
        return codes, Channel.of_privatizer(release, clean=None)
    noisy = noisy_codes(codes, dataset, noise=release.noise, step=release.quantization_step, seed=seed)
    return noisy, Channel.of_privatizer(release, clean=codes["test"])


def open_target(target: Target, job: AttackJob) -> Encoder:
    """Open the encoder that is attacked.

    Raises: InputError if it cannot be opened.
    """
    if target.program is None:
        return open_black_box(target.black_box or "", job.encoder)
    own = release_of(target) is not None  # channels come first, for pictures and for signals
    return open_encoder(target.program, dataclasses.replace(job.encoder, layout="nchw") if own else job.encoder)


@contextlib.contextmanager
def reopened(target: Target, job: AttackJob, *, needed: bool) -> Iterator[Encode | None]:
    """The encoder again, so that the generative attack can encode its draws; None if it is not needed, or is a black box, of which
    the report says how many pictures it has encoded."""
    if not needed or target.program is None:
        yield None
        return
    with contextlib.closing(open_target(target, job)) as encoder:
        encoder.check(job.data.size)
        yield encoder.encode


def attacked_config(target: Target, job: AttackJob, encoder: Encoder, output: Path) -> Config:
    """The configuration of the attack: that of the run, if the target is one, with the settings of the job, and pictures of the
    size that the encoder takes.

    Raises: InputError if no store can have pictures of this size.
    """
    job = dataclasses.replace(job, attacks=pinned_attacks(job.attacks))
    name = job.dataset or job.data.dataset
    size: dict[str, int] = {}
    if encoder.entry.size is not None and name in RESIZED:
        height, width = encoder.entry.size
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
            raise InputError(
                f"{encoder.subject} takes pictures of {height} x {width}, but a store has sides of {MIN_SIDE} to {MAX_SIDE} "
                "pixels: set --encoder.layout if these are not height and width, or export it with another size"
            )
        size = {"image_size": height, "image_width": 0 if width == height else width}
    attacks = job.attacks
    if job.variant != "both":
        attacks = dataclasses.replace(attacks, variants=(job.variant,))
    data = pinned_data(dataclasses.replace(job.data, dataset=name, **size))
    run_folder = target.folder if target.kept else None
    base = target.config or Config(preset="encoder", adversaries={})
    uri = job.tracking.uri or (
        None if os.environ.get("MLFLOW_TRACKING_URI") or not run_folder else f"sqlite:///{run_folder.parent / STORE}"
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
    """Logits of the target's own utility head on the codes, (N, num_logits) of each set; empty for an encoder without a head, or if
    the data have other labels or no answers.

    Raises: InputError if the head is damaged, or belongs to another encoder.
    """
    if (path := target.head) is None:
        return {}
    logits = heads.head_logits(path, codes, settings or EncoderConfig(), remedy="attack only the file of the privatizer")
    task = task_of(dataset, config.data.labels)
    answered = all((task.answers(dataset.splits[split]) != MISSING).any() for split in ("test", "val"))
    return logits if answered and logits["test"].shape[1] == task.num_logits else {}


def describe_encoder(config: Config, encoder: Encoder) -> dict[str, Any]:
    """The report's description of an encoder that is no run."""
    run = describe_run(config)
    return run | {
        "name": encoder.description()["file"],
        "privacy_weight": None,
        "settings": {name: value for name, value in run["settings"].items() if name in ("data", "attacks")},
    }
