"""Tests of what a run logs to MLflow and to its folder, and of the checks of the tracking store."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from PIL import Image

from cpgan_ray.common import logs
from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.common.ownership import is_own
from cpgan_ray.config import Config, TrackingConfig, from_json, override
from cpgan_ray.config.folders.records import FORMAT
from cpgan_ray.config.presets import preset
from cpgan_ray.data import Dataset, load
from cpgan_ray.errors import InputError
from cpgan_ray.tracking import Console, Tracker, ensure_trackable, read_trials
from cpgan_ray.tracking.outbox import BATCH_LIMIT
from cpgan_ray.tracking.run import log_dataset
from cpgan_ray.tracking.store import open_store
from cpgan_ray.training.game import play_in_process
from tests.process import HANG_S

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset(tiny: Callable[..., Config]) -> Dataset:
    return load(tiny())


@pytest.fixture
def start(tiny, dataset, mlflow_uri, tmp_path) -> Iterator[Callable[..., Tracker]]:
    """Start a run with fields changed by their dotted names; its folder is `<tmp_path>/run`."""

    def make(config: Config | None = None, **changes: Any) -> Tracker:
        output = tmp_path / "run"
        output.mkdir(exist_ok=True)
        config = override(config or tiny(), {"tracking.uri": mlflow_uri, **changes})
        return Tracker(config, output, dataset=dataset)

    yield make
    if mlflow.active_run():
        mlflow.end_run("KILLED")
    mlflow.set_tracking_uri(None)


def logged(tracker: Tracker) -> dict[str, dict[int, float]]:
    """All metrics in MLflow: name -> step -> value."""
    names = tracker.client.get_run(tracker.run_id).data.metrics
    return {name: {m.step: m.value for m in tracker.client.get_metric_history(tracker.run_id, name)} for name in names}


def lines(tracker: Tracker) -> list[dict[str, float]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (tracker.output / "metrics.jsonl").read_text().splitlines()]


def test_log_writes_the_same_metrics_to_mlflow_and_the_file(start):
    tracker = start()
    written = [{"utility/loss": 1 / (step + 1), "utility/batch_accuracy": step / 1000} for step in range(600)]
    assert 2 * len(written) > BATCH_LIMIT
    for step, metrics in enumerate(written):
        tracker.log(metrics, step=step)
    tracker.close("FINISHED")
    assert lines(tracker) == [{"round": step} | metrics for step, metrics in enumerate(written)]
    expected = {name: {step: metrics[name] for step, metrics in enumerate(written)} for name in written[0]}
    assert logged(tracker) == {name: pytest.approx(values) for name, values in expected.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_log_of_a_value_that_is_not_finite_keeps_the_others(start, value):
    tracker = start()
    tracker.log({"utility/loss": 0.5, "utility/val_balanced_accuracy": value}, step=0)
    tracker.close("FINISHED")
    assert logged(tracker) == {"utility/loss": {0: 0.5}}
    assert lines(tracker)[0]["utility/loss"] == 0.5


def test_settle_sends_metrics_before_the_end_of_the_run(start):
    tracker = start()
    tracker.log({"utility/loss": 0.5}, step=0)
    tracker.settle()
    assert logged(tracker) == {"utility/loss": {0: 0.5}}
    assert lines(tracker) == [{"round": 0, "utility/loss": 0.5}]
    tracker.close("FINISHED")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_close_sets_the_status_of_the_run(start, status):
    tracker = start()
    assert tracker.client.get_run(tracker.run_id).info.status == "RUNNING"
    tracker.close(status)
    assert tracker.client.get_run(tracker.run_id).info.status == status
    assert mlflow.active_run() is None


def test_tracker_logs_few_params_and_the_differences_from_the_preset(start, tiny):
    config = replace(preset("smoke"), k=7, cache_dir=tiny().cache_dir)
    tracker = start(config, **{"adversaries.mlp.width": 5, "tracking.experiment": "another", "tracking.system_metrics": False})
    tracker.close("FINISHED")
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.params["k"] == "7"
    assert run.data.params["adversaries"] == "ridge ridge_epoch rbf fourier mlp decoder"
    assert len(run.data.params) < 20
    changed = {name: value for name, value in run.data.tags.items() if name.startswith("changed.")}
    assert changed == {"changed.k": "7", "changed.adversaries.mlp.width": "5"}
    assert tracker.client.get_experiment(run.info.experiment_id).name == "another"
    assert run.info.run_name == "smoke k=7 w=1"


def test_tracker_of_an_undefended_run_logs_no_adversaries(start):
    tracker = start(privacy_weight=0)
    tracker.close("FINISHED")
    assert tracker.client.get_run(tracker.run_id).data.params["adversaries"] == "none"


def test_tracker_logs_the_data_set_with_its_digest(start, dataset):
    tracker = start()
    tracker.close("FINISHED")
    (logged_data,) = tracker.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert logged_data.dataset.name == "faces"
    assert logged_data.dataset.digest == dataset.digest
    assert str(dataset.folder) in logged_data.dataset.source
    assert [(tag.key, tag.value) for tag in logged_data.tags] == [("mlflow.data.context", "training")]


def test_log_dataset_by_concurrent_runs_succeeds_for_all(mlflow_server):
    client = mlflow.MlflowClient(mlflow_server.start())
    source = resolve_dataset_source("s3://bucket/data")
    num_runs, repeats = 4, 10

    def begin(run_id: str, data: MetaDataset, barrier: threading.Barrier) -> None:
        barrier.wait(60)
        log_dataset(client, run_id, data)

    for repeat in range(repeats):
        runs = [client.create_run("0").info.run_id for _ in range(num_runs)]
        barrier, data = threading.Barrier(num_runs), MetaDataset(source, name="faces", digest=f"{repeat}")
        with ThreadPoolExecutor(num_runs) as pool:
            for future in [pool.submit(begin, run, data, barrier) for run in runs]:
                future.result()
        for run in runs:
            [logged_data] = client.get_run(run).inputs.dataset_inputs
            assert (logged_data.dataset.name, logged_data.dataset.digest) == ("faces", f"{repeat}")
            assert {tag.key: tag.value for tag in logged_data.tags} == {"mlflow.data.context": "training"}


def test_open_store_by_concurrent_first_runs_creates_one_experiment(mlflow_server, tmp_path):
    uri = mlflow_server.start()
    num_runs = 4

    def begin(experiment: str, barrier: threading.Barrier) -> str:
        barrier.wait(60)
        with open_store(TrackingConfig(uri=uri, experiment=experiment), tmp_path) as client:
            created = client.get_experiment_by_name(experiment)
            assert created is not None
            return created.experiment_id

    for repeat in range(10):
        barrier = threading.Barrier(num_runs)
        with ThreadPoolExecutor(num_runs) as pool:
            futures = [pool.submit(begin, f"new {repeat}", barrier) for _ in range(num_runs)]
            assert len({future.result() for future in futures}) == 1


OPEN = """
import sys
from pathlib import Path
from cpgan_ray.config import TrackingConfig
from cpgan_ray.tracking.store import open_store
with open_store(TrackingConfig(uri=sys.argv[1]), Path(sys.argv[2])) as client:
    print(client.get_experiment_by_name("cpgan").experiment_id)
