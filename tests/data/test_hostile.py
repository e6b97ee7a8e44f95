"""Tests that hostile data files are read correctly or refused in one line that names them, and that nothing hangs."""

import dataclasses
import functools
import io
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cpgan_ray import data
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import store
from cpgan_ray.data.datasets import celeba, celeba_pictures
from cpgan_ray.data.pca import projection
from cpgan_ray.errors import InputError
from tests.payload import Payload

ROOT = Path(__file__).parents[2]
ATTR, IDENT, PART = celeba.ATTRIBUTES, celeba.IDENTITIES, celeba.PARTITION
PICTURES = celeba_pictures.PICTURES


def checked_message(error: pytest.ExceptionInfo[InputError], *, names: Sequence[str]) -> str:
    """The message of an error; checks that it is one short printable line with one of `names`."""
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1000
    assert any(name in message for name in names)
    return message


def refusal(call: Callable[[], Any], *, names: Sequence[str]) -> tuple[Any, bool]:
    """The result of a call, and whether it raised an `InputError` instead; checks the message of the error."""
    try:
        return call(), False
    except InputError as e:
        message = str(e)
    assert message.isprintable()
    assert len(message) < 1000
    assert any(name in message for name in names)
    return None, True


# ------------------------------------------------------------------------------------------------------------- annotations

FUZZED = settings(derandomize=True, deadline=None, max_examples=100)
WORDS = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=12)
EVIL = (
    *("nan", "inf", "-inf", "1e999", "1.0", "-0", "+1", "0x1", "1_0", "2", "3", "-1", "9" * 19, "1" * 5000),
    *("\u0661", "\uff11", "\u00b2", "\ufeff", "\u200b", "\0", "\x1b[2J", "\u202e", "\U0001f600", "x" * 200_000),
    *("../000001.jpg", "/etc/passwd", "000001.jpg", "image", "identity", "", " ", "\t", "\r", "\u2028", "\x85"),
)


@dataclasses.dataclass(frozen=True)
class AnnotationFiles:
    """The content of the three annotation files."""

    labels: tuple[str, ...]
    rows: dict[str, tuple[tuple[int, ...], int, int]]
    """Name -> values, identity, partition."""

    def files(self) -> dict[str, str]:
        values = [f"{name} {' '.join(f'{1 if v else -1:2d}' for v in row)}" for name, (row, _, _) in self.rows.items()]
        return {
            ATTR: "\n".join([str(len(self.rows)), " ".join(self.labels), *values]) + "\n",
            IDENT: "".join(f"{name} {identity}\n" for name, (_, identity, _) in self.rows.items()),
            PART: "".join(f"{name} {part}\n" for name, (_, _, part) in self.rows.items()),
        }


@st.composite
def annotations(draw: st.DrawFn) -> AnnotationFiles:
    labels = draw(st.lists(WORDS.filter(lambda w: w not in ("image", "identity")), min_size=1, max_size=4, unique=True))
    names = draw(st.lists(WORDS, min_size=1, max_size=6, unique=True))
    row = st.tuples(*[st.integers(0, 1)] * len(labels))
    return AnnotationFiles(
        tuple(labels), {name: (draw(row), draw(st.integers(0, 10**18 - 1)), draw(st.integers(0, 2))) for name in names}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def read(folder: Path, files: dict[str, bytes]) -> celeba.Annotations:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return celeba.read_annotations({name: folder / name for name in (ATTR, IDENT, PART)})


def to_files(loaded: celeba.Annotations) -> AnnotationFiles:
    assert loaded.partition is not None
    rows = zip(map(tuple, loaded.labels.tolist()), loaded.identity.tolist(), loaded.partition.tolist(), strict=True)
    return AnnotationFiles(loaded.label_names, dict(zip(loaded.names, rows, strict=True)))


@FUZZED
@given(annotations(), st.sampled_from(["\n", "\r\n", " \n", "\t\n"]), st.booleans(), st.booleans())
def test_annotations_with_any_line_ending_are_read(folder, files, newline, mark, last):
    written = {
        name: text.replace("\n", newline) if last else text.replace("\n", newline).rstrip() for name, text in files.files().items()
    }
    assert to_files(read(folder, {n: text.encode("utf-8-sig" if mark else "utf-8") for n, text in written.items()})) == files


@FUZZED
@given(annotations(), st.randoms(use_true_random=False))
def test_annotations_in_another_line_order_are_the_same(folder, files, rng: random.Random):
    written = files.files()
    for name in (IDENT, PART):
        lines = written[name].splitlines(keepends=True)
        rng.shuffle(lines)
        written[name] = "".join(lines)
    assert to_files(read(folder, {name: text.encode() for name, text in written.items()})) == files


def read_by_words(files: dict[str, bytes]) -> AnnotationFiles:
    """An independent reader of the files: word by word, except for the second line of the attributes."""
    text = {name: content.decode("utf-8-sig") for name, content in files.items()}
    labels = tuple(text[ATTR].split("\n")[1].split())
    words = text[ATTR].split()[1 + len(labels) :]
    width = len(labels) + 1
    values = {words[i]: tuple(int(v == "1") for v in words[i + 1 : i + width]) for i in range(0, len(words), width)}
    numbers = {name: dict(zip(text[name].split()[::2], map(int, text[name].split()[1::2]), strict=True)) for name in (IDENT, PART)}
    assert len(values) == len(words) // width == int(text[ATTR].split()[0])
    return AnnotationFiles(labels, {name: (row, numbers[IDENT][name], numbers[PART][name]) for name, row in values.items()})


@st.composite
def altered_files(draw: st.DrawFn) -> dict[str, bytes]:
    """Valid files; one of them is altered once or twice: in its lines, in a field, or in a byte."""
    files = {name: text.encode() for name, text in draw(annotations()).files().items()}
    name = draw(st.sampled_from([ATTR, IDENT, PART]))
    for _ in range(draw(st.integers(1, 2))):
        lines = files[name].split(b"\n")
        at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        match draw(st.sampled_from(["drop", "double", "swap", "field", "byte", "cut", "files"])):
            case "drop":
                del lines[at]
            case "double":
                lines.insert(other, lines[at])
            case "swap":
                lines[at], lines[other] = lines[other], lines[at]
            case "field":
                fields = lines[at].split(b" ")
                fields[draw(st.integers(0, len(fields) - 1))] = draw(st.sampled_from(EVIL)).encode()
                lines[at] = b" ".join(fields)
            case "byte":
                position = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:position] + draw(st.binary(max_size=3)) + lines[at][position:]
            case "cut":
                lines[at:] = [lines[at][: draw(st.integers(0, len(lines[at])))]]
            case _:
                files[name], lines = files[IDENT], files[name].split(b"\n")
        files[name] = b"\n".join(lines)
    return files


