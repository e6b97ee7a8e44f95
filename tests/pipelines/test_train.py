"""Tests of `jobs/train_celeba.py`: its output, its errors, and how it stops."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import psutil
import pytest
from PIL import Image

from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.config import from_json, override
from cpgan_ray.config.folders.records import FORMAT
from cpgan_ray.config.presets import preset
from cpgan_ray.data import prepare
from cpgan_ray.data.datasets.faces.files import write_faces
from tests.process import GONE_S, HANG_S, RIDGE_ONLY, below, environment

ROOT = Path(__file__).parents[2]
JOB = [sys.executable, str(ROOT / "jobs" / "train_celeba.py")]
LAST_PICTURE = "000060.jpg"


def run(arguments: Sequence[str | Path], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*JOB, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=HANG_S)


@dataclass(frozen=True)
class Workspace:
    """Folder of the runs of this module's tests, with a tracking store."""

    folder: Path
    uri: str
    cache: Path

    @property
    def common(self) -> list[str]:
        return ["--cache-dir", str(self.cache), "--tracking.uri", self.uri]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mlflow_template: Path) -> Workspace:
    folder = tmp_path_factory.mktemp("job")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return Workspace(folder, f"sqlite:///{folder / 'mlflow.db'}", cache_dir)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty tiny pictures in CelebA's layout."""
    folder = tmp_path_factory.mktemp("layout") / "celeba"
    write_faces(folder, num_identities=20, pictures_per_identity=3, processes=1, size=(20, 24))
    return folder


# ------------------------------------------------------------------------------------------------------- a run that ends well


