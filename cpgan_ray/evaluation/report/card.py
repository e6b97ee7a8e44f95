"""The report card: one HTML page that needs no network, made only from `report.json`, the panels and the learning curves."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from PIL.Image import Image

from cpgan_ray.common.text import printable_values
from cpgan_ray.errors import printable
from cpgan_ray.evaluation.identity.judges import RECOGNISER
from cpgan_ray.evaluation.report import figures

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""Training adversary -> rounds, and its R2 in each."""


LATE_INPUTS = {"code": "the code", "answers": "its own answers", "twin_answers": "the undefended twin's answers"}
"""What the page calls the inputs of late heads (evaluation/late_tasks.py)."""

R2_EXAMPLES = resources.files("cpgan_ray.evaluation.report") / "r2_examples.jpg"
"""Procedural faces, and what attacks of known R2 show of them; drawn by docs/figures/make_r2_examples.py."""


def data_uri(picture: Image) -> str:
    picture.save(buffer := io.BytesIO(), format="PNG")
    return uri(buffer.getvalue(), kind="png")


def uri(content: bytes, *, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def card(report: Mapping[str, Any], *, panels: Mapping[str, Image], curves: Curves) -> str:
    """The page as HTML. `panels`: `pictures` and `worst`; `curves`: empty if the training is not known.

    Names in the report may come from files of unknown origin: the page shows control characters as escapes, and its
    Content-Security-Policy forbids the browser to run scripts or to fetch anything.
    """
    report = printable_values(report)
    curves = {printable(name): curve for name, curve in curves.items()}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )  # names and settings come from users' files
    template = environment.from_string(resources.files("cpgan_ray.evaluation.report").joinpath("card.html.j2").read_text())
    plots = {
        "curves": figures.learning_curves(curves, report) if curves else "",
        "attacks": figures.attack_curves(report) if any(row["curve"] for row in report["attacks"]) else "",
        "sizes": figures.attack_sizes(report) if report["sweep"] else "",
        "attributes": figures.attributes(report["attributes"]) if report["attributes"] else "",
    }
    uris = {name: data_uri(picture) for name, picture in panels.items()}
    return template.render(
        r=report,
        panels=uris,
        figures=plots,
        summary=summary(report),
        input=input_sentences(report["attacked"]["input"]) if "attacked" in report else "",
        r2_examples=uri(R2_EXAMPLES.read_bytes(), kind="jpeg") if sample_noun(report) == "picture" else "",
        sample=sample_noun(report),
        words={name: text.replace("picture", sample_noun(report)) for name, text in report["bounds"]["words"].items()},
        by_attacker=strongest_by_attacker(report),
        judge=judge_words(report.get("identification", {}).get("judge")),
        drawn=drawn_words(report),
        drawing_judge=judge_words((report.get("generative") or {}).get("judge")),
        people=has_people(report),
        task=report["task"] if shows_task(report) else None,
        late=late_sentence(report.get("late_tasks")),
        late_inputs=LATE_INPUTS,
    )


def sample_noun(report: Mapping[str, Any]) -> str:
    """What the page calls a sample of the data set."""
    return "picture" if "mse_255" in report["attacks"][0] else "sample"


