"""The services of compose.yaml run on this machine: jobs are submitted and tracked, and refused without the token."""

import base64
import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.cluster.checks import SECRETS
from tests.cluster.containers import POWERLESS, Composed, Container, missing, read_compose
from tests.deploy import bundles
from tests.process import GONE_S, HANG_S, RIDGE_ONLY, wait_until

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "cluster" / "compose.yaml"

POSTGRES = """
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
install -d -o postgres /mnt/data && echo "$POSTGRES_PASSWORD" > /mnt/data.password && chown postgres /mnt/data.password
as_postgres initdb --pgdata=/mnt/data --username="$POSTGRES_USER" --pwfile=/mnt/data.password --auth=scram-sha-256 --no-sync
echo "host all all all scram-sha-256" >> /mnt/data/pg_hba.conf
echo "CREATE DATABASE $POSTGRES_DB" | as_postgres postgres --single -D /mnt/data postgres
as_postgres postgres -D /mnt/data -c listen_addresses='*' -c unix_socket_directories= -c fsync=off & wait
"""
"""What the image's own entry point does with the same variables. The shell stays as the parent: a process that changes its user
outlives its parent."""


HAS_POSTGRES = all(shutil.which(program) for program in ("initdb", "postgres", "pg_isready", "psql"))
NO_POSTGRES = "this machine has no PostgreSQL (apt-get install postgresql): MLflow uses SQLite in this test"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Composed]:
    """All services, healthy."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("compose")
    shutil.copytree(cache_dir, folder / "shared" / "cache")
    settings = {name: secrets.token_hex(32) for name in SECRETS} | {"MLFLOW_TRACKING_USERNAME": "cpgan", "WORKER_CPUS": "1"}
    compose = read_compose(COMPOSE, settings)
    if not HAS_POSTGRES:
        del compose["services"]["postgres"], compose["services"]["mlflow"]["depends_on"]
        compose["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"] = "sqlite:////mnt/artifacts/mlflow.db"
    bundle = bundles.write(folder / "bundle", bundles.contents())
    Image.fromarray(bundles.smooth_pictures(1, (3, 64, 64), seed=0)[0].transpose(1, 2, 0)).save(bundle.parent / "picture.png")
    replaced = {"postgres": ["sh", "-ec", POSTGRES], "bob": from_this_checkout(compose["services"]["bob"]["command"])}
    with Composed(compose, folder, replaced=replaced, compose_folder=COMPOSE.parent) as composed:
        composed.up()
        yield composed


def from_this_checkout(command: list[str]) -> list[str]:
    """A command of the image, whose code is in /opt/cpgan_ray, with the code of this checkout; without root's privileges."""
    moved = [word.replace("/opt/cpgan_ray", str(ROOT)) for word in command]
    return [*POWERLESS, "env", f"PYTHONPATH={ROOT}", *moved]


JOB = "ray job submit --working-dir . -- python jobs/train_celeba.py smoke --output /mnt/shared/runs/smoke"
"""The command in cluster/README.md."""
QUICKLY = f"--cache-dir /mnt/shared/cache --epochs 1 {RIDGE_ONLY} --tracking.no-log-models"