@dataclass(frozen=True)
class Finished:
    process: subprocess.CompletedProcess[str]
    output: Path
    workspace: Workspace

    @property
    def summary(self) -> dict:
        return json.loads(self.process.stdout.splitlines()[-1])

    @property
    def report(self) -> dict:
        return json.loads((self.output / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(workspace: Workspace) -> Finished:
    """The smoke preset for one epoch in one process."""
    output = workspace.folder / "smoke"
    options = ["--epochs", "1", "--runtime.backend", "local", "--output", output, *workspace.common]
    return Finished(run(["smoke", *options], cwd=workspace.folder), output, workspace)


def test_train_exits_0_with_json_summary(finished):
    assert finished.process.returncode == 0, finished.process.stderr
    summary = finished.summary
    assert {"run_id", "output", "accuracy", "strongest", "seconds"} <= summary.keys()
    assert summary["strongest"].keys() == {"attack", "variant", "r2", "low", "high"}
    assert summary["output"] == str(finished.output)
    assert 0 <= summary["accuracy"] <= 1
    assert summary["strongest"]["low"] <= summary["strongest"]["r2"] <= summary["strongest"]["high"] <= 1
    assert summary["seconds"] > 0
    assert len(finished.process.stdout.splitlines()) == 1


def test_train_logs_only_progress_to_stderr(finished):
    attacked = r"attack \d+/\d+: \w+ \((leaked|fresh|labels|answers|embedding)( \d+ %)?\), tuning R2 -?\d\.\d+, \d+ s$"
    accuracies = r"accuracy \d\.\d+, majority accuracy \d\.\d+, balanced accuracy \d\.\d+$"
    expected = re.compile(rf"round \d+/4, |{attacked}|{accuracies}|warning: ")
    assert [line for line in finished.process.stderr.splitlines() if not expected.match(line)] == []


def test_train_writes_config_metrics_models_and_report(finished):
    files = {str(path.relative_to(finished.output)) for path in finished.output.rglob("*") if path.is_file()}
    expected = {"config.json", "metrics.jsonl", "privatizer.pt2", "utility_head.pt2", "report/report.json", "report/report.html"}
    assert files >= expected
    panels = [finished.output / name for name in files if name.endswith(".png")]
    assert panels
    assert all(Path(panel).parent.name == "report" for panel in panels)
    for panel in panels:
        with Image.open(panel) as picture:
            assert min(picture.size) > 100


def test_train_config_names_store_and_reproduces_run(finished):
    values = json.loads((finished.output / "config.json").read_text())
    store = Path(values.pop("store"))
    assert (values.pop("run_id"), values.pop("format")) == (finished.summary["run_id"], FORMAT)
    assert sorted(path.name for path in store.glob("*.arrow")) == ["final.arrow", "test.arrow", "train.arrow", "val.arrow"]
    assert store.parent == finished.workspace.cache
    config = from_json(values)
    assert (config.preset, config.epochs, config.output) == ("smoke", 1, finished.output)


def test_train_report_has_costs_of_networks(finished):
    cost = finished.report["cost"]
    assert cost["utility_head"]["multiply_adds"] < cost["privatizer"]["multiply_adds"]
    page = (finished.output / "report" / "report.html").read_text()
    assert finished.report["settings"]["privatizer"]["max_multiply_adds"] is None
    assert f"costs the client {cost['privatizer']['multiply_adds']:,} multiply-adds" in page


def test_train_report_matches_summary(finished):
    report, summary = finished.report, finished.summary
    strongest = report["privacy"]["strongest"]
    assert strongest.keys() >= {"attack", "variant", "r2", "low", "high"}
    assert strongest == {
        name: value if isinstance(value, str) else pytest.approx(value, abs=1e-4) for name, value in summary["strongest"].items()
    }
    assert report["utility"]["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-4)
    assert fmean(row["accuracy"] for row in report["labels"]) == pytest.approx(report["utility"]["accuracy"])
    page = (finished.output / "report" / "report.html").read_text()
    assert [row["name"] for row in report["labels"] if f"<td>{row['name']}</td>" not in page] == []
    privacy = report["privacy"]
    assert privacy["label_excess"]["r2"] == pytest.approx(strongest["r2"] - privacy["label_floor_r2"])
    assert privacy["excess"]["r2"] == pytest.approx(strongest["r2"] - privacy["answers_floor_r2"])
    every = {"ridge", "kernel", "mlp", "decoder", "resnet_decoder", "nearest", "stack"}
    assert {(attack["name"], attack["variant"]) for attack in report["attacks"]} == {
        (n, v) for n in every for v in ("leaked", "fresh")
    }
    assert strongest["r2"] == max(attack["r2"] for attack in report["attacks"])
    assert all(attack["mse_255"] > 0 for attack in report["attacks"])


def test_train_metrics_are_documented_and_per_round(finished):
    lines = [json.loads(line) for line in (finished.output / "metrics.jsonl").read_text().splitlines()]
    assert sorted({line["round"] for line in lines}) == [0, 1, 2, 3]
    names = {name for line in lines for name in line} - {"round"}
    assert undocumented(names) == set()
    assert {"utility/accuracy", "privacy/strongest_r2", "attack/ridge/r2", "time/total_s", "adversary/decoder/r2"} <= names


def undocumented(names: set[str]) -> set[str]:
    patterns = [re.sub("<name>", "[^/]+", name_) for name_ in DICTIONARY]
    return {name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)}


STRANGER = """
import json, sys
import numpy as np, pyarrow as pa, torch
output, store = sys.argv[1:]
privatizer, head = (torch.export.load(f"{output}/{name}.pt2").module() for name in ("privatizer", "utility_head"))
with pa.memory_map(f"{store}/test.arrow") as file:
    table = pa.ipc.open_file(file).read_all()
pictures = np.ascontiguousarray(table["image"].combine_chunks().to_numpy_ndarray().transpose(0, 3, 1, 2))
labels = np.stack([table[name].to_numpy() for name in table.schema.names[2:]], axis=1)
shapes = {}
with torch.no_grad():
    for size in (1, 3, len(pictures)):
        x = torch.from_numpy(pictures[:size].copy())
        z = privatizer(x)
        logits = head(z)
        shapes[size] = [str(x.dtype), list(z.shape), str(z.dtype), list(logits.shape)]
    one_by_one = torch.cat([privatizer(x[i : i + 1]) for i in range(3)])
print(json.dumps({
    "shapes": shapes,
    "apart": float((one_by_one - z[:3]).abs().max()),
    "accuracy": float(((logits.numpy() > 0) == (labels > 0)).mean()),
    "ours": [name for name in sys.modules if name.startswith("cpgan_ray")],
}))
"""


def test_exported_models_without_package_have_reported_accuracy(finished, tmp_path):
    store = json.loads((finished.output / "config.json").read_text())["store"]
    command = [sys.executable, "-W", "ignore", "-c", STRANGER, str(finished.output), store]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    values = json.loads(process.stdout)
    assert values["ours"] == []
    num_labels = len(values["shapes"]["1"][3]) and values["shapes"]["1"][3][1]
    sizes = [int(size) for size in values["shapes"]]
    assert values["shapes"] == {str(n): ["torch.uint8", [n, 16], "torch.float32", [n, num_labels]] for n in sizes}
    assert values["apart"] < 1e-4, "a picture's code must not depend on the other pictures in its batch"
    assert values["accuracy"] == pytest.approx(finished.report["utility"]["accuracy"], abs=2e-3)


def test_train_logs_metrics_data_and_models_to_mlflow(finished):
    import mlflow

    client = mlflow.MlflowClient(finished.workspace.uri)
    run = client.get_run(finished.summary["run_id"])
    assert run.info.status == "FINISHED"
    assert 5 < len(run.data.params) < 20
    assert {"k": "16", "privacy_weight": "1.0", "preset": "smoke"}.items() <= run.data.params.items()
    ours = {name for name in run.data.metrics if not name.startswith("system/")}
    assert undocumented(ours) == set()
    assert run.data.metrics["privacy/strongest_r2"] == pytest.approx(finished.report["privacy"]["strongest"]["r2"])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "utility/loss")] == [0, 1, 2, 3]
    assert {name: value for name, value in run.data.tags.items() if name.startswith("changed.")} == {"changed.epochs": "1"}
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == Path(json.loads((finished.output / "config.json").read_text())["store"]).name
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "report", "images"} <= artifacts
    assert any(artifact.path.endswith(".png") for artifact in client.list_artifacts(run.info.run_id, "images"))
    models = client.search_logged_models([run.info.experiment_id])
    own_models = {model.name: model for model in models if model.source_run_id == run.info.run_id}
    assert own_models.keys() == {"privatizer", "utility_head"}
    mlflow.set_tracking_uri(finished.workspace.uri)
    try:
        signatures = {name: mlflow.models.get_model_info(model.model_uri).signature for name, model in own_models.items()}
    finally:
        mlflow.set_tracking_uri(None)
    assert [(str(i.type), i.shape) for i in signatures["privatizer"].inputs] == [("uint8", (-1, 3, 32, 32))]
    assert [(str(o.type), o.shape) for o in signatures["privatizer"].outputs] == [("float32", (-1, 16))]
    assert [(str(i.type), i.shape) for i in signatures["utility_head"].inputs] == [("float32", (-1, 16))]


