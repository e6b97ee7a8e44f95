"""What a comparison or a calibration costs, before it is started: the number of its cells, and their CPU time by mechanism.

The CPU time of a mechanism's cells is the mean over its finished cells (`cpu_s` in `cell.json`), if a comparison is resumed.
Otherwise one of its settings is trained for one and for two epochs: with CPU times T(1) and T(2), E epochs take

    T(E) = T(1) + (E - 1) (T(2) - T(1)),

and its codes after two epochs are attacked once, with all budgets. What cells share is trained or fitted once for each seed and
listed apart: the undefended twin, the undefended features, and the attacks on the true labels.

CPU time is that of all threads of this process; an attack's budget may double more or less often on other codes.
"""

import dataclasses
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.analysis.cells import CELL, Cell
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.process import available_cpus, set_up_process
from cpgan_ray.config import Config, ReproduceJob
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.evaluation.fitting import FLOOR, attack_specs, stack_specs
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.games import FEATURES
from cpgan_ray.mechanisms.noise import NOISE_COMPONENTS
from cpgan_ray.pipelines.fit_to_data import fit_to_data
from cpgan_ray.pipelines.reproduce.cell_attacks import attack, context_of, floor_attacks
from cpgan_ray.pipelines.reproduce.cell_config import cell_config
from cpgan_ray.pipelines.reproduce.job import cells, grids_of
from cpgan_ray.pipelines.reproduce.mechanisms import compared, pinned_job, release, roundings_of
from cpgan_ray.pipelines.reproduce.results import Values, finished, read_cells

logger = logging.getLogger(__name__)

SHARED = {"twin": "undefended twin", "features": "undefended features", "floor": "attacks on the true labels"}
"""What cells share -> its name in the table."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds of a cell."""

    training: float
    attacks: float = 0.0

    @property
    def total(self) -> float:
        return self.training + self.attacks


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    name: str
    count: int
    cost: Cost
    recorded: bool = False
    """Whether the cost is that of finished cells, and not an estimate."""

    @property
    def hours(self) -> float:
        return self.count * self.cost.total / 3600


