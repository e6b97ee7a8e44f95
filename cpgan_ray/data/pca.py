"""The training pictures on their leading principal components, so that closed-form adversaries have few targets.

For a picture x in [-1, 1]^D, its coordinates c = V (x - mean) and any prediction with coordinates c', the squared error is
||c - c'||^2 + residual, and the residual ||x - mean||^2 - ||c||^2 is known: nothing is lost but what is counted.

Mean and components are those of the plain and the mirrored pictures together. This set is its own mirror image, so that each
component is either even (equal to its mirror image) or odd (its negative). Hence the two kinds are found apart, at half the
size each, and a mirrored picture's coordinates are the plain ones with the odd components' signs turned. Where mirror images are
not of the data set's kind (digits, signals), mean and components are those of the plain ones alone.
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
    damaged,
    locked,
    progress_bar,
    read_json,
    verify,
)
from cpgan_ray.data.sync.shared_cache import SharedCache
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
DEFAULT_COMPONENTS = 256
"""What is computed for those who need the mean picture alone, so that they share the cache with the others."""
SAMPLE_ROWS = 10_000
"""Mean and components come from at most so many rows, evenly spaced."""
OVERSAMPLING = 32
ITERATIONS = 2
BLOCK_BYTES = 16 << 20
"""Pictures are worked on in blocks of at most so many bytes of float32."""


@dataclass(frozen=True)
class Summary:
    """`summary.json`."""

    total_variance: float
    sha256: dict[Literal["mean", "components", "parity", "coordinates", "residual"], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Principal components of the training pictures; D = H * W * C, in this order. Memory-mapped arrays, not to be written to."""

    mean: np.ndarray
    """(D,) float32, its own mirror image where there are mirror images."""
    components: np.ndarray
    """(p, D) float32, orthonormal, by falling variance."""
    parity: np.ndarray
    """(p,) float32: 1 for even components, -1 for odd ones."""
    coordinates: np.ndarray
    """(N, p) float32, of the plain training pictures; times `parity`: of the mirrored ones."""
    residual: np.ndarray
    """(N,) float32: ||x - mean||^2 - ||coordinates||^2, of the plain and of the mirrored picture alike."""
    total_variance: float
    """Mean of ||x - mean||^2 over the training pictures."""

    @property
    def captured(self) -> float:
        """Share of the variance that lies in the components."""
        return 1 - float(self.residual.mean(dtype=np.float64)) / self.total_variance

    def project(self, x: np.ndarray) -> np.ndarray:
        """Coordinates (B, p) float32 of pictures (B, D) float32 in [-1, 1]."""
        return (torch.from_numpy(x - self.mean) @ torch.from_numpy(self.components).T).numpy()

    def reconstruct(self, coordinates: np.ndarray) -> np.ndarray:
        """Pictures (B, D) float32 in [-1, 1], or a little beyond, from coordinates (B, p) float32."""
        coordinates = np.require(coordinates, requirements="W")  # torch warns of read-only arrays
        return (torch.from_numpy(coordinates) @ torch.from_numpy(self.components)).numpy() + self.mean


def scale(images: np.ndarray) -> np.ndarray:
    """What the networks see, float32 (B, D): of uint8 pictures (B, H, W, C) values in [-1, 1], of float32 ones themselves."""
    x = images.reshape(len(images), -1).astype(np.float32)
    if images.dtype == np.uint8:
        x /= 127.5
        x -= 1
    return x


