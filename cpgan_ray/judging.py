"""From codes to a report card: the tournament on Ray or in this process, `report.json`, `report.html` and the panels."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from cpgan_ray.common.atomic_io import atomic_path, make_folder, write_text
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.text import printable
from cpgan_ray.config import AttackConfig, RuntimeConfig
from cpgan_ray.data import Dataset, label_columns, majority_logits
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.card import Curves, card
from cpgan_ray.evaluation.degenerate import ReportWarning, code_warnings, says_nothing
from cpgan_ray.evaluation.fitting import Made, Material, entries, in_process
from cpgan_ray.evaluation.panels import verdict_panels
from cpgan_ray.evaluation.protocol import Codes, people_apart
from cpgan_ray.evaluation.scoring import RowErrors, accuracy_intervals, mean_interval, paired_difference
from cpgan_ray.evaluation.tournament import Verdict, as_json, judge
from cpgan_ray.objectives import accuracy, balanced_accuracy, mean_balanced_accuracy, of_classes, right_answers
from cpgan_ray.process import available_cpus

LIBRARIES = ("cpgan_ray", "torch", "ray", "numpy", "scikit-learn", "torchmetrics", "mlflow")
ERRORS = "errors.npz"
"""The strongest attack's error on each score picture: what a paired comparison with another run needs."""
MAX_ERRORS_BYTES = 256 << 20
"""No array of it is read that is larger."""
MAX_ERROR = 1e12
"""No squared error on a picture is larger than this."""
ATTACKER = (
    "Eve reads codes z on the wire and wants the {samples} behind them. She knows the privatizer and can run it (white box): she "
    "makes pairs of codes and {samples}, fits a reconstructor on them, and applies it to codes of {unseen} she has never seen. Her "
    "{samples} are the defender's own training set (variant 'leaked') or others (variant 'fresh')."
)
NOT_COVERED = {
    True: "She does not change the code, ask the classifier, or combine several codes of one person. No person is in two of the "
    "sets.",
    False: "She does not change the code or ask the classifier. No two of the sets share any of the {samples}.",
}
LIMITS = (
    "The number is that of the attacks made here; a better attack finds more. An attack marked as not saturated would itself have.",
    "The code is deterministic: it carries no differential-privacy guarantee, and none is claimed.",
    "Attackers with a generative prior (GAN, diffusion) or with side information about {whom} are not among the attacks.",
)
STOCHASTIC = (
    "The release is declared as stochastic: the attacks saw one code of each sample, and averaging several codes of one sample "
    "recovers more. No differential-privacy guarantee is claimed."
)
HIDDEN = {
    True: "R2 weighs all values alike: a small detail that identifies a person may hide in a small R2. See the worst {samples}, "
    "the identity linkage and the attribute map.",
    False: "R2 weighs all values alike: a small detail that matters may hide in a small R2. See the worst {samples}.",
}
"""Of data about people, and of other data."""
ANONYMOUS = (
    "The data do not say who is on a picture, so one person may be in several of the sets: an attack may have been fitted on "
    "pictures of the very people that it is scored on, and intervals take each picture by itself."
)
"""Of pictures of people without identities."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A verdict with everything that is written about it."""

    verdict: Verdict
    report: dict[str, Any]
    panels: dict[str, Image]
    page: str

    def write(self, folder: Path) -> None:
        """`report.json`, `report.html`, the panels and `errors.npz`."""
        make_folder(folder)
        write_text(folder / "report.json", json.dumps(self.report, indent=1) + "\n")
        write_text(folder / "report.html", self.page)
        for name, panel in self.panels.items():
            with atomic_path(folder / f"{name}.png") as temporary:
                panel.save(temporary, "PNG")
        rows = self.verdict.strongest.errors
        with atomic_path(folder / ERRORS) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, errors=rows.errors, mean_errors=rows.mean_errors, identity=rows.identity)


