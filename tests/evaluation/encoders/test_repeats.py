"""Tests of the check that an encoder gives a picture the same code again."""

from collections.abc import Callable

import numpy as np
import pytest

from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.repeats import check_repeats

SETS = {"train": 900, "val": 300, "test": 300}
K = 4
Answer = Callable[[np.ndarray], np.ndarray]
RNG = np.random.default_rng(3)
MAP = RNG.normal(size=(6, K))
PICTURES = {name: RNG.normal(size=(n, 6)) for name, n in SETS.items()}


def honest(x: np.ndarray) -> np.ndarray:
    return x @ MAP


class Counting:
    """Returns zeros until it has seen enough pictures: the test set gets real codes, the attacker's sets do not."""

    def __init__(self, quiet: int) -> None:
        self.seen, self.quiet = 0, quiet

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.seen += len(x)
        return honest(x) * (self.seen > self.quiet)


class Noisy:
    """Independent noise, as in a declared stochastic release; `change` turns it into other noise."""

    def __init__(self, change: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray] | None = None) -> None:
        self.rng, self.change = np.random.default_rng(5), change

    def __call__(self, x: np.ndarray) -> np.ndarray:
        z = honest(x)
        return self.change(x, z, self.rng) if self.change else z + self.rng.laplace(size=z.shape) * (1 + np.abs(z))


def one_column(x: np.ndarray) -> np.ndarray:
    """One of many columns depends on the batch."""
    return np.concatenate([np.repeat(honest(x), 50, axis=1), x[:, :1] * (len(x) == 50)], axis=1)


def evaluated(encode: Answer, *, stochastic: bool = False) -> dict:
    def as_float32(x: np.ndarray) -> np.ndarray:
        return encode(x).astype(np.float32)

    codes = {}
    for name, x in PICTURES.items():
        codes[name] = np.concatenate([as_float32(x[start : start + 50]) for start in range(0, len(x), 50)])
    rng = np.random.default_rng(0)
    return check_repeats(
        codes, lambda name, rows: PICTURES[name][rows], as_float32, subject="encoder e", stochastic=stochastic, rng=rng
    )


DEPENDENT: dict[str, Callable[[], Answer]] = {
    "number of pictures seen": lambda: Counting(1200),
    "mean of the batch": lambda: lambda x: honest(x) - honest(x).mean(axis=0),
    "size of the batch": lambda: lambda x: honest(x) * (len(x) == 50),
    "position in the batch": lambda: lambda x: honest(x) + np.arange(len(x))[:, None],
    "neighbour": lambda: lambda x: honest(x) + honest(np.roll(x, 1, axis=0)),
    "one column of many": lambda: one_column,
    "random numbers": lambda: Noisy(),
}


@pytest.mark.parametrize("case", DEPENDENT)
def test_check_repeats_stateful_encoder_raises(case):
    with pytest.raises(InputError, match="encoder e gives .* another code when .* eval mode and without state, or declare"):
        evaluated(DEPENDENT[case]())


DECLARED: dict[str, Callable[[], Answer]] = {name: make for name, make in DEPENDENT.items() if name != "random numbers"} | {
    "one draw for the batch": lambda: Noisy(lambda x, z, rng: z + rng.normal(size=(1, K))),
    "coin for the batch": lambda: Noisy(lambda x, z, rng: z + rng.normal(size=z.shape) * (rng.random() < 0.5)),
    "less noise by itself": lambda: Noisy(lambda x, z, rng: z + rng.normal(size=z.shape) * (0.2 if len(x) == 1 else 1)),
}


@pytest.mark.parametrize("case", DECLARED)
def test_check_repeats_stochastic_beyond_noise_raises(case):
    with pytest.raises(InputError, match="declared as stochastic, but its codes differ by more than noise: .*; export it without"):
        evaluated(DECLARED[case](), stochastic=True)


def test_check_repeats_less_noise_in_one_set_raises():
    def quiet(x: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        known = np.isin(x[:, 0], PICTURES["test"][:, 0])[:, None]
        return z + rng.normal(size=z.shape) * np.where(known, 0.3, 1)

    with pytest.raises(InputError, match="one of the sets gets another noise"):
        evaluated(Noisy(quiet), stochastic=True)


def test_check_repeats_independent_noise_passes():
    assert evaluated(Noisy(), stochastic=True)["noise_std"] == pytest.approx(
        np.sqrt(2) * np.sqrt(((1 + np.abs(honest(PICTURES["train"]))) ** 2).mean()), rel=0.15
    )
    assert evaluated(honest, stochastic=True) == {"pictures": 600, "noise_std": 0.0}


def test_check_repeats_float_noise_and_rounding_pass():
    rng = np.random.default_rng(7)

    def rounded(x: np.ndarray) -> np.ndarray:
        return np.round((honest(x) + 1e-5 * rng.normal(size=(len(x), K))) / 0.5) * 0.5

    assert evaluated(lambda x: honest(x) * (1 + 1e-5 * rng.normal(size=(len(x), K)))) == {"pictures": 600, "differing": 0.0}
    assert evaluated(rounded)["differing"] < 0.01
    constant = evaluated(lambda x: np.ones((len(x), K)) + 1e-7 * rng.normal(size=(len(x), K)))
    assert constant["differing"] == 0.0
