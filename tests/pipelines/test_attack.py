"""Tests of `jobs/attack.py` on a run folder, an MLflow run and an encoder file: its report, its gate, its errors."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor, nn

from cpgan_ray.cli import find_target, parse_attack, parse_train
from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.config import (
    Config,
    DataConfig,
    PrivatizerConfig,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    UtilityConfig,
)
from cpgan_ray.data import load, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import encode_all, open_encoder
from cpgan_ray.evaluation.scoring import RESAMPLES, two_sided_p
from cpgan_ray.evaluation.utility import utility_metrics
from cpgan_ray.pipelines.attack import GateResult, attack, head_logits
from cpgan_ray.pipelines.train import train
from cpgan_ray.tracking import fetch_run, read_curves
from cpgan_ray.tracking.store import open_store
from tests import attacked
from tests.attacked import SIDE, Pooled, attack_flags, program
from tests.killing import processes
from tests.payload import Payload
from tests.process import GONE_S, HANG_S, below, environment, left_as_it_was

JOB = Path(__file__).parents[2] / "jobs" / "attack.py"
DATA = DataConfig(image_size=SIDE, num_identities=200, pictures_per_identity=2, final_fraction=0.0)
"""The data of the small configuration in conftest.py, which are in the cache."""
ONE_LABEL = dataclasses.replace(DATA, labels=("Male",))
"""A task that a small network learns in seconds, because a useless code passes no gate."""
ATTACKS = dataclasses.replace(attacked.ATTACKS, fit_fractions=(0.25,))
SUMMARY = {"run_id", "output", "strongest", "answers_floor_r2", "label_floor_r2", "warnings", "split", "passed", "seconds"}


@dataclass(frozen=True)
class Trained:
    """A finished run, with its tracking store at the default path: next to the folder."""

    output: Path
    summary: dict[str, Any]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.output.parent / 'mlflow.db'}"

    @property
    def report(self) -> dict[str, Any]:
        return report_in(self.output)


def report_in(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "report" / "report.json").read_text())


def configuration(output: Path, cache_dir: Path, *, data: DataConfig = ONE_LABEL) -> Config:
    return Config(
        preset="tiny",
        k=6,
        epochs=4,
        batch_size=80,
        privacy_weight=0.01,
        output=output,
        cache_dir=cache_dir,
        data=data,
        privatizer=PrivatizerConfig(family="linear", learning_rate=1e-2),
        utility=UtilityConfig(hidden=16, learning_rate=1e-2),
        adversaries={"ridge": RidgeConfig(memory_batches=1, components=8)},
        runtime=RuntimeConfig(backend="local", threads=1),
        attacks=ATTACKS,
        tracking=TrackingConfig(log_models=False, system_metrics=False),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mlflow_template: Path) -> Trained:
    folder = tmp_path_factory.mktemp("attacked")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    with left_as_it_was():
        return Trained(folder / "run", train(configuration(folder / "run", cache_dir)))


def run(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the job in a separate process."""
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=HANG_S)


@pytest.fixture
def job(in_process: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return partial(in_process, JOB)


# ------------------------------------------------------------------------------------------------------------- a run's folder


@dataclass(frozen=True)
class Attacked:
    process: subprocess.CompletedProcess[str]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.splitlines()[-1])

    @property
    def output(self) -> Path:
        return Path(self.summary["output"])

    @property
    def report(self) -> dict[str, Any]:
        return report_in(self.output)


@pytest.fixture(scope="module")
def by_folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    return Attacked(run(trained.output, cwd=tmp_path_factory.mktemp("elsewhere")))


