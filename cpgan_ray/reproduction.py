"""The whole job of jobs/reproduce.py: mechanisms on a data set, every cell a Ray task, and what they amount to."""

import csv
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.cli import REPRODUCTION, read_reproduction
from cpgan_ray.common.atomic_io import atomic_path, no_link, write_bytes, write_text
from cpgan_ray.common.json_files import read_json
from cpgan_ray.common.ownership import sign
from cpgan_ray.common.registry import ensure_unchanged
from cpgan_ray.common.signals import defer_signals
from cpgan_ray.comparison import CELL, Cell, findings, play, recommended, strongest, trial
from cpgan_ray.config import Config, ReproduceJob, to_json
from cpgan_ray.credentials import redacted, redacted_values
from cpgan_ray.data import Dataset, load, named
from cpgan_ray.data.projection import DEFAULT_COMPONENTS, projection
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.lines import attacker_lines
from cpgan_ray.frontier import Estimate, Trial, across, reference_point, with_interval, write
from cpgan_ray.judging import degenerate
from cpgan_ray.mechanisms import MECHANISMS
from cpgan_ray.mechanisms.games import FEATURES
from cpgan_ray.mechanisms.noise import KEPT_COMPONENTS
from cpgan_ray.process import available_cpus, set_up_process
from cpgan_ray.published import measured, published, published_theory, side_by_side
from cpgan_ray.theory_figure import frontier_figure
from cpgan_ray.tracking import SearchRun, ensure_trackable, tracking_uri
from cpgan_ray.training import output_folder

PUBLISHED, THEORY, TABLE = "published.png", "theory.png", "results.csv"
UNSATURATED = "\n\n\\* still gaining when its budget ended under at least one seed: a lower bound"
DUMP_EVERY = 10
"""Cells after which the table is written, in mid-comparison."""
Values = Mapping[str, Any]
"""Of a cell's file."""


def reproduce(job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """Play the cells that are not there yet, write the results of all; returns the table and the summary that the job prints.

    Raises: InputError for anything the user can mend, before anything is written.
    """
    with output_folder(job.config.output, f"reproduce-{job.config.preset}", resume=resume) as folder:
        return reproduce_in(folder, job if resume else settled(job, folder), resume=resume)


def reproduce_in(folder: Path, job: ReproduceJob, *, resume: bool) -> tuple[str, dict[str, Any]]:
    """The same in a folder that is this comparison's."""
    started = time.perf_counter()
    ensure_trackable(job.config.tracking, folder)
    dataset_name = job.config.data.dataset
    theirs = published(job.published, dataset_name) if job.published else []
    best_codes = published_theory(job.published) if job.published and dataset_name == "gaussian" else []
    set_up_process(threads=available_cpus())
    if job.config.runtime.backend != "local":
        ensure_unchanged()
    dataset = load(job.config)
    for components in (DEFAULT_COMPONENTS, KEPT_COMPONENTS):
        projection(dataset, components=components)  # once, before many processes ask for it
    todo = cells(job, dataset)
    with defer_signals() as stop:  # or a signal could leave the run RUNNING, between its beginning or its end and the block
        run = open_run(job, folder, resume=resume)
        status = "FAILED"
        try:
            with stop.allowed():
                missing = [cell for cell in todo if not (folder / "cells" / cell.name / CELL).is_file()]
                played(missing, named(job.config, dataset), folder, run, of=len(todo))
                shutil.rmtree(no_link(folder / FEATURES), ignore_errors=True)
                values = all_played(folder)
                summary = conclude(values, folder, run)
                if theirs:
                    write_bytes(folder / PUBLISHED, side_by_side(theirs, measured(finished(values), dataset_name), dataset_name))
                    run.log_files([folder / PUBLISHED])
                if dataset_name == "gaussian":
                    drawn = frontier_figure(finished(values), seed=job.config.data.mixture_seed, published=best_codes)
                    write_bytes(folder / THEORY, drawn)
                    run.log_files([folder / THEORY])
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.close(stop.run_status(status))
    summary = {"run_id": run.run_id, "output": str(folder), **summary, "seconds": round(time.perf_counter() - started, 1)}
    return (folder / "results.md").read_text(), summary


def all_played(folder: Path) -> list[Values]:
    """All cells of a comparison's folder, whichever resumption has played them: by mechanism, from the least private setting on, by
    seed."""

    def place(values: Values) -> tuple[int, float, int]:
        cell = Cell(**values["cell"])
        tried = MECHANISMS[cell.mechanism].settings
        return list(MECHANISMS).index(cell.mechanism), cell.setting if tried[0] < tried[-1] else -cell.setting, cell.seed

    return sorted((read_cell(path) for path in (folder / "cells").glob(f"*/{CELL}")), key=place)


def read_cell(path: Path) -> Values:
    """What a cell's file says. It may come with a folder from elsewhere.

    Raises: InputError if it is damaged.
    """
    try:
        values = read_json(path)
        if (name := Cell(**values["cell"]).mechanism) not in MECHANISMS:
            raise ValueError(f"mechanism {name!r:.60}")
        if "failed" not in values:
            logged(values)
            row(values)
            trial(values, path.parent)
        line(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}): remove its folder, and the cell is played again") from e
    return values


