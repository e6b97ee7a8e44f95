"""Alice answers herself: what she sends are answers of the undefended twin, or what they are computed from.

Nothing computed from z can show more than z does. A code is therefore only worth its cost if it is better than the answers at the
same accuracy and the same work for the client. The client of these mechanisms computes the privatizer and the utility head.

All three take the undefended twin of the same seed (`bottleneck` at full length, without rounding). Codes are finite, so they are
not rounded. Bob guesses what is not sent: each label's most frequent training value.
"""

from collections.abc import Iterable

import numpy as np
import torch

from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, Task, majority_logits, task_of
from cpgan_ray.data.answers import answer_bits, answer_logits, answer_numbers
from cpgan_ray.data.code_sets import DRAWS, code_sets
from cpgan_ray.errors import InputError
from cpgan_ray.mechanisms.answer_order import private_order
from cpgan_ray.mechanisms.base import Released, noise_stream
from cpgan_ray.mechanisms.games import undefended_twin
from cpgan_ray.models import build_head
from cpgan_ray.models.cost import Cost
from cpgan_ray.training.accuracy import predictions

NOTHING = Cost(parameters=0, multiply_adds=0)
"""What the cloud computes for answers."""
MAX_BITS = 16
LARGEST = 3.0
"""Logits are clipped to so many standard deviations before they are sent with several bits."""


def answers(config: Config, bits: float, dataset: Dataset) -> Released:
    """Send all answers. 1 bit: the hard answers, one-hot for labels of several classes. b > 1: each logit with b bits.

    Raises: InputError if the number of bits is not a whole number from 1 to 16.
    """
    if bits != int(bits) or not 1 <= bits <= MAX_BITS:
        raise InputError(f"answers has the setting {bits:g}; its bits per answer must be a whole number from 1 to {MAX_BITS}")
    twin, task = undefended_twin(config, dataset), task_of(dataset, config.data.labels)
    if bits == 1:
        return released(twin, {name: predictions(z, task) for name, z in twin.logits.items()}, config, dataset)
    scale = twin.logits["train"].std(axis=0, dtype=np.float64).astype(np.float32)
    sent = {name: quantised(z, scale, bits=int(bits)) for name, z in twin.logits.items()}
    logits = {name: z * scale for name, z in sent.items()}
    return Released(sent, logits, client=client_network(twin, config, dataset, task), cloud=NOTHING, bits=bits * task.num_logits)


def answers_subset(config: Config, share: float, dataset: Dataset) -> Released:
    """Send a share of the hard answers: those that are worth most for what they show (answer_order.py)."""
    twin, task = undefended_twin(config, dataset), task_of(dataset, config.data.labels)
    order = private_order(twin.logits, dataset, task)
    kept = sorted(order[: num_sent(config, share, dataset)])
    return released(twin, {name: predictions(z, task) for name, z in twin.logits.items()}, config, dataset, kept=kept)


def answers_noisy(config: Config, flip: float, dataset: Dataset) -> Released:
    """Send all hard answers by randomised response: with probability `flip` another value of the label, drawn uniformly.

    Local differential privacy: for L binary labels no code's probability changes by more than a factor of exp(epsilon) between any
    two pictures, with epsilon = L ln((1 - p) / p); a label of C values has ln((1 - p)(C - 1) / p).

    Raises: InputError if the probability is not between 0 and 0.5.
    """
    if not 0 <= flip <= 0.5:
        raise InputError(f"answers_noisy has the setting {flip:g}; its flip probability must be from 0 to 0.5")
    twin, task = undefended_twin(config, dataset), task_of(dataset, config.data.labels)
    hard = {name: predictions(z, task) for name, z in twin.logits.items()}
    draws = DRAWS if flip else 1
    names = [name for name in code_sets(dataset, draws=draws) if name not in hard] + list(hard)
    sent = {name: flipped(hard[undrawn(name)], task, flip, noise_stream(config, "answers", name)) for name in names}
    return released(twin, sent, config, dataset)


def undrawn(name: str) -> str:
    """The set of which `name` is another draw."""
    return name.partition("_draw")[0]


def flipped(hard: np.ndarray, task: Task, flip: float, rng: np.random.Generator) -> np.ndarray:
    """Answers (N, L), each with probability `flip` replaced by another value of its label."""
    values = np.array(task.num_values)
    steps = rng.integers(1, np.broadcast_to(values, hard.shape))
    return np.where(rng.random(hard.shape) < flip, (hard + steps) % values, hard)


def quantised(logits: np.ndarray, scale: np.ndarray, *, bits: int) -> np.ndarray:
    """Logits (N, M) in units of `scale`, each as one of 2^bits levels in equal steps from -LARGEST to LARGEST. No level is 0: the
    answer of a binary label stays."""
    half = 2 ** (bits - 1)
    steps = np.floor(logits / np.maximum(scale, 1e-12) * half / LARGEST).clip(-half, half - 1)
    return ((steps + 0.5) * LARGEST / half).astype(np.float32)


def num_sent(config: Config, share: float, dataset: Dataset) -> int:
    """The number of answers that are a share of all, at least 1."""
    return max(1, round(share * len(task_of(dataset, config.data.labels).labels)))


def released(
    twin: Released, sent: dict[str, np.ndarray], config: Config, dataset: Dataset, *, kept: Iterable[int] | None = None
) -> Released:
    """What is released if these answers (N, L) are sent; of the labels `kept` only, if they are given."""
    task = task_of(dataset, config.data.labels)
    chosen = list(range(len(task.labels))) if kept is None else list(kept)
    codes = {name: answer_numbers(hard, task, sent=chosen) for name, hard in sent.items()}
    logits = {name: guessed(answer_logits(hard, task), chosen, dataset, task) for name, hard in sent.items()}
    client = client_network(twin, config, dataset, task)
    return Released(codes, logits, client=client, cloud=NOTHING, bits=answer_bits(task.labels[i] for i in chosen))


def guessed(logits: np.ndarray, sent: Iterable[int], dataset: Dataset, task: Task) -> np.ndarray:
    """Bob's logits: those of the labels that are sent, and the majority guess for the others."""
    result = np.array(majority_logits(dataset, task, rows=len(logits)), np.float32)
    for i in sent:
        result[:, task.labels[i].logits] = logits[:, task.labels[i].logits]
    return result


def client_network(twin: Released, config: Config, dataset: Dataset, task: Task) -> torch.nn.Module:
    """The twin's privatizer, and a head of the same form as the twin's: what the client computes."""
    assert twin.encoder is not None
    with torch.random.fork_rng(devices=()):
        head = build_head(config.utility, k=config.k, num_logits=task.num_logits, image_shape=dataset.image_shape)
    return torch.nn.Sequential(twin.encoder, head)
