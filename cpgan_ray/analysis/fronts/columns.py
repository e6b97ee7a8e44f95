"""What tables of points show of a code apart from its utility and its strongest R2."""

from collections.abc import Callable, Sequence

from cpgan_ray.analysis.fronts.choice import NAMES
from cpgan_ray.analysis.fronts.trials import ACCURACIES, Point

Text = Callable[[Point], str]
"""Function from a point to the text of its cell; empty if the number is not known."""


def measure_columns(points: Sequence[Point]) -> dict[str, Text]:
    """Title -> text of a cell, of the numbers that any of the points has."""
    columns: dict[str, Text] = {
        **{NAMES[name]: interval_of(name) for name in ACCURACIES if not points or name != points[0].objective},
        "balanced accuracy of late tasks": interval_of("late_balanced_accuracy"),
        "excess R2": interval_of("excess_r2"),
        "linkage AUC": interval_of("linkage_auc"),
        "TAR at 1 % FAR": lambda p: fixed(p.linkage_tar),
        "bits": interval_of("bits", text=amount),
        "bytes": lambda p: amount(p.client_bytes),
        "multiply-adds": lambda p: amount(p.multiply_adds),
        "parameters": lambda p: amount(p.client_parameters),
        "cloud's multiply-adds": lambda p: amount(p.cloud_multiply_adds),
        "dead labels": lambda p: "" if p.dead_labels is None else f"{p.dead_labels:.3g}",
    }
    return {title: text for title, text in columns.items() if any(map(text, points))}


def fixed(value: float | None) -> str:
    """A share or an R2 in three digits."""
    return "" if value is None else f"{value:.3f}"


def amount(value: float | None) -> str:
    """A cost or a length."""
    return "" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def interval_of(name: str, *, text: Callable[[float | None], str] = fixed) -> Text:
    """A number with its interval, if it has one."""

    def cell(point: Point) -> str:
        value, low, high = (getattr(point, f"{name}{end}") for end in ("", "_low", "_high"))
        return with_interval(value, low, high, text=text)

    return cell


def with_interval(
    value: float | None, low: float | None, high: float | None, *, text: Callable[[float | None], str] = fixed
) -> str:
    """A number and the ends of its interval, if they are known."""
    return text(value) if value is None or low is None or high is None else f"{text(value)} [{text(low)}, {text(high)}]"
