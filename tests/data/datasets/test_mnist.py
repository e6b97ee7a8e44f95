"""Tests of MNIST's idx files: all folders and forms, malformed files, and the real files."""

import contextlib
import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray.data.datasets import mnist
from cpgan_ray.errors import InputError

REAL = Path(os.environ.get("CPGAN_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "mnist" / "mnist.npz"


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def contents(num_train: int = 60, num_test: int = 20) -> dict[str, bytes]:
    """File name -> content."""
    rng = np.random.default_rng(0)
    arrays = [(rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10) for n in (num_train, num_test)]
    return {name: idx(values) for name, values in zip(mnist.FILES, (v for pair in arrays for v in pair), strict=True)}


def lay_out(folder: Path, files: dict[str, bytes], *, zipped: bool = False, subfolder: str = "") -> Path:
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / subfolder / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(content, 1, mtime=0) if zipped else content)
    return folder


@pytest.mark.parametrize("subfolder", ["", "MNIST/raw", "raw"])
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_files_in_any_subfolder_and_form_are_read(tmp_path, zipped, subfolder):
    files = contents()
    samples = mnist.read(lay_out(tmp_path, files, zipped=zipped, subfolder=subfolder))
    assert samples.values.shape == (80, 28, 28, 1) and samples.values.dtype == np.uint8
    assert samples.values.tobytes() == files[mnist.FILES[0]][16:] + files[mnist.FILES[2]][16:]
    assert samples.labels.tolist() == [i % 10 for i in range(60)] + [i % 10 for i in range(20)]
    assert samples.labels.dtype == np.int8 and samples.classes[7] == "7"
    assert {name: (rows[0], rows[-1]) for name, rows in samples.rows.items()} == {
        "train": (0, 53),
        "val": (54, 59),
        "test": (60, 79),
    }
    assert [path.name.removesuffix(".gz") for path in mnist.files(tmp_path)] == list(mnist.FILES)


@pytest.mark.parametrize("name", mnist.FILES)
def test_missing_file_is_named_with_its_possible_paths(tmp_path, name):
    lay_out(tmp_path, contents())
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing \(nor is there {name}.gz or MNIST/raw/{name}.*download"):
        mnist.files(tmp_path)


def test_missing_data_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        mnist.read(tmp_path / "nowhere")


def assert_refused(folder: Path, name: str) -> str:
    with pytest.raises(InputError) as error:
        mnist.read(folder)
    assert name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", mnist.FILES)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_truncated_or_too_long_file_is_refused(tmp_path, name, zipped):
    files = contents()
    path = lay_out(tmp_path, files, zipped=zipped) / (name + ".gz" * zipped)
    content = path.read_bytes()
    for size in {0, 1, 3, 7, 8, 12, 15, 16, 17, 20, len(content) // 2, len(content) - 9, len(content) - 1} & set(
        range(len(content))
    ):
        path.write_bytes(content[:size])
        assert_refused(tmp_path, name)
    longer = files[name] + b"\0"
    path.write_bytes(gzip.compress(longer) if zipped else longer)
    assert "more than" in assert_refused(tmp_path, name)


@pytest.mark.parametrize("name", mnist.FILES)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_header_with_any_changed_byte_is_refused(tmp_path, name, zipped):
    files = contents()
    lay_out(tmp_path, files, zipped=zipped)
    for at in range(16 if "images" in name else 8):
        for flip in (0x01, 0x80, 0xFF):
            spoilt = bytearray(files[name])
            spoilt[at] ^= flip
            lay_out(tmp_path, {name: bytes(spoilt)}, zipped=zipped)
            assert_refused(tmp_path, name)


def test_gzip_file_with_a_changed_byte_is_refused_or_unchanged(tmp_path):
    expected = mnist.read(lay_out(tmp_path, contents(), zipped=True))
    path = tmp_path / f"{mnist.FILES[1]}.gz"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with contextlib.suppress(InputError):
            np.testing.assert_array_equal(mnist.read(tmp_path).labels, expected.labels)


def test_bomb_is_unpacked_only_up_to_its_announced_size(tmp_path):
    files = contents()
    lay_out(tmp_path, files, zipped=True)
    (tmp_path / f"{mnist.FILES[0]}.gz").write_bytes(gzip.compress(files[mnist.FILES[0]] + bytes(50 << 20)))
    tracemalloc.start()
    assert "more than" in assert_refused(tmp_path, mnist.FILES[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_header_with_too_many_rows_is_refused(tmp_path):
    lay_out(tmp_path, contents() | {mnist.FILES[0]: struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)}, zipped=True)
    assert "4294967295 rows" in assert_refused(tmp_path, mnist.FILES[0])


def test_label_that_is_no_digit_is_named_with_its_row(tmp_path):
    labels = np.arange(60) % 10
    labels[17] = 10
    lay_out(tmp_path, contents() | {mnist.FILES[1]: idx(labels)})
    assert "label 10 of row 17" in assert_refused(tmp_path, mnist.FILES[1])


def test_different_counts_are_named(tmp_path):
    lay_out(tmp_path, contents() | {mnist.FILES[3]: idx(np.arange(19) % 10)})
    assert "19 labels" in assert_refused(tmp_path, mnist.FILES[3])


def test_swapped_files_are_refused(tmp_path):
    files = contents()
    lay_out(tmp_path, files | {mnist.FILES[0]: files[mnist.FILES[1]]})
    assert "it is another file" in assert_refused(tmp_path, mnist.FILES[0])


def test_digit_without_training_rows_is_named(tmp_path):
    lay_out(tmp_path, contents() | {mnist.FILES[1]: idx(np.arange(60) % 9)})
    assert "no training row has the digit '9'" in assert_refused(tmp_path, str(tmp_path))


@pytest.mark.parametrize(("num_train", "num_test", "split"), [(0, 20, "train"), (9, 20, "val"), (60, 0, "test")])
def test_empty_split_is_named(tmp_path, num_train, num_test, split):
    lay_out(tmp_path, contents(num_train, num_test))
    assert f"the {split} split is empty" in assert_refused(tmp_path, str(tmp_path))


def test_real_files_have_the_official_sizes_and_known_errors(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"no real digits at {REAL}; CPGAN_DATA names the folder that holds mnist/mnist.npz")
    real = np.load(REAL)
    arrays = [real[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    samples = mnist.read(lay_out(tmp_path, {name: idx(a) for name, a in zip(mnist.FILES, arrays, strict=True)}))
    assert {name: len(rows) for name, rows in samples.rows.items()} == {"train": 55000, "val": 5000, "test": 10000}
    assert np.bincount(samples.labels[samples.rows["test"]]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    test = samples.values[samples.rows["test"], ..., 0].astype(np.float32)
    mean = samples.values[samples.rows["train"], ..., 0].mean(axis=0)
    assert np.square(test).mean() == pytest.approx(7418, rel=2e-3)  # error of a black picture
    assert np.square(test - mean).mean() == pytest.approx(4387, rel=1e-3)


def test_file_with_a_too_high_packing_ratio_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1 << 20, 28, 28) + bytes(10_000)))
    with pytest.raises(InputError, match=r"announces 822083584 bytes in a file of \d+; pictures do not compress so well"):
        mnist.read_idx(path, shape=(28, 28))
