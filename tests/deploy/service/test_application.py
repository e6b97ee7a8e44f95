"""The application in this process: its answers, and what it refuses with which status and reason."""

import json
import logging
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray.common.codec import BytesError
from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.answers import probabilities
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.message import read_message
from cpgan_ray.deploy.service.application import BUNDLE, HEADERS, Application, ServiceState
from cpgan_ray.deploy.service.keys import Keys
from cpgan_ray.deploy.service.served import Catalogue, ServedBundle, served
from tests.deploy.bundles import LABELS, K, expected_logits
from tests.deploy.service.requests import AUTHORIZATION, KEY, Reply, application_of, as_json, ask, codes, message, post


@pytest.fixture(scope="module")
def application(bundle: Bundle) -> Application:
    return application_of(bundle)


def refused(reply: Reply, status: int, *words: str) -> None:
    assert reply.status == status
    for word in words:
        assert word in reply.error
    assert HEADERS["Cache-Control"] == reply.headers["cache-control"]


# -------------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("coding", ["range", "plain"])
@pytest.mark.parametrize("count", [1, 256])
def test_answers_are_those_of_the_utility_head(application, bundle, coding, count):
    reply = post(application, message(bundle, count, coding=coding))
    assert reply.status == 200
    expected = probabilities(expected_logits(bundle, codes(bundle, count)), LABELS)
    assert len(reply.values["answers"]) == count
    for answer, row in zip(reply.values["answers"], expected, strict=True):
        assert answer["Male"] == pytest.approx(row["Male"], abs=1e-6)
        assert answer["Hair"] == pytest.approx(row["Hair"], abs=1e-6)
    assert reply.headers[BUNDLE.lower()] == bundle.digest


def test_json_gets_the_same_answers_as_a_message(application, bundle):
    expected = post(application, message(bundle)).values
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert post(application, as_json(bundle), kind=kind).values == expected
    assert post(application, as_json(bundle, digest=bundle.digest[:8]), kind="application/json").values == expected


def test_body_in_many_parts_gets_the_same_answers(application, bundle):
    whole = message(bundle)
    parts = [whole[i : i + 1] for i in range(len(whole))]
    assert post(application, *parts).content == post(application, whole).content


def test_message_is_answered_by_its_own_bundle(bundle, other):
    both = application_of(other, bundle)
    for one in (bundle, other):
        (answer, *_) = post(both, message(one)).values["answers"]
        expected = probabilities(expected_logits(one, codes(one, 3)), LABELS)
        assert answer["Smiling"] == pytest.approx(expected[0]["Smiling"], abs=1e-6)
    assert post(both, message(bundle)).headers[BUNDLE.lower()] == other.digest


# ------------------------------------------------------------------------------------------------------------ paths, methods, keys


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/answers/", "//v1/answers", "/docs", "/openapi.json", "/v1/../healthz", "*"])
def test_unknown_path_is_refused(application, path):
    refused(ask(application, "GET", path, headers=AUTHORIZATION), 404, "/v1/answers")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_other_method_is_refused_and_the_right_one_named(application, method):
    reply = ask(application, method, "/v1/answers", headers=AUTHORIZATION)
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert method == "HEAD" or "has POST" in reply.error


@pytest.mark.parametrize("path", ["/v1/spec", "/metrics"])
@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer ", "Basic " + KEY, KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer schl\u00fcssel"]
)
def test_request_without_a_valid_key_is_refused(application, path, value):
    reply = ask(application, "GET", path, headers={} if value is None else {"Authorization": value})
    refused(reply, 401, "Authorization: Bearer KEY")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert KEY not in reply.content.decode()


def test_body_of_a_request_without_a_key_is_not_read(application):
    headers = {"Content-Type": "application/json", "Content-Length": "100"}
    assert ask(application, "POST", "/v1/answers", headers=headers, gone=True).status == 401


@pytest.mark.parametrize("path", ["/healthz", "/-/healthz"])
def test_health_needs_no_key(application, path):
    reply = ask(application, "GET", path)
    assert reply.status == 200
    head = ask(application, "HEAD", path)
    assert (head.status, head.content, head.headers) == (200, b"", reply.headers)


def test_header_that_occurs_twice_is_refused(application, bundle):
    twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
    refused(ask(application, "GET", "/v1/spec", headers=twice), 400, "authorization occurs twice")


