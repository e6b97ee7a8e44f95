"""Make the bundle of a run, measure it again, write it, and register it."""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.config import Config, ExportJob, to_json
from cpgan_ray.config.folders.runs import store_of
from cpgan_ray.config.folders.targets import Target
from cpgan_ray.data import Dataset, load, task_of
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.deploy.bundle import BUNDLE_REPORT, CODEC, HEAD, MANIFEST, PRIVATIZER, RUN_REPORT
from cpgan_ray.deploy.codec import Codec
from cpgan_ray.deploy.manifest import FORMAT, Label
from cpgan_ray.deploy.writing import as_bytes, with_manifest, write_folder, write_zip
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import EvaluationContext, attack_specs, trained_against
from cpgan_ray.pipelines.attack import head_logits
from cpgan_ray.pipelines.evaluate import attacks_on_ray, evaluate_codes
from cpgan_ray.pipelines.export.codes import byte_sizes, changed_decisions, code_changes, encode, encode_split, received
from cpgan_ray.pipelines.export.description import labels_of, preprocessing_of, versions
from cpgan_ray.pipelines.export.eve import Demonstration, demonstration, twin_target
from cpgan_ray.pipelines.export.measured import failures_of, numbers_of, quick_attacks, read_report
from cpgan_ray.pipelines.export.models import ensure_own, write_models
from cpgan_ray.pipelines.output_folder import output_folder
from cpgan_ray.pipelines.train import describe_run
from cpgan_ray.tracking import STORE, register, registration


@dataclass(frozen=True)
class ExportOutcome:
    """The summary that the job prints, and the reasons why nothing was exported; none if it was."""

    summary: dict[str, Any]
    failures: tuple[str, ...]


def export(target: Target, job: ExportJob) -> ExportOutcome:
    """Make the bundle of a run. It is written, and registered, only if it measures up to the run.

    Raises: InputError for anything the user can fix, before anything is written.
    """
    started = time.perf_counter()
    assert target.folder is not None and target.config is not None
    if attacks_on_ray(job.runtime):
        ensure_unchanged()
    set_up_process(threads=job.runtime.threads or available_cpus())
    run_folder = target.folder if target.kept else None
    ensure_free(job)
    ensure_own(target, trust=job.trust)
    run_report = read_report(target.folder)
    twin = twin_target(job, target)
    config = exported_config(target.config, job)
    entry = None
    if job.register is not None:
        uri = f"sqlite:///{run_folder.parent / STORE}" if run_folder else None
        entry = registration(target.run_id, tracking=job.tracking, default_uri=uri, name=job.register, alias=job.alias)
    measured = measure(target, config, job, twin=twin)
    files = with_manifest(manifest_values(measured, target, config, job, run_report), contents_of(measured, run_report))
    failures = failures_of(run_report, measured.report)
    numbers = numbers_of(measured.report)
    summary: dict[str, Any] = {
        "output": None,
        "zip": None,
        "digest": hashlib.sha256(files[MANIFEST]).hexdigest(),
        "weights": job.weights,
        "accuracy": round(numbers["accuracy"], 4),
        "strongest": {key: round(v, 4) if isinstance(v, float) else v for key, v in numbers["strongest"].items()},
        "bytes": measured.sizes,
        "changed_numbers": measured.changes["changed_numbers"],
        "registered": None,
    }
    if not failures:
        with defer_signals() as stop:
            with output_folder(job.output, "bundle", parent=run_folder) as output:
                write_folder(output, files)
                if job.zip:
                    write_zip(zip_of(output), files)
            summary |= {"output": str(output), "zip": str(zip_of(output)) if job.zip else None}
            if entry is not None:
                tags = registry_tags(numbers, measured, job)
                summary["registered"] = register(entry, output, digest=summary["digest"], tags=tags)
            stop.complete()
    return ExportOutcome(summary | {"passed": not failures, "seconds": round(time.perf_counter() - started, 1)}, failures)


@dataclass(frozen=True, eq=False)
class Measured:
    """What an export has made and measured."""

    models: dict[str, bytes]
    codec: Codec
    dataset: Dataset
    labels: tuple[Label, ...]
    report: dict[str, Any]
    sizes: dict[str, Any]
    changes: dict[str, float]
    demonstration: Demonstration


