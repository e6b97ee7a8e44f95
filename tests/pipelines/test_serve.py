"""jobs/serve.py as a process, with replicas of Ray Serve: answers under load while replicas die and bundles change; its ports, logs
and end. Before that, in this process, what it refuses to start with."""

import dataclasses
import json
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from cpgan_ray.config import ServeJob
from cpgan_ray.deploy.answers import Answer, probabilities
from cpgan_ray.deploy.bundle import Bundle, read_bundle
from cpgan_ray.deploy.client import Client
from cpgan_ray.deploy.connection import Connection, ServiceError
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.serve.checks import certificate_of, ensure_protected, reserved_port
from cpgan_ray.pipelines.serve.shelf import Shelf, write_keys
from tests.deploy import bundles
from tests.deploy.bundles import LABELS, SIDE, expected_logits, smooth_pictures
from tests.deploy.certificates import self_signed
from tests.process import GONE_S, HANG_S, below, called, end_all, environment, free_ports, wait_until

ROOT = Path(__file__).parents[2]
KEYS = [secrets.token_hex(16) for _ in range(3)]
MARK = "never-to-be-logged"
PICTURES = list(smooth_pictures(4, (3, SIDE, SIDE), seed=1))
REPLICA = "ray::ServeReplica"


@pytest.fixture(scope="module")
def contents() -> list[dict[str, bytes]]:
    """The files of three bundles; the third one has another digest than the first one, but the same models."""
    first, second = (bundles.contents(seed=seed) for seed in range(2))
    return [first, second, bundles.remake(first, name="third")]


def expected(bundle: Bundle) -> list[Answer]:
    """The answers to PICTURES."""
    with Client(bundle) as client:
        z = bundle.codec.codes(bundle.codec.levels(client.codes(PICTURES)))  # type: ignore[union-attr]
    return probabilities(expected_logits(bundle, z), LABELS)


@dataclass
class Job:
    """The job as a process, and what it has printed."""

    process: subprocess.Popen[str]
    folder: Path
    bundle: Path
    keys_file: Path
    port: int
    errors: Path
    summary: dict = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replicas(self) -> list[psutil.Process]:
        return called(REPLICA, self.process.pid)

    def replace_bundle(self, files: dict[str, bytes]) -> Bundle:
        """Another bundle at the same path, as an operator puts it there, and a reload. Returns it."""
        lines = self.errors.read_text().count("now answers for bundle")
        temporary = self.bundle.with_name("next")
        bundles.write(temporary, files)
        shutil.rmtree(self.bundle)
        temporary.rename(self.bundle)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(
            lambda: self.errors.read_text().count("now answers for bundle") > lines, "no reload", job=self.process, timeout_s=GONE_S
        )
        return read_bundle(self.bundle)


@pytest.fixture(scope="module")
def job(contents: list[dict[str, bytes]]) -> Iterator[Job]:
    folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))  # short: Ray puts sockets there
    try:
        bundle, keys_file = bundles.write(folder / "bundle", contents[0]), folder / "keys"
        keys_file.write_text(f"{KEYS[0]}\n{KEYS[1]}\n")
        (port,) = free_ports(1)
        command = [sys.executable, "jobs/serve.py", str(bundle), "--no-demo", "--port", str(port), "--keys-file", str(keys_file)]
        variables = {"RAY_TMPDIR": str(folder), "TMPDIR": str(folder), "CPGAN_API_KEY": KEYS[2]}
        with (folder / "err").open("w") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(**variables), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        started = Job(process, folder, bundle, keys_file, port, folder / "err")
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, started.errors.read_text()
            started.summary = json.loads(line)
            yield started
        finally:
            end_all(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Load:
    """Clients that ask all the time, each over a connection of its own, and compare the answers with the expected ones."""

    def __init__(self, job: Job, bundle: Bundle, *, clients: int = 4) -> None:
        self.expected, self.answered, self.retries = expected(bundle), 0, 0
        self.problems: list[str] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(job, bundle)) for _ in range(clients)]

    def _ask(self, job: Job, bundle: Bundle) -> None:
        try:
            with Client(bundle, job.url, api_key=KEYS[0]) as client:
                while not self._end.is_set():
                    answers = client.answers(PICTURES)
                    if not close(answers, self.expected):
                        self.problems.append(f"wrong: {answers}")
                        return
                    self.answered += 1
                assert client.connection is not None
                self.retries += client.connection.retries
        except Exception as e:
            self.problems.append(f"{type(e).__name__}: {e}")

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.answered > 50 or self.problems, "no answers", timeout_s=GONE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(GONE_S)


