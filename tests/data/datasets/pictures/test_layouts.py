"""Tests of folders of own pictures: classes, splits, formats, the digest, and equality with the readers of other data sets."""

import csv
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import load, prepare, store
from cpgan_ray.data.datasets import genki4k
from cpgan_ray.data.decoding import decode
from cpgan_ray.errors import InputError
from tests.own_pictures import SIDE, configure, content, csv_text, drawn, encoded, opened, write_files, write_table

NUM = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for each of three classes, one of them with a folder inside, and files that are no pictures."""
    names = [f"{('ant', 'bee/young', 'cat')[i % 3]}/{i:03d}.png" for i in range(NUM)]
    source = write_files(tmp_path_factory.mktemp("folders") / "data", names)
    for name in ("notes.txt", "ant/.hidden.png", ".cpgan/x.png", "bee/Thumbs.db"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"?")
    return source


def test_folders_make_one_label_of_their_names(folder, tmp_path):
    before = sorted(folder.rglob("*"))
    dataset = opened(folder, tmp_path)
    assert dataset.label_names == ("class",)
    assert dataset.info.classes == {"class": ["ant", "bee", "cat"]}
    assert sum(map(len, dataset.splits.values())) == NUM
    assert dataset.info.anonymous
    row = int(dataset.val.identity[0])
    assert dataset.val.labels[0, 0] == row // 20
    number = row % 20 * 3 + row // 20
    expected = decode(encoded(number), image_size=SIDE, crop=1.0).pixels
    assert np.array_equal(dataset.val.take(np.array([0]))[0], expected)
    assert sorted(folder.rglob("*")) == before, "nothing is written among the pictures"


def test_store_of_pictures_is_in_the_cache_of_the_user(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = prepare(replace(configure(folder, tmp_path), cache_dir=None), progress=False)
    assert path.parent == tmp_path / "cpgan_ray"
    assert {p.name for p in (folder / ".cpgan").iterdir()} == {"x.png"}


def test_folders_behind_a_uri_make_the_same_store(folder, tmp_path):
    expected = opened(folder, tmp_path / "a")
    remote = opened(folder.as_uri(), tmp_path / "b")
    assert (remote.digest, content(remote)) == (expected.digest, content(expected))
    fetched = next((tmp_path / "b" / "sources").glob("*/"))
    assert not [path for path in fetched.rglob("*") if path.is_file() and path.suffix != ".png"]


def test_folders_of_splits_have_the_classes_below_them(tmp_path):
    names = [f"{part}/{kind}/{i}.png" for part in ("train", "Test") for kind in ("yes", "no") for i in range(20)]
    dataset = opened(write_files(tmp_path / "data", names), tmp_path)
    assert dataset.label_names == ("class",)
    assert dataset.info.classes == {}, "yes and no are 0/1"
    assert len(dataset.test) == 40
    assert len(dataset.train) + len(dataset.val) == 40
    redrawn = opened(tmp_path / "data", tmp_path, split="identity")
    assert len(redrawn.test) < 20


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.png", "b/c.png", "d/e.png"], ["1 pictures are in no class folder", "a.png", "--data.table"]),
        (["b/c.png", "b/d/e.png"], ["one class folder, b"]),
        (["train/c.png", "test/e.png"], ["are in no class folder"]),
        (["notes.doc"], ["has no pictures"]),
        ([], ["has no pictures"]),
        (["a/x.png", "b/x.png"], ["is empty", "2 pictures"]),
    ],
)
def test_folders_without_classes_are_refused(names, words, tmp_path):
    (tmp_path / "data").mkdir()
    write_files(tmp_path / "data", names)
    if names[:1] == ["train/c.png"]:
        words = ["split"]
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "data", tmp_path)
    assert [word for word in words if word not in str(raised.value)] == []


def test_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist or is not a folder"):
        opened(tmp_path / "gone", tmp_path)
    with pytest.raises(InputError, match="give it with --data-dir"):
        load(Config(data=DataConfig(dataset="pictures")))


# ---------------------------------------------------------------------------------------------------------------- formats


def saved(image: Image.Image, path: Path, **options: object) -> None:
    image.save(path, **options)  # pyright: ignore[reportArgumentType]


FORMATS = {
    "a.png": lambda image: image,
    "b.bmp": lambda image: image,
    "c.tiff": lambda image: image,
    "d.ppm": lambda image: image,
    "e.webp": lambda image: image,
    "f.gif": lambda image: image.convert("L"),
    "g.pgm": lambda image: image.convert("L"),
    "h.png": lambda image: image.quantize(64),
    "i.png": lambda image: image.convert("RGBA"),
    "j.png": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "k.jpg": lambda image: image.convert("CMYK"),
    "l.PNG": lambda image: image.convert("1"),
}


def test_pictures_of_any_format_are_read(tmp_path):
    images = [convert(drawn(i)) for i, convert in enumerate(FORMATS.values())]
    for kind in ("even", "odd"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for name, image in zip(FORMATS, images, strict=True):
            saved(image, tmp_path / "data" / kind / name, **({"lossless": True} if name == "e.webp" else {}))
    names = [f"{kind}/{name}" for kind in ("even", "odd") for name in FORMATS]
    parts = ["train" if i % 3 == 0 else "val" if i % 3 == 1 else "test" for i in range(len(names))]
    (tmp_path / "data" / "t.csv").write_text(csv_text({"f": names, "y": [i % 2 for i in range(len(names))], "part": parts}))
    dataset = opened(tmp_path / "data", tmp_path, table="t.csv", split_column="part")
    for split in dataset.splits.values():
        for row, pixels in zip(split.identity.tolist(), split.take(np.arange(len(split))), strict=True):
            index = row % len(FORMATS)
            image = drawn(index) if index == 9 else images[index]
            grey = index in (5, 6, 9)
            saved(image.convert("L" if grey else "RGB"), buffer := io.BytesIO(), format="PNG")  # pyright: ignore[reportArgumentType]
            expected = decode(buffer.getvalue(), image_size=SIDE, crop=1.0).pixels
            tolerance = 40 if index == 10 else 1
            assert np.abs(pixels.astype(int) - expected).max() <= tolerance, names[row]


def test_pictures_with_an_exif_orientation_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = tmp_path / "data" / "a", tmp_path / "data" / "b"
    for i in range(30):
        for part in (plain, turned):
            part.mkdir(parents=True, exist_ok=True)
        upright = drawn(i, (24, 24))
        saved(upright, plain / f"{i}.png")
        saved(upright.transpose(Image.Transpose.ROTATE_90), turned / f"{i}.png", exif=exif)
    dataset = opened(tmp_path / "data", tmp_path)
    where = {row: (split, i) for split in dataset.splits.values() for i, row in enumerate(split.identity.tolist())}
    for row in range(30):
        (first, i), (second, j) = where[row], where[row + 30]
        assert np.array_equal(first.take(np.array([i])), second.take(np.array([j])))


# ------------------------------------------------------------------------------------------------------------- the digest


def test_digest_changes_with_table_pictures_and_settings_only(folder, tmp_path):
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png")) if not path.name.startswith(".")]
    names = [name for name in names if not name.startswith(".")]
    rows = {"file": names, "y": [i % 2 for i in range(NUM)], "z": [i % 3 for i in range(NUM)]}
    (folder / "d.csv").write_text(csv_text(rows))

    def digest(**settings: object) -> str:
        return opened(folder, tmp_path, **{"table": "d.csv", **settings}).digest  # pyright: ignore[reportArgumentType]

    first = digest(labels=("y",))
    assert digest(labels=("y",)) == first
    changes = ({"crop": 0.5}, {"missing": ("9",)}, {"bins": ("z=1",)}, {"horizontal_flip": False}, {"path_column": "file"})
    assert len({first, *(digest(labels=("y",), **change) for change in changes)}) == 6
    (folder / "d.csv").write_text(csv_text({**rows, "y": rows["y"][::-1]}))
    second = digest(labels=("y",))
    (folder / names[0]).write_bytes(encoded(99))
    third = digest(labels=("y",))
    assert len({first, second, third}) == 3
    (folder / names[0]).write_bytes(encoded(0))


def test_digest_of_uncompressed_pictures_covers_their_content(tmp_path):
    def write(row: int) -> str:
        for kind in ("a", "b"):
            for i in range(40):
                (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
                saved(drawn(i + row), tmp_path / "data" / kind / f"{i}.bmp")
        os.utime(tmp_path / "data" / "a" / "0.bmp", (0, 0))
        return opened(tmp_path / "data", tmp_path).digest

    assert write(0) == write(0) != write(1)


# ------------------------------------------------------------------------------------------- the readers of other data sets


def test_genki4k_in_a_table_makes_the_store_of_its_own_reader(tmp_path):
    source = tmp_path / "genki4k"
    write_files(source, [f"{part}/{kind}/f{i}.jpg" for part in ("train", "test") for kind in (0, 1) for i in range(30)])
    samples, files = genki4k.read(source, image_size=SIDE), genki4k.files(source)
    parts = {int(row): name for name, rows in samples.rows.items() for row in rows}
    rows = {
        "file": [path.relative_to(source).as_posix() for path in files],
        "Smiling": [samples.classes[label] for label in samples.labels],
        "number": samples.identity.tolist(),
        "part": [parts[row] for row in range(len(files))],
    }
    (source / "t.csv").write_text(csv_text(rows))
    own = load(Config(data_dir=source, cache_dir=tmp_path, data=DataConfig(dataset="genki4k", image_size=SIDE)), progress=False)
    settings = {"table": "t.csv", "identity_column": "number", "split_column": "part", "final_fraction": 0.1}
    generic = opened(source, tmp_path, **settings)
    assert generic.label_names == own.label_names
    assert generic.info.classes == own.info.classes
    assert content(generic) == content(own)


def test_celeba_in_a_table_makes_the_store_of_its_own_reader(tmp_path):
    source = tmp_path / "celeba"
    names = [f"{i + 1:06d}.jpg" for i in range(NUM)]
    write_files(source / "img_align_celeba", names)
    values = np.random.default_rng(0).choice([-1, 1], (NUM, 3))
    lines = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, values, strict=True)]
    (source / "list_attr_celeba.txt").write_text("\n".join([str(NUM), "Smiling Male Young", *lines]))
    (source / "identity_CelebA.txt").write_text("".join(f"{name} {i // 2 + 7}\n" for i, name in enumerate(names)))
    columns = {name: values[:, i].tolist() for i, name in enumerate(("Smiling", "Male", "Young"))}
    (source / "t.csv").write_text(csv_text({"image_id": names, "person": [i // 2 + 7 for i in range(NUM)], **columns}))
    shared = {"image_size": SIDE, "split": "identity", "crop": 0.83}
    own = load(Config(data_dir=source, cache_dir=tmp_path, data=DataConfig(dataset="celeba", **shared)), progress=False)
    generic = opened(source, tmp_path, table="t.csv", identity_column="person", final_fraction=0.1, **shared)
    assert generic.label_names == own.label_names
    assert content(generic) == content(own)
    assert own.final.identity.size > 0
    assert store.read_manifest(generic.folder).info.anonymous is False


def test_table_is_read_with_the_csv_module_as_written(tmp_path):
    rows = {"file": [f"{i}.png" for i in range(40)], 'y, "z"': [f"a;{i % 2}" for i in range(40)]}
    write_table(tmp_path / "data", rows)
    dataset = opened(tmp_path / "data", tmp_path, table="labels.csv")
    assert dataset.label_names == ('y, "z"',)
    with (tmp_path / "data" / "labels.csv").open(newline="") as file:
        assert next(csv.reader(file)) == [*rows]
