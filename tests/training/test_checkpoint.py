"""Checkpoints: whole or not there, never executed, and the right ones stay."""

import hashlib
import io
import json
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

from cpgan_ray.common.ownership import sign
from cpgan_ray.config import override, to_json
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.train import resume_fingerprint, train
from cpgan_ray.training.checkpoint import DIGEST, Checkpoints, Snapshot, decode, encode, pack, unpack

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


def same(one: Snapshot, other: Snapshot) -> bool:
    return (one.round, one.best_accuracy, one.val_accuracy, one.players) == (
        other.round,
        other.best_accuracy,
        other.val_accuracy,
        other.players,
    )


def test_what_is_written_is_what_is_read(tmp_path):
    kept = Checkpoints(str(tmp_path / "deep" / "folder"), keep=2)
    assert kept.latest() is None
    kept.write(snapshot(val=0.5))
    again = kept.latest()
    assert again is not None
    assert same(again, snapshot(val=0.5))
    state = unpack(again.players["privatizer"], CPU)
    rng = np.random.default_rng()
    rng.bit_generator.state = state["rng"]
    expected = np.random.default_rng(7)
    expected.standard_normal((3, 4))
    assert rng.random() == expected.random()


def test_a_file_system_behind_a_uri_keeps_the_same(tmp_path):
    kept = Checkpoints(tmp_path.joinpath("remote").as_uri(), keep=1)
    kept.write(snapshot(3))
    found = Checkpoints(str(tmp_path / "remote"), keep=1).latest()
    assert found is not None
    assert same(found, snapshot(3))


def test_a_place_that_no_file_system_answers_for_is_bad_input():
    with pytest.raises(InputError, match=r"'nowhere://x'.*give a folder"):
        Checkpoints("nowhere://x", keep=1)


