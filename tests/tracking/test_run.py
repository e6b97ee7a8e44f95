"""What a run leaves in MLflow and beside it, and that every number logged is explained."""

import http.server
import json
import re
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

from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.common.ownership import is_own
from cpgan_ray.config import Config, TrackingConfig, from_json, override
from cpgan_ray.config.folders import FORMAT
from cpgan_ray.config.presets import preset
from cpgan_ray.data import Dataset, load
from cpgan_ray.errors import InputError
from cpgan_ray.tracking import Console, Tracker, ensure_trackable, read_trials
from cpgan_ray.tracking.run import BATCH_LIMIT, log_dataset
from cpgan_ray.tracking.store import open_store
from cpgan_ray.training.game import play_in_process


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
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (tracker.output / "metrics.jsonl").read_text().splitlines()]


def test_the_metrics_in_mlflow_are_those_in_the_file(start):
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
def test_a_value_that_is_not_finite_keeps_the_file_readable_and_the_rest_in_mlflow(start, value):
    tracker = start()
    tracker.log({"utility/loss": 0.5, "utility/val_balanced_accuracy": value}, step=0)
    tracker.close("FINISHED")
    assert logged(tracker) == {"utility/loss": {0: 0.5}}
    assert lines(tracker)[0]["utility/loss"] == 0.5


def test_metrics_are_sent_while_the_run_goes_on(start):
    tracker = start()
    tracker.log({"utility/loss": 0.5}, step=0)
    tracker.settle()
    assert logged(tracker) == {"utility/loss": {0: 0.5}}
    assert lines(tracker) == [{"round": 0, "utility/loss": 0.5}]
    tracker.close("FINISHED")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_is_told(start, status):
    tracker = start()
    assert tracker.client.get_run(tracker.run_id).info.status == "RUNNING"
    tracker.close(status)
    assert tracker.client.get_run(tracker.run_id).info.status == status
    assert mlflow.active_run() is None


def test_a_run_is_described_by_few_parameters_and_what_differs_from_its_preset(start, tiny):
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


def test_a_run_against_nobody_says_so(start):
    tracker = start(privacy_weight=0)
    tracker.close("FINISHED")
    assert tracker.client.get_run(tracker.run_id).data.params["adversaries"] == "none"


def test_a_run_names_its_data_with_their_digest(start, dataset):
    tracker = start()
    tracker.close("FINISHED")
    (used,) = tracker.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert used.dataset.name == "faces"
    assert used.dataset.digest == dataset.digest
    assert str(dataset.folder) in used.dataset.source
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]


def test_runs_that_begin_together_all_name_the_same_data(mlflow_server):
    client = mlflow.MlflowClient(mlflow_server.start())
    source = resolve_dataset_source("s3://bucket/data")
    together, ways = 4, 10

    def begin(run_id: str, data: MetaDataset, barrier: threading.Barrier) -> None:
        barrier.wait(60)
        log_dataset(client, run_id, data)

    for way in range(ways):
        runs = [client.create_run("0").info.run_id for _ in range(together)]
        barrier, data = threading.Barrier(together), MetaDataset(source, name="faces", digest=f"{way}")
        with ThreadPoolExecutor(together) as pool:
            for done in [pool.submit(begin, run, data, barrier) for run in runs]:
                done.result()
        for run in runs:
            [named] = client.get_run(run).inputs.dataset_inputs
            assert (named.dataset.name, named.dataset.digest) == ("faces", f"{way}")
            assert {tag.key: tag.value for tag in named.tags} == {"mlflow.data.context": "training"}


def test_the_first_runs_of_an_experiment_may_begin_together(mlflow_server, tmp_path):
    uri = mlflow_server.start()
    together = 4

    def begin(experiment: str, barrier: threading.Barrier) -> str:
        barrier.wait(60)
        with open_store(TrackingConfig(uri=uri, experiment=experiment), tmp_path) as client:
            found = client.get_experiment_by_name(experiment)
            assert found is not None
            return found.experiment_id

    for way in range(10):
        barrier = threading.Barrier(together)
        with ThreadPoolExecutor(together) as pool:
            begun = [pool.submit(begin, f"new {way}", barrier) for _ in range(together)]
            assert len({one.result() for one in begun}) == 1