@pytest.fixture(scope="module")
def by_id(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    """An attack with a gate that nothing passes."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    return Attacked(run(trained.summary["run_id"], "--fail-above", "0", cwd=cwd, MLFLOW_TRACKING_URI=trained.uri))


def test_attack_on_run_folder_exits_0_with_json_summary(by_folder):
    assert by_folder.process.returncode == 0, by_folder.process.stderr
    assert len(by_folder.process.stdout.splitlines()) == 1
    summary = by_folder.summary
    assert summary.keys() == SUMMARY
    assert summary["strongest"].keys() == {"attack", "variant", "r2", "low", "high"}
    assert summary["passed"] is True
    accuracies = r"accuracy 0\.\d+, majority accuracy 0\.\d+, balanced accuracy 0\.\d+"
    expected = rf"attack \d+/13: \w+ \(\w+|{accuracies}|warning: \w+ = [01] has only \d+ samples? in the test split"
    assert [line for line in by_folder.process.stderr.splitlines() if not re.match(expected, line)] == []


def test_generative_attack_on_run_selects_draws_by_their_codes(trained, job, tmp_path):
    options = ("--variant", "leaked", "--attacks.generative", "--tracking.no-system-metrics", "--runtime.backend", "local")
    status, _, err = job(trained.output, *options, "--output", tmp_path / "drawn")
    assert status == 0, err
    assert re.search(r"generative attack: likeness 0\.\d+, SSIM 0\.\d+, \d+ s", err)
    report = report_in(tmp_path / "drawn")
    assert report["generative"]["selected"] and report["generative"]["judge"] == report["identification"]["judge"]
    assert report["privacy"]["strongest"]["attack"] in {"ridge", "nearest"}
    assert any(line.startswith("The generative attack was fitted on") for line in report["limits"])


def test_attack_writes_report_to_run_folder(by_folder, trained):
    assert by_folder.output.parent == trained.output
    assert re.fullmatch(r"attack-\d{8}-\d{6}", by_folder.output.name)
    files = {path.name for path in (by_folder.output / "report").iterdir()}
    assert files == {"report.json", "report.html", "pictures.png", "worst.png", "map.png", "errors.npz"}
    for name in ("pictures.png", "worst.png"):
        with Image.open(by_folder.output / "report" / name) as picture:
            assert min(picture.size) > 100
    page = (by_folder.output / "report" / "report.html").read_text()
    assert f"{by_folder.report['privacy']['strongest']['r2']:.3f}" in page
    assert "Training adversaries against fresh attacks" in page, "the run's metrics.jsonl has their curves"


def test_attack_report_has_all_numbers(by_folder):
    report = by_folder.report
    strongest, attacks = report["privacy"]["strongest"], report["attacks"]
    assert strongest.keys() == {"attack", "variant", "r2", "low", "high"}
    assert {(a["name"], a["variant"]) for a in attacks} == {(n, v) for n in ATTACKS.names for v in ("leaked", "fresh")}
    needed = {"name", "variant", "r2", "low", "high", "mse_255", "psnr", "ssim", "saturated", "seconds"}
    assert [a["name"] for a in attacks if not needed <= a.keys()] == []
    assert strongest == {"attack": attacks[0]["name"]} | {key: attacks[0][key] for key in ("variant", "r2", "low", "high")}
    assert strongest["r2"] == max(a["r2"] for a in attacks) > 0.1, "a k of 6 gives a little away"
    assert all(a["low"] <= a["r2"] <= a["high"] for a in attacks)
    assert report["privacy"]["label_excess"]["r2"] == pytest.approx(strongest["r2"] - report["privacy"]["label_floor_r2"])
    assert {(row["name"], row["share"]) for row in report["sweep"]} == {("ridge", 0.25), ("nearest", 0.25)}
    assert by_folder.summary["strongest"]["r2"] == round(strongest["r2"], 4)


def test_attack_matches_report_of_run(by_folder, trained):
    attacked_report, run_report = by_folder.report, trained.report
    assert attacked_report["utility"] == pytest.approx(run_report["utility"], abs=2e-3)
    assert [row["name"] for row in attacked_report["labels"]] == [row["name"] for row in run_report["labels"]]
    for here, there in zip(attacked_report["labels"], run_report["labels"], strict=True):
        assert here == pytest.approx(there, abs=0.05, nan_ok=True)
    assert attacked_report["privacy"]["strongest"] == {
        name: value if isinstance(value, str) else pytest.approx(value, abs=1e-4)
        for name, value in run_report["privacy"]["strongest"].items()
    }
    assert (attacked_report["k"], attacked_report["seed"], attacked_report["settings"]) == (
        run_report["k"],
        run_report["seed"],
        run_report["settings"],
    )


def test_attack_row_errors_match_reported_r2(by_folder):
    with np.load(by_folder.output / "report" / "errors.npz") as arrays:
        assert arrays["identity"].shape == arrays["errors"].shape == (40,)
        r2 = 1 - arrays["errors"].sum() / arrays["mean_errors"].sum()
        floor_r2 = 1 - arrays["floor_errors"].sum() / arrays["mean_errors"].sum()
        assert arrays["right"].mean() == pytest.approx(by_folder.report["utility"]["accuracy"])
        assert arrays["labels"].shape == arrays["right"].shape == (40, len(by_folder.report["labels"]))
    assert floor_r2 == pytest.approx(by_folder.report["privacy"]["label_floor_r2"], abs=1e-12)
    assert r2 == pytest.approx(by_folder.report["privacy"]["strongest"]["r2"], abs=1e-12)


@pytest.mark.parametrize("way", ["by_folder", "by_id"])
def test_attack_is_logged_to_mlflow_as_child_of_run(way, trained, request):
    attacked: Attacked = request.getfixturevalue(way)
    client = mlflow.MlflowClient(trained.uri)
    logged = client.get_run(attacked.summary["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["mlflow.parentRunId"] == logged.data.tags["attacked"] == trained.summary["run_id"]
    assert logged.data.metrics["privacy/strongest_r2"] == pytest.approx(attacked.report["privacy"]["strongest"]["r2"])
    patterns = [re.sub("<name>", "[^/]+", name_) for name_ in DICTIONARY]
    assert [name for name in logged.data.metrics if not any(re.fullmatch(p, name) for p in patterns)] == []
    files = {file.path for folder in ("report", "images") for file in client.list_artifacts(logged.info.run_id, folder)}
    reports = {f"report/{name}" for name in ("report.json", "report.html", "errors.npz", "pictures.png", "worst.png", "map.png")}
    assert files == reports | {"images/pictures.png", "images/worst.png", "images/map.png"}


def test_attack_by_run_id_matches_attack_by_folder(by_id, by_folder):
    assert by_id.report["privacy"] == by_folder.report["privacy"]
    assert by_id.report["utility"] == by_folder.report["utility"]
    assert by_id.output.parent.name == "outputs"
    assert by_id.output.parent.parent.name.startswith("elsewhere"), "not in the folder that the run was downloaded to"


def test_attack_on_final_split_counts_its_openings(cache_dir, mlflow_template, job, tmp_path):
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    held_out = dataclasses.replace(ONE_LABEL, final_fraction=0.2)
    with left_as_it_was():
        train(configuration(tmp_path / "run", cache_dir, data=held_out))
    for opening in (1, 2):
        output = tmp_path / f"out{opening}"
        options = ["--final", "--variant", "leaked", "--attacks.names", "ridge", "--output", output]
        status, out, err = job(tmp_path / "run", *options)
        assert status == 0, err
        summary, report = json.loads(out), report_in(output)
        assert (summary["split"], report["final"]) == ("final", {"opening": opening})
        assert report["threat_model"]["sets"][-1]["name"] == "final"
        assert f"its opening number {opening} in this experiment" in (output / "report" / "report.html").read_text()


FLAGS_OF_OTHER_PEOPLE = {
    "final split of a run without one": (["--final"], r"the final split of \S+ is empty: leave out --final"),
    "another final split": (["--final", "--data.final-fraction", "0.2"], r"data\.final_fraction is 0\.2, but the run had 0\.0: "),
    "other partitions": (["--data.split", "identity"], r"data\.split is 'identity', but the run had 'official': "),
    "people of the attacker": (["--data.attacker-share", "0.5"], r"data\.attacker_share is 0\.5, but the run had 0\.0: "),
}


@pytest.mark.parametrize("case", FLAGS_OF_OTHER_PEOPLE)
def test_attack_on_other_people_than_the_runs_exits_2(case, trained, job, tmp_path):
    flags, message = FLAGS_OF_OTHER_PEOPLE[case]
    status, out, err = job(trained.output, *flags, "--output", tmp_path / "none")
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: {message}[^\n]*\n", err), err
    assert not (tmp_path / "none").exists()


def test_attack_failing_gate_exits_1_after_summary(by_id):
    assert by_id.process.returncode == 1
    assert by_id.summary.keys() == SUMMARY
    assert by_id.summary["passed"] is False
    assert re.fullmatch(
        r"failed: strongest R2 0\.\d+, whose 95 % interval ends at 0\.\d+, above 0\.0", by_id.process.stderr.splitlines()[-1]
    )


def test_attack_passing_gate_with_one_variant_and_comparison(trained, job, tmp_path):
    options = ["--variant", "leaked", "--against", trained.output, "--fail-above", "1", "--output", tmp_path / "out"]
    status, out, err = job(trained.output, *options)
    assert status == 0, err
    assert json.loads(out)["passed"] is True
    report = report_in(tmp_path / "out")
    rows = [*report["attacks"], *report["sweep"]]
    assert {row["variant"] for row in rows} == {"leaked"}
    assert len(report["attacks"]) == len(ATTACKS.names)
    comparison = report["comparison"]
    assert comparison["other"] == str(trained.output)
    for name in ("r2", "low", "high"):  # codes are computed in other batches, so that they may differ in the last digit
        assert comparison[name] == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- encoders alone


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b).flatten(1)


class Counting(nn.Module):
    """Returns zeros until it has seen enough pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.shape[0])
        return x.flatten(1) * (self.seen > 300)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(0)


