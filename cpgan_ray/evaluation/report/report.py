"""Contents and files of a report: `report.json`, `report.html`, the panels and the errors for paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from cpgan_ray.common.atomic_io import atomic_path, make_folder, write_text
from cpgan_ray.common.json_files import read_json, write_json
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError, printable
from cpgan_ray.evaluation.degenerate import ReportWarning
from cpgan_ray.evaluation.protocol import Codes
from cpgan_ray.evaluation.report.paired import Rows, write_rows
from cpgan_ray.evaluation.tournament import TournamentResult
from cpgan_ray.evaluation.utility import Answers

LIBRARIES = ("cpgan_ray", "torch", "ray", "numpy", "scikit-learn", "torchmetrics", "mlflow")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The result of a tournament, with everything that is written to its report folder."""

    result: TournamentResult
    report: dict[str, Any]
    panels: dict[str, Image]
    page: str
    answers: Answers | None
    """Of the utility head to the test split, if there is one."""

    def write(self, folder: Path) -> None:
        """Write `report.json`, `report.html`, the panels and `errors.npz`."""
        make_folder(folder)
        write_json(folder / "report.json", self.report)
        write_text(folder / "report.html", self.page)
        for name, panel in self.panels.items():
            with atomic_path(folder / f"{name}.png") as temporary:
                panel.save(temporary, "PNG")
        write_rows(folder, rows_of(self.result, self.answers))


def rows_of(result: TournamentResult, answers: Answers | None) -> Rows:
    """What `errors.npz` holds of a tournament."""
    own = None if result.answers_floor is None else result.answers_floor.errors
    return Rows(result.strongest.errors, result.floor.errors, answers, own)


def console_lines(utility: Mapping[str, float], warnings: Sequence[ReportWarning]) -> list[str]:
    """Lines for the console: the accuracies next to the accuracy of a guess, and every warning."""
    accuracies = ("accuracy", "majority_accuracy", "balanced_accuracy")
    numbers = [f"{name.replace('_', ' ')} {utility[name]:.4f}" for name in accuracies if name in utility]
    return ([", ".join(numbers)] if numbers else []) + [f"warning: {warning.message}" for warning in warnings]


def degeneracy_reasons(report: Mapping[str, Any]) -> list[str]:
    """Reasons why the code of a report passes no gate; empty unless it is degenerate."""
    return [warning["message"] for warning in report.get("warnings", ()) if warning["fails_gates"]]


def reference_rows(result: TournamentResult, undefended: Path | None) -> list[dict[str, Any]]:
    """The rows with which the attacks are compared, from "nothing recovered" to "everything recovered"."""
    best, floor = result.strongest.score, result.floor.score
    unit = "mse_raw" if best.mse_255 is None else "mse_255"
    mean = getattr(floor, unit) / (1 - floor.r2) if floor.r2 < 1 else 0.0
    rows: list[dict[str, Any]] = [
        {"name": "mean picture", "r2": 0.0, unit: mean},
        {
            "name": f"label floor ({result.floor.spec.name} from the true labels)",
            **{key: getattr(floor, key) for key in ("r2", "low", "high", "face_r2", unit) if getattr(floor, key) is not None},
        },
        *answers_row(result),
        {
            "name": "best linear code of as many numbers",
            "r2": result.linear_code_r2,
            **({} if result.linear_code_face_r2 is None else {"face_r2": result.linear_code_face_r2}),
            unit: mean * (1 - result.linear_code_r2),
        },
    ]
    if undefended is not None and (twin := read_strongest_attack(undefended)) is not None:
        if (alice := alice_answers(undefended)) is not None:
            numbers = {key: alice[key] for key in ("r2", "low", "high")}
            rows.append({"name": "Alice answers herself (undefended twin's answers)", **numbers, unit: mean * (1 - alice["r2"])})
        rows.append(
            {"name": f"undefended twin ({twin['attack']})", **{key: twin[key] for key in ("r2", "low", "high")}}
            | {unit: mean * (1 - twin["r2"])}
        )
    return [*rows, {"name": "identity (z = x)", "r2": 1.0, unit: 0.0}]


def answers_row(result: TournamentResult) -> list[dict[str, Any]]:
    """The row of the answers floor; none if it was not measured."""
    if (floor := result.answers_floor) is None:
        return []
    keys = ("r2", "low", "high", "face_r2", "mse_255", "mse_raw")
    numbers = {key: value for key in keys if (value := getattr(floor.score, key)) is not None}
    return [{"name": f"answers floor ({floor.spec.name} from its own answers)", **numbers}]


def alice_answers(folder: Path) -> dict[str, Any] | None:
    """What Alice gets by sending the hard answers of an undefended twin, which she computes herself: `accuracy`, `r2`, `low`,
    `high`, and the `multiply_adds` of privatizer and utility head. From the twin's report; None if that has no answers floor.

    Raises: InputError if the report is damaged.
    """
    path = folder / "report" / "report.json"
    if not path.is_file():
        return None
    try:
        report = read_json(path)
        if (floor := report.get("answers_floor")) is None:
            return None
        numbers = {key: float(floor[key]) for key in ("r2", "low", "high")}
        accuracy = float(report["utility"]["accuracy"])
        multiply_adds = sum(int(report["cost"][name]["multiply_adds"]) for name in ("privatizer", "utility_head"))
        if not (all(-1e6 < number <= 1 for number in numbers.values()) and 0 <= accuracy <= 1 and 0 <= multiply_adds < 1e18):
            raise ValueError("numbers")
        return {"accuracy": accuracy, **numbers, "multiply_adds": multiply_adds}
    except Exception as e:  # a damaged file may lead to any exception
        raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e


def read_strongest_attack(folder: Path) -> dict[str, Any] | None:
    """Name, R2 and interval of the strongest attack on a run, from its report; None if it has no report.

    Raises: InputError if the report is damaged.
    """
    path = folder / "report" / "report.json"
    if not path.is_file():
        return None
    try:
        strongest = read_json(path)["privacy"]["strongest"]
        numbers = {key: float(strongest[key]) for key in ("r2", "low", "high")}
        if not all(-1e6 < number <= 1 for number in numbers.values()):
            raise ValueError("numbers")
        return {"attack": printable(str(strongest["attack"]))[:60], **numbers}
    except Exception as e:  # a damaged file may lead to any exception
        raise InputError(f"{path} is damaged ({type(e).__name__}): attack that run again") from e


def twin_codes(program: Path, dataset: Dataset) -> Codes:
    """Codes of all splits, computed by an exported privatizer."""
    from cpgan_ray.evaluation.encoders.encoder import encode_all, open_own

    return encode_all(open_own(program), dataset)