def test_the_last_few_stay_and_the_best(tmp_path):
    kept = Checkpoints(str(tmp_path), keep=2)
    for round, val in ((1, None), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.6)):
        kept.write(snapshot(round, val=val))
    assert kept.names() == [
        "round-00000002-val-0.900000.ckpt",
        "round-00000004-val-0.800000.ckpt",
        "round-00000005-val-0.600000.ckpt",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == kept.names(), "nothing else is left"


@pytest.fixture(scope="module")
def content() -> bytes:
    return encode(snapshot())


@pytest.mark.parametrize("part", range(24))
def test_a_file_in_which_a_byte_is_another_one_is_refused_by_name(content, part):
    where = part * (len(content) - 1) // 23
    spoilt = bytearray(content)
    spoilt[where] ^= 0x41
    with pytest.raises(InputError, match=r"checkpoint run/x\.ckpt is damaged"):
        decode(bytes(spoilt), "run/x.ckpt")


@pytest.mark.parametrize("length", [0, 10, DIGEST, DIGEST + 1, 1000, -1])
def test_a_file_that_was_cut_is_refused(content, length):
    with pytest.raises(InputError, match="is damaged"):
        decode(content[:length], "x")


def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_named(tmp_path, capsys):
    kept = Checkpoints(str(tmp_path), keep=3)
    for round in (1, 2, 3):
        kept.write(snapshot(round))
    newest = tmp_path / kept.names()[-1]
    newest.write_bytes(newest.read_bytes()[:-5])
    found = kept.latest()
    assert found is not None
    assert found.round == 2
    assert "round-00000003.ckpt is damaged" in capsys.readouterr().err
    for name in kept.names():
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(InputError, match="no checkpoint in .* can be used"):
        kept.latest()


def test_a_half_written_file_is_no_checkpoint(tmp_path):
    kept = Checkpoints(str(tmp_path), keep=3)
    kept.write(snapshot(1))
    (tmp_path / "round-00000002.ckpt.part").write_bytes(encode(snapshot(2))[:100])
    found = kept.latest()
    assert found is not None
    assert found.round == 1


class Payload:
    """Pickles as a command that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    """A file with a right checksum whose pickle would run a command."""
    buffer = io.BytesIO()
    torch.save({"format": 1, "evil": Payload(tmp_path / "ran")}, buffer)
    content = buffer.getvalue()
    with pytest.raises(InputError, match="checkpoint x holds something else than tensors"):
        decode(hashlib.sha256(content).hexdigest().encode() + b"\n" + content, "x")
    assert not (tmp_path / "ran").exists()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert b"touch" in pickled, "the payload is really there"
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "and would run if it were unpickled"


def sealed(value: object) -> bytes:
    """A checkpoint file of anything, with its right checksum."""
    torch.save(value, buffer := io.BytesIO())
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def test_nothing_in_a_players_state_is_executed(tmp_path):
    torch.save({"evil": Payload(tmp_path / "ran")}, buffer := io.BytesIO())
    with pytest.raises(InputError, match="checkpoint x holds something else than the state of a game"):
        decode(encode(Snapshot(7, 0.5, None, {"privatizer": buffer.getvalue()})), "x")
    assert not (tmp_path / "ran").exists()


TOLD = {"format": 1, "round": 7, "best_accuracy": 0.5, "val_accuracy": None, "players": {}}
STRANGE = {
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "nothing": {},
    "another format": TOLD | {"format": [1] * 1000},
    "no players": {name: value for name, value in TOLD.items() if name != "players"},
    "players that are a list": TOLD | {"players": [1]},
    "players that are numbers": TOLD | {"players": {"privatizer": 1}},
    "a player that is no file": TOLD | {"players": {"privatizer": torch.zeros(30, dtype=torch.uint8)}},
    "a player that is a list": TOLD | {"players": {"privatizer": torch.frombuffer(bytearray(sealed([1])[65:]), dtype=torch.uint8)}},
    "rounds in words": TOLD | {"round": "seven"},
}


@pytest.mark.parametrize("case", STRANGE)
def test_something_else_with_a_right_checksum_is_refused_in_one_line(case):
    with pytest.raises(InputError) as error:
        decode(sealed(STRANGE[case]), "run/x.ckpt")
    assert str(error.value).startswith("checkpoint run/x.ckpt h")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_another_byte_with_a_right_checksum_is_refused_or_leaves_the_state_of_a_game(content, at, mask):
    inner = bytearray(content[DIGEST + 1 :])
    inner[at % len(inner)] ^= mask
    try:
        found = decode(hashlib.sha256(inner).hexdigest().encode() + b"\n" + bytes(inner), "x")
    except InputError:
        return
    assert all(isinstance(unpack(packed, CPU), dict) for packed in found.players.values())


def test_what_is_no_regular_file_is_no_checkpoint_and_is_not_opened(tmp_path):
    kept = Checkpoints(str(tmp_path), keep=3)
    kept.write(snapshot(1))
    (tmp_path / "round-00000002.ckpt").mkdir()
    os.mkfifo(tmp_path / "round-00000003.ckpt")
    (tmp_path / "round-00000004.ckpt").symlink_to("/dev/zero")
    (tmp_path / "round-00000005.ckpt").symlink_to("nowhere")
    found = kept.latest()
    assert found is not None
    assert found.round == 1


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"checkpoints at '\S+/file' cannot be read .*--recovery\.checkpoints"):
        Checkpoints(str(tmp_path / "file"), keep=1).latest()


def test_a_run_is_not_resumed_from_a_checkpoint_that_holds_code_nor_from_other_players(tmp_path, tiny):
    out = tmp_path / "out"
    config = tiny("ridge", output=str(out))
    name = Checkpoints(str(out / "checkpoints"), keep=3).write(snapshot(3))
    (out / "config.json").write_text(json.dumps(to_json(config) | {"run_id": "0" * 32}))
    sign(out / "config.json")
    with pytest.raises(InputError, match=r"the checkpoint in \S+ has other players \(privatizer, mlp\)"):
        train(config, resume="0" * 32)
    (out / "checkpoints" / name).write_bytes(sealed({"format": 1, "evil": Payload(tmp_path / "ran")}))
    before = sorted(out.rglob("*"))
    command = [sys.executable, str(ROOT / "jobs" / "train_celeba.py"), "--resume", str(out)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    told, error = ran.stderr.splitlines()
    assert "round-00000003.ckpt holds something else than tensors" in told
    assert re.fullmatch(r"error: no checkpoint in \S+ can be used: .*", error)
    assert sorted(out.rglob("*")) == before
    assert not (tmp_path / "ran").exists()


def test_a_run_is_not_resumed_from_the_checkpoint_of_one_of_other_sizes(tmp_path, tiny, capsys):
    """Both keep their checkpoints in one place: it is said before torch meets weights of another shape."""
    out, place = tmp_path / "out", tmp_path / "place"
    config = tiny("mlp", output=str(out), **{"recovery.checkpoints": str(place)})
    other = override(config, {"k": config.k + 1})
    name = Checkpoints(str(place), keep=3, settings=resume_fingerprint(other)).write(snapshot(3))
    with pytest.raises(InputError, match=r"no checkpoint in \S+ can be used"):
        train(config, resume="0" * 32)
    assert f"{name} is of another run, with k {config.k + 1}, here it is {config.k}: it is not loaded" in capsys.readouterr().err
    assert not out.exists()
    assert Checkpoints(str(place), keep=3, settings=resume_fingerprint(other)).latest() is not None, "it is still there"


def test_where_the_data_are_and_how_long_a_run_goes_on_makes_no_other_run(tmp_path, tiny):
    config = tiny("mlp")
    Checkpoints(str(tmp_path), keep=3, settings=resume_fingerprint(config)).write(snapshot(3))
    moved = override(config, {"cache_dir": str(tmp_path / "cache"), "epochs": 9, "attacks.restarts": 2, "runtime.threads": 1})
    found = Checkpoints(str(tmp_path), keep=3, settings=resume_fingerprint(moved)).latest()
    assert found is not None
    assert found.round == 3


def test_a_new_run_does_not_begin_where_another_keeps_its_checkpoints(tmp_path, tiny):
    out, place = tmp_path / "out", tmp_path / "place"
    config = tiny("mlp", output=str(out), **{"recovery.checkpoints": str(place), "recovery.checkpoint_every": 1})
    name = Checkpoints(str(place), keep=3).write(snapshot(3))
    with pytest.raises(InputError, match=rf"holds checkpoints of another run \({name}\): give another --recovery.checkpoints"):
        train(config)
    assert not out.exists()
    assert [path.name for path in place.iterdir()] == [name]


def test_an_unknown_format_is_refused():
    content = pack({"format": 99})
    with pytest.raises(InputError, match="has format 99, this version reads 1"):
        decode(hashlib.sha256(content).hexdigest().encode() + b"\n" + content, "x")


def test_what_was_there_stays_where_a_file_cannot_be_written(tmp_path):
    kept = Checkpoints(str(tmp_path), keep=1)
    kept.write(snapshot(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a full disk does, it fails in mid-write
    try:
        with pytest.raises(OSError, match="File too large"):
            kept.write(snapshot(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["round-00000001.ckpt"]
    found = kept.latest()
    assert found is not None
    assert found.round == 1
