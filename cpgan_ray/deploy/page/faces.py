"""The faces that the page offers: drawn when the service starts, of people who are in no data set."""

import functools
import io

import numpy as np

from cpgan_ray.data.datasets.faces.drawing import draw_face
from cpgan_ray.data.datasets.faces.people import draw_identity, draw_shot

NUM_FACES = 6
SEED = 7_314_226_951
"""Of these people only. The data sets draw from the seed of a run, which is a small number."""
SIZE = (178, 218)


@functools.cache
def offered_faces() -> tuple[bytes, ...]:
    """NUM_FACES faces as PNG files of SIZE, the same ones each time."""
    return tuple(_face(person) for person in range(NUM_FACES))


def _face(person: int) -> bytes:
    identity = draw_identity(np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(person,))))
    rng = np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(person, 0)))
    draw_face(identity, draw_shot(identity, rng=rng), size=SIZE, rng=rng).save(file := io.BytesIO(), "PNG")
    return file.getvalue()
