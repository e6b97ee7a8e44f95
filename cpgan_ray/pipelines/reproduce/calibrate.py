"""The calibration of a comparison: pilot trainings that choose the settings of every mechanism's knob by the same rule.

Pilots are trained under a seed of their own and judged only by accuracy on the validation split; nothing is attacked. The result is
one file, `grids.json`, for `jobs/reproduce.py --grids`.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.cells import Cell
from cpgan_ray.common.atomic_io import make_folder, write_text
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.process import set_up_process
from cpgan_ray.config import Config, ReproduceJob
from cpgan_ray.data import Dataset, load, majority_logits, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.calibration import TOLERANCE, Choice, Pilot, choose, run_pilots, target_accuracies
from cpgan_ray.pipelines.reproduce.cell_config import cell_config
from cpgan_ray.pipelines.reproduce.grids import GRIDS, Calibration, Grids, Rounding, calibrated_fields
from cpgan_ray.pipelines.reproduce.mechanisms import add, compared, release, roundings_of
from cpgan_ray.training.accuracy import mean_accuracy

logger = logging.getLogger(__name__)

PILOTS = "pilots"
TWIN = ("bottleneck", 1.0)
"""The undefended twin: the accuracy that the highest target has."""


def val_accuracy(cell: Cell, config: Config, folder: Path) -> float:
    """The validation accuracy of a pilot; trained unless its file exists. A training that diverges has the accuracy of the majority
    guess."""
    path = folder / PILOTS / f"{cell.name}.json"
    if path.is_file():
        try:
            return float(read_json(path)["val_accuracy"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(f"{path} is damaged ({type(e).__name__}: {e}): remove it, and the pilot is trained again") from e
    dataset = load(config, progress=False)
    task = task_of(dataset, config.data.labels)
    try:
        logits = release(cell.mechanism, cell_config(cell, config), cell.setting, dataset).logits["val"]
    except FloatingPointError:
        logits = majority_logits(dataset, task, rows=len(dataset.val))
    value = mean_accuracy(logits, task.answers(dataset.val), task)
    make_folder(folder / PILOTS)
    write_text(path, json.dumps({"val_accuracy": value}) + "\n")
    logger.info(f"pilot {cell.name}: validation accuracy {value:.4f}")
    return value


def pilots_of(
    mechanism: str, rounded: bool, config: Config, folder: Path, targets: Sequence[float], num_pilots: int
) -> list[Pilot]:
    """All pilots of a mechanism, one after the other."""
    dataset, spec = load(config, progress=False), MECHANISMS[mechanism]
    assert spec.search is not None

    def canonical(setting: float) -> float:
        """Four digits, as in the names of cells; for code lengths the share that stands for the length."""
        if spec.length is not None:
            setting = spec.length(config, setting, dataset) / spec.length(config, 1.0, dataset)
        return float(f"{setting:.4g}")

    def trained(setting: float) -> float:
        return val_accuracy(Cell(mechanism=mechanism, setting=setting, rounded=rounded, seed=config.seed), config, folder)

    return run_pilots(trained, ends=spec.search, targets=targets, num_pilots=num_pilots, canonical=canonical)


def run_mechanism(known: Sequence[str], threads: int, *arguments: Any) -> None:
    """`pilots_of` in a process of its own, for its files. known: pinned names of the comparison's mechanisms."""
    set_up_process(threads=threads)
    add(known)
    pilots_of(*arguments)


