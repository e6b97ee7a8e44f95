"""The report card: one HTML page that needs no network, made from `report.json` and the panels alone."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from PIL.Image import Image

from cpgan_ray.common.text import printable_values
from cpgan_ray.errors import printable
from cpgan_ray.evaluation.report import figures

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""Training adversary -> rounds, R2 on them."""


def data_uri(picture: Image) -> str:
    picture.save(buffer := io.BytesIO(), format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def card(report: Mapping[str, Any], *, panels: Mapping[str, Image], curves: Curves) -> str:
    """The page. `panels`: `pictures` and `worst`; `curves` is empty where nothing is known of the training.

    Names in the report may come from anybody's files: the page shows their control characters as escapes, and its Content-Security-
    Policy lets a browser run and fetch nothing, whatever they hold.
    """
    report = printable_values(report)
    curves = {printable(name): curve for name, curve in curves.items()}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )  # names and settings come from users' files
    template = environment.from_string(resources.files("cpgan_ray.evaluation.report").joinpath("card.html.j2").read_text())
    drawn = {
        "curves": figures.learning_curves(curves, report) if curves else "",
        "attacks": figures.attack_curves(report) if any(row["curve"] for row in report["attacks"]) else "",
        "sizes": figures.attack_sizes(report) if report["sweep"] else "",
        "attributes": figures.attributes(report["attributes"]) if report["attributes"] else "",
    }
    shown = {name: data_uri(p) for name, p in panels.items()}
    return template.render(r=report, panels=shown, figures=drawn, words=words(report), sample=sample(report), people=people(report))


def sample(report: Mapping[str, Any]) -> str:
    """What one of the data set's values is called."""
    return "picture" if "mse_255" in report["attacks"][0] else "sample"


def people(report: Mapping[str, Any]) -> bool:
    """Whether samples are known to be some person's; otherwise each is by itself."""
    return any(row["people"] < row["pictures"] for row in report["threat_model"]["sets"])


def words(report: Mapping[str, Any]) -> dict[str, str]:
    """The headline in words."""
    best, floor = report["privacy"]["strongest"], report["privacy"]["label_floor_r2"]
    share = 100 * best["r2"]
    unsaturated = [f"{a['name']} ({a['variant']})" for a in report["attacks"] if not a["saturated"]]
    unseen = f"{sample(report)}s of people" if people(report) else f"{sample(report)}s"
    lead = (
        f"The strongest of {len(report['attacks'])} fresh attacks recovers {share:.1f} % of the variance of {unseen} "
        f"it has never seen (95 % interval {100 * best['low']:.1f} to {100 * best['high']:.1f} %)."
    )
    beside = f"The answers to the task alone, the label floor, give away {100 * floor:.1f} %"
    excess = 100 * report["privacy"]["excess_r2"]
    if best["low"] > floor:
        beside += f": the code gives away {excess:.1f} points more than it has to."
    elif best["high"] < floor:
        beside += f": the code gives away {-excess:.1f} points less than a full answer would."
    else:
        beside += ": what the code gives away beyond them is within the interval."
    lag = (
        "Every attack was given more budget until that no longer helped."
        if not unsaturated
        else "Still gaining when its budget ended, so a lower bound: " + ", ".join(unsaturated) + "."
    )
    return {"lead": lead, "beside": beside, "saturation": lag}
