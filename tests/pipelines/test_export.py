"""Tests of `jobs/export.py`: the bundle of a finished run, the gate that it passes, the registry, and attacks on bundles."""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from cpgan_ray.cli import find_target, parse_export
from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.config import (
    AttackJob,
    Config,
    DataConfig,
    ExportJob,
    PrivatizerConfig,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    UtilityConfig,
)
from cpgan_ray.config.folders.targets import export_job_of
from cpgan_ray.config.presets import preset
from cpgan_ray.data import load
from cpgan_ray.deploy.bundle import (
    BUNDLE_REPORT,
    EVE,
    PRIVATIZER,
    RUN_REPORT,
    TWIN_EVE,
    TWIN_PRIVATIZER,
    Bundle,
    read_bundle,
)
from cpgan_ray.deploy.client import Client
from cpgan_ray.deploy.manifest import Preprocessing
from cpgan_ray.deploy.message import read_message
from cpgan_ray.deploy.sessions import open_session
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import open_encoder
from cpgan_ray.pipelines.attack import open_target
from cpgan_ray.pipelines.export import export
from cpgan_ray.pipelines.export.measured import failures_of, read_report
from cpgan_ray.pipelines.train import train
from cpgan_ray.tracking import fetch_bundle, fetch_run, registered_run
from tests.attacked import ATTACKS, SIDE, attack_flags
from tests.process import left_as_it_was

JOBS = Path(__file__).parents[2] / "jobs"
STEP = 0.5


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mlflow_template: Path) -> Path:
    """The folder of a finished run with rounded codes, whose models MLflow has."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return trained(folder / "run", cache_dir, privacy_weight=0.01)


@pytest.fixture(scope="module")
def twin_folder(run_folder: Path, cache_dir: Path) -> Path:
    """The folder of its undefended twin."""
    return trained(run_folder.parent / "twin", cache_dir, privacy_weight=0.0)


def trained(output: Path, cache_dir: Path, *, privacy_weight: float) -> Path:
    config = Config(
        preset="tiny",
        k=6,
        epochs=3,
        batch_size=80,
        privacy_weight=privacy_weight,
        output=output,
        cache_dir=cache_dir,
        data=DataConfig(
            image_size=SIDE, num_identities=200, pictures_per_identity=2, final_fraction=0.0, labels=("Male", "Smiling")
        ),
        privatizer=PrivatizerConfig(width=4, depth=2, quantization_step=STEP, learning_rate=1e-2),
        utility=UtilityConfig(hidden=16, learning_rate=1e-2),
        adversaries={"ridge": RidgeConfig(memory_batches=1, components=8)},
        runtime=RuntimeConfig(backend="local", threads=1),
        attacks=ATTACKS,
        tracking=TrackingConfig(system_metrics=False),
    )
    with left_as_it_was(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, which would keep MLflow from logging the models
        train(config)
    return output


def export_run(run: Path, output: Path | None, **settings: Any) -> Any:
    target = find_target(str(run), fetch=Path)
    with left_as_it_was():
        return export(target, dataclasses.replace(export_job_of(target), output=output, **settings))


@pytest.fixture(scope="module")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    output = tmp_path_factory.mktemp("bundles") / "bundle"
    outcome = export_run(run_folder, output, zip=True)
    assert outcome.failures == ()
    return read_bundle(output), outcome.summary


@pytest.fixture
def job(in_process: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return partial(in_process, JOBS / "export.py")


def test_bundle_has_the_numbers_that_its_codes_have(run_folder, exported, cache_dir):
    bundle, summary = exported
    dataset = load(find_target(str(run_folder), fetch=Path).config)
    pictures = dataset.test.take(np.arange(40)).transpose(0, 3, 1, 2)
    original = open_encoder(run_folder / "privatizer.pt2").encode(pictures)
    client = Client(bundle)
    sent = read_message(client.encode(list(pictures)), bundle.codec, digest=bundle.digest)
    assert isinstance(bundle.codec, LevelCodec)
    assert bundle.codec.step == STEP
    assert np.mean(sent != bundle.codec.codes(bundle.codec.levels(original))) < 0.01  # float16 weights
    values = bundle.manifest.values
    assert summary["digest"] == bundle.digest
    assert values["bytes"]["plain"] == bundle.codec.plain_bytes
    assert values["bytes"]["range_min"] <= values["bytes"]["range_mean"] <= values["bytes"]["range_max"]
    assert values["bundle"]["changed_numbers"] < 0.01
    assert [label.as_json() for label in bundle.manifest.labels] == [
        {"name": "Male", "values": ["0", "1"], "logits": [0, 1]},
        {"name": "Smiling", "values": ["0", "1"], "logits": [1, 2]},
    ]
    assert bundle.manifest.preprocessing == Preprocessing(
        kind="picture", channels=3, height=SIDE, width=SIDE, crop=1.0, dtype="uint8"
    )
    report = json.loads(bundle.files[BUNDLE_REPORT])
    assert report["utility"]["accuracy"] == values["bundle"]["accuracy"]
    assert {row["name"] for row in report["attacks"]} == {"ridge"}
    assert json.loads(bundle.files[RUN_REPORT]) == json.loads((run_folder / "report" / "report.json").read_text())
    assert read_bundle(summary["zip"]).digest == bundle.digest


def test_bundle_contains_no_picture_and_no_path(run_folder, exported):
    bundle, _ = exported
    for name, content in (*bundle.files.items(), ("manifest.json", bundle.text)):
        for word in (b"\x89PNG", b"JFIF", b"data:image", str(run_folder).encode(), str(run_folder.parent).encode()):
            assert word not in content, name


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_weights_of_a_bundle_are_stored_as_requested(run_folder, exported, tmp_path, weights):
    outcome = export_run(run_folder, tmp_path / "bundle", weights=weights)
    sizes = [len(bundle.files["privatizer.onnx"]) for bundle in (read_bundle(tmp_path / "bundle"), exported[0])]
    assert (sizes[0] > sizes[1]) == (weights == "float32")
    assert outcome.summary["weights"] == weights
    if weights == "float32":
        assert outcome.summary["changed_numbers"] == 0


# ------------------------------------------------------------------------------------------------------------------- the gate


def changed_report(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run whose report says something else."""
    shutil.copytree(run, folder)
    path = folder / "report" / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    return folder


