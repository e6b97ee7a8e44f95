"""Tests of the official CelebA layout: forms on disk, errors, interruption, real pictures and balanced splits."""

import io
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpgan_ray import data
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import store, task_of
from cpgan_ray.data.datasets import celeba
from cpgan_ray.errors import InputError
from tests.process import HANG_S

ROOT = Path(__file__).parents[3]
ATTRIBUTES = ("Smiling", "Male", "Young", "Wearing_Hat")
NUM_PICTURES = 60


def picture(row: int, size: tuple[int, int] = (30, 36)) -> Image.Image:
    rng = np.random.default_rng(row)
    return Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def lay_out(folder: Path, *, num: int = NUM_PICTURES, size: tuple[int, int] = (30, 36)) -> Path:
    """Make the official layout with two pictures per person; the partition is by person: 40 train, 12 val, 8 test of 60."""
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{row + 1:06d}.jpg" for row in range(num)]
    for row, name in enumerate(names):
        picture(row, size).save(folder / "img_align_celeba" / name, quality=90)
    values = np.random.default_rng(0).choice([-1, 1], (num, len(ATTRIBUTES)))
    lines = [f"{name} " + " ".join(f"{v:2d}" for v in row) for name, row in zip(names, values, strict=True)]
    (folder / "list_attr_celeba.txt").write_text(f"{num}\n{' '.join(ATTRIBUTES)} \n" + "\n".join(lines) + "\n")
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {row // 2 + 1}\n" for row, name in enumerate(names)))
    part = [0 if row < num * 2 // 3 else 1 if row < num * 2 // 3 + num // 5 else 2 for row in range(num)]
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, part, strict=True)))
    return folder


def configure(folder: Path | None, *, skip_corrupt: bool = False, cache_dir: Path | None = None, **changes: Any) -> Config:
    return Config(
        data_dir=folder,
        cache_dir=cache_dir,
        skip_corrupt=skip_corrupt,
        data=DataConfig(**{"dataset": "celeba", "image_size": 16, "final_fraction": 0.0, **changes}),
    )


def load(folder: Path, **changes: Any) -> data.Dataset:
    return data.load(configure(folder, **changes), progress=False)


def all_pictures(dataset: data.Dataset) -> np.ndarray:
    return np.concatenate([s.take(np.arange(len(s))) for s in (dataset.train, dataset.val, dataset.test)])


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    return lay_out(tmp_path_factory.mktemp("pristine") / "celeba")


@pytest.fixture
def layout(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "celeba"))


def pack_zip(folder: Path, prefix: str = "img_align_celeba/") -> None:
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        archive.writestr("__MACOSX/._000001.jpg", b"not a picture")
        archive.writestr("../../000001.jpg", b"not ours")
        for path in sorted((folder / "img_align_celeba").iterdir()):
            archive.write(path, prefix + path.name)
    shutil.rmtree(folder / "img_align_celeba")


def test_official_layout_becomes_a_store(layout):
    dataset = load(layout)
    assert dataset.folder == layout / ".cpgan" / dataset.digest
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [40, 12, 8]
    assert dataset.label_names == ATTRIBUTES
    assert dataset.image_shape == (16, 16, 3)
    labels = np.concatenate([dataset.train.labels, dataset.val.labels, dataset.test.labels])
    np.testing.assert_array_equal(labels, np.random.default_rng(0).choice([-1, 1], (60, 4)) > 0)
    np.testing.assert_array_equal(dataset.val.identity, np.arange(40, 52) // 2 + 1)
    with Image.open(layout / "img_align_celeba" / "000001.jpg") as original:
        expected = original.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC, box=(0, 3, 30, 33))
    np.testing.assert_array_equal(dataset.train.take(np.array([0]))[0], np.asarray(expected))


