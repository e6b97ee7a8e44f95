"""Draw an overview picture of two runs on the procedural faces: Bob's answers and Eve's reconstructions, undefended and defended.

    python jobs/train_celeba.py faces --output outputs/defended
    python jobs/train_celeba.py faces --privacy-weight 0 --output outputs/undefended
    python docs/figures/make_overview.py outputs/undefended outputs/defended docs/figures/overview.png

Eve's rows are reconstructions by the strongest attack in each run's report, fitted again on the same pictures. The pictures are
from the test split: neither the runs nor the attacks were trained on these people. Other data sets than `faces` are refused,
because only these pictures belong to the project.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cpgan_ray import cli
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, load, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import encode_all, open_own
from cpgan_ray.evaluation.encoders.programs import load_program
from cpgan_ray.evaluation.fitting import STACK, AttackSpec, EvaluationContext, fit_attack, trained_against
from cpgan_ray.evaluation.report.panels import reconstruct_rows

PEOPLE = 6
SHOWN_ANSWERS = 3
VISIBLE = (
    "Eyeglasses",
    "Wearing_Hat",
    "Goatee",
    "Mustache",
    "Blond_Hair",
    "Black_Hair",
    "Brown_Hair",
    "Gray_Hair",
    "Smiling",
    "Male",
)
"""Attributes that a reader can check on a small picture, the most visible first."""
RIGHT, WRONG = "#1a7f37", "#c62828"
SIDE_INCHES, LABEL_INCHES, TEXT_INCHES, DPI = 1.45, 1.9, 0.85, 100
MAX_BYTES = 300_000


@dataclass(frozen=True, eq=False)
class Row:
    """The part of the picture that belongs to one run."""

    r2: float
    attack: str
    pictures: np.ndarray  # (n, H, W, C) in [0, 1]: Eve's reconstructions
    answers: np.ndarray  # (n, L) bool: Bob's predictions
    accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("undefended", "defended", "picture"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    undefended, defended = (cli.read_run(folder)[0] for folder in (arguments.undefended, arguments.defended))
    ensure_comparable(undefended, defended)
    dataset = load(undefended)
    rows = pick_pictures(dataset, undefended)
    task = task_of(dataset, undefended.data.labels)
    names, truth = list(task.names), task.answers(dataset.test)[rows] > 0
    runs = ((arguments.undefended, undefended), (arguments.defended, defended))
    figure = draw(dataset.test.take(rows) / 255, truth, names, *(row_of(folder, c, dataset, rows) for folder, c in runs))
    figure.savefig(arguments.picture, dpi=DPI, pil_kwargs={"optimize": True})
    if (size := arguments.picture.stat().st_size) > MAX_BYTES:
        raise InputError(
            f"{arguments.picture} has {size} bytes, more than {MAX_BYTES}: lower DPI or PEOPLE in {Path(__file__).name}"
        )


def ensure_comparable(undefended: Config, defended: Config) -> None:
    """Raises: InputError if the runs are not an undefended and a defended run on the same procedural faces."""
    for config in (undefended, defended):
        if config.data.dataset != "faces":
            raise InputError(f"data.dataset is {config.data.dataset!r}: only the procedural faces may be shown, give runs on faces")
    if undefended.data != defended.data:
        raise InputError("the two runs have different data: train both with the same --data.* flags")
    if undefended.privacy_weight != 0 or defended.privacy_weight == 0:
        weights = f"{undefended.privacy_weight:g} and {defended.privacy_weight:g}"
        raise InputError(f"the privacy weights are {weights}: give the undefended run (weight 0) first, then a defended one")


def pick_pictures(dataset: Dataset, config: Config) -> np.ndarray:
    """Row numbers (PEOPLE,) of test pictures of different people with many of the visible attributes.

    Greedy: each step takes the picture that adds the most attributes not seen before, and the first of equal ones.
    """
    task = task_of(dataset, config.data.labels)
    visible = [task.names.index(name) for name in VISIBLE if name in task.names]
    has = task.answers(dataset.test)[:, visible] > 0
    seen, rows = np.zeros(len(visible)), []
    free = np.ones(len(has), dtype=bool)
    for _ in range(min(PEOPLE, len(np.unique(dataset.test.identity)))):
        gain = np.where(free, (has / (1 + seen) ** 2).sum(axis=1), -1)
        row = int(gain.argmax())
        rows.append(row)
        seen += has[row]
        free &= dataset.test.identity != dataset.test.identity[row]
    return np.array(rows)


def row_of(folder: Path, config: Config, dataset: Dataset, rows: np.ndarray) -> Row:
    """Bob's answers and Eve's reconstructions of some test pictures, for a finished run."""
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text())
    strongest = max((a for a in report["attacks"] if a["name"] != STACK), key=lambda a: a["r2"])
    codes = encode_all(open_own(folder / "privatizer.pt2"), dataset, config.attacks)
    context = EvaluationContext(dataset, codes, config.attacks, config.seed, trained_against(config), config.data.labels)
    fitted = fit_attack(AttackSpec(strongest["name"], strongest["variant"]), context).fitted
    data = context.data(strongest["variant"])
    flat = reconstruct_rows(data, fitted, rows, np.asarray(context.pca_basis().mean))
    pictures = np.clip((flat.reshape(-1, *dataset.image_shape) + 1) / 2, 0, 1)
    head = load_program(folder / "utility_head.pt2").module(check_guards=False)
    with torch.no_grad():
        answers = head(torch.from_numpy(codes["test"][rows])).numpy() > 0
    return Row(strongest["r2"], strongest["name"], pictures, answers, report["utility"]["accuracy"])


def draw(originals: np.ndarray, truth: np.ndarray, names: list[str], undefended: Row, defended: Row) -> Figure:
    """Five rows: the originals, then for each run Bob's answers as text and Eve's reconstructions."""
    heights = [SIDE_INCHES, TEXT_INCHES, SIDE_INCHES, TEXT_INCHES, SIDE_INCHES]
    count = len(originals)
    figure = Figure(figsize=(LABEL_INCHES + SIDE_INCHES * count, sum(heights)), facecolor="white")
    FigureCanvasAgg(figure)
    left = LABEL_INCHES / (LABEL_INCHES + SIDE_INCHES * count)
    axes = figure.subplots(
        5,
        count,
        squeeze=False,
        gridspec_kw={"height_ratios": heights, "left": left, "right": 1, "top": 1, "bottom": 0, "wspace": 0.03, "hspace": 0.02},
    )
    labels = ["Alice's picture"]
    for name, row in (("undefended", undefended), ("defended", defended)):
        labels += [f"{name}:\nBob answers\n(accuracy {row.accuracy:.3f})", f"{name}:\nEve reconstructs\n(R2 {row.r2:.3f})"]
    for line, (label, line_axes) in enumerate(zip(labels, axes, strict=True)):
        box = line_axes[0].get_position()
        bold = "bold" if line % 2 == 0 else "normal"
        figure.text(0.008, (box.y0 + box.y1) / 2, label, ha="left", va="center", fontsize=12, fontweight=bold)
        for ax in line_axes:
            ax.set_axis_off()
    for n in range(count):
        for line, picture in ((0, originals[n]), (2, undefended.pictures[n]), (4, defended.pictures[n])):
            axes[line, n].imshow(picture, interpolation="nearest")
        for line, row in ((1, undefended), (3, defended)):
            write_answers(axes[line, n], row.answers[n], truth[n], names)
    return figure


def write_answers(ax: Any, answers: np.ndarray, truth: np.ndarray, names: list[str]) -> None:
    """Write the first visible attributes that Bob predicts, wrong ones in red with a cross, and how many answers are right."""
    predicted = [names.index(name) for name in VISIBLE if name in names and answers[names.index(name)]][:SHOWN_ANSWERS]
    lines = [(names[i].replace("_", " ").lower(), bool(truth[i])) for i in predicted]
    for n, (name, right) in enumerate(lines):
        ax.text(
            0.5,
            0.9 - 0.23 * n,
            name if right else f"{name} ✗",
            color=RIGHT if right else WRONG,
            ha="center",
            va="center",
            fontsize=11,
        )
    total = f"{int((answers == truth).sum())} of {len(names)} right"
    ax.text(0.5, 0.9 - 0.23 * SHOWN_ANSWERS, total, color="black", ha="center", va="center", fontsize=11)


if __name__ == "__main__":
    mpl.rcParams["font.family"] = "DejaVu Sans"
    cli.run(main)
