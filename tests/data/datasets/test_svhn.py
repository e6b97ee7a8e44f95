"""Tests of SVHN's MAT files: compressed and plain, splits by blocks, and damage that makes other readers crash."""

import contextlib
import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cpgan_ray import data
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data.datasets import svhn
from cpgan_ray.data.formats import mat
from cpgan_ray.errors import InputError

REAL = (
    Path(os.environ.get("CPGAN_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "svhn" / "svhn_test_first10k.parquet"
)
RNG = np.random.default_rng(0)


def digits(num: int) -> tuple[np.ndarray, np.ndarray]:
    """X (32, 32, 3, num) and y (num, 1), with 10 for zero."""
    return RNG.integers(0, 256, (32, 32, 3, num), dtype=np.uint8), (np.arange(num, dtype=np.uint8)[:, None] % 10) + 1


def save(path: Path, *, packed: bool = True, **variables: Any) -> Path:
    scipy.io.savemat(path, variables, do_compression=packed)
    return path


FILES = {svhn.TRAIN: digits(123), svhn.TEST: digits(25), svhn.EXTRA: digits(31)}


def lay_out(folder: Path, *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in FILES.items():
        save(folder / name, packed=packed, X=x, y=y)
    return folder


@pytest.fixture
def layout(tmp_path) -> Path:
    return lay_out(tmp_path / "svhn")


def assert_refused(folder: Path, *parts: str) -> str:
    with pytest.raises(InputError) as error:
        svhn.read(folder)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("extra", [False, True], ids=["two files", "with extra"])
def test_pictures_and_digits_match_the_reference_reader(tmp_path, packed, extra):
    samples = svhn.read(lay_out(tmp_path, packed=packed), extra=extra)
    paths = svhn.files(tmp_path, extra=extra)
    assert [path.name for path in paths] == [svhn.TRAIN, svhn.TEST, svhn.EXTRA][: 2 + extra]
    loaded = [scipy.io.loadmat(path, variable_names=["X", "y"]) for path in paths]
    expected = np.concatenate([np.moveaxis(m["X"], 3, 0) for m in loaded])
    assert (samples.values.shape, samples.values.dtype) == (expected.shape, expected.dtype)
    for rows in (np.arange(len(expected)), np.array([147, 3, 122, 123, 3])):
        np.testing.assert_array_equal(samples.values[rows], expected[rows])
    assert samples.labels.tolist() == [int(label) % 10 for m in loaded for label in m["y"][:, 0]]


def test_validation_is_the_last_block_after_a_gap(layout):
    rows = svhn.read(layout).rows
    assert {name: (part[0], part[-1], len(part)) for name, part in rows.items()} == {
        "train": (0, 99, 100),
        "val": (110, 122, 13),
        "test": (123, 147, 25),
    }
    more = svhn.read(layout, extra=True).rows
    assert more["train"].tolist() == [*range(100), *range(148, 179)]
    assert more["val"].tolist() == rows["val"].tolist() and more["test"].tolist() == rows["test"].tolist()


def test_neighbours_share_an_identity_within_a_file(layout):
    identity = svhn.read(layout, extra=True).identity
    assert np.bincount(identity).tolist() == [10] * 12 + [3] + [10] * 2 + [5] + [10] * 3 + [1]
    assert (np.diff(identity) >= 0).all()


@pytest.mark.parametrize("name", [svhn.TRAIN, svhn.TEST, svhn.EXTRA])
def test_missing_file_is_named_with_its_download(layout, name):
    (layout / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing: download http"):
        svhn.files(layout, extra=True)
    if name == svhn.EXTRA:
        assert len(svhn.read(layout).labels) == 148


def load(folder: Path, **changes: Any) -> data.Dataset:
    return data.load(Config(data_dir=folder, data=DataConfig(dataset="svhn", final_fraction=0.0, **changes)), progress=False)


def test_extra_adds_training_rows_and_makes_another_store(layout):
    plain, more = load(layout), load(layout, extra=True)
    assert (len(plain.train), len(more.train)) == (100, 131)
    assert more.digest != plain.digest
    extra = more.train.take(np.arange(100, 131))
    np.testing.assert_array_equal(extra, np.moveaxis(FILES[svhn.EXTRA][0], 3, 0))
    assert more.train.labels[100:, 0].tolist() == [int(y) % 10 for y in FILES[svhn.EXTRA][1][:, 0]]
    assert [len(part) for part in (more.val, more.test)] == [len(plain.val), len(plain.test)] == [13, 25]
    with pytest.raises(InputError, match="data.digest is .*, a store made with extra False, the run has True: give the same"):
        load(layout, extra=True, digest=plain.digest)
    with pytest.raises(InputError, match="data.digest is .*, a store made with extra True, the run has False: give the same"):
        load(layout, digest=more.digest)
    save(layout / svhn.EXTRA, X=X, y=Y)
    assert load(layout).digest == plain.digest, "a file that is not read does not matter"
    assert load(layout, extra=True).digest != more.digest


def test_extra_without_its_file_raises_and_leaves_no_store(layout):
    (layout / svhn.EXTRA).unlink()
    with pytest.raises(InputError, match=rf"^{layout}/{svhn.EXTRA} is missing: download http\S+/{svhn.EXTRA}$"):
        load(layout, extra=True)
    assert sorted(path.name for path in layout.iterdir()) == [svhn.TEST, svhn.TRAIN]
    assert len(load(layout).train) == 100


@pytest.mark.parametrize("name", ["faces", "celeba", "mnist", "cifar10"])
def test_extra_with_another_data_set_raises(name):
    with pytest.raises(InputError, match=f"data.extra is True, but data.dataset is '{name}' and only svhn has it"):
        Config(data=DataConfig(dataset=name, extra=True))


def test_pictures_are_in_memory_only_once(tmp_path):
    """The official files with `extra` have 2 GB."""
    lay_out(tmp_path)
    x, y = digits(3000)
    save(tmp_path / svhn.EXTRA, X=x, y=y)
    tracemalloc.start()
    samples = svhn.read(tmp_path, extra=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples.values.shape == (3148, 32, 32, 3)
    assert peak < 1.4 * 3148 * 3072


X, Y = digits(30)
ZERO = Y.copy()
ZERO[7] = 0
ELEVEN = Y.copy()
ELEVEN[9] = 11
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no X": ({"y": Y}, "no variable X"),
    "no y": ({"X": X}, "no variable y"),
    "grey": ({"X": X[:, :, 0], "y": Y}, "X has shape (32, 32, 30)"),
    "pictures first": ({"X": np.moveaxis(X, 3, 0), "y": Y}, "X has shape (30, 32, 32, 3)"),
    "floats": ({"X": X / 255, "y": Y}, "X is not an array of uint8"),
    "complex": ({"X": X * 1j, "y": Y}, "X is not an array of uint8"),
    "signed": ({"X": X.astype(np.int8), "y": Y}, "X is not an array of uint8"),
    "text": ({"X": "hello", "y": Y}, "X is not an array of uint8"),
    "structure": ({"X": {"a": X}, "y": Y}, "X is not an array of uint8"),
    "cells": ({"X": np.array([X, "a"], dtype=object), "y": Y}, "X is not an array of uint8"),
    "fewer labels": ({"X": X, "y": Y[:-1]}, "y has shape (29, 1), but there are 30 pictures"),
    "labels in a row": ({"X": X, "y": Y.T}, "y has shape (1, 30)"),
    "label 0": ({"X": X, "y": ZERO}, "label 0 of row 7 is not between 1 and 10"),
    "label 11": ({"X": X, "y": ELEVEN}, "label 11 of row 9 is not between 1 and 10"),
    "no rows": ({"X": X[..., :0], "y": Y[:0]}, "X has shape (32, 32, 3, 0)|split is empty"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_wrong_variables_are_described(layout, case, packed):
    variables, expected = WRONG[case]
    save(layout / svhn.TRAIN, packed=packed, **variables)
    message = assert_refused(layout)
    assert any(part in message for part in expected.split("|"))


def test_missing_digit_and_too_few_rows_are_named(layout):
    save(layout / svhn.TRAIN, X=FILES[svhn.TRAIN][0], y=np.minimum(FILES[svhn.TRAIN][1], 9))
    assert_refused(layout, "no training row has the digit '0'")
    save(layout / svhn.TRAIN, X=X[..., :15], y=Y[:15])
    assert_refused(layout, "split is empty")


def test_other_variables_are_ignored(layout):
    x, y = FILES[svhn.TRAIN]
    save(layout / svhn.TRAIN, note="hello", X=x, more={"a": [1.0, 2.0], "b": np.eye(3) * 1j}, y=y, cells=np.array([x, "a"], object))
    assert len(svhn.read(layout).labels) == 148


# Damage


def test_data_type_that_crashes_the_reference_reader_is_refused(layout):
    path = save(layout / svhn.TRAIN, packed=False, X=X, y=Y)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<II", mat.UINT8, X.size))] = 8
    path.write_bytes(content)
    assert_refused(layout, svhn.TRAIN, "type 8 instead of 2")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_truncated_file_is_refused(layout, packed):
    path = save(layout / svhn.TRAIN, packed=packed, X=X, y=Y)
    content = path.read_bytes()
    for size in [*range(0, 240, 3), *range(240, len(content) - 240, 4999), *range(len(content) - 240, len(content), 3)]:
        path.write_bytes(content[:size])
        assert_refused(layout, svhn.TRAIN)


@pytest.mark.parametrize("flip", [0x01, 0x08, 0x80, 0xFF])
def test_header_with_a_changed_byte_is_unchanged_or_refused(layout, flip):
    path = save(layout / svhn.TRAIN, packed=False, X=X, y=Y)
    content = path.read_bytes()
    second = 136 + struct.unpack_from("<I", content, 132)[0]  # start of y
    for at in [*range(116, 192), *range(second, second + 56)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        with contextlib.suppress(InputError):
            samples = svhn.read(layout)
            np.testing.assert_array_equal(samples.values[np.arange(30)], np.moveaxis(X, 3, 0))
            assert samples.labels[:30].tolist() == (Y[:, 0] % 10).tolist()


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_packed_file_with_a_changed_byte_is_refused(layout, flip):
    path = save(layout / svhn.TRAIN, X=X, y=Y)
    content = path.read_bytes()
    for at in [*range(124, 200), *range(200, len(content) - 300, 3001), *range(len(content) - 300, len(content))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        with contextlib.suppress(InputError):
            digits_read = mat.read_mat(path, ("X", "y"))
            np.testing.assert_array_equal(digits_read["X"], X)
            np.testing.assert_array_equal(digits_read["y"], Y)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", "begin"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "begin"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + bytes(600), "begin"),
        (bytes(600), "begin"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + bytes(600), "cut|type 0"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM", "no variable X"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 14, 2**32 - 1), "4294967295 bytes ends after 0"),
    ],
    ids=["empty", "version 7.3", "big-endian", "zeros", "zeros after the header", "header alone", "endless element"],
)
def test_file_of_another_kind_is_refused(layout, head, expected):
    (layout / svhn.TRAIN).write_bytes(head)
    message = assert_refused(layout, svhn.TRAIN)
    assert any(part in message for part in expected.split("|"))


def test_bomb_is_refused_with_little_memory(layout):
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    packed = zlib.compress(bytes(100 << 20))
    (layout / svhn.TRAIN).write_bytes(head + struct.pack("<II", mat.COMPRESSED, len(packed)) + packed)
    tracemalloc.start()
    assert_refused(layout, svhn.TRAIN, "unlike photographs")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_real_digits_are_unchanged(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"no real digits at {REAL}; CPGAN_DATA names the folder that holds svhn/svhn_test_first10k.parquet")
    import pyarrow.parquet

    table = next(pyarrow.parquet.ParquetFile(REAL).iter_batches(500))
    pictures = []
    for blob in table["image"].to_pylist():
        with Image.open(io.BytesIO(blob)) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    labels = table["label"].to_numpy()
    x, y = np.stack(pictures, axis=3), np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    save(tmp_path / svhn.TRAIN, X=x[..., :400], y=y[:400])
    save(tmp_path / svhn.TEST, X=x[..., 400:], y=y[400:])
    samples = svhn.read(tmp_path)
    np.testing.assert_array_equal(samples.values[np.arange(500)], np.stack(pictures))
    assert samples.labels.tolist() == labels.tolist()
    assert samples.labels[:10].tolist() == [5, 2, 1, 0, 6, 1, 9, 1, 1, 8]