def test_load_twice_gives_the_same_store_and_a_change_another(layout):
    first = load(layout)
    stamp = (first.folder / "train.arrow").stat().st_mtime_ns
    assert load(layout).folder == first.folder
    assert (first.folder / "train.arrow").stat().st_mtime_ns == stamp
    others = [{"image_size": 12}, {"crop": 0.8}, {"split": "identity"}, {"skip_corrupt": True}]
    digests = {load(layout, **change).digest for change in others}
    picture(99).save(layout / "img_align_celeba" / "000007.jpg", quality=50)
    digests.add(load(layout).digest)
    attributes = layout / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("Young", "Youthful"))
    digests.add(load(layout).digest)
    assert len(digests | {first.digest}) == 7


@pytest.mark.parametrize("prefix", ["img_align_celeba/", ""])
def test_pictures_in_a_zip_are_read(layout, prefix):
    unzipped = all_pictures(load(layout))
    pack_zip(layout, prefix)
    dataset = load(layout)
    np.testing.assert_array_equal(all_pictures(dataset), unzipped)
    assert sorted(p.name for p in layout.iterdir()) == [
        ".cpgan",
        "identity_CelebA.txt",
        "img_align_celeba.zip",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    ]


def test_subfolders_of_the_official_download_are_read(layout):
    expected = all_pictures(load(layout))
    for folder, name in [("Anno", "list_attr_celeba.txt"), ("Anno", "identity_CelebA.txt"), ("Eval", "list_eval_partition.txt")]:
        (layout / folder).mkdir(exist_ok=True)
        (layout / name).rename(layout / folder / name)
    pack_zip(layout)
    (layout / "Img").mkdir()
    (layout / "img_align_celeba.zip").rename(layout / "Img" / "img_align_celeba.zip")
    np.testing.assert_array_equal(all_pictures(load(layout)), expected)


def test_tables_in_another_order_or_with_0_and_1_give_the_same_store(layout):
    expected = load(layout)
    for name in ("identity_CelebA.txt", "list_eval_partition.txt"):
        (layout / name).write_text("\r\n".join(reversed((layout / name).read_text().split("\n"))).strip())
    attributes = layout / "list_attr_celeba.txt"
    attributes.write_text("\ufeff" + attributes.read_text().replace("-1", "0"))
    repeated = load(layout)
    np.testing.assert_array_equal(all_pictures(repeated), all_pictures(expected))
    np.testing.assert_array_equal(repeated.train.labels, expected.train.labels)
    np.testing.assert_array_equal(repeated.train.identity, expected.train.identity)


def test_several_processes_make_the_same_store_as_one(layout):
    config = configure(layout)
    stores = [layout / f"by{n}" for n in (1, 2)]
    for number, folder in enumerate(stores, 1):
        celeba.draft(layout, config, processes=number, progress=False).build(folder)
    files = ["manifest.json", *(f"{name}.arrow" for name in store.SPLITS)]
    assert [(stores[0] / name).read_bytes() for name in files] == [(stores[1] / name).read_bytes() for name in files]


def test_concurrent_calls_prepare_once(layout):
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: data.prepare(configure(layout), progress=False), range(6)))
    assert len(set(folders)) == 1
    assert sorted(p.name for p in (layout / ".cpgan").iterdir()) == [folders[0].name, folders[0].name + ".lock"]


def test_pictures_of_any_size_and_mode_become_rgb_squares(layout):
    folder = layout / "img_align_celeba"
    odd = {"000001.jpg": (1, 1), "000002.jpg": (200, 9), "000003.jpg": (500, 700)}
    for name, size in odd.items():
        picture(1, size).save(folder / name, quality=95)
    picture(4).convert("L").save(folder / "000004.jpg")
    picture(5).convert("CMYK").save(folder / "000005.jpg")
    picture(6).convert("RGBA").save(folder / "000006.jpg", format="PNG")
    picture(7).convert("P").save(folder / "000007.jpg", format="PNG")
    taken = load(layout).train.take(np.arange(7))
    for grey in np.ptp(taken[3], axis=-1).ravel():
        assert grey == 0
    np.testing.assert_allclose(taken[5], np.asarray(picture(6).resize((16, 16), box=(0, 3, 30, 33))), atol=1)
    exact = picture(1, (500, 700)).resize((16, 16), box=(0, 100, 500, 600))
    assert np.abs(taken[2].astype(int) - np.asarray(exact)).mean() < 2