def submit(head: Container, command: str, *, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """Submit as a client with this token, from the repository's root; the job's output is on standard output."""
    client = {name: value for name, value in head.environment.items() if not name.startswith("RAY_")}
    client |= {"RAY_API_SERVER_ADDRESS": "http://head:8265", "RAY_AUTH_MODE": "token"}
    return head.run(command.split(), env=client | ({"RAY_AUTH_TOKEN": token} if token else {}), cwd=ROOT)


@pytest.fixture(scope="module")
def summary(up: Composed) -> dict:
    """The last line of a submitted job that has succeeded."""
    head = up.containers["head"]
    process = submit(head, f"{JOB} {QUICKLY}", token=head.environment["RAY_AUTH_TOKEN"])
    assert process.returncode == 0, process.stdout + process.stderr
    assert "succeeded" in process.stdout
    return json.loads(next(line for line in process.stdout.splitlines() if line.startswith("{")))


def test_job_submitted_as_in_the_readme_succeeds(up, summary):
    assert JOB in (ROOT / "cluster" / "README.md").read_text()
    assert summary["output"] == "/mnt/shared/runs/smoke"
    output = up.folder / "shared" / "runs" / "smoke"
    assert json.loads((output / "report" / "report.json").read_text())["privacy"]["strongest"]["attack"] == "ridge"


TRACKED = """
import json, sys, mlflow
client = mlflow.MlflowClient()
run = client.get_run(sys.argv[1])
print(json.dumps([run.info.status, run.info.artifact_uri, "privacy/strongest_r2" in run.data.metrics]))
print(client.download_artifacts(sys.argv[1], "config.json", "/mnt"))
"""


def test_tracking_server_has_the_run_and_its_files(up, summary):
    process = up.containers["worker"].run(["python", "-W", "ignore", "-c", TRACKED, summary["run_id"]])
    assert process.returncode == 0, process.stderr
    status, artifact_uri, measured = json.loads(process.stdout.splitlines()[0])
    assert (status, measured) == ("FINISHED", True)
    assert artifact_uri.startswith("mlflow-artifacts:/")
    assert list((up.folder / "artifacts").rglob("report.json")), "they are on the server's volume"


@pytest.mark.skipif(not HAS_POSTGRES, reason=NO_POSTGRES)
def test_database_has_the_run_and_requires_the_password(up, summary):
    mlflow = up.containers["mlflow"]
    query = [
        "psql",
        "--host=postgres",
        "--username=mlflow",
        "--no-password",
        "--tuples-only",
        "--command=SELECT run_uuid FROM runs",
    ]
    password = up.containers["postgres"].environment["POSTGRES_PASSWORD"]
    assert mlflow.run(query, env=mlflow.environment | {"PGPASSWORD": password}).stdout.split() == [summary["run_id"]]
    refused = mlflow.run(query, env=mlflow.environment | {"PGPASSWORD": "wrong"})
    assert "password authentication failed" in refused.stderr


def test_containers_have_a_read_only_disk_and_no_root_privileges(up):
    for name, container in up.containers.items():
        process = container.run(["touch", "/usr/local/written"])
        assert "Read-only file system" in process.stderr, name
        if name != "postgres":
            status = container.run(["cat", "/proc/1/status"]).stdout
            assert re.search(r"^CapBnd:\s+0+\nCapAmb:\s+0+\nNoNewPrivs:\s+1$", status, re.MULTILINE), name


@pytest.mark.parametrize("login", [(), ("cpgan", "0" * 64)], ids=["no password", "a wrong password"])
def test_tracking_server_without_the_password_refuses(up, login):
    head = up.containers["head"]
    without_login = {name: value for name, value in head.environment.items() if not name.startswith("MLFLOW_TRACKING_")}
    credentials = dict(zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), login, strict=False))
    process = head.run(["python", "-W", "ignore", "-c", SEARCH], env=without_login | credentials)
    assert process.returncode != 0
    assert "401" in process.stderr or "not authenticated" in process.stderr, process.stderr


