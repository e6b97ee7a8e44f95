"""Eve on the wire, end to end: she records what a client sends to the service, reads the codes in it, and attacks them with this
project's own attack. Her R2 is the one that the report of the bundle states."""

import base64
import dataclasses
import json
import shutil
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import cpgan_ray
from cpgan_ray.cli import find_target
from cpgan_ray.common.codec import CODINGS, LevelCodec
from cpgan_ray.config import Config, DataConfig, PrivatizerConfig, RidgeConfig, RuntimeConfig, TrackingConfig, UtilityConfig
from cpgan_ray.config.folders.targets import export_job_of
from cpgan_ray.data import load
from cpgan_ray.deploy.answers import Answer
from cpgan_ray.deploy.bundle import BUNDLE_REPORT, CODEC, Bundle, read_bundle
from cpgan_ray.deploy.client import ANSWERS, Client
from cpgan_ray.deploy.message import CONTENT_TYPE, write_message
from cpgan_ray.deploy.service.server import Server
from cpgan_ray.pipelines.export import export
from cpgan_ray.pipelines.export.measured import quick_attacks
from cpgan_ray.pipelines.train import train
from tests.attacked import ATTACKS, SIDE
from tests.deploy.certificates import Certificate
from tests.deploy.service.requests import KEY, application_of
from tests.deploy.service.test_server import PATIENT
from tests.deploy.service.wiretap import Record, Request, read_levels, read_requests, wiretap
from tests.http_server import Handler, running
from tests.process import left_as_it_was

PICTURES_A_CALL = 7


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mlflow_template: Path) -> Config:
    folder = tmp_path_factory.mktemp("eve")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return Config(
        preset="tiny",
        k=6,
        epochs=3,
        batch_size=80,
        privacy_weight=0.01,
        output=folder / "run",
        cache_dir=cache_dir,
        data=DataConfig(image_size=SIDE, num_identities=200, pictures_per_identity=2, final_fraction=0.0),
        privatizer=PrivatizerConfig(width=4, depth=2, quantization_step=0.5, learning_rate=1e-2),
        utility=UtilityConfig(hidden=16, learning_rate=1e-2),
        adversaries={"ridge": RidgeConfig(memory_batches=1, components=8)},
        runtime=RuntimeConfig(backend="local", threads=1),
        attacks=dataclasses.replace(ATTACKS, names=("ridge",), num_shifted=0, identity=False, attributes=False, similarity=False),
        tracking=TrackingConfig(log_models=False, system_metrics=False),
    )