def targets(projection: Projection, split: Split, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (B, p) and residual (B,), float32, of a batch of a split, mirrored and shifted as it says.

    Read from the cache for training pictures that are not shifted, else computed from the pictures.
    """
    if split.path.name != "train.arrow" or batch.shift.any():
        return _coordinates(projection, scale(pictures(split, batch)))
    coordinates = projection.coordinates[batch.rows]
    coordinates[batch.mirrored] *= projection.parity
    return coordinates, projection.residual[batch.rows]


def projection(dataset: Dataset, *, components: int, progress: bool = True) -> Projection:
    """The projection on `components` leading components, or on as many as there are rows or pixels if those are fewer.

    Computed once, by seeded subspace iteration over blocks of pictures, and kept in `<store>/projection-<components>/`; or taken
    from where nodes share theirs, and put there. Two nodes' own may differ in the last bits, as their processors do. In a store
    next to the data, one that this user has not signed may have come with them, and is made again in its place.

    Raises:
        InputError: the store's folder cannot be written to, what is kept there is damaged, or the pictures are all the same one.
    """
    folder = dataset.folder / f"projection-{components}"
    if not folder.is_dir() or foreign(dataset, folder):
        shared = None if dataset.shared is None else SharedCache(dataset.shared)
        name = f"{dataset.digest}/{folder.name}-{checksums(dataset.folder)['train.arrow']}"
        files: dict[str, Any] = {"manifest": SUMMARY, "checksums": _checksums, "progress": progress}
        computed = False
        ensure_varied(dataset)
        with locked(folder):
            if foreign(dataset, folder):
                logger.info(f"{folder} was not made by you: it is made again (--trust uses what came with the data)")
                shutil.rmtree(folder)
            if not (folder.is_dir() or (shared is not None and shared.take(name, folder, **files))):
                beside = folder.with_name(folder.name + ".partial")
                shutil.rmtree(beside, ignore_errors=True)
                make_folder(beside)
                number = min(components, len(dataset.train), int(np.prod(dataset.image_shape)))
                _compute(beside, dataset.train, number, mirrored=dataset.info.mirrored, progress=progress)
                beside.rename(folder)
                computed = True
        if shared is not None and computed:
            shared.put(name, folder, **files)
    summary = read_json(folder, SUMMARY, kind=Summary)
    verify(folder, _checksums(folder))
    try:
        # copy on write: torch warns of read-only
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in summary.sha256}
        return Projection(**arrays, total_variance=summary.total_variance)
    except (OSError, TypeError, ValueError) as e:
        raise damaged(folder, f"it is not complete ({' '.join(str(e).split())[:200]})") from e


def foreign(dataset: Dataset, folder: Path) -> bool:
    """Whether something is there that may not be used.

    Raises: InputError where it is a symbolic link.
    """
    return dataset.own_only and refuse_link(folder).is_dir() and not is_own(folder / SUMMARY)


def _checksums(folder: Path) -> dict[str, str]:
    return {f"{name}.npy": told for name, told in read_json(folder, SUMMARY, kind=Summary).sha256.items()}


def ensure_varied(dataset: Dataset) -> None:
    """Raises: InputError where the pictures of a split are one and the same: the mean picture is right then, no R2 is defined."""
    for name in SPLITS:
        split: Split = getattr(dataset, name)
        first = split.take(np.arange(1))
        if all((images == first).all() for images in _blocks(split, np.arange(len(split)), lambda _: None)) and len(split) > 1:
            raise InputError(
                f"{dataset.folder}: the {len(split)} pictures of the {name} split are all the same, there is nothing to hide or to "
                "recover: give other pictures"
            )


def _compute(folder: Path, split: Split, num_components: int, *, mirrored: bool, progress: bool) -> None:
    sample = np.linspace(0, len(split) - 1, min(SAMPLE_ROWS, len(split))).round().astype(np.int64)
    work = len(sample) * (2 + ITERATIONS) + len(split)
    with progress_bar(work, what=f"principal components of {split.path}", unit="pictures", show=progress) as advance:
        mean, components, parity = _principal(split, sample, num_components, advance, mirrored=mirrored)
        coordinates = np.lib.format.open_memmap(
            folder / "coordinates.npy", mode="w+", dtype=np.float32, shape=(len(split), num_components)
        )
        residual = np.empty(len(split), np.float32)
        basis = Projection(
            mean=mean, components=components, parity=parity, coordinates=coordinates, residual=residual, total_variance=0.0
        )
        total, start = 0.0, 0
        for images in _blocks(split, np.arange(len(split)), advance):
            here = slice(start, start := start + len(images))
            coordinates[here], residual[here] = _coordinates(basis, scale(images))
            total += float(residual[here].sum(dtype=np.float64) + np.square(coordinates[here], dtype=np.float64).sum())
    coordinates.flush()
    for name, array in (("mean", mean), ("components", components), ("parity", parity), ("residual", residual)):
        with atomic_path(folder / f"{name}.npy") as beside, beside.open("wb") as file:
            np.save(file, array)
    checksums = {path.stem: checksum(path) for path in folder.glob("*.npy")}
    write_text(folder / SUMMARY, json.dumps({"total_variance": total / len(split), "sha256": checksums}))
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
    images all of a picture is taken for its middle column, which is even.
    """
    height, width, channels = split.image_shape
    total = np.zeros(split.image_shape, np.float64)
    for images in _blocks(split, sample, advance):
        total += images.sum(axis=0, dtype=np.float64)  # of bytes exact
    mean = (total + total[:, ::-1]) / 2 if mirrored else total
    mean = mean / (len(sample) * 127.5) - 1 if split.dtype == np.uint8 else mean / len(sample)
    mean = torch.from_numpy(mean.astype(np.float32))
    right = width // 2 if mirrored else 0

    def fold(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures to the even and odd halves of x - mean, in orthonormal coordinates."""
        x = torch.from_numpy(scale(images)).view(-1, height, width, channels) - mean
        one, other, middle = x[:, :, :right], x[:, :, width - right :].flip(2), x[:, :, right : width - right]
        return torch.cat([(one + other) / 2**0.5, middle], dim=2).flatten(1), ((one - other) / 2**0.5).flatten(1)

    def unfold(q: torch.Tensor, sign: int) -> torch.Tensor:
        """Rows (n, D_half) back to (n, D)."""
        half = q.view(len(q), height, -1, channels)
        one, middle = half[:, :, :right] / 2**0.5, half[:, :, right:]
        if sign < 0:
            middle = torch.zeros(len(q), height, width - 2 * right, channels)
        return torch.cat([one, middle, sign * one.flip(2)], dim=2).flatten(1)

    sizes = height * (width - right) * channels, height * right * channels
    halves: list[torch.Tensor] = []  # (D_half, l) each
    for i, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(torch_seed(0, "projection", i))
        start = torch.randn(size, min(num_components + OVERSAMPLING, size), generator=generator)
        halves.append(torch.linalg.qr(start).Q if start.numel() else start)
    found: list[tuple[float, int, torch.Tensor]] = []
    for iteration in range(ITERATIONS + 1):
        products = [torch.zeros_like(q) for q in halves]
        for images in _blocks(split, sample, advance):
            for product, part, q in zip(products, fold(images), halves, strict=True):
                product.addmm_(part.T, part @ q)
        if iteration < ITERATIONS:
            halves = [torch.linalg.qr(y).Q if y.numel() else y for y in products]
    for side, q, y in zip((1, -1), halves, products, strict=True):
        if q.numel():
            variances, rotation = torch.linalg.eigh((q.T @ y).double())
            found += [(float(v), side, c) for v, c in zip(variances, (q @ rotation.float()).T, strict=True)]
    found = sorted(found, key=lambda one: -one[0])[:num_components]
    components = torch.cat([unfold(c[None], sign) for _, sign, c in found])
    return mean.flatten().numpy(), components.numpy(), np.array([sign for _, sign, _ in found], np.float32)


def _blocks(split: Split, rows: np.ndarray, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_BYTES // (4 * int(np.prod(split.image_shape))))
    for start in range(0, len(rows), size):
        yield split.take(rows[start : start + size])
        advance(len(rows[start : start + size]))