def better_accuracy(report: dict[str, Any]) -> None:
    report["utility"] |= {"accuracy": 0.99, "accuracy_low": 0.98, "accuracy_high": 1.0}


def smaller_r2(report: dict[str, Any]) -> None:
    for row in (*report["attacks"], report["privacy"]["strongest"]):
        row |= {"r2": 0.001, "low": 0.0, "high": 0.002}


@pytest.mark.parametrize(("change", "reason"), [(better_accuracy, "accuracy 0."), (smaller_r2, "R2 0.")])
def test_bundle_that_is_worse_than_its_run_is_not_written(run_folder, tmp_path, job, change, reason):
    run = changed_report(run_folder, tmp_path / "run", change)
    status, out, err = job(run, "--output", tmp_path / "bundle", "--zip")
    assert status == 1
    assert f"failed: {reason}" in err
    assert json.loads(out.splitlines()[-1])["passed"] is False
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "bundle.zip").exists()


def test_failures_compare_with_the_same_attack_of_the_run(run_folder):
    report = read_report(run_folder)
    assert failures_of(report, report) == ()
    row = next(row for row in report["attacks"] if row["name"] == "ridge")
    only_ridge = report | {"attacks": [row], "privacy": {"strongest": {"attack": "ridge", "r2": row["high"] + 0.01}}}
    (reason,) = failures_of(report | {"attacks": [row, row | {"name": "stack", "r2": 0.9, "high": 0.95}]}, only_ridge)
    assert "interval of the run's ridge ends" in reason


# ---------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("privatizer.pt2", b"damaged", "privatizer.pt2 was written by another user"),
        ("report/report.json", b"{}", "report.json is damaged"),
        ("report/report.json", None, "has no report"),
        ("utility_head.pt2", None, "has no utility_head.pt2"),
        ("config.json", None, "has no config.json"),
    ],
)
def test_run_that_is_incomplete_or_damaged_is_refused(run_folder, tmp_path, job, file, content, reason):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    if content is not None:
        (tmp_path / "run" / file).write_bytes(content)
    status, _, err = job(tmp_path / "run", "--output", tmp_path / "bundle")
    assert (status, (tmp_path / "bundle").exists()) == (2, False)
    assert reason in err.splitlines()[-1]


