"""Tests of the client against a service: its answers, what it sends, how it fails, and what it costs to import."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.common.codec import codec_of
from cpgan_ray.deploy import client as client_module
from cpgan_ray.deploy.answers import is_answer, probabilities
from cpgan_ray.deploy.bundle import CODEC, Bundle, read_bundle
from cpgan_ray.deploy.client import Client, main
from cpgan_ray.deploy.connection import Connection, ServiceError
from cpgan_ray.deploy.message import CONTENT_TYPE, HEADER, read_message
from cpgan_ray.deploy.writing import as_bytes
from cpgan_ray.errors import InputError
from tests.deploy.bob import KEY, Bob, serve
from tests.deploy.bundles import LABELS, SIDE, expected_logits, remake, smooth_pictures, write

ROOT = Path(__file__).parents[2]
PICTURES = list(smooth_pictures(5, (3, SIDE, SIDE), seed=1))


@pytest.fixture(scope="module")
def bob(bundle: Bundle) -> Iterator[Bob]:
    with serve(bundle) as service:
        yield service


@pytest.fixture
def client(bob: Bob, bundle: Bundle) -> Iterator[Client]:
    """A client with short pauses. The service's record is empty."""
    for record in (bob.failures, bob.bodies, bob.connections, bob.content_types):
        record.clear()
    with Client(bundle, bob.url, api_key=KEY, timeout_s=5, attempts=4) as made:
        assert made.connection is not None
        made.connection.pause_s = 0.01
        yield made


def failed(client: Client, *words: str) -> ServiceError:
    with pytest.raises(ServiceError) as error:
        client.answers(PICTURES)
    for word in words:
        assert word in str(error.value)
    return error.value


# -------------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("coding", ["range", "plain"])
def test_answers_are_those_of_the_utility_head_on_the_codes(bob, bundle, client, coding):
    client.codings = (coding,)
    z = client.codes(PICTURES)
    assert len(np.unique(z, axis=0)) == len(PICTURES)
    logits = expected_logits(bundle, bundle.codec.codes(bundle.codec.levels(z)))
    answers = client.answers(PICTURES)
    assert answers == probabilities(logits, LABELS)
    assert answers[0].keys() == {"Male", "Hair", "Smiling"}
    assert answers[0]["Smiling"] == pytest.approx(1 / (1 + np.exp(-logits[0, 4])))
    assert sum(answers[0]["Hair"].values()) == pytest.approx(1)
    assert bob.content_types == {CONTENT_TYPE}


def test_encode_returns_the_message_that_is_sent(bob, bundle, client):
    message = client.encode(PICTURES)
    client.answers(PICTURES)
    assert bob.bodies == [message]
    assert np.array_equal(read_message(message, bundle.codec, digest=bundle.digest), client.codes(PICTURES))


def test_shorter_coding_of_a_message_is_sent(bundle):
    short, long = bundle.codec.codes(np.zeros((40, 8), np.int32)), bundle.codec.codes(np.full((1, 8), bundle.codec.lowest))
    client = Client(bundle)
    sizes = {coding: Client(bundle, coding=coding)._message for coding in ("plain", "range")}
    assert client._message(short) == sizes["range"](short)
    assert len(sizes["plain"](long)) < len(sizes["range"](long))
    assert client._message(long) == sizes["plain"](long)


def test_many_pictures_go_in_several_requests_over_one_connection(bob, bundle, client):
    pictures = PICTURES * 120
    answers = client.answers(pictures)
    assert len(answers) == 600
    assert answers[:5] == answers[5:10]
    assert [int.from_bytes(body[2:4], "little") for body in bob.bodies] == [256, 256, 88]
    client.answers(PICTURES)
    assert len(bob.connections) == 1


def test_no_pictures_have_no_answers_and_no_request(bob, client):
    assert client.answers([]) == []
    assert bob.bodies == []


