"""Tests of the report card: it is self-contained, matches the report, and escapes all names."""

import copy
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from cpgan_ray.evaluation.bounds.gallery import GalleryBound
from cpgan_ray.evaluation.bounds.measure import DISTINCT, Bounds
from cpgan_ray.evaluation.bounds.words import all_words
from cpgan_ray.evaluation.identity.judges import RECOGNISER
from cpgan_ray.evaluation.rate import CONTINUOUS, CodeRate
from cpgan_ray.evaluation.report import figures
from cpgan_ray.evaluation.report.card import card, summary
from cpgan_ray.evaluation.scoring import Difference
from cpgan_ray.evaluation.tournament_numbers import excess_as_json

HOSTILE = "<script>alert(1)</script>\"'&"
PANELS = {"pictures": Image.new("RGB", (4, 3), "red"), "worst": Image.new("RGB", (5, 2), "blue")}
CURVES = {"rbf": ([0, 1, 2], [0.1, 0.3, 0.2]), "conv": ([0, 2], [0.05, 0.15])}


def attack(name: str, variant: str, r2: float, **more: Any) -> dict[str, Any]:
    scores = {"r2": r2, "low": r2 - 0.01, "high": r2 + 0.01, "mse_255": 1000 * (1 - r2), "psnr": 18.21, "ssim": 0.456}
    budget = {"share": 1.0, "saturated": True, "seconds": 3.2, "rows": 640, "curve": []}
    return {"name": name, "variant": variant, **scores} | budget | more


