"""The table of trainings under several seeds: a row for each seed, and their mean."""

from collections.abc import Mapping, Sequence

from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.crossed import CrossedEstimate
from cpgan_ray.analysis.fronts import Estimate
from cpgan_ray.analysis.seeds import TITLES, Training

BOTH = "interval of the mean: over seeds and people; of a seed: over people"


def seeds_table(trainings: Sequence[Training], means: Mapping[str, CrossedEstimate]) -> str:
    """Markdown. Numbers that no training has are left out."""
    names = [name for name in TITLES if means[name].value is not None]
    output = PrettyTable(["seed", *(TITLES[name] for name in names), "attack"])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for t in trainings:
        output.add_row([f"{t.seed}", *(cell(name, t.numbers[name]) for name in names), t.attack])
    output.add_row(["mean", *(cell(name, means[name]) for name in names), ""])
    degenerate = [f"\n\nseed {t.seed} has a degenerate code: {t.degenerate}" for t in trainings if t.degenerate is not None]
    return f"{output.get_string()}\n\n{BOTH}{''.join(degenerate)}"


def cell(name: str, number: Estimate | CrossedEstimate) -> str:
    """A number with its interval: bits with one decimal, all others with three."""
    value, low, high = number[:3]
    digits = ".1f" if name == "bits" else ".3f"
    if value is None:
        return ""
    return f"{value:{digits}}" if low is None or high is None else f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"