def close(answers: list[Answer], expected: list[Answer]) -> bool:
    """Whether answers are equal up to the rounding of another batch size."""
    return all(
        np.allclose(list(a[name].values()) if isinstance(a[name], dict) else a[name],  # type: ignore[union-attr]
                    list(e[name].values()) if isinstance(e[name], dict) else e[name], atol=1e-5)  # type: ignore[union-attr]
        for a, e in zip(answers, expected, strict=True)
        for name in e
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- the running job


def test_job_prints_its_address_and_no_key_that_was_given(job):
    assert job.summary["url"] == job.url
    assert job.summary["digests"] == [read_bundle(job.bundle).digest]
    assert (job.summary["key"], job.summary["replicas"], job.summary["process"]) == (None, 2, job.process.pid)
    assert not any(key in json.dumps(job.summary) for key in KEYS)


def test_both_keys_of_the_file_are_valid_and_no_other_one(job):
    bundle = read_bundle(job.bundle)
    for key in KEYS[:2]:
        with Client(bundle, job.url, api_key=key) as client:
            assert close(client.answers(PICTURES), expected(bundle))
    for key in (None, KEYS[2], KEYS[0][:-1]):
        with Client(bundle, job.url, api_key=key) as client, pytest.raises(ServiceError) as error:
            client.answers(PICTURES)
        assert error.value.status == 401


def test_all_ports_are_on_loopback(job):
    addresses = set()
    for process in [psutil.Process(job.process.pid), *below(job.process.pid)]:
        addresses |= {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert job.port in {address.port for address in addresses}
    assert {address.ip.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "::1"}


def test_metrics_are_those_of_all_replicas(job):
    bundle = read_bundle(job.bundle)
    before = codes_counted(job, bundle)
    for _ in range(20):  # each over a new connection, so both replicas get some
        with Client(bundle, job.url, api_key=KEYS[0]) as client:
            client.answers(PICTURES)
    assert codes_counted(job, bundle) - before == 20 * len(PICTURES)


def codes_counted(job: Job, bundle: Bundle) -> float:
    connection = Connection(job.url, api_key=KEYS[0])
    text = connection.request("GET", "/metrics").decode()
    connection.close()
    match = re.search(rf'^cpgan_codes_total{{bundle="{bundle.digest[:12]}"}} (\S+)$', text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def test_killed_replica_under_load_costs_no_answer(job):
    with Load(job, read_bundle(job.bundle)) as load:
        kill_one(job, load)
    assert load.problems == []


def kill_one(job: Job, load: Load) -> None:
    """Kill a replica, and wait until its replacement answers and the others have answered meanwhile."""
    victim, *_ = replicas = job.replicas()
    assert len(replicas) == 2
    answered = load.answered
    victim.kill()
    wait_until(lambda: victim.pid not in {p.pid for p in job.replicas()}, "it lives", timeout_s=GONE_S)
    wait_until(lambda: listening(job) == 2, "no replacement", timeout_s=GONE_S)
    wait_until(lambda: load.answered > answered + 100 or load.problems, "no answers", timeout_s=GONE_S)


def listening(job: Job) -> int:
    """How many replicas listen on the port."""
    connections = [c for replica in job.replicas() for c in replica.net_connections("inet")]
    return sum(c.status == psutil.CONN_LISTEN and c.laddr.port == job.port for c in connections)


def test_new_bundles_under_load_cost_no_answer(job, contents):
    """Clients with the old bundle are answered from it, those with the new one from the new one; no replica restarts."""
    old, replicas = read_bundle(job.bundle), {p.pid for p in job.replicas()}
    with Load(job, old) as load:
        new = job.replace_bundle(contents[1])
        assert new.digest != old.digest
        with Load(job, new) as new_load:
            wait_until(lambda: new_load.answered > 200 or new_load.problems, "no answers", timeout_s=GONE_S)
    assert (load.problems, new_load.problems) == ([], [])
    assert {p.pid for p in job.replicas()} == replicas
    for _ in range(10):  # both replicas
        with Client(old, job.url, api_key=KEYS[0]) as client:
            spec = client.spec()
        assert spec["digest"] == new.digest
        assert [one["digest"] for one in spec["bundles"]] == [new.digest, old.digest]
        assert spec["bundles"][1]["until"] > time.time() + 3000


def test_replica_that_starts_after_a_change_has_both_bundles(job, contents):
    before = {p.pid for p in job.replicas()}
    for replica in job.replicas():
        replica.kill()
    wait_until(lambda: len({p.pid for p in job.replicas()} - before) == 2, "no replacement", timeout_s=GONE_S)
    for one in (read_bundle(job.bundle), read_bundle(bundles.write(job.folder / "first", contents[0]))):
        with Client(one, job.url, api_key=KEYS[0], attempts=12) as client:
            assert close(client.answers(PICTURES), expected(one))


def test_damaged_bundle_changes_nothing_and_is_reported(job):
    good = (job.bundle / "utility_head.onnx").read_bytes()
    (job.bundle / "utility_head.onnx").write_bytes(good[:-1])
    job.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "nothing is reloaded" in job.errors.read_text(), "no message", job=job.process, timeout_s=GONE_S)
    assert "utility_head.onnx has" in job.errors.read_text()
    (job.bundle / "utility_head.onnx").write_bytes(good)
    bundle = read_bundle(job.bundle)
    with Client(bundle, job.url, api_key=KEYS[0]) as client:
        assert close(client.answers(PICTURES), expected(bundle))


def test_keys_change_without_a_restart(job):
    bundle = read_bundle(job.bundle)
    job.keys_file.write_text(f"{KEYS[0]}\n{KEYS[2]}\n")
    lines = job.errors.read_text().count("has read its keys again")
    job.process.send_signal(signal.SIGUSR1)
    wait_until(
        lambda: job.errors.read_text().count("has read its keys again") > lines, "no reload", job=job.process, timeout_s=GONE_S
    )
    for _ in range(5):
        with Client(bundle, job.url, api_key=KEYS[2]) as client:
            assert len(client.answers(PICTURES)) == len(PICTURES)
        with Client(bundle, job.url, api_key=KEYS[1]) as client, pytest.raises(ServiceError, match="no valid key"):
            client.answers(PICTURES)


def test_second_job_on_the_port_is_refused(job):
    with pytest.raises(InputError, match=rf"port {job.port} \(Address already in use\): give another --port"):
        reserved_port(ServeJob(port=job.port)).__enter__()


def test_no_key_code_or_body_is_in_a_log_or_an_environment(job):
    connection = Connection(job.url, api_key=KEYS[0], attempts=1)
    levels = [7, 6, 5, 4, 3, 2, 1, 987654]
    body = json.dumps({"version": 1, "digest": read_bundle(job.bundle).digest, "levels": [levels], MARK: MARK}).encode()
    for path, content in (("/v1/answers", body), (f"/{MARK}", b""), ("/v1/answers", MARK.encode())):
        with pytest.raises(ServiceError):
            connection.request("POST", path, content, {"Content-Type": "application/json", "X-Marked": MARK})
    connection.close()
    with socket.create_connection(("127.0.0.1", job.port)) as raw:
        raw.sendall(MARK.encode() + b"\r\n\r\n")
        raw.recv(1000)
    logs = [path for path in job.folder.rglob("*") if path.is_file() and ("logs" in path.parts or path == job.errors)]
    assert any("replica_cpgan" in path.name for path in logs)
    for path in logs:
        content = path.read_bytes()
        for secret in (*KEYS, MARK, "987654"):
            assert secret.encode() not in content, path
    for process in below(job.process.pid):
        assert not any(key in " ".join([*process.environ().values(), *process.cmdline()]) for key in KEYS), process


def test_files_of_the_job_are_private(job):
    (folder,) = job.folder.glob("cpgan-serve-*")
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "keys").stat().st_mode & 0o077 == 0


def test_job_ends_with_its_signal_and_leaves_nothing(job):
    started = below(job.process.pid)
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(HANG_S) == 143
    assert "Traceback" not in job.errors.read_text()
    _, alive = psutil.wait_procs(started, timeout=GONE_S)
    assert alive == []
    assert list(job.folder.glob("cpgan-serve-*")) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", job.port))


# --------------------------------------------------------------------------------------------------- refused before anything starts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "bob.example", ""])
def test_open_host_needs_keys_and_tls_or_a_proxy(host, tmp_path):
    key = "k" * 32
    with pytest.raises(InputError, match="there is no API key"):
        ensure_protected(ServeJob(host=host, behind_proxy=True), keys=[])
    with pytest.raises(InputError, match="there is no TLS"):
        ensure_protected(ServeJob(host=host), keys=[key])
    ensure_protected(ServeJob(host=host, behind_proxy=True), keys=[key])
    ensure_protected(ServeJob(host=host, tls_cert=tmp_path, tls_key=tmp_path), keys=[key])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_host_needs_neither_but_a_given_key_must_be_good(host):
    ensure_protected(ServeJob(host=host), keys=[])
    with pytest.raises(InputError, match="has 5 characters"):
        ensure_protected(ServeJob(host=host), keys=["short"])
    with pytest.raises(InputError, match="there is no API key"):
        ensure_protected(ServeJob(host=host, keys_file=Path("empty")), keys=[])


def test_certificate_that_cannot_be_used_is_refused(tmp_path):
    cert, key = self_signed(tmp_path)
    assert certificate_of(ServeJob(tls_cert=cert, tls_key=key)) == (cert, key)
    (tmp_path / "other").mkdir()
    stranger = self_signed(tmp_path / "other")[1]
    (tmp_path / "text").write_text("no certificate")
    for pair in ((cert, stranger), (tmp_path / "text", key), (tmp_path / "absent", key), (key, cert)):
        with pytest.raises(InputError, match="cannot be used"):
            certificate_of(ServeJob(tls_cert=pair[0], tls_key=pair[1]))
    with pytest.raises(InputError, match="tls_key is not set"):
        ServeJob(tls_cert=cert)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 300])
