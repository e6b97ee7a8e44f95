"""The whole game as bytes: snapshots that a host keeps in memory, checkpoints that outlive every process.

A checkpoint is one file: the SHA-256 of what follows, then tensors and plain values as torch saves them. It is written under
another name and renamed, so that a half-written one is never found under its name, and read with `weights_only`: nothing in it is
executed.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import fs

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.common.credentials import redacted
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

FORMAT = 2
NAME = re.compile(r"round-(\d{8})(?:-val-(\d\.\d{6}))?\.ckpt")
DIGEST = 64
"""Characters of a file's checksum; a line break follows them."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A game between two rounds. Made by Game.snapshot; read by Game.restore."""

    round: int  # rounds played
    best_accuracy: float  # on the validation split, of any epoch so far
    val_accuracy: float | None  # of the last epoch that has ended
    players: dict[str, bytes]  # `privatizer` and each adversary -> `pack`ed state: weights, optimisers, random state, bank


def pack(state: Mapping[str, Any]) -> bytes:
    """A player's state as bytes."""
    torch.save(dict(state), buffer := io.BytesIO())
    return buffer.getvalue()


def unpack(data: bytes, device: torch.device) -> dict[str, Any]:
    """The inverse of `pack`; unpickles nothing but tensors and plain values."""
    return torch.load(io.BytesIO(data), weights_only=True, map_location=device)


def encode(snapshot: Snapshot, settings: Mapping[str, Any] | None = None) -> bytes:
    """A checkpoint file's content. settings: field -> JSON-ready value of what decides how the game goes."""
    players = {name: torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for name, data in snapshot.players.items()}
    told = {"round": snapshot.round, "best_accuracy": snapshot.best_accuracy, "val_accuracy": snapshot.val_accuracy}
    content = pack({"format": FORMAT, **told, "players": players, "settings": json.dumps(dict(settings or {}))})
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def decode(data: bytes, name: str, settings: Mapping[str, Any] | None = None) -> Snapshot:
    """settings: those of the run that asks.

    Raises: InputError where the bytes are not those that were written, hold anything but tensors and plain values, or are of a game
    under other settings.
    """
    digest, content = data[:DIGEST], data[DIGEST + 1 :]
    if data[DIGEST : DIGEST + 1] != b"\n" or hashlib.sha256(content).hexdigest().encode() != digest:
        raise InputError(f"checkpoint {name} is damaged: checksum mismatch")
    try:
        values = unpack(content, torch.device("cpu"))
        if not isinstance(values, dict):
            raise TypeError(f"{type(values)}")
    except Exception as e:  # torch raises whatever the damaged part leads to
        raise InputError(f"checkpoint {name} holds something else than tensors and plain values; it is not loaded") from e
    if values.get("format") != FORMAT:
        raise InputError(
            f"checkpoint {name} has format {values.get('format')!r:.40}, this version reads {FORMAT}: use the version that wrote it"
        )
    try:
        players = {str(player): packed.numpy().tobytes() for player, packed in values["players"].items()}
        for packed in players.values():
            dict(unpack(packed, torch.device("cpu")))
        val = values["val_accuracy"]
        read = Snapshot(int(values["round"]), float(values["best_accuracy"]), None if val is None else float(val), players)
        played = dict(json.loads(values.get("settings", "{}")))
    except Exception as e:  # the same
        raise InputError(f"checkpoint {name} holds something else than the state of a game; it is not loaded") from e
    expected = dict(settings or {})
    for field in {**expected, **played} if settings is not None else ():
        if field not in played or field not in expected:
            where = "this run" if field not in expected else "the checkpoint"
            raise InputError(f"checkpoint {name} is of another version: {where} has no field {field}; it is not loaded")
        if played[field] != expected[field]:
            difference = f"{field} {played[field]!r:.40}, here it is {expected[field]!r:.40}"
            raise InputError(f"checkpoint {name} is of another run, with {difference}: it is not loaded")
    return read