def cells(job: ReproduceJob, dataset: Dataset) -> list[Cell]:
    """All trainings, seed by seed, the slow mechanisms first."""
    seeds = range(job.config.seed, job.config.seed + job.seeds)
    return [
        Cell(mechanism=name, setting=setting, seed=seed)
        for seed in seeds
        for name in job.mechanisms or MECHANISMS
        for setting in settings_of(name, job, dataset)
    ]


def settings_of(name: str, job: ReproduceJob, dataset: Dataset) -> Sequence[float]:
    """What a mechanism's knob is tried at; code lengths once each."""
    known = MECHANISMS[name]
    if job.weights and known.knob == "privacy_weight":
        return job.weights
    settings = thinned(known.settings, job.settings)
    if known.length is None:
        return settings
    lengths = [known.length(job.config, setting, dataset) for setting in settings]
    return [setting for i, setting in enumerate(settings) if lengths[i] not in lengths[:i]]


def thinned(settings: Sequence[float], limit: int) -> list[float]:
    """At most `limit` of a mechanism's settings, evenly spaced."""
    count = min(limit, len(settings))
    return [settings[round(i * (len(settings) - 1) / max(count - 1, 1))] for i in range(count)]


def settled(job: ReproduceJob, folder: Path) -> ReproduceJob:
    """With this folder and a tracking store of its own, both absolute."""
    uri = tracking_uri(job.config.tracking, folder)
    if redacted(uri) != uri:  # a password that has to stay in it: not in `reproduction.json`
        os.environ["MLFLOW_TRACKING_URI"] = uri
    tracking = dataclasses.replace(job.config.tracking, uri=uri if redacted(uri) == uri else None)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, output=folder, tracking=tracking))


def open_run(job: ReproduceJob, folder: Path, *, resume: bool) -> SearchRun:
    """The comparison's MLflow run, and the file with its id: from here on it can be resumed."""
    c = job.config
    name = c.tracking.run_name or f"reproduce {c.preset}"
    params = {
        "preset": c.preset,
        "k": c.k,
        "epochs": c.epochs,
        "attacks": " ".join(c.attacks.names),
        "train_rows": c.data.train_rows,
    }
    tags = {"mechanisms": " ".join(job.mechanisms or MECHANISMS), "seeds": job.seeds, "settings": job.settings}
    run_id = read_reproduction(folder)[1] if resume else None
    run = SearchRun(c, folder, name=name, params=params, tags=tags, run_id=run_id, source="jobs/reproduce.py")
    folder.mkdir(parents=True, exist_ok=True)
    keep(job, folder, run.run_id)
    return run


def keep(job: ReproduceJob, folder: Path, run_id: str) -> None:
    """Write the file that a comparison is resumed from."""
    values = redacted_values({"run_id": run_id, "job": to_json(job)})
    write_text(folder / REPRODUCTION, json.dumps(values, indent=1) + "\n")
    sign(folder / REPRODUCTION)


