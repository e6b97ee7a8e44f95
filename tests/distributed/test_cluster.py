"""Tests that local clusters listen only on loopback and require a token, and that `ray job stop` leaves time for a checkpoint."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import mlflow
import pytest

from cpgan_ray.distributed.cluster import CONNECT_TIMEOUT_S, join
from cpgan_ray.errors import InputError
from tests.process import HANG_S, RIDGE_ONLY, called, end_all, environment, free_ports, wait_until

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "train_celeba.py"
GAME = (
    f"smoke --adversaries ridge mlp --epochs 10000 {RIDGE_ONLY} --recovery.checkpoint-every 20 "
    "--data.image-size 16 --data.final-fraction 0 --batch-size 80 "
    "--privatizer.depth 2 --tracking.no-log-models --tracking.no-system-metrics"
)
TOKEN = "0123456789abcdef" * 4
BIN = Path(sys.executable).parent


def not_on_loopback(listeners: dict[str, str]) -> dict[str, str]:
    """The listeners whose address is not a loopback address."""
    return {
        address: program
        for address, program in listeners.items()
        if not ip_address(address.split()[0].removeprefix("::ffff:")).is_loopback
    }


def test_job_on_a_local_cluster_listens_only_on_loopback_with_a_token(begin, cache_dir, mlflow_uri, tmp_path, listening):
    output = tmp_path / "out"
    flags = [*GAME.split(), "--cache-dir", cache_dir, "--output", output, "--tracking.uri", mlflow_uri]
    job = begin([sys.executable, JOB, *flags], lambda: list(output.rglob("*.ckpt")), "no round is played")
    listeners = listening(job.pid)
    raylet, *_ = called("raylet", job.pid)
    variables = raylet.environ()
    assert {"gcs_server", "raylet"} <= {*listeners.values()}
    assert any(program.startswith("ray::Adversary") for program in listeners.values())
    assert not_on_loopback(listeners) == {}
    assert (variables["RAY_AUTH_MODE"], variables["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")


# ------------------------------------------------------------------------------------------------------ a head, and jobs


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started as in docs/getting-started.md."""

    process: subprocess.Popen[str]
    url: str
    address: str
    env: dict[str, str]

    def ray(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs `ray ARGUMENTS` as a client with these variables."""
        env = self.env | {"RAY_API_SERVER_ADDRESS": self.url} | variables
        return subprocess.run([str(BIN / "ray"), *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)


def responds(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def head(listening) -> Iterator[Head]:
    folder = tempfile.mkdtemp(dir="/tmp", prefix="ray-")  # short: Ray's socket paths begin with it
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=f"{folder}/token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    env["PATH"] = f"{BIN}:{env['PATH']}"
    Path(folder, "token").write_text(TOKEN)
    Path(folder, "token").chmod(0o600)
    gcs, dashboard, agent, client = free_ports(4)
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    ports += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--num-cpus=2",
        f"--temp-dir={folder}",
        *ports,
    ]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet, text=True)
    url = f"http://127.0.0.1:{dashboard}"
    wait_until(
        lambda: responds(f"{url}/api/version") and "raylet" in listening(process.pid).values(),
        "the head does not respond",
        job=process,
    )
    yield Head(process, url, f"127.0.0.1:{gcs}", env)
    end_all(process)
    shutil.rmtree(folder, ignore_errors=True)  # Ray's processes may still write there


def test_head_of_the_getting_started_page_listens_only_on_loopback(head, listening):
    listeners = listening(head.process.pid)
    assert {"gcs_server", "raylet"} <= {*listeners.values()}
    assert not_on_loopback(listeners) == {}


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_connect_to_something_that_is_no_ray_ends_with_a_line(reply):
    """A server that is silent, or speaks another protocol: Ray would try for many minutes, and ignore SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    connection.sendall(reply)

        connections: list[socket.socket] = []
        thread = threading.Thread(target=answer)
        thread.start()
        address, begun = f"127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        with pytest.raises(InputError, match="no Ray cluster responds"):
            join(address)
        assert time.monotonic() - begun < 10 + CONNECT_TIMEOUT_S
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in connections:
            connection.close()


def test_connect_without_the_heads_variable_joins_on_loopback(head):
    """Ray itself would try for ever from the machine's own address, where the head does not respond."""
    code = "import ray; from cpgan_ray.distributed.cluster import connect; from cpgan_ray.config import RuntimeConfig"
    code += "; connect(RuntimeConfig())"
    env = {name: value for name, value in head.env.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    command = [sys.executable, "-c", f"{code}; print(ray.cluster_resources()['CPU'])"]
    result = subprocess.run(
        command, env=env | {"RAY_ADDRESS": head.address}, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S / 4
    )
    assert (result.returncode, result.stdout) == (0, "2.0\n"), result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        pytest.param({"RAY_AUTH_TOKEN": "f" * 64}, "Invalid authentication token", marks=pytest.mark.slow),
    ],
)
def test_job_submit_without_the_clusters_token_is_refused(head, variables, message):
    result = head.ray("job", "submit", "--submission-id", "intruder", "--", "touch", "/tmp/intruder", **variables)
    assert result.returncode == 1
    assert message in result.stderr + result.stdout
    assert "intruder" not in head.ray("job", "list").stdout


@pytest.mark.slow
def test_ray_job_stop_lets_a_run_write_a_checkpoint_and_resume(head, cache_dir, mlflow_uri, tmp_path):
    output = tmp_path / "out"
    flags = [*GAME.split(), "--cache-dir", str(cache_dir), "--output", str(output)]
    env_vars = {"MLFLOW_TRACKING_URI": mlflow_uri, "RAY_JOB_STOP_WAIT_TIME_S": str(HANG_S)}
    submit = ["job", "submit", "--no-wait", "--submission-id", "game", "--working-dir", ".", "--runtime-env-json"]
    submitted = head.ray(*submit, json.dumps({"env_vars": env_vars}), "--", "python", "jobs/train_celeba.py", *flags)
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: list(output.rglob("*.ckpt")), "no checkpoint is written")
    stopped = head.ray("job", "stop", "game")
    assert "was stopped" in stopped.stdout + stopped.stderr
    played = [json.loads(line)["round"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    newest = max(int(re.findall(r"\d+", path.name)[0]) for path in output.rglob("*.ckpt"))
    assert newest == max(played) + 1, "no played round is lost"
    client, run_id = mlflow.MlflowClient(mlflow_uri), json.loads((output / "config.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert "RAY_JOB_STOP_WAIT_TIME_S" not in head.ray("job", "logs", "game").stdout, "there is no warning"
    more = ["--resume", str(output), "--epochs", str(newest // 4 + 2), "--runtime.backend", "local", "--tracking.uri", mlflow_uri]
    result = subprocess.run(
        [sys.executable, str(JOB), *more], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S
    )
    assert result.returncode == 0, result.stderr
    assert client.get_run(run_id).info.status == "FINISHED"


def test_job_with_too_short_a_stop_time_warns(tmp_path):
    env = environment(RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    command = [sys.executable, str(JOB), "--resume", str(tmp_path)]
    for stop_time_s, warns in (("", True), ("30", False)):
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": stop_time_s} if stop_time_s else {}
        result = subprocess.run(command, env=env | variables, capture_output=True, text=True, timeout=HANG_S)
        assert result.returncode == 2
        assert ("gives this job 3 s to write a checkpoint" in result.stderr) == warns
