"""Tests of how a node gets its store: from a folder, a URI or the shared cache, once, completely and correctly."""

import gzip
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpgan_ray import cli, data
from cpgan_ray.common.credentials import export_env
from cpgan_ray.config import Config, DataConfig, from_json, to_json
from cpgan_ray.data import pca as projections
from cpgan_ray.data import pin_store, store
from cpgan_ray.data.datasets import faces, mnist
from cpgan_ray.data.pca import projection
from cpgan_ray.data.sync import remote_files
from cpgan_ray.data.sync.shared_cache import SharedCache
from cpgan_ray.errors import InputError
from tests.data import bucket

KEY, SECRET = "AKEXAMPLE", "s3cret/of+this"
QUIET = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing"}


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment after each test. It must be the real one, because pyarrow's S3 client reads it."""
    before = os.environ.copy()
    for name in export_env():
        del os.environ[name]
    os.environ.update(QUIET)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def drawn_faces(tmp_path_factory) -> Path:
    """20 people in the CelebA layout."""
    folder = tmp_path_factory.mktemp("drawn") / "celeba"
    faces.write_faces(folder, num_identities=20, pictures_per_identity=2, processes=1)
    return folder


@pytest.fixture
def layout(drawn_faces, tmp_path) -> Path:
    return Path(shutil.copytree(drawn_faces, tmp_path / "buckets" / "pictures" / "celeba"))


@pytest.fixture
def s3(layout, tmp_path) -> Iterator[bucket.Store]:
    """An object store with two buckets: `pictures`, which has the layout, and `stores`."""
    (tmp_path / "buckets" / "stores").mkdir()
    with bucket.running(tmp_path / "buckets") as running:
        yield running


def configure(cache: Path, source: str | Path | None = None, shared: str | Path | None = None, **changes: Any) -> Config:
    settings = DataConfig(**{"dataset": "celeba", "image_size": 16, "final_fraction": 0.0, **changes})
    return Config(data_dir=source, cache_dir=cache, shared_cache=shared, data=settings)


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("train.arrow", "val.arrow", "test.arrow", "final.arrow")}