def on_ray(runtime: RuntimeConfig) -> bool:
    """Whether the attacks are Ray tasks. `auto`: where there is a cluster to join, or a second core here."""
    named = runtime.address or os.environ.get("RAY_ADDRESS")
    return runtime.backend == "ray" or (runtime.backend == "auto" and (bool(named) or available_cpus() > 1))


def fit_attacks(material: Material, *, runtime: RuntimeConfig, brief: bool = False) -> list[Made]:
    """All attacks of the tournament, as Ray tasks in parallel or one after the other here; a line on standard error for each."""
    todo = entries(material.config, material.dataset, brief=brief)
    material.basis()  # once, before many processes ask for it
    done = 0

    def say(made: Made) -> None:
        nonlocal done
        done += 1
        e = made.entry
        share = "" if e.share == 1 else f" {100 * e.share:g} %"
        print(
            f"attack {done}/{len(todo)}: {e.name} ({e.variant}{share}), tuning R2 {made.fitted.tune_r2:.3f}, {made.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    if on_ray(runtime):
        from cpgan_ray.actors.tasks import fit_on_ray

        return fit_on_ray(todo, material, runtime=runtime, done=say)
    torch.set_num_threads(runtime.threads or available_cpus())
    return in_process(todo, material, done=say)


def judge_codes(
    material: Material,
    *,
    runtime: RuntimeConfig,
    logits: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    curves: Curves,
    undefended: Path | None = None,
    against: Path | None = None,
) -> Judged:
    """The tournament on some codes, and all that is written about it.

    logits: the utility head's answers to them, see `utility_of`; empty where there is none;
    about: `name`, `k`, `privacy_weight`, `seed`, `settings` of the report;
    undefended: the output folder of a finished undefended twin; against: a report folder to compare with, pair by pair.
    """
    told: dict[str, Any] = {"utility": {}, "labels": []}
    if logits:
        told = {
            "utility": utility_of(logits, material.dataset, material.task, seed=material.seed),
            "labels": labels_of(logits["test"], material.dataset, material.task, seed=material.seed),
        }
    warnings = code_warnings(material.codes, material.dataset, material.task, logits=logits, seed=material.seed)
    for line in console_lines(told["utility"], warnings):
        print(line, file=sys.stderr, flush=True)
    made = fit_attacks(material, runtime=runtime, brief=says_nothing(warnings))
    verdict = judge(made, material)
    report: dict[str, Any] = dict(about) | {
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "warnings": [asdict(warning) for warning in warnings],
        **told,
        **as_json(verdict),
        "references": references(verdict, undefended),
        "threat_model": threat_model(material),
        "limits": limits(material.dataset, stochastic=about.get("attacked", {}).get("stochastic", False)),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }
    if against is not None:
        report["comparison"] = comparison(verdict, against, seed=material.seed)
    twin = twin_codes(undefended / "privatizer.pt2", material.dataset) if undefended else None
    panels = verdict_panels(verdict, material, undefended=twin)
    return Judged(verdict, report, panels, card(report, panels=panels, curves=curves))


def console_lines(utility: Mapping[str, float], warnings: Sequence[ReportWarning]) -> list[str]:
    """The utility next to what a guess would have, and every warning."""
    accuracies = ("accuracy", "majority_accuracy", "balanced_accuracy")
    numbers = [f"{name.replace('_', ' ')} {utility[name]:.4f}" for name in accuracies if name in utility]
    return ([", ".join(numbers)] if numbers else []) + [f"warning: {warning.message}" for warning in warnings]


def degenerate(report: Mapping[str, Any]) -> list[str]:
    """Why the code of a report passes no gate, if it is degenerate."""
    return [warning["message"] for warning in report.get("warnings", ()) if warning["fails_gates"]]


def references(verdict: Verdict, undefended: Path | None) -> list[dict[str, Any]]:
    """What the attacks are held against, from nothing to everything."""
    best, floor = verdict.strongest.score, verdict.floor.score
    unit = "mse_raw" if best.mse_255 is None else "mse_255"
    mean = getattr(floor, unit) / (1 - floor.r2) if floor.r2 < 1 else 0.0
    rows: list[dict[str, Any]] = [
        {"name": "mean picture", "r2": 0.0, unit: mean},
        {
            "name": f"label floor ({verdict.floor.entry.name} from the true labels)",
            **{key: getattr(floor, key) for key in ("r2", "low", "high", unit)},
        },
        {
            "name": "best linear code of as many numbers",
            "r2": verdict.linear_code_r2,
            unit: mean * (1 - verdict.linear_code_r2),
        },
    ]
    if undefended is not None and (twin := strongest_of(undefended)) is not None:
        rows.append(
            {"name": f"undefended twin ({twin['attack']})", **{key: twin[key] for key in ("r2", "low", "high")}}
            | {unit: mean * (1 - twin["r2"])}
        )
    return [*rows, {"name": "identity (z = x)", "r2": 1.0, unit: 0.0}]


def strongest_of(folder: Path) -> dict[str, Any] | None:
    """Name, R2 and interval of the strongest attack on a run, by its report; None where it has none.

    Raises: InputError where the report is damaged.
    """
    path = folder / "report" / "report.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)["privacy"]["strongest"]
        numbers = {key: float(found[key]) for key in ("r2", "low", "high")}
        if not all(-1e6 < number <= 1 for number in numbers.values()):
            raise ValueError("numbers")
        return {"attack": printable(str(found["attack"]))[:60], **numbers}
    except Exception as e:  # whatever its values lead to
        raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e


def nouns(dataset: Dataset) -> dict[str, str]:
    """What the values of a data set are called. `unseen`: those that no attack was fitted on."""
    samples = "pictures" if dataset.train.dtype == np.uint8 else "samples"
    people = about_people(dataset)
    return {"samples": samples, "unseen": "people" if people else samples, "whom": "a person" if people else "a sample"}


def about_people(dataset: Dataset) -> bool:
    """Whether samples are known to be some person's: otherwise each is by itself."""
    return any(len(np.unique(part.identity)) < len(part) for part in (dataset.train, dataset.val, dataset.test))


def limits(dataset: Dataset, *, stochastic: bool = False) -> list[str]:
    """What the number does not say. stochastic: whether the release is declared to draw random numbers."""
    lines = [line.format(**nouns(dataset)) for line in (*LIMITS, HIDDEN[about_people(dataset)])]
    lines = [STOCHASTIC if stochastic and line.startswith("The code is deterministic") else line for line in lines]
    return [*lines, ANONYMOUS] if dataset.nature.anonymous else lines


def threat_model(material: Material) -> dict[str, Any]:
    """Who attacks, with what, in words; and the sets with their sizes."""
    dataset = material.dataset
    called = nouns(dataset)
    mine, kept = people_apart(dataset.val.identity, seed=material.seed)
    sets = []
    for name, rows, use in (
        ("train", np.arange(len(dataset.train)), "the defender's training; fitting the attacks of variant 'leaked'"),
        ("val, one part", mine, "fitting the attacks of variant 'fresh'; tuning those of 'leaked'"),
        ("val, the rest", kept, "tuning the attacks of both variants"),
        ("test", np.arange(len(dataset.test)), "scoring alone"),
    ):
        split = getattr(dataset, name.split(",")[0])
        sets.append({"name": name, "pictures": len(rows), "people": len(np.unique(split.identity[rows])), "use": use})
    return {
        "attacker": ATTACKER.format(**called),
        "not_covered": " ".join(
            [NOT_COVERED[about_people(dataset)].format(**called), *([ANONYMOUS] if dataset.nature.anonymous else [])]
        ),
        "sets": sets,
    }


def comparison(verdict: Verdict, against: Path, *, seed: int) -> dict[str, Any]:
    """The strongest attack here less the other report's, on the same score pictures."""
    return {"other": str(against), **asdict(difference(verdict.strongest.errors, against, seed=seed))}


def difference(errors: RowErrors, against: Path, *, seed: int) -> Any:
    """Raises: InputError where the other report was scored on other pictures."""
    try:
        return paired_difference(errors, read_errors(against), seed=seed)
    except ValueError as e:
        raise InputError(f"{against} cannot be compared with: {e}; give a report on the same prepared store") from e


def read_errors(folder: Path) -> RowErrors:
    """The row errors of a report folder, or of the run folder that it is in.

    Raises: InputError where there are none.
    """
    for path in (folder / ERRORS, folder / "report" / ERRORS):
        if path.is_file():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    if max(entry.file_size for entry in arrays.zip.infolist()) > MAX_ERRORS_BYTES:
                        raise ValueError("too large")
                    errors, mean_errors = (arrays[name].astype(np.float64, casting="safe") for name in ("errors", "mean_errors"))
                    identity = arrays["identity"].astype(np.int64, casting="safe")
                if not (errors.shape == mean_errors.shape == identity.shape == (len(errors),) and np.isfinite(errors).all()):
                    raise ValueError("shapes or values")
                if not (np.isfinite(mean_errors).all() and mean_errors.sum() > 0):
                    raise ValueError("values")
                if min(errors.min(), mean_errors.min()) < 0 or max(errors.max(), mean_errors.max()) > MAX_ERROR:
                    raise ValueError("values")
                return RowErrors(errors, mean_errors, identity)
            except Exception as e:  # numpy raises whatever the damaged part leads to
                raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e
    raise InputError(f"{folder} has no {ERRORS}: give the output folder of a run, or the report folder of an attack")


def utility_of(logits: Mapping[str, np.ndarray], dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> dict[str, float]:
    """Accuracy with its interval over people, balanced accuracy and that of the majority guess on the test split, averaged over the
    labels of the task; and accuracy on the validation split, by which a search selects.

    logits: (N, L or C) of `test` and `val`.
    """
    columns = label_columns(dataset, labels)
    y = dataset.test.labels[:, columns]
    right = right_answers(logits["test"], y).mean(axis=1)
    low, high = mean_interval(right, dataset.test.identity, seed=seed)
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": mean_balanced_accuracy(logits["test"], y),
        "majority_accuracy": float(accuracy(majority_logits(dataset, labels, rows=len(y)), y).mean()),
        "val_accuracy": float(accuracy(logits["val"], dataset.val.labels[:, columns]).mean()),
    }


def labels_of(logits: np.ndarray, dataset: Dataset, labels: tuple[str, ...], *, seed: int) -> list[dict[str, Any]]:
    """The same on the test split for each label of the task by itself, with intervals over people. The balanced accuracy is
    (TPR + TNR) / 2, of several classes their mean recall; None where one of a label's two values does not occur.

    logits: (N, L or C) of `test`.
    """
    columns = label_columns(dataset, labels)
    y = dataset.test.labels[:, columns]
    classes = np.unique(y) if of_classes(logits, y) else np.array([0, 1])
    plain, balanced = accuracy_intervals(right_answers(logits, y), y[:, :, None] == classes, dataset.test.identity, seed=seed)
    numbers = {
        "accuracy": accuracy(logits, y),
        "accuracy_low": plain[:, 0],
        "accuracy_high": plain[:, 1],
        "balanced_accuracy": balanced_accuracy(logits, y),
        "balanced_accuracy_low": balanced[:, 0],
        "balanced_accuracy_high": balanced[:, 1],
        "majority_accuracy": accuracy(majority_logits(dataset, labels, rows=len(y)), y),
    }
    return [
        {"name": dataset.label_names[column]} | {key: float(v[i]) if np.isfinite(v[i]) else None for key, v in numbers.items()}
        for i, column in enumerate(columns)
    ]


def twin_codes(program: Path, dataset: Dataset) -> Codes:
    """Codes of all splits by an exported privatizer."""
    from cpgan_ray.evaluation.encoders import encode_all, open_encoder

    return encode_all(open_encoder(program), dataset)


def report_settings(attacks: AttackConfig, **more: Any) -> dict[str, Any]:
    """What the card shows of the settings."""
    return {"attacks": asdict(attacks)} | more