REPORT: dict[str, Any] = {
    "name": "mine",
    "k": 6,
    "privacy_weight": 0.5,
    "seed": 3,
    "made": "2026-01-01 12:00 UTC",
    "settings": {"batch_size": 80, "note": "plain"},
    "versions": {"torch": "9.9"},
    "warnings": [
        {"kind": "useless_code", "message": "the code says <nothing>", "fails_gates": True},
        {"kind": "rare_class", "message": "Bald = 1 has only 3 samples", "fails_gates": False},
    ],
    "utility": {"accuracy": 0.8126, "balanced_accuracy": 0.7714, "majority_accuracy": 0.6334},
    "bounds": {
        "gallery": [asdict(GalleryBound(8, 20, 0.4, 0.3, 0.5, 0.25, 0.2, 0.3))],
        "words": all_words(
            Bounds(gallery=(GalleryBound(8, 20, 0.4, 0.3, 0.5, 0.25, 0.2, 0.3),), candidates=100),
            CodeRate(raw=128.0, not_coded=CONTINUOUS),
        ),
    },
    "privacy": {
        "strongest": {"attack": "kernel", "variant": "leaked", "r2": 0.2347, "low": 0.2211, "high": 0.2488},
        "label_floor_r2": 0.1113,
        "label_excess": {"r2": 0.1234, "low": 0.1111, "high": 0.1357, "margin": 0.01, "verdict": "more"},
        "answers_floor_r2": 0.0741,
        "excess": {"r2": 0.1606, "low": 0.1502, "high": 0.1717, "margin": 0.01, "verdict": "more"},
        "weaker_than_answers": False,
        "strongest_face": {"attack": "mlp", "variant": "leaked", "r2": 0.3456, "low": 0.3333, "high": 0.3579},
        "linear_code_r2": 0.8,
    },
    "attacks": [
        attack("kernel", "leaked", 0.2347),
        attack("mlp", "fresh", 0.1987, saturated=False, rows=1234, curve=[0.05, 0.15, 0.19]),
        attack("ridge", "leaked", 0.1501, mse_255=4321.0),
    ],
    "sweep": [attack("kernel", "leaked", 0.12, share=0.1), attack("ridge", "leaked", 0.07, share=0.1)],
    "references": [
        {"name": "mean picture", "r2": 0.0, "mse_255": 1000.0},
        {"name": "undefended", "r2": 0.9, "low": 0.8, "high": 0.95},
    ],
    "identity_linkage": {"code and code": {"pairs": 40, "auc": 0.712, "low": 0.613, "high": 0.811, "tar_at_1_far": 0.0712}},
    "learning_curves": {
        "code": {"pictures": [100, 200, 400, 800], "r2": [0.1, 0.15, 0.18, 0.2], "extended": 0.2571, "low": 0.2411, "high": 0.2732},
        "labels": {"pictures": [100, 200, 400, 800], "r2": [0.1, 0.1, 0.1, 0.1], "extended": 0.1111, "low": 0.1, "high": 0.12},
        "excess": {"r2": 0.1456, "low": 0.1345, "high": 0.1567},
    },
    "several_codes": [
        {"codes": 2, "people": 30, "r2": 0.271, "low": 0.262, "high": 0.283, "single_r2": 0.234, "linkage_people": 0}
        | dict.fromkeys(("linkage_auc", "linkage_low", "linkage_high", "single_linkage_auc"))
    ],
    "attributes": [
        {"name": "Smiling", "task": True, "balanced_accuracy": 0.9, "chance": 0.5, "positive_share": 0.5},
        {"name": "Male", "task": False, "balanced_accuracy": 0.4, "chance": 0.5, "positive_share": 0.5},
    ],
    "threat_model": {
        "attacker": "Eve.",
        "not_covered": "More.",
        "sets": [{"name": "train", "pictures": 320, "people": 160, "use": "fitting"}],
    },
    "task": {
        "num_logits": 2,
        "samples": {"train": 320, "val": 80, "test": 90},
        "labels": [
            {"name": name, "values": ["0", "1"], "logits": [i, i + 1], "missing": {"train": 0, "val": 0, "test": 0}}
            for i, name in enumerate(("Smiling", "Bald"))
        ],
    },
    "labels": [
        {"name": "Smiling", "accuracy": 0.9012, "accuracy_low": 0.8814, "accuracy_high": 0.9216}
        | {
            "balanced_accuracy": 0.8821,
            "balanced_accuracy_low": 0.8613,
            "balanced_accuracy_high": 0.9018,
            "majority_accuracy": 0.5,
        },
        {"name": "Bald", "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 1.0, "majority_accuracy": 0.97}
        | dict.fromkeys(("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high")),
    ],
    "limits": ["A limit."],
}
ALICE = {"accuracy": 0.8761, "r2": 0.0912, "low": 0.0811, "high": 0.1013, "multiply_adds": 15_728_640}
CLIENT = {"multiply_adds": 210_944, "parameters": 14_296, "ms": 0.0926, "bytes": 8.0}
MEASURE = {"mean": 0.1512, "low": 0.1391, "high": 0.1634}
KINDS = ("sample", "single", "oracle", "start", "shuffled", "labels", "unconditional", "nearest")
GENERATIVE = {
    "judge": RECOGNISER,
    "kinds": [{"name": name, "likeness": MEASURE, "auc": MEASURE, "mean_rank": 321.4, "ssim": MEASURE} for name in KINDS],
    "gains": [
        {"control": name, "likeness": {"mean": -0.0171, "low": -0.0242, "high": -0.0093}, "ssim": MEASURE} for name in KINDS[4:]
    ],
    "pictures": 933,
    "draws": 8,
    "selected": True,
}
BARE = (
    REPORT
    | {"attacks": [a | {"curve": []} for a in REPORT["attacks"]]}
    | {
        "warnings": [],
        "utility": {},
        "labels": [],
        "sweep": [],
        "attributes": [],
        "identity_linkage": {},
        "several_codes": [],
        "learning_curves": {},
        "privacy_weight": None,
    }
)


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, its text, its table rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.pre: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "pre":
            self.pre.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data.strip()
        if self.lasttag == "pre":
            self.pre[-1] += data


def page(report: dict[str, Any] = REPORT, *, curves: Any = CURVES) -> Page:
    return Page(card(report, panels=PANELS, curves=curves))


def test_card_loads_and_runs_nothing():
    html = card(REPORT, panels=PANELS, curves=CURVES)
    shown = Page(html)
    assert shown.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    assert [value for name, value in shown.attributes if name == "http-equiv"] == ["Content-Security-Policy"]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert ("content", policy) in shown.attributes
    loads = [
        value for name, value in shown.attributes if name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action")
    ]
    pictures = ("data:image/png;base64,", "data:image/jpeg;base64,")
    assert [value[:40] for value in loads if not value.startswith((*pictures, "#"))] == []
    assert [sum(value.startswith(kind) for value in loads) for kind in pictures] == [len(PANELS), 1], "and the examples of an R2"
    assert re.findall(r"url\(\s*['\"]?(?!#)|@import", html) == []
    assert not any(name.startswith("on") for name, _ in shown.attributes), "no event handlers"


def test_card_headline_matches_report():
    shown = page()
    text = " ".join(shown.text.split())
    for number in ("0.235", "0.221 to 0.249", "+0.123", "floor 0.111", "0.813", "balanced 0.771", "majority guess 0.633"):
        assert number in text, number
    assert "kernel (leaked)" in text
    assert "mine, k = 6, privacy weight 0.5, seed 3" in text
    assert "The strongest of 3 fresh attacks recovers 23.5 % of the variance" in text


def test_card_shows_warnings_escaped():
    text = " ".join(page().text.split())
    assert "the code says <nothing>. This code passes no gate." in text
    assert "Bald = 1 has only 3 samples." in text and text.count("This code passes no gate") == 1


def test_card_has_row_per_attack_and_reference():
    rows = {tuple(row[:2]): row for row in page().rows if len(row) > 2}
    assert rows["kernel", "leaked"][2:] == ["0.2347", "0.2247 to 0.2447", "765", "18.21", "0.456", "yes", "640", "3"]
    assert rows["mlp", "fresh"][2:] == ["0.1987", "0.1887 to 0.2087", "801", "18.21", "0.456", "no", "1234", "3"]
    assert rows["ridge", "leaked"][4] == "4321"
    assert rows["mean picture", "reference"][2:5] == ["0.0000", "", "1000"]
    assert rows["undefended", "reference"][2:5] == ["0.9000", "0.8000 to 0.9500", ""]
    assert {len(row) for row in rows.values() if row[1] in ("variant", "leaked", "fresh", "reference")} == {10}


def test_card_names_the_judge_and_shows_ranks():
    rank = {"candidates": 90, "mean_rank": 12.34, "median_rank": 7.5, "top_1": 0.0432, "top_1_low": 0.0211, "top_1_high": 0.0654}
    ranks = {"judge": RECOGNISER, "ranks": {"reconstruction and picture": rank}}
    shown = page(REPORT | {"identification": ranks})
    assert f"The judge is the {RECOGNISER}, which no attack was fitted with." in " ".join(shown.text.split())
    assert ["reconstruction", "12.3", "7.5", "90", "4.32 %", "2.11 to 6.54 %"] in shown.rows
    assert "The judge is Fisher's discriminant on identities" in " ".join(page().text.split())


def test_card_lists_the_strongest_attack_of_each_of_many_attackers():
    further = [attack("kernel", "queries_100", 0.07), attack("ridge", "queries_100", 0.05), attack("ridge", "other_data", 0.03)]
    rows = page(REPORT | {"attacks": [*REPORT["attacks"], *further]}).rows
    assert ["queries_100", "kernel", "0.0700", "0.0600 to 0.0800"] in rows
    assert ["other_data", "ridge", "0.0300", "0.0200 to 0.0400"] in rows
    assert not [row for row in page().rows if row[:1] == ["attacker"]], "the table of all attacks is enough"


def test_card_has_columns_for_measured_similarities():
    attacks = [a | {"ms_ssim": 0.321, "legacy_mse": 77.7} for a in REPORT["attacks"]]
    rows = page(REPORT | {"attacks": attacks}).rows
    assert {"MS-SSIM", "wrapped MSE"} <= set(next(row for row in rows if row[0] == "attack"))
    assert {"0.321", "77.7"} <= set(next(row for row in rows if row[:2] == ["mlp", "fresh"]))


def test_card_compares_draws_with_all_controls():
    page = Page(card(REPORT | {"generative": GENERATIVE}, panels=PANELS, curves={}))
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["generative attack: of 8 draws the one with the closest code"][:4] == ["0.151", "0.139 to 0.163", "0.151", "321.4"]
    assert rows["control: the attacker's picture with the nearest code"][:2] == ["-0.017", "-0.024 to -0.009"]
    assert "which no attack was fitted with" in page.text and "933 pictures" in page.text


def test_card_without_judge_shows_only_ssim_of_draws():
    unjudged = GENERATIVE | {
        "judge": None,
        "selected": False,
        "kinds": [kind | dict.fromkeys(("likeness", "auc", "mean_rank")) for kind in GENERATIVE["kinds"]],
        "gains": [gain | {"likeness": None} for gain in GENERATIVE["gains"]],
    }
    page = Page(card(REPORT | {"generative": unjudged}, panels=PANELS, curves={}))
    assert ["generative attack: one draw", "0.151", "0.139 to 0.163"] in page.rows
    assert "Pictures drawn from the code" not in Page(card(REPORT | {"generative": None}, panels=PANELS, curves={})).text


def test_card_shows_linkage_and_comparison_if_present():
    compared = REPORT | {"comparison": {"other": "runs/b", "r2": -0.0123, "low": -0.02, "high": 0.0044, "p": 0.0512}}
    shown = page(compared)
    assert ["code and code", "0.712", "0.613 to 0.811", "0.071", "40"] in shown.rows
    assert "Compared with runs/b" in shown.text and "-0.0123" in shown.text and "-0.0200 to +0.0044, p = 0.0512" in shown.text
    assert "Compared with runs/b" not in page().text


def test_card_has_row_per_label_with_empty_cell_if_unbalanced():
    rows = {tuple(row[:1]): row[1:] for row in page().rows if len(row) == 6}
    assert rows["label",] == ["accuracy", "95 % interval", "balanced accuracy", "95 % interval", "majority guess"]
    assert rows["Smiling",] == ["0.901", "0.881 to 0.922", "0.882", "0.861 to 0.902", "0.500"]
    assert rows["Bald",] == ["0.900", "0.800 to 1.000", "", "", "0.970"]


def with_task(*labels: tuple[str, list[str], list[int], int]) -> dict[str, Any]:
    """The report with these labels: name, values, logits, missing answers in the test split."""
    rows = [
        {"name": name, "values": values, "logits": logits, "missing": {"train": 10, "val": 0, "test": missing}}
        for name, values, logits, missing in labels
    ]
    return REPORT | {"task": REPORT["task"] | {"labels": rows}}


def test_card_lists_values_and_missing_answers_of_mixed_labels():
    report = with_task(("Male", ["woman", "man"], [0, 1], 3), ("age", ["young", "old", "<very old>"], [1, 4], 0))
    shown = page(report)
    rows = {row[0]: row[1:] for row in shown.rows if len(row) == 6}
    assert rows["Male"] == ["woman | man", "0", "10 of 320", "0 of 80", "3 of 90"]
    assert rows["age"] == ["young | old | <very old>", "1 to 3", "10 of 320", "0 of 80", "0 of 90"]
    assert "predicted from the true answers, of which 2.3 % are missing) recovers" in shown.text
    assert "The task" not in page().text and "are missing" not in page().text


def test_card_of_a_label_without_answers_has_empty_cells():
    row = {"name": "age"} | dict.fromkeys((*REPORT["labels"][0],)[1:])
    assert ["age", "", "", "", "", ""] in page(REPORT | {"labels": [row]}).rows


def test_figure_of_attributes_of_several_classes_starts_at_their_chance():
    rows = [*REPORT["attributes"], {"name": "age", "task": False, "balanced_accuracy": 0.3, "chance": 0.2, "positive_share": None}]
    drawn = figures.attributes(rows)
    assert "age" in drawn and "from the majority guess on" in drawn
    assert "from the majority guess on" not in figures.attributes(REPORT["attributes"])


def test_card_of_bare_report_omits_optional_parts():
    shown = page(BARE, curves={})
    assert "svg" not in shown.tags
    for heading in (
        "Training adversaries",
        "What the utility head answers",
        "How many pictures",
        "Identity linkage",
        "What else z reveals",
        "accuracy of the task",
    ):
        assert heading not in shown.text
        assert heading in page().text
    assert "mine, k = 6. 2026" in shown.text
    assert ["mlp", "fresh", "0.1987"] in [row[:3] for row in shown.rows]


def poisoned() -> dict[str, Any]:
    """A report in which every name is hostile."""
    report = copy.deepcopy(REPORT)
    report |= {
        "name": HOSTILE,
        "made": HOSTILE,
        "settings": {HOSTILE: [HOSTILE]},
        "limits": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
    }
    report["privacy"]["strongest"]["attack"] = HOSTILE
    for row in (
        *report["attacks"],
        *report["sweep"],
        *report["references"],
        *report["attributes"],
        *report["labels"],
        *report["threat_model"]["sets"],
    ):
        row["name"] = HOSTILE
    report["attacks"][1]["variant"] = HOSTILE
    report["identity_linkage"] = {HOSTILE: report["identity_linkage"]["code and code"]}
    report["comparison"] = {"other": HOSTILE, "r2": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    return report


def test_card_without_people_uses_word_samples():
    sets = [{"name": "train", "pictures": 320, "people": 320, "use": "fitting"}]
    signals = [{key: value for key, value in a.items() if key != "mse_255"} | {"mse_raw": 0.5} for a in BARE["attacks"]]
    references = [{key: value for key, value in a.items() if key != "mse_255"} | {"mse_raw": 0.5} for a in BARE["references"]]
    threat_model = BARE["threat_model"] | {"sets": sets}
    text = page(BARE | {"threat_model": threat_model, "attacks": signals, "references": references}, curves={}).text
    assert "of the variance of samples it has never seen" in text
    assert "bootstrap intervals over samples" in text
    assert re.search("person|people|picture", text.replace("mean picture", "", 1)) is None
    assert "of the variance of pictures of people it has never seen" in page().text


def test_card_shows_settings_and_versions():
    assert [json.loads(part) for part in page().pre] == [REPORT["settings"]]
    assert "torch 9.9" in page().text


def test_card_escapes_hostile_names():
    shown = page(poisoned(), curves={HOSTILE: ([0, 1], [0.1, 0.2])})
    assert shown.tags == page().tags
    cells = [row[0] for row in shown.rows]
    assert cells.count(HOSTILE) == len([*REPORT["attacks"], *REPORT["references"], *REPORT["labels"], "a set", "linkage"])
    assert f"Compared with {HOSTILE}" in shown.text
    assert json.loads(shown.pre[0]) == {HOSTILE: [HOSTILE]}


@pytest.mark.parametrize(
    ("low", "high", "excess", "expected"),
    [
        (0.05, 0.15, 0.1, "10.0 points more than the true answers do (5.0 to 15.0 points, paired)"),
        (-0.09, -0.04, -0.065, "find 6.5 points less in the code than in the true answers"),
        (-0.04, 0.06, 0.01, "is undecided (-4.0 to 6.0 points, paired)"),
        (-0.002, 0.009, 0.004, "differ by at most 1 points (-0.2 to 0.9 points, paired)"),
        (0.002, 0.009, 0.005, "differ by at most 1 points"),
    ],
)
def test_summary_compares_code_with_label_floor(low, high, excess, expected):
    privacy = REPORT["privacy"] | {"label_excess": excess_as_json(Difference(excess, low, high, 0.5))}
    assert expected in summary(REPORT | {"privacy": privacy})["label_floor"]


def test_summary_names_unsaturated_attacks():
    assert summary(REPORT)["saturation"].endswith("a lower bound: mlp (fresh).")
    done = REPORT | {"attacks": [a | {"saturated": True} for a in REPORT["attacks"]]}
    assert "lower bound" not in summary(done)["saturation"]


FIGURES = {
    "curves": lambda: figures.learning_curves(CURVES, REPORT),
    "many curves": lambda: figures.learning_curves({f"a{i}": ([0, 1], [0.1, i / 10]) for i in range(8)}, REPORT),
    "attacks": lambda: figures.attack_curves(REPORT),
    "sizes": lambda: figures.attack_sizes(REPORT),
    "attributes": lambda: figures.attributes(REPORT["attributes"]),
}
LABELS = {
    "curves": {"training: rbf", "training: conv", "fresh: kernel (95 % interval)", "label floor"},
    "many curves": {f"training: a{i}" for i in range(8)},
    "attacks": {"mlp (fresh)", "label floor"},
    "sizes": {"kernel", "ridge", "label floor"},
    "attributes": {"Smiling", "Male"},
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_one_reproducible_svg_with_all_names(name):
    drawn = FIGURES[name]()
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    written = {comment.strip() for comment in re.findall(r"<!--(.*?)-->", drawn, flags=re.DOTALL)}
    assert LABELS[name] <= written, written
    assert FIGURES[name]() == drawn


def test_figure_depends_on_numbers():
    shifted = {"rbf": ([0, 1, 2], [0.1, 0.3, 0.1]), "conv": CURVES["conv"]}
    assert figures.learning_curves(shifted, REPORT) != FIGURES["curves"]()
    assert figures.attack_sizes(REPORT | {"attacks": [attack("kernel", "leaked", 0.3)]}) != FIGURES["sizes"]()
    assert figures.attributes([row | {"task": True} for row in REPORT["attributes"]]) != FIGURES["attributes"]()
    longer = [a | {"curve": [*a["curve"], 0.2]} for a in REPORT["attacks"]]
    assert figures.attack_curves(REPORT | {"attacks": longer}) != FIGURES["attacks"]()
    elsewhere = [*REPORT["attacks"], attack("kernel", "fresh", 0.3)]
    assert figures.attack_sizes(REPORT | {"attacks": elsewhere}) == FIGURES["sizes"](), "the sweep has only one variant"


def test_card_says_what_alice_gets_by_answering_herself():
    page = card(REPORT | {"alice": ALICE, "client": CLIENT}, panels=PANELS, curves={})
    assert "with accuracy 0.876, R2 0.091 (0.081 to 0.101), for 15,728,640 multiply-adds" in page
    assert "sends 8 bytes, before entropy coding, and computes 210,944 multiply-adds, which take 0.0926 ms" in page
    assert "Alice answers herself" not in card(REPORT | {"alice": None}, panels=PANELS, curves={})


def test_card_without_a_known_client_has_only_bytes():
    unknown = CLIENT | dict.fromkeys(("multiply_adds", "parameters", "ms"))
    assert "sends 8 bytes, before entropy coding.</p>" in card(REPORT | {"client": unknown}, panels=PANELS, curves={})


def test_summary_compares_code_with_its_own_answers():
    assert (
        "Its own answers give away 7.4 %: the code shows 16.1 points more than its own answers do"
        in summary(REPORT)["answers_floor"]
    )
    without = REPORT["privacy"] | {"excess": None, "answers_floor_r2": None}
    assert summary(REPORT | {"privacy": without})["answers_floor"] == ""
    failed = REPORT["privacy"] | {"weaker_than_answers": True}
    assert "they have failed: only a lower bound" in summary(REPORT | {"privacy": failed})["saturation"]
    assert "beyond its own answers" not in card(REPORT | {"privacy": without}, panels=PANELS, curves={})


def test_card_states_the_bounds_in_words():
    page = card(REPORT, panels=PANELS, curves={})
    assert "Guaranteed against any attacker" in page
    assert "cannot be reconstructed better than R2 0.400 on average (0.300 to 0.500)" in page
    assert "No bound: the code is neither rounded nor noisy" in page
    assert "Not coded: the code is not rounded" in page


def test_words_of_distinct_codes_state_that_there_is_no_bound():
    words = all_words(Bounds(no_gallery=DISTINCT, candidates=100), CodeRate(raw=8.0, not_coded=CONTINUOUS))
    assert words["gallery"] == "No bound: every picture has a code of its own, and the code has no noise."
    assert "assumed" not in words