def test_requests_carry_no_picture(bob, bundle, client, tmp_path):
    """The body has the size of codes; no row of the picture or of its file is in it."""
    Image.fromarray(PICTURES[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    client.codings = ("plain",)
    client.answers([tmp_path / "a.png", PICTURES[1]])
    (body,) = bob.bodies
    assert len(body) == HEADER.size + 2 * bundle.codec.plain_bytes
    content = (tmp_path / "a.png").read_bytes()
    for carrier in (content, PICTURES[0].tobytes(), PICTURES[1].tobytes()):
        assert not any(carrier[i : i + 8] in body for i in range(len(carrier) - 8))


def test_spec_is_that_of_the_service(bundle, client):
    assert client.spec()["digest"] == bundle.digest


@pytest.mark.parametrize(
    "row",
    [
        None,
        {},
        {"Male": 0.5},
        {"Male": 0.5, "Hair": 0.5, "Smiling": 0.5},
        {"Male": 1.5, "Hair": {"black": 1, "brown": 0, "grey": 0}, "Smiling": 0.5},
        {"Male": True, "Hair": {"black": 1, "brown": 0}, "Smiling": 0.5},
        {"Male": float("nan"), "Hair": {"black": 1, "brown": 0, "grey": 0}, "Smiling": 0.5},
        {"Male": "0.5", "Hair": {"black": 1, "brown": 0, "grey": 0}, "Smiling": 0.5},
    ],
)
def test_reply_that_is_no_answer_is_not_taken_for_one(row):
    assert not is_answer(row, LABELS)
    assert is_answer({"Male": 0.5, "Hair": {"black": 1, "brown": 0, "grey": 0}, "Smiling": 1}, LABELS)


def test_probabilities_of_huge_logits_are_finite():
    logits = np.array([[1e4, 1e4, -1e4, 0, -1e4]], np.float32)
    assert probabilities(logits, LABELS) == [{"Male": 1.0, "Hair": {"black": 1.0, "brown": 0.0, "grey": 0.0}, "Smiling": 0.0}]


# ------------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("failures", [[503], [500, 502, 504], [429], ["drop"], ["cut"], ["drop", 503, "cut"]])
def test_request_is_repeated_until_the_service_answers(bob, client, failures):
    bob.failures = list(failures)
    assert len(client.answers(PICTURES)) == 5
    assert len(bob.bodies) == 1 + len(failures)
    assert client.connection.retries == len(failures)


def test_request_is_repeated_after_the_service_was_away(bundle):
    with serve(bundle) as service:
        client = Client(bundle, service.url, api_key=KEY, attempts=2)
        client.answers(PICTURES)
    with pytest.raises(ServiceError, match="does not answer POST /v1/answers"):
        client.answers(PICTURES)
    client.close()


def test_request_gives_up_after_the_last_attempt(bob, client):
    bob.failures = [503] * 9
    assert failed(client, "answers 503", "busy").status == 503
    assert len(bob.bodies) == 4


def test_request_with_a_wrong_key_is_not_repeated(bob, client):
    client.connection.headers = {"Authorization": "Bearer wrong"}
    assert failed(client, "answers 401", "no such key").status == 401
    assert len(bob.bodies) == 1


def test_request_to_a_service_with_another_bundle_fails_with_its_reason(bob, client, monkeypatch):
    monkeypatch.setattr(client_module, "write_message", lambda z, codec, **kinds: bytes(8) + codec.encode(z))
    assert failed(client, "answers 422", "version 0").status == 422


def test_request_to_a_silent_service_ends_after_the_time_limit(bob, client):
    bob.failures = ["hang"] * 2
    client.connection.timeout_s, client.connection.attempts = 0.2, 2
    begun = time.monotonic()
    failed(client, "does not answer", "timed out")
    assert time.monotonic() - begun < 1.5


def test_reply_that_is_not_json_fails_with_a_line(bob, client):
    bob.failures = ["html"]
    failed(client, "not JSON")


def test_pauses_between_attempts_double(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    connection = Connection("http://127.0.0.1:1", attempts=5, pause_s=1.0)
    with pytest.raises(ServiceError):
        connection.request("GET", "/")
    assert len(pauses) == 4
    assert all(0.5 * 2**i <= pause <= 1.5 * 2**i for i, pause in enumerate(pauses))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("bob.example", "is not http://host:port"),
        ("ftp://bob.example", "is not http://host:port"),
        ("http://", "is not http://host:port"),
        ("http://127.0.0.1:99999", "not valid"),
        ("http://bob.example:8000", "unencrypted"),
        ("http://192.168.0.7", "unencrypted"),
        ("http://127.0.0.1.evil.example", "unencrypted"),
        ("https://user:secret@bob.example", "contains a user or a password"),
        ("https://bob.example/?key=1", "is not http://host:port"),
    ],
)
def test_url_that_cannot_be_used_is_refused(bundle, url, words):
    with pytest.raises(InputError, match=words) as error:
        Client(bundle, url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["", "a\nHost: evil", " padded ", "schlüssel"])
def test_key_that_would_change_the_request_is_refused(bundle, key):
    with pytest.raises(InputError, match="API key"):
        Client(bundle, "http://127.0.0.1:1", api_key=key)


def test_client_refuses_a_coding_that_the_bundle_does_not_have(bundle):
    with pytest.raises(InputError, match="has range and plain|has plain and range"):
        Client(bundle, coding="zip")


def test_client_refuses_another_bundle_than_the_expected_one(bundle):
    assert Client(bundle, digest=bundle.digest[:8]).bundle is bundle
    with pytest.raises(InputError, match="get the expected bundle"):
        Client(bundle, digest="0" * 64)


def test_client_without_a_url_only_encodes(bundle):
    client = Client(bundle)
    assert len(client.encode(PICTURES)) > HEADER.size
    with pytest.raises(InputError, match="has no URL"):
        client.answers(PICTURES)


# ------------------------------------------------------------------------------------------------------------------------- TLS


def test_client_checks_the_certificate_of_the_service(bundle, certificate, tmp_path, monkeypatch, capsys):
    Image.fromarray(PICTURES[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    with serve(bundle, certificate=certificate) as service:
        monkeypatch.setenv("CPGAN_API_KEY", KEY)
        assert main([str(bundle.path), service.url, str(tmp_path / "a.png")]) == 1
        assert "certificate that is not trusted" in capsys.readouterr().err
        assert service.bodies == []
        assert main([str(bundle.path), service.url, str(tmp_path / "a.png"), "--ca", str(certificate[0])]) == 0
        assert "Smiling" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ the command line


def test_command_prints_a_table_and_exits_with_a_status(bob, bundle, client, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        Image.fromarray(PICTURES[0].transpose(1, 2, 0)).save(tmp_path / f"{name}.png")
    monkeypatch.setenv("CPGAN_API_KEY", KEY)
    arguments = [str(bundle.path), bob.url, str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["picture", "label", "answer", "probability"]
    assert len(lines) == 7
    assert [line.split()[1] for line in lines[1:4]] == ["Male", "Hair", "Smiling"]
    (answer,) = client.answers([tmp_path / "a.png"])
    assert lines[3].split()[2:] == (
        ["yes", f"{answer['Smiling']:.3f}"] if answer["Smiling"] > 0.5 else ["no", f"{1 - answer['Smiling']:.3f}"]
    )
    assert lines[2].split()[2] == max(answer["Hair"], key=answer["Hair"].get)
    assert main([*arguments, str(tmp_path / "absent.png")]) == 2
    assert "absent.png cannot be used: it is not a file" in capsys.readouterr().err
    assert main([str(tmp_path), bob.url, "a.png"]) == 2
    monkeypatch.delenv("CPGAN_API_KEY")
    assert main(arguments) == 1
    assert "answers 401" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------- weight


def test_client_imports_neither_torch_nor_ray_and_is_small(bundle):
    """Only the packages that its documentation names, below 100 MB of memory and 1 s of CPU, with a bundle that has encoded."""
    code = f"""
import json, re, sys, time
from pathlib import Path
begun = time.process_time()
from cpgan_ray.deploy.client import Client
imported = time.process_time() - begun
import numpy as np
client = Client({str(bundle.path)!r})
client.encode([np.zeros((3, {SIDE}, {SIDE}), np.uint8)])
memory = int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
tops = sorted({{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names)
print(json.dumps([imported, memory, tops]))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported_s, memory_mb, packages = json.loads(ran.stdout)
    named = {"cpgan_ray", "numpy", "cython_runtime", "PIL", "onnxruntime", "constriction"}  # the third is numpy's
    assert {name for name in packages if not name.startswith("_")} <= named
    assert memory_mb < 100
    assert imported_s < 1, "CPU seconds; 0.3 on an idle machine"


def test_service_that_is_not_there_fails_with_one_line(bundle, tmp_path, capsys):
    Image.fromarray(PICTURES[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert main([str(bundle.path), url, str(tmp_path / "a.png"), "--timeout-s", "1"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------- noise

NOISY = {"format": 2, "noise": {"kind": "gaussian", "std": 0.7, "clip": 1.0}}


def noisy_client(files: dict[str, bytes], folder: Path) -> Client:
    return Client(read_bundle(write(folder, remake(files, **NOISY))))


def test_codes_of_a_noisy_bundle_differ_each_time(bundle_files, tmp_path):
    client = noisy_client(bundle_files, tmp_path / "noisy")
    first, second = client.encode(PICTURES[:1]), client.encode(PICTURES[:1])
    assert first != second


def test_noise_of_a_client_has_the_distribution_of_the_manifest(bundle_files, bundle, tmp_path):
    k, step = bundle.manifest.k, bundle.codec.step
    wide = codec_of(np.repeat(np.linspace(-8, 8, 50, dtype=np.float32)[:, None], k, axis=1), step=step)
    client = noisy_client(bundle_files | {CODEC: as_bytes(wide.as_json())}, tmp_path / "noisy")
    y = np.clip(Client(bundle).codes(PICTURES[:1] * 400), -1, 1)
    difference = client.codes(PICTURES[:1] * 400) - y
    assert difference.mean() == pytest.approx(0, abs=0.05)
    assert difference.std() == pytest.approx((0.7**2 + step**2 / 12) ** 0.5, rel=0.05)
    assert abs(np.corrcoef(difference.T) - np.eye(k)).max() < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1, "noise": NOISY["noise"]}, "format 2, and only that, has noise"),
        ({"format": 2}, "format 2, and only that, has noise"),
        ({"format": 2, "noise": {"kind": "laplace", "std": 1, "clip": 1}}, "noise is of an unknown kind"),
        ({"format": 2, "noise": {"kind": "gaussian", "std": 0, "clip": 1}}, "noise.std is not a positive number"),
        ({"format": 2, "noise": {"kind": "gaussian", "std": 1}}, "noise.clip is not a positive number"),
    ],
)
def test_bundle_with_damaged_noise_is_refused(bundle_files, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_bundle(write(tmp_path / "noisy", remake(bundle_files, **changes)))
