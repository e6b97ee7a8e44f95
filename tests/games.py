"""Helper to compare the metrics of two games."""

from collections.abc import Mapping, Sequence


def untimed(played: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The metrics of all rounds without times."""
    return [{name: value for name, value in metrics.items() if not name.startswith("time/")} for metrics in played]
