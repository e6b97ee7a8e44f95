"""Tests of reading bundles: those that jobs/export.py writes, and those that were changed."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cpgan_ray.cli import find_target
from cpgan_ray.deploy.bundle import CODEC, MANIFEST, PRIVATIZER, Bundle, is_bundle, read_bundle
from cpgan_ray.deploy.client import Client
from cpgan_ray.deploy.page.description import described
from cpgan_ray.deploy.writing import write_folder, write_zip
from cpgan_ray.errors import InputError
from tests.deploy import bundles


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        read_bundle(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def read_or_refused(path: Path) -> Bundle | None:
    """A bundle; None if it is refused, which must take one line that names it."""
    try:
        return read_bundle(path)
    except InputError as e:
        reason = str(e)
    assert reason.startswith(f"bundle {path}: ")
    assert len(reason.splitlines()) == 1
    return None


def test_folder_and_zip_are_the_same_bundle(bundle_files: dict[str, bytes], bundle: Bundle, tmp_path: Path):
    write_folder(tmp_path / "folder", bundle_files)
    write_zip(tmp_path / "bundle.zip", bundle_files)
    for path in (tmp_path / "folder", tmp_path / "bundle.zip"):
        assert is_bundle(path)
        made = read_bundle(path)
        assert (made.digest, made.files) == (bundle.digest, bundle.files)
        assert made.manifest.labels == bundles.LABELS
        assert made.manifest.preprocessing == bundles.PREPROCESSING


def test_zip_of_equal_files_has_equal_bytes(bundle_files: dict[str, bytes], tmp_path: Path):
    for name in ("a", "b"):
        write_zip(tmp_path / name, bundle_files)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ------------------------------------------------------------------------------------------------------------ changed folders


def link(folder: Path) -> None:
    (folder / PRIVATIZER).unlink()
    (folder / PRIVATIZER).symlink_to("/etc/passwd")


def link_folder(folder: Path) -> None:
    (folder / "report").rename(folder.parent / "elsewhere")
    (folder / "report").symlink_to(folder.parent / "elsewhere")


def pipe(folder: Path) -> None:
    (folder / "codec.json").unlink()
    os.mkfifo(folder / "codec.json")


CHANGES: list[tuple[Callable[[Path], Any], tuple[str, ...]]] = [
    (lambda f: (f / PRIVATIZER).unlink(), ("privatizer.onnx is missing",)),
    (lambda f: (f / MANIFEST).unlink(), ("manifest.json is missing",)),
    (lambda f: (f / PRIVATIZER).write_bytes(b"x" + (f / PRIVATIZER).read_bytes()[1:]), ("privatizer.onnx", "SHA-256")),
    (
        lambda f: (f / PRIVATIZER).write_bytes((f / PRIVATIZER).read_bytes() + b"x"),
        ("privatizer.onnx", "bytes, manifest.json says"),
    ),
    (lambda f: (f / "weights.bin").touch(), ("weights.bin", "which no bundle has")),
    (lambda f: (f / "eve.onnx").touch(), ("manifest.json does not name eve.onnx",)),
    (lambda f: (f / "report" / "faces.png").touch(), ("report/faces.png",)),
    (link, ("privatizer.onnx is a symbolic link",)),
    (link_folder, ("a file 'report'",)),
    (pipe, ("codec.json: it is not a regular file",)),
    (lambda f: (f / MANIFEST).write_bytes(b"[" * 100_000), ("manifest.json",)),
    (lambda f: (f / MANIFEST).write_bytes(b"\xff"), ("manifest.json",)),
    (lambda f: (f / MANIFEST).write_bytes(b" " * (5 << 20)), ("manifest.json", "bytes")),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_changed_folder_is_refused_with_the_file_and_the_reason(folder: Path, change, words):
    change(folder)
    refused(folder, *words)


MANIFESTS: list[tuple[dict[str, Any], str]] = [
    ({"format": 3}, "format is '3', this version reads 1 and 2"),
    ({"format": 2}, "format 2, and only that, has noise"),
    ({"k": 9}, "k is 8, that of manifest.json is 9"),
    ({"k": -1}, "k is not a whole number"),
    ({"k": True}, "k is not a whole number"),
    ({"name": ""}, "name is not a text"),
    ({"labels": []}, "labels are not a list"),
    ({"labels": [{"name": "a", "values": ["0"], "logits": [0, 1]}]}, "a label has no list of 2"),
    ({"labels": [{"name": "a", "values": ["0", "1"], "logits": [0, 2]}]}, "label 'a' does not have the logits"),
    ({"labels": [{"name": "a", "values": ["0", "1"], "logits": [i, i + 1]} for i in (0, 1)]}, "two labels have the same name"),
    ({"preprocessing": None}, "preprocessing is missing"),
    ({"preprocessing": bundles.PREPROCESSING.as_json() | {"crop": 0}}, "preprocessing.crop"),
    ({"preprocessing": bundles.PREPROCESSING.as_json() | {"height": 10**9}}, "height is not a whole number"),
    ({"preprocessing": bundles.PREPROCESSING.as_json() | {"resampling": "nearest"}}, "preprocessing.resampling is 'nearest'"),
    ({"preprocessing": bundles.PREPROCESSING.as_json() | {"dtype": "object"}}, "unknown kind, dtype"),
]


@pytest.mark.parametrize(("changes", "reason"), MANIFESTS)
def test_manifest_with_impossible_values_is_refused(bundle_files, tmp_path, changes, reason):
    refused(bundles.write(tmp_path, bundles.remake(bundle_files, **changes)), "manifest.json", reason)


@pytest.mark.parametrize("entry", [None, {}, {"bytes": 3}, {"bytes": "3", "sha256": "0" * 64}, {"bytes": 3, "sha256": "../x"}])
def test_manifest_without_a_hash_of_a_file_is_refused(bundle_files, tmp_path, entry):
    values = json.loads(bundle_files[MANIFEST])
    values["files"]["codec.json"] = entry
    refused(
        bundles.write(tmp_path, bundle_files | {MANIFEST: json.dumps(values).encode()}),
        "manifest.json",
        "files" if not entry else "",
    )


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "report/../../x", "privatizer.onnx\0", "weights.bin", ""])
def test_manifest_that_names_other_files_is_refused(bundle_files, tmp_path, name):
    values = json.loads(bundle_files[MANIFEST])
    values["files"][name] = {"bytes": 0, "sha256": "0" * 64}
    refused(bundles.write(tmp_path, bundle_files | {MANIFEST: json.dumps(values).encode()}), "which no bundle has")


# ----------------------------------------------------------------------------------------------------------- changed archives


def archive(path: Path, files: dict[str, bytes], *more: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in (*files.items(), *more):
            made.writestr(zipfile.ZipInfo(name), content, method)
    return path


@pytest.mark.parametrize("name", ["../../outside", "/etc/cron.d/x", "report/../x", "C:\\x", "a\nb"])
def test_zip_with_a_path_out_of_the_folder_is_refused(bundle_files, tmp_path, name):
    refused(archive(tmp_path / "b.zip", bundle_files, (name, b"x")), "which no bundle has")
    assert {path.name for path in tmp_path.iterdir()} == {"b.zip"}


def test_zip_bomb_is_refused_before_it_is_unpacked(bundle_files, tmp_path):
    refused(archive(tmp_path / "b.zip", bundle_files | {PRIVATIZER: bytes(100 << 20)}), "privatizer.onnx", "zip bomb")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_a_file_twice_is_refused(bundle_files, tmp_path):
    refused(archive(tmp_path / "b.zip", bundle_files, ("codec.json", b"{}")), "codec.json occurs twice")


def test_zip_with_another_compression_is_refused(bundle_files, tmp_path):
    refused(archive(tmp_path / "b.zip", bundle_files, method=zipfile.ZIP_LZMA), "deflate")


@pytest.mark.parametrize("cut", [0, 10, 1000, -30])
def test_zip_that_is_cut_off_is_refused(bundle_files, tmp_path, cut):
    content = archive(tmp_path / "b.zip", bundle_files).read_bytes()
    (tmp_path / "b.zip").write_bytes(content[:cut])
    refused(tmp_path / "b.zip")
    with pytest.raises(InputError, match=r"bundle .*b\.zip: "):
        find_target(str(tmp_path / "b.zip"), fetch=Path)


def test_zip_with_changed_bytes_is_refused_or_the_same_bundle(bundle_files, bundle, tmp_path):
    content, rng = archive(tmp_path / "b.zip", bundle_files).read_bytes(), np.random.default_rng(0)
    same = 0
    for end in np.repeat([100, 1000, len(content)], 100):  # the directory is at the end
        changed = bytearray(content)
        for position in rng.integers(end, size=rng.integers(1, 6)):
            changed[-1 - position] = rng.integers(256)
        (tmp_path / "b.zip").write_bytes(changed)
        if (made := read_or_refused(tmp_path / "b.zip")) is not None:
            assert (made.digest, made.files) == (bundle.digest, bundle.files)
            same += 1
    assert 0 < same < 100


ODD = (None, True, -1, 0.5, 1e308, float("nan"), float("inf"), "", "x" * 300, "../a", "\u202e", [], {}, [[]], 1 << 70, [0] * 5000)


@pytest.mark.parametrize("name", [MANIFEST, CODEC])
def test_bundle_with_any_odd_value_is_refused_or_usable(bundle_files, tmp_path, name):
    values = json.loads(bundle_files[name])
    for path in sorted(paths(values), key=str):
        for odd in ODD:
            content = json.dumps(changed_value(values, path, odd)).encode()
            files = bundle_files | {name: content} if name == MANIFEST else bundles.remake(bundle_files | {name: content})
            folder = bundles.write(tmp_path, files)
            if (made := read_or_refused(folder)) is not None:
                json.dumps(described(made, urls={}), allow_nan=False)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value of JSON; of long lists only to the first values."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 2)):
            yield from paths(value[key], (*path, key))


def changed_value(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = changed_value(value[path[0]], path[1:], odd)
    return copy


def test_absent_bundle_is_refused(tmp_path):
    refused(tmp_path / "nothing", "does not exist")


# --------------------------------------------------------------------------------------------------------------- hostile models


def with_external_data(location: str) -> bytes:
    """A model that takes pictures and returns codes, with weights in another file."""
    takes = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", 3, bundles.SIDE, bundles.SIDE])
    returns = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", bundles.K])
    size = 3 * bundles.SIDE**2
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size, bundles.K], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Cast", ["pictures"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [takes], [returns], [weights]), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    return model.SerializeToString()


NOT_UTF8 = with_external_data("w.bin").replace(b"Flatten", b"Flat\xc1en")


@pytest.mark.parametrize("absolute", [True, False])
def test_client_refuses_a_model_with_weights_in_another_file(bundle_files, tmp_path, monkeypatch, absolute):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(4 * 3 * bundles.SIDE**2 * bundles.K))
    model = with_external_data(str(tmp_path / "w.bin") if absolute else "w.bin")
    path = bundles.write(tmp_path / "b", bundles.remake(bundle_files | {PRIVATIZER: model}))
    with pytest.raises(InputError, match=r"privatizer\.onnx cannot be loaded"):
        Client(path)


@pytest.mark.parametrize("model", [b"", b"not a model", bundles.SIDE.to_bytes(1000), NOT_UTF8])
def test_client_refuses_a_damaged_model(bundle_files, tmp_path, capfd, model):
    path = bundles.write(tmp_path, bundles.remake(bundle_files | {PRIVATIZER: model}))
    with pytest.raises(InputError, match=r"privatizer\.onnx cannot be loaded"):
        Client(path)
    assert capfd.readouterr() == ("", "")


def test_client_refuses_a_model_with_other_ends_than_the_manifest(bundle_files, tmp_path):
    path = bundles.write(tmp_path, bundles.remake(bundle_files | {PRIVATIZER: bundle_files["utility_head.onnx"]}))
    with pytest.raises(InputError, match=r"privatizer\.onnx does not take"):
        Client(path)


def test_exported_model_has_no_metadata_and_no_paths(bundle_files):
    for name in (PRIVATIZER, "utility_head.onnx"):
        model = onnx.load_model_from_string(bundle_files[name])
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        for word in (b".py", b"cpgan", b"/home", b"aten", str(Path.cwd()).encode()):
            assert word not in bundle_files[name]


# --------------------------------------------------------------------------------------------------------- the target of an attack


def test_target_of_an_attack_is_the_checked_privatizer(folder: Path):
    values = json.loads((folder / MANIFEST).read_bytes())
    files = {name: (folder / name).read_bytes() for name in values["files"]}
    bundles.write(folder, bundles.remake(files, data={"dataset": "digits", "labels": ["digit"]}))
    target = find_target(str(folder), fetch=Path)
    assert target.program.read_bytes() == files[PRIVATIZER]
    assert target.head is not None
    assert target.data is not None
    assert (target.data.dataset, target.data.labels) == ("digits", ("digit",))


@pytest.mark.parametrize("data", [None, 3, {"dataset": "/tmp/reader.py:read"}, {"folder": "/etc"}])
def test_target_with_impossible_data_is_refused(bundle_files, tmp_path, data):
    bundles.write(tmp_path, bundles.remake(bundle_files, data=data))
    with pytest.raises(InputError, match=r"manifest\.json: data"):
        find_target(str(tmp_path), fetch=Path)