"""


def test_new_sqlite_store_is_made_by_concurrent_processes(tmp_path):
    """As by two jobs that are started at once and keep their runs in one new folder."""
    command = [sys.executable, "-W", "ignore", "-c", OPEN, f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "run")]
    pipe = subprocess.PIPE
    jobs = [subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    ended = [job.communicate(timeout=HANG_S) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], ended
    assert {out for out, _ in ended} == {"1\n"}


def test_tracker_writes_the_configuration_with_the_store(start, dataset):
    tracker = start(seed=3)
    tracker.close("FINISHED")
    values = json.loads((tracker.output / "config.json").read_text())
    assert Path(values.pop("store")) == dataset.folder
    assert (values.pop("run_id"), values.pop("format")) == (tracker.run_id, FORMAT)
    assert from_json(values) == tracker.config
    assert [artifact.path for artifact in tracker.client.list_artifacts(tracker.run_id)] == [
        "config.json",
        "config.json.owner",
        "metrics.jsonl",
    ]
    assert is_own(tracker.output / "config.json")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:5000", "without http:// at the beginning: write http://localhost:5000"),
        ("alice:secret@localhost:5000", r"\*\*\*@localhost:5000, without http:// at the beginning"),
        ("sqlite://x.db", "too few slashes or no file: write sqlite:///x.db .* sqlite:////x.db"),
        ("file:///tmp/x", "a file store, which MLflow no longer supports: give http://HOST:PORT"),
        ("/tmp/x", "which is not a URI: give http://HOST:PORT"),
        ("gopher://x", "a scheme that MLflow does not know"),
        ("http://", "without a host"),
        ("http://host:99999", "which is not a URI"),
        ("http://127.0.0.1:9", r"the connection failed \(Connection refused\): start the server"),
        ("http://nowhere.invalid", "the connection failed"),
        ("mysql://alice:secret@host/x", r"mysql://\*\*\*@host/x, but the database driver MySQLdb is not installed: pip install"),
        ("postgresql+psycopg://alice:secret@127.0.0.1:9/x", r"//\*\*\*@127.0.0.1:9/x, but the connection failed"),
        ("sqlite:////dev/null/x/mlflow.db", "but /dev/null is a file: give another path"),
        ("sqlite:////dev", "which is a folder: give a file in it, such as sqlite:////dev/mlflow.db"),
        (f"sqlite:///{Path(__file__)}", "which is not an SQLite database: give another file"),
    ],
)
def test_ensure_trackable_with_a_wrong_uri_names_the_remedy(uri, message, tmp_path):
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        ensure_trackable(TrackingConfig(uri=uri), tmp_path / "run")
    assert time.monotonic() - started < 30, "3 s on an idle machine"


class FixedResponse(http.server.BaseHTTPRequestHandler):
    """A server that always sends the same status and text."""

    response: tuple[int, str] = (200, "hello")

    def do_GET(self) -> None:
        status, text = self.response
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        if status == 302:
            self.send_header("Location", "http://elsewhere.invalid/")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ((200, "hello"), r"the response is not from MLflow \(status 200\): check host, port and path"),
        ((200, "[" * 200_000), "not from MLflow"),
        ((404, ""), r"not from MLflow \(status 404\)"),
        ((401, "who are you"), r"refuses this user or host name \(status 401, 'who are you'\): set MLFLOW_TRACKING_USERNAME"),
        ((403, "Invalid Host header"), r"status 403, 'Invalid Host header'\): .*--allowed-hosts"),
        ((302, ""), "redirects to http://elsewhere.invalid/: give the address of the MLflow server itself"),
    ],
)
def test_ensure_trackable_with_another_server_names_it(response, message, tmp_path):
    handler = type("Handler", (FixedResponse,), {"response": response})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=message):
            ensure_trackable(TrackingConfig(uri=f"http://127.0.0.1:{server.server_address[1]}"), tmp_path / "run")
        server.shutdown()


def test_open_store_on_loopback_ignores_a_dead_proxy(mlflow_server, tmp_path, monkeypatch):
    uri = mlflow_server.start()
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://alice:secret@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    with pytest.raises(InputError, match=r"through the proxy http://\*\*\*@127\.0\.0\.1:9: add mlflow\.invalid to no_proxy"):
        ensure_trackable(TrackingConfig(uri="http://mlflow.invalid:5000"), tmp_path / "run")
    ensure_trackable(TrackingConfig(uri=uri), tmp_path / "run")
    with open_store(TrackingConfig(uri=uri), tmp_path / "run") as client:
        assert client.search_experiments()


def test_read_trials_with_hostile_tags_escapes_or_refuses_them(mlflow_uri):
    client = mlflow.MlflowClient(mlflow_uri)
    experiment = client.create_experiment("mail")

    def run(**tags: str) -> str:
        run_id = client.create_run(experiment, tags={"search.trial": "t\x1b[2J", **tags}).info.run_id
        client.log_param(run_id, "k", "8")
        client.log_param(run_id, "privacy_weight", "1.0")
        return run_id

    first = run(**{"search.setting": json.dumps({"k\x1b": "\u202ex"}), "search.state": "<b>"})
    [trial] = read_trials(mlflow_uri, "mail")
    assert (trial.name, trial.setting, trial.state) == ("t\\x1b[2J", {"k\\x1b": "\\u202ex"}, "running")
    client.delete_run(first)
    second = run(**{"search.setting": "[" * 4000})
    with pytest.raises(InputError, match=f"MLflow run {second} is not a training run of this package"):
        read_trials(mlflow_uri, "mail")


def test_panels_and_report_folder_are_artifacts_and_files(start, tmp_path):
    tracker = start()
    tracker.log_panel(Image.new("RGB", (4, 4)), step=7)
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    Image.new("RGB", (4, 4)).save(folder / "worst.png")
    tracker.log_folder(folder, "report")
    tracker.close("FINISHED")
    with Image.open(tracker.output / "report" / "reconstructions-000007.png") as panel:
        assert panel.size == (4, 4)
    artifacts = {a.path: [b.path for b in tracker.client.list_artifacts(tracker.run_id, a.path)] for a in
                 tracker.client.list_artifacts(tracker.run_id) if a.is_dir}  # fmt: skip
    assert artifacts["report"] == ["report/report.json", "report/worst.png"]
    assert "images/worst.png" in artifacts["images"]
    assert any(re.match(r"images/reconstructions.*step.*7.*\.png", path) for path in artifacts["images"])


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///{folder}/text.db/mlflow.db",
        "sqlite:///{folder}/text.db",
        "{folder}/mlruns",
        "gopher://127.0.0.1",
    ],
)
def test_tracker_with_an_unusable_store_fails_in_one_line(start, tmp_path, uri):
    (tmp_path / "text.db").write_text("this is not a database" * 100)
    uri = uri.format(folder=tmp_path)
    with pytest.raises(InputError) as raised:
        start(**{"tracking.uri": uri})
    assert uri in str(raised.value)
    assert "--tracking.uri" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert mlflow.active_run() is None


def test_console_shows_one_line_with_the_state_of_the_game(capsys):
    logs.configure()
    console = Console(total_rounds=4, rounds_per_epoch=2, names=["ridge"])
    validation = {"utility/val_accuracy": 0.7, "utility/val_majority_accuracy": 0.6, "utility/val_balanced_accuracy": 0.65}
    metrics = {"utility/batch_accuracy": 0.75, **validation, "adversary/ridge/r2": 0.125}
    console.show([{"round": 2.0, **metrics}, {"round": 3.0, **metrics}])
    console.close()
    output = capsys.readouterr()
    assert output.out == ""
    validation_text = r"validation 0\.700 \(majority guess 0\.600, balanced 0\.650\)"
    assert re.fullmatch(rf"round 4/4, \d+\.\d rounds/s, epoch 2, accuracy 0\.750, {validation_text}, ridge R2 0\.125\n", output.err)


def pattern(name: str) -> str:
    return re.sub(r"<name>", "[^/]+", name)


@pytest.mark.parametrize("schedule", ["sync", "stale1", "epochwise"])
def test_every_metric_of_the_game_is_in_the_dictionary(tiny, schedule):
    game = play_in_process(tiny(epochs=1, changes={"game.schedule": schedule}), threads=1)
    played = game.play(game.rounds_per_epoch)
    names = {name for metrics in played for name in metrics} - {"round"}
    unknown = {name for name in names if not any(re.fullmatch(pattern(known), name) for known in DICTIONARY)}
    assert unknown == set()


# ------------------------------------------------------------------------------------------- an unavailable store


def test_metrics_logged_without_a_store_are_sent_when_it_is_back(start, mlflow_server, capfd):
    logs.configure()
    tracker = start(**{"tracking.uri": mlflow_server.start()})
    tracker.log({"utility/loss": 0.5}, step=0)
    tracker.settle()
    mlflow_server.stop()
    for step in range(1, 5):
        tracker.log({"utility/loss": 0.5 + step}, step=step)
    tracker.flush()
    tracker.tag("strongest.attack", "mlp")
    assert not tracker.outbox.settle(1.0)
    assert [line["round"] for line in lines(tracker)] == [0, 1, 2, 3, 4], "the file has all rounds"
    mlflow_server.start()
    tracker.close("FINISHED")
    assert logged(tracker) == {"utility/loss": {step: 0.5 + step for step in range(5)}}
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["strongest.attack"]) == ("FINISHED", "mlp")
    log = capfd.readouterr().err
    assert log.count("MLflow does not respond") in (1, 2)
    assert "MLflow responds again" in log


@pytest.mark.slow
def test_close_without_a_store_warns_with_what_is_missing(start, mlflow_server, capfd, monkeypatch):
    logs.configure()
    monkeypatch.setattr("cpgan_ray.tracking.run.FINAL_SETTLE_S", 1.0)
    tracker = start(**{"tracking.uri": mlflow_server.start()})
    mlflow_server.stop()
    tracker.log({"utility/loss": 0.5}, step=0)
    tracker.close("FINISHED")
    assert lines(tracker) == [{"round": 0, "utility/loss": 0.5}]
    log = capfd.readouterr().err
    assert f"no metrics, metrics.jsonl, final status of run {tracker.run_id}; everything is in {tracker.output}" in log
