"""Checkpoints: whole or not there, never executed, and the right ones stay."""

import hashlib
import io
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cpgan_ray.checkpoint import DIGEST, Checkpoints, Snapshot, decode, encode, pack, unpack
from cpgan_ray.errors import InputError

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
    with pytest.raises(InputError, match="all checkpoints in .* are damaged"):
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