class Checkpoints:
    """A run's checkpoints: a local folder, or a folder of any file system that pyarrow knows by a URI (s3://, gs://, hdfs://).

    The last `keep` are kept, and beside them the one with the best validation accuracy.
    """

    def __init__(self, where: str, *, keep: int, settings: Mapping[str, Any] | None = None) -> None:
        """settings: what decides how the game goes; checkpoints of a game under others are refused.

        Raises: InputError where no file system answers to the URI.
        """
        self.where, self.keep, self.settings = redacted(where), keep, settings
        try:
            if "://" in where:
                self.system, self.root = fs.FileSystem.from_uri(where)
            else:
                self.system, self.root = fs.LocalFileSystem(), str(Path(where).expanduser().resolve())
        except (OSError, ValueError) as e:
            raise InputError(
                f"checkpoints cannot be kept at {self.where!r} ({e}): give a folder, or a URI that pyarrow knows"
            ) from e

    @property
    def local_folder(self) -> Path | None:
        """Where they are, if that is on a file system of this machine."""
        return Path(self.root) if isinstance(self.system, fs.LocalFileSystem) else None

    def names(self) -> list[str]:
        """The oldest first."""
        found = self.system.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(f.base_name for f in found if f.is_file and NAME.fullmatch(f.base_name))

    def write(self, snapshot: Snapshot) -> str:
        """Keep one; the ones before it stay until it is whole.

        Raises: OSError where the disk is full or the store does not answer; what was there before is left.
        """
        val = "" if snapshot.val_accuracy is None else f"-val-{snapshot.val_accuracy:.6f}"
        name = f"round-{snapshot.round:08d}{val}.ckpt"
        content = encode(snapshot, self.settings)
        if isinstance(self.system, fs.LocalFileSystem):
            Path(self.root).mkdir(parents=True, exist_ok=True)
            write_bytes(Path(self.root, name), content)
        else:  # an object store shows an object when it is whole
            self.system.create_dir(self.root, recursive=True)
            with self.system.open_output_stream(f"{self.root}/{name}") as stream:
                stream.write(content)
        self.forget()
        return name

    def forget(self) -> None:
        """Delete all but the last few and the best."""
        names = self.names()
        scored = [(match.group(2), name) for name in names if (match := NAME.fullmatch(name)) and match.group(2)]
        kept = {*names[-self.keep :], *([max(scored)[1]] if scored else [])}
        for name in names:
            if name not in kept:
                self.system.delete_file(f"{self.root}/{name}")

    def read(self, name: str) -> Snapshot:
        """Raises: InputError where the file is damaged, of another run, or cannot be read."""
        try:
            with self.system.open_input_stream(f"{self.root}/{name}") as stream:
                content = stream.read()
        except OSError as e:
            raise InputError(f"checkpoint {self.where}/{name} cannot be read ({' '.join(str(e).split())[:200]})") from e
        return decode(content, f"{self.where}/{name}", self.settings)

    def ensure_free(self) -> None:
        """Raises: InputError where there are checkpoints: a run that begins would take them for its own, and delete them."""
        if names := self.there():
            raise InputError(
                f"{self.where} holds checkpoints of another run ({names[-1]}): give another --recovery.checkpoints or --output"
            )

    def there(self) -> list[str]:
        """The oldest first.

        Raises: InputError where the place cannot be read.
        """
        try:
            return self.names()
        except OSError as e:
            reason = " ".join(str(e).split())[:200]
            raise InputError(f"checkpoints at {self.where!r} cannot be read ({reason}): mend --recovery.checkpoints") from e

    def latest(self) -> Snapshot | None:
        """The newest one that is whole and this run's; the others are named on standard error. None where there is none at all.

        Raises: InputError where there are some and none can be used, or the place cannot be read.
        """
        names = self.there()
        for name in reversed(names):
            try:
                return self.read(name)
            except InputError as e:
                logger.warning(f"{e}; the one before it is used")
        if names:
            raise InputError(f"no checkpoint in {self.where} can be used: begin the run again in another --output")
        return None
