"""Tests that text from other sources is safe to print, and that JSON files are read within limits."""

import json
import os

import pytest

from cpgan_ray.common.json_files import parse_json, read_json
from cpgan_ray.common.text import printable_values
from cpgan_ray.errors import InputError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e9 \u4e2d\u6587 text\twith\nlines", "plain \u00e9 \u4e2d\u6587 text\twith\nlines"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb\x07", "a\\rb\\x07"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable_escapes_control_characters(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    assert printable_values({text: [text, 1, None]}) == {shown: [shown, 1, None]}
    assert str(InputError(text)) == shown


@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 200_000, "nested too deeply"), ("{", "Expecting"), (b"\xff\xfe\x00", "utf|Expecting"), ("9" * 5000, "digits|limit")],
)
def test_read_json_of_a_hostile_file_raises_a_short_error(content, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_json(path)


def test_read_json_of_a_large_or_irregular_file_is_refused(tmp_path):
    path, pipe = tmp_path / "x.json", tmp_path / "pipe"
    path.write_text(json.dumps([1] * 100))
    assert read_json(path) == parse_json(path.read_text()) == [1] * 100
    with pytest.raises(ValueError, match="more than 99 bytes"):
        read_json(path, max_bytes=99)
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(pipe)