def test_train_used_output_folder_is_unchanged(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.output.rglob("*")}
    process = run(["smoke", "--output", finished.output, *finished.workspace.common], cwd=finished.workspace.folder)
    assert process.returncode == 2
    assert re.fullmatch(rf"error: output folder {re.escape(str(finished.output))} already holds a run.*\n", process.stderr)
    assert {path: path.stat().st_mtime_ns for path in finished.output.rglob("*")} == before


def test_train_skip_corrupt_leaves_out_and_counts_pictures(workspace, layout, tmp_path, in_process):
    spoilt = shutil.copytree(layout, tmp_path / "celeba")
    truncate(spoilt)
    options = ["--batch-size", "16", "--epochs", "1", *RIDGE_ONLY.split(), "--tracking.no-log-models", "--runtime.backend", "local"]
    options += ["--data.image-size", "16", "--privacy-weight", "0", "--tracking.uri", workspace.uri]
    options += ["--data.labels", "Smiling", "Male", "--output", tmp_path / "out"]
    status, out, err = in_process(Path(JOB[1]), "smoke", "--data-dir", spoilt, "--skip-corrupt", *options)
    assert status == 0, err
    assert re.search(rf"^1 of 60 pictures skipped.*{LAST_PICTURE}", err, flags=re.MULTILINE)
    assert json.loads(out)["strongest"]["attack"] == "ridge"


