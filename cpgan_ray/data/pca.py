"""Project the training pictures on their leading principal components, so that closed-form adversaries have few targets.

For a picture x in [-1, 1]^D with coordinates c = V (x - mean) and any prediction with coordinates c', the squared error is
||c - c'||^2 + residual. The residual ||x - mean||^2 - ||c||^2 is known, so the error is exact despite the projection.

Mean and components are computed from the plain and the mirrored pictures together. This set is its own mirror image, so each
component is either even (equal to its mirror image) or odd (its negative). The two kinds are therefore computed separately, at half
the size each, and the coordinates of a mirrored picture are the plain ones with the signs of the odd components flipped. If mirror
images are not valid samples of the data set (digits, signals), mean and components are computed only from the plain pictures.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cpgan_ray.common.atomic_io import atomic_path, make_folder, refuse_link, write_text
from cpgan_ray.common.ownership import is_own, sign
from cpgan_ray.common.rng import torch_seed
from cpgan_ray.data.batching import Batch, pictures
from cpgan_ray.data.store import (
    SPLITS,
    Dataset,
    Split,
    checksum,
    checksums,
    damaged_store,
    folder_lock,
    progress_bar,
    read_json,
    verify,
)
from cpgan_ray.data.sync.shared_cache import SharedCache
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
DEFAULT_COMPONENTS = 256
"""Number of components. Code that needs only the mean picture also asks for this number, so that all share one cache entry."""
SAMPLE_ROWS = 10_000
"""Mean and components are computed from at most this number of rows, evenly spaced."""
OVERSAMPLING = 32
ITERATIONS = 2
BLOCK_BYTES = 16 << 20
"""Pictures are processed in blocks of at most this number of bytes as float32."""


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`."""

    total_variance: float
    sha256: dict[Literal["mean", "components", "parity", "coordinates", "residual"], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Principal components of the training pictures; D = H * W * C, in this order. The arrays are memory-mapped: do not write to
    them."""

    mean: np.ndarray
    """(D,) float32; its own mirror image if mirrored pictures are included."""
    components: np.ndarray
    """(p, D) float32, orthonormal, by falling variance."""
    parity: np.ndarray
    """(p,) float32: 1 for even components, -1 for odd ones."""
    coordinates: np.ndarray
    """(N, p) float32, coordinates of the plain training pictures; multiplied by `parity`: of the mirrored ones."""
    residual: np.ndarray
    """(N,) float32: ||x - mean||^2 - ||coordinates||^2, the same for the plain and the mirrored picture."""
    total_variance: float
    """Mean of ||x - mean||^2 over the training pictures."""

    def project(self, x: np.ndarray) -> np.ndarray:
        """Coordinates (B, p) float32 of pictures (B, D) float32 in [-1, 1]."""
        return (torch.from_numpy(x - self.mean) @ torch.from_numpy(self.components).T).numpy()

    def reconstruct(self, coordinates: np.ndarray) -> np.ndarray:
        """Pictures (B, D) float32 in [-1, 1] (slightly beyond is possible) from coordinates (B, p) float32."""
        coordinates = np.require(coordinates, requirements="W")  # torch warns about read-only arrays
        return (torch.from_numpy(coordinates) @ torch.from_numpy(self.components)).numpy() + self.mean


def scale(images: np.ndarray) -> np.ndarray:
    """The values that the networks see, float32 (B, D): uint8 pictures (B, H, W, C) scaled to [-1, 1], float32 values unchanged."""
    x = images.reshape(len(images), -1).astype(np.float32)
    if images.dtype == np.uint8:
        x /= 127.5
        x -= 1
    return x


def targets(projection: Projection, split: Split, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (B, p) and residual (B,), float32, of a batch of a split, mirrored and shifted as the batch sets it.

    They are read from the cache for training pictures that are not shifted, and computed from the pictures otherwise.
    """
    if split.name != "train" or batch.shift.any():
        return _coordinates(projection, scale(pictures(split, batch)))
    coordinates = projection.coordinates[batch.rows]
    coordinates[batch.mirrored] *= projection.parity
    return coordinates, projection.residual[batch.rows]


def projection(dataset: Dataset, *, components: int, progress: bool = True) -> Projection:
    """The projection on the leading `components` components (at most the number of rows and of values in a picture).

    It is computed once, by seeded subspace iteration over blocks of pictures, and stored in `<store>/projection-<components>/`; if
    people are withheld from the defender, in `<store>/projection-<components>-without-<their share>/`.
    With a shared cache it is fetched from there, or added to it. Projections that two nodes compute themselves may differ in the
    last bits, as their processors do. If the store is in the data folder, a projection that this user has not signed may have come
    with the data: it is replaced.

    Raises:
        InputError: the store's folder cannot be written to, the stored projection is damaged, or all pictures are identical.
    """
    withheld = f"-without-{dataset.attacker_share:g}" if dataset.attacker_share else ""
    folder = dataset.folder / f"projection-{components}{withheld}"
    if not folder.is_dir() or is_foreign(dataset, folder):
        shared = None if dataset.shared is None else SharedCache(dataset.shared)
        name = f"{dataset.digest}/{folder.name}-{checksums(dataset.folder)['train.arrow']}"
        files: dict[str, Any] = {"manifest": SUMMARY, "checksums": _checksums, "progress": progress}
        computed = False
        ensure_varied(dataset)
        with folder_lock(folder):
            if is_foreign(dataset, folder):
                logger.info(f"{folder} was not made by you and is computed again (--trust uses the files that came with the data)")
                shutil.rmtree(folder)
            if not (folder.is_dir() or (shared is not None and shared.take(name, folder, **files))):
                temporary = folder.with_name(folder.name + ".partial")
                shutil.rmtree(temporary, ignore_errors=True)
                make_folder(temporary)
                num_components = min(components, len(dataset.train), int(np.prod(dataset.image_shape)))
                _compute(temporary, dataset.train, num_components, mirrored=dataset.info.mirrored, progress=progress)
                temporary.rename(folder)
                computed = True
        if shared is not None and computed:
            shared.put(name, folder, **files)
    summary = read_json(folder, SUMMARY, kind=Summary)
    verify(folder, _checksums(folder))
    try:
        # copy-on-write, because torch warns about read-only arrays
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in summary.sha256}
        return Projection(**arrays, total_variance=summary.total_variance)
    except (OSError, TypeError, ValueError) as e:
        raise damaged_store(folder, f"it is incomplete ({' '.join(str(e).split())[:200]})") from e