def test_program_that_is_damaged_is_refused_even_if_trusted(run_folder, tmp_path, job):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "privatizer.pt2").write_bytes(b"damaged")
    status, _, err = job(tmp_path / "run", "--trust", "--output", tmp_path / "bundle")
    assert status == 2
    assert "privatizer.pt2 is damaged" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--alias", "champion"], "add --register NAME"),
        (["--register", "a/b"], "register is 'a/b'; it must be letters"),
        (["--register", "x", "--alias", "v3"], "MLflow reserves"),
        (["--weights", "int4"], "--weights is"),
        (["--output", "OCCUPIED"], "is not empty"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(run_folder, tmp_path, job, flags, reason):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    status, _, err = job(run_folder, *[str(tmp_path / "full") if flag == "OCCUPIED" else flag for flag in flags])
    assert status == 2
    assert reason in err.splitlines()[-1]


def test_export_without_a_run_or_of_a_bundle_is_refused(exported, job, tmp_path):
    for arguments, reason in (
        ((), "nothing to export"),
        (("--zip",), "nothing to export"),
        ((exported[0].path,), "is not a run"),
        ((tmp_path / "nowhere",), "is neither"),
    ):
        status, _, err = job(*arguments)
        assert status == 2
        assert reason in err.splitlines()[-1]


# -------------------------------------------------------------------------------------------------------------------- registry


def test_registered_versions_lead_to_the_run_and_its_bundle(run_folder, tmp_path, monkeypatch):
    uri = f"sqlite:///{run_folder.parent / 'mlflow.db'}"
    outcome = export_run(run_folder, tmp_path / "bundle", register="faces", alias="champion")
    assert outcome.summary["registered"] == {"privatizer": "faces-privatizer/1", "utility_head": "faces-utility_head/1"}
    client = mlflow.MlflowClient(uri)
    for part in ("privatizer", "utility_head"):
        version = client.get_model_version_by_alias(f"faces-{part}", "champion")
        assert version.tags["bundle.digest"] == outcome.summary["digest"]
        assert float(version.tags["utility/accuracy"]) == pytest.approx(outcome.summary["accuracy"], abs=1e-4)
        assert float(version.tags["privacy/strongest_r2"]) == pytest.approx(outcome.summary["strongest"]["r2"], abs=1e-4)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("models:/faces@champion", "models:/faces/1", "models:/faces-utility_head@champion"):
        assert read_bundle(fetch_bundle(name)).digest == outcome.summary["digest"]
    with left_as_it_was(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(uri)
        head = mlflow.pytorch.load_model("models:/faces-utility_head@champion")
    z = torch.zeros(3, 6)
    assert torch.equal(head(z), torch.export.load(run_folder / "utility_head.pt2").module()(z))
    target, _ = parse_export(["models:/faces@champion", "--trust"], description="", fetch=fetch_run, resolve=registered_run)
    assert target.run_id == json.loads((run_folder / "config.json").read_text())["run_id"]
    again = export(target, dataclasses.replace(export_job_of(target), trust=True, output=tmp_path / "again"))
    assert again.failures == ()
    assert read_bundle(tmp_path / "again").codec == read_bundle(tmp_path / "bundle").codec


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("models:/absent@champion", "has no version"),
        ("models:/faces", "is not models:/NAME@ALIAS"),
        ("models:/../x@y", "is not models"),
    ],
)
def test_registered_model_that_does_not_exist_is_refused(mlflow_uri, monkeypatch, name, reason):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    for look_up in (registered_run, fetch_bundle):
        with pytest.raises(InputError, match=reason):
            look_up(name)


def test_registration_is_checked_before_the_work(run_folder, tmp_path, mlflow_uri):
    with pytest.raises(InputError, match="to register"):
        export_run(run_folder, tmp_path / "bundle", register="x", tracking=TrackingConfig(uri=mlflow_uri))
    assert not (tmp_path / "bundle").exists()


# ------------------------------------------------------------------------------------------------------------ attacks on bundles


@pytest.mark.parametrize("packed", [False, True])
def test_attack_on_a_bundle_finds_what_its_report_says(exported, in_process, tmp_path, mlflow_uri, cache_dir, packed):
    bundle, summary = exported
    path = summary["zip"] if packed else bundle.path
    flags = [*attack_flags(mlflow_uri), "--cache-dir", str(cache_dir), "--output", str(tmp_path / "out")]
    status, out, err = in_process(JOBS / "attack.py", path, *flags)
    assert status == 0, err
    attacked = json.loads(out.splitlines()[-1])["strongest"]
    assert attacked["r2"] == pytest.approx(summary["strongest"]["r2"], abs=0.02)
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["utility"]["accuracy"] == pytest.approx(summary["accuracy"], abs=0.01)


