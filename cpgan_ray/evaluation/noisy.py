"""The codes of a stochastic release, from its codes without noise: several draws of an attacker's pictures, one of all others."""

from collections.abc import Mapping

import numpy as np

from cpgan_ray.common.noise import noise_of, rounded
from cpgan_ray.data import Dataset
from cpgan_ray.data.code_sets import DRAWS, draw_name
from cpgan_ray.evaluation.protocol import Codes


def noisy_codes(clean: Mapping[str, np.ndarray], dataset: Dataset, *, noise: float, step: float, seed: int) -> Codes:
    """The released codes of all sets, with the names of `code_sets(dataset, draws=DRAWS)`.

    clean: codes (N, k) before noise and rounding; noise: its standard deviation; seed: of the run. The draws are those with which
    the run itself was evaluated.
    """
    fitted = [*dataset.fit_splits, *(f"{name}_mirrored" for name in dataset.fit_splits if dataset.info.mirrored)]
    source = {name: name for name in clean}
    source |= {draw_name(name, draw): name for draw in range(1, DRAWS) for name in fitted if name in clean}
    return {
        name: rounded(clean[of] + noise_of(seed, name, shape=(len(clean[of]), clean[of].shape[1]), noise=noise), step)
        for name, of in source.items()
    }