def played(missing: Sequence[Cell], config: Config, folder: Path, run: SearchRun, *, of: int) -> None:
    """Cells as Ray tasks, or one after the other; a line on standard error and a run in MLflow for each."""
    started, done = time.perf_counter(), of - len(missing)
    if missing:
        print(f"{len(missing)} of {of} cells to play", file=sys.stderr, flush=True)

    def told(cell: Cell) -> None:
        nonlocal done
        done += 1
        values = read_cell(folder / "cells" / cell.name / CELL)
        run.add_child(cell.name, params=asdict(cell), metrics=logged(values), tags=outcome_tags(values))
        print(f"[{time.perf_counter() - started:.0f} s] {done}/{of} {line(values)}", file=sys.stderr, flush=True)
        if done % DUMP_EVERY == 0:
            write_table(all_played(folder), folder)

    if config.runtime.backend == "local":
        for cell in missing:
            play(cell, config, folder / "cells" / cell.name)
            told(cell)
        return
    from cpgan_ray.actors.cluster import connect
    from cpgan_ray.actors.tasks import in_tasks

    connect(config.runtime)
    work = [(cell, config, folder / "cells" / cell.name) for cell in missing]
    in_tasks(play, work, runtime=config.runtime, cpus=1.0, gpus=config.runtime.privatizer_gpus, done=lambda i: told(missing[i]))


def logged(values: Values) -> dict[str, float]:
    if "failed" in values:
        return {}
    best = strongest(values)
    found = {f"utility/{name}": value for name, value in values["utility"].items()}
    found |= {f"privacy/strongest_{name}": best[name] for name in ("r2",)}
    found |= {"privacy/strongest_r2_low": best["low"], "privacy/strongest_r2_high": best["high"]}
    found |= {f"privacy/{name}": values["privacy"][name] for name in ("val_r2", "label_floor_r2", "excess_r2")}
    return found | {f"attack/{a['name']}/r2": a["r2"] for a in values["attacks"]} | {"time/total_s": values["seconds"]}


def outcome_tags(values: Values) -> dict[str, str]:
    if "failed" in values:
        return {"failed": values["failed"]}
    tags = {"strongest.attack": strongest(values)["attack"]}
    why = degenerate(values)
    return tags | ({"code.degenerate": why[0]} if why else {})


def line(values: Values) -> str:
    """A cell in one line."""
    cell = Cell(**values["cell"])
    if "failed" in values:
        return f"{cell.name}: failed: {values['failed']}"
    best = strongest(values)
    accuracy = values["utility"]["accuracy"]
    return f"{cell.name}: accuracy {accuracy:.4f}, R2 {best['r2']:.4f} ({best['attack']}), {values['seconds']:.0f} s"


def write_table(values: Sequence[Values], folder: Path) -> None:
    """`results.csv`: a row for each training that came to its end, with every attack's R2 and mean squared error (0-255, or in the
    data's own unit)."""
    rows = [row(v) for v in finished(values)]
    names = list(dict.fromkeys(name for some in rows for name in some))
    with atomic_path(folder / TABLE) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def row(values: Values) -> dict[str, Any]:
    """A cell as a row of the table."""
    cell, best, utility = Cell(**values["cell"]), strongest(values), values["utility"]
    found: dict[str, Any] = {"mechanism": cell.mechanism, "knob": MECHANISMS[cell.mechanism].knob, "setting": cell.setting}
    found |= {"seed": cell.seed, "k": values["k"]}
    found |= {name: utility[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "val_accuracy")}
    found |= {"attack": best["attack"], "r2": best["r2"], "r2_low": best["low"], "r2_high": best["high"]}
    found |= {"label_floor_r2": values["privacy"]["label_floor_r2"], "val_r2": values["privacy"]["val_r2"]}
    for a in sorted(values["attacks"], key=lambda a: a["name"]):
        found |= {f"{a['name']}_r2": a["r2"], f"{a['name']}_mse": a.get("mse_255", a.get("mse_raw"))}
    return found | {"seconds": values["seconds"]}


def finished(values: Sequence[Values]) -> list[Values]:
    """Of some cells those whose training came to its end."""
    return [v for v in values if "failed" not in v]