@settings(FUZZED, max_examples=300)
@given(altered_files())
def test_annotations_altered_are_read_correctly_or_refused_by_name(folder, files):
    parsed, refused = refusal(lambda: read(folder, files), names=[str(folder / name) for name in files])
    assert refused or to_files(parsed) == read_by_words(files)


@FUZZED
@given(st.fixed_dictionaries({name: st.binary(max_size=200) for name in (ATTR, IDENT, PART)}))
@example({ATTR: b"0\nA\n", IDENT: b"", PART: b""})
@example({ATTR: b"\0" * 100_000, IDENT: b"\n" * 100_000, PART: b"\xff\xfe"})
@example({ATTR: b"1\n" + b"a " * 100_000, IDENT: b"a " * 100_000, PART: b"a"})
def test_annotations_of_random_bytes_are_refused_by_name(folder, files):
    with pytest.raises(InputError) as error:
        read(folder, files)
    checked_message(error, names=list(files))


@pytest.mark.parametrize("evil", [e for e in EVIL if e not in ("-1", "1_0", "-0") and e.split()], ids=ascii)
@pytest.mark.parametrize(("name", "line"), [(ATTR, 4), (IDENT, 2), (PART, 2)])
def test_annotations_with_a_bad_value_name_its_line(folder, name, line, evil):
    files = AnnotationFiles(("Smiling", "Male"), {f"{i}.jpg": ((0, 1), i + 50, 0) for i in range(9)}).files()
    lines = files[name].split("\n")
    lines[line - 1] = lines[line - 1].rpartition(" ")[0] + f" {evil}"
    files[name] = "\n".join(lines)
    if name == IDENT and evil in ("2", "3") or name == PART and evil == "2":
        assert read(folder, {n: text.encode() for n, text in files.items()})
        return
    with pytest.raises(InputError) as error:
        read(folder, {n: text.encode() for n, text in files.items()})
    assert f"{folder / name}, line {line}: expected" in checked_message(error, names=[name])


@pytest.mark.parametrize(("name", "first"), [(ATTR, 3), (IDENT, 1), (PART, 1)])
def test_annotations_with_a_repeated_picture_name_both_lines(folder, name, first):
    files = AnnotationFiles(("Smiling",), {f"{i}.jpg": ((0,), i, 0) for i in range(9)}).files()
    files[name] = files[name].replace("\n7.jpg ", "\n2.jpg ")
    with pytest.raises(InputError) as error:
        read(folder, {n: text.encode() for n, text in files.items()})
    assert f"line {first + 7}: 2.jpg is listed twice, first in line {first + 2}" in checked_message(error, names=[name])


# ---------------------------------------------------------------------------------------------------------------- pictures


