"""The codes of an exported privatizer: as Bob decodes them, compared with those of the run's program."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.common.codec import RANGE, BytesError, Codec, LevelCodec, codec_of
from cpgan_ray.config import AttackConfig, PrivatizerConfig
from cpgan_ray.data import Dataset
from cpgan_ray.deploy.manifest import Label
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import BLOCK, encode_all, open_own
from cpgan_ray.evaluation.noisy import noisy_codes
from cpgan_ray.evaluation.protocol import Codes

BATCH = 256
"""Codes of a message, for the mean size in a batch."""


def encode(
    program: Path, dataset: Dataset, attacks: AttackConfig, *, release: PrivatizerConfig, seed: int
) -> tuple[Codec, Codes, np.ndarray | None]:
    """The codec of a privatizer, from its codes of the training split; the codes of all sets as they arrive after decoding; and
    those of `test` before noise and rounding, if the release has noise.

    release: its rounding and noise; seed: of the run.

    Raises: InputError if the privatizer fails, or its codes are not finite.
    """
    encoder = open_own(program)
    try:
        codes = encode_all(encoder, dataset, attacks)
    finally:
        encoder.close()
    clean = codes["test"] if release.noise else None
    if release.noise:
        codes = noisy_codes(codes, dataset, noise=release.noise, step=release.quantization_step, seed=seed)
    try:
        codec = codec_of(codes["train"], step=release.quantization_step, levels=release.levels)
    except BytesError as e:
        raise InputError(f"the codes of the run cannot be sent: {e}: train it again") from e
    return codec, {name: received(z, codec) for name, z in codes.items()}, clean


def received(z: np.ndarray, codec: Codec) -> np.ndarray:
    """Codes (N, k) after coding and decoding."""
    return codec.codes(codec.levels(z)) if isinstance(codec, LevelCodec) else z


def encode_split(program: Path, dataset: Dataset, *, release: PrivatizerConfig, seed: int) -> np.ndarray:
    """The codes of the test split that the program and the release's noise give, with the same draws as in `encode`."""
    encoder = open_own(program)
    try:
        blocks = [np.ascontiguousarray(block.transpose(0, 3, 1, 2)) for block in dataset.test.iter_batches(BLOCK)]
        z = np.concatenate([encoder.encode(block) for block in blocks])
    finally:
        encoder.close()
    if not release.noise:
        return z
    return noisy_codes({"test": z}, dataset, noise=release.noise, step=release.quantization_step, seed=seed)["test"]


def code_changes(exported: np.ndarray, original: np.ndarray, codec: Codec) -> dict[str, float]:
    """How much the codes (N, k) that arrive differ from those of the run's program: `changed_numbers` and `changed_pictures`, the
    shares with another level (a float that differs by more than rounding errors), and `clipped`, the share of the program's
    numbers outside the levels."""
    if isinstance(codec, LevelCodec):
        whole = np.rint(original / np.float32(codec.step))
        differs = np.rint(exported / np.float32(codec.step)) != whole
        clipped = (whole < codec.lowest) | (whole > codec.highest)
    else:
        differs, clipped = ~np.isclose(exported, original, rtol=1e-3, atol=1e-4), np.zeros(1)
    return {
        "changed_numbers": float(differs.mean()),
        "changed_pictures": float(differs.any(axis=1).mean()),
        "clipped": float(clipped.mean()),
    }


def changed_decisions(exported: np.ndarray, original: np.ndarray, labels: Sequence[Label]) -> float:
    """The share of answers that differ between two sets of logits (N, num_logits)."""

    def answers(logits: np.ndarray) -> np.ndarray:
        parts = [logits[:, label.logits] for label in labels]
        return np.stack([part[:, 0] > 0 if part.shape[1] == 1 else part.argmax(axis=1) for part in parts], axis=1)

    return float((answers(exported) != answers(original)).mean())


def byte_sizes(z: np.ndarray, codec: Codec) -> dict[str, Any]:
    """Bytes of a code on the wire, without the header of its message, measured on codes (N, k)."""
    sizes: dict[str, Any] = {"plain": codec.plain_bytes}
    if RANGE not in codec.codings:
        return sizes
    alone = [len(codec.encode(code[None], RANGE)) for code in z]
    batches = [len(codec.encode(z[start : start + BATCH], RANGE)) for start in range(0, len(z), BATCH)]
    return sizes | {
        "range_mean": float(np.mean(alone)),
        "range_min": min(alone),
        "range_max": max(alone),
        "range_batch": sum(batches) / len(z),
    }