def test_rate_of_a_key_is_limited(bundle):
    limited = application_of(bundle, limits=ServiceLimits(rate=3))
    statuses = [ask(limited, "GET", "/v1/spec", headers=AUTHORIZATION).status for _ in range(5)]
    assert statuses[:3] == [200] * 3
    assert statuses[-1] == 429
    assert ask(limited, "GET", "/v1/spec", headers=AUTHORIZATION).headers["retry-after"] == "1"
    assert ask(limited, "GET", "/healthz").status == 200


# ------------------------------------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "IMAGE/WEBP; q=1", "text/plain", "application/octet-stream", ""])
def test_body_of_another_type_is_refused(application, bundle, kind):
    reply = post(application, message(bundle), kind=kind)
    refused(reply, 415, "send codes as application/vnd.cpgan.codes or application/json")
    assert ("pictures are not accepted" in reply.error) == kind.lower().startswith("image/")


def test_compressed_body_is_refused(application, bundle):
    refused(post(application, message(bundle), Content_Encoding="gzip"), 415, "compressed")


@pytest.mark.parametrize("length", ["70000000", "-1", "1e3", "9" * 30])
def test_declared_length_above_the_limit_is_refused(application, length):
    refused(post(application, b"", Content_Length=length), 413, "more than 1048576 bytes")


def test_body_above_the_limit_is_refused_as_soon_as_it_is(bundle):
    small = application_of(bundle, limits=ServiceLimits(max_body_bytes=64))
    refused(
        ask(
            small, "POST", "/v1/answers", *[b"x" * 40] * 2, headers={**AUTHORIZATION, "Content-Type": "application/json"}, gone=True
        ),
        413,
    )
    assert post(small, message(bundle, 1)).status == 200


def test_client_that_leaves_gets_no_reply(application):
    headers = {**AUTHORIZATION, "Content-Type": "application/json"}
    assert ask(application, "POST", "/v1/answers", b"{", headers=headers, gone=True).status == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: b"", "at least 8"),
        (lambda m: m[:7], "at least 8"),
        (lambda m: b"\x02" + m[1:], "version 2"),
        (lambda m: b"\xff\xd8\xff\xe0" + m[4:], "version 255"),  # the first bytes of a JPEG
        (lambda m: m[:1] + b"\x07" + m[2:], "coding 7"),
        (lambda m: m[:2] + b"\0\0" + m[4:], "0 codes"),
        (lambda m: m[:2] + b"\1\1" + m[4:], "257 codes"),
        (lambda m: m[:4] + bytes(4) + m[8:], "made with bundle 00000000"),
        (lambda m: m[:-1], "bytes"),
        (lambda m: m + b"\0", "bytes"),
        (lambda m: m[:2] + b"\4\0" + m[4:], "bytes"),
    ],
)
def test_message_that_is_none_is_refused_with_the_reason(application, bundle, change, words):
    refused(post(application, change(message(bundle, coding="plain"))), 422, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
        ({"digest": "0" * 64}, "made with bundle 00000000"),
        ({"digest": None}, "digest"),
        ({"digest": "D" * 64}, "digest"),
        ({"levels": []}, "list of 1 to 256"),
        ({"levels": [[0] * K] * 257}, "list of 1 to 256"),
        ({"levels": {"0": 1}}, "list of 1 to 256"),
        ({"levels": [[0] * (K - 1)]}, f"{K} numbers"),
        ({"levels": [[0] * (K + 1)]}, f"{K} numbers"),
        ({"levels": [[0.0] * K]}, "not whole"),
        ({"levels": [[True] * K]}, "not whole"),
        ({"levels": [["0"] * K]}, "not whole"),
        ({"levels": [[None] * K]}, "not whole"),
        ({"levels": [[[0]] * K]}, "not whole"),
        ({"levels": [[1000] * K]}, "levels from 1000"),
        ({"levels": [[-(10**40)] * K]}, "too large"),
        ({"picture": "/9j/4AAQSkZJRg=="}, "fields"),
    ],
)
def test_json_that_is_no_codes_is_refused_with_the_reason(application, bundle, changes, words):
    refused(post(application, as_json(bundle, **changes), kind="application/json"), 422, words)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a":}'])