def test_crop_is_the_centred_square(layout):
    image = np.zeros((36, 30, 3), np.uint8)
    image[6:30, 3:27] = 200  # 24 of 30: a crop of 0.8
    Image.fromarray(image).save(layout / "img_align_celeba" / "000001.jpg", format="PNG")
    rows = np.array([0])
    cut = load(layout, crop=0.8).train.take(rows)[0]
    assert (cut[2:-2, 2:-2] == 200).all()
    assert cut.min() > 180  # the filter also uses pixels just outside the square
    assert (load(layout, crop=1.0).train.take(rows) == 0).any()


def test_image_width_makes_another_store_of_rectangles(layout):
    square, wide = load(layout), load(layout, image_size=8, image_width=24)
    assert wide.image_shape == wide.train.image_shape == (8, 24, 3)
    with Image.open(layout / "img_align_celeba" / "000001.jpg") as original:
        expected = original.convert("RGB").resize((24, 8), Image.Resampling.BICUBIC, box=(0, 13, 30, 23))
    np.testing.assert_array_equal(wide.train.take(np.array([0]))[0], np.asarray(expected))
    top, _, bottom, _ = wide.info.face or (0, 0, 0, 0)
    assert bottom - top > 0.9, "the rectangle shows hardly more than the height of the face"
    assert load(layout, image_width=16).digest != square.digest == load(layout).digest
    assert "image_width" not in celeba.settings(configure(layout)), "stores of square pictures keep their digests"


def test_identity_split_without_partition_file_separates_people(layout):
    (layout / "list_eval_partition.txt").unlink()
    dataset = load(layout, split="identity")
    people = [set(s.identity.tolist()) for s in (dataset.train, dataset.val, dataset.test)]
    assert sum(len(p) for p in people) == len(set.union(*people)) == 30
    assert sum(len(s) for s in (dataset.train, dataset.val, dataset.test)) == 60


def test_task_columns_follow_the_given_order(layout):
    dataset = load(layout)
    assert task_of(dataset, ("Young", "Smiling")).columns.tolist() == [2, 0]
    assert task_of(dataset, ()).columns.tolist() == [0, 1, 2, 3]


# Errors. Each entry: what to damage in the folder, the settings, parts of the expected message.


def _replace(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, count))


def _unlink(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def _bytes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(folder: Path) -> None:
    path = folder / "img_align_celeba" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def _claim(folder: Path, side: int) -> None:
    """Change the header of a picture so that it claims `side` x `side` pixels."""
    path = folder / "img_align_celeba" / "000003.jpg"
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5  # start of frame: length, precision, then height and width
    content[at : at + 4] = side.to_bytes(2, "big") * 2
    path.write_bytes(content)


def _bomb(folder: Path) -> None:
    _claim(folder, 60_000)


def _smaller_bomb(folder: Path) -> None:
    _claim(folder, 10_000)


def _bad_zip(folder: Path) -> None:
    pack_zip(folder)
    path = folder / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-50])


def _bad_zip_member(folder: Path) -> None:
    pack_zip(folder)
    path = folder / "img_align_celeba.zip"
    content = bytearray(path.read_bytes())
    at = content.index(b"img_align_celeba/000003.jpg") + 300
    content[at] ^= 0xFF
    path.write_bytes(content)


def _two_in_zip(folder: Path) -> None:
    pack_zip(folder)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "a") as archive:
        archive.writestr("000003.jpg", b"again")


def _no_val(folder: Path) -> None:
    path = folder / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(" 1\n", " 0\n"))


