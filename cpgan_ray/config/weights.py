"""Names with weights: of labels in the utility loss, and of what is hidden in the game."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BeforeValidator
from tyro.constructors import PrimitiveConstructorSpec

from cpgan_ray.config.constraints import NonNegative


def read_weights(words: Sequence[str]) -> dict[str, float]:
    """The weights in the words of a flag, such as `Male=1`.

    Raises: ValueError if a word has no number, or a name occurs twice.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"{word!r} is not a name, = and a number, such as Male=1")
        if name in weights:
            raise ValueError(f"{name!r} is given twice")
        weights[name] = weight
    return weights


def weight_words(weights: Mapping[str, float]) -> list[str]:
    """The words from which `read_weights` reads these weights."""
    return [f"{name}={weight:g}" for name, weight in weights.items()]


Weights = Annotated[
    dict[str, NonNegative],
    BeforeValidator(lambda value: read_weights(value) if isinstance(value, list | tuple) else value),
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=WEIGHT ...",
        instance_from_str=lambda words: read_weights(words),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=weight_words,
    ),
]
"""Names with weights, on a command line as `Male=1 identity=0.5`; a list of such words is read where a file has one."""