def test_body_that_is_not_json_is_refused(application, body):
    refused(post(application, body, kind="application/json"), 400, "not JSON")


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b"NaN", b'"x"'])
def test_json_that_is_no_object_is_refused(application, body):
    refused(post(application, body, kind="application/json"), 422, "not a JSON object")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_get_an_answer_only_if_they_are_codes(application, bundle, data):
    """Random bytes, and valid messages with a few bytes changed, cut or added."""
    body = bytearray(message(bundle, data.draw(st.integers(1, 4)), coding=data.draw(st.sampled_from(["range", "plain"]))))
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(body)))
    changed = data.draw(st.sampled_from([bytes(body), bytes(body[:end]), bytes(body[:end]) + data.draw(st.binary(max_size=40))]))
    reply = post(application, changed)
    try:
        z = read_message(changed, bundle.codec, digest=bundle.digest, max_codes=256)
    except BytesError as e:
        expected: int | str = str(e)
    else:
        expected = len(z)
    if isinstance(expected, int):
        assert len(reply.values["answers"]) == expected
    else:
        assert reply.status == 422
        assert "bundle" in reply.error or reply.error == expected


# -------------------------------------------------------------------------------------------------- spec, replaced bundles, metrics


def test_spec_has_the_newest_bundle_and_any_other_by_digest(bundle, other):
    both = application_of(other, bundle)
    first = ask(both, "GET", "/v1/spec", headers=AUTHORIZATION).values
    assert (first["digest"], first["manifest"]) == (other.digest, other.manifest.values)
    assert [one["digest"] for one in first["bundles"]] == [other.digest, bundle.digest]
    assert first["limits"] == {"body_bytes": 1 << 20, "codes": 256, "requests_per_second": 5000.0}
    for digest in (bundle.digest, bundle.digest[:8]):
        second = ask(both, "GET", "/v1/spec", headers=AUTHORIZATION, query=f"digest={digest}").values
        assert second["digest"] == bundle.digest


@pytest.mark.parametrize(
    ("query", "status"),
    [("digest=" + "0" * 64, 404), ("digest=0", 400), ("digest=", 400), ("x=1", 400), ("digest", 400), ("&" * 50, 400)],
)
def test_spec_with_another_query_is_refused(application, query, status):
    refused(ask(application, "GET", "/v1/spec", headers=AUTHORIZATION, query=query), status)


def test_replaced_bundle_is_answered_until_its_time(bundle, other):
    now = [1000.0]
    old = ServedBundle(bundle, served(bundle).session, until=1010.0)
    application = application_of(other)
    application.change(ServiceState(Catalogue([served(other), old], clock=lambda: now[0]), Keys([KEY])))
    assert post(application, message(bundle)).status == 200
    now[0] = 1010.0
    refused(post(application, message(bundle)), 422, f"this service has bundle {other.digest[:8]}...")
    assert post(application, message(other)).status == 200
    assert [b["digest"] for b in ask(application, "GET", "/v1/spec", headers=AUTHORIZATION).values["bundles"]] == [other.digest]


def test_metrics_count_requests_codes_and_seconds(bundle):
    application = application_of(bundle)
    post(application, message(bundle, 5))
    post(application, b"")
    lines = ask(application, "GET", "/metrics", headers=AUTHORIZATION).content.decode().splitlines()
    assert 'cpgan_requests_total{status="200"} 1.0' in lines
    assert 'cpgan_requests_total{status="422"} 1.0' in lines
    assert f'cpgan_codes_total{{bundle="{bundle.digest[:12]}"}} 5.0' in lines
    assert "cpgan_request_seconds_count 2.0" in lines


@dataclass(frozen=True)
class PageFile:
    content: bytes
    media_type: str


def test_files_of_the_page_need_no_key_and_have_its_headers(bundle):
    policy = "default-src 'self'"
    large = bytes(range(256)) * 4096
    files = {"/": PageFile(b"<html>", "text/html"), "/large": PageFile(large, "application/wasm")}
    application = application_of(bundle, files=files, file_headers={"Content-Security-Policy": policy})
    reply = ask(application, "GET", "/")
    assert (reply.status, reply.content) == (200, b"<html>")
    assert reply.headers["content-type"] == "text/html"
    assert reply.headers["content-security-policy"] == policy
    assert ask(application, "GET", "/large").content == large
    assert ask(application, "HEAD", "/large").headers["content-length"] == str(len(large))
    assert ask(application, "POST", "/").status == 405
    assert ask(application, "GET", "/v1/spec").status == 401


def test_internal_error_is_logged_without_numbers_of_the_code(bundle, caplog):
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise ValueError(f"secret {np.ones(3)}")

    application = application_of(bundle)
    application.state.catalogue._by_start[bundle.digest[:8]] = ServedBundle(bundle, Broken())  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG):
        refused(post(application, message(bundle)), 500, "internal error")
    assert "ValueError at" in caplog.text
    assert "secret" not in caplog.text
    assert json.loads(post(application, b"").content)["error"]
