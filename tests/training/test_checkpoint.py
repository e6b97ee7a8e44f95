"""Tests that checkpoints are complete or absent, are never executed, and that the right ones are retained."""

import hashlib
import io
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray.config import override, to_json
from cpgan_ray.config.folders.records import write_record
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.train import resume_fingerprint, train
from cpgan_ray.training.checkpoint import DIGEST, FORMAT, Checkpoints, Snapshot, decode, encode, pack, unpack
from tests.payload import Payload

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def snapshot(round: int = 7, *, val: float | None = None) -> Snapshot:
    rng = np.random.default_rng(round)
    state = {
        "weight": torch.from_numpy(rng.standard_normal((3, 4))),
        "rng": rng.bit_generator.state,
        "none": None,
        "entries": [(1, 2.5)],
    }
    return Snapshot(round, 0.75, val, {"privatizer": pack(state), "mlp": pack({"steps": round})})


def same(first: Snapshot, other: Snapshot) -> bool:
    return (first.round, first.best_accuracy, first.val_accuracy, first.players) == (
        other.round,
        other.best_accuracy,
        other.val_accuracy,
        other.players,
    )


def test_latest_after_write_equals_what_was_written(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "deep" / "folder"), keep=2)
    assert checkpoints.latest() is None
    checkpoints.write(snapshot(val=0.5))
    restored = checkpoints.latest()
    assert restored is not None
    assert same(restored, snapshot(val=0.5))
    state = unpack(restored.players["privatizer"], CPU)
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    expected = np.random.default_rng(7)
    expected.standard_normal((3, 4))
    assert rng.random() == expected.random()


def test_checkpoints_at_a_uri_are_the_same_as_in_a_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path.joinpath("remote").as_uri(), keep=1)
    checkpoints.write(snapshot(3))
    latest = Checkpoints(str(tmp_path / "remote"), keep=1).latest()
    assert latest is not None
    assert same(latest, snapshot(3))


def test_checkpoints_at_an_unknown_scheme_are_refused():
    with pytest.raises(InputError, match=r"'nowhere://x'.*give a folder"):
        Checkpoints("nowhere://x", keep=1)


