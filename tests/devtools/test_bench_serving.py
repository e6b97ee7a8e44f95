"""Tests of `python -m cpgan_ray.devtools.bench --serve`: its clients count what a server answers; the whole measurement is slow."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from cpgan_ray.cli import read_flags
from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.client import ANSWERS
from cpgan_ray.deploy.message import HEADER
from cpgan_ray.deploy.service.application import Application
from cpgan_ray.deploy.service.server import Server
from cpgan_ray.devtools.bench.client_costs import measure_bytes
from cpgan_ray.devtools.bench.load import Order, measure_load
from cpgan_ray.devtools.bench.servers import messages
from cpgan_ray.devtools.bench.serving import measure_cell, measure_serving
from cpgan_ray.devtools.bench.settings import Settings
from cpgan_ray.errors import InputError
from tests.deploy import bundles
from tests.deploy.service.requests import KEY, application_of, codes
from tests.process import HANG_S, environment


@pytest.fixture(scope="module")
def application(bundle: Bundle) -> Application:
    return application_of(bundle, limits=ServiceLimits(rate=1e9))


@pytest.fixture(scope="module")
def port(application: Application) -> Iterator[int]:
    server = Server(application, application.limits, host="127.0.0.1", port=0)
    server.start()
    try:
        yield server.port
    finally:
        server.stop(grace_s=1)


def answered(application: Application) -> float:
    """The number of codes that the application has answered."""
    return sum(
        sample.value for metric in application.metrics.codes.collect() for sample in metric.samples if "_total" in sample.name
    )


@pytest.mark.parametrize(("clients", "number"), [(1, 3), (5, 1)])
def test_cell_counts_the_requests_that_the_server_answers(application, bundle, port, clients, number):
    before = answered(application)
    row = measure_cell("here", messages(bundle, port, KEY), codes(bundle, 40), clients=clients, codes=number, seconds=1.0)
    counted = answered(application) - before
    assert row["problem"] is None
    assert row["pictures_s"] == pytest.approx(number * row["requests_s"])
    assert 0 < 0.75 * row["pictures_s"] <= 1.05 * counted, "without the first quarter of the second"
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert 0 < row["load_cpu"] < 1.5
    assert counted % number == 0


@pytest.mark.parametrize(("key", "path", "problem"), [("x" * 20, ANSWERS, "status 401"), (KEY, "/v2", "status 404")])
def test_load_on_a_server_that_refuses_has_no_numbers(bundle, port, key, path, problem):
    server = messages(bundle, port, key)
    row = measure_load(Order(port, path, dict(server.headers), [server.body(codes(bundle, 1)).hex()], 2, 0.5))
    assert row == {"requests_s": None, "p50_ms": None, "p99_ms": None, "load_cpu": None, "problem": problem}


def test_load_without_a_server_fails_with_the_reason(port):
    with pytest.raises(RuntimeError, match=r"the load ends with status 1: .*refused|Connect call failed"):
        measure_load(Order(1, ANSWERS, {}, [""], 1, 0.5))


def test_bytes_are_those_of_the_messages(bundle, tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(4)]
    for file, picture in zip(files, bundles.smooth_pictures(4, (3, 40, 40), seed=2), strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(file)
    result = measure_bytes(bundle, files)
    assert result["bytes_float_z"] == 4 * bundles.K
    assert 0 < result["bytes_code"] == result["bytes_message"] - HEADER.size
    assert result["bytes_in_batch"] < result["bytes_message"] < result["bytes_jpeg"]
    assert result["bytes_stated"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--serve --serve-clients 0", "serve_clients is (0,); it must be one or more numbers from 1 to 256"),
        ("--serve --serve-codes 1 257", "serve_codes is (1, 257)"),
        ("--serve --serve-seconds nan", "serve_seconds is nan"),
        ("--serve --serve-seconds -1", "serve_seconds is -1"),
        ("--serve --serve-replicas 0", "serve_replicas is 0; it must be 1 to 64"),
        ("--serve-bundle somewhere", "add --serve"),
    ],
)
def test_flags_that_cannot_be_used_are_named(flags, message):
    with pytest.raises(InputError) as error:
        read_flags(Settings, Settings(), flags.split(), usage="")
    assert message in str(error.value)


def test_bundle_that_takes_no_pictures_is_refused_before_anything_starts(bundle_files, tmp_path):
    how = bundles.PREPROCESSING.as_json()
    array = {name: how[name] for name in ("dtype", "layout", "channels", "height", "width")} | {"kind": "array"}
    path = bundles.write(tmp_path / "bundle", bundles.remake(bundle_files, preprocessing=array))
    with pytest.raises(InputError, match="takes no pictures"):
        measure_serving(Settings(serve=True, serve_bundle=path), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_bench_of_the_service_measures_every_server(tmp_path):
    flags = ["--serve", "--json", "--serve-clients", "2", "--serve-codes", "1", "32", "--serve-seconds", "0.5"]
    command = [sys.executable, "-m", "cpgan_ray.devtools.bench", *flags]
    process = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    for server in ("service", "uvicorn", "mlflow"):
        for number in (1, 32):
            row = result[f"{server}_c2_n{number}"]
            assert row["problem"] is None
            assert row["pictures_s"] == pytest.approx(number * row["requests_s"], rel=1e-3)
    assert all(result[name] > 0 for name in ("client_ms_b1", "client_ms_b32", "torch_ms_b1", "torch_ms_b32", "client_file_ms"))
    assert result["bytes_in_batch"] < result["bytes_float_z"] < result["bytes_jpeg"]