def below(folder: Path) -> list[str]:
    """Names of all files except locks."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


URIS: dict[str, Callable[[bucket.Store, Path], str]] = {
    "file": lambda s3, layout: layout.as_uri(),
    "s3": lambda s3, layout: s3.uri("pictures/celeba"),
}


# Sources behind a URI


@pytest.mark.parametrize("scheme", URIS)
def test_uri_source_makes_the_same_store_as_the_folder(layout, s3, tmp_path, capsys, scheme):
    expected = data.load(configure(tmp_path / "one", layout), progress=False)
    (layout / ".cpgan" / "junk").mkdir(parents=True)
    (layout / ".cpgan" / "junk" / "x").write_text("a store that somebody has made there")
    (layout / "notes.txt").write_text("not a part of it")
    uri = URIS[scheme](s3, layout)
    loaded = data.load(configure(tmp_path / "two", uri))
    assert loaded.digest == expected.digest
    assert files(loaded.folder) == files(expected.folder)
    log = capsys.readouterr().err
    assert re.search(rf"^fetched 43 files, \d\.\d MB, from {re.escape(uri)} into {tmp_path}/two/sources/\w{{16}}$", log, re.M)
    data.load(configure(tmp_path / "two", uri))
    assert capsys.readouterr().err == "", "nothing is fetched again"


def test_files_are_fetched_unchanged(tmp_path):
    """Also files with a name that ends in .gz."""
    source = tmp_path / "mnist"
    source.mkdir()
    shapes = {
        "train-images-idx3": (60, 28, 28),
        "train-labels-idx1": (60,),
        "t10k-images-idx3": (20, 28, 28),
        "t10k-labels-idx1": (20,),
    }
    for name, shape in shapes.items():
        values = np.arange(np.prod(shape)).reshape(shape) % 10
        content = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + values.astype(np.uint8).tobytes()
        (source / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
    settings = {"dataset": "mnist", "image_size": 28}
    expected = data.load(configure(tmp_path / "one", source, **settings), progress=False)
    loaded = data.load(configure(tmp_path / "two", source.as_uri(), **settings), progress=False)
    assert (loaded.digest, files(loaded.folder)) == (expected.digest, files(expected.folder))
    fetched = list((tmp_path / "two" / "sources").rglob("*.gz"))
    assert len(fetched) == len(mnist.FILES)
    assert [path.read_bytes() for path in fetched] == [(source / path.name).read_bytes() for path in fetched]


def test_interrupted_fetch_continues_with_the_missing_files(s3, tmp_path):
    config = configure(tmp_path / "cache", s3.uri("pictures/celeba"))
    s3.denied = {("GET", "pictures/celeba/img_align_celeba/00003")}  # the last eleven
    with pytest.raises(InputError, match=r"data_dir is s3://pictures/celeba\S* which cannot be read \(AWS Error ACCESS_DENIED"):
        data.load(config, progress=False)
    remaining = {name for name in below(tmp_path / "cache") if name.endswith(".jpg") and "/." not in name}
    assert 0 < len(remaining) <= 30
    s3.denied, before = set(), s3.reads.copy()
    data.load(config, progress=False)
    fetched_twice = [
        name for name, count in (s3.reads - before).items() if before[name] and count and name.split("/")[-1] in str(remaining)
    ]
    assert fetched_twice == []
    assert not [name for name in below(tmp_path / "cache") if name.endswith((".part", ".tmp"))]


def test_file_that_shrinks_during_the_copy_is_refused(tmp_path, layout):
    remote = remote_files.RemoteFolder(layout.as_uri(), option="data_dir")
    with pytest.raises(
        InputError, match=r"list_attr_celeba\.txt has \d+ bytes instead of 9+: it was changed during the copy; try again"
    ):
        remote.copy("list_attr_celeba.txt", tmp_path / "copy", size=99999)
    assert not (tmp_path / "copy").exists()


def test_long_fetch_logs_progress(tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_bytes(bytes(5_000_000))
    clock = itertools.count(0, 6)
    monkeypatch.setattr(store.files.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 1_000_000)
    remote = remote_files.RemoteFolder(tmp_path / "there", option="data_dir")
    remote_files.fetch_all(remote, dict.fromkeys(remote.files(), tmp_path / "copy"), progress=True)
    assert capsys.readouterr().err.splitlines()[0] == f"fetching {tmp_path}/there: 2 of 5 MB, 18 s"


def test_failed_fetch_stops_the_copies_in_progress(tmp_path, monkeypatch):
    """One file cannot be read, while another one takes very long."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "large").write_bytes(bytes(50_000))
    (tmp_path / "there" / "refused").write_text("x")
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 1)
    remote, copy = remote_files.RemoteFolder(tmp_path / "there", option="data_dir"), remote_files.RemoteFolder.copy
    begun = threading.Event()

    def slow(self: remote_files.RemoteFolder, name: str, path: Path, *, size: int, advance: Callable[[int], None]) -> None:
        def advance_slowly(count: int) -> None:
            begun.set()
            advance(count)
            time.sleep(0.01)

        if name == "refused":
            begun.wait()
            raise InputError("refused")
        copy(self, name, path, size=size, advance=advance_slowly)

    monkeypatch.setattr(remote_files.RemoteFolder, "copy", slow)
    started = time.monotonic()
    with pytest.raises(InputError, match="refused"):
        remote_files.fetch_all(remote, {file: tmp_path / "copies" / file.name for file in remote.files()}, progress=False)
    assert time.monotonic() - started < 100, "fifty thousand bytes would take 500 s"
    assert not (tmp_path / "copies" / "large").exists()


def test_changed_source_is_fetched_again(layout, tmp_path):
    config = configure(tmp_path / "cache", layout.as_uri(), split="identity")
    first = data.load(config, progress=False)
    picture, attributes = layout / "img_align_celeba" / "000007.jpg", layout / "list_attr_celeba.txt"
    content = bytearray(picture.read_bytes())
    content[-40:-20] = bytes(20)
    picture.write_bytes(content)  # the same number of bytes
    assert data.load(config, progress=False).digest == first.digest, "names and sizes are what a digest knows of pictures"
    (fetched,) = (tmp_path / "cache" / "sources").rglob("000007.jpg")
    assert fetched.read_bytes() == bytes(content)
    attributes.write_text(attributes.read_text().replace(" -1", "  0"))
    second = data.load(config, progress=False)
    assert second.digest not in {first.digest}
    (layout / "img_align_celeba" / "000008.jpg").unlink()
    with pytest.raises(InputError, match="1 of the 40 pictures .* are missing"):
        data.load(config, progress=False)