# ------------------------------------------------------------------------------------------------------------- bad input


def truncate(folder: Path) -> None:
    path = folder / "img_align_celeba" / LAST_PICTURE
    path.write_bytes(path.read_bytes()[:200])


def tear(folder: Path) -> None:
    """Put the second picture of the first person into the test split."""
    path = folder / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("000002.jpg 0", "000002.jpg 2"))


def damage_store(folder: Path) -> None:
    """Prepare the store that the run will find, and alter a byte among its pictures."""
    config = override(preset("smoke"), {"data_dir": str(folder), "data.dataset": "celeba", "data.final_fraction": 0.0})
    store = prepare(config, progress=False)
    content = bytearray((store / "train.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (store / "train.arrow").write_bytes(content)


@dataclass(frozen=True)
class Failure:
    arguments: Sequence[str]
    """`{data}` is a fresh copy of the layout."""
    message: str
    spoil: Callable[[Path], object] = lambda folder: None


ON_DATA = ("smoke", "--data-dir", "{data}", "--data.final-fraction", "0", "--batch-size", "16")
FAILURES = {
    "missing folder": Failure(("celeba", "--data-dir", "{data}/nowhere"), r"\S+/nowhere does not exist"),
    "no folder": Failure(("celeba",), r"data_dir.*--data-dir"),
    "missing attributes": Failure(
        ON_DATA, r"list_attr_celeba\.txt is missing", lambda folder: (folder / "list_attr_celeba.txt").unlink()
    ),
    "truncated picture": Failure(ON_DATA, rf"img_align_celeba/{LAST_PICTURE} cannot be decoded.*--skip-corrupt", truncate),
    "damaged store": Failure(
        ON_DATA, r"store \S+: train\.arrow is damaged \(checksum mismatch\): delete this folder", damage_store
    ),
    "label of one value": Failure(ON_DATA, r"data\.labels: Pale_Skin has one value in all 48 .*--data\.labels Bald Bangs "),
    "unknown label": Failure((*ON_DATA, "--data.labels", "Smilling"), r"'Smilling': did you mean Smiling\?"),
    "people in two splits": Failure(ON_DATA, r"list_eval_partition\.txt.*identity 1 .*--data\.split identity", tear),
    "batch too large": Failure((*ON_DATA[:5], "--batch-size", "49"), r"batch_size is 49.*48 pictures"),
    "bad value": Failure(("smoke", "--k", "0"), r"k is 0; it must be at least 1"),
    "bad nested value": Failure(("smoke", "--adversaries.mlp.dropout", "1"), r"dropout is 1\.0"),
    "no number": Failure(("smoke", "--epochs", "many"), r"--epochs.*many|many.*--epochs"),
    "unknown flag": Failure(("smoke", "--privacy-wieght", "1"), r"'--privacy-wieght'.*did you mean --privacy-weight"),
    "unknown nested flag": Failure(
        ("smoke", "--adversaries.mlp.widht", "1"), r"'--adversaries\.mlp\.widht'.*--adversaries\.mlp\.width"
    ),
    "unknown preset": Failure(("fases",), r"'fases'.*smoke, faces, celeba"),
    "too few CPUs": Failure(
        ("smoke", "--runtime.backend", "ray", "--runtime.adversary-cpus", "64"), r"7 actors need 38\d.*CPUs, the cluster has \d"
    ),
    "no such cluster": Failure(("smoke", "--runtime.backend", "ray", "--runtime.address", "127.0.0.1:9"), r"'127\.0\.0\.1:9'"),
    "no address": Failure(("smoke", "--runtime.backend", "ray", "--runtime.address", "nonsense"), r"'nonsense'"),
    "no GPU": Failure(("smoke", "--runtime.backend", "local", "--runtime.device", "cuda"), r"runtime\.device is 'cuda'"),
    "pictures too small for the actor": Failure(
        ("smoke", "--runtime.backend", "ray", "--privacy-weight", "0", "--privatizer.depth", "7"), r"privatizer\.depth is 7"
    ),
    "pictures too small": Failure(("smoke", "--runtime.backend", "local", "--privatizer.depth", "7"), r"privatizer\.depth is 7"),
    "client over its budget": Failure(
        ("smoke", "--runtime.backend", "local", "--privatizer.max-multiply-adds", "100000"),
        r"privatizer\.max_multiply_adds is 100,000, but the client would spend \S+ multiply-adds .*: lower the width",
    ),
    "no tracking store": Failure(
        ("smoke", "--runtime.backend", "local", "--tracking.uri", "http://127.0.0.1:9"), r"http://127\.0\.0\.1:9.*--tracking\.uri"
    ),
    "no undefended twin": Failure(("smoke", "--tracking.undefended", "{data}"), r"tracking\.undefended is \S+.*privatizer\.pt2"),
}


SLOW = ("no such cluster", "no address", "missing folder", "pictures too small for the actor")
"""Cases in a process of their own, similar to `too few CPUs`."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in FAILURES])
def test_train_bad_input_exits_2_with_one_line_and_no_folder(case, workspace, layout, tmp_path, in_process):
    failure = FAILURES[case]
    data = shutil.copytree(layout, tmp_path / "celeba")
    failure.spoil(data)
    arguments = [argument.format(data=data) for argument in failure.arguments]
    common = ["--output", str(tmp_path / "out")]
    if "--data-dir" not in arguments:
        common += ["--cache-dir", str(workspace.cache)]
    if "--tracking.uri" not in arguments:
        common += ["--tracking.uri", workspace.uri]
    if {"ray", "missing folder"} & {case, *arguments}:  # Ray is started; one more case checks that nothing else is printed
        process = run([*arguments, *common], cwd=tmp_path)
        slow = (
            "waiting for nodes that fetch or prepare the data\n"  # printed on a machine where an actor takes half a minute to start
        )
        status, out, err = process.returncode, process.stdout, process.stderr.replace(slow, "")
    else:
        status, out, err = in_process(Path(JOB[-1]), *arguments, *common)
    assert status == 2, err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(failure.message, err), err
    assert len(err) < 1000
    assert out == ""
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------- stopped


@pytest.fixture
def started(
    begin: Callable[..., subprocess.Popen[str]], workspace: Workspace, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Start a job with very many epochs, and wait until it plays."""
    metrics = tmp_path / "out" / "metrics.jsonl"

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [*JOB, "smoke", "--epochs", "10000", "--output", str(tmp_path / "out"), *workspace.common, *arguments]
        return begin(command, lambda: metrics.exists() and metrics.stat().st_size, "the job does not play")

    return start


@pytest.mark.parametrize(
    ("backend", "sent", "status"),
    [
        pytest.param("local", signal.SIGTERM, 143, marks=pytest.mark.slow),
        ("local", signal.SIGINT, 130),
        ("ray", signal.SIGTERM, 143),
    ],
)
def test_train_stopped_by_signal_marks_run_killed(started, workspace, backend, sent, status):
    import mlflow

    job = started("--runtime.backend", backend, "--privacy-weight", "0", "--tracking.run-name", f"{backend} {status}")
    processes = below(job.pid)
    job.send_signal(sent)
    stdout, stderr = job.communicate(timeout=HANG_S)
    assert job.returncode == status, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    client = mlflow.MlflowClient(workspace.uri)
    experiment = client.get_experiment_by_name("cpgan")
    (stopped,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{backend} {status}'")
    assert stopped.info.status == "KILLED"
    assert "utility/loss" in stopped.data.metrics, "earlier metrics must be kept"
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    assert alive == []
