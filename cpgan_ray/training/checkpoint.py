"""The state of a game as bytes: snapshots in a host's memory, checkpoints on disk or in a bucket.

A checkpoint is one file: the SHA-256 of its content, then tensors and plain values in torch's format. Its name never shows a
half-written file, see common/file_systems.py. It is read with `weights_only`: nothing in it is executed.
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

from cpgan_ray.common.credentials import redacted
from cpgan_ray.common.file_systems import write_file
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

FORMAT = 2
NAME = re.compile(r"round-(\d{8})(?:-val-(\d\.\d{6}))?\.ckpt")
DIGEST = 64
"""Length of a file's checksum in characters; a line break follows it."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a game between two rounds. Made by Game.snapshot; read by Game.restore."""

    round: int  # rounds played
    best_accuracy: float  # best validation accuracy of any epoch so far
    val_accuracy: float | None  # validation accuracy of the last finished epoch
    players: dict[str, bytes]  # `privatizer` and each adversary -> `pack`ed state: weights, optimisers, random state, memory


def pack(state: Mapping[str, Any]) -> bytes:
    """A player's state as bytes."""
    torch.save(dict(state), buffer := io.BytesIO())
    return buffer.getvalue()


def unpack(data: bytes, device: torch.device) -> dict[str, Any]:
    """The inverse of `pack`; unpickles only tensors and plain values."""
    return torch.load(io.BytesIO(data), weights_only=True, map_location=device)


def encode(snapshot: Snapshot, settings: Mapping[str, Any] | None = None) -> bytes:
    """Content of a checkpoint file. settings: field -> JSON-ready value, for all settings that change the course of the game."""
    players = {name: torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for name, data in snapshot.players.items()}
    progress = {"round": snapshot.round, "best_accuracy": snapshot.best_accuracy, "val_accuracy": snapshot.val_accuracy}
    content = pack({"format": FORMAT, **progress, "players": players, "settings": json.dumps(dict(settings or {}))})
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def decode(data: bytes, name: str, settings: Mapping[str, Any] | None = None) -> Snapshot:
    """The inverse of `encode`. settings: the settings of the present run; None: do not compare.

    Raises: InputError if the checksum does not match, the content is not tensors and plain values only, or the settings differ.
    """
    digest, content = data[:DIGEST], data[DIGEST + 1 :]
    if data[DIGEST : DIGEST + 1] != b"\n" or hashlib.sha256(content).hexdigest().encode() != digest:
        raise InputError(f"checkpoint {name} is damaged: checksum mismatch")
    try:
        values = unpack(content, torch.device("cpu"))
        if not isinstance(values, dict):
            raise TypeError(f"{type(values)}")
    except Exception as e:  # a damaged file can raise almost any error in torch
        raise InputError(f"checkpoint {name} contains other objects than tensors and plain values: not loaded") from e
    if values.get("format") != FORMAT:
        raise InputError(
            f"checkpoint {name} has format {values.get('format')!r:.40}, this version reads {FORMAT}: use the version that wrote it"
        )
    try:
        players = {str(player): packed.numpy().tobytes() for player, packed in values["players"].items()}
        for packed in players.values():
            dict(unpack(packed, torch.device("cpu")))
        val = values["val_accuracy"]
        snapshot = Snapshot(int(values["round"]), float(values["best_accuracy"]), None if val is None else float(val), players)
        stored = dict(json.loads(values.get("settings", "{}")))
    except Exception as e:  # see above
        raise InputError(f"checkpoint {name} does not contain the state of a game: not loaded") from e
    expected = dict(settings or {})
    for field in {**expected, **stored} if settings is not None else ():
        if field not in stored or field not in expected:
            lacking = "this run" if field not in expected else "the checkpoint"
            raise InputError(f"checkpoint {name} is from another version: {lacking} has no field {field}; not loaded")
        if stored[field] != expected[field]:
            difference = f"{field} is {stored[field]!r:.40}, but {expected[field]!r:.40} in this run"
            raise InputError(f"checkpoint {name} is from another run: {difference}; not loaded")
    return snapshot


