"""The result files of the reference implementation next to our results, in the unit of the reference implementation and on the same
axes.

The files are not part of this project. `jobs/reproduce.py --published FOLDER` takes the folder that contains them (`dnn.csv`,
`noise.csv`, `ran*.csv`, `hybrid_cpgan*.csv` of one data set, `Final_theory.csv` of the mixture). On MNIST and GENKI-4K the squared
errors of the reference implementation wrap around at 256. Our errors are then drawn in that unit too; such numbers do not measure
privacy. The reference implementation did not attack its noise mechanism; here it is attacked.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.report import figures

ATTACKED = ("mse_nn", "mse_lrr", "mse_krr")
FILES: Mapping[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "hybrid_cpgan*.csv": (("cpgan", "acc", ATTACKED),),
    "ran.csv": (("ran", "acc", ATTACKED),),
    "ran_*.csv": (("ran", "acc", ATTACKED),),
    "noise*.csv": (("noise", "acc", ("mse",)),),
    "dnn*.csv": (("dnn", "acc", ("mse", "mse_lrr", "mse_krr")), ("resize", "acc_pca", ("mse_pca", "mse_pca_lrr", "mse_pca_krr"))),
}
"""File pattern -> mechanism, its column of accuracy, and the columns of its attacks' errors."""
HAR_SIGNALS, GAUSSIAN_NUMBERS = 9, 32
THEORY = "Final_theory.csv"
"""File of the best codes of the mixture, computed by the theory of the reference implementation."""
UNITS: Mapping[str, str] = {
    "mnist": "MSE on 0-255, each square modulo 256",
    "genki4k": "MSE on 0-255, each square modulo 256",
    "har": "MSE, summed over the nine signals",
    "gaussian": "MSE, summed over the 32 numbers",
}


@dataclass(frozen=True)
class ResultPoint:
    """A mechanism at one setting: accuracy, and the smallest error of its attacks in the unit of the reference implementation."""

    mechanism: str
    accuracy: float
    mse: float


def published(folder: Path, dataset: str) -> list[ResultPoint]:
    """The rows of the reference implementation's files on one data set; rows without a finite error are left out.

    Raises: InputError naming the folder or the file, and the column.
    """
    if dataset not in UNITS:
        raise InputError(f"--published: the reference implementation has no files of {dataset!r}, only of {', '.join(UNITS)}")
    results = []
    for pattern, contents in FILES.items():
        for path in sorted(folder.glob(pattern)):
            for mechanism, accuracy, errors in contents:
                scale = HAR_SIGNALS if dataset == "har" and mechanism == "noise" else 1  # its noise script omits the sum
                results += [ResultPoint(mechanism, a, scale * e) for a, e in rows(path, accuracy, errors) if math.isfinite(e)]
    if not results:
        raise InputError(f"--published {folder}: no {', '.join(FILES)} with rows in it; give the folder of {dataset}")
    return results


def published_theory(folder: Path) -> list[tuple[float, float]]:
    """Accuracy of each of the best codes of the mixture by the reference implementation, and the MSE of the best linear attack on
    it, **per dimension**. Empty if the folder has no such file.

    Raises: InputError naming the file, and the column.
    """
    path = folder / THEORY
    return rows(path, "acc_theory", ("mse_theory",)) if path.is_file() else []


def rows(path: Path, accuracy: str, errors: Sequence[str]) -> list[tuple[float, float]]:
    """Accuracy and smallest error of each row."""
    try:
        with path.open(newline="") as file:
            return [
                (float(row[accuracy]), min(filter(math.isfinite, (float(row[e]) for e in errors)), default=math.nan))
                for row in csv.DictReader(file)
            ]
    except KeyError as e:
        raise InputError(f"{path}: no column {e.args[0]!r}; is it a result file of the reference implementation?") from e
    except (OSError, ValueError, TypeError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e


def measured(cells: Sequence[Mapping[str, Any]], dataset: str) -> list[ResultPoint]:
    """Our cells in the unit of the reference implementation: the smallest error of the fresh attacks."""
    error = {
        "mnist": lambda a: a["legacy_mse"],
        "genki4k": lambda a: a["legacy_mse"],
        "har": lambda a: HAR_SIGNALS * a["mse_raw"],
        "gaussian": lambda a: GAUSSIAN_NUMBERS * a["mse_raw"],
    }[dataset]
    return [
        ResultPoint(v["cell"]["mechanism"], v["utility"]["accuracy"], min(error(a) for a in v["attacks"] if has_unit(a, dataset)))
        for v in cells
    ]


def has_unit(attack: Mapping[str, Any], dataset: str) -> bool:
    """Whether an attack was scored in the unit of the data set."""
    return "legacy_mse" in attack or dataset not in ("mnist", "genki4k")


def side_by_side(reported: Sequence[ResultPoint], ours: Sequence[ResultPoint], dataset: str) -> bytes:
    """Two panels of accuracy against the smallest error on common axes, as PNG: the published rows, and our cells."""
    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    names = list(dict.fromkeys(p.mechanism for p in [*reported, *ours]))
    for ax, title, results in zip(axes, ("published", "measured here, fresh attacks"), (reported, ours), strict=True):
        for i, name in enumerate(names):
            x, y = [p.mse for p in results if p.mechanism == name], [p.accuracy for p in results if p.mechanism == name]
            colour, marker = figures.TRAINING[i % len(figures.TRAINING)], "osD"[i // len(figures.TRAINING) % 3]
            ax.scatter(x, y, s=16, color=colour, marker=marker, label=name, alpha=0.8)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(UNITS[dataset], fontsize=8)
        ax.set_xscale("log")
        ax.grid(color=figures.GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel("accuracy on the test split", fontsize=8)
    figure.legend(
        *axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=8
    )
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()