@pytest.mark.parametrize("zipped", ["img_align_celeba.zip", "Img/img_align_celeba.zip"])
def test_zip_is_fetched_if_there_is_no_picture_folder(layout, tmp_path, zipped):
    expected = data.load(configure(tmp_path / "one", layout), progress=False)
    (layout / "Img").mkdir()
    shutil.make_archive(str(layout / zipped.removesuffix(".zip")), "zip", layout, "img_align_celeba")
    assert not [n for n in _fetched(layout, tmp_path / "two") if n.endswith(".zip")]
    shutil.rmtree(layout / "img_align_celeba")
    assert zipped in _fetched(layout, tmp_path / "three")
    loaded = data.load(configure(tmp_path / "three", layout.as_uri()), progress=False)
    assert files(loaded.folder) == files(expected.folder)


def _fetched(layout: Path, cache: Path) -> list[str]:
    data.load(configure(cache, layout.as_uri()), progress=False)
    (source,) = (path for path in (cache / "sources").iterdir() if path.is_dir())
    return below(source)


def test_several_processes_of_a_node_fetch_once(s3, tmp_path):
    config = configure(tmp_path / "cache", s3.uri("pictures/celeba"))
    with ThreadPoolExecutor(6) as pool:
        folders = {*pool.map(lambda _: data.prepare(config, progress=False), range(6))}
    assert len(folders) == 1
    texts = {name: count for name, count in s3.reads.items() if name.endswith(".txt")}
    assert texts == dict.fromkeys(texts, 1)
    assert len(texts) == 3


# Shared stores


@pytest.mark.parametrize("address", ["folder", "file", "s3"])
def test_node_fetches_a_shared_store_without_the_source(layout, s3, tmp_path, capsys, monkeypatch, address):
    shared = {"folder": tmp_path / "shared", "file": (tmp_path / "shared").as_uri(), "s3": s3.uri("stores/deep")}[address]
    first = data.load(configure(tmp_path / "one", layout, shared))
    basis = projection(first, components=8)
    log = capsys.readouterr().err
    assert f"added {first.digest} to {shared}\n" in log
    assert re.search(rf"^added {first.digest}/projection-8-\w{{64}} to {re.escape(str(shared))}$", log, re.M)
    monkeypatch.setattr(projections, "_compute", None)  # must not be computed again
    for config in (
        configure(tmp_path / "two", None, shared, digest=first.digest),
        configure(tmp_path / "three", tmp_path / "not on this node", shared, digest=first.digest),
    ):
        loaded = data.load(config)
        assert f"fetched {first.digest} from {shared}\n" in capsys.readouterr().err
        assert files(loaded.folder) == files(first.folder)
        assert np.array_equal(projection(loaded, components=8).coordinates, basis.coordinates)
        assert "fetched" in capsys.readouterr().err
        assert loaded.folder == config.cache_dir / first.digest
        assert data.load(config).folder == loaded.folder
        assert capsys.readouterr().err == ""


def test_existing_store_is_added_to_the_shared_cache(layout, tmp_path):
    digest = data.load(configure(tmp_path / "one", layout), progress=False).digest
    data.load(configure(tmp_path / "one", layout, tmp_path / "shared"), progress=False)
    assert data.load(configure(tmp_path / "two", None, tmp_path / "shared", digest=digest), progress=False).digest == digest


def test_node_gets_the_digest_of_a_uri_from_the_shared_cache(layout, s3, tmp_path):
    uri, shared = s3.uri("pictures/celeba"), s3.uri("stores")
    first = data.load(configure(tmp_path / "one", uri, shared), progress=False)
    s3.reads.clear()
    second = data.load(configure(tmp_path / "two", uri, shared), progress=False)
    assert files(second.folder) == files(first.folder)
    assert {name.partition("/")[0] for name in s3.reads} == {"stores"}, "nothing of the source is read"
    assert below(tmp_path / "two") == [
        f"{first.digest}/{name}" for name in sorted([*files(first.folder), "manifest.json", "manifest.json.owner", store.VERIFIED])
    ]
    other = data.load(configure(tmp_path / "two", uri, shared, image_size=12), progress=False)
    assert other.image_shape == (12, 12, 3)
    attributes = layout / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace(" -1", "  0"))  # the same number of bytes
    os.utime(attributes, (1, 1))
    third = data.load(configure(tmp_path / "three", uri, shared), progress=False)
    assert third.digest != first.digest, "a source that has changed is another"