class Halves(nn.Module):
    """Two outputs that only together reveal the picture."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = nn.functional.avg_pool2d(x.float(), 4).flatten(1)
        return {"upper": pooled[:, :1], "lower": pooled[:, 1:]}


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 2).log()


def pooled_onnx(path: Path, *, batch: int | str = "batch", side: int | str = SIDE) -> Path:
    """Pooled as an ONNX model."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["pooled"], ["z"]),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])
    given = helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, 48 if side == SIDE else "k"])
    graph = helper.make_graph(nodes, "pooled", [taken], [given])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def seen_last(path: Path) -> Path:
    """A quantised encoder as mobile converters write it: uint8 pictures of 12 x 16 in BGR, channels last, one at a time; its codes
    are averages, three numbers for each of 3 x 4 places."""
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["z"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 12, SIDE, 3])
    given = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3, 3, 4])
    graph = helper.make_graph(nodes, "seen", [taken], [given])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


AVERAGES = """
import base64, json, sys
import numpy as np
for line in sys.stdin:
    request = json.loads(line)
    pictures = np.frombuffer(base64.b64decode(request["pictures"]), np.uint8).reshape(request["shape"])
    codes = pictures.reshape(len(pictures), 4, 4, 4, 4, 3).mean(axis=(2, 4))
    print(json.dumps({"codes": codes.tolist()}), flush=True)
"""
"""A black box with the codes of Pooled, (4, 4, 3) each."""


def small(uri: str, cache: Path) -> list[str]:
    """Flags for an encoder file: the faces in the cache, in this process, with small budgets."""
    faces = f"--cache-dir {cache} --data.num-identities 200 --data.pictures-per-identity 2 --data.final-fraction 0".split()
    return [*faces, "--attacks.no-identity", "--attacks.no-attributes", *attack_flags(uri)]


@pytest.fixture(scope="module")
def encoders(
    trained: Trained, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[GateResult, dict[str, Any]]]:
    """Encoders of each kind, attacked: their gates and reports."""
    folder = tmp_path_factory.mktemp("alone")
    (store,) = (path for path in cache_dir.glob("faces-*") if path.is_dir())
    faces = ["--dataset", "faces"]
    jobs: dict[str, tuple[Path, list[str]]] = {
        "float32": (program(folder / "float32.pt2", Pooled()), [*faces, "--against", str(trained.output)]),
        "uint8": (program(folder / "uint8.pt2", Pooled(), dtype=torch.uint8), faces),
        "onnx": (pooled_onnx(folder / "pooled.onnx"), ["--data-dir", str(store)]),
        "constant": (
            program(folder / "constant.pt2", Pooled(0.0)),
            [*faces, "--fail-above", "1", "--attacks.names", "ridge", "mlp", "resnet_decoder"],
        ),
        "halves": (program(folder / "halves.pt2", Halves()), faces),
        "one half": (folder / "halves.pt2", [*faces, "--encoder.outputs", "upper"]),
        "seen last": (seen_last(folder / "seen.onnx"), [*faces, "--encoder.channel-order", "bgr"]),
    }
    results = {}
    with left_as_it_was():
        for name, (path, more) in jobs.items():
            flags = [*small(trained.uri, cache_dir), "--output", str(folder / name), *more]
            gate = attack(*parse_attack([str(path), *flags], description="", fetch=fetch_run))
            results[name] = gate, report_in(folder / name)
        written(folder / "averages.py", AVERAGES)
        command = ["--encoder.command", f"{sys.executable} {folder / 'averages.py'}", "--encoder.size", str(SIDE), str(SIDE)]
        flags = [*small(trained.uri, cache_dir), "--output", str(folder / "command"), *command, *faces]
        results["command"] = attack(*parse_attack(flags, description="", fetch=fetch_run)), report_in(folder / "command")
    return results


@pytest.mark.parametrize("kind", ["float32", "uint8", "onnx", "halves", "command"])
def test_attack_on_leaky_encoder_of_each_kind_finds_leak(kind, encoders):
    gate, report = encoders[kind]
    strongest = gate.summary["strongest"]
    assert strongest["attack"] == "ridge"
    assert strongest["r2"] > 0.7
    assert strongest["low"] > encoders["constant"][0].summary["strongest"]["high"] + 0.5
    assert strongest["r2"] == pytest.approx(encoders["float32"][0].summary["strongest"]["r2"], abs=1e-3), "the same map"
    assert (report["k"], report["utility"], report["labels"], report["privacy_weight"]) == (48, {}, [], None)