def pixels(row: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    rng = np.random.default_rng(row)
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    picture.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def name_of(row: int) -> str:
    return f"{row + 1:06d}.jpg"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of ten people: 12 train, 4 val, 4 test. They are PNG files, although their names end in .jpg."""
    folder = tmp_path_factory.mktemp("pristine") / "celeba"
    (folder / PICTURES).mkdir(parents=True)
    for row in range(20):
        (folder / PICTURES / name_of(row)).write_bytes(encoded(pixels(row)))
    parts = [0] * 12 + [1] * 4 + [2] * 4
    rows = {name_of(row): ((row % 2, row // 3 % 2), row // 2, parts[row]) for row in range(20)}
    for name, text in AnnotationFiles(("Smiling", "Male"), rows).files().items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def layout(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "celeba"))


def load(folder: Path, *, skip_corrupt: bool = False, cache_dir: Path | None = None, **changes: Any) -> data.Dataset:
    settings = DataConfig(**{"dataset": "celeba", "image_size": 16, "final_fraction": 0.0, **changes})
    return data.load(Config(data_dir=folder, cache_dir=cache_dir, skip_corrupt=skip_corrupt, data=settings), progress=False)


def all_pictures(dataset: data.Dataset) -> np.ndarray:
    return np.concatenate([s.take(np.arange(len(s))) for s in (dataset.train, dataset.val, dataset.test)])


def contents(folder: Path) -> dict[str, int]:
    """All paths in a folder with their sizes, without locks: a failed call must not leave anything else."""
    return {str(p.relative_to(folder)): p.lstat().st_size for p in folder.rglob("*") if p.suffix != ".lock" and p.name != ".cpgan"}


@functools.cache
def png(width: int, height: int, *, kind: int = 0, depth: int = 1) -> bytes:
    """A black PNG of any size in few bytes, made without allocating its pixels. kind: 0 grey, 2 RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(1), bytes(1 + (width * depth * (3 if kind == 2 else 1) + 7) // 8)
    rows = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def many_scans(num: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each 95 bytes cause as much work as the complete picture."""
    content = encoded(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    return content[:-2] + content[content.rfind(b"\xff\xda") : -2] * num + content[-2:]


def many_scans_in_a_tiff() -> bytes:
    """`many_scans` as the only strip of a TIFF (compression 7)."""
    jpeg = many_scans(2000)
    tags = ((256, 64), (257, 64), (258, 8), (259, 7), (262, 1), (273, 8), (277, 1), (278, 64), (279, len(jpeg)))
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(jpeg)) + jpeg + struct.pack("<H", len(tags)) + directory + bytes(4)


BAD_PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is not a JPEG, PNG, .*AVIF file"),
    "text": (lambda: b"hello" * 1000, "it is not a JPEG, PNG"),
    "first bytes of a JPEG": (lambda: b"\xff\xd8\xff\xe0", "not a JPEG"),
    "truncated JPEG": (lambda: encoded(pixels(0, (90, 90)), "JPEG")[:-300], "truncated"),
    "truncated PNG": (lambda: encoded(pixels(0))[:200], "truncated"),
    "truncated WebP": (lambda: encoded(pixels(0), "WEBP")[:60], "cannot be decoded"),
    "truncated GIF": (lambda: encoded(pixels(0, (90, 90)), "GIF")[:-2000], "truncated"),
    "truncated TIFF": (lambda: encoded(pixels(0, (90, 90)), "TIFF")[:9000], "cannot be decoded"),
    "truncated PPM": (lambda: encoded(pixels(0), "PPM")[:-100], "truncated"),
    "truncated AVIF": (lambda: encoded(pixels(0), "AVIF")[:-60], "cannot be decoded"),
    "PPM that claims too much": (lambda: b"P6 60000 60000 255 " + bytes(99), "limit"),
    "GIF that claims too much": (lambda: b"GIF89a\xff\xff\xff\xff" + encoded(pixels(0), "GIF")[10:], "limit"),
    "TIFF of endless passes": (lambda: many_scans_in_a_tiff(), "it has 2006 scans, the limit is 100"),
    "numbers without a range": (lambda: encoded(Image.new("F", (9, 9)), "TIFF"), "floating-point values"),
    "whole numbers without a range": (lambda: encoded(Image.new("I", (9, 9), 70_000), "TIFF"), "32-bit values"),
    "bomb": (lambda: png(50_000, 50_000), "limit"),
    "smaller bomb": (lambda: png(8193, 8192), "8193 x 8192 pixels, the limit is 67108864"),
    "WebP bomb": (lambda: wide_webp(), "limit"),
    "BMP that claims too much": (lambda: with_claimed_size(encoded(pixels(0), "BMP"), 18, 30_000, 30_000), "limit"),
    "JPEG of endless passes": (lambda: many_scans(2000), "it has 2006 scans, the limit is 100"),
    "huge text in a PNG": (lambda: with_text(encoded(pixels(0)), 100 << 20), "cannot be decoded"),
}


def wide_webp() -> bytes:
    """A lossless WebP whose header claims 16384 x 16384 pixels."""
    content = encoded(pixels(0), "WEBP", lossless=True)
    at = content.index(b"VP8L") + 9
    return content[:at] + b"\xff\xff\xff\x0f" + content[at + 4 :]


def with_claimed_size(content: bytes, at: int, width: int, height: int) -> bytes:
    return content[:at] + struct.pack("<ii", width, height) + content[at + 8 :]


def with_text(content: bytes, size: int) -> bytes:
    """A PNG with a compressed text chunk of the given size."""
    body = b"Comment\0\0" + zlib.compress(bytes(size), 1)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return content[:33] + chunk + content[33:]


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_bad_or_excessive_picture_is_refused_by_name(layout, case):
    make, expected = BAD_PICTURES[case]
    (layout / PICTURES / name_of(2)).write_bytes(make())
    before = contents(layout)
    with pytest.raises(InputError) as error:
        load(layout)
    assert re.search(expected, checked_message(error, names=[f"{PICTURES}/000003.jpg cannot be decoded"]))
    assert contents(layout) == before


PEAK = r"""
import re, sys, time
from pathlib import Path

def peak():  # peak memory of this process in MB; getrusage would include the parent's memory
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
"""
MEASURED = """
from cpgan_ray.data.decoding import decode_block
small, *bombs = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
decode_block([small], image_size=16, crop=1.0)
before, started = peak(), time.process_time()
refused = [isinstance(one, str) for one in decode_block(bombs, image_size=16, crop=1.0)]
print(all(refused), peak() - before, time.process_time() - started)
"""


def test_decompression_bombs_use_little_memory_and_time(tmp_path):
    (tmp_path / "0").write_bytes(encoded(pixels(0), "WEBP"))
    names = (
        "bomb",
        "smaller bomb",
        "WebP bomb",
        "BMP that claims too much",
        "JPEG of endless passes",
        "huge text in a PNG",
    )
    for name in names:
        (tmp_path / name.replace(" ", "_")).write_bytes(BAD_PICTURES[name][0]())
    command = [sys.executable, "-c", PEAK + MEASURED, str(tmp_path)]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    refused, megabytes, seconds = ran.stdout.split()
    assert refused == "True"
    assert int(megabytes) < 150, "a single picture as RGB would take 200 or more"
    assert float(seconds) < 2


def grey_ramp() -> np.ndarray:
    return np.arange(256, dtype=np.uint16).reshape(16, 16)


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(pixels(3, (16, 16)), "PNG", exif=exif)


ODD_PICTURES: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "16-bit grey": (
        lambda: encoded(Image.fromarray(grey_ramp() * 257)),
        lambda: np.repeat(grey_ramp().astype(np.uint8)[..., None], 3, axis=2),
    ),
    "black and white": (lambda: encoded(Image.new("1", (16, 16), 1)), lambda: np.full((16, 16, 3), 255)),
    "palette": (
        lambda: encoded(pixels(3, (16, 16)).quantize(256, dither=Image.Dither.NONE)),
        lambda: np.asarray(pixels(3, (16, 16)).quantize(256, dither=Image.Dither.NONE).convert("RGB")),
    ),
    "transparent": (
        lambda: encoded(Image.merge("RGBA", (*pixels(3, (16, 16)).split(), Image.new("L", (16, 16), 0)))),
        lambda: np.asarray(pixels(3, (16, 16))),
    ),
    "animated WebP": (
        lambda: encoded(pixels(3, (16, 16)), "WEBP", save_all=True, append_images=[pixels(4, (16, 16))], lossless=True),
        lambda: np.asarray(pixels(3, (16, 16))),
    ),
    "animated PNG": (
        lambda: encoded(pixels(3, (16, 16)), "PNG", save_all=True, append_images=[pixels(4, (16, 16))]),
        lambda: np.asarray(pixels(3, (16, 16))),
    ),
    "rotated by EXIF": (rotated_by_exif, lambda: np.asarray(pixels(3, (16, 16)))),
    "a line of pixels": (
        lambda: encoded(Image.new("RGB", (1, 60_000), (9, 99, 200)), "JPEG", quality=100),
        lambda: np.full((16, 16, 3), (9, 99, 200)),
    ),
    "a row of pixels": (
        lambda: encoded(Image.new("RGB", (60_000, 1), (9, 99, 200)), "JPEG", quality=100),
        lambda: np.full((16, 16, 3), (9, 99, 200)),
    ),
    "CMYK": (
        lambda: encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=100),
        lambda: np.full((16, 16, 3), (255, 0, 0)),
    ),
    "as many pixels as may be": (lambda: png(8192, 8192), lambda: np.zeros((16, 16, 3))),
}


@pytest.mark.parametrize("case", ODD_PICTURES)
def test_unusual_pictures_give_the_stored_pixels(layout, case):
    make, expected = ODD_PICTURES[case]
    (layout / PICTURES / name_of(0)).write_bytes(make())
    images = load(layout).train.take(np.array([0, 1]))
    np.testing.assert_allclose(images[0].astype(int), expected(), atol=2)
    assert np.abs(images[1].astype(int) - np.asarray(pixels(1).resize((16, 16), Image.Resampling.BICUBIC))).max() <= 1


def _relink(path: Path, to: str | Path) -> None:
    path.unlink()
    path.symlink_to(to)


def _remake(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: _remake(path, Path.mkdir),
    "a pipe": lambda path: _remake(path, os.mkfifo),
    "a link to a device": lambda path: _relink(path, "/dev/zero"),
    "a link to a pipe": lambda path: [os.mkfifo(path.parent.parent / "pipe"), _relink(path, path.parent.parent / "pipe")],
    "a link to nothing": lambda path: _relink(path, "nothing"),
    "a link to itself": lambda path: _relink(path, path.name),
    "a link to a folder": lambda path: _relink(path, "/"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_picture_that_is_no_regular_file_counts_as_missing(layout, case):
    NO_FILES[case](layout / PICTURES / name_of(2))
    with pytest.raises(InputError) as error:
        load(layout)
    checked_message(error, names=["1 of the 20 pictures of list_attr_celeba.txt are missing or not files, first 000003.jpg"])
    assert load(layout, skip_corrupt=True).skipped == ("000003.jpg",)


@pytest.mark.parametrize("name", [ATTR, IDENT, PART, f"{PICTURES}.zip"])
def test_pipe_in_place_of_a_file_is_not_opened(layout, name):
    if name.endswith(".zip"):
        shutil.rmtree(layout / PICTURES)
    (layout / name).unlink(missing_ok=True)
    os.mkfifo(layout / name)
    with pytest.raises(InputError) as error:
        load(layout)
    checked_message(error, names=[name])


def test_picture_that_is_a_link_to_a_file_is_followed(layout, tmp_path):
    expected = all_pictures(load(layout, cache_dir=tmp_path / "one"))
    moved = tmp_path / "elsewhere.jpg"
    (layout / PICTURES / name_of(2)).rename(moved)
    (layout / PICTURES / name_of(2)).symlink_to(moved)
    np.testing.assert_array_equal(all_pictures(load(layout, cache_dir=tmp_path / "two")), expected)
    (layout / PICTURES).rename(tmp_path / "all")
    (layout / PICTURES).symlink_to(tmp_path / "all")
    np.testing.assert_array_equal(all_pictures(load(layout, cache_dir=tmp_path / "three")), expected)


@pytest.mark.parametrize("split", ["official", "identity"])
def test_data_set_with_one_picture_raises(tmp_path, split):
    (tmp_path / PICTURES).mkdir()
    (tmp_path / PICTURES / "1.jpg").write_bytes(encoded(pixels(0)))
    for name, text in AnnotationFiles(("Smiling",), {"1.jpg": ((1,), 1, 0)}).files().items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        load(tmp_path, split=split)
    checked_message(error, names=[f"{tmp_path}: the val split is empty"])


@pytest.mark.parametrize("split", store.SPLITS)
def test_projection_of_identical_pictures_raises(tmp_path, make_store, split):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 6, 3)).astype(np.uint8)
    rows = {"train": slice(0, 35), "val": slice(35, 45), "test": slice(45, 50)}[split]
    images[rows] = images[rows.start]
    dataset, *_ = make_store(tmp_path / "store", images=images)
    with pytest.raises(InputError) as error:
        projection(dataset, components=8, progress=False)
    checked_message(error, names=[f"store: the {rows.stop - rows.start} pictures of the {split} split are all the same"])
    assert not any(path.is_dir() for path in dataset.folder.iterdir())


def test_projection_of_single_colour_pictures_is_finite(tmp_path, make_store):
    images = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None] * 5, (50, 8, 6, 3))
    dataset, *_ = make_store(tmp_path / "store", images=np.ascontiguousarray(images))
    basis = projection(dataset, components=8, progress=False)
    assert basis.residual.mean() == pytest.approx(0, abs=1e-4 * basis.total_variance)
    assert all(np.isfinite(array).all() for array in (basis.mean, basis.components, basis.coordinates, basis.residual))


# -------------------------------------------------------------------------------------------------------------------- zips


@pytest.fixture
def zipped(layout: Path) -> Callable[..., Path]:
    """Pack the pictures into a zip; members in `instead` replace pictures of the same name."""

    def pack(*, instead: Sequence[tuple[zipfile.ZipInfo | str, bytes]] = (), method: int = zipfile.ZIP_DEFLATED) -> Path:
        names = {re.split(r"[/\\]", info if isinstance(info, str) else info.filename)[-1] for info, _ in instead}
        with zipfile.ZipFile(layout / f"{PICTURES}.zip", "w", method, compresslevel=1) as archive:
            for path in sorted((layout / PICTURES).iterdir()):
                if path.name not in names:
                    archive.write(path, f"{PICTURES}/{path.name}")
            for info, content in instead:
                archive.writestr(info, content, method, compresslevel=1)
        shutil.rmtree(layout / PICTURES)
        return layout / f"{PICTURES}.zip"

    return pack


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{PICTURES}/{name}")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


OUTSIDE = (
    "../000003.jpg",
    "/000003.jpg",
    f"{PICTURES}/../000003.jpg",
    f"/{PICTURES}/000003.jpg",
    "..\\000003.jpg",
    f"C:\\{PICTURES}\\000003.jpg",
    f"other/{PICTURES}/000003.jpg",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_zip_member_outside_the_picture_folder_counts_as_missing(layout, zipped, tmp_path, name):
    zipped(instead=[(name, encoded(pixels(2)))])
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        load(layout)
    checked_message(error, names=[f"{PICTURES}.zip: 1 of the 20 pictures of {ATTR} are missing or not files, first 000003.jpg"])
    assert contents(tmp_path) == before


def _rewrite(path: Path, name: str, *, at: tuple[int, int], value: bytes) -> None:
    """Overwrite a field of a member, in its local header and in its entry of the directory at the end."""
    content = bytearray(path.read_bytes())
    for magic, offset, length in ((b"PK\x03\x04", at[0], 30), (b"PK\x01\x02", at[1], 46)):
        start = content.index(magic)
        while bytes(content[start + length : start + length + len(name)]) != name.encode():
            start = content.index(magic, start + 1)
        content[start + offset : start + offset + len(value)] = value
    path.write_bytes(content)


SIZE, CRC, FLAGS = (22, 24), (14, 16), (6, 8)
"""Offsets of a member's uncompressed size, checksum and flags in the two headers."""
MEMBER = f"{PICTURES}/000003.jpg"
Spoil = Callable[[Path], None]
BAD_MEMBERS: dict[str, tuple[Sequence[tuple[zipfile.ZipInfo | str, bytes]], int, Spoil, str]] = {
    "a link": ([(link("000003.jpg"), b"/etc/passwd")], zipfile.ZIP_STORED, lambda p: None, "it is not a JPEG"),
    "encrypted": ([], zipfile.ZIP_STORED, lambda p: _rewrite(p, MEMBER, at=FLAGS, value=b"\x01"), "encrypted"),
    "another checksum": ([], zipfile.ZIP_STORED, lambda p: _rewrite(p, MEMBER, at=CRC, value=b"\1\2\3\4"), "Bad CRC-32"),
    "inflates to too much": ([(MEMBER, bytes(65 << 20))], zipfile.ZIP_DEFLATED, lambda p: None, "larger than 67108864 bytes"),
    "claims too much": (
        [],
        zipfile.ZIP_DEFLATED,
        lambda p: _rewrite(p, MEMBER, at=SIZE, value=b"\xff" * 4),
        "larger than|cannot be decoded",
    ),
    "inflates to more than it claims": (
        [(MEMBER, bytes(100 << 20))],
        zipfile.ZIP_DEFLATED,
        lambda p: _rewrite(p, MEMBER, at=SIZE, value=struct.pack("<I", 1000)),
        "Bad CRC-32",
    ),
    "compressed without a bound": (
        [(MEMBER, bytes(1 << 20))],
        zipfile.ZIP_BZIP2,
        lambda p: None,
        "its compression method is not deflate",
    ),
    "in LZMA": ([(MEMBER, bytes(1 << 20))], zipfile.ZIP_LZMA, lambda p: None, "its compression method is not deflate"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_zip_with_a_bad_member_is_refused_by_name(layout, zipped, tmp_path, case):
    instead, method, spoil, expected = BAD_MEMBERS[case]
    spoil(zipped(instead=instead, method=method))
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        load(layout)
    first = "000001.jpg" if case in ("compressed without a bound", "in LZMA") else "000003.jpg"  # there all members are bad
    assert re.search(expected, checked_message(error, names=[f"{PICTURES}.zip/{first} cannot be decoded"]))
    assert contents(tmp_path) == before


ZIPPED = """
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import prepare
from cpgan_ray.errors import InputError
before = peak()
try:
    settings = DataConfig(dataset="celeba", image_size=16, final_fraction=0.0)
    prepare(Config(data_dir=Path(sys.argv[1]), skip_corrupt=True, data=settings), progress=False)
except InputError as e:
    print(e)
print(peak() - before)
"""


def test_zip_with_large_and_false_members_uses_little_memory(layout, zipped):
    members = [(f"{PICTURES}/{name_of(row)}", bytes(40 << 20)) for row in range(20)]
    path = zipped(instead=[(name, bytes(200 << 20) if name.endswith("10.jpg") else content) for name, content in members])
    _rewrite(path, f"{PICTURES}/000010.jpg", at=SIZE, value=struct.pack("<I", 1000))
    command = [sys.executable, "-c", PEAK + ZIPPED, str(layout)]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    message, megabytes = ran.stdout.splitlines()
    assert "no picture of the train split can be decoded" in message
    assert int(megabytes) < 250, "the pictures of the training split alone have 640 MB"


@settings(FUZZED, max_examples=80)
@given(st.integers(0, 1 << 30), st.integers(1, 255), st.integers(0, 2))
def test_zip_with_a_changed_byte_gives_the_same_pictures_or_is_refused(pristine, tmp_path_factory, at, mask, cut):
    folder = tmp_path_factory.mktemp("zip")
    for name in (ATTR, IDENT, PART):
        shutil.copy(pristine / name, folder)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((pristine / PICTURES).iterdir()):
            archive.writestr(zipfile.ZipInfo(f"{PICTURES}/{path.name}"), path.read_bytes())
    content = bytearray(buffer.getvalue())
    at = at % len(content) if cut else len(content) - 1 - at % 1500  # the directory is at the end
    content[at] ^= mask
    (folder / f"{PICTURES}.zip").write_bytes(content[:-at] if cut == 2 and at % 5 == 0 else content)
    dataset, refused = refusal(lambda: load(folder), names=[f"{PICTURES}.zip"])
    if not refused:
        np.testing.assert_array_equal(all_pictures(dataset), all_pictures(load(pristine)))
    assert {path.name for path in folder.iterdir()} <= {ATTR, IDENT, PART, f"{PICTURES}.zip", ".cpgan"}
    shutil.rmtree(folder)


# -------------------------------------------------------------------------------------------------------- prepared stores


@pytest.fixture
def prepared(tmp_path: Path, make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> data.Dataset:
    """A store with several record batches of training pictures."""
    monkeypatch.setattr(store.writing, "SHARD_ROWS", 8)
    return make_store(tmp_path / "store", num_rows=40, image_shape=(4, 4, 3))[0]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_store_with_any_changed_byte_is_refused(prepared):
    for name in store.SPLITS:
        path = prepared.folder / f"{name}.arrow"
        for at in range(0, path.stat().st_size, 29):
            flip(path, at)
            with pytest.raises(InputError) as error:
                data.open_store(prepared.folder)
            checked_message(error, names=[f"{path.name} is damaged (checksum mismatch): delete this folder"])
            flip(path, at)
    assert len(data.open_store(prepared.folder).train) == 28


def test_store_with_a_changed_byte_and_the_old_mtime_is_refused(prepared):
    path = prepared.folder / "train.arrow"
    before = path.stat()
    flip(path, 1000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=r"train\.arrow is damaged"):
        data.open_store(prepared.folder)


def test_store_files_are_hashed_once_and_again_after_a_copy(prepared, tmp_path, monkeypatch):
    hashed: list[Path] = []
    monkeypatch.setattr(store.reading, "checksum", lambda path, original=store.checksum: [hashed.append(path), original(path)][1])
    data.open_store(prepared.folder)
    assert hashed == [], "hashed when they were written"
    copied = Path(shutil.copytree(prepared.folder, tmp_path / "copied"))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: data.open_store(copied), range(4)))
    assert [len(dataset.train) for dataset in opened] == [28] * 4
    assert sorted(path.name for path in hashed) == ["final.arrow", "test.arrow", "train.arrow", "val.arrow"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"null", b'[["train.arrow", "", 1, 2, 3, 4]]'])
def test_verified_json_with_any_content_is_ignored(prepared, content):
    (prepared.folder / store.VERIFIED).write_bytes(content)
    assert len(data.open_store(prepared.folder).train) == 28
    (prepared.folder / store.VERIFIED).write_bytes(content)
    flip(prepared.folder / "val.arrow", 500)
    with pytest.raises(InputError, match=r"val\.arrow is damaged"):
        data.open_store(prepared.folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_store_in_a_read_only_folder_is_opened(prepared, tmp_path):
    copied = Path(shutil.copytree(prepared.folder, tmp_path / "place" / "copied"))
    copied.chmod(0o500)
    copied.parent.chmod(0o500)
    try:
        assert len(data.open_store(copied).train) == 28
    finally:
        copied.parent.chmod(0o700)
        copied.chmod(0o700)


def reseal(folder: Path, split: str = "", **changes: Any) -> None:
    """Alter the manifest, for a split or for the store, and give it a valid checksum, as an attacker could."""
    values = json.loads((folder / "manifest.json").read_text())
    del values["checksum"]
    (values["splits"][split] if split else values).update(changes)
    (folder / "manifest.json").write_text(store.manifest_text(values))


def test_store_file_of_another_kind_is_refused_despite_its_checksum(prepared):
    for content in (b"", b"ARROW1\0\0", b"ARROW1" * 99):
        (prepared.folder / "val.arrow").write_bytes(content)
        reseal(prepared.folder, "val", bytes=len(content), sha256=store.checksum(prepared.folder / "val.arrow"))
        with pytest.raises(InputError) as error:
            data.open_store(prepared.folder)
        checked_message(error, names=["val.arrow cannot be read", "manifest.json does not fit val.arrow"])


VALUES = st.recursive(  # no subnormal numbers, because jobs of other tests make this process flush them to zero
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(subpath for key, item in inner for subpath in paths_in(item, (*path, key)))]


def replace_at(value: Any, path: Sequence[Any], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replace_at(copied[path[0]], path[1:], new)
    return copied


@pytest.fixture(scope="module")
def intact_store(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A store and its projection; each test restores them after its changes."""
    folder = tmp_path_factory.mktemp("kept") / "store"
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    plan = store.Plan(
        digest="d",
        source={},
        names=[str(i) for i in range(40)],
        label_names=("A", "B"),
        labels=np.arange(80, dtype=np.int8).reshape(40, 2) % 3 % 2,
        identity=np.arange(40, dtype=np.int64),
        image_shape=(4, 4, 3),
        rows=dict(zip(store.SPLITS, np.split(np.arange(40), [30, 35]), strict=True)),
        fetch=lambda rows: (images[rows], np.ones(len(rows), bool)),
    )
    store.build(folder, plan, progress=False)
    projection(store.open_store(folder), components=4, progress=False)
    return folder


def same_store(first: data.Dataset, second: data.Dataset) -> bool:
    splits = [(getattr(first, name), getattr(second, name)) for name in store.SPLITS]
    return (first.label_names, first.image_shape) == (second.label_names, second.image_shape) and all(
        np.array_equal(a.labels, b.labels)
        and np.array_equal(a.identity, b.identity)
        and np.array_equal(np.concatenate(a.views), np.concatenate(b.views))
        for a, b in splits
    )


@pytest.mark.parametrize("name", ["manifest.json", "projection-4/summary.json"])
@FUZZED
@given(data_strategy=st.data())
def test_altered_json_of_a_store_is_refused_or_gives_the_same_data(intact_store, name, data_strategy):
    path = intact_store / name
    original = path.read_bytes()
    expected = store.open_store(intact_store)
    basis = projection(expected, components=4, progress=False)
    if data_strategy.draw(st.booleans()):
        values = json.loads(original)
        path_in_values = data_strategy.draw(st.sampled_from(paths_in(values)))
        content = json.dumps(replace_at(values, path_in_values, data_strategy.draw(VALUES))).encode()
    else:
        at = data_strategy.draw(st.integers(0, len(original)))
        content = original[:at] + data_strategy.draw(st.binary(max_size=3)) + original[at + data_strategy.draw(st.integers(0, 3)) :]
    path.write_bytes(content)
    try:
        dataset, refused = refusal(lambda: store.open_store(intact_store), names=[str(intact_store)])
        if not refused:
            assert same_store(dataset, expected)
            repeated, refused = refusal(lambda: projection(dataset, components=4, progress=False), names=[str(intact_store)])
            assert refused or np.array_equal(repeated.components, basis.components)
    finally:
        path.write_bytes(original)


def test_deeply_nested_manifest_is_refused(prepared):
    (prepared.folder / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(InputError) as error:
        data.open_store(prepared.folder)
    checked_message(error, names=["manifest.json cannot be read"])


@pytest.mark.parametrize("name", ["mean", "components", "parity", "coordinates", "residual"])
def test_altered_projection_file_is_refused(prepared, name):
    projection(prepared, components=4, progress=False)
    path = prepared.folder / "projection-4" / f"{name}.npy"
    original = path.read_bytes()
    np.save(objects := io.BytesIO(), np.array([Payload(prepared.folder / "ran")]), allow_pickle=True)
    variants = [original[:-1], original[: len(original) // 2], b"", original + b"\0", objects.getvalue()]
    variants += [
        original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :] for at in range(0, len(original), len(original) // 20)
    ]
    for content in variants:
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            projection(prepared, components=4, progress=False)
        checked_message(error, names=[f"projection-4: {name}.npy is damaged (checksum mismatch): delete this folder"])
    path.unlink()
    with pytest.raises(InputError) as error:
        projection(prepared, components=4, progress=False)
    checked_message(error, names=[f"projection-4: {name}.npy cannot be read"])
    assert not (prepared.folder / "ran").exists()


def test_pickled_objects_in_a_projection_are_not_loaded(prepared):
    projection(prepared, components=4, progress=False)
    folder = prepared.folder / "projection-4"
    np.save(folder / "residual.npy", np.array([Payload(prepared.folder / "ran")]), allow_pickle=True)
    summary = json.loads((folder / "summary.json").read_text())
    summary["sha256"]["residual"] = store.checksum(folder / "residual.npy")
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError) as error:
        projection(prepared, components=4, progress=False)
    checked_message(error, names=["projection-4"])
    assert not (prepared.folder / "ran").exists()


def test_build_after_an_interruption_replaces_damaged_shards(prepared, tmp_path, make_store):
    """Its shards are used or written again; none of them crashes the process."""
    partial = tmp_path / "again.partial"
    shutil.copytree(prepared.folder, partial)
    (partial / "manifest.json").unlink()
    for content in (b"", b"ARROW1\0\0" * 50, (partial / "val.arrow").read_bytes()[:-30]):
        (partial / "val.arrow").write_bytes(content)
        (partial / "train-00000000.arrow").write_bytes(content)
    rebuilt, *_ = make_store(tmp_path / "again", num_rows=40, image_shape=(4, 4, 3))
    assert same_store(rebuilt, prepared)
