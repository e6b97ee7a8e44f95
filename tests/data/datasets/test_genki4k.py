"""Tests of GENKI-4K: the authors' crops and the original download, fixed splits, harmful pictures."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.data.datasets import genki4k
from cpgan_ray.data.decoding import Decoded
from cpgan_ray.errors import InputError

REAL = Path(os.environ.get("CPGAN_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "genki4k" / "genki4k_64.parquet"
COUNTS = {"train/0": 12, "train/1": 21, "test/0": 5, "test/1": 6}


def blob(row: int, size: tuple[int, int] = (16, 16)) -> bytes:
    rng = np.random.default_rng(row)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def lay_out_crops(folder: Path) -> Path:
    row = 0
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            row += 1
            (folder / name / f"file{row:04d}.jpg").write_bytes(blob(row))
    return folder


def lay_out_original(folder: Path, *, num: int = 40) -> Path:
    """Make the original layout: smiling faces first, as in the download; two thirds are smiling."""
    (folder / "files").mkdir(parents=True)
    for i in range(num):
        (folder / "files" / f"file{i + 1:04d}.jpg").write_bytes(blob(i, (20 + i % 3, 16)))
    smiles = [int(3 * i < 2 * num) for i in range(num)]
    (folder / "labels.txt").write_text("".join(f"{smile} -0.013 0.135 -0.0279\n" for smile in smiles))
    return folder


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        genki4k.read(folder, image_size=8)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_crops_are_split_with_a_tenth_of_each_class_for_val(tmp_path):
    samples = genki4k.read(lay_out_crops(tmp_path), image_size=16)
    assert samples.values.shape == (44, 16, 16, 3) and samples.values.dtype == np.uint8
    for row, path in enumerate(genki4k.files(tmp_path)):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(samples.values[row], np.asarray(picture))
    assert samples.labels.tolist() == [0] * 12 + [1] * 21 + [0] * 5 + [1] * 6
    assert samples.rows["test"].tolist() == list(range(33, 44))
    assert np.bincount(samples.labels[samples.rows["val"]]).tolist() == [1, 2]
    assert sorted(np.concatenate(list(samples.rows.values())).tolist()) == list(range(44))


def test_validation_rows_depend_only_on_the_names(tmp_path):
    expected = genki4k.read(lay_out_crops(tmp_path), image_size=8).rows
    assert expected["val"].tolist() == [0, 13, 21]
    for path in genki4k.files(tmp_path):
        path.write_bytes(blob(5))
    assert genki4k.read(tmp_path, image_size=8).rows["val"].tolist() == [0, 13, 21]


def test_pictures_get_the_given_size(tmp_path):
    lay_out_crops(tmp_path)
    (tmp_path / "train" / "0" / "file0001.jpg").write_bytes(blob(0, (40, 30)))
    assert genki4k.read(tmp_path, image_size=8).values.shape == (44, 8, 8, 3)
    assert genki4k.read(tmp_path).values.shape == (44, 64, 64, 3)


def test_other_files_are_ignored_and_upper_case_names_are_read(tmp_path):
    lay_out_crops(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "._file0001.jpg", "0.zip"):
        (tmp_path / "train" / "0" / name).write_bytes(b"hello")
    (tmp_path / "train" / "0" / "file0001.jpg").rename(tmp_path / "train" / "0" / "FILE0001.JPG")
    assert len(genki4k.read(tmp_path, image_size=8).labels) == 44


@pytest.mark.parametrize("subfolder", ["", "genki4k"])
def test_original_download_is_split_like_the_crops(tmp_path, subfolder):
    lay_out_original(tmp_path / subfolder)
    samples = genki4k.read(tmp_path, image_size=8)
    paths = genki4k.files(tmp_path)
    assert paths[0] == tmp_path / subfolder / "labels.txt" and len(paths) == 41
    assert samples.labels.tolist() == [1] * 27 + [0] * 13
    assert samples.rows["test"].tolist() == [*range(18, 27), *range(36, 40)]  # the last third of each class, 600 in the real data
    assert np.bincount(samples.labels[samples.rows["val"]]).tolist() == [1, 2]


def test_original_split_of_4000_equals_the_split_of_the_crops(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    for i in range(4000):
        (tmp_path / "files" / f"file{i + 1:04d}.jpg").touch()
    (tmp_path / "labels.txt").write_text("1 0 0 0\n" * 2162 + "0 0 0 0\n" * 1838)
    monkeypatch.setattr(genki4k, "_decode", lambda path, image_size, image_width: Decoded(np.zeros((1, 1, 3), np.uint8)))
    rows = genki4k.read(tmp_path).rows
    assert rows["test"].tolist() == [*range(1562, 2162), *range(3400, 4000)]
    assert {name: len(part) for name, part in rows.items()} == {"train": 2520, "val": 280, "test": 1200}


def test_folder_without_a_layout_names_the_expected_files(tmp_path):
    assert_refused(tmp_path, "train/0/, train/1/", "labels.txt", "genki4k.tar")
    assert_refused(tmp_path / "nowhere", "nowhere holds neither")


@pytest.mark.parametrize("name", COUNTS)
def test_class_without_pictures_is_named(tmp_path, name):
    for path in (lay_out_crops(tmp_path) / name).iterdir():
        path.unlink()
    (tmp_path / name / "0.zip").touch()
    assert_refused(tmp_path, f"{name} has no pictures", "unpack them from their zip file")
    (tmp_path / name / "0.zip").unlink()
    (tmp_path / name).rmdir()
    assert_refused(tmp_path, name)


def test_too_few_pictures_for_validation_are_refused(tmp_path):
    for path in sorted((lay_out_crops(tmp_path) / "train").rglob("*.jpg")):
        if path.name not in ("file0001.jpg", "file0013.jpg"):
            path.unlink()
    assert_refused(tmp_path, "val split is empty")


def test_pictures_without_a_line_and_lines_without_a_picture_are_named(tmp_path):
    lay_out_original(tmp_path)
    labels = (tmp_path / "labels.txt").read_text()
    (tmp_path / "files" / "file0007.jpg").unlink()
    assert_refused(tmp_path, "file0007.jpg is missing, but labels.txt has a line for it")
    (tmp_path / "files" / "file0007.jpg").write_bytes(blob(7))
    (tmp_path / "labels.txt").write_text(labels[: labels.rstrip().rindex("\n")])
    assert_refused(tmp_path, "file0040.jpg has no line in labels.txt, which has 39")


@pytest.mark.parametrize("line", ["", "2 0 0 0", "-1 0 0 0", "yes", "0.5", "1,0"])
def test_line_that_does_not_begin_with_0_or_1_is_named(tmp_path, line):
    lines = (lay_out_original(tmp_path) / "labels.txt").read_text().split("\n")
    lines[4] = line
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    assert_refused(tmp_path, "labels.txt, line 5: expected 0 or 1", repr(line))


def test_original_with_only_smiling_faces_is_refused(tmp_path):
    labels = lay_out_original(tmp_path) / "labels.txt"
    labels.write_text(labels.read_text().replace("0 -0.013", "1 -0.013"))
    assert_refused(tmp_path, "no training row has the Smiling 'not smiling'")


def _claim(content: bytes, side: int) -> bytes:
    """The picture with a header that claims `side` x `side` pixels."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + side.to_bytes(2, "big") * 2 + content[at + 4 :]