def test_attack_report_names_attacked_outputs(encoders):
    whole, part = encoders["halves"][1]["attacked"], encoders["one half"][1]["attacked"]
    assert whole["outputs"] == [{"name": "upper", "size": 1}, {"name": "lower", "size": 47}]
    assert (whole["left_out"], whole["stochastic"], whole["repeats"]["differing"]) == ([], False, 0.0)
    assert (part["outputs"], part["left_out"]) == ([{"name": "upper", "size": 1}], ["lower"])
    page = (Path(encoders["one half"][0].summary["output"]) / "report" / "report.html").read_text()
    assert "Not attacked: lower, which also leave the encoder" in page
    assert encoders["one half"][0].summary["strongest"]["r2"] < encoders["halves"][0].summary["strongest"]["r2"] - 0.2


def test_attack_makes_store_of_the_shape_of_the_encoder(encoders):
    gate, report = encoders["seen last"]
    data, attacked_ = report["settings"]["data"], report["attacked"]
    assert (data["image_size"], data["image_width"]) == (12, SIDE)
    assert (attacked_["input"]["layout"], attacked_["input"]["channels"], attacked_["input"]["batch"]) == ("nhwc", "bgr", 1)
    assert (report["k"], attacked_["outputs"]) == (36, [{"name": "z", "size": 36}])
    assert gate.summary["strongest"]["r2"] > 0.7
    page = (Path(gate.summary["output"]) / "report" / "report.html").read_text()
    assert "It got uint8 pictures of 12 x 16, channels last, bgr, black is 0 and white is 255" in page


def test_attack_on_command_counts_queries_and_ends_it(encoders):
    gate, report = encoders["command"]
    attacked_ = report["attacked"]
    pictures = sum(row["pictures"] for row in report["threat_model"]["sets"])
    assert attacked_["queries"] > 2 * pictures, "mirrored and shifted copies, and those that are encoded again"
    assert f"({attacked_['queries']:,} pictures were encoded here)" in report["threat_model"]["attacker"].replace(
        "black box; ", "("
    )
    assert report["name"].endswith("averages.py")
    assert [p for p in psutil.Process().children() if "averages.py" in " ".join(p.cmdline())] == []


def test_attack_on_constant_encoder_fails_every_gate(encoders):
    gate, report = encoders["constant"]
    assert abs(gate.summary["strongest"]["r2"]) < 0.02
    assert report["privacy"]["label_floor_r2"] > gate.summary["strongest"]["r2"]
    assert gate.summary["passed"] is False
    (failure,) = gate.failures
    assert failure == gate.summary["warnings"][0] and "the code is the same for every picture" in failure
    assert report["warnings"][0] == {"kind": "constant_code", "message": failure, "fails_gates": True}
    assert [a["name"] for a in report["attacks"]] == ["ridge"], "only ridge runs, because there is nothing to find"
    assert "This code passes no gate" in (Path(gate.summary["output"]) / "report" / "report.html").read_text()


def test_attack_report_on_encoder_omits_training(encoders):
    gate, report = encoders["onnx"]
    assert report["name"] == "pooled.onnx"
    assert report["settings"].keys() == {"data", "attacks"}
    page = (Path(gate.summary["output"]) / "report" / "report.html").read_text()
    for absent in ("Training adversaries", "Identity linkage", "What else z reveals", "accuracy of the task", "privacy weight"):
        assert absent not in page
    assert "pooled.onnx, k = 48" in page


def test_attack_reads_celeba_layout(encoders):
    assert {name: report["settings"]["data"]["dataset"] for name, (_, report) in encoders.items()} == {
        name: "celeba" if name == "onnx" else "faces" for name in encoders
    }


def test_attack_comparison_is_difference_of_strongest_attacks(encoders, trained):
    comparison = encoders["float32"][1]["comparison"]
    assert comparison["other"] == str(trained.output)
    difference = encoders["float32"][1]["privacy"]["strongest"]["r2"] - trained.report["privacy"]["strongest"]["r2"]
    assert comparison["r2"] == pytest.approx(difference, abs=1e-9)
    assert 0 < comparison["low"] < comparison["r2"] < comparison["high"]
    assert comparison["p"] == pytest.approx(two_sided_p(1 / (2 * RESAMPLES), people=20)), "the smallest for so few people"


# ---------------------------------------------------------------------------------------------------------- from flags to a job


def test_parse_attack_defaults_are_those_of_run(trained):
    target, job = parse_attack([str(trained.output), "--attacks.epochs", "7"], description="", fetch=fetch_run)
    assert (target.program, target.run_id) == (trained.output / "privatizer.pt2", trained.summary["run_id"])
    assert target.config is not None
    assert (target.config.k, target.config.output) == (6, trained.output)
    assert (job.data, job.runtime, job.seed, job.cache_dir) == (ONE_LABEL, target.config.runtime, 0, target.config.cache_dir)
    assert (job.attacks.epochs, job.attacks.names, job.attacks.fit_fractions) == (7, ATTACKS.names, ATTACKS.fit_fractions)


