"""Tests of `python -m cpgan_ray.devtools.chaos --serve`: a small disturbance, and that a wrong answer or a failed call is seen."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cpgan_ray.deploy.bundle import Bundle, read_bundle
from cpgan_ray.deploy.service.server import Server
from cpgan_ray.devtools.chaos.__main__ import failed
from cpgan_ray.devtools.chaos.serving import Expected, Load, ServingTally, ensure_different, expected_of, summary
from cpgan_ray.devtools.chaos.settings import Settings
from cpgan_ray.errors import InputError
from tests.deploy import bundles
from tests.deploy.service.requests import KEY, application_of
from tests.process import HANG_S, environment, wait_until

PICTURES = list(bundles.smooth_pictures(4, (3, bundles.SIDE, bundles.SIDE), seed=1))


@pytest.mark.slow
def test_chaos_with_a_kill_and_a_new_bundle_loses_no_answer(tmp_path):
    flags = ["--serve", "--replica-kills", "1", "--redeployments", "1", "--clients", "3", "--seconds", "6", "--json"]
    command = [sys.executable, "-m", "cpgan_ray.devtools.chaos", *flags]
    process = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert (result["replica_kills"], result["redeployments"], result["wrong"], result["failed"]) == (1, 1, 0, 0)
    assert result["seconds"] >= 6
    assert result["calls"] > 20
    assert result["answers"] >= result["calls"]
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(bundles.write(tmp_path_factory.mktemp("other"), bundles.contents(seed=1)))


@pytest.fixture(scope="module")
def url(bundle: Bundle) -> Iterator[str]:
    """Of a service in this process that has only the first bundle."""
    application = application_of(bundle)
    server = Server(application, application.limits, host="127.0.0.1", port=0)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop(grace_s=1)


def ask(url: str, expected: list[Expected]) -> dict:
    """The summary of clients that have asked with the first of the bundles."""
    tally = ServingTally()
    with Load(url, KEY, PICTURES, expected, tally, clients=2, seed=0):
        wait_until(lambda: tally.calls >= 4, "no calls")
    return summary(Settings(serve=True, clients=2), tally)


def test_load_on_a_good_service_counts_only_answers(url, bundle):
    result = ask(url, [expected_of(bundle, PICTURES)])
    assert (result["wrong"], result["failed"], result["retries"], result["problems"]) == (0, 0, 0, [])
    assert not failed(result)


def test_load_sees_a_wrong_answer(url, bundle, other):
    """The service answers with another utility head than the one that is expected."""
    expected = replace(expected_of(other, PICTURES), bundle=bundle)
    result = ask(url, [expected])
    assert result["wrong"] == result["calls"]
    assert result["problems"][0].startswith("wrong: ")
    assert failed(result)


def test_load_counts_a_refused_call_as_failed(url, other):
    result = ask(url, [expected_of(other, PICTURES)])
    assert result["failed"] == result["calls"]
    assert "this service has bundle" in result["problems"][0]
    assert failed(result)


def test_bundles_with_equal_answers_are_no_test(bundle, other):
    one = expected_of(bundle, PICTURES)
    with pytest.raises(RuntimeError, match="the same answer"):
        ensure_different(one, one)
    ensure_different(one, expected_of(other, PICTURES))
    assert not one.matches([0], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replica_kills": -1}, "replica_kills is -1"),
        ({"redeployments": -2}, "redeployments is -2"),
        ({"clients": 0}, "clients is 0; it must be 1 to 256"),
        ({"clients": 1000}, "clients is 1000"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_settings_of_the_service_are_checked(changes, message):
    with pytest.raises(InputError, match=message):
        Settings(serve=True, **changes)