def calibrate(job: ReproduceJob, config: Config, dataset: Dataset, folder: Path, *, roundings: Sequence[bool]) -> Grids:
    """Run the pilots that have no result yet, as Ray tasks or in this process, and choose the settings.

    config: with the pilot seed and the pinned store.
    """
    task = task_of(dataset, config.data.labels)
    majority = mean_accuracy(majority_logits(dataset, task, rows=len(dataset.val)), task.answers(dataset.val), task)
    twin = Cell(mechanism=TWIN[0], setting=TWIN[1], rounded=False, seed=config.seed)
    undefended = val_accuracy(twin, config, folder)
    if undefended <= majority:
        raise RuntimeError(
            f"the undefended twin's validation accuracy {undefended:.4f} is not above the majority guess {majority:.4f}"
        )
    targets = target_accuracies(majority, undefended, count=job.num_settings)
    logger.info(f"targets of validation accuracy: {', '.join(f'{target:.4f}' for target in targets)}")
    names = [name for name in compared(job) if MECHANISMS[name].search is not None]
    work = [(name, rounded, config, folder, targets, job.num_pilots) for name in names for rounded in roundings_of(name, roundings)]
    if config.runtime.backend == "local":
        for arguments in work:
            pilots_of(*arguments)
    else:
        from cpgan_ray.distributed.cluster import connect
        from cpgan_ray.distributed.tasks import run_in_tasks

        connect(config.runtime)
        gpus = config.runtime.privatizer_gpus
        threads = config.runtime.threads or 1
        tasks = [(job.mechanisms, threads, *arguments) for arguments in work]
        run_in_tasks(run_mechanism, tasks, runtime=config.runtime, cpus=1.0, gpus=gpus, done=lambda i, _: None)
    pilots: dict[str, dict[Rounding, tuple[Pilot, ...]]] = {}
    grids: dict[str, dict[Rounding, tuple[Choice, ...]]] = {}
    for name in compared(job):
        for rounded in roundings_of(name, roundings):
            key: Rounding = "on" if rounded else "off"
            if name not in names:
                grids.setdefault(name, {})[key] = tuple(Choice(setting=setting) for setting in MECHANISMS[name].settings)
                continue
            trained = tuple(pilots_of(name, rounded, config, folder, targets, job.num_pilots))  # all are in their files
            pilots.setdefault(name, {})[key] = trained
            grids.setdefault(name, {})[key] = choose(trained, targets, tolerance=TOLERANCE * (undefended - majority))
    calibration = Calibration(
        data=dataset.digest,
        config=calibrated_fields(job.config),
        pilot_seed=config.seed,
        num_pilots=job.num_pilots,
        majority_accuracy=majority,
        undefended_accuracy=undefended,
        targets=targets,
        pilots=pilots,
    )
    return Grids(source="calibrated", grids=grids, calibration=calibration)


def grids_table(grids: Grids) -> str:
    """A row for each mechanism, with and without rounding: the setting of each target with its validation accuracy; a star marks a
    target that is not reached."""
    calibration = grids.calibration
    assert calibration is not None
    output = PrettyTable(["mechanism", "rounding", *(f"target {target:.3f}" for target in calibration.targets)])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    for mechanism, by_rounding in grids.grids.items():
        for rounding, choices in by_rounding.items():
            shown = {choice.target: choice_text(choice) for choice in choices}
            fixed = shown.get(None, "")
            output.add_row([mechanism, rounding, *(shown.get(target, fixed) for target in calibration.targets)])
    missed = any(choice.reached is False for by in grids.grids.values() for choices in by.values() for choice in choices)
    note = f"\n\n\\* not reached: more than {100 * TOLERANCE:g} % of the range from majority guess to undefended accuracy away"
    return output.get_string() + note * missed


def choice_text(choice: Choice) -> str:
    if choice.val_accuracy is None:
        return f"{choice.setting:g}"
    return f"{choice.setting:g} ({choice.val_accuracy:.3f}){'' if choice.reached else ' *'}"


def summary(grids: Grids, folder: Path) -> dict[str, Any]:
    """What the job prints about a calibration."""
    choices = [choice for by in grids.grids.values() for choices in by.values() for choice in choices]
    missed = sum(choice.reached is False for choice in choices)
    return {"grids": str(folder / GRIDS), "sha256": grids.sha256, "settings": len(choices), "not_reached": missed}