def test_parse_attack_makes_paths_absolute_and_defaults_to_celeba(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder.onnx").touch()
    paths = ["--data-dir", "data", "--cache-dir", "cache", "--output", "out", "--against", "other"]
    target, job = parse_attack(["encoder.onnx", *paths], description="", fetch=fetch_run)
    assert target.program == tmp_path / "encoder.onnx"
    assert (job.data_dir, job.cache_dir, job.output, job.against) == tuple(tmp_path / name for name in paths[1::2])
    assert job.dataset == "celeba"
    assert parse_attack(["encoder.onnx", *paths, "--dataset", "faces"], description="", fetch=fetch_run)[1].dataset == "faces"
    assert parse_attack(["encoder.onnx"], description="", fetch=fetch_run)[1].dataset is None


def test_head_logits_match_run_if_labels_match(trained):
    target = find_target(str(trained.output), fetch=fetch_run)
    assert target.config is not None
    dataset = load(target.config)
    codes = encode_all(open_encoder(target.program), dataset)
    logits = head_logits(target, codes, dataset, target.config)
    utility = utility_metrics(logits, dataset, task_of(dataset, target.config.data.labels), seed=target.config.seed)
    assert utility == pytest.approx(trained.report["utility"], abs=2e-3)
    assert head_logits(target, codes, dataset, dataclasses.replace(target.config, data=DATA)) == {}, "DATA has more labels"


def test_read_curves_returns_r2_per_adversary_and_round(trained, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"round": 0, "adversary/rbf/r2": 0.25, "adversary/rbf/loss": 3.0, "utility/loss": 1.0}\n'
        '{"round": 1, "adversary/rbf/r2": null, "adversary/mlp/r2": 0.5}\n'
        '{"round": 2, "adversary/rbf/r2": -0.125, "privacy/strongest_r2": 0.75}\n'
    )
    assert read_curves(tmp_path / "metrics.jsonl") == {"rbf": ([0, 2], [0.25, -0.125]), "mlp": ([1], [0.5])}
    assert read_curves(tmp_path / "nowhere.jsonl") == {}
    (rounds, r2) = read_curves(trained.output / "metrics.jsonl")["ridge"]
    assert rounds == list(range(16))
    assert all(-1 < value < 1 for value in r2)


# ---------------------------------------------------------------------------------------------------------------- bad input


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def gone(path: Path) -> Path:
    path.unlink()
    return path


def other_people(folder: Path) -> Path:
    folder.mkdir()
    ones = dict.fromkeys(("errors", "mean_errors", "floor_errors"), np.ones(40))
    np.savez(folder / "errors.npz", **ones, identity=np.arange(40), restart_std=0.0, floor_restart_std=0.0)
    return folder


def pickled(path: Path, folder: Path) -> Path:
    """A file that would leave a mark in the folder if it were unpickled."""
    torch.save({"evil": Payload(folder / "ran")}, path)
    return path


def rigged(path: Path, folder: Path) -> Path:
    """A complete program whose example inputs would leave the mark."""
    content = path.read_bytes() if path.exists() else program(path, Pooled()).read_bytes()
    inputs = pickled(folder / "inputs.pt", folder).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(path, "w") as written:
        for name in archive.namelist():
            written.writestr(name, inputs if name.endswith("sample_inputs/model.pt") else archive.read(name))
    return path


def marked_errors(folder: Path) -> Path:
    folder.mkdir()
    np.savez(
        folder / "errors.npz", errors=np.array([Payload(folder.parent / "ran")] * 40), mean_errors=np.ones(40), identity=np.ones(40)
    )
    return folder


def errors(folder: Path, **arrays: Any) -> Path:
    folder.mkdir()
    np.savez(folder / "errors.npz", restart_std=0.0, **arrays)
    return folder


def endless_errors(folder: Path) -> Path:
    """An array whose header declares a million million rows."""
    folder.mkdir()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(array := io.BytesIO(), header)
    with zipfile.ZipFile(folder / "errors.npz", "w") as archive:
        for name in ("errors", "mean_errors", "identity"):
            archive.writestr(f"{name}.npy", array.getvalue() + bytes(100))
    return folder


def strange_twin(folder: Path, report: str) -> Path:
    twin = shutil.copytree(folder / "run", folder / "twin")
    (twin / "report" / "report.json").write_text(report)
    return twin


@dataclass(frozen=True)
class Failure:
    arguments: Callable[[Path], list[str | Path]]
    """The command line, from a folder that contains a copy of the finished run, `run`."""
    message: str


def on_run(*flags: str | Path) -> Callable[[Path], list[str | Path]]:
    return lambda f: [f / "run", *flags]