SEARCH = "import mlflow; print(mlflow.MlflowClient('http://mlflow:5000').search_experiments(max_results=1))"


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("mlflow:5000", None, 200),  # a job
        ("127.0.0.1:5000", "http://127.0.0.1:5000", 200),  # a browser on the machine with the published or forwarded port
        ("localhost:5000", "http://localhost:5000", 200),
        ("evil.example:5000", None, 403),
        ("127.0.0.1:5000", "http://evil.example", 403),
    ],
)
def test_tracking_server_refuses_other_host_names_and_origins(up, host, origin, status):
    search = "http://mlflow:5000/ajax-api/2.0/mlflow/experiments/search"
    head = up.containers["head"]
    login = ":".join(head.environment[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    headers = {"Host": host, "Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    headers |= {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    ask = ["wget", "--quiet", "--output-document=-", "--server-response", '--post-data={"max_results": 1}']
    answer = head.run([*ask, *(f"--header={name}: {value}" for name, value in headers.items()), search])
    assert f"HTTP/1.1 {status}" in answer.stderr


@pytest.mark.parametrize(
    ("key", "status", "words"), [(None, 0, "Smiling"), ("0" * 64, 1, "answers 401")], ids=["the key", "another"]
)
def test_service_answers_a_client_with_the_key(up, key, status, words):
    bob = up.containers["bob"]
    client = ["python", "-m", "cpgan_ray.deploy.client", "/mnt/bundle", "http://127.0.0.1:8000", f"{up.folder}/picture.png"]
    ran = bob.run(client, env=bob.environment | {"PYTHONPATH": str(ROOT)} | ({"CPGAN_API_KEY": key} if key else {}))
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert words in ran.stdout + ran.stderr
    assert bob.environment["CPGAN_API_KEY"] not in bob.log.read_text()


def nodes(head: Container, *tokens: str) -> subprocess.CompletedProcess[str]:
    """The dashboard's response about the cluster's nodes."""
    ask = ["wget", "--quiet", "--output-document=-", "--server-response", "http://head:8265/nodes?view=summary"]
    return head.run([*ask, *(f"--header=Authorization: Bearer {token}" for token in tokens)])


def test_head_and_workers_are_one_cluster(up):
    head = up.containers["head"]
    summary = json.loads(nodes(head, head.environment["RAY_AUTH_TOKEN"]).stdout)["data"]["summary"]
    assert {node["ip"] for node in summary if node["raylet"]["state"] == "ALIVE"} == {
        up.addresses[name] for name in ("head", "worker", "worker-2")
    }


def test_cluster_without_the_right_token_refuses(up):
    head = up.containers["head"]
    for tokens in ((), ("0" * 64,)):
        response = nodes(head, *tokens)
        assert re.search(r"HTTP/1.1 40[13]", response.stderr), response.stderr
        assert response.stdout == ""
    refused = submit(head, "ray job submit -- true", token="0" * 64)
    assert refused.returncode != 0
    assert re.search("Unauthenticated|Unauthorized|authentication", refused.stdout + refused.stderr, re.IGNORECASE)
    address = "--address=head:6379"
    stranger = head.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    assert head.run(["ray", "status", address], env=stranger, timeout=HANG_S).returncode != 0


def rounds_written(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
def test_job_after_the_loss_and_return_of_a_worker_has_equal_numbers(up, summary):
    """The other worker cannot hold all players, so the game waits; the numbers equal those of a run without a loss."""
    head, lost_worker = up.containers["head"], up.containers["worker-2"]
    run = up.folder / "shared" / "runs" / "lossy"
    flags = [*QUICKLY.replace("--epochs 1", "--epochs 40").split(), "--tracking.run-name", "lossy"]
    command = " ".join([JOB.replace("runs/smoke", "runs/lossy"), *flags])
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(submit, head, command, token=head.environment["RAY_AUTH_TOKEN"])
        wait_until(lambda: rounds_written(run) > 20 or job.done(), "the game has not begun")
        lost_worker.process.kill()
        lost_worker.process.wait(GONE_S)
        played = rounds_written(run)
        time.sleep(20)
        up.start("worker-2")
        wait_until(lambda: rounds_written(run) > played + 20 or job.done(), f"the run stays at {played} rounds")
        process = job.result(timeout=HANG_S)
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(next(line for line in process.stdout.splitlines() if line.startswith("{")))
    assert "played again" in process.stdout, "rounds were replayed"
    alone = up.folder / "alone"
    cache = [
        "--cache-dir",
        str(up.folder / "shared" / "cache"),
        "--output",
        str(alone / "run"),
        "--tracking.uri",
        f"sqlite:///{alone}.db",
    ]
    local = [sys.executable, "jobs/train_celeba.py", "smoke", *flags[2:], *cache, "--runtime.backend", "local"]
    expected = subprocess.run(local, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    for name in ("accuracy", "strongest"):
        assert result[name] == json.loads(expected)[name]
