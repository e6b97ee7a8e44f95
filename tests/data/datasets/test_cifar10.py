"""Tests of CIFAR-10's batches: pickles of Python 2 and 3, records, archives, harmful pickles and damaged files."""

import contextlib
import gzip
import io
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.data.datasets import cifar10
from cpgan_ray.data.datasets.cifar10 import BINARY, FILES, PYTHON
from cpgan_ray.data.formats import pickles
from cpgan_ray.errors import InputError

REAL = Path(os.environ.get("CPGAN_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "cifar10" / "cifar10_test.parquet"
ROWS = 12
RNG = np.random.default_rng(0)
BATCHES = [(RNG.integers(0, 256, (ROWS, 3072), dtype=np.uint8), [(i + 3 * b) % 10 for i in range(ROWS)]) for b in range(6)]
"""Small batches: channel planes and labels."""


def python3(data: Any, labels: Any) -> bytes:
    """A batch as Python 3 and a current NumPy write it."""
    names = [f"{i}.png".encode() for i in range(ROWS)]
    return pickle.dumps({b"batch_label": b"a batch", b"labels": labels, b"data": data, b"filenames": names}, protocol=2)


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch like the official files, which Python 2 wrote: other opcodes, and the array's bytes unencoded."""
    shape = b"K" + bytes([len(data)]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
    kind = (
        b"cnumpy\ndtype\nq\x08"
        + short(b"u1")
        + b"K\0K\1\x87Rq\x09(K\3"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\1cnumpy\nndarray\nq\2K\0\x85" + short(b"b") + b"\x87R(K\1" + shape + kind
    array += b"\x89T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    numbers = b"]q\3(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\2}q\0(" + short(b"batch_label") + short(b"a") + short(b"labels") + numbers + short(b"data") + array + b"u."


def records(data: np.ndarray, labels: list[int]) -> bytes:
    return np.column_stack([np.array(labels, np.uint8), data]).tobytes()


WRITERS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "python 3": (PYTHON, python3),
    "python 2": (PYTHON, python2),
    "binary": (BINARY, records),
}


def lay_out(folder: Path, form: str = "python 2") -> Path:
    kind, write = WRITERS[form]
    (folder / kind).mkdir(parents=True)
    for name, (data, labels) in zip(FILES[kind], BATCHES, strict=True):
        (folder / kind / name).write_bytes(write(data, labels))
    return folder


def pack(folder: Path, archive: str) -> Path:
    """Pack the folder into its official archive, and remove it."""
    kind = cifar10.ARCHIVES[archive]
    with tarfile.open(folder / archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder / kind, kind)
    for path in (folder / kind).iterdir():
        path.unlink()
    (folder / kind).rmdir()
    return folder


def assert_refused(source: Path, *parts: str) -> str:
    with pytest.raises(InputError) as error:
        cifar10.read(source)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def is_same(samples: cifar10.Samples) -> bool:
    planes = np.concatenate([data for data, _ in BATCHES]).reshape(-1, 3, 32, 32)
    labels = [label for _, row in BATCHES for label in row]
    return np.array_equal(samples.values, np.moveaxis(planes, 1, 3)) and samples.labels.tolist() == labels


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("source_kind", ["parent", "itself", "archive"])
def test_every_official_form_gives_the_same_pictures(tmp_path, form, source_kind):
    lay_out(tmp_path, form)
    kind = WRITERS[form][0]
    if source_kind == "archive":
        archive = next(name for name, holds in cifar10.ARCHIVES.items() if holds == kind)
        pack(tmp_path, archive)
        assert cifar10.files(tmp_path) == [tmp_path / archive]
    samples = cifar10.read(tmp_path / kind if source_kind == "itself" else tmp_path)
    assert is_same(samples)
    assert samples.values.shape == (6 * ROWS, 32, 32, 3) and samples.values.flags.c_contiguous
    assert {name: (rows[0], rows[-1]) for name, rows in samples.rows.items()} == {
        "train": (0, 53),
        "val": (54, 59),
        "test": (60, 71),
    }


@pytest.mark.parametrize("form", ["python 2", "binary"])
def test_missing_batch_is_named(tmp_path, form):
    folder = lay_out(tmp_path, form) / WRITERS[form][0]
    for name in reversed(FILES[folder.name]):
        (folder / name).unlink()
        with pytest.raises(InputError, match=f"{folder / name} is missing: unpack"):
            cifar10.files(tmp_path)


def test_folder_without_any_form_names_the_download(tmp_path):
    assert_refused(tmp_path, PYTHON, BINARY, "cifar-10-python.tar.gz", "download")
    assert_refused(tmp_path / "nowhere", "nowhere does not exist")


# Harmful pickles. Any code that runs makes `MARKER`.

MARKER = "ran"


def _reduce(marker: Path) -> bytes:
    """A call of mkdir in a pickle of protocol 2."""
    return b"cposix\nmkdir\n" + b"X" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"\x85R"


def _inst(marker: Path) -> bytes:
    return b"(X" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"iposix\nmkdir\n"


def _obj(marker: Path) -> bytes:
    return b"(cposix\nmkdir\nX" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"o"


def _stack_global(marker: Path) -> bytes:
    return b"X\5\0\0\0posixX\5\0\0\0mkdir\x93X" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"\x85R"


def _newobj(marker: Path) -> bytes:
    return (
        b"csubprocess\nPopen\n]X\5\0\0\0mkdira" + b"X" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"a\x85\x81"
    )


HARM: dict[str, Callable[[Path], bytes]] = {
    "call": _reduce,
    "old call": _inst,
    "older call": _obj,
    "name from the stack": _stack_global,
    "new object": _newobj,
    "import": lambda marker: b"cthis\ns\n",
    "eval": lambda marker: b"cbuiltins\neval\nX\x0b\0\0\0{1: 2 ** 99}\x85R",
    "numpy's own loader": lambda marker: b"cnumpy\nload\nX\1\0\0\0x\x85R",
    "numpy's objects": lambda marker: b"cnumpy\ndtype\nU\2O8K\0K\1\x87R",
    "another codec": lambda marker: b"c_codecs\nencode\nX\1\0\0\0xX\3\0\0\0zip\x86R",
    "a dotted name": lambda marker: b"cnumpy\nndarray.tofile\n",
    "a state for a name": lambda marker: b"cnumpy\nndarray\n}X\1\0\0\0xK\1sb",
    "extension": lambda marker: b"\x82\1",
    "persistent": lambda marker: b"P1\n",
    "persistent, binary": lambda marker: b"K\1Q",
    "out-of-band buffer": lambda marker: b"\x97",
    "a memo of gigabytes": lambda marker: b"Nr\xff\xff\xff\x7f0",
    "a number without end": lambda marker: b"\x8b\xff\xff\xff\x7f",
    "a string without end": lambda marker: b"T\xff\xff\xff\x7f",
}


@pytest.fixture
def tiny_pickles() -> list[bytes]:
    return [write(BATCHES[0][0], BATCHES[0][1]) for write in (python2, python3)]


@pytest.mark.parametrize("harm", HARM)
def test_harmful_opcodes_at_any_position_do_not_run(tmp_path, tiny_pickles, harm):
    payload = HARM[harm](tmp_path / MARKER)
    for blob in tiny_pickles:
        for _, _, position in pickletools.genops(blob):
            for spoilt in (blob[:position] + payload + blob[position:], blob[:position] + payload + b"."):
                with pytest.raises(InputError):
                    cifar10.read_batch(spoilt, "data_batch_1")
    assert not (tmp_path / MARKER).exists()
    assert "this" not in sys.modules


def test_payload_would_run_in_a_plain_unpickler(tmp_path):
    for name in ("call", "old call", "older call"):
        pickle.loads(b"\x80\2" + HARM[name](tmp_path / name) + b".")
        assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("form", ["python 2", "archive"])
def test_harmful_batch_is_refused_and_named(tmp_path, form):
    folder = lay_out(tmp_path) / PYTHON
    (folder / "data_batch_3").write_bytes(b"\x80\2" + _reduce(tmp_path / MARKER) + b".")
    if form == "archive":
        pack(tmp_path, "cifar-10-python.tar.gz")
    assert_refused(tmp_path, "data_batch_3", "asks for posix.mkdir")
    assert not (tmp_path / MARKER).exists()


def test_harmful_file_of_class_names_is_not_read(tmp_path):
    folder = lay_out(tmp_path) / PYTHON
    (folder / "batches.meta").write_bytes(b"\x80\2" + _reduce(tmp_path / MARKER) + b".")
    assert is_same(cifar10.read(tmp_path))
    assert not (tmp_path / MARKER).exists()


def test_deeply_nested_pickle_key_is_refused(monkeypatch):
    with pytest.raises(InputError, match="it has a tuple instead of a bytes"):
        cifar10.read_batch(b"\x80\2})" + b"\x85" * 200_000 + b"K\1s.", "data_batch_1")
    monkeypatch.setattr(pickles, "MAX_STEPS", 100_000)
    with pytest.raises(InputError, match="more than 100000 steps"):
        cifar10.read_batch(b"\x80\2" + b")" * 110_000, "data_batch_1")


# Damage


def test_truncated_pickle_is_refused(tiny_pickles):
    for blob in tiny_pickles:
        for size in [*range(400), *range(400, len(blob) - 400, 997), *range(len(blob) - 400, len(blob))]:
            with pytest.raises(InputError):
                cifar10.read_batch(blob[:size], "data_batch_1")
        with pytest.raises(InputError):
            cifar10.read_batch(blob + b"\0", "data_batch_1")


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_pickle_with_a_changed_byte_gives_a_batch_or_is_refused(tiny_pickles, flip):
    for blob in tiny_pickles:
        for at in [*range(600), *range(len(blob) - 300, len(blob))]:
            spoilt = blob[:at] + bytes([blob[at] ^ flip]) + blob[at + 1 :]
            try:
                data, labels = cifar10.read_batch(spoilt, "data_batch_1")
            except InputError:
                continue
            assert data.shape == (len(labels), 3072) and labels.max() < 10


ARRAY, LABELS = BATCHES[0]
WRONG: dict[str, tuple[Any, str]] = {
    "floats": (python3(ARRAY.astype(np.float32), LABELS), "uint8"),
    "objects": (python3(ARRAY.astype(object), LABELS), "asks for|uint8"),
    "CIFAR of other size": (python3(ARRAY[:, :768], LABELS), r"not a uint8 array \(n, 3072\)"),
    "fewer labels": (python3(ARRAY, LABELS[:-1]), "12 pictures and 11 labels"),
    "label 10": (python3(ARRAY, [*LABELS[:-1], 10]), "label 10 of row 11"),
    "label -1": (python3(ARRAY, [*LABELS[:-1], -1]), "labels"),
    "label true": (python3(ARRAY, [*LABELS[:-1], True]), "labels"),
    "labels an array": (python3(ARRAY, np.array(LABELS, np.uint8)), "labels are not a list"),
    "a list": (pickle.dumps([1, 2], protocol=2), "a list, not a dictionary"),
    "CIFAR-100": (pickle.dumps({b"data": ARRAY, b"fine_labels": LABELS}, protocol=2), "labels are not a list"),
    "text keys": (pickle.dumps({"data": ARRAY, "labels": LABELS}, protocol=2), "it has a str instead of a bytes"),
    "newer protocol": (pickle.dumps({b"data": ARRAY, b"labels": LABELS}, protocol=5), "PROTO"),
    "no pickle": (b"hello", "make no sense"),
    "empty": (b"", "exhausted|no end"),
}


@pytest.mark.parametrize("case", WRONG)
def test_pickle_that_is_no_batch_is_refused_with_the_reason(case):
    blob, expected = WRONG[case]
    with pytest.raises(InputError, match=f"data_batch_1 is not a batch of CIFAR-10 .*({expected})"):
        cifar10.read_batch(blob, "data_batch_1")


def test_pickled_array_in_column_order_is_read():
    data, _ = cifar10.read_batch(python3(np.asfortranarray(ARRAY), LABELS), "data_batch_1")
    np.testing.assert_array_equal(data, ARRAY)


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * ROWS - 1, 3073 * ROWS + 1])
def test_truncated_records_are_refused(tmp_path, size):
    folder = lay_out(tmp_path, "binary") / BINARY
    (folder / "test_batch.bin").write_bytes((records(*BATCHES[5]) + b"\0")[:size])
    assert_refused(tmp_path, "test_batch.bin", f"{size} bytes are not a multiple of the record size 3073")


@pytest.mark.parametrize(("form", "write"), [("python 2", python2), ("binary", records)])
def test_training_batches_of_different_length_are_refused(tmp_path, form, write):
    folder = lay_out(tmp_path, form) / WRITERS[form][0]
    (folder / FILES[folder.name][1]).write_bytes(write(BATCHES[1][0][:-1], BATCHES[1][1][:-1]))
    assert_refused(tmp_path, "different numbers of rows, [12, 11, 12, 12, 12]")


def test_record_with_a_label_out_of_range_is_named(tmp_path):
    folder = lay_out(tmp_path, "binary") / BINARY
    (folder / "data_batch_2.bin").write_bytes(b"\x0b" + records(*BATCHES[1])[1:])
    assert_refused(tmp_path, "data_batch_2.bin", "label 11 of row 0")


def test_class_without_training_rows_is_named(tmp_path):
    folder = lay_out(tmp_path, "binary") / BINARY
    for name, (data, labels) in zip(FILES[BINARY], BATCHES, strict=True):
        (folder / name).write_bytes(records(data, [min(label, 8) for label in labels]))
    assert_refused(tmp_path, "no training row has the object 'truck'")


def test_too_large_batch_is_not_read(tmp_path, monkeypatch):
    lay_out(tmp_path, "binary")
    monkeypatch.setattr(cifar10, "MAX_FILE_BYTES", 3000)
    assert_refused(tmp_path, "data_batch_1.bin is larger than 3000 bytes")


# Archives


def test_truncated_or_changed_archive_gives_pictures_or_is_refused(tmp_path):
    lay_out(tmp_path, "binary")
    archive = pack(tmp_path, "cifar-10-binary.tar.gz") / "cifar-10-binary.tar.gz"
    content = archive.read_bytes()
    for size in (0, 1, 9, 100, len(content) // 2, len(content) - 1):
        archive.write_bytes(content[:size])
        assert_refused(tmp_path, str(archive))
    raw = bytearray(gzip.decompress(content))
    for at in range(0, 1536, 7):  # the headers of the folder and of the first file
        spoilt = bytearray(raw)
        spoilt[at] ^= 0xFF
        archive.write_bytes(gzip.compress(spoilt, 0))
        with contextlib.suppress(InputError):
            assert is_same(cifar10.read(tmp_path))


def test_archive_bomb_is_refused_with_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_ARCHIVE_BYTES", 1 << 20)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    tracemalloc.start()
    assert_refused(tmp_path, "unpacks to more than 1048576 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


@pytest.mark.parametrize("spoil", ["link", "missing"])
def test_archive_without_a_batch_names_it(tmp_path, spoil):
    lay_out(tmp_path, "binary")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name in FILES[BINARY][:-1]:
            tar.add(tmp_path / BINARY / name, f"{BINARY}/{name}")
        if spoil == "link":
            member = tarfile.TarInfo(f"{BINARY}/test_batch.bin")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(member)
    for path in (tmp_path / BINARY).iterdir():
        path.unlink()
    (tmp_path / BINARY).rmdir()
    assert_refused(tmp_path, "holds no cifar-10-batches-bin/test_batch.bin")


def test_real_pictures_are_unchanged(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"no real pictures at {REAL}; CPGAN_DATA names the folder that holds cifar10/cifar10_test.parquet")
    import pyarrow.parquet

    table = next(pyarrow.parquet.ParquetFile(REAL).iter_batches(600))
    pictures = []
    for blob in table["image"].to_pylist():
        with Image.open(io.BytesIO(blob)) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    planes, labels = np.stack(pictures).transpose(0, 3, 1, 2).reshape(600, 3072), table["label"].to_pylist()
    (tmp_path / BINARY).mkdir()
    for i, name in enumerate(FILES[BINARY]):
        (tmp_path / BINARY / name).write_bytes(records(planes[100 * i : 100 * i + 100], labels[100 * i : 100 * i + 100]))
    samples = cifar10.read(tmp_path)
    np.testing.assert_array_equal(samples.values, np.stack(pictures))
    assert samples.labels.tolist() == labels