NO_RUN = "0123456789abcdef" * 2
FAILURES = {
    "no target": Failure(lambda f: [], "nothing to attack: give a run's output folder"),
    "flags alone": Failure(lambda f: ["--variant", "leaked"], "nothing to attack: give a run's output folder"),
    "two targets": Failure(on_run("another"), r"unknown flag or value 'another'"),
    "missing path": Failure(lambda f: [f / "nowhere"], r"\S+/nowhere is neither a folder, nor a file, nor an MLflow run id"),
    "no run": Failure(lambda f: [f], r"\S+ has no config\.json: give the output folder of a run"),
    "unfinished run": Failure(lambda f: [gone(f / "run/privatizer.pt2").parent], r"\S+/run has no privatizer\.pt2"),
    "torn config": Failure(lambda f: [cut(f / "run/config.json").parent], r"\S+/run/config\.json is damaged"),
    "no config": Failure(lambda f: [written(f / "run/config.json", "[1, 2]").parent], r"\S+/run/config\.json is damaged"),
    "strange config": Failure(
        lambda f: [written(f / "run/config.json", '{"format": 3, "k": "many"}').parent], "config field k is 'many'"
    ),
    "torn privatizer": Failure(lambda f: [cut(f / "run/privatizer.pt2").parent], r"encoder \S+/privatizer\.pt2 cannot be read"),
    "no store": Failure(lambda f: [NO_RUN], rf"there is no tracking store .* run {NO_RUN}: set MLFLOW_TRACKING_URI"),
    "unknown flag": Failure(on_run("--fail-abov", "1"), "unknown flag or value '--fail-abov': did you mean --fail-above"),
    "unknown variant": Failure(on_run("--variant", "leeked"), ".*'leeked'.*both.*leaked.*fresh"),
    "gate above 1": Failure(on_run("--fail-above", "7"), r"fail_above is 7\.0; it must be at most 1"),
    "gate of words": Failure(on_run("--fail-above", "much"), "--fail-above is 'much'; it must be a number or None"),
    "no errors to compare with": Failure(lambda f: [f / "run", "--against", f], r"\S+ has no errors\.npz"),
    "compared on other people": Failure(
        lambda f: [f / "run", "--against", other_people(f / "other")], r"\S+/other was scored on pictures of other people"
    ),
    "no twin": Failure(lambda f: [f / "run", "--tracking.undefended", f], r"tracking\.undefended is .* no privatizer\.pt2"),
    "pickle for a privatizer": Failure(
        lambda f: [pickled(f / "run/privatizer.pt2", f).parent],
        r"encoder \S+/privatizer\.pt2 is not loaded: it has no models/model\.json",
    ),
    "payload in a privatizer": Failure(
        lambda f: [rigged(f / "run/privatizer.pt2", f).parent], r"encoder \S+/privatizer\.pt2 is not loaded: its example inputs are"
    ),
    "state in a program": Failure(
        lambda f: [program(f / "e.pt2", Counting())],
        r"encoder \S+/e\.pt2 is not loaded: its operation aten\.add_\S* writes to 'b_seen'",
    ),
    "unknown output": Failure(
        lambda f: [program(f / "e.pt2", Pooled()), "--encoder.outputs", "logits"],
        r"encoder \S+/e\.pt2 has no output 'logits': choose --encoder\.outputs from z",
    ),
    "dependence on the batch": Failure(
        lambda f: [program(f / "e.pt2", Centred())],
        r"encoder \S+/e\.pt2 gives 100 % of \d+ pictures another code .*--encoder\.stochastic",
    ),
    "payload in a utility head": Failure(
        lambda f: [rigged(f / "run/utility_head.pt2", f).parent],
        r"utility head \S+/utility_head\.pt2 is not loaded: its example inputs",
    ),
    "another run's utility head": Failure(
        lambda f: [program(f / "run/utility_head.pt2", Pooled()).parent], r"utility head \S+/utility_head\.pt2 fails on the codes"
    ),
    "pickle by another name": Failure(lambda f: [pickled(f / "e.pt", f)], r"encoder \S+/e\.pt ends in '\.pt'"),
    "pickle for a program": Failure(lambda f: [pickled(f / "e.pt2", f)], r"encoder \S+/e\.pt2 is not loaded: it has no models"),
    "payload in a program": Failure(lambda f: [rigged(f / "e.pt2", f)], r"encoder \S+/e\.pt2 is not loaded: its example inputs"),
    "pickle for onnx": Failure(lambda f: [pickled(f / "e.onnx", f)], r"encoder \S+/e\.onnx cannot be read as an ONNX model"),
    "pickle for a config": Failure(lambda f: [pickled(f / "run/config.json", f).parent], r"\S+/run/config\.json is damaged"),
    "deep config": Failure(lambda f: [written(f / "run/config.json", "[" * 100_000).parent], r"\S+/run/config\.json is damaged"),
    "run of no name": Failure(
        lambda f: [written(f / "run/config.json", '{"format": 3, "run_id": ["a"]}').parent], r"\S+ is damaged \(run_id is"
    ),
    "torn metrics": Failure(lambda f: [cut(f / "run/metrics.jsonl").parent], r"\S+/metrics\.jsonl, line \d+ is damaged"),
    "objects for errors": Failure(
        lambda f: [f / "run", "--against", marked_errors(f / "other")], r"\S+/other/errors\.npz is damaged \(ValueError\)"
    ),
    "torn errors": Failure(
        lambda f: [f / "run", "--against", cut(f / "run/report/errors.npz").parent], r"\S+/errors\.npz is damaged"
    ),
    "words for errors": Failure(
        lambda f: [f / "run", "--against", errors(f / "other", errors=["a"], mean_errors=["b"], identity=["c"])],
        r"\S+/errors\.npz is damaged \(TypeError\)",
    ),
    "errors of other lengths": Failure(
        lambda f: [f / "run", "--against", errors(f / "other", errors=np.ones(3), mean_errors=np.ones(4), identity=np.arange(4))],
        r"\S+/errors\.npz is damaged \(ValueError\)",
    ),
    "errors that are not finite": Failure(
        lambda f: [f / "run", "--against", errors(f / "other", errors=[np.nan], mean_errors=[1.0], identity=[1])],
        r"\S+/errors\.npz is damaged \(ValueError\)",
    ),
    "errors below zero": Failure(
        lambda f: [f / "run", "--against", errors(f / "other", errors=-np.ones(4), mean_errors=np.ones(4), identity=np.arange(4))],
        r"\S+/errors\.npz is damaged \(ValueError\)",
    ),
    "errors of an impossible length": Failure(
        lambda f: [f / "run", "--against", endless_errors(f / "other")], r"\S+/errors\.npz is damaged \(\w+\)"
    ),
    "metrics of an endless round": Failure(
        lambda f: [written(f / "run/metrics.jsonl", '{"round": 1e999, "adversary/a/r2": 1}').parent],
        r"\S+/metrics\.jsonl, line 1 is damaged \(OverflowError\)",
    ),
    "metrics of a name that is no name": Failure(
        lambda f: [written(f / "run/metrics.jsonl", '{"round": 1, "adversary/<b>\\u001b/r2": 1}').parent],
        r"\S+/metrics\.jsonl, line 1 is damaged \(ValueError\)",
    ),
    "report of a twin that is not finite": Failure(
        lambda f: [f / "run", "--tracking.undefended", strange_twin(f, '{"privacy": {"strongest": {"attack": "a", "r2": NaN}}}')],
        r"\S+/twin/report/report\.json is damaged",
    ),
    "report of a twin of many brackets": Failure(
        lambda f: [f / "run", "--tracking.undefended", strange_twin(f, "[" * 200_000)], r"\S+/twin/report/report\.json is damaged"
    ),
    "payload in a twin": Failure(
        lambda f: [f / "run", "--tracking.undefended", rigged(shutil.copytree(f / "run", f / "twin") / "privatizer.pt2", f).parent],
        r"encoder \S+/twin/privatizer\.pt2 is not loaded: its example inputs",
    ),
    "torn report of a twin": Failure(
        lambda f: [
            f / "run",
            "--tracking.undefended",
            cut(shutil.copytree(f / "run", f / "twin") / "report/report.json").parents[1],
        ],
        r"\S+/twin/report/report\.json is damaged",
    ),
    "taken output": Failure(lambda f: [f / "run", "--output", f / "run"], r"output folder \S+/run already holds a run"),
    "file for output": Failure(lambda f: [f / "run", "--output", f / "run/config.json"], r"output \S+/config\.json is a file"),
    "faces to read": Failure(on_run("--data-dir", ".", "--dataset", "faces"), "data_dir is .*faces are drawn, not read"),
    "missing data": Failure(on_run("--data-dir", "nowhere"), r"data folder \S+/nowhere does not exist"),
    "no data": Failure(lambda f: [program(f / "e.pt2", Pooled()), "--dataset", "celeba"], "data_dir is None.*--data-dir"),
    "torn program": Failure(lambda f: [cut(program(f / "e.pt2", Pooled()))], r"encoder \S+/e\.pt2 cannot be read"),
    "text for onnx": Failure(
        lambda f: [written(f / "e.onnx", "this is no model")], r"encoder \S+/e\.onnx cannot be read as an ONNX model"
    ),
    "another suffix": Failure(lambda f: [f / "run/config.json"], r"encoder \S+/config\.json ends in '\.json'"),
    "two inputs": Failure(lambda f: [program(f / "e.pt2", Sum(), inputs=2)], r"encoder \S+/e\.pt2 takes 2 inputs"),
    "tiny pictures": Failure(
        lambda f: [program(f / "e.pt2", Pooled(), height=4)], r"encoder \S+/e\.pt2 takes pictures of 4 x 16, but .* 8 to 1024"
    ),
    "any size": Failure(
        lambda f: [pooled_onnx(f / "e.onnx", side="side")],
        r"encoder \S+/e\.onnx takes pictures of any height and width: .*--encoder\.size",
    ),
    "another size": Failure(
        lambda f: [pooled_onnx(f / "e.onnx"), "--encoder.size", "32", "16"],
        r"encoder\.size is 32 16, but encoder \S+/e\.onnx takes pictures of 16 x 16",
    ),
    "half a size": Failure(
        lambda f: [pooled_onnx(f / "e.onnx"), "--encoder.size", "32"], r"--encoder\.size is '32'; it must be two whole numbers"
    ),
    "scale of words": Failure(
        lambda f: [pooled_onnx(f / "e.onnx"), "--encoder.scale", "0", "white"],
        r"--encoder\.scale is '0', 'white'; it must be two numbers",
    ),
    "rows for channels": Failure(
        lambda f: [pooled_onnx(f / "e.onnx"), "--encoder.layout", "nhwc"],
        r"encoder \S+ takes pictures of 3 x 16, .*--encoder\.layout",
    ),
    "mean without scale": Failure(
        lambda f: [pooled_onnx(f / "e.onnx"), "--encoder.mean", "0.5"], r"encoder\.mean is \(0\.5,\), .*--encoder\.scale"
    ),
    "command and file": Failure(
        lambda f: [pooled_onnx(f / "e.onnx"), "--encoder.command", "cat"],
        r"encoder\.command is 'cat', but e\.onnx is to be attacked",
    ),
    "command that is no encoder": Failure(
        lambda f: ["--encoder.command", "cat"], r"encoder cat answers without codes: it must answer \{\"codes\": \[\.\.\.\]\}"
    ),
    "command that ends": Failure(lambda f: ["--encoder.command", "true"], "encoder true ended with status 0 before it answered"),
    "command that does not exist": Failure(
        lambda f: ["--encoder.command", "/nowhere/e 1"], r"encoder /nowhere/e 1 cannot be started \(No such file or directory\)"
    ),
    "URL with a password": Failure(
        lambda f: ["http://alice:secret-of-alice@127.0.0.1:1/"], r"encoder http://\*\*\*@127\.0\.0\.1:1/ holds a user or a password"
    ),
    "codes that are not finite": Failure(
        lambda f: [program(f / "e.pt2", Logarithm())], "encoder .* returns codes that are not finite"
    ),
}


