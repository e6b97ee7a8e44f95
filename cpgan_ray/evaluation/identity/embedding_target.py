"""Attacks that predict from z who is on the picture, not the picture: their target is the judge's embedding of it.

The attacks are those on pictures, with other targets (after FaceLinkGen: an attacker who only wants to link a person need not
reconstruct the picture). They are judged by identification only, never ranked by R2. The mirror image of a picture, and other draws
of its code, have the embedding of the picture itself as target.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.rng import stream
from cpgan_ray.data.store import Split
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, Pairs, StoredPixels, predict
from cpgan_ray.evaluation.identity.judges import Judge
from cpgan_ray.training.adversaries.base import Target

MAX_PICTURES = 4096
"""Largest number of pictures of a set whose embeddings are computed for the attacks: a face recogniser takes much longer than an
attack."""


def embedded_rows(split: Split, *, seed: int) -> np.ndarray:
    """The rows of a split whose pictures are embedded (n,): at most MAX_PICTURES, drawn at random."""
    if len(split) <= MAX_PICTURES:
        return np.arange(len(split))
    return np.sort(stream(seed, "embedding", split.name).choice(len(split), MAX_PICTURES, replace=False))


def embeddings_of(judge: Judge, data: AttackData, *, seed: int) -> dict[str, np.ndarray]:
    """The judge's embeddings of the pictures that an attack is fitted and tuned on, by split: (N, q) float32, NaN for pictures that
    are not embedded.

    data: the sets of that attack.
    """
    embeddings: dict[str, np.ndarray] = {}
    for pairs in (data.fit, data.tune):
        split, rows = stored_rows(pairs)
        views = data.views if pairs is data.fit else 1
        wanted = np.flatnonzero(np.isin(rows[: len(rows) // views], embedded_rows(split, seed=seed)))
        unit = judge.of_pictures(some(pairs, wanted))
        all_rows = embeddings.setdefault(split.name, np.full((len(split), unit.shape[1]), np.nan, np.float32))
        all_rows[rows[wanted]] = unit
    return embeddings


def stored_rows(pairs: Pairs) -> tuple[Split, np.ndarray]:
    """The split of pairs that are in the store, and their rows in it."""
    assert isinstance(pairs.pixels, StoredPixels)
    return pairs.pixels.split, pairs.pixels.batch.rows


def some(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """Some of the pairs, whose pictures stay in the store."""
    of, whole = torch.from_numpy(rows).to(pairs.z.device), pairs.pixels
    assert isinstance(whole, StoredPixels)
    target = Target(pairs.target.values[of], pairs.target.residual[of], pairs.target.dimension)
    pixels = StoredPixels(whole.split, whole.batch[rows], whole.mean, whole.device)
    return Pairs(pairs.z[of], target, pixels, pairs.identity[rows])


def embedding_data(data: AttackData, embeddings: Mapping[str, np.ndarray]) -> tuple[AttackData, Tensor]:
    """The same fit and tuning rows with embeddings, minus their mean, as targets; and that mean (q,). The score set has no targets.

    embeddings: see `embeddings_of`.
    """
    targets, kept = [], []
    for pairs in (data.fit, data.tune):
        split, rows = stored_rows(pairs)
        values = embeddings[split.name][rows]
        kept.append(np.flatnonzero(np.isfinite(values).all(axis=1)))
        targets.append(torch.from_numpy(values[kept[-1]]).to(pairs.z.device))
    mean = targets[0].mean(0)
    fit, tune = (
        as_pairs(pairs.z[torch.from_numpy(rows).to(pairs.z.device)], x - mean, pairs.identity[rows])
        for pairs, rows, x in zip((data.fit, data.tune), kept, targets, strict=True)
    )
    score = as_pairs(data.score.z, torch.zeros(len(data.score), len(mean), device=mean.device), data.score.identity)
    basis = torch.eye(len(mean), device=mean.device)
    return AttackData(fit, tune, score, basis, None, None, data.seed, pictures=False, views=data.views), mean


def as_pairs(z: Tensor, x: Tensor, identity: np.ndarray) -> Pairs:
    """Codes (N, k) with targets (N, q), which are their own components and pixels."""
    return Pairs(z, Target(x, torch.zeros(len(x), device=x.device), x.shape[1]), x, identity)


def predicted_embeddings(fitted: Fitted, z: Tensor, mean: Tensor) -> np.ndarray:
    """Unit vectors (N, q): what an attack predicts from codes z (N, k). mean: see `embedding_data`."""
    embeddings = (predict(fitted.reconstruct, z) + mean).cpu().numpy().astype(np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
