"""The messages between an attack and a black box: one JSON object with pictures, and one with their codes.

    {"shape": [B, H, W, C], "pictures": "..."}       uint8 values in this order, in Base64
    {"codes": [[0.5, -1.25], ...]}                   one row of numbers per picture, of any rank
    {"codes": {"embedding": [...], "age": [...]}}    several outputs by name
    {"error": "out of memory"}                       the black box cannot answer

A command reads and prints one object per line; a URL gets and returns one per POST request.
"""

import base64
import json
import re

import numpy as np

from cpgan_ray.common.json_files import parse_json
from cpgan_ray.evaluation.encoders.runners import UNNAMED_OUTPUT
from cpgan_ray.evaluation.encoders.sandbox import Arrays, one_line

MAX_REPLY = 1 << 28
"""Largest reply, in bytes: 250 codes of 50,000 numbers."""


class BlackBoxError(RuntimeError):
    """A black box does not answer, or its answer is not in the protocol; the message is the end of a sentence about it."""


def write_pictures(pictures: np.ndarray) -> bytes:
    """The request with pictures (B, H, W, C) uint8, on one line."""
    content = base64.b64encode(np.ascontiguousarray(pictures).tobytes()).decode()
    return json.dumps({"shape": list(pictures.shape), "pictures": content}).encode()


def read_codes(content: bytes) -> Arrays:
    """The outputs in a reply, by name.

    Raises: BlackBoxError if it is not in the protocol.
    """
    try:
        reply = parse_json(content)
    except ValueError:
        start = one_line(content[:80].decode(errors="replace"), 80)
        raise BlackBoxError(f'answers {start!r}, which is not JSON: it must answer only {{"codes": [...]}}') from None
    if not isinstance(reply, dict) or not {"codes", "error"} & reply.keys():
        raise BlackBoxError('answers without codes: it must answer {"codes": [...]}, one row of numbers per picture')
    if "error" in reply:
        raise BlackBoxError(f"answers with an error: {one_line(reply['error'])}")
    codes = reply["codes"]
    return {name: _array(name, values) for name, values in (codes if isinstance(codes, dict) else {UNNAMED_OUTPUT: codes}).items()}


def _array(name: str, values: object) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "iufb":
        what = re.sub(r"\s+", " ", one_line(name, 80))
        raise BlackBoxError(f"answers codes {what!r} that are no rows of equally many numbers")
    return array