class Listener:
    """A server on this machine's loopback interface that records everything it receives."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.received: list[bytes] = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.socket.accept()
                peer.settimeout(1)
                with peer, contextlib.suppress(OSError):
                    self.received.append(b"connected")
                    self.received.append(peer.recv(4096))


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.socket.close()


def hostile(folder: Path, address: str) -> Path:
    """A run's folder in which every address and path points to an attacker's server."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    s3 = f"s3://bucket/x?endpoint_override={address}&scheme=http"
    values |= {"data_dir": s3, "cache_dir": str(folder / "cache"), "shared_cache": s3, "output": str(folder / "elsewhere")}
    values["runtime"] |= {"address": address, "backend": "ray"}
    values["recovery"] |= {"checkpoints": s3}
    values["tracking"] |= {"uri": f"http://{address}", "undefended": str(folder / "twin")}
    path.write_text(json.dumps(values))
    (folder.parent / "mlflow.db").unlink(missing_ok=True)
    return folder


SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "alice",
    "MLFLOW_TRACKING_PASSWORD": "secret-of-alice",
    "RAY_AUTH_TOKEN": "t0k3n" * 8,
    "AWS_ACCESS_KEY_ID": "AK",
    "AWS_SECRET_ACCESS_KEY": "secret-of-aws",
}