def test_the_configuration_is_left_in_the_folder_and_names_the_store(start, dataset):
    tracker = start(seed=3)
    tracker.close("FINISHED")
    values = json.loads((tracker.output / "config.json").read_text())
    assert Path(values.pop("store")) == dataset.folder
    assert values.pop("run_id") == tracker.run_id
    assert values.pop("format") == FORMAT
    assert from_json(values) == tracker.config
    assert [artifact.path for artifact in tracker.client.list_artifacts(tracker.run_id)] == [
        "config.json",
        "config.json.owner",
        "metrics.jsonl",
    ]
    assert is_own(tracker.output / "config.json")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("localhost:5000", "without http:// in front: write http://localhost:5000"),
        ("alice:secret@localhost:5000", r"\*\*\*@localhost:5000, without http:// in front"),
        ("sqlite://x.db", "too few slashes or no file: write sqlite:///x.db .* sqlite:////x.db"),
        ("file:///tmp/x", "a store of files, which MLflow no longer supports: give http://HOST:PORT"),
        ("/tmp/x", "which is no URI: give http://HOST:PORT"),
        ("gopher://x", "a scheme that MLflow does not know"),
        ("http://", "without a host"),
        ("http://host:99999", "which is no URI"),
        ("http://127.0.0.1:9", r"nothing answers there \(Connection refused\): start the server"),
        ("http://nowhere.invalid", "nothing answers there"),
        ("mysql://alice:secret@host/x", r"mysql://\*\*\*@host/x, but the database driver MySQLdb is not installed here"),
        ("postgresql+psycopg://alice:secret@127.0.0.1:9/x", r"//\*\*\*@127.0.0.1:9/x, and nothing answers there"),
        ("sqlite:////dev/null/x/mlflow.db", "but /dev/null is a file: name another one"),
        ("sqlite:////dev", "which is a folder: name a file in it, such as sqlite:////dev/mlflow.db"),
        (f"sqlite:///{Path(__file__)}", "which is no SQLite database: name another file"),
    ],
)
def test_a_store_that_cannot_be_is_refused_at_once_with_the_remedy(uri, said, tmp_path):
    begun = time.monotonic()
    with pytest.raises(InputError, match=said):
        ensure_trackable(TrackingConfig(uri=uri), tmp_path / "run")
    assert time.monotonic() - begun < 30, "3 s, on a machine with nothing else to do"