def test_write_retains_the_last_and_the_best_checkpoints(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for round, val in ((1, None), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.6)):
        checkpoints.write(snapshot(round, val=val))
    assert checkpoints.names() == [
        "round-00000002-val-0.900000.ckpt",
        "round-00000004-val-0.800000.ckpt",
        "round-00000005-val-0.600000.ckpt",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == checkpoints.names(), "no other file"


@pytest.fixture(scope="module")
def content() -> bytes:
    return encode(snapshot())


@pytest.mark.parametrize("part", range(24))
def test_decode_with_a_changed_byte_names_the_damaged_file(content, part):
    position = part * (len(content) - 1) // 23
    damaged = bytearray(content)
    damaged[position] ^= 0x41
    with pytest.raises(InputError, match=r"checkpoint run/x\.ckpt is damaged"):
        decode(bytes(damaged), "run/x.ckpt")


@pytest.mark.parametrize("length", [0, 10, DIGEST, DIGEST + 1, 1000, -1])
def test_decode_of_a_truncated_file_is_refused(content, length):
    with pytest.raises(InputError, match="is damaged"):
        decode(content[:length], "x")


def test_latest_with_a_damaged_file_names_it_and_uses_the_previous(tmp_path, caplog):
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    for round in (1, 2, 3):
        checkpoints.write(snapshot(round))
    newest = tmp_path / checkpoints.names()[-1]
    newest.write_bytes(newest.read_bytes()[:-5])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.round == 2
    assert "round-00000003.ckpt is damaged" in caplog.text
    for name in checkpoints.names():
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(InputError, match="no checkpoint in .* can be used"):
        checkpoints.latest()


def test_latest_ignores_a_half_written_file(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    checkpoints.write(snapshot(1))
    (tmp_path / "round-00000002.ckpt.part").write_bytes(encode(snapshot(2))[:100])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.round == 1


def test_decode_of_a_pickled_command_does_not_run_it(tmp_path):
    """The file has a correct checksum, and its pickle would run a command."""
    buffer = io.BytesIO()
    torch.save({"format": 2, "evil": Payload(tmp_path / "ran")}, buffer)
    content = buffer.getvalue()
    with pytest.raises(InputError, match="checkpoint x contains other objects than tensors"):
        decode(hashlib.sha256(content).hexdigest().encode() + b"\n" + content, "x")
    assert not (tmp_path / "ran").exists()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert b"touch" in pickled, "the payload is in the file"
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the payload runs when it is unpickled"


def sealed(value: object) -> bytes:
    """A checkpoint file with any content and a correct checksum."""
    torch.save(value, buffer := io.BytesIO())
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def test_decode_of_a_command_in_a_players_state_does_not_run_it(tmp_path):
    torch.save({"evil": Payload(tmp_path / "ran")}, buffer := io.BytesIO())
    with pytest.raises(InputError, match="checkpoint x does not contain the state of a game"):
        decode(encode(Snapshot(7, 0.5, None, {"privatizer": buffer.getvalue()})), "x")
    assert not (tmp_path / "ran").exists()


VALID = {"format": FORMAT, "round": 7, "best_accuracy": 0.5, "val_accuracy": None, "players": {}}
INVALID = {
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "nothing": {},
    "other format": VALID | {"format": [1] * 1000},
    "no players": {name: value for name, value in VALID.items() if name != "players"},
    "players that are a list": VALID | {"players": [1]},
    "players that are numbers": VALID | {"players": {"privatizer": 1}},
    "a player that is not a torch file": VALID | {"players": {"privatizer": torch.zeros(30, dtype=torch.uint8)}},
    "a player that is a list": VALID
    | {"players": {"privatizer": torch.frombuffer(bytearray(sealed([1])[65:]), dtype=torch.uint8)}},
    "rounds in words": VALID | {"round": "seven"},
}


@pytest.mark.parametrize("case", INVALID)
def test_decode_of_other_content_with_a_checksum_is_refused_in_one_line(case):
    with pytest.raises(InputError) as error:
        decode(sealed(INVALID[case]), "run/x.ckpt")
    assert re.match(r"checkpoint run/x\.ckpt (contains other objects|does not contain|has format) ", str(error.value))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_decode_with_a_changed_byte_and_checksum_fails_or_is_valid(content, at, mask):
    inner = bytearray(content[DIGEST + 1 :])
    inner[at % len(inner)] ^= mask
    try:
        decoded = decode(hashlib.sha256(inner).hexdigest().encode() + b"\n" + bytes(inner), "x")
    except InputError:
        return
    assert all(isinstance(unpack(packed, CPU), dict) for packed in decoded.players.values())


def test_latest_ignores_folders_and_pipes(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=3)
    checkpoints.write(snapshot(1))
    (tmp_path / "round-00000002.ckpt").mkdir()
    os.mkfifo(tmp_path / "round-00000003.ckpt")
    (tmp_path / "round-00000004.ckpt").symlink_to("/dev/zero")
    (tmp_path / "round-00000005.ckpt").symlink_to("nowhere")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.round == 1


def test_latest_at_a_path_that_is_a_file_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"checkpoints at '\S+/file' cannot be read .*--recovery\.checkpoints"):
        Checkpoints(str(tmp_path / "file"), keep=1).latest()


def test_resume_from_a_checkpoint_with_code_or_other_players_is_refused(tmp_path, tiny):
    out = tmp_path / "out"
    config = tiny("ridge", output=str(out))
    name = Checkpoints(str(out / "checkpoints"), keep=3, settings=resume_fingerprint(config)).write(snapshot(3))
    write_record(out / "config.json", to_json(config) | {"run_id": "0" * 32})
    with pytest.raises(InputError, match=r"the checkpoint in \S+ has other players \(privatizer, mlp\)"):
        train(config, resume="0" * 32)
    (out / "checkpoints" / name).write_bytes(sealed({"format": 2, "evil": Payload(tmp_path / "ran")}))
    before = sorted(out.rglob("*"))
    command = [sys.executable, str(ROOT / "jobs" / "train_celeba.py"), "--resume", str(out)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    warning, error = result.stderr.splitlines()
    assert "round-00000003.ckpt contains other objects than tensors" in warning
    assert re.fullmatch(r"error: no checkpoint in \S+ can be used: .*", error)
    assert sorted(out.rglob("*")) == before
    assert not (tmp_path / "ran").exists()


def test_resume_from_a_checkpoint_of_other_sizes_is_refused(tmp_path, tiny, caplog):
    """Two runs share a checkpoint folder: the error comes before torch loads weights of another shape."""
    out, shared = tmp_path / "out", tmp_path / "shared"
    config = tiny("mlp", output=str(out), **{"recovery.checkpoints": str(shared)})
    other = override(config, {"k": config.k + 1})
    name = Checkpoints(str(shared), keep=3, settings=resume_fingerprint(other)).write(snapshot(3))
    with pytest.raises(InputError, match=r"no checkpoint in \S+ can be used"):
        train(config, resume="0" * 32)
    assert f"{name} is from another run: k is {config.k + 1}, but {config.k} in this run; not loaded" in caplog.text
    assert not out.exists()
    assert Checkpoints(str(shared), keep=3, settings=resume_fingerprint(other)).latest() is not None, (
        "the checkpoint is still there"
    )


def test_resume_with_other_folders_and_epochs_is_the_same_run(tmp_path, tiny):
    config = tiny("mlp")
    Checkpoints(str(tmp_path), keep=3, settings=resume_fingerprint(config)).write(snapshot(3))
    moved = override(config, {"cache_dir": str(tmp_path / "cache"), "epochs": 9, "attacks.restarts": 2, "runtime.threads": 1})
    latest = Checkpoints(str(tmp_path), keep=3, settings=resume_fingerprint(moved)).latest()
    assert latest is not None
    assert latest.round == 3


def test_new_run_in_the_checkpoint_folder_of_another_is_refused(tmp_path, tiny):
    out, shared = tmp_path / "out", tmp_path / "shared"
    config = tiny("mlp", output=str(out), **{"recovery.checkpoints": str(shared), "recovery.checkpoint_every": 1})
    name = Checkpoints(str(shared), keep=3).write(snapshot(3))
    with pytest.raises(InputError, match=rf"has checkpoints of another run \({name}\): give another --recovery.checkpoints"):
        train(config)
    assert not out.exists()
    assert [path.name for path in shared.iterdir()] == [name]


def test_decode_of_an_unknown_format_is_refused():
    content = pack({"format": 99})
    with pytest.raises(InputError, match=f"has format 99, this version reads {FORMAT}"):
        decode(hashlib.sha256(content).hexdigest().encode() + b"\n" + content, "x")


def test_write_that_fails_keeps_the_earlier_checkpoint(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.write(snapshot(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writing fails in the middle, as with a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.write(snapshot(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["round-00000001.ckpt"]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.round == 1