def test_incomplete_shared_store_is_completed(layout, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    first = data.load(configure(tmp_path / "one", layout, shared), progress=False)
    (shared / first.digest / "manifest.json").unlink()
    gone, intact = (next((shared / first.digest).glob(f"*-{name}.arrow")) for name in ("train", "val"))
    gone.write_bytes(gone.read_bytes()[:100])
    stamp = intact.stat().st_mtime_ns
    config = configure(tmp_path / "two", layout, shared)
    assert files(data.load(config, progress=False).folder) == files(first.folder)
    assert intact.stat().st_mtime_ns == stamp
    third = data.load(configure(tmp_path / "three", None, shared, digest=first.digest), progress=False)
    assert files(third.folder) == files(first.folder)


def test_interrupted_fetch_of_a_store_continues(layout, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "MAX_PARALLEL_COPIES", 1)
    first = data.load(configure(tmp_path / "one", layout, s3.uri("stores")), progress=False)
    config = configure(tmp_path / "two", None, s3.uri("stores"), digest=first.digest)
    (last,) = (tmp_path / "buckets" / "stores" / first.digest).glob("*-final.arrow")
    s3.denied = {("GET", f"stores/{first.digest}/{last.name}")}
    with pytest.raises(InputError, match=r"shared_cache is s3://stores\?\S*, which cannot be read \(AWS Error ACCESS_DENIED"):
        data.load(config, progress=False)
    assert not (tmp_path / "two" / first.digest).exists()
    assert {"manifest.json", "train.arrow", "val.arrow", "test.arrow"} <= {*below(tmp_path / "two" / f"{first.digest}.fetched")}
    s3.denied = set()
    s3.reads.clear()
    assert files(data.load(config, progress=False).folder) == files(first.folder)
    assert {name.split("-")[-1] for name in s3.reads} == {f"stores/{first.digest}/manifest.json", "final.arrow"}
    assert not (tmp_path / "two" / f"{first.digest}.fetched").exists()


def flip(path: Path, at: int = 500) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def reseal(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    del values["checksum"]
    path.write_text(store.manifest_text(values))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "another byte": (lambda f: flip(next(f.glob("*-val.arrow"))), "val.arrow is damaged (checksum mismatch)"),
    "a cut file": (lambda f: next(f.glob("*-val.arrow")).write_bytes(b"x"), "val.arrow is damaged (checksum mismatch)"),
    "no file": (lambda f: next(f.glob("*-test.arrow")).unlink(), "test.arrow is missing"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    "another store's manifest": (
        lambda f: reseal(f / "manifest.json", digest="0" * 16),
        f"manifest.json belongs to store '{'0' * 16}'",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_shared_store_is_refused_and_leaves_no_files(layout, tmp_path, case):
    spoil, expected = DAMAGE[case]
    shared = tmp_path / "shared"
    first = data.load(configure(tmp_path / "one", layout, shared), progress=False)
    spoil(shared / first.digest)
    for config in (
        configure(tmp_path / "two", None, shared, digest=first.digest),
        configure(tmp_path / "two", layout, shared),
    ):
        with pytest.raises(InputError) as error:
            data.load(config, progress=False)
        message = str(error.value)
        assert message.startswith(f"shared store {shared}/{first.digest}: {expected}"), message
        assert message.endswith(": delete this folder, it will be added again")
        assert message.isprintable()
        assert below(tmp_path / "two") == []
    shutil.rmtree(shared / first.digest)
    assert files(data.load(configure(tmp_path / "two", layout, shared), progress=False).folder) == files(first.folder)


def test_damaged_local_store_is_not_shared(layout, tmp_path):
    first = data.load(configure(tmp_path / "one", layout), progress=False)
    flip(first.folder / "train.arrow")
    with pytest.raises(InputError, match=rf"prepared store {first.folder}: train.arrow is damaged"):
        data.load(configure(tmp_path / "one", layout, tmp_path / "shared"), progress=False)
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"digest": "../../etc"}', b'{"digest": 7}'])
def test_damaged_source_record_is_refused(layout, tmp_path, content):
    config = configure(tmp_path / "one", layout.as_uri(), tmp_path / "shared")
    data.load(config, progress=False)
    (record,) = (tmp_path / "shared" / "sources").iterdir()
    record.write_bytes(content)
    with pytest.raises(InputError) as error:
        data.load(config, progress=False)
    assert str(error.value) == f"shared store {record} is damaged: delete this file, it will be added again"


def test_two_nodes_may_share_a_store_at_the_same_time(layout, tmp_path):
    shared = tmp_path / "shared"
    start = threading.Barrier(4)

    def node(number: int) -> Path:
        start.wait()
        return data.prepare(configure(tmp_path / str(number), layout, shared), progress=False)

    with ThreadPoolExecutor(4) as pool:
        folders = [*pool.map(node, range(4))]
    loaded = data.load(configure(tmp_path / "taker", None, shared, digest=folders[0].name), progress=False)
    assert files(loaded.folder) == files(folders[0])
    assert not [name for name in below(shared) if name.endswith((".part", ".tmp"))]


def test_stores_with_different_bytes_do_not_mix_in_the_shared_cache(tmp_path, make_store):
    """Two stores with one digest and different bytes: whichever manifest stays, all files that it lists are complete."""
    shared = SharedCache(tmp_path / "shared")
    how: dict[str, Any] = {"manifest": store.MANIFEST, "checksums": store.checksums, "progress": False}
    for number, shade in enumerate((40, 90)):
        folder = tmp_path / str(number) / "d1"
        make_store(folder, images=np.full((50, 8, 6, 3), shade, np.uint8))
        shared.put("d1", folder, **how)
        (tmp_path / "shared" / "d1" / "manifest.json").unlink()
    manifests = [(tmp_path / str(number) / "d1" / "manifest.json").read_bytes() for number in (0, 1)]
    for number, shade in enumerate((40, 90)):
        (tmp_path / "shared" / "d1" / "manifest.json").write_bytes(manifests[number])
        taken = tmp_path / f"taken {number}"
        assert shared.take("d1", taken, **how)
        assert (store.open_store(taken).train.take(np.arange(35)) == shade).all()


def test_read_only_shared_cache_logs_warnings_only(layout, s3, tmp_path, capsys):
    s3.denied = {("PUT", "stores"), ("POST", "stores")}
    loaded = data.load(configure(tmp_path / "one", s3.uri("pictures/celeba"), s3.uri("stores")), progress=False)
    assert len(loaded.train)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"warning: {loaded.digest} is not shared: shared_cache is s3://stores?")
    assert "which cannot be written to (AWS Error ACCESS_DENIED during" in lines[0]
    assert lines[1].startswith(f"warning: the source of {loaded.digest} is not recorded: shared_cache is s3://stores?")


# Digests


def test_source_with_another_digest_is_refused(layout, tmp_path):
    for source in (layout, layout.as_uri()):
        with pytest.raises(InputError) as error:
            data.load(configure(tmp_path / "cache", source, digest="0" * 16), progress=False)
        assert re.fullmatch(
            rf"data.digest is 0{{16}}, but the celeba data at {source} make store \w{{16}}: give every node the same data, or the "
            "store itself with --shared-cache",
            str(error.value),
        )
        assert not [name for name in below(tmp_path / "cache") if name.endswith(".arrow")]


def test_digest_without_store_or_source_raises(tmp_path):
    with pytest.raises(InputError) as error:
        data.load(configure(tmp_path / "cache", None, tmp_path / "shared", digest="0" * 16))
    assert str(error.value) == (
        f"store 0000000000000000 is not in {tmp_path}/cache nor in the shared cache, and it cannot be made: data_dir is None; the "
        "celeba data set is read from a folder: give it with --data-dir"
    )


def test_digest_of_a_store_with_other_settings_raises(layout, tmp_path):
    loaded = data.load(configure(tmp_path / "cache", layout), progress=False)
    with pytest.raises(InputError) as error:
        data.load(configure(tmp_path / "cache", layout, digest=loaded.digest, image_size=24))
    assert str(error.value) == (
        f"data.digest is {loaded.digest}, a store made with image_size 16, the run has 24: give the same value, or leave "
        "--data.digest out"
    )


@pytest.mark.parametrize("digest", ["7", "../../0123456789", "0" * 15 + "G"])
def test_digest_with_a_wrong_format_raises(digest):
    with pytest.raises(InputError, match="data.digest is .*16 digits of 0-9 and a-f"):
        DataConfig(digest=digest)


def test_renamed_store_is_refused(layout, tmp_path):
    loaded = data.load(configure(tmp_path / "cache", layout), progress=False)
    loaded.folder.rename(tmp_path / "cache" / ("0" * 16))
    with pytest.raises(InputError, match=rf"prepared store \S+/0{{16}}: it holds store {loaded.digest}: delete this folder"):
        data.load(configure(tmp_path / "cache", digest="0" * 16), progress=False)


# Caches


def test_cache_dir_expands_variables_of_the_node(layout, tmp_path, monkeypatch):
    config = configure(Path("$NODE_DISK/cache"), layout)
    for node in ("a", "b"):
        monkeypatch.setenv("NODE_DISK", str(tmp_path / node))
        loaded = data.load(config, progress=False)
        assert loaded.folder == tmp_path / node / "cache" / loaded.digest
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.prepare(configure(Path("~/cache"), layout), progress=False).parent == tmp_path / "home" / "cache"


@pytest.mark.parametrize("cache_dir", ["$NODE_DISK/cache", "~nobody-of-that-name/cache"])
def test_cache_dir_that_cannot_be_expanded_names_the_node(layout, cache_dir):
    with pytest.raises(
        InputError, match=rf"cache_dir is {re.escape(cache_dir)}, which cannot be expanded on \S+: set .*another --cache-dir"
    ):
        data.load(configure(Path(cache_dir), layout))


def test_command_line_keeps_variables_and_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["celeba", "--data-dir", "s3://b/celeba?region=x", "--cache-dir", "$SCRATCH/cache", "--shared-cache", "stores"]
    config = cli.parse(flags, default="smoke", description="")
    assert (config.data_dir, config.cache_dir, config.shared_cache) == (
        "s3://b/celeba?region=x",
        Path("$SCRATCH/cache"),
        tmp_path / "stores",
    )
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert cli.parse(["--data-dir", "s3://b/c"], default="smoke", description="").data.dataset == "celeba"
    assert cli.parse(["--cache-dir", "~/x"], default="smoke", description="").cache_dir == Path("~/x")


def test_stores_of_uris_and_faces_are_in_the_user_cache(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Config(data_dir=layout.as_uri(), data=DataConfig(dataset="celeba", image_size=16, final_fraction=0.0))
    assert data.prepare(config, progress=False).parent == tmp_path / "cpgan_ray"


def test_data_set_unpickled_on_another_node_gets_its_store(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "a"))
    first = data.load(configure(Path("$NODE_DISK/cache"), layout, tmp_path / "shared"), progress=False)
    packed = pickle.dumps(first)
    assert pickle.loads(packed).folder == first.folder, "on the same node"
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "b"))
    (tmp_path / "a").rename(tmp_path / "another machine")
    layout.rename(tmp_path / "too")
    moved = pickle.loads(packed)
    assert moved.folder == tmp_path / "b" / "cache" / first.digest
    assert files(moved.folder) == files(tmp_path / "another machine" / "cache" / first.digest)
    assert np.array_equal(moved.test.labels, first.test.labels)
    assert pin_store(configure(tmp_path), moved).data.digest == first.digest


