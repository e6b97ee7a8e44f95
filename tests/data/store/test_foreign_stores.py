"""Tests that a store which came with the data is not used, and that no store crashes the process that opens it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray import data
from cpgan_ray.common import ownership
from cpgan_ray.config import Config, DataConfig
from cpgan_ray.data import pin_store, store
from cpgan_ray.data.pca import projection
from cpgan_ray.data.sync import node
from cpgan_ray.errors import InputError
from tests.data.datasets.test_celeba_tables import all_pictures, as_read, lay_out

ROOT = Path(__file__).parents[3]
OWN_KEY, OTHER_KEY = "0" * 64, "1" * 64


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(ownership.KEY_VARIABLE, raising=False)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "data", kind="txt")


def configure(folder: Path, **changes: Any) -> Config:
    more = {name: changes.pop(name) for name in ("trust", "cache_dir") if name in changes}
    return Config(data_dir=folder, data=DataConfig(dataset="celeba", image_size=16, final_fraction=0.0, **changes), **more)


def load(folder: Path, **changes: Any) -> data.Dataset:
    return data.load(configure(folder, **changes))


def poison(folder: Path) -> None:
    """Put other pictures into a store with matching checksums, as an attacker could."""
    path = folder / "train.arrow"
    values = json.loads((folder / "manifest.json").read_text())
    content = bytearray(path.read_bytes())
    rows, start = values["splits"]["train"]["batches"][0][:2]
    content[start : start + rows * 16 * 16 * 3] = bytes(rows * 16 * 16 * 3)
    path.write_bytes(content)
    reseal(folder, "train", sha256=store.checksum(path))


def reseal(folder: Path, split: str = "", **changes: Any) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    del values["checksum"]
    (values["splits"][split] if split else values).update(changes)
    (folder / "manifest.json").write_text(store.manifest_text(values))


# Ownership of stores


def test_store_that_came_with_the_data_is_not_used_and_logged(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ownership.KEY_VARIABLE, OTHER_KEY)
    foreign_store = load(layout).folder
    poison(foreign_store)
    ownership.sign(foreign_store / "manifest.json")
    capsys.readouterr()
    monkeypatch.setenv(ownership.KEY_VARIABLE, OWN_KEY)
    own_store = load(layout)
    assert own_store.folder == tmp_path / "cache" / "cpgan_ray" / foreign_store.name
    np.testing.assert_array_equal(all_pictures(own_store), as_read())
    log = capsys.readouterr().err
    assert (
        f"the prepared store {foreign_store} was not made by you and is not used; your store is {own_store.folder} (--trust" in log
    )
    assert load(layout).folder == own_store.folder, "the next one finds it there"
    assert load(layout, digest=own_store.digest).folder == own_store.folder
    trusted = load(layout, trust=True)
    assert trusted.folder == foreign_store
    assert (all_pictures(trusted)[:12] == 0).all()


def test_own_store_in_the_data_folder_is_used_until_altered(layout):
    first = load(layout)
    assert first.folder.parent == layout / ".cpgan"
    assert first.own_only
    assert load(layout).folder == first.folder
    poison(first.folder)
    assert load(layout).folder != first.folder


def test_store_in_a_named_cache_folder_is_used_and_checked(layout, tmp_path, monkeypatch):
    monkeypatch.setenv(ownership.KEY_VARIABLE, OTHER_KEY)
    first = load(layout, cache_dir=tmp_path / "named")
    monkeypatch.setenv(ownership.KEY_VARIABLE, OWN_KEY)
    assert load(layout, cache_dir=tmp_path / "named").folder == first.folder
    (first.folder / "train.arrow").write_bytes(bytes((first.folder / "train.arrow").stat().st_size))
    with pytest.raises(InputError, match=r"train\.arrow is damaged"):
        load(layout, cache_dir=tmp_path / "named")


def test_player_with_the_drivers_key_uses_the_drivers_store(layout, tmp_path, monkeypatch):
    driver = load(layout)
    key = ownership.owner_key()
    assert key is not None
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv(ownership.KEY_VARIABLE, key.hex())
    monkeypatch.setattr(node, "get_or_build", lambda *_, **__: pytest.fail("it is prepared again"))
    player = pin_store(configure(layout), driver)
    assert data.load(player, progress=False).folder == driver.folder


def test_without_a_key_stores_are_in_the_user_cache(layout, tmp_path, monkeypatch):
    """Without a key, no process could recognise its own stores in the data folder."""
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert ownership.owner_key() is None
    driver = load(layout)
    assert driver.folder.parent == tmp_path / "cache" / "cpgan_ray"
    assert not (layout / ".cpgan").exists()
    monkeypatch.setattr(node, "get_or_build", lambda *_, **__: pytest.fail("it is prepared again"))
    assert data.load(pin_store(configure(layout), driver), progress=False).folder == driver.folder


def test_without_a_home_stores_are_in_a_private_temporary_folder(layout, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path))
    driver = load(layout)
    temporary_folder = tmp_path / f"cpgan_ray-{os.getuid()}"
    assert driver.folder.parent == temporary_folder
    assert temporary_folder.stat().st_mode & 0o777 == 0o700
    assert data.load(pin_store(configure(layout), driver), progress=False).folder == driver.folder
    shutil.rmtree(temporary_folder)
    temporary_folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="is not your own private folder: set HOME or XDG_CACHE_HOME"):
        load(layout)


def test_shards_that_came_with_the_data_are_written_again(layout, monkeypatch):
    digest = load(layout).digest
    shutil.rmtree(layout / ".cpgan" / digest)
    partial = layout / ".cpgan" / f"{digest}.partial"
    partial.mkdir()
    (partial / "train-00000000.arrow").write_bytes(b"ARROW1\0\0" * 50)
    (partial / "train.arrow").write_bytes(b"ARROW1\0\0" * 50)
    (partial / "train.json").write_text("[" * 100_000)
    monkeypatch.setattr(pa, "memory_map", open_only_own(pa.memory_map, b"ARROW1\0\0ARROW1"))
    np.testing.assert_array_equal(all_pictures(load(layout)), as_read())


def open_only_own(original: Callable[..., Any], foreign: bytes) -> Callable[..., Any]:
    def opened(path: str) -> Any:
        assert not Path(path).read_bytes().startswith(foreign), "a foreign file is parsed"
        return original(path)

    return opened


def test_projection_that_came_with_the_data_is_computed_again(layout, tmp_path, monkeypatch, capsys):
    dataset = load(layout)
    expected = projection(dataset, components=4, progress=False)
    folder = dataset.folder / "projection-4"
    assert ownership.is_own(folder / "summary.json")
    mean = np.array(expected.mean)
    np.save(folder / "mean.npy", np.zeros_like(mean))
    summary = json.loads((folder / "summary.json").read_text())
    summary["sha256"]["mean"] = store.checksum(folder / "mean.npy")
    (folder / "summary.json").write_text(json.dumps(summary))
    capsys.readouterr()
    np.testing.assert_array_equal(projection(dataset, components=4, progress=False).mean, mean)
    assert "projection-4 was not made by you and is computed again" in capsys.readouterr().err
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="projection-4 is a symbolic link"):
        projection(dataset, components=4, progress=False)


@pytest.mark.parametrize("name", [".cpgan", "DIGEST", "DIGEST.partial", "DIGEST.lock"])
def test_link_in_place_of_a_folder_or_lock_is_refused_or_ignored(layout, tmp_path, name):
    digest = load(layout).digest
    shutil.rmtree(layout / ".cpgan")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("theirs")
    path = layout / ".cpgan" if name == ".cpgan" else layout / ".cpgan" / name.replace("DIGEST", digest)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(victim / "file" if name.endswith(".lock") else victim)
    if name == "DIGEST":
        assert load(layout).folder.parent == tmp_path / "cache" / "cpgan_ray"
    else:
        with pytest.raises(InputError, match="is a (symbolic )?link"):
            load(layout)
    assert (victim / "file").read_text() == "theirs"
    assert [p.name for p in victim.iterdir()] == ["file"]


# Malicious manifests

BYTES = 2**63


def positions(change: Callable[[list[list[int]]], list[list[int]]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "manifest.json").read_text())["splits"]["train"]
        batches = change(values["batches"])
        reseal(folder, "train", batches=batches, rows=sum(batch[0] for batch in batches))

    return spoil


def first(batches: list[list[int]], column: int, value: int) -> list[list[int]]:
    return [[*batches[0][:column], value, *batches[0][column + 1 :]], *batches[1:]]


BAD_MANIFESTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "more rows": (positions(lambda b: first(b, 0, b[0][0] + 10_000)), "a position or a length beyond its end"),
    "a few more rows": (positions(lambda b: first(b, 0, b[0][0] + 1)), "two columns that share bytes"),
    "rows without end": (positions(lambda b: first(b, 0, BYTES - 1)), "a position or a length beyond its end"),
    "rows beyond numbers": (positions(lambda b: first(b, 0, 2**70)), "a position beyond its end"),
    "no rows": (positions(lambda b: first(b, 0, 0)), "a position or a length beyond its end"),
    "negative rows": (positions(lambda b: first(b, 0, -1)), "a position or a length beyond its end"),
    "pictures before the file": (positions(lambda b: first(b, 1, -64)), "a position or a length beyond its end"),
    "pictures after the file": (positions(lambda b: first(b, 1, BYTES - 64)), "a position or a length beyond its end"),
    "pictures over the end": (lambda f: positions(lambda b: first(b, 1, (f / "train.arrow").stat().st_size - 8))(f), "ends beyond"),
    "identities between numbers": (positions(lambda b: first(b, 2, b[0][2] + 1)), "a column that is not aligned"),
    "labels on the pictures": (positions(lambda b: first(b, 3, b[0][1])), "two columns that share bytes"),
    "one batch many times": (positions(lambda b: b[:1] * 5000), "two columns that share bytes"),
    "a column fewer": (positions(lambda b: [batch[:-1] for batch in b]), "batches of 5 columns"),
    "a column more": (positions(lambda b: [[*batch, 8] for batch in b]), "batches of 5 columns"),
    "not all batches": (lambda f: reseal(f, "train", batches=[]), "35 rows, but its batches have 0"),
    "large pictures": (lambda f: reseal(f, image_shape=[2**40, 2**40, 3]), "pictures of shape"),
    "no pictures": (lambda f: reseal(f, image_shape=[0, 6, 3]), "pictures of shape"),
    "other numbers": (lambda f: reseal(f, dtype="float32"), "share bytes|beyond its end|not aligned"),
    "objects": (lambda f: reseal(f, dtype="object"), "manifest.json cannot be read"),
    "labels of no class": (
        lambda f: reseal(f, info={"classes": {"Smiling": ["only"]}}),
        "label 'Smiling' has 1 class names",
    ),
    "more labels": (lambda f: reseal(f, label_names=["a"] * 100_000), "batches of 100002 columns"),
    "a large manifest": (lambda f: reseal(f, skipped=["x" * 1000] * 70_000), "manifest.json has more than"),
}


@pytest.fixture(scope="module")
def intact_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.data.conftest import build

    folder = tmp_path_factory.mktemp("kept") / "store"
    build(folder)
    return folder


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_manifest_that_does_not_fit_its_file_is_refused(intact_store, tmp_path, case):
    spoil, expected = BAD_MANIFESTS[case]
    folder = Path(shutil.copytree(intact_store, tmp_path / "store"))
    spoil(folder)
    for opened in (lambda: store.open_store(folder), lambda: store.dataset.open_split(folder / "train.arrow")):
        with pytest.raises(InputError, match=expected) as error:
            opened()
        assert str(folder) in str(error.value)
        assert len(str(error.value)) < 600


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data())
def test_any_positions_are_refused_or_inside_the_file(intact_store, data_strategy):
    manifest = store.read_manifest(intact_store)
    size = manifest.splits["train"].bytes
    number = st.integers(-8, size + 8) | st.sampled_from([0, 8, 64, 2**31, 2**62, 2**63, -(2**63)])
    batches = data_strategy.draw(st.lists(st.tuples(*[number] * 6), max_size=3))
    if data_strategy.draw(st.booleans()):
        batches = [*manifest.splits["train"].batches, *batches]
    entry = store.manifest.SplitFile(sum(b[0] for b in batches), size, "", tuple(batches))
    fault = store.dataset.layout_problem(entry, size, [144, 8, 1, 1, 1], [1, 8], (8, 6, 3))
    taken = sorted((s, s + rows * w) for rows, *starts in batches for s, w in zip(starts, [144, 8, 1, 1, 1], strict=True))
    inside = all(0 <= start < end <= size for start, end in taken)
    apart = all(view[1] <= other[0] for view, other in zip(taken, taken[1:], strict=False))
    assert (fault is None) == (inside and apart and all(batch[2] % 8 == 0 for batch in batches))


HOSTILE = """
import sys
from pathlib import Path
from cpgan_ray.data import store
from cpgan_ray.errors import InputError
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        dataset = store.open_store(folder)
        print(folder.name, len(dataset.train), int(dataset.train.take(__import__("numpy").arange(len(dataset.train))).sum()))
    except InputError as e:
        print(folder.name, "refused")