@pytest.fixture(scope="module")
def run_bundle(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a small run."""
    output = tmp_path_factory.mktemp("bundle") / "bundle"
    with left_as_it_was():
        train(config)
        target = find_target(str(config.output), fetch=Path)
        outcome = export(target, dataclasses.replace(export_job_of(target), output=output))
    assert outcome.failures == ()
    return read_bundle(output)


@pytest.fixture(scope="module")
def alices(config: Config) -> np.ndarray:
    """The test split (N, H, W, 3) uint8."""
    return load(config, progress=False).test.take(np.arange(len(load(config, progress=False).test)))


@contextmanager
def tapped(bundle: Bundle, *, tls: Certificate | None = None) -> Iterator[Record]:
    """The service, and Eve in front of it."""
    server = Server(application_of(bundle), PATIENT, host="127.0.0.1", port=0, tls=tls)
    server.start()
    try:
        with wiretap(server.port) as record:
            yield record
    finally:
        server.stop(grace_s=1)


def ask(
    bundle: Bundle, url: str, pictures: np.ndarray, *, coding: str | None, context: ssl.SSLContext | None = None
) -> list[Answer]:
    """Alice asks about all pictures, a few at a time."""
    with Client(bundle, url, api_key=KEY, coding=coding, context=context) as client:
        return [
            answer
            for start in range(0, len(pictures), PICTURES_A_CALL)
            for answer in client.answers(list(pictures[start : start + PICTURES_A_CALL]))
        ]


@pytest.fixture(scope="module")
def requests(run_bundle: Bundle, alices: np.ndarray) -> dict[str, list[Request]]:
    """Coding -> what Eve has recorded of Alice's requests about the test pictures."""
    recorded: dict[str, list[Request]] = {}
    for coding in CODINGS:
        with tapped(run_bundle) as record:
            answers = ask(run_bundle, f"http://127.0.0.1:{record.port}", alices, coding=coding)
        assert len(answers) == len(alices)
        recorded[coding] = [request for sent in record.sent for request in read_requests(sent)]
    return recorded


def codes_in(requests: list[Request], bundle: Bundle) -> np.ndarray:
    """The codes z (N, k) float32 of requests, as docs/wire-format.md says."""
    codec = json.loads(bundle.files[CODEC])
    return np.concatenate([read_levels(request.body, codec) for request in requests]).astype(np.float32) * np.float32(codec["step"])


@pytest.mark.parametrize("coding", CODINGS)
def test_requests_have_codes_and_nothing_else(requests, run_bundle, alices, coding):
    """Each body is exactly the message of its codes, so there is no room in it for anything of a picture."""
    codec = run_bundle.codec
    assert isinstance(codec, LevelCodec)
    assert len(requests[coding]) == -(-len(alices) // PICTURES_A_CALL)
    for request in requests[coding]:
        assert (request.path, request.headers["content-type"]) == (ANSWERS, CONTENT_TYPE)
        assert set(request.headers) <= {"host", "accept", "accept-encoding", "authorization", "content-type", "content-length"}
        z = codes_in([request], run_bundle)
        assert request.body == write_message(z, codec, digest=run_bundle.digest, coding=coding)
        assert len(request.body) < alices[0].size / 8
    rows = {row.tobytes() for picture in alices for row in (*picture, *picture.transpose(2, 0, 1).reshape(-1, SIDE))}
    assert len(rows) > 1000
    bodies = b"".join(request.body for request in requests[coding])
    assert not any(row in bodies for row in rows)


def test_attack_on_recorded_codes_has_the_r2_of_the_report(requests, run_bundle, alices, config, tmp_path):
    """The bundle is public, so Eve makes the codes of pictures that she has herself; those of the test pictures she has only from
    her record."""
    z = codes_in(requests["range"], run_bundle)
    assert np.array_equal(z, codes_in(requests["plain"], run_bundle))
    recorded = dict(zip((picture.tobytes() for picture in alices), z, strict=True))
    assert len(recorded) == len(alices)
    with eves_encoder(run_bundle, recorded) as (url, used), left_as_it_was():
        cpgan_ray.attack(
            url,
            dataset="faces",
            data=config.data,
            cache_dir=config.cache_dir,
            seed=config.seed,
            attacks=quick_attacks(config.attacks),
            runtime=config.runtime,
            tracking=dataclasses.replace(config.tracking, uri=f"sqlite:///{config.output.parent / 'mlflow.db'}"),
            output=tmp_path / "attack",
            log_level="error",
        )
    assert used == set(recorded), "the codes of all test pictures come from the record"
    eve = json.loads((tmp_path / "attack" / "report" / "report.json").read_text())["privacy"]["strongest"]
    stated = json.loads(run_bundle.files[BUNDLE_REPORT])["privacy"]["strongest"]
    assert eve["attack"] == stated["attack"] == "ridge"
    assert stated["low"] <= eve["r2"] <= stated["high"]
    assert eve["r2"] == pytest.approx(stated["r2"], abs=1e-4)
    assert eve["r2"] > 0.02, "an attack that finds nothing would be no test"


@contextmanager
def eves_encoder(bundle: Bundle, recorded: dict[bytes, np.ndarray]) -> Iterator[tuple[str, set[bytes]]]:
    """A URL that answers pictures with their recorded codes, or with those that Eve makes with the bundle; and the pictures whose
    recorded codes were used."""
    client, used = Client(bundle), set[bytes]()
    codec = bundle.codec
    assert isinstance(codec, LevelCodec)

    def code(picture: np.ndarray) -> Sequence[float]:
        if (content := picture.tobytes()) in recorded:
            used.add(content)
            return recorded[content].tolist()
        return codec.codes(codec.levels(client.codes([picture])))[0].tolist()

    class Encoding(Handler):
        def do_POST(self) -> None:
            request = json.loads(self.body())
            pictures = np.frombuffer(base64.b64decode(request["pictures"]), np.uint8).reshape(request["shape"])
            self.reply(200, json.dumps({"codes": [code(picture) for picture in pictures]}).encode(), "application/json")

    with running(Encoding) as url:
        yield f"{url}/encode", used


@pytest.mark.parametrize("coding", CODINGS)
def test_record_of_a_connection_with_tls_is_not_readable(bundle, certificate, coding):
    """Neither the key, nor a header, nor the message of a code, nor an answer."""
    pictures = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    context = ssl.create_default_context(cafile=certificate[0])
    with tapped(bundle, tls=certificate) as record:
        ask(bundle, f"https://127.0.0.1:{record.port}", pictures, coding=coding, context=context)
    with tapped(bundle) as clear:
        ask(bundle, f"http://127.0.0.1:{clear.port}", pictures, coding=coding)
    (request, *_) = [one for sent in clear.sent for one in read_requests(sent)]
    readable = [KEY.encode(), b"POST", b"HTTP/1.1", CONTENT_TYPE.encode(), bundle.digest.encode(), request.body, b"answers"]
    assert all(part in clear.everything for part in readable)
    assert len(record.everything) > len(clear.sent[0])
    assert not any(part in record.everything for part in readable)
