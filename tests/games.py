"""What is compared of two games that are to be the same."""

from collections.abc import Mapping, Sequence


def untimed(played: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The metrics of all rounds but those of time."""
    return [{name: value for name, value in metrics.items() if not name.startswith("time/")} for metrics in played]