"""


def test_malicious_arrow_files_are_never_parsed(intact_store, tmp_path):
    """Files that crashed the process or filled its memory when Arrow read them: compressed buffers, damaged metadata."""
    stores = tmp_path / "stores"
    right = (intact_store / "train.arrow").read_bytes()
    schema = pa.schema([("image", pa.fixed_shape_tensor(pa.uint8(), (8, 6, 3))), ("identity", pa.int64())])
    with pa.OSFile(str(tmp_path / "packed"), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            storage = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(144 * 200_000, np.uint8)), 144)
            image = pa.ExtensionArray.from_storage(schema.field("image").type, storage)
            writer.write_batch(pa.record_batch([image, pa.array(np.zeros(200_000, np.int64))], schema=schema))
    rng = np.random.default_rng(0)
    cases = {"packed": (tmp_path / "packed").read_bytes()}
    for number in range(20):  # metadata is at the end and before each batch
        content = bytearray(right)
        for at in [*rng.integers(0, 400, 8), *(len(right) - 1 - rng.integers(0, 900, 8))]:
            content[at] = rng.integers(0, 256)
        cases[f"damaged-{number:02d}"] = bytes(content)
    for name, content in cases.items():
        folder = Path(shutil.copytree(intact_store, stores / name))
        (folder / "train.arrow").write_bytes(content)
        reseal(folder, "train", bytes=len(content), sha256=store.checksum(folder / "train.arrow"))
    ran = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(stores)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(cases)
    assert "packed refused" in lines
    assert all(line.endswith("refused") or line.split()[1] == "35" for line in lines), "its rows are those of the file, no more"