ATTR, IDENT, PART = "list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"
JPG = "img_align_celeba/000003.jpg"
SKIP = "--skip-corrupt"
Case = tuple[Callable[[Path], object], dict[str, Any], tuple[str, ...]]
WRONG: dict[str, Case] = {
    "no folder": (shutil.rmtree, {}, ("celeba does not exist", "--data-dir")),
    "no attribute file": (_unlink(ATTR), {}, (ATTR, "is missing", "official CelebA download")),
    "no identity file": (_unlink(IDENT), {}, (IDENT, "is missing")),
    "no partition file": (_unlink(PART), {}, (PART, "is missing", "--data.split identity")),
    "no pictures": (lambda f: shutil.rmtree(f / "img_align_celeba"), {}, ("img_align_celeba.zip", "put the pictures there")),
    "empty attribute file": (_bytes(ATTR, b""), {}, (ATTR, "line 1", "number of pictures")),
    "no count": (_replace(ATTR, "60\n", "sixty\n"), {}, (ATTR, "line 1", "number of pictures", "'sixty'")),
    "no header": (_bytes(ATTR, b"60"), {}, (ATTR, "line 2", "names of the attributes")),
    "attribute twice": (_replace(ATTR, "Male", "Young"), {}, (ATTR, "line 2", "each once")),
    "reserved attribute": (_replace(ATTR, "Male", "identity"), {}, (ATTR, "line 2")),
    "short attribute line": (_replace(ATTR, "000005.jpg", ""), {}, (ATTR, "line 7", "a name and 4 values")),
    "blank attribute line": (_replace(ATTR, "000005.jpg", "\n000005.jpg"), {}, (ATTR, "line 7", "a name and 4 values", "''")),
    "name twice": (_replace(ATTR, "000005.jpg", "000004.jpg"), {}, (ATTR, "000004.jpg is listed twice")),
    "count too high": (_replace(ATTR, "60\n", "61\n"), {}, (ATTR, "61", "60 lines")),
    "attributes in Latin-1": (_bytes(ATTR, "60\nMännlich\n".encode("latin-1")), {}, (ATTR, "UTF-8", "byte 4", "0xe4")),
    "identity not a number": (
        _replace(IDENT, "000005.jpg 3", "000005.jpg 3.5"),
        {},
        (IDENT, "line 5", "number of a person", "3.5"),
    ),
    "identity negative": (_replace(IDENT, "000005.jpg 3", "000005.jpg -3"), {}, (IDENT, "line 5", "number of a person")),
    "identity huge": (_replace(IDENT, "000005.jpg 3", "000005.jpg 3" + "0" * 40), {}, (IDENT, "line 5")),
    "identity line long": (_replace(IDENT, "000005.jpg 3", "000005.jpg 3 4"), {}, (IDENT, "line 5", "'000005.jpg 3 4'")),
    "identity name twice": (_replace(IDENT, "000005.jpg", "000004.jpg"), {}, (IDENT, "000004.jpg is listed twice")),
    "identity name absent": (_replace(IDENT, "000005.jpg 3\n", ""), {}, (IDENT, "1 pictures", "000005.jpg")),
    "identity name unknown": (_replace(IDENT, "000005.jpg", "other.jpg 3\n000005.jpg"), {}, (IDENT, "other.jpg", ATTR)),
    "identity not UTF-8": (_bytes(IDENT, b"\xff"), {}, (IDENT, "UTF-8")),
    "partition 3": (_replace(PART, "000005.jpg 0", "000005.jpg 3"), {}, (PART, "line 5", "0, 1 or 2", "'000005.jpg 3'")),
    "partition name absent": (_replace(PART, "000005.jpg 0\n", ""), {}, (PART, "000005.jpg")),
    "person in two splits": (
        _replace(PART, "000005.jpg 0", "000005.jpg 2"),
        {},
        ("identity 3", "train and test", "--data.split identity"),
    ),
    "empty split": (_no_val, {}, ("val split is empty", "--data.split identity")),
    "picture missing": (_unlink(JPG), {}, ("000003.jpg", "1 of the 60", SKIP)),
    "path out of the folder": (
        lambda f: [_replace(n, "000003.jpg", "../outside.jpg")(f) for n in (ATTR, IDENT, PART)],
        {},
        ("../outside.jpg", "missing"),
    ),
    "picture cut": (_cut, {}, ("000003.jpg cannot be decoded", "truncated", SKIP)),
    "picture empty": (_bytes(JPG, b""), {}, ("000003.jpg cannot be decoded", SKIP)),
    "picture no picture": (_bytes(JPG, b"hello" * 99), {}, ("000003.jpg cannot be decoded", SKIP)),
    "picture a program": (
        _bytes(JPG, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        {},
        ("000003.jpg cannot be decoded", SKIP),
    ),
    "picture a bomb": (_bomb, {}, ("000003.jpg cannot be decoded", "limit", SKIP)),
    "picture a smaller bomb": (_smaller_bomb, {}, ("000003.jpg cannot be decoded", "limit", SKIP)),
    "zip cut": (_bad_zip, {}, ("img_align_celeba.zip", "not a complete zip file", "download it again")),
    "zip empty": (
        lambda f: [pack_zip(f), _bytes("img_align_celeba.zip", b"")(f)],
        {},
        ("img_align_celeba.zip", "not a complete zip"),
    ),
    "zip member damaged": (_bad_zip_member, {}, ("img_align_celeba.zip/000003.jpg cannot be decoded", SKIP)),
    "zip member twice": (_two_in_zip, {}, ("two pictures named 000003.jpg",)),
    "label unknown": (lambda f: None, {"labels": ("Smilling",)}, ("'Smilling'", "did you mean Smiling?", "Wearing_Hat")),
    "label far off": (lambda f: None, {"labels": ("Qx",)}, ("'Qx'", "Choose from Smiling, Male")),
    "label twice": (lambda f: None, {"labels": ("Male", "Male")}, ("'Male'", "twice")),
    "store place taken": (_bytes(".cpgan", b""), {}, (".cpgan", "--cache-dir")),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_layout_is_named_and_leaves_no_store(layout, case):
    spoil, changes, expected = WRONG[case]
    spoil(layout)
    with pytest.raises(InputError) as error:
        load(layout, **changes)
    message = str(error.value)
    for part in expected:
        assert part in message
    assert "\n" not in message
    if (layout / ".cpgan").is_dir():
        assert [p.name for p in (layout / ".cpgan").iterdir() if p.suffix != ".lock"] == []


def test_unknown_label_with_an_existing_store_raises(layout):
    load(layout)
    with pytest.raises(InputError, match="did you mean Young"):
        load(layout, labels=("Yuong",))


def test_attribute_value_that_is_not_1_is_named_with_its_line(layout):
    lines = (layout / ATTR).read_text().split("\n")
    lines[9] = "000008.jpg 1 1 2 -1"
    (layout / ATTR).write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"line 10: expected 1 or -1 for Young, got '2'"):
        load(layout)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_data_folder_asks_for_a_cache_folder(layout, tmp_path):
    layout.chmod(0o500)
    try:
        with pytest.raises(InputError, match="--cache-dir"):
            load(layout)
        assert load(layout, cache_dir=tmp_path / "cache").folder.parent == tmp_path / "cache"
    finally:
        layout.chmod(0o700)


def test_store_is_in_the_cache_folder_if_one_is_given(layout, tmp_path):
    dataset = load(layout, cache_dir=tmp_path / "deep" / "cache")
    assert dataset.folder == tmp_path / "deep" / "cache" / dataset.digest
    assert not (layout / ".cpgan").exists()


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_skip_corrupt_skips_corrupt_pictures(layout, capsys, as_zip):
    folder = layout / "img_align_celeba"
    _smaller_bomb(layout)
    (folder / "000010.jpg").write_bytes(b"")
    (folder / "000060.jpg").unlink()
    if as_zip:
        pack_zip(layout)
    dataset = load(layout, skip_corrupt=True)
    assert dataset.skipped == ("000060.jpg", "000003.jpg", "000010.jpg")
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [38, 12, 7]
    assert dataset.train.identity[:4].tolist() == [1, 1, 2, 3]
    assert "3 of 60 pictures skipped" in capsys.readouterr().err


def test_killed_preparation_continues_where_it_stopped(tmp_path):
    layout = lay_out(tmp_path / "celeba")
    large = tmp_path / "celeba" / "img_align_celeba" / "000001.jpg"
    picture(0, (1500, 1500)).save(large)
    for path in large.parent.iterdir():
        path.write_bytes(large.read_bytes())
    config = configure(layout)
    code = (
        "from pathlib import Path; from cpgan_ray import data; from cpgan_ray.config import *; from cpgan_ray.data import store;"
        f"store.writing.SHARD_ROWS = 4; data.prepare(Config(data_dir=Path({str(layout)!r}),"
        "data=DataConfig(dataset='celeba', image_size=16, final_fraction=0.0)), progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + HANG_S
    while len(shards := sorted((layout / ".cpgan").glob("*.partial/train-*.arrow.owner"))) < 2:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [p for p in (layout / ".cpgan").iterdir() if p.is_dir() and p.suffix != ".partial"] == []
    expected = np.asarray(picture(0, (1500, 1500)).resize((16, 16), Image.Resampling.BICUBIC))
    for row in range(4 * len(shards)):  # same size, so the digest is the same: these pictures must not be read again
        path = layout / "img_align_celeba" / f"{row + 1:06d}.jpg"
        path.write_bytes(bytes(path.stat().st_size))
    dataset = _with_shards_of(4, lambda: data.load(config, progress=False))
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [40, 12, 8]
    assert np.abs(dataset.train.take(np.array([0]))[0].astype(int) - expected).mean() < 2
    assert [p for p in (layout / ".cpgan").iterdir() if p.suffix == ".partial"] == []


def test_killed_preparing_process_is_replaced_by_a_waiting_one(layout, tmp_path):
    code = (
        "import os, time; from pathlib import Path; from cpgan_ray import data; from cpgan_ray.config import *;"
        "from cpgan_ray.data import decoder_pool, store; store.writing.SHARD_ROWS = 4; "
        "original = decoder_pool.decode_block;"
        f"new, pid_file = Path({str(tmp_path / 'working.new')!r}), Path({str(tmp_path / 'working')!r});"
        "working = lambda: [new.write_text(str(os.getpid())), new.replace(pid_file), time.sleep(0.1)];"
        "decoder_pool.decode_block = lambda *a, **k: [working(), original(*a, **k)][1];"
        "settings = DataConfig(dataset='celeba', image_size=16, final_fraction=0.0);"
        f"data.prepare(Config(data_dir=Path({str(layout)!r}), data=settings), progress=False)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    deadline = time.monotonic() + HANG_S
    while len(list((layout / ".cpgan").glob("*.partial/train-*.arrow.owner"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [partial] = (layout / ".cpgan").glob("*.partial")
    holder = next(worker for worker in workers if str(worker.pid) == (tmp_path / "working").read_text())
    holder.kill()
    messages = [worker.communicate(timeout=HANG_S)[1] for worker in workers]
    assert [worker.returncode for worker in workers if worker is not holder] == [0, 0], messages
    assert sorted(p.name for p in (layout / ".cpgan").iterdir()) == [partial.stem, partial.stem + ".lock"]
    dataset = _with_shards_of(4, lambda: load(layout))
    np.testing.assert_array_equal(dataset.train.labels, np.random.default_rng(0).choice([-1, 1], (60, 4))[:40] > 0)
    assert {path.suffix for path in dataset.folder.iterdir()} == {".arrow", ".json", ".owner"}


def test_replaced_store_stays_readable_and_is_refused_on_reload(layout):
    dataset = load(layout)
    expected, pickled = all_pictures(dataset), pickle.dumps(dataset)
    other = load(layout, image_size=12)
    dataset.folder.rename(layout / "away")
    shutil.copytree(other.folder, dataset.folder)
    np.testing.assert_array_equal(all_pictures(dataset), expected)
    with pytest.raises(InputError, match=f"it holds store '{other.digest}' instead of {dataset.digest}"):
        pickle.loads(pickled)


def _with_shards_of(rows: int, call: Callable[[], data.Dataset]) -> data.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.writing, "SHARD_ROWS", rows)
        return call()


def test_long_preparation_logs_progress(monkeypatch, capsys):
    clock = itertools.count(0, 6)
    monkeypatch.setattr(store.files.time, "monotonic", lambda: next(clock))
    with store.progress_bar(100, what="preparing", unit="pictures") as advance:
        for _ in range(4):
            advance(25)
    assert capsys.readouterr().err == "preparing: 50 of 100 pictures, 18 s\npreparing: 100 of 100 pictures, 36 s\n"


def test_faces_are_drawn_once_and_prepared_like_celeba(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Config(data=DataConfig(dataset="faces", image_size=16, num_identities=10, pictures_per_identity=2, final_fraction=0.0))
    dataset = data.load(config, progress=False)
    root = tmp_path / "cpgan_ray"
    assert dataset.folder == root / dataset.digest
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [16, 2, 2]
    face_folders = [p for p in root.iterdir() if p.name.startswith("faces-") and p.is_dir()]
    assert len(face_folders) == 1
    stamp = face_folders[0].stat().st_mtime_ns
    smaller = Config(data=DataConfig(dataset="faces", image_size=8, num_identities=10, pictures_per_identity=2, final_fraction=0.0))
    assert data.load(smaller, progress=False).image_shape == (8, 8, 3)
    assert face_folders[0].stat().st_mtime_ns == stamp


def test_data_folder_with_drawn_faces_raises(tmp_path):
    with pytest.raises(InputError, match="--data.dataset celeba"):
        data.prepare(Config(data_dir=tmp_path))


def test_relative_data_folder_gives_an_absolute_store_path(layout, monkeypatch):
    monkeypatch.chdir(layout.parent)
    dataset = load(Path("celeba"))
    monkeypatch.chdir("/")
    assert len(pickle.loads(pickle.dumps(dataset)).train) == len(data.open_store(dataset.folder).train) == 40


def test_data_imports_no_torch_ray_or_mlflow():
    code = "import sys, cpgan_ray.data, cpgan_ray.data.batching; sys.exit(str({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "set()"


def test_real_celeba_pictures_are_prepared(tmp_path):
    default = ROOT.parent / "shared" / "data"
    source = Path(os.environ.get("CPGAN_DATA", default)) / "celeba" / "celeba10k.parquet"
    if not source.is_file():
        pytest.skip(f"no real pictures at {source}; CPGAN_DATA names the folder that holds celeba/celeba10k.parquet")
    import pyarrow.parquet

    table = next(pyarrow.parquet.ParquetFile(source).iter_batches(300))
    names = table["filename"].to_pylist()
    attributes = [c for c in table.schema.names if c not in ("image", "filename", "identity", "partition")]
    (tmp_path / "img_align_celeba").mkdir()
    for name, blob in zip(names, table["image"].to_pylist(), strict=True):
        (tmp_path / "img_align_celeba" / name).write_bytes(blob)
    values = np.stack([table[a].to_numpy() for a in attributes], axis=1)
    lines = [f"{n} {' '.join(map(str, row))}" for n, row in zip(names, np.where(values > 0, 1, -1), strict=True)]
    (tmp_path / ATTR).write_text("\n".join([str(len(names)), " ".join(attributes), *lines]))
    identity = table["identity"].to_pylist()
    (tmp_path / IDENT).write_text("".join(f"{n} {i}\n" for n, i in zip(names, identity, strict=True)))
    dataset = load(tmp_path, split="identity", image_size=64, labels=("Male", "Smiling"))
    splits = (dataset.train, dataset.val, dataset.test)
    assert sum(len(s) for s in splits) == 300
    row_of = {i: r for r, i in enumerate(identity) if identity.count(i) == 1}
    row, here = next((row_of[i], r) for r, i in enumerate(dataset.train.identity.tolist()) if i in row_of)
    np.testing.assert_array_equal(dataset.train.labels[here], values[row] > 0)
    with Image.open(io.BytesIO(table["image"][row].as_py())) as original:
        small = original.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC, box=(0, 10, 89, 99))
    np.testing.assert_array_equal(dataset.train.take(np.array([here]))[0], np.asarray(small))


# Balanced splits


def test_balanced_store_has_equal_counts_and_separate_people(layout):
    complete = load(layout)
    balanced_store = load(layout, labels=("Male",), balanced=True)
    people: list[set[int]] = []
    for name in store.SPLITS:
        part, all_of_it = getattr(balanced_store, name), getattr(complete, name)
        males = part.labels[:, 1]
        fewest = min(np.bincount(all_of_it.labels[:, 1], minlength=2))
        assert np.bincount(males).tolist() == [fewest, fewest]
        there = {p.tobytes(): tuple(y) for p, y in zip(all_of_it.take(np.arange(len(all_of_it))), all_of_it.labels, strict=True)}
        mine = {p.tobytes(): tuple(y) for p, y in zip(part.take(np.arange(len(part))), part.labels, strict=True)}
        assert len(mine) == len(part) and mine.items() <= there.items(), "pictures of the same split, with their labels"
        assert (np.diff(part.identity) >= 0).all(), "in their order"
        people.append(set(part.identity.tolist()))
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(people, 2))


def test_balanced_store_depends_only_on_label_and_seed(layout, tmp_path):
    def balanced(label: str, **changes: Any) -> data.Dataset:
        return load(layout, labels=(label,), balanced=True, **changes)

    male = balanced("Male")
    repeated = balanced("Male", cache_dir=tmp_path / "other")
    assert repeated.digest == male.digest
    np.testing.assert_array_equal(all_pictures(repeated), all_pictures(male))
    others = [balanced("Young"), balanced("Male", balanced_seed=1), load(layout, labels=("Male",))]
    assert len({male.digest, *(other.digest for other in others)}) == 4
    assert others[2].digest == load(layout).digest, "what is not balanced is one store for all labels"
    assert not np.array_equal(all_pictures(others[1]), all_pictures(male))
    with pytest.raises(InputError, match=r"a store made with balanced \['Male'\], the run has \['Young'\]: give the same"):
        balanced("Young", digest=male.digest)
    with pytest.raises(InputError, match=r"a store made with balanced False, the run has \['Male'\]: give the same"):
        balanced("Male", digest=others[2].digest)


@pytest.mark.parametrize(("labels", "expected"), [((), "is empty, which means all"), (("Male", "Young"), "names 2")])
@pytest.mark.parametrize("name", ["celeba", "faces"])
def test_balanced_with_none_or_several_labels_raises(name, labels, expected):
    with pytest.raises(
        InputError, match=f"data.balanced is True, but data.labels {expected}: give one label, such as --data.labels"
    ):
        Config(data=DataConfig(dataset=name, labels=labels, balanced=True))


def test_balanced_split_without_a_value_raises_and_leaves_no_store(layout):
    path = layout / "list_attr_celeba.txt"
    lines = path.read_text().split("\n")
    lines[2 + 40 : 2 + 52] = [f"{line.split()[0]} 1 -1 1 1" for line in lines[2 + 40 : 2 + 52]]
    path.write_text("\n".join(lines))
    for label, value in (("Male", 1), ("Young", 0)):
        with pytest.raises(InputError, match=f"no sample of the val split has the value {value} of {label}: give another label"):
            load(layout, labels=(label,), balanced=True)
    assert not [path for path in (layout / ".cpgan").iterdir() if path.suffix != ".lock"]


def test_missing_pictures_are_not_counted_when_balancing(layout):
    labels = load(layout).train.labels[:, 1]
    rarer = int(labels.mean() < 0.5)
    for row in np.flatnonzero(labels == rarer)[:5]:
        (layout / "img_align_celeba" / f"{row + 1:06d}.jpg").unlink()
    balanced_store = load(layout, labels=("Male",), balanced=True, skip_corrupt=True)
    assert np.bincount(balanced_store.train.labels[:, 1]).tolist() == [(labels == rarer).sum() - 5] * 2