# Unreachable sources


def test_secrets_in_a_uri_are_used_but_never_stored(layout, s3, tmp_path, capsys):
    quoted = SECRET.replace("/", "%2F").replace("+", "%2B")
    uri = s3.uri("pictures/celeba", credentials=f"{KEY}:{quoted}@")
    config = configure(tmp_path / "cache", uri, s3.uri("stores", credentials=f"{KEY}:{quoted}@"))
    loaded = data.load(config)
    assert KEY in s3.keys
    with pytest.raises(SystemExit):
        cli.run(lambda: data.load(configure(tmp_path / "cache", uri.replace("celeba", "nothing"))) and None)
    log = capsys.readouterr()
    assert "error: data_dir is s3://***@pictures/nothing" in log.err
    written = {path: path.read_bytes() for top in ("cache", "buckets") for path in (tmp_path / top).rglob("*") if path.is_file()}
    texts = {
        "said": (log.err + log.out).encode(),
        **{str(path): content + str(path).encode() for path, content in written.items()},
    }
    assert len(texts) > 50
    assert [where for where, text in texts.items() if any(s.encode() in text for s in (SECRET, quoted, KEY))] == []
    assert not any(s in pickle.dumps(loaded.folder).decode("latin-1") for s in (SECRET, quoted))


UNREACHABLE = {
    "unknown scheme": (
        "nowhere://x/y",
        r"data_dir is nowhere://x/y, which cannot be read \(Unrecognized filesystem type in URI: nowhere",
    ),
    "no folder": ("file://{tmp}/nowhere", r"data_dir is file://\S+/nowhere, which has no files: give a folder that exists"),
    "a file": (
        "file://{tmp}/buckets/pictures/celeba/list_attr_celeba.txt",
        r"list_attr_celeba.txt, which cannot be read \(Not a directory\)",
    ),
    "no bucket": ("{s3:none/celeba}", r"data_dir is s3://none/celeba\S*, which has no files: give a folder that exists"),
    "nothing there": ("{s3:pictures/nothing}", r"data_dir is s3://pictures/nothing\S*, which has no files"),
    "no permission": (
        "{s3:locked/celeba}",
        r"data_dir is s3://locked/celeba\S*, which cannot be read \(AWS Error ACCESS_DENIED during \w+ op",
    ),
    "another layout": (
        "file://{tmp}/buckets/pictures",
        r"error: file://\S+/buckets/pictures holds neither img_align_celeba/ nor img_align_celeba.zip",
    ),
    "no host": (
        "s3://b/x?endpoint_override=127.0.0.1:9&scheme=http&region=x",
        r"which cannot be read \(AWS Error NETWORK_CONNECTION during",
    ),
    "a hostile name": (
        "{s3:hostile/celeba}",
        r"data_dir is s3://hostile/celeba\S*, which has a file with the name '\.\./x': a folder cannot",
    ),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_unreachable_source_ends_with_status_2_and_one_line(s3, tmp_path, capsys, monkeypatch, case):
    uri, expected = UNREACHABLE[case]
    s3.denied = {("GET", "locked"), ("HEAD", "locked")}
    (tmp_path / "buckets" / "locked").mkdir()
    if case == "a hostile name":
        (tmp_path / "buckets" / "hostile").mkdir()
        monkeypatch.setattr(bucket.Handler, "list_objects", _hostile_list)
    uri = re.sub(r"\{s3:(.*?)\}", lambda match: s3.uri(match.group(1)), uri).replace("{tmp}", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: data.load(configure(tmp_path / "cache", uri)) and None)
    assert end.value.code == 2
    log = capsys.readouterr().err.splitlines()
    assert [line for line in log if not line.startswith("fetched ")] == [log[-1]]
    assert log[-1].startswith("error: ")
    assert re.search(expected, log[-1]), log[-1]
    assert not [name for name in below(tmp_path / "cache") if "sources/" not in name]


def _hostile_list(handler: bucket.Handler, name: str, prefix: str, *, delimited: bool) -> None:
    entry = "<Contents><Key>celeba/../x</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    handler.respond(200, f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>".encode())


