"""The body of a request: codes as a message (docs/wire-format.md), or as JSON; nothing else."""

import re
from typing import Any

import numpy as np

from cpgan_ray.common.codec import BytesError, LevelCodec
from cpgan_ray.common.json_files import parse_json
from cpgan_ray.deploy.message import CONTENT_TYPE, HEADER, VERSION, read_message
from cpgan_ray.deploy.service.refusal import RefusedError
from cpgan_ray.deploy.service.served import Catalogue, ServedBundle

JSON_TYPE = "application/json"
PARAMETERS = re.compile(r"\s*;\s*charset=\"?utf-8\"?\s*", re.IGNORECASE)
DIGEST = re.compile("[0-9a-f]{8,64}")
MAX_LEVEL, MAX_NUMBER = 1 << 30, 1e30
"""Beyond all levels and numbers of codes, and within int64 and float32."""


def media_type(value: bytes | None) -> str:
    """The media type of a body, one of the two that are read.

    Raises: RefusedError with the status 415 for any other one: a picture, above all.
    """
    name, _, rest = (value or b"").decode("latin-1").partition(";")
    name = name.strip().lower()
    if name not in (CONTENT_TYPE, JSON_TYPE) or (rest and not PARAMETERS.fullmatch(f";{rest}")):
        what = "pictures are not accepted: send codes" if name.startswith("image/") else "send codes"
        raise RefusedError(415, f"{what} as {CONTENT_TYPE} or {JSON_TYPE}", headers={"Accept": f"{CONTENT_TYPE}, {JSON_TYPE}"})
    return name


def read_codes(body: bytes, kind: str, catalogue: Catalogue, *, max_codes: int) -> tuple[ServedBundle, np.ndarray]:
    """The bundle that a body was made with, and its codes z (B, k) float32.

    kind: its media type.

    Raises: RefusedError with the status 400 or 422 and the reason if it is not 1 to `max_codes` codes.
    """
    try:
        return _from_json(body, catalogue, max_codes) if kind == JSON_TYPE else _from_message(body, catalogue, max_codes)
    except BytesError as e:
        raise RefusedError(422, str(e)) from e


def _from_message(body: bytes, catalogue: Catalogue, max_codes: int) -> tuple[ServedBundle, np.ndarray]:
    if len(body) < HEADER.size:
        raise BytesError(f"{len(body)} bytes; a message has at least {HEADER.size}")
    version, _, _, start = HEADER.unpack_from(body)
    if version != VERSION:
        raise BytesError(f"version {version}; this service reads version {VERSION}")
    one = catalogue.find(start.hex())
    return one, read_message(body, one.bundle.codec, digest=one.bundle.digest, max_codes=max_codes)


def _from_json(body: bytes, catalogue: Catalogue, max_codes: int) -> tuple[ServedBundle, np.ndarray]:
    try:
        values = parse_json(body)
    except ValueError as e:
        raise RefusedError(400, "the body is not JSON") from e
    if not isinstance(values, dict):
        raise BytesError("the body is not a JSON object")
    if type(values.get("version")) is not int or values["version"] != VERSION:
        raise BytesError(f"version is not {VERSION}")
    digest = values.get("digest")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise BytesError("digest is not that of a bundle: 8 to 64 hexadecimal digits")
    one = catalogue.find(digest)
    codec = one.bundle.codec
    field, kinds = ("levels", (int,)) if isinstance(codec, LevelCodec) else ("codes", (int, float))
    if values.keys() != {"version", "digest", field}:
        raise BytesError(f"the fields are not version, digest and {field}")
    return one, codec.codes(_rows(values[field], field, kinds, codec.k, max_codes))


def _rows(rows: Any, field: str, kinds: tuple[type, ...], k: int, max_codes: int) -> np.ndarray:
    """The numbers (B, k) in a list of lists: int64, or float64.

    Raises: BytesError if they are not 1 to `max_codes` lists of k numbers.
    """
    if not isinstance(rows, list) or not 1 <= len(rows) <= max_codes:
        raise BytesError(f"{field} is not a list of 1 to {max_codes} codes")
    if not all(isinstance(row, list) and len(row) == k for row in rows):
        raise BytesError(f"a code is not a list of {k} numbers")
    if not all(type(value) in kinds for row in rows for value in row):
        raise BytesError("a number is not whole" if kinds == (int,) else "a value is not a number")
    largest = MAX_LEVEL if kinds == (int,) else MAX_NUMBER
    if any(abs(value) > largest for row in rows for value in row):
        raise BytesError("a number is too large")
    return np.asarray(rows, np.int64 if kinds == (int,) else np.float64)