class Answers(http.server.BaseHTTPRequestHandler):
    """A server of the test's own: its status and what it says."""

    answer: tuple[int, str] = (200, "hello")

    def do_GET(self) -> None:
        status, text = self.answer
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        if status == 302:
            self.send_header("Location", "http://elsewhere.invalid/")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, "hello"), r"something answers that is not MLflow \(status 200\): check host, port and path"),
        ((200, "[" * 200_000), "not MLflow"),
        ((404, ""), r"not MLflow \(status 404\)"),
        ((401, "who are you"), r"refuses this user or host name \(status 401, 'who are you'\): set MLFLOW_TRACKING_USERNAME"),
        ((403, "Invalid Host header"), r"status 403, 'Invalid Host header'\): .*--allowed-hosts"),
        ((302, ""), "redirects to http://elsewhere.invalid/: give the address of the MLflow server itself"),
    ],
)
def test_a_server_that_is_not_mlflow_or_lets_nobody_in_is_named(answer, said, tmp_path):
    kind = type("Kind", (Answers,), {"answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=said):
            ensure_trackable(TrackingConfig(uri=f"http://127.0.0.1:{server.server_address[1]}"), tmp_path / "run")
        server.shutdown()


def test_a_dead_proxy_does_not_keep_a_run_from_a_server_on_this_machine(mlflow_server, tmp_path, monkeypatch):
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


def test_what_a_stranger_wrote_into_tags_is_shown_as_text_or_refused(mlflow_uri):
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
    with pytest.raises(InputError, match=f"MLflow run {second} is no training of this package"):
        read_trials(mlflow_uri, "mail")


def test_panels_and_a_report_folder_are_artifacts_and_files(start, tmp_path):
    tracker = start()
    tracker.log_panel(Image.new("RGB", (4, 4)), step=7)
    folder = tmp_path / "some"
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
def test_a_tracking_store_that_cannot_be_used_stops_the_run_in_one_line_that_names_it(start, tmp_path, uri):
    (tmp_path / "text.db").write_text("this is no database" * 100)
    uri = uri.format(folder=tmp_path)
    with pytest.raises(InputError) as raised:
        start(**{"tracking.uri": uri})
    assert uri in str(raised.value)
    assert "--tracking.uri" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert mlflow.active_run() is None


def test_the_console_says_in_one_line_on_standard_error_how_the_game_stands(capsys):
    console = Console(total_rounds=4, rounds_per_epoch=2, names=["ridge"])
    validation = {"utility/val_accuracy": 0.7, "utility/val_majority_accuracy": 0.6, "utility/val_balanced_accuracy": 0.65}
    metrics = {"utility/batch_accuracy": 0.75, **validation, "adversary/ridge/r2": 0.125}
    console.show([{"round": 2.0, **metrics}, {"round": 3.0, **metrics}])
    console.close()
    said = capsys.readouterr()
    assert said.out == ""
    validated = r"validation 0\.700 \(majority guess 0\.600, balanced 0\.650\)"
    assert re.fullmatch(rf"round 4/4, \d+\.\d rounds/s, epoch 2, accuracy 0\.750, {validated}, ridge R2 0\.125\n", said.err)


def pattern(name: str) -> str:
    return re.sub(r"<name>", "[^/]+", name)


@pytest.mark.parametrize("schedule", ["sync", "stale1", "epochwise"])
def test_every_metric_that_the_game_returns_is_in_the_dictionary(tiny, schedule):
    game = play_in_process(tiny(epochs=1, changes={"game.schedule": schedule}), threads=1)
    played = game.play(game.rounds_per_epoch)
    names = {name for metrics in played for name in metrics} - {"round"}
    unknown = {name for name in names if not any(re.fullmatch(pattern(known), name) for known in DICTIONARY)}
    assert unknown == set()


# ------------------------------------------------------------------------------------------- a store that goes away


def test_metrics_wait_while_the_store_is_away_and_are_sent_when_it_is_back(start, mlflow_server, capfd):
    tracker = start(**{"tracking.uri": mlflow_server.start()})
    tracker.log({"utility/loss": 0.5}, step=0)
    tracker.settle()
    mlflow_server.stop()
    for step in range(1, 5):
        tracker.log({"utility/loss": 0.5 + step}, step=step)
    tracker.flush()
    tracker.tag("strongest.attack", "mlp")
    assert not tracker.outbox.settle(1.0)
    assert [line["round"] for line in lines(tracker)] == [0, 1, 2, 3, 4], "the file has all of it"
    mlflow_server.start()
    tracker.close("FINISHED")
    assert logged(tracker) == {"utility/loss": {step: 0.5 + step for step in range(5)}}
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["strongest.attack"]) == ("FINISHED", "mlp")
    said = capfd.readouterr().err
    assert said.count("MLflow does not answer") in (1, 2)
    assert "MLflow answers again" in said


def test_a_store_that_stays_away_ends_no_run_and_is_told(start, mlflow_server, capfd, monkeypatch):
    monkeypatch.setattr("cpgan_ray.tracking.run.LAST_S", 1.0)
    tracker = start(**{"tracking.uri": mlflow_server.start()})
    mlflow_server.stop()
    tracker.log({"utility/loss": 0.5}, step=0)
    tracker.close("FINISHED")
    assert lines(tracker) == [{"round": 0, "utility/loss": 0.5}]
    said = capfd.readouterr().err
    assert f"run {tracker.run_id} has no metrics, metrics.jsonl, its end there; everything is in {tracker.output}" in said