def estimate(job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """The table of what a comparison costs, and the summary that the job prints. Writes nothing but the prepared store.

    Raises: InputError for anything that the comparison would refuse.
    """
    started = time.process_time()
    job = pinned_job(job)
    job = dataclasses.replace(job, config=fit_to_data(job.config))
    set_up_process(threads=job.config.runtime.threads or 1)
    dataset = load(job.config)
    for components in (DEFAULT_COMPONENTS, NOISE_COMPONENTS):
        projection(dataset, components=components)
    done: list[Values] = []
    if job.calibrate:
        todo = pilots(job, job.pilot_seed)
    else:
        folder = job.config.output if resume else None
        todo = cells(job, dataset, grids_of(job, folder or Path(), dataset, resume=resume))
        if folder is not None:
            done = finished(read_cells(folder))
            todo = [cell for cell in todo if not (folder / "cells" / cell.name / CELL).is_file()]
    rows = rows_of(todo, done, job.config, dataset, attacked=not job.calibrate)
    hours = sum(row.hours for row in rows)
    specs = attack_specs(job.config.attacks, dataset, answers=job.config.attacks.answers_floor)
    num_attacks = 0 if job.calibrate else len(todo) * len([*specs, *stack_specs(specs, job.config.attacks)])
    spent = time.process_time() - started
    cpus = available_cpus()
    note = f"{hours:.3g} CPU hours, about {hours / cpus:.2g} hours on this machine's {cpus} cores if they are idle"
    summary = {"cells": len(todo), "attacks": num_attacks, "cpu_hours": round(hours, 5)}
    summary |= {"by_mechanism": {row.name: round(row.hours, 5) for row in rows}, "estimate_cpu_s": round(spent, 1)}
    return f"{table(rows)}\n\n{note}. Estimating took {spent:.0f} CPU seconds.", summary


def pilots(job: ReproduceJob, seed: int) -> list[Cell]:
    """The trainings of a calibration: the most accurate setting in place of each pilot's, and the undefended twin."""
    twin = Cell(mechanism="bottleneck", setting=1.0, rounded=False, seed=seed)
    trained = [name for name in compared(job) if MECHANISMS[name].search is not None]
    return [twin] + [
        Cell(mechanism=name, setting=(MECHANISMS[name].search or (1.0,))[0], rounded=rounded, seed=seed)
        for name in trained
        for rounded in roundings_of(name, job.roundings)
        for _ in range(job.num_pilots)
    ]


def rows_of(todo: Sequence[Cell], done: Sequence[Values], config: Config, dataset: Dataset, *, attacked: bool) -> list[Row]:
    """The rows of the table: first what cells share, then the mechanisms."""
    recorded = {name: recorded_cost(of) for name in {cell.mechanism for cell in todo} if (of := of_mechanism(done, name))}
    timed: dict[str, Cost] = {}
    shared: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="cpgan-estimate-") as folder:
        for name in dict.fromkeys(cell.mechanism for cell in todo):
            if name not in recorded:
                of = [cell for cell in todo if cell.mechanism == name]
                cell = of[len({c.setting for c in of}) // 2]  # a setting in the middle
                timed[name], more = time_cell(cell, config, dataset, Path(folder) / name, attacked=attacked)
                shared = {**more, **shared}
                logger.info(f"{name}: a training takes {timed[name].training:.1f} CPU s, its attacks {timed[name].attacks:.1f}")
    seeds = len({cell.seed for cell in todo})
    rows = [Row(name=SHARED[what], count=seeds, cost=cost) for what, cost in shared.items()]
    for name in dict.fromkeys(cell.mechanism for cell in todo):
        count = sum(cell.mechanism == name for cell in todo)
        rows.append(Row(name=name, count=count, cost=recorded.get(name) or timed[name], recorded=name in recorded))
    return rows


def of_mechanism(done: Sequence[Values], name: str) -> list[Values]:
    return [values for values in done if values["cell"]["mechanism"] == name]


def recorded_cost(done: Sequence[Values]) -> Cost:
    """The mean over finished cells."""
    training, attacks = ([values["cpu_s"][part] for values in done] for part in ("training", "attacks"))
    return Cost(training=sum(training) / len(done), attacks=sum(attacks) / len(done))


def time_cell(cell: Cell, config: Config, dataset: Dataset, folder: Path, *, attacked: bool) -> tuple[Cost, dict[str, Cost]]:
    """CPU seconds of a cell, and of what it shares with others: of the game that it starts from and of the attacks on the true
    labels."""
    short = [min(epochs, config.epochs) for epochs in (1, 2)]
    own: list[float] = []
    games: list[dict[str, float]] = []
    for epochs in short:
        started, output = time.process_time(), folder / str(epochs)
        changed = dataclasses.replace(cell_config(cell, config), epochs=epochs, output=output)
        released = release(cell.mechanism, changed, cell.setting, dataset)
        games.append(shared_games(output))
        own.append(max(0.0, time.process_time() - started - sum(games[-1].values())))
    shared = {what: Cost(training=extended(games[0][what], games[1].get(what, 0.0), config.epochs)) for what in games[0]}
    training = extended(own[0], own[1], config.epochs)
    if not attacked:
        return Cost(training=training), shared
    context = context_of(released, cell, config, dataset)
    specs = attack_specs(config.attacks, dataset, answers=context.has_answers)
    started = time.process_time()
    floor_attacks([spec for spec in specs if spec.variant == FLOOR], context)
    fitted = time.process_time()
    attack(released, context, brief=False)
    finished_at = time.process_time()
    if (floor := fitted - started) > 0.01:  # else another cell has fitted them
        shared["floor"] = Cost(training=0.0, attacks=floor)
    return Cost(training=training, attacks=finished_at - fitted), shared


def shared_games(output: Path) -> dict[str, float]:
    """CPU seconds of the games that a mechanism has played for all, by what they are."""
    played = (output / FEATURES).glob("*.json") if (output / FEATURES).is_dir() else ()
    return {"twin" if path.stem.endswith("-twin") else "features": float(read_json(path)["cpu_s"]) for path in played}


def extended(one: float, two: float, epochs: int) -> float:
    """CPU seconds of so many epochs from those of one and of two."""
    return one if epochs == 1 else one + (epochs - 1) * max(0.0, two - one)


def table(rows: Sequence[Row]) -> str:
    """A row for each mechanism, the most expensive first, after what is shared."""
    output = PrettyTable(["", "times", "CPU s of a training", "CPU s of its attacks", "CPU hours in all"])
    output.set_style(TableStyle.MARKDOWN)
    output.align = "r"
    shared = [row for row in rows if row.name in SHARED.values()]
    for row in [*shared, *sorted((row for row in rows if row not in shared), key=lambda row: -row.hours)]:
        name = row.name + (" (recorded)" if row.recorded else " (once for each seed)" if row in shared else "")
        numbers = (row.cost.training, row.cost.attacks)
        output.add_row([name, row.count, *(f"{number:.1f}" for number in numbers), f"{row.hours:.3f}"])
    return output.get_string()
