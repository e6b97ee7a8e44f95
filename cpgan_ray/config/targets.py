"""What adversaries recover from the codes."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from cpgan_ray.config.constraints import text_like
from cpgan_ray.errors import InputError

PICTURE, IDENTITY = "picture", "identity"
ATTRIBUTE = "attribute:"
TARGET = rf"{PICTURE}|{IDENTITY}|{ATTRIBUTE}[^,]+(,[^,]+)*"

TargetName = Annotated[str, text_like(f"^({TARGET})$", "picture, identity, or attribute: and the name of a label")]
"""A target by name; several labels are separated by commas, as in `attribute:Male,Young`."""


def sensitive_name(target: str) -> str:
    """The name of a target among the weights: `identity`, or the labels of an attribute target."""
    return target.removeprefix(ATTRIBUTE)


def labels_of(target: str) -> tuple[str, ...]:
    """The labels of an attribute target; none for other targets."""
    return tuple(target.removeprefix(ATTRIBUTE).split(",")) if target.startswith(ATTRIBUTE) else ()


def sensitive_labels(weights: Mapping[str, float]) -> tuple[str, ...]:
    """The labels that a game with these target weights hides, in their order, each once."""
    return tuple(dict.fromkeys(label for name in weights if name != IDENTITY for label in name.split(",")))


def check_targets(
    weights: Mapping[str, float], targets: Mapping[str, str], *, task: Sequence[str], late: Sequence[str] = ()
) -> None:
    """weights: `game.target_weights`; targets: name of each adversary -> its target; task: `data.labels`; late: `data.late_labels`.

    Raises: InputError if a target has no weight, a weight has no adversary with that target, or a label is answered and hidden,
    now or later.
    """
    names = {adversary: sensitive_name(target) for adversary, target in targets.items() if target != PICTURE}
    for adversary, name in names.items():
        if name not in weights:
            raise InputError(
                f"adversaries.{adversary}.target is {targets[adversary]!r}, but game.target_weights has no {name!r}: add "
                f"--game.target-weights {name}=1"
            )
    if idle := [name for name in weights if name not in names.values()]:
        target, flag = IDENTITY if idle[0] == IDENTITY else f"{ATTRIBUTE}{idle[0]}", f"--adversaries.{idle[0].replace(',', '-')}"
        raise InputError(
            f"game.target_weights has {idle[0]!r}, but no adversary has the target {target!r}: add {flag}.kind ridge "
            f"{flag}.target {target}"
        )
    if shared := [label for label in sensitive_labels(weights) if label in task]:
        raise InputError(
            f"data.labels and game.target_weights both have {shared[0]!r}: a label cannot be answered and hidden; leave it out of "
            "one of the two"
        )
    if shared := [label for label in sensitive_labels(weights) if label in late]:
        raise InputError(
            f"data.late_labels and game.target_weights both have {shared[0]!r}: a label that is hidden cannot be a late task; "
            "leave it out of one of the two"
        )