def test_host_that_is_not_of_this_machine_is_refused(host):
    with pytest.raises(InputError, match="address of this machine"), reserved_port(ServeJob(host=host)):
        pass


def test_free_port_is_chosen_and_held():
    with reserved_port(ServeJob(port=0)) as port, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))


def test_made_key_is_new_and_only_for_this_user(tmp_path, monkeypatch):
    monkeypatch.delenv("CPGAN_API_KEY", raising=False)
    first, second = (write_keys(ServeJob(), tmp_path) for _ in range(2))
    assert first is not None and len(first) >= 32
    assert first != second
    assert (tmp_path / "keys").read_text() == f"{second}\n"
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0


def test_shelf_keeps_copies_and_retires_what_was_replaced(contents, tmp_path):
    source, folder = tmp_path / "bundle", tmp_path / "shelf"
    folder.mkdir()
    first = read_bundle(bundles.write(source, contents[0]))
    shelf = Shelf(ServeJob(bundles=(str(source), "models:/faces@champion")), folder, fetch=lambda name: source)
    assert [entry["digest"] for entry in shelf.user_config()["bundles"]] == [first.digest]
    bundles.write(source, contents[1])
    assert shelf.refresh()
    entries = shelf.user_config()["bundles"]
    assert [entry["digest"] for entry in entries] == [shelf.newest.digest, first.digest]
    assert entries[0]["until"] is None
    assert time.time() + 3500 < entries[1]["until"] < time.time() + 3600
    assert read_bundle(entries[1]["path"]).digest == first.digest, "the copy is that of the replaced bundle"
    bundles.write(source, contents[0])
    assert shelf.refresh()
    entries = shelf.user_config()["bundles"]
    assert (entries[0]["digest"], entries[0]["until"]) == (first.digest, None)
    shelf.job = dataclasses.replace(shelf.job, retire_s=0)
    bundles.write(source, contents[2])
    assert shelf.refresh()
    assert first.digest not in {entry["digest"] for entry in shelf.user_config()["bundles"]}


def test_shelf_with_a_damaged_bundle_changes_nothing(contents, tmp_path):
    source = bundles.write(tmp_path / "bundle", contents[0])
    shelf = Shelf(ServeJob(bundles=(str(source),)), tmp_path, fetch=Path)
    before = shelf.user_config()
    (source / "codec.json").unlink()
    with pytest.raises(InputError, match=re.escape("codec.json is missing")):
        shelf.refresh()
    assert shelf.user_config() == before
