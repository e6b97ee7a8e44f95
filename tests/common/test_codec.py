"""Tests of the bytes of codes: the vectors of docs/wire-format.md, its algorithm as written there, and bytes that are no codes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray.common.codec import (
    CODINGS,
    PLAIN,
    PRECISION,
    RANGE,
    BytesError,
    FloatCodec,
    LevelCodec,
    codec_from_json,
    codec_of,
    frequencies_of,
)
from cpgan_ray.deploy.message import HEADER, read_message, write_message

PAGE = Path(__file__).parents[2] / "docs" / "wire-format.md"
VECTORS = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)]
DIGEST = "0123456789abcdef" * 4
WORD, STATE = 1 << 32, 1 << 64


def codec(*, k: int = 5, step: float = 0.5, counts: tuple[int, ...] = (1, 40, 200, 50, 2)) -> LevelCodec:
    return LevelCodec(k=k, step=step, lowest=-2, frequencies=frequencies_of(np.array(counts)))


def random_levels(made_for: LevelCodec, count: int, seed: int) -> np.ndarray:
    shares = np.array(made_for.frequencies) / (1 << PRECISION)
    drawn = np.random.default_rng(seed).choice(len(shares), (count, made_for.k), p=shares)
    return (drawn + made_for.lowest).astype(np.int32)


# ------------------------------------------------------------------------------------------------- the page's algorithm, as written


class Spelled:
    """The encoder and decoder as docs/wire-format.md spells them."""

    def __init__(self, frequencies: tuple[int, ...]) -> None:
        self.frequencies = frequencies
        self.before = [sum(frequencies[:s]) for s in range(len(frequencies))]

    def encode(self, symbols: list[int]) -> list[int]:
        words: list[int] = []

        def add(lower: int, more: int) -> int:
            if lower + more >= STATE:
                i = len(words) - 1
                while words[i] == WORD - 1:
                    words[i], i = 0, i - 1
                words[i] += 1
            return (lower + more) % STATE

        lower, size = 0, STATE - 1
        for symbol in symbols:
            unit = size >> PRECISION
            lower, size = add(lower, unit * self.before[symbol]), unit * self.frequencies[symbol]
            if size < WORD:
                words.append(lower >> 32)
                lower, size = (lower << 32) % STATE, size << 32
        point = add(lower, WORD - 1)
        words.append(point >> 32)
        return [*words, 0] if ((lower + size) % STATE) >> 32 == point >> 32 else words

    def decode(self, words: list[int], count: int) -> list[int]:
        rest = [*words, *[0] * (count + 2)]
        offset, size, symbols = rest.pop(0) << 32 | rest.pop(0), STATE - 1, []  # offset: code - lower
        for _ in range(count):
            unit = size >> PRECISION
            symbol = max(s for s, before in enumerate(self.before) if before <= offset // unit)
            symbols.append(symbol)
            offset, size = offset - unit * self.before[symbol], unit * self.frequencies[symbol]
            if size < WORD:
                offset, size = offset << 32 | rest.pop(0), size << 32
        return symbols


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=9),
    st.lists(st.integers(0, 8), min_size=1, max_size=60),
)
def test_range_coder_follows_the_page_in_both_directions(counts, drawn):
    symbols = [symbol % len(counts) for symbol in drawn]
    made = LevelCodec(k=len(symbols), step=1.0, lowest=0, frequencies=frequencies_of(np.array(counts)))
    payload = made.encode(np.array([symbols], np.float32), RANGE)
    spelled = Spelled(made.frequencies)
    assert payload == np.array(spelled.encode(symbols), "<u4").tobytes()
    assert spelled.decode(np.frombuffer(payload, "<u4").tolist(), len(symbols)) == symbols


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["codec"]["kind"])
def test_messages_equal_the_vectors_of_the_page(vector: dict[str, Any]):
    made = codec_from_json(vector["codec"])
    for case in vector["cases"]:
        z = made.codes(np.array(case["levels"])) if isinstance(made, LevelCodec) else np.array(case["codes"], np.float32)
        message = write_message(z, made, digest=vector["digest"], coding=case["coding"])
        assert message.hex() == case["message"]
        assert np.array_equal(read_message(message, made, digest=vector["digest"]), z)


# -------------------------------------------------------------------------------------------------------------- what the bytes mean


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("count", [1, 7, 300])
def test_decoding_returns_the_codes_that_were_encoded(coding, count):
    made = codec()
    z = made.codes(random_levels(made, count, seed=count))
    assert np.array_equal(read_message(write_message(z, made, digest=DIGEST, coding=coding), made, digest=DIGEST), z)


def test_entropy_coding_comes_close_to_the_entropy():
    made = codec(k=64)
    shares = np.array(made.frequencies) / (1 << PRECISION)
    ideal = 200 * 64 * -(shares * np.log2(shares)).sum() / 8
    size = len(made.encode(made.codes(random_levels(made, 200, seed=0)), RANGE))
    assert 0.97 * ideal < size < 1.03 * ideal + 8
    assert size < 0.65 * 200 * made.plain_bytes


def test_levels_are_the_nearest_multiples_within_the_range():
    z = np.array([[0.24, 0.26, -9.0, 9.0, -0.75]], np.float32)
    assert codec().levels(z).tolist() == [[0, 1, -2, 2, -2]]  # -1.5: halves go to the even number


def test_codec_of_codes_has_their_levels_and_frequencies():
    made = codec_of(np.array([[0.5, -1.0], [0.0, 0.0]], np.float32), step=0.5)
    assert isinstance(made, LevelCodec)
    assert (made.lowest, made.highest, made.plain_bytes) == (-2, 1, 1)
    assert sum(made.frequencies) == 1 << PRECISION
    assert made.frequencies[2] == max(made.frequencies)
    assert made.frequencies[1] == min(made.frequencies)
    assert codec_from_json(json.loads(json.dumps(made.as_json()))) == made


def test_codec_of_constant_codes_has_two_levels():
    made = codec_of(np.zeros((3, 2), np.float32), step=0.5)
    assert isinstance(made, LevelCodec)
    assert (made.lowest, made.highest) == (0, 1)
    assert np.array_equal(made.levels(np.full((1, 2), 9, np.float32)), [[1, 1]])


@pytest.mark.parametrize(("levels", "lowest", "highest", "bits"), [(2, -1, 0, 1), (3, -1, 1, 2), (4, -2, 1, 2), (5, -2, 2, 3)])
def test_codec_of_finite_codes_has_all_levels(levels, lowest, highest, bits):
    made = codec_of(np.zeros((3, 2), np.float32), step=0.5, levels=levels)
    assert isinstance(made, LevelCodec)
    assert (made.lowest, made.highest, made.bits) == (lowest, highest, bits)
    assert made.frequencies[-lowest] == max(made.frequencies)
    assert codec_from_json(json.loads(json.dumps(made.as_json()))) == made


@pytest.mark.parametrize(("scale", "step"), [(1.0, 0.0), (1e7, 1.0)])
def test_codec_of_unrounded_or_far_spread_codes_holds_floats(scale, step):
    z = scale * np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    made = codec_of(z, step=step)
    assert made == FloatCodec(k=3)
    assert np.array_equal(made.decode(made.encode(z), 9, PLAIN), z)


# --------------------------------------------------------------------------------------------------------- bytes that are no codes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: b"", "0 bytes"),
        (lambda m: m[:7], "7 bytes"),
        (lambda m: b"\2" + m[1:], "version 2"),
        (lambda m: m[:1] + b"\7" + m[2:], "coding 7"),
        (lambda m: m[:2] + b"\0\0" + m[4:], "0 codes"),
        (lambda m: m[:2] + b"\xff\xff" + m[4:], "65535 codes"),
        (lambda m: m[:4] + b"\0\0\0\0" + m[8:], "bundle 00000000"),
        (lambda m: m[:-1], "bytes"),
        (lambda m: m + b"\0", "bytes"),
        (lambda m: m + b"\0\0\0\0", "bytes"),
    ],
)
@pytest.mark.parametrize("coding", CODINGS)
def test_message_that_was_changed_is_refused_with_the_reason(coding, change, reason):
    made = codec()
    message = write_message(made.codes(random_levels(made, 3, seed=1)), made, digest=DIGEST, coding=coding)
    with pytest.raises(BytesError, match=reason):
        read_message(change(message), made, digest=DIGEST, max_codes=1000)


def test_plain_bytes_with_a_number_beyond_the_levels_are_refused():
    with pytest.raises(BytesError, match="a number is 7; the largest is 4"):
        codec().decode(b"\xff\xfe", 1, PLAIN)


def test_plain_bytes_with_bits_after_the_last_number_are_refused():
    with pytest.raises(BytesError, match="not 0"):
        codec().decode(b"\x00\x01", 1, PLAIN)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_read_message_accepts_only_bytes_that_a_client_writes(content):
    made = codec()
    for start in (b"", HEADER.pack(1, 1, 2, bytes.fromhex(DIGEST[:8])), HEADER.pack(1, 0, 2, bytes.fromhex(DIGEST[:8]))):
        try:
            z = read_message(start + content, made, digest=DIGEST)
        except BytesError:
            continue
        coding = CODINGS[(start + content)[1]]
        assert write_message(z, made, digest=DIGEST, coding=coding) == start + content


def test_long_message_claim_is_refused_before_it_is_decoded():
    made = codec(k=1 << 20)  # 65,535 codes of this length would be 2^36 symbols
    with pytest.raises(BytesError, match="enough for 65535 codes"):
        read_message(HEADER.pack(1, 1, 65535, bytes.fromhex(DIGEST[:8])) + bytes(400), made, digest=DIGEST)


@pytest.mark.parametrize("z", [np.zeros((2, 4), np.float32), np.full((2, 5), np.nan, np.float32), np.zeros(5, np.float32)])
def test_encode_refuses_what_is_no_code_of_this_length(z):
    for coding in CODINGS:
        with pytest.raises(BytesError, match="codes"):
            codec().encode(z, coding)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"k": 0},
        {"k": "5"},
        {"k": True},
        {"kind": "huffman"},
        {"step": 0},
        {"step": float("nan")},
        {"lowest": 0.5},
        {"lowest": 1 << 30},
        {"highest": 9},
        {"precision": 16},
        {"frequencies": [1, 2]},
        {"frequencies": [0, 1 << 24]},
        {"frequencies": "many"},
        {"frequencies": [1] * 5000},
        {"frequencies": None},
    ],
)
def test_codec_from_damaged_json_is_refused(changes):
    with pytest.raises(ValueError, match=r"\w+"):
        codec_from_json(codec().as_json() | changes)