def is_foreign(dataset: Dataset, folder: Path) -> bool:
    """Whether a projection exists that must not be used, because another user made it.

    Raises:
        InputError: it is a symbolic link.
    """
    return dataset.own_only and refuse_link(folder).is_dir() and not is_own(folder / SUMMARY)


def _checksums(folder: Path) -> dict[str, str]:
    return {f"{name}.npy": sha256 for name, sha256 in read_json(folder, SUMMARY, kind=Summary).sha256.items()}


def ensure_varied(dataset: Dataset) -> None:
    """Check that the pictures of each split differ; otherwise the mean picture is always exact and R2 is undefined.

    Raises:
        InputError: all pictures of a split are identical.
    """
    for name in SPLITS:
        split: Split = getattr(dataset, name)
        first = split.take(np.arange(1))
        if all((images == first).all() for images in _blocks(split, np.arange(len(split)), lambda _: None)) and len(split) > 1:
            raise InputError(
                f"{dataset.folder}: the {len(split)} pictures of the {name} split are all the same, so there is nothing to hide or "
                "to recover: give other pictures"
            )


def _compute(folder: Path, split: Split, num_components: int, *, mirrored: bool, progress: bool) -> None:
    sample = np.linspace(0, len(split) - 1, min(SAMPLE_ROWS, len(split))).round().astype(np.int64)
    total_pictures = len(sample) * (2 + ITERATIONS) + len(split)
    with progress_bar(total_pictures, what=f"principal components of {split.path}", unit="pictures", show=progress) as advance:
        mean, components, parity = _principal(split, sample, num_components, advance, mirrored=mirrored)
        coordinates = np.lib.format.open_memmap(
            folder / "coordinates.npy", mode="w+", dtype=np.float32, shape=(len(split), num_components)
        )
        residual = np.empty(len(split), np.float32)
        basis = Projection(
            mean=mean, components=components, parity=parity, coordinates=coordinates, residual=residual, total_variance=0.0
        )
        sum_squares, start = 0.0, 0
        for images in _blocks(split, np.arange(len(split)), advance):
            here = slice(start, start := start + len(images))
            coordinates[here], residual[here] = _coordinates(basis, scale(images))
            sum_squares += float(residual[here].sum(dtype=np.float64) + np.square(coordinates[here], dtype=np.float64).sum())
    coordinates.flush()
    for name, array in (("mean", mean), ("components", components), ("parity", parity), ("residual", residual)):
        with atomic_path(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    checksums = {path.stem: checksum(path) for path in folder.glob("*.npy")}
    write_text(folder / SUMMARY, json.dumps({"total_variance": sum_squares / len(split), "sha256": checksums}))
    sign(folder / SUMMARY)


def _coordinates(projection: Projection, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coordinates = projection.project(x)
    x -= projection.mean
    energy = np.einsum("bd,bd->b", x, x, dtype=np.float64) - np.einsum("bp,bp->b", coordinates, coordinates, dtype=np.float64)
    return coordinates, np.maximum(energy, 0).astype(np.float32)


def _principal(
    split: Split, sample: np.ndarray, num_components: int, advance: Callable[[int], None], *, mirrored: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (D,), components (p, D) and parity (p,) of the sampled pictures and, if `mirrored`, their mirror images.

    With the even and odd parts e, o of x - mean, the covariance is E[e e'] + E[o o'], and no direction is in both. Without mirror
    images the whole picture is treated as the middle column, which is even.
    """
    height, width, channels = split.image_shape
    total = np.zeros(split.image_shape, np.float64)
    for images in _blocks(split, sample, advance):
        total += images.sum(axis=0, dtype=np.float64)  # exact for bytes
    mean = (total + total[:, ::-1]) / 2 if mirrored else total
    mean = mean / (len(sample) * 127.5) - 1 if split.dtype == np.uint8 else mean / len(sample)
    mean = torch.from_numpy(mean.astype(np.float32))
    right = width // 2 if mirrored else 0

    def fold(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The even and odd halves of x - mean of pictures, in orthonormal coordinates."""
        x = torch.from_numpy(scale(images)).view(-1, height, width, channels) - mean
        left_half, right_half, middle = x[:, :, :right], x[:, :, width - right :].flip(2), x[:, :, right : width - right]
        even = torch.cat([(left_half + right_half) / 2**0.5, middle], dim=2).flatten(1)
        return even, ((left_half - right_half) / 2**0.5).flatten(1)

    def unfold(q: torch.Tensor, sign: int) -> torch.Tensor:
        """The inverse of `fold` for one half: rows (n, D_half) to (n, D)."""
        half = q.view(len(q), height, -1, channels)
        left_half, middle = half[:, :, :right] / 2**0.5, half[:, :, right:]
        if sign < 0:
            middle = torch.zeros(len(q), height, width - 2 * right, channels)
        return torch.cat([left_half, middle, sign * left_half.flip(2)], dim=2).flatten(1)

    sizes = height * (width - right) * channels, height * right * channels
    halves: list[torch.Tensor] = []  # each (D_half, l)
    for i, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(torch_seed(0, "projection", i))
        start = torch.randn(size, min(num_components + OVERSAMPLING, size), generator=generator)
        halves.append(torch.linalg.qr(start).Q if start.numel() else start)
    ranked: list[tuple[float, int, torch.Tensor]] = []  # variance, parity, component
    for iteration in range(ITERATIONS + 1):
        products = [torch.zeros_like(q) for q in halves]
        for images in _blocks(split, sample, advance):
            for product, part, q in zip(products, fold(images), halves, strict=True):
                product.addmm_(part.T, part @ q)
        if iteration < ITERATIONS:
            halves = [torch.linalg.qr(y).Q if y.numel() else y for y in products]
    for parity, q, y in zip((1, -1), halves, products, strict=True):
        if q.numel():
            variances, rotation = torch.linalg.eigh((q.T @ y).double())
            ranked += [(float(v), parity, c) for v, c in zip(variances, (q @ rotation.float()).T, strict=True)]
    ranked = sorted(ranked, key=lambda entry: -entry[0])[:num_components]
    components = torch.cat([unfold(c[None], sign) for _, sign, c in ranked])
    return mean.flatten().numpy(), components.numpy(), np.array([sign for _, sign, _ in ranked], np.float32)


def _blocks(split: Split, rows: np.ndarray, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_BYTES // (4 * int(np.prod(split.image_shape))))
    for start in range(0, len(rows), size):
        yield split.take(rows[start : start + size])
        advance(len(rows[start : start + size]))