SHARED_UNREACHABLE = {
    "unknown scheme": ("nowhere://x/y", r"shared_cache is nowhere://x/y, which cannot be read \(Unrecognized"),
    "no bucket": ("{s3:none}", r"shared_cache is s3://none\?\S*, whose bucket does not exist: create it, or give another"),
    "no permission": ("{s3:locked}", r"shared_cache is s3://locked\?\S*, which cannot be read \(AWS Error ACCESS_DENIED during"),
}


@pytest.mark.parametrize("case", SHARED_UNREACHABLE)
def test_unreachable_shared_cache_raises_before_the_build(layout, s3, tmp_path, case):
    address, expected = SHARED_UNREACHABLE[case]
    s3.denied = {("GET", "locked"), ("HEAD", "locked")}
    (tmp_path / "buckets" / "locked").mkdir()
    address = re.sub(r"\{s3:(.*?)\}", lambda match: s3.uri(match.group(1)), address)
    with pytest.raises(InputError, match=expected):
        data.load(configure(tmp_path / "cache", layout, address), progress=False)
    assert below(tmp_path / "cache") == []


def test_with_retry_limit_changes_only_google_uris():
    assert remote_files.with_retry_limit("gs://bucket/celeba") == "gs://bucket/celeba?retry_limit_seconds=60"
    assert remote_files.with_retry_limit("gs://b/c?x=y") == "gs://b/c?x=y&retry_limit_seconds=60"
    assert remote_files.with_retry_limit("gs://b?retry_limit_seconds=5") == "gs://b?retry_limit_seconds=5"
    assert remote_files.with_retry_limit("s3://b/c") == "s3://b/c"
