"""The judges that decide whether two pictures show the same person: by the cosine of their embeddings, which are unit vectors."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.config import AttackConfig
from cpgan_ray.data import Dataset
from cpgan_ray.data.discriminant import FisherDiscriminant
from cpgan_ray.evaluation.attacks.base import AttackData, Pairs, predict
from cpgan_ray.evaluation.identity.recogniser import Recogniser, model_file

RECOGNISER, DISCRIMINANT = "face recogniser SFace", "Fisher's discriminant"


class Judge(Protocol):
    """Embeds pictures, and reconstructions of them. Which of the two spoke is part of the report."""

    name: str

    def of_pictures(self, pairs: Pairs) -> np.ndarray:
        """Unit vectors (N, q) of the pictures of pairs."""
        ...

    def of_reconstructions(self, reconstruct: Callable[[Tensor], Tensor], z: Tensor, *, rows: int) -> np.ndarray:
        """Unit vectors (N, q) of what `reconstruct` makes of the codes z (N, k): pixels (B, D) minus the mean picture.

        rows: number of codes that are reconstructed at once.
        """
        ...


class Discriminant:
    """Fisher's discriminant on the principal components of the pictures, fitted on people of the training set."""

    name = DISCRIMINANT

    def __init__(self, data: AttackData) -> None:
        """Raises: ValueError if fewer than two people have two pictures to fit on."""
        plain = slice(0, len(data.fit) // data.views)  # followed by the other views of the same pictures
        self.basis = data.components
        self.verifier = FisherDiscriminant(data.fit.target.values[plain].cpu().numpy(), data.fit.identity[plain])

    def of_pictures(self, pairs: Pairs) -> np.ndarray:
        return self.verifier.embed(pairs.target.values.cpu().numpy())

    def of_reconstructions(self, reconstruct: Callable[[Tensor], Tensor], z: Tensor, *, rows: int) -> np.ndarray:
        return self.verifier.embed(predict(lambda z: reconstruct(z) @ self.basis.T, z, rows=rows).cpu().numpy())


class FaceJudge:
    """A face recogniser that no attack was fitted with."""

    name = RECOGNISER

    def __init__(self, recogniser: Recogniser, mean: np.ndarray, image_shape: tuple[int, int, int]) -> None:
        """mean: (D,) mean picture in [-1, 1]."""
        self.recogniser, self.image_shape = recogniser, image_shape
        self.mean = torch.from_numpy(np.require(mean, np.float32, ["C", "W"]))

    def embed(self, pixels: Tensor) -> np.ndarray:
        """Unit vectors (B, q) of pixels (B, D) minus the mean picture."""
        pictures = ((pixels + self.mean.to(pixels.device) + 1) * 127.5).clamp(0, 255)
        embeddings = self.recogniser(pictures.view(-1, *self.image_shape))
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)

    def of_pictures(self, pairs: Pairs) -> np.ndarray:
        return np.concatenate([self.embed(x) for _, x in pairs.pixel_blocks()])

    def of_reconstructions(self, reconstruct: Callable[[Tensor], Tensor], z: Tensor, *, rows: int) -> np.ndarray:
        return np.concatenate([self.embed(reconstruct(block)) for block in z.split(rows)])


def judge_of(dataset: Dataset, data: AttackData, *, mean: np.ndarray) -> Judge | None:
    """The judge of a data set: the face recogniser if its pictures are aligned faces and the extra `faces` is installed, otherwise
    Fisher's discriminant; None if the people are not known, or too few of them have two pictures.

    data: of variant `leaked`; mean: (D,) mean picture in [-1, 1].

    Raises: InputError if the file of the recogniser is another one.
    """
    if dataset.info.anonymous or not has_pairs(data.score.identity):
        return None
    if dataset.landmarks is not None and (path := model_file()) is not None:
        recogniser = Recogniser(path, dataset.landmarks, dataset.image_shape[:2])
        return FaceJudge(recogniser, mean, dataset.image_shape)
    try:
        return Discriminant(data)
    except ValueError:
        return None


def check_judge(config: AttackConfig, dataset: Dataset) -> None:
    """Check before a training or an attack that the judge can be used.

    Raises: InputError if the file of the recogniser is another one.
    """
    if config.identity and dataset.landmarks is not None:
        model_file()


def has_pairs(identity: np.ndarray) -> bool:
    """Whether a person has two pictures, and there is another person."""
    people = np.unique(identity)
    return 1 < len(people) < len(identity)