def conclude(values: Sequence[Values], folder: Path, run: SearchRun) -> dict[str, Any]:
    """The files of the results, and what MLflow hears of them."""
    good = finished(values)
    trials = [trial(v, folder / "cells" / Cell(**v["cell"]).name) for v in good]
    reference = reference_point(trials)
    if reference is None:
        raise RuntimeError("no cell came to its end")
    write(trials, folder, chosen=recommended(trials))
    told: dict[str, Any] = findings(good, trials, reference) | {"failed": [Cell(**v["cell"]).name for v in values if "failed" in v]}
    files = {
        "results.json": json.dumps(told | {"label_floor_r2": trials[0].label_floor_r2}, indent=1) + "\n",
        "results.md": "\n\n".join([settings_table(good, trials), volumes_table(told)]) + "\n",
    }
    for name, text in files.items():
        write_text(folder / name, text)
    write_table(good, folder)
    write_bytes(folder / "attackers.png", attacker_lines(good, {name: known.knob for name, known in MECHANISMS.items()}))
    names = ("frontier.json", "frontier.csv", "frontier.png", "attackers.png", TABLE, REPRODUCTION, *files)
    run.log_files(folder / name for name in names)
    ours = told["hypervolume"].get("cpgan", {}).get("value")
    return {"cells": len(values), "failed": len(told["failed"]), "hypervolume": ours, "gap": told["gap"]}


def settings_table(values: Sequence[Values], trials: Sequence[Trial]) -> str:
    """A row for each setting, by mechanism: means over seeds with Student's 95 % intervals, or one seed's own."""
    drawn = PrettyTable(["mechanism", "setting", "k", "seeds", "accuracy", "strongest R2", "MSE", "attack"])
    drawn.set_style(TableStyle.MARKDOWN)
    drawn.align = "r"
    groups: dict[tuple[str, float], list[tuple[Values, Trial]]] = {}
    for v, t in zip(values, trials, strict=True):
        groups.setdefault((v["cell"]["mechanism"], v["cell"]["setting"]), []).append((v, t))
    for (mechanism, setting), group in groups.items():
        some = [t for _, t in group]
        numbers = [
            across([Estimate(getattr(t, n), getattr(t, f"{n}_low"), getattr(t, f"{n}_high")) for t in some])
            for n in ("accuracy", "strongest_r2")
        ]
        shown = [with_interval(e.value or 0.0, e.low, e.high) for e in numbers]
        errors = [mse(v) for v, _ in group]
        attacks = sorted({f"{t.attack or ''}{'' if saturated(v) else ' *'}" for v, t in group})
        knob = f"{MECHANISMS[mechanism].knob} {setting:g}"
        drawn.add_row(
            [mechanism, knob, group[0][0]["k"], len(some), *shown, f"{sum(errors) / len(errors):.4g}", ", ".join(attacks)]
        )
    return drawn.get_string() + UNSATURATED * ("*" in drawn.get_string())


def saturated(values: Values) -> bool:
    """Whether the cell's strongest attack had come to its end; a code that is a sample needs no attack."""
    name = strongest(values)["attack"]
    return all(a["saturated"] for a in values["attacks"] if a["name"] == name)


def mse(values: Values) -> float:
    """The strongest attack's mean squared error, on 0-255 or in the data's own unit."""
    best, first = strongest(values), values["attacks"][0]
    error = first.get("mse_255", first.get("mse_raw"))
    return error * (1 - best["r2"]) / (1 - first["r2"]) if first["r2"] < 1 else error


def volumes_table(told: Mapping[str, Any]) -> str:
    """A row for each mechanism: its hypervolume, and ours less it, paired over seeds."""
    drawn = PrettyTable(["mechanism", "hypervolume", "cpgan less it, paired"])
    drawn.set_style(TableStyle.MARKDOWN)
    drawn.align = "r"
    for method, volume in sorted(told["hypervolume"].items(), key=lambda item: -item[1]["value"]):
        less = told["ours_less"].get(method)
        told_less = "" if less is None or less["value"] is None else with_interval(less["value"], less["low"], less["high"])
        drawn.add_row([method, with_interval(volume["value"], volume["low"], volume["high"]), told_less])
    return drawn.get_string()