def strongest_by_attacker(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The strongest attack of each variant, the strongest first."""
    strongest: dict[str, Mapping[str, Any]] = {}
    for attack in report["attacks"]:  # by falling R2
        strongest.setdefault(attack["variant"], attack)
    return list(strongest.values())


def judge_words(name: str | None) -> str:
    """What the page says about the judge of identity."""
    if name == RECOGNISER:
        return f"the {name}, which no attack was fitted with"
    return "Fisher's discriminant on identities, fitted on the people of the training set"


def drawn_words(report: Mapping[str, Any]) -> dict[str, str]:
    """What the page calls the kinds of pictures that the generative attack is compared with."""
    if (generative := report.get("generative")) is None:
        return {}
    attack = "generative attack: one draw"
    if generative["selected"]:
        attack = f"generative attack: of {generative['draws']} draws the one with the closest code"
    return {
        "sample": attack,
        "single": "one draw",
        "oracle": f"oracle: of {generative['draws']} draws the closest to the truth",
        "start": "where draws start: the strongest attack",
        "shuffled": "control: draws for another person's code",
        "labels": "control: draws from the true answers only",
        "unconditional": "control: draws from nothing",
        "nearest": "control: the attacker's picture with the nearest code",
    }


def has_people(report: Mapping[str, Any]) -> bool:
    """Whether several samples belong to the same person. Otherwise each sample counts as its own person."""
    return any(row["people"] < row["pictures"] for row in report["threat_model"]["sets"])


def missing_share(report: Mapping[str, Any]) -> float:
    """The share of the task's answers that are missing, over all splits."""
    task = report["task"]
    missing = sum(sum(label["missing"].values()) for label in task["labels"])
    return missing / (len(task["labels"]) * sum(task["samples"].values()))


def shows_task(report: Mapping[str, Any]) -> bool:
    """Whether the page lists the labels of the task with their values: if an answer is missing, or if labels have several classes
    and are not the only one."""
    labels = report["task"]["labels"]
    return missing_share(report) > 0 or (len(labels) > 1 and any(len(label["values"]) > 2 for label in labels))


def late_sentence(late: Mapping[str, Any] | None) -> str:
    """What the report says about labels of late tasks; empty if it has none."""
    if not late:
        return ""
    of_code, count = late["inputs"]["code"], len(late["labels"])
    labels = "one label that was" if count == 1 else f"{count} labels that were"
    sentence = (
        f"Of {labels} no part of the task, heads on the frozen code answer {100 * of_code['balanced_accuracy']:.1f} % "
        f"(balanced accuracy; chance {100 * late['chance']:.1f} %)"
    )
    gains = [
        f"{100 * value['gain']:+.1f} points ({100 * value['gain_low']:+.1f} to {100 * value['gain_high']:+.1f}) compared with "
        f"{LATE_INPUTS[name]}"
        for name, value in late["inputs"].items()
        if "gain" in value
    ]
    return ": ".join([sentence, *([", ".join(gains)] if gains else [])]) + "."


def input_sentences(entry: Mapping[str, Any]) -> str:
    """What an encoder got, and what was assumed about it. entry: `attacked.input` of the report."""
    size = "the size of the store" if entry["size"] is None else " x ".join(map(str, entry["size"]))
    last = "channels last" if entry["layout"] == "nhwc" else "channels first"
    black, white = (" ".join(f"{value:.4g}" for value in entry[name]) for name in ("black", "white"))
    batch = {None: "", 1: ", one at a time"}.get(entry["batch"], f", {entry['batch']} at a time")
    values = f"black is {black} and white is {white}"
    sentence = f"It got {entry['type']} pictures of {size}, {last}, {entry['channels']}, {values}{batch}."
    if not entry["assumed"]:
        return sentence
    return f"{sentence} Assumed, because neither its file nor a flag says it: {'; '.join(entry['assumed'])}."


def excess_sentence(excess: Mapping[str, Any], *, answers: str) -> str:
    """What the paired difference to a floor says, with its interval in points of R2. answers: which answers the floor is of."""
    ends = f"({100 * excess['low']:.1f} to {100 * excess['high']:.1f} points, paired)"
    return {
        "more": f"the code shows {100 * excess['r2']:.1f} points more than {answers} do {ends}.",
        "less": f"the attacks find {-100 * excess['r2']:.1f} points less in the code than in {answers} {ends}.",
        "equivalent": f"the code and {answers} differ by at most {100 * excess['margin']:g} points {ends}.",
        "undecided": f"whether the code shows more than {answers} is undecided {ends}.",
    }[excess["verdict"]]


def summary(report: Mapping[str, Any]) -> dict[str, str]:
    """The main results in sentences."""
    best, face = report["privacy"]["strongest"], report["privacy"]["strongest_face"]
    share = 100 * best["r2"]
    unsaturated = [f"{a['name']} ({a['variant']})" for a in report["attacks"] if not a["saturated"]]
    unseen = f"{sample_noun(report)}s of people" if has_people(report) else f"{sample_noun(report)}s"
    strongest = (
        f"The strongest of {len(report['attacks'])} fresh attacks recovers {share:.1f} % of the variance of {unseen} "
        f"it has never seen (95 % interval {100 * best['low']:.1f} to {100 * best['high']:.1f} %)."
    )
    if face is not None:
        strongest += (
            f" On the face region the strongest attack recovers {100 * face['r2']:.1f} % "
            f"({100 * face['low']:.1f} to {100 * face['high']:.1f} %)."
        )
    floor = 100 * report["privacy"]["label_floor_r2"]
    known = "" if (share := missing_share(report)) == 0 else f", of which {100 * share:.2g} % are missing"
    label_floor = f"The label floor ({sample_noun(report)}s predicted from the true answers{known}) recovers {floor:.1f} %"
    label_floor += ": " + excess_sentence(report["privacy"]["label_excess"], answers="the true answers")
    answers_floor = ""
    if (excess := report["privacy"]["excess"]) is not None:
        r2 = 100 * report["privacy"]["answers_floor_r2"]
        answers_floor = f"Its own answers give away {r2:.1f} %: " + excess_sentence(excess, answers="its own answers")
    saturation = (
        "The budget of every attack was raised until that no longer helped."
        if not unsaturated
        else "Still improving when the budget ended, so only a lower bound: " + ", ".join(unsaturated) + "."
    )
    if report["privacy"]["weaker_than_answers"]:
        saturation = "The attacks on z found less than an attack on its own answers, so they have failed: only a lower bound."
    return {"strongest": strongest, "answers_floor": answers_floor, "label_floor": label_floor, "saturation": saturation}