BAD = {
    "empty": b"",
    "cut": blob(3)[:-60],
    "no picture": b"hello" * 99,
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a bomb": _claim(blob(3), 60_000),
    "a smaller bomb": _claim(blob(3), 10_000),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("write", [lay_out_crops, lay_out_original])
def test_picture_that_cannot_be_decoded_is_named(tmp_path, case, write):
    write(tmp_path)
    path = next(path for path in genki4k.files(tmp_path) if path.name == "file0003.jpg")
    path.write_bytes(BAD[case])
    assert_refused(tmp_path, "file0003.jpg cannot be decoded")


def test_real_faces_have_the_known_error_of_the_mean(tmp_path):
    if not REAL.is_file():
        pytest.skip(f"no real faces at {REAL}; CPGAN_DATA names the folder that holds genki4k/genki4k_64.parquet")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(REAL)
    for content, name, split, smile in zip(*(table[c].to_pylist() for c in ("image", "filename", "split", "smile")), strict=True):
        path = tmp_path / split / str(smile) / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    samples = genki4k.read(tmp_path)
    counts = {name: np.bincount(samples.labels[rows]).tolist() for name, rows in samples.rows.items()}
    assert counts == {"train": [1114, 1406], "val": [124, 156], "test": [600, 600]}
    train, test = np.concatenate([samples.rows["train"], samples.rows["val"]]), samples.rows["test"]
    mean = samples.values[train].mean(axis=0)
    assert np.square(samples.values[test] - mean).mean() == pytest.approx(3083.2, abs=0.1)


def test_pictures_of_another_shape_are_cut_to_rectangles(tmp_path):
    samples = genki4k.read(lay_out_crops(tmp_path), image_size=8, image_width=16)
    assert samples.values.shape == (44, 8, 16, 3)
    with Image.open(genki4k.files(tmp_path)[0]) as picture:
        expected = np.asarray(picture.resize((16, 8), Image.Resampling.BICUBIC, box=(0, 4, 16, 12)))
    np.testing.assert_array_equal(samples.values[0], expected)