def test_bundle_of_signals_is_exported_and_opened_for_an_attack(tmp_path, cache_dir, mlflow_template):
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    config = dataclasses.replace(
        preset("gaussian"),
        epochs=1,
        output=tmp_path / "run",
        cache_dir=cache_dir,
        runtime=RuntimeConfig(backend="local", threads=1),
        attacks=dataclasses.replace(ATTACKS, max_rows=500),
        tracking=TrackingConfig(system_metrics=False, log_models=False),
    )
    with left_as_it_was(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        train(config)
    assert export_run(tmp_path / "run", tmp_path / "bundle", weights="float32").failures == ()
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.preprocessing == Preprocessing(kind="array", channels=1, height=32, width=1, crop=1.0, dtype="float32")
    signals = np.random.default_rng(0).normal(size=(5, 1, 32, 1)).astype(np.float32)
    codes = Client(bundle).codes(list(signals))
    for name in ("run", "bundle"):
        encoder = open_target(find_target(str(tmp_path / name), fetch=Path), AttackJob())
        np.testing.assert_allclose(encoder.encode(signals), codes, atol=1e-5)
        encoder.close()


def test_settings_default_to_those_of_the_run(run_folder):
    target, job = parse_export([str(run_folder), "--weights", "int8"], description="", fetch=Path, resolve=str)
    assert isinstance(job, ExportJob)
    assert (job.weights, job.zip, job.cache_dir) == ("int8", False, target.config.cache_dir)


def recovered(bundle: Bundle, privatizer: str, eve: str, images: np.ndarray) -> float:
    """R2 of Eve's model on pictures (B, C, H, W) in their own mean, from the codes of a privatizer's model."""
    (z,) = open_session(bundle, privatizer).run(None, {"pictures": images})
    (seen,) = open_session(bundle, eve).run(None, {"z": np.asarray(z)})
    x = images.astype(np.float64)
    return float(1 - np.square(seen - x).sum() / np.square(x - x.mean(axis=0)).sum())


def test_eve_recovers_what_the_manifest_states(run_folder, twin_folder, tmp_path):
    outcome = export_run(run_folder, tmp_path / "bundle", eve=True, twin=twin_folder, weights="float32")
    assert outcome.failures == ()
    bundle = read_bundle(tmp_path / "bundle")
    images = load(find_target(str(run_folder), fetch=Path).config).test.take(np.arange(40)).transpose(0, 3, 1, 2)
    values = bundle.manifest.values
    assert values["eve"]["attack"] == values["bundle"]["strongest"]["attack"] == "ridge"
    assert values["eve"]["r2"] == values["bundle"]["strongest"]["r2"]
    assert values["twin"]["accuracy"] == json.loads((twin_folder / "report" / "report.json").read_text())["utility"]["accuracy"]
    assert recovered(bundle, PRIVATIZER, EVE, images) == pytest.approx(values["eve"]["r2"], abs=0.05)
    assert recovered(bundle, TWIN_PRIVATIZER, TWIN_EVE, images) == pytest.approx(values["twin"]["r2"], abs=0.05)


def test_bundle_has_no_eve_unless_she_is_asked_for(exported):
    bundle, _ = exported
    assert not {EVE, TWIN_PRIVATIZER, TWIN_EVE} & set(bundle.files)
    assert not {"eve", "twin"} & bundle.manifest.values.keys()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--twin", "{run}"], "add --eve"),
        (["--eve", "--twin", "{run}"], "privacy weight 0.01, so it is not undefended"),
        (["--eve", "--twin", "{run}/nowhere"], "nowhere"),
    ],
)
def test_twin_that_cannot_be_used_ends_with_one_line(job, run_folder, tmp_path, flags, reason):
    given = [flag.format(run=run_folder) for flag in flags]
    status, out, err = job(str(run_folder), "--output", str(tmp_path / "bundle"), *given)
    assert (status, out) == (2, "")
    assert reason in err.strip().splitlines()[-1]
    assert not (tmp_path / "bundle").exists()
