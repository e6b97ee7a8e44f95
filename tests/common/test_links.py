"""Tests that no write follows a symbolic link: a folder of another user may have a link under any name."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cpgan_ray.common.json_files import write_json
from cpgan_ray.config import Config, RecoveryConfig
from cpgan_ray.errors import InputError
from cpgan_ray.mechanisms.base import Released
from cpgan_ray.mechanisms.games import save_released
from cpgan_ray.pipelines.train import train
from cpgan_ray.training.checkpoint import Checkpoints, Snapshot

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")


class Victims:
    """Files outside of the folder, each the target of a link; `unharmed` checks that they are unchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def link(self, path: Path) -> None:
        victim = self.folder / f"{len(list(self.folder.iterdir()))}-{path.name}"
        victim.write_text("precious")
        path.unlink(missing_ok=True)
        path.symlink_to(victim)

    def unharmed(self) -> bool:
        return all(path.read_text() == "precious" and not path.is_symlink() for path in self.folder.iterdir())


@pytest.fixture
def victims(tmp_path: Path) -> Victims:
    return Victims(tmp_path / "victims")


def temporary_names(path: Path) -> list[Path]:
    """Names that a program might give to a temporary file before it renames it to `path`."""
    names = (f"{path.name}.part", f".{path.name}.tmp", f"{path.name}.tmp", f"{path.stem}.part")
    return [path.with_name(name) for name in names]


def play(config: Config, output: Path, *, resume: str | None = None) -> None:
    recovery = RecoveryConfig(checkpoint_every=1, num_checkpoints=1)
    train(dataclasses.replace(config, output=output, recovery=recovery), resume=resume)


def test_resumed_training_in_a_folder_of_links_changes_no_target(tiny_config, tmp_path, victims):
    first, resumed = tmp_path / "first", tmp_path / "resumed"
    play(tiny_config, first)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert {"config.json", "privatizer.pt2", "report/report.json", "report/errors.npz"} <= {str(name) for name in names}
    for name in names:
        (resumed / name).parent.mkdir(parents=True, exist_ok=True)
        for path in (resumed / name, *temporary_names(resumed / name)):
            if path.suffix != ".ckpt" and path != resumed / "report" / "report.json":  # this file would mark the run as finished
                victims.link(path)
    shutil.copy(first / "metrics.jsonl", victims.folder.parent)
    (resumed / "metrics.jsonl").unlink()  # a link to a valid file, because the run reads it
    (resumed / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.copy(max((first / "checkpoints").iterdir()), resumed / "checkpoints")
    play(tiny_config, resumed, resume=json.loads((first / "config.json").read_text())["run_id"])
    assert victims.unharmed()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    written = {
        "privatizer.pt2",
        "utility_head.pt2",
        "metrics.jsonl",
        "report/report.json",
        "report/report.html",
        "report/errors.npz",
    }
    assert not [name for name in written if (resumed / name).is_symlink()]
    assert json.loads((resumed / "report" / "report.json").read_text())["privacy"]


@pytest.mark.parametrize("name", ["checkpoints", "report", "metrics.jsonl"])
def test_output_folder_with_a_link_inside_is_refused(tiny_config, tmp_path, victims, name):
    elsewhere = tmp_path / "elsewhere"
    for folder in (tmp_path / "out", elsewhere):
        folder.mkdir()
    if name == "metrics.jsonl":
        victims.link(tmp_path / "out" / name)
    else:
        (tmp_path / "out" / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match=rf"{name} is a (symbolic )?link"):
        play(tiny_config, tmp_path / "out")
    assert victims.unharmed()
    assert list(elsewhere.iterdir()) == []


def test_writers_of_results_and_checkpoints_replace_links(tmp_path, victims):
    names = ("cell.json", "0.npz", "round-00000001.ckpt")
    for name in names:
        for path in (tmp_path / name, *temporary_names(tmp_path / name)):
            victims.link(path)
    write_json(tmp_path / "cell.json", {"a": 1})
    networks = {"encoder": torch.nn.Linear(1, 1), "head": torch.nn.Linear(1, 1)}
    save_released(Released({"test": np.zeros((2, 3), np.float32)}, {}, **networks), tmp_path / "0.npz")
    Checkpoints(str(tmp_path), keep=1).write(Snapshot(1, 0.0, None, {}))
    assert victims.unharmed()
    assert json.loads((tmp_path / "cell.json").read_text()) == {"a": 1}
    assert not any((tmp_path / name).is_symlink() for name in names)


# Every write in the package

WRITERS = {"savefig", "savez", "savez_compressed", "open_memmap", "touch"}
EXEMPT = {
    "cpgan_ray/common/atomic_io.py": "the helper itself",
    "cpgan_ray/devtools/bench/material.py": "in a private temporary folder",
    "cpgan_ray/devtools/bench/servers.py": "a log in a private temporary folder",
    "cpgan_ray/devtools/serving/process.py": "in a private temporary folder",
    "cpgan_ray/distributed/ddp/worker.py": "in a private temporary folder",
    "cpgan_ray/data/datasets/faces/files.py": "in a new folder with a random name",
    "cpgan_ray/cli/attack.py": "in a private temporary folder",
    "cpgan_ray/common/plugins/shipping.py": "in a private temporary folder",
    "cpgan_ray/pipelines/export/models.py": "in a private temporary folder",
    "cpgan_ray/pipelines/export/eve.py": "in a private temporary folder",
    "cpgan_ray/data/pca.py": "memory-mapped coordinates, in a folder that was emptied under a lock",
    "cpgan_ray/evaluation/encoders/programs.py": "members of an archive in memory",
}
"""Modules that write directly, and why no link can be there."""


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def direct_writes(path: Path) -> list[int]:
    """Lines of a module that write to a file by its name, outside of an `atomic_path` block."""
    tree = ast.parse(path.read_text())
    inside: set[int] = set()
    for node in ast.walk(tree):
        items = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
        if any(isinstance(item, ast.Call) and called_name(item) == "atomic_path" for item in items):
            inside |= {id(below) for below in ast.walk(node)}
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in inside and writes(node)]


