"""The page of trainings under several seeds: the means at the top, then a row for each training with a link to its report card."""

from collections.abc import Mapping, Sequence
from importlib import resources

import jinja2

from cpgan_ray.analysis.crossed import CrossedEstimate
from cpgan_ray.analysis.seeds import TITLES, Training
from cpgan_ray.common.text import printable_values
from cpgan_ray.pipelines.seeds.table import cell


def seeds_card(trainings: Sequence[Training], means: Mapping[str, CrossedEstimate], *, folders: Mapping[int, str]) -> str:
    """The page as HTML. folders: seed -> its run folder, relative to the page.

    Names in the reports may come from files of unknown origin: the page shows control characters as escapes, and its
    Content-Security-Policy forbids the browser to run scripts or to fetch anything.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files("cpgan_ray.pipelines.seeds").joinpath("card.html.j2").read_text())
    names = [name for name in TITLES if means[name].value is not None]
    first = trainings[0].report
    rows = [
        {
            "seed": t.seed,
            "folder": folders[t.seed],
            "numbers": [cell(name, t.numbers[name]) for name in names],
            "attack": t.attack,
            "degenerate": t.degenerate,
        }
        for t in trainings
    ]
    return template.render(
        **printable_values(
            {
                "name": first["name"],
                "k": first["k"],
                "privacy_weight": first["privacy_weight"],
                "titles": [TITLES[name] for name in names],
                "mean": [cell(name, means[name]) for name in names],
                "main": names.index("strongest_r2"),
                "rows": rows,
                "majority": f"{first['utility']['majority_accuracy']:.3f}",
            }
        )
    )