class Checkpoints:
    """The checkpoints of a run, in a local folder or in a folder that pyarrow can open by URI (s3://, gs://, hdfs://).

    The last `keep` checkpoints stay, and also the one with the best validation accuracy.
    """

    def __init__(self, location: str, *, keep: int, settings: Mapping[str, Any] | None = None) -> None:
        """settings: all settings that change the course of the game; checkpoints with other settings are refused.

        Raises: InputError if pyarrow has no file system for the URI.
        """
        self.location, self.keep, self.settings = redacted(location), keep, settings
        try:
            if "://" in location:
                self.system, self.root = fs.FileSystem.from_uri(location)
            else:
                self.system, self.root = fs.LocalFileSystem(), str(Path(location).expanduser().resolve())
        except (OSError, ValueError) as e:
            raise InputError(
                f"checkpoints cannot be stored at {self.location!r} ({e}): give a folder or a URI that pyarrow supports"
            ) from e

    @property
    def local_folder(self) -> Path | None:
        """The folder of the checkpoints; None if they are not on this machine's file system."""
        return Path(self.root) if isinstance(self.system, fs.LocalFileSystem) else None

    def names(self) -> list[str]:
        """File names, the oldest checkpoint first."""
        files = self.system.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(f.base_name for f in files if f.is_file and NAME.fullmatch(f.base_name))

    def write(self, snapshot: Snapshot) -> str:
        """Writes a checkpoint, then deletes old ones. Returns its file name.

        Raises: OSError if the disk is full or the store does not respond; the earlier checkpoints stay.
        """
        val = "" if snapshot.val_accuracy is None else f"-val-{snapshot.val_accuracy:.6f}"
        name = f"round-{snapshot.round:08d}{val}.ckpt"
        write_file(self.system, f"{self.root}/{name}", encode(snapshot, self.settings), durable=True)
        self.delete_old()
        return name

    def delete_old(self) -> None:
        """Deletes all checkpoints except the last `keep` and the best."""
        names = self.names()
        scored = [(match.group(2), name) for name in names if (match := NAME.fullmatch(name)) and match.group(2)]
        retained = {*names[-self.keep :], *([max(scored)[1]] if scored else [])}
        for name in names:
            if name not in retained:
                self.system.delete_file(f"{self.root}/{name}")

    def read(self, name: str) -> Snapshot:
        """Raises: InputError if the file is damaged, from another run, or cannot be read."""
        try:
            with self.system.open_input_stream(f"{self.root}/{name}") as stream:
                content = stream.read()
        except OSError as e:
            raise InputError(f"checkpoint {self.location}/{name} cannot be read ({' '.join(str(e).split())[:200]})") from e
        return decode(content, f"{self.location}/{name}", self.settings)

    def ensure_free(self) -> None:
        """Raises: InputError if there are checkpoints: a new run would treat them as its own and delete them."""
        if names := self.readable_names():
            raise InputError(
                f"{self.location} has checkpoints of another run ({names[-1]}): give another --recovery.checkpoints or --output"
            )

    def readable_names(self) -> list[str]:
        """The same as `names`.

        Raises: InputError if the folder cannot be read.
        """
        try:
            return self.names()
        except OSError as e:
            reason = " ".join(str(e).split())[:200]
            raise InputError(f"checkpoints at {self.location!r} cannot be read ({reason}): correct --recovery.checkpoints") from e

    def latest(self) -> Snapshot | None:
        """The newest valid checkpoint of this run; invalid ones are logged as warnings. None if there are no checkpoints.

        Raises: InputError if there are checkpoints but none is valid, or if the folder cannot be read.
        """
        names = self.readable_names()
        for name in reversed(names):
            try:
                return self.read(name)
            except InputError as e:
                logger.warning(f"{e}; trying the previous checkpoint")
        if names:
            raise InputError(f"no checkpoint in {self.location} can be used: start the run again in another --output")
        return None