def writes(call: ast.Call) -> bool:
    name, is_method = called_name(call), isinstance(call.func, ast.Attribute)
    constants = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    to_memory = any(isinstance(a, ast.NamedExpr) for a in call.args)  # buffer := io.BytesIO()
    if name in ("open", "OSFile"):
        modes = [mode for mode in constants if isinstance(mode, str) and mode and set(mode) <= set("rwaxbt+")]
        return any(set(mode) & set("wax+") for mode in modes)
    if name == "replace":  # Path.replace: str.replace has two arguments, dataclasses.replace has keywords
        on_self = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "self"
        return is_method and len(call.args) == 1 and not call.keywords and not on_self
    if name in ("write_text", "write_bytes"):
        return is_method  # the helpers are functions
    return (name in WRITERS or name == "save") and is_method and not to_memory


def test_every_write_in_the_package_is_atomic_or_exempt():
    modules = sorted((ROOT / "cpgan_ray").rglob("*.py"))
    written = {str(path.relative_to(ROOT)): lines for path in modules if (lines := direct_writes(path))}
    assert {name: lines for name, lines in written.items() if name not in EXEMPT} == {}
    assert written.keys() >= EXEMPT.keys(), "an unneeded exemption"


def test_direct_writes_finds_every_kind_of_write(tmp_path):
    (tmp_path / "module.py").write_text(
        "path.write_text('a')\nopen(path, 'w')\npath.open('ab')\ntemporary.replace(path)\nnp.save(path, a)\npicture.save(path)\n"
        "figure.savefig(path)\nnp.savez(path)\npath.open()\n'a'.replace('b', 'c')\nfigure.savefig(buffer := io.BytesIO())\n"
        "with atomic_path(path) as temporary:\n    np.save(temporary, a)\nwrite_text(path, 'a')\nself.replace(name)\n"
    )
    assert direct_writes(tmp_path / "module.py") == [1, 2, 3, 4, 5, 6, 7, 8]
