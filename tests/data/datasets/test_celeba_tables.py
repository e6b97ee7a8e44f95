"""Tests of the CelebA layout beyond the official text: Kaggle's CSV, names in other spellings, contradicting values."""

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpgan_ray import data
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import store
from cpgan_ray.data.datasets import celeba
from cpgan_ray.data.datasets.celeba_tables import ATTRIBUTES, read_annotations
from cpgan_ray.data.store import MISSING
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report.threat_model import limits

LABELS = ("Smiling", "Male")
NUM = 20
PARTS = [0] * 12 + [1] * 4 + [2] * 4
ATTR, IDENT, PART = "list_attr_celeba", "identity_CelebA", "list_eval_partition"


def pixels(row: int) -> Image.Image:
    image = np.random.default_rng(row).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)


def values() -> np.ndarray:
    return np.random.default_rng(5).choice([-1, 1], (NUM, 2))


def lay_out(folder: Path, *, kind: str = "csv", names: list[str] | None = None, identities: bool = False) -> Path:
    """Make twenty pictures in the official layout or in Kaggle's layout; `names` are the names in the tables."""
    names = names or [f"{row + 1:06d}.jpg" for row in range(NUM)]
    pictures_folder = folder / "img_align_celeba" / ("img_align_celeba" if kind == "csv" else "")
    pictures_folder.mkdir(parents=True)
    for row, name in enumerate(names):
        pixels(row).save(pictures_folder / name, "PNG")
    if kind == "csv":
        rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(names, values(), strict=True)]
        (folder / f"{ATTR}.csv").write_text("\r\n".join(["image_id," + ",".join(LABELS), *rows]) + "\r\n")
        (folder / f"{PART}.csv").write_text(
            "image_id,partition\n" + "".join(f"{n},{p}\n" for n, p in zip(names, PARTS, strict=True))
        )
        (folder / "list_bbox_celeba.csv").write_text("image_id,x_1,y_1,width,height\n")
        if identities:
            (folder / f"{IDENT}.csv").write_text("image_id,identity\n" + "".join(f"{n},{i // 2}\n" for i, n in enumerate(names)))
    else:
        rows = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, values(), strict=True)]
        (folder / f"{ATTR}.txt").write_text("\n".join([str(NUM), " ".join(LABELS), *rows]) + "\n")
        (folder / f"{PART}.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, PARTS, strict=True)))
        (folder / f"{IDENT}.txt").write_text("".join(f"{n} {i // 2}\n" for i, n in enumerate(names)))
    return folder


def load(folder: Path, **changes: Any) -> data.Dataset:
    skip = changes.pop("skip_corrupt", False)
    settings = DataConfig(**{"dataset": "celeba", "image_size": 16, "final_fraction": 0.0, **changes})
    return data.load(Config(data_dir=folder, skip_corrupt=skip, data=settings), progress=False)


def all_pictures(dataset: data.Dataset) -> np.ndarray:
    return np.concatenate([s.take(np.arange(len(s))) for s in (dataset.train, dataset.val, dataset.test)])


def as_read(rows: int = NUM) -> np.ndarray:
    return np.stack([np.asarray(pixels(row).resize((16, 16), Image.Resampling.BICUBIC)) for row in range(rows)])


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        load(folder, **changes)
    assert str(error.value).isprintable()
    return str(error.value)


# Kaggle's copy


def test_csv_layout_gives_the_same_store_as_the_text_layout(tmp_path, capsys):
    kaggle = load(lay_out(tmp_path / "kaggle", identities=True))
    official = load(lay_out(tmp_path / "official", kind="txt"))
    np.testing.assert_array_equal(all_pictures(kaggle), as_read())
    np.testing.assert_array_equal(all_pictures(official), as_read())
    for name in store.SPLITS:
        kaggle_split, official_split = getattr(kaggle, name), getattr(official, name)
        np.testing.assert_array_equal(kaggle_split.labels, official_split.labels)
        np.testing.assert_array_equal(kaggle_split.identity, official_split.identity)
    assert kaggle.label_names == LABELS
    assert not kaggle.info.anonymous
    assert "one person may be" not in capsys.readouterr().err


def test_csv_layout_without_identities_gives_each_picture_its_own(tmp_path, capsys):
    dataset = load(lay_out(tmp_path / "kaggle"))
    np.testing.assert_array_equal(all_pictures(dataset), as_read())
    assert np.concatenate([dataset.train.identity, dataset.val.identity, dataset.test.identity]).tolist() == list(range(NUM))
    assert dataset.info.anonymous
    assert "has no identity_CelebA.txt: one person may be in several splits" in capsys.readouterr().err
    assert data.open_store(dataset.folder).info.anonymous, "whoever opens it later knows it too"
    assert limits(dataset)[-1].startswith("The data contain no identities, so one person may be in several of the sets")
    log = refusal(tmp_path / "kaggle", split="identity")
    assert "data.split 'identity' is not possible" in log


Spoil = Callable[[Path], object]


def edit(name: str, old: str, new: str) -> Spoil:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


WRONG_CSV: dict[str, tuple[Spoil, str]] = {
    "no header": (edit(f"{ATTR}.csv", "image_id,Smiling,Male\n", ""), "line 1: expected the names of the attributes"),
    "no header of parts": (
        edit(f"{PART}.csv", "image_id,partition\n", ""),
        "line 1: expected the names of two columns, got '000001",
    ),
    "empty": (lambda f: (f / f"{ATTR}.csv").write_text(""), "line 1: expected the names of the attributes"),
    "header alone": (lambda f: (f / f"{ATTR}.csv").write_text("image_id,A\n"), "has no rows after its first line"),
    "blank cell": (edit(f"{ATTR}.csv", "000003.jpg,", "000003.jpg, ,"), "line 4: expected a name and 2 values"),
    "blank value": (lambda f: cell(f, ""), "line 4: expected 1 or -1 for Smiling, got ''"),
    "text value": (lambda f: cell(f, "yes"), "line 4: expected 1 or -1 for Smiling, got 'yes'"),
    "number value": (lambda f: cell(f, "1.0"), "line 4: expected 1 or -1 for Smiling, got '1.0'"),
    "part 3": (edit(f"{PART}.csv", "000003.jpg,0", "000003.jpg,3"), "line 4: expected a name and 0, 1 or 2"),
    "part text": (edit(f"{PART}.csv", "000003.jpg,0", "000003.jpg,train"), "line 4: expected a name and 0, 1 or 2"),
    "listed twice": (edit(f"{ATTR}.csv", "000003.jpg", "000002.jpg"), "line 4: 000002.jpg is listed twice, first in line 3"),
    "open quote": (edit(f"{ATTR}.csv", "000003.jpg", '"000003.jpg'), "it is not CSV"),
    "huge cell": (edit(f"{ATTR}.csv", "000003.jpg", "x" * 200_000), "it is not CSV (field larger than field limit"),
    "both kinds": (lambda f: (f / f"{PART}.txt").write_text(""), "both exist and may differ: keep one"),
    "no partition": (
        lambda f: (f / f"{PART}.csv").unlink(),
        "list_eval_partition.txt is missing (it is not in Anno/ or Eval/, and not",
    ),
}


def cell(folder: Path, value: str) -> None:
    lines = (folder / f"{ATTR}.csv").read_text().split("\n")
    lines[3] = f"000003.jpg,{value},1"
    (folder / f"{ATTR}.csv").write_text("\n".join(lines))


@pytest.mark.parametrize("case", WRONG_CSV)
def test_csv_layout_with_an_error_is_refused_in_one_line(tmp_path, case):
    spoil, expected = WRONG_CSV[case]
    folder = lay_out(tmp_path / "kaggle")
    spoil(folder)
    assert expected in refusal(folder)


# Values


@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_zero_next_to_minus_one_is_a_missing_answer(tmp_path, kind, capsys):
    folder = lay_out(tmp_path / "data", kind=kind)
    path = folder / f"{ATTR}.{kind}"
    lines = path.read_text().split("\n")
    first = 1 if kind == "csv" else 2
    comma = "," if kind == "csv" else " "
    male = [line.rsplit(comma, 1) for line in lines[first : first + NUM]]
    male[6][1] = "0"
    path.write_text("\n".join([*lines[:first], *(comma.join(row) for row in male), ""]))
    expected = (values() == 1).astype(np.int8)
    expected[6, 1] = MISSING
    annotations = read_annotations({ATTRIBUTES: path})
    np.testing.assert_array_equal(annotations.labels, expected)
    assert f"{path}: 0 next to -1 is read as a missing answer: 1 of Male\n" in capsys.readouterr().err


def test_labels_in_two_notations_in_two_columns_are_read(tmp_path):
    folder = lay_out(tmp_path / "data")
    expected = load(folder)
    rows = [f"{row + 1:06d}.jpg,{int(v[0] == 1)},{v[1]}" for row, v in enumerate(values())]
    (folder / f"{ATTR}.csv").write_text("\n".join(["image_id," + ",".join(LABELS), *rows]))
    np.testing.assert_array_equal(load(folder).train.labels, expected.train.labels)


# Names


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


RENAMED: dict[str, Callable[[str], str]] = {
    "in a subfolder": lambda name: f"people/a/{name}",
    "Unicode decomposed": lambda name: nfd(name),
    "extension in capitals": lambda name: name.replace(".jpg", ".JPG"),
    "another extension": lambda name: name.replace(".jpg", ".png"),
    "all of it": lambda name: f"b/{nfd(name)}".replace(".jpg", ".JPEG"),
}


@pytest.mark.parametrize("kind", ["csv", "txt"])
@pytest.mark.parametrize("case", RENAMED)
def test_picture_under_another_spelling_of_its_name_is_found(tmp_path, case, kind, capsys):
    names = [f"Zoë {row} (1).jpg" for row in range(NUM)]
    folder = lay_out(tmp_path / "data", kind=kind, names=names)
    root = folder / "img_align_celeba"
    base = root / "img_align_celeba" if kind == "csv" else root
    for name in names:
        target = base / RENAMED[case](name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (base / name).rename(target)
    dataset = load(folder)
    np.testing.assert_array_equal(all_pictures(dataset), as_read())
    renamed = case != "in a subfolder"
    assert dataset.skipped == ()
    assert ("20 of 20 pictures are stored under another spelling" in capsys.readouterr().err) == renamed
    assert store.read_manifest(dataset.folder).remarks == ({"other_name": 20} if renamed else {})


def test_picture_that_exists_twice_raises_and_names_both(tmp_path):
    folder = lay_out(tmp_path / "data", kind="txt")
    for below in ("x", "y"):
        (folder / "img_align_celeba" / below).mkdir()
        shutil.copy(folder / "img_align_celeba" / "000003.jpg", folder / "img_align_celeba" / below)
    (folder / "img_align_celeba" / "000003.jpg").unlink()
    assert "holds two pictures named 000003.jpg (x/000003.jpg and y/000003.jpg): keep one" in refusal(folder)


def test_picture_with_the_exact_name_wins_over_a_similar_one(tmp_path):
    folder = lay_out(tmp_path / "data", kind="txt")
    pixels(99).save(folder / "img_align_celeba" / "000003.png")
    np.testing.assert_array_equal(all_pictures(load(folder)), as_read())


@pytest.mark.parametrize("line", ["000003.jpg 1 1 1", "000003.jpg 1", " 1 -1", "000003.jpg  x 1 1"])
def test_line_with_a_wrong_number_of_values_is_named(tmp_path, line):
    folder = lay_out(tmp_path / "data", kind="txt")
    lines = (folder / f"{ATTR}.txt").read_text().split("\n")
    lines[4] = line
    (folder / f"{ATTR}.txt").write_text("\n".join(lines))
    assert "line 5: expected a name and 2 values" in refusal(folder)


def test_pictures_in_a_nested_folder_of_a_zip_are_found(tmp_path):
    folder = lay_out(tmp_path / "data")
    shutil.make_archive(str(folder / "img_align_celeba"), "zip", root_dir=folder, base_dir="img_align_celeba")
    shutil.rmtree(folder / "img_align_celeba")
    np.testing.assert_array_equal(all_pictures(load(folder)), as_read())


def test_required_files_are_those_of_either_layout():
    config = Config(data=DataConfig(dataset="celeba"))
    csv_files = [f"{ATTR}.csv", f"{PART}.csv"]
    pictures = ["img_align_celeba/img_align_celeba/a.jpg", "img_align_celeba/b/c.jpg"]
    assert celeba.required_files([*csv_files, "list_bbox_celeba.csv", *pictures, "other/d.jpg"], config) == [*csv_files, *pictures]


# Remarks on pictures


def test_remarks_are_logged_once_and_stored_in_the_manifest(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store.writing, "SHARD_ROWS", 4)
    folder = lay_out(tmp_path / "data", kind="txt")
    exif = Image.Exif()
    exif[0x0112] = 6
    for row in (0, 5, 17):
        pixels(row).save(folder / "img_align_celeba" / f"{row + 1:06d}.jpg", "PNG", exif=exif)
    pixels(2).save(folder / "img_align_celeba" / "000003.jpg", "PNG", save_all=True, append_images=[pixels(3)])
    dataset = load(folder)
    log = capsys.readouterr().err
    assert log.count("3 of 20 pictures have an EXIF orientation that is not applied") == 1
    assert log.count("1 of 20 pictures have several frames: the first one is read") == 1
    assert store.read_manifest(dataset.folder).remarks == {"exif_orientation": 3, "several_frames": 1}
    np.testing.assert_array_equal(all_pictures(dataset), as_read())
    load(folder)
    assert capsys.readouterr().err == ""