def measure(target: Target, config: Config, job: ExportJob, *, twin: Target | None) -> Measured:
    """Convert the programs of a run, and measure everything on the codes that arrive at Bob.

    config: of the run, with the attacks of the bundle; twin: the undefended twin, with `--eve`.

    Raises: InputError if a program cannot be converted, or the data are not those of the run.
    """
    assert target.folder is not None and target.program is not None
    with tempfile.TemporaryDirectory(prefix="cpgan-bundle-") as folder:
        models = write_models(target, Path(folder), weights=job.weights)
        dataset = load(config)
        if (first_store := store_of(target.folder)) not in (None, dataset.folder.name):
            raise InputError(
                f"the run in {target.folder} was made on prepared store {first_store}, but these data give {dataset.folder.name}: "
                "correct --data-dir"
            )
        attack_specs(config.attacks, dataset)
        projection(dataset, components=DEFAULT_COMPONENTS)
        codec, codes = encode(models[PRIVATIZER], dataset, config.attacks, step=config.privatizer.quantization_step)
        original = encode_split(target.program, dataset)
        staged = dataclasses.replace(target, program=models[PRIVATIZER], head=models[HEAD])
        logits = head_logits(staged, codes, dataset, config)
        if not logits:
            raise InputError(f"utility head {target.head} has other outputs than these data have labels: correct --data-dir")
        of_original = head_logits(staged, {"test": received(original, codec)}, dataset, config)
        contents = {name: path.read_bytes() for name, path in models.items()}
    if attacks_on_ray(config.runtime):
        from cpgan_ray.distributed.cluster import connect

        connect(config.runtime)
    context = EvaluationContext(dataset, codes, config.attacks, config.seed, trained_against(config), config.data.labels)
    evaluated = evaluate_codes(context, runtime=config.runtime, logits=logits, description=describe_run(config), curves={})
    labels = labels_of(task_of(dataset, config.data.labels))
    changes = code_changes(codes["test"], original, codec)
    changes |= {"changed_decisions": changed_decisions(logits["test"], of_original["test"], labels)}
    eve = Demonstration({}, {})
    if job.eve:
        eve = demonstration(evaluated.result, context, config, twin=twin, weights=job.weights)
    return Measured(contents, codec, dataset, labels, evaluated.report, byte_sizes(codes["test"], codec), changes, eve)


def contents_of(measured: Measured, run_report: Mapping[str, Any]) -> dict[str, bytes]:
    """All files of a bundle but the manifest."""
    codec = {CODEC: as_bytes(measured.codec.as_json())}
    return (
        measured.models
        | measured.demonstration.files
        | codec
        | {RUN_REPORT: as_bytes(run_report), BUNDLE_REPORT: as_bytes(measured.report)}
    )


def manifest_values(
    measured: Measured, target: Target, config: Config, job: ExportJob, run_report: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest, without the list of files: docs/wire-format.md."""
    changes = dict(measured.changes)
    return {
        "format": FORMAT,
        "name": config.preset,
        "k": measured.codec.k,
        "weights": job.weights,
        "preprocessing": preprocessing_of(config, measured.dataset).as_json(),
        "labels": [label.as_json() for label in measured.labels],
        "bytes": measured.sizes | {"clipped": changes.pop("clipped")},
        "run": {"id": target.run_id, "privacy_weight": config.privacy_weight} | numbers_of(run_report),
        "bundle": numbers_of(measured.report) | changes,
        **measured.demonstration.manifest,
        "data": to_json(config.data),
        "versions": versions(),
    }


def exported_config(run: Config, job: ExportJob) -> Config:
    """The configuration of a run, with the places and the attacks of the export."""
    same = ("data_dir", "cache_dir", "shared_cache", "trust", "runtime", "tracking")
    tracking = dataclasses.replace(job.tracking, undefended=None)
    changes = {name: getattr(job, name) for name in same} | {"tracking": tracking}
    return dataclasses.replace(run, **changes, attacks=run.attacks if job.full else quick_attacks(run.attacks))


def ensure_free(job: ExportJob) -> None:
    """Raises: InputError if a file of the bundle would be written next to other files, or replace one."""
    if job.output is None:
        return
    if job.output.is_dir() and any(job.output.iterdir()):
        raise InputError(f"output folder {job.output} is not empty: give another --output, because a bundle has no other files")
    if job.output.exists() and not job.output.is_dir():
        raise InputError(f"output {job.output} is not a folder: give another --output")
    if job.zip and zip_of(job.output).exists():
        raise InputError(f"{zip_of(job.output)} exists: remove it, or give another --output")


def zip_of(output: Path) -> Path:
    return output.with_name(output.name + ".zip")


def registry_tags(numbers: Mapping[str, Any], measured: Measured, job: ExportJob) -> dict[str, str]:
    """What the registry shows of a version."""
    strongest = numbers["strongest"]
    shown = {
        "utility/accuracy": numbers["accuracy"],
        "privacy/strongest_r2": strongest["r2"],
        "privacy/strongest_r2_low": strongest["low"],
        "privacy/strongest_r2_high": strongest["high"],
    }
    shown |= {f"code/bytes_{name}": value for name, value in measured.sizes.items()}
    texts = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in shown.items()}
    return texts | {"strongest.attack": strongest["attack"], "bundle.weights": job.weights}