def test_attack_on_foreign_run_contacts_none_of_its_addresses(
    trained, cache_dir, job, listener, tmp_path, monkeypatch, mlflow_template
):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = hostile(shutil.copytree(trained.output, tmp_path / "mail" / "run"), listener.address)
    (tmp_path / "here" / "outputs").mkdir(parents=True)
    shutil.copy(mlflow_template, tmp_path / "here" / "outputs" / "mlflow.db")
    options = ["--cache-dir", cache_dir, "--runtime.backend", "local", "--runtime.threads", "1", "--attacks.names", "ridge"]
    status, _, err = job(folder, *options, "--output", tmp_path / "out", "--variant", "leaked", "--tracking.no-system-metrics")
    assert status == 0, err
    first, *rest = err.splitlines()
    assert re.fullmatch(
        r"warning: \S+/run/config\.json was not written by this user: data_dir, cache_dir, shared_cache, runtime\.backend, "
        r"runtime\.addr.*, runtime\.threads, recovery\.checkpoints, .*tracking\.uri, tracking\.undefended, .* are taken from "
        r"your flags only; add --trust to use what it says",
        first,
    )
    assert all(re.match(r"attack \d|accuracy 0|warning: Male = ", line) for line in rest)
    assert listener.received == []
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert listener.address not in json.dumps(written)
    assert written["tracking"]["uri"] == f"sqlite:///{tmp_path / 'here' / 'outputs' / 'mlflow.db'}"
    assert not (tmp_path / "mail" / "mlflow.db").exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in trained.output.iterdir())


def test_resume_of_foreign_run_contacts_none_of_its_addresses(trained, in_process, listener, tmp_path, monkeypatch, capfd):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = hostile(shutil.copytree(trained.output, tmp_path / "mail" / "run"), listener.address)
    shutil.rmtree(folder / "report")
    config, _ = parse_train(["--resume", str(folder)], default="smoke", description="")
    assert (config.tracking.uri, config.runtime.address) == (f"sqlite:///{Path('outputs/mlflow.db').resolve()}", None)
    assert (config.data_dir, config.shared_cache, config.recovery.checkpoints, config.output) == (None, None, None, folder)
    assert "add --trust" in capfd.readouterr().err
    trusted, _ = parse_train(["--resume", str(folder), "--trust"], default="smoke", description="")
    assert trusted.tracking.uri == f"http://{listener.address}"
    assert parse_train(["--resume", str(folder), "--data-dir", "/d"], default="smoke", description="")[0].data_dir == Path("/d")
    assert listener.received == []
    status, _, err = in_process(JOB.with_name("train_celeba.py"), "--resume", folder, "--trust")
    assert (status, len(err.splitlines())) == (2, 1), err
    assert listener.received != [], "the listener must receive what is sent to it"


def test_fetch_run_does_not_contact_foreign_artifact_server(listener, tmp_path, mlflow_uri, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    client = mlflow.MlflowClient(mlflow_uri)
    where = f"http://{listener.address}/api/2.0/mlflow-artifacts/artifacts/x"
    run_id = client.create_run(client.create_experiment("mail", artifact_location=where)).info.run_id
    with pytest.raises(InputError, match=f"run {run_id} keeps its artifacts at .* your credentials are not sent there"):
        find_target(run_id, fetch=fetch_run)
    with (
        pytest.raises(InputError, match="experiment 'mail' keeps its artifacts at .* your credentials are not sent there"),
        open_store(TrackingConfig(uri=mlflow_uri, experiment="mail"), tmp_path / "run"),
    ):
        pass
    assert listener.received == []


@pytest.mark.parametrize("case", FAILURES)
def test_attack_bad_input_exits_2_with_one_line_and_no_output(case, trained, cache_dir, job, tmp_path):
    inputs = tmp_path / "inputs"
    shutil.copytree(trained.output, inputs / "run", ignore=shutil.ignore_patterns("attack-*"))
    shutil.copy(trained.output.parent / "mlflow.db", inputs)
    arguments = FAILURES[case].arguments(inputs)
    if arguments and Path(arguments[0]).suffix:  # an encoder file
        arguments += small(trained.uri, cache_dir)
    before = {path: path.stat().st_mtime_ns for path in inputs.rglob("*")}
    status, out, err = job(*arguments)
    assert status == 2, err
    assert re.fullmatch(rf"error: {FAILURES[case].message}[^\n]*\n", err), err
    assert out == ""
    assert {path: path.stat().st_mtime_ns for path in inputs.rglob("*")} == before
    assert list((tmp_path / "here").iterdir()) == []


def test_attack_unknown_run_id_error_names_store(trained, job, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.uri)
    status, out, err = job(NO_RUN)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: MLflow at {re.escape(trained.uri)} has no finished run {NO_RUN} [^\n]*\n", err)
    assert list((tmp_path / "here").iterdir()) == []


def test_attack_bad_input_in_subprocess_prints_one_line(tmp_path):
    """In a separate process, because pytest cannot capture the logs of torch and onnxruntime."""
    process = run(cut(program(tmp_path / "e.pt2", Pooled())), "--output", tmp_path / "out", cwd=tmp_path)
    assert process.returncode == 2
    assert re.fullmatch(r"error: encoder \S+/e\.pt2 cannot be read as a torch\.export program [^\n]*\n", process.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.pt2"]


@pytest.mark.slow
def test_attack_on_ray_stopped_by_signal_marks_run_killed(trained, begin, tmp_path):
    options = ["--runtime.backend", "ray", "--output", str(tmp_path / "out"), "--variant", "leaked"]
    endless = ["--attacks.names", "resnet_decoder", "--attacks.decoder-width", "96", "--attacks.decoder-epochs", "1000"]
    command = [sys.executable, JOB, trained.output, *options, *endless]
    started = begin(command, lambda: processes("attack_task"), "no attack begins")
    begun = below(started.pid)
    started.terminate()
    out, err = started.communicate(timeout=HANG_S)
    assert started.returncode == 143, err
    assert "Traceback" not in err
    assert out == ""
    run_id = json.loads((tmp_path / "out" / "config.json").read_text())["run_id"]
    assert mlflow.MlflowClient(trained.uri).get_run(run_id).info.status == "KILLED"
    _, alive = psutil.wait_procs(begun, timeout=GONE_S)
    assert alive == []
