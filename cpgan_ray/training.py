"""The whole job of training: data, the game on its backend, tracking, fresh attacks, and the folder that is left behind."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpgan_ray.cli import stop_on_sigterm
from cpgan_ray.config import Config, to_json
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.base import rounds_per_epoch
from cpgan_ray.data.projection import DEFAULT_COMPONENTS, projection, scale
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import ridge_attack
from cpgan_ray.evaluation.panels import panel, reconstructed
from cpgan_ray.evaluation.tournament import Material, entries, metrics, trained_against
from cpgan_ray.game import Game, opponents, play_in_process
from cpgan_ray.judging import judge_codes, utility_of
from cpgan_ray.messages import Metrics, Outcome
from cpgan_ray.process import available_cpus, set_up_process
from cpgan_ray.tracking import Console, Tracker, read_curves

CHUNK_S = 2.0
"""About how long the rounds between two reports to the driver take, in seconds."""
PANEL_PICTURES = 10


class Running(Protocol):
    """A game under way, wherever it is played."""

    total_rounds: int
    rounds_per_epoch: int

    def play(self, rounds: int) -> Any: ...
    def get(self, started: Any) -> Any: ...
    def outcome(self) -> Outcome: ...


class LocalGame:
    """The game in this process, with the face of actors.RayGame."""

    def __init__(self, game: Game) -> None:
        self.game, self.total_rounds, self.rounds_per_epoch = game, game.total_rounds, game.rounds_per_epoch

    def play(self, rounds: int) -> list[Metrics]:
        return self.game.play(rounds)

    def get(self, started: Any) -> Any:
        return started

    def outcome(self) -> Outcome:
        return self.game.privatizer.outcome()


def on_ray(config: Config) -> bool:
    """Whether the players get actors. `auto`: with one adversary or none there is nothing to overlap, so they stay in-process."""
    return config.runtime.backend == "ray" or (config.runtime.backend == "auto" and len(opponents(config)) > 1)


@contextmanager
def running(config: Config) -> Iterator[Running]:
    """The game on the backend of the configuration; its processes end with the block."""
    if on_ray(config):
        from cpgan_ray.actors import RayGame

        with RayGame(config) as game:
            stop_on_sigterm()
            yield game
    else:
        stop_on_sigterm()
        yield LocalGame(play_in_process(config, threads=config.runtime.threads or available_cpus()))


def train(config: Config) -> dict[str, Any]:
    """Train, attack, leave everything in the output folder and in MLflow; returns the summary that a job prints.

    Raises: InputError for anything the user can mend, before anything is written to the output folder.
    """
    started = time.perf_counter()
    output = new_output(config)
    set_up_process(threads=config.runtime.threads or available_cpus())
    dataset = load(config)
    rounds_per_epoch(len(dataset.train), config.batch_size)
    check_undefended(config)
    entries(config.attacks, dataset)  # before hours of training, not after
    for components in {getattr(config.adversaries[name], "components", 0) or DEFAULT_COMPONENTS for name in opponents(config)}:
        projection(dataset, components=components)
    with ExitStack() as players:
        game = players.enter_context(running(config))
        with Tracker(config, output, dataset=dataset) as tracker:
            play(game, config, tracker, dataset)
            outcome = game.outcome()
            players.close()  # their cores and memory are the attacks' now
            tracker.flush()
            summary = evaluate(config, dataset, outcome, tracker, final_round=game.total_rounds - 1)
            seconds = time.perf_counter() - started
            tracker.log({"time/total_s": seconds}, step=game.total_rounds - 1)
    return {"run_id": tracker.run_id, "output": str(output), **summary, "seconds": round(seconds, 1)}


def new_output(config: Config) -> Path:
    """The folder of this run, absolute, not made yet.

    Raises: InputError where it holds a run already.
    """
    output = config.output or Path("outputs").resolve() / f"{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    if (output / "config.json").exists():
        raise InputError(f"output folder {output} holds a run already: give another --output")
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is a file: give a folder with --output")
    return output


def play(game: Running, config: Config, tracker: Tracker, dataset: Dataset) -> None:
    """All rounds, logged as they come. The next ones are under way while the last are logged, except where a panel is due."""
    console = Console(total_rounds=game.total_rounds, rounds_per_epoch=game.rounds_per_epoch, names=opponents(config))
    every = config.tracking.panel_every * game.rounds_per_epoch
    done, coming = 0, game.play(1)
    try:
        while done < game.total_rounds:
            played: list[Metrics] = game.get(coming)
            done = int(played[-1]["round"]) + 1
            chunk = max(1, round(CHUNK_S * len(played) / sum(m["time/round_s"] for m in played)))
            panel_due = every > 0 and done % every == 0 and done < game.total_rounds
            if done < game.total_rounds and not panel_due:
                coming = game.play(chunk)
            for one in played:
                tracker.log({name: value for name, value in one.items() if name != "round"}, step=int(one["round"]))
            console.show(played)
            if panel_due:
                draw_panel(config, dataset, game.outcome(), tracker, step=done - 1)
                coming = game.play(chunk)
    finally:
        console.close()


def evaluate(config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, final_round: int) -> dict[str, Any]:
    """Utility on the test split, the tournament of fresh attacks, exported programs, report card. Returns the summary."""
    utility = utility_of(outcome.logits["test"], dataset, config.data.labels)
    pictures = dataset.test.take(np.arange(2)).transpose(0, 3, 1, 2).copy()
    tracker.log_programs(outcome.programs, {"privatizer": pictures, "utility_head": outcome.codes["test"][:2].copy()})
    judged = judge_codes(
        Material(dataset, outcome.codes, config.attacks, config.seed, trained_against(config), config.data.labels),
        runtime=config.runtime,
        utility=utility,
        about=about(config),
        curves=read_curves(tracker.output / "metrics.jsonl"),
        undefended=config.tracking.undefended,
    )
    tracker.log({f"utility/{name}": value for name, value in utility.items()} | metrics(judged.verdict), step=final_round)
    judged.write(tracker.output / "report")
    tracker.log_folder(tracker.output / "report", "report")
    return {"accuracy": round(utility["accuracy"], 4), **headline(judged.report)}


def about(config: Config) -> dict[str, Any]:
    """What a report says of the run that it is on."""
    settings = to_json(config)
    kept = ("data", "privatizer", "utility", "game", "adversaries", "epochs", "batch_size", "attacks")
    return {
        "name": config.preset,
        "k": config.k,
        "privacy_weight": config.privacy_weight,
        "seed": config.seed,
        "settings": {name: settings[name] for name in kept},
    }


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a job's last line that the tournament answers for."""
    strongest = {key: round(v, 4) if isinstance(v, float) else v for key, v in report["privacy"]["strongest"].items()}
    return {"strongest": strongest, "label_floor_r2": round(report["privacy"]["label_floor_r2"], 4)}


def draw_panel(config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, step: int) -> None:
    """In mid-training: test pictures and what a ridge attack recovers of them."""
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    data = Material(dataset, outcome.codes, config.attacks, config.seed).data("leaked")
    rows = np.arange(min(PANEL_PICTURES, len(dataset.test)))
    shown = {
        "original": scale(dataset.test.take(rows)),
        "defended,\nridge attack": reconstructed(data, ridge_attack(data, config.attacks), rows, np.asarray(basis.mean)),
    }
    tracker.log_panel(panel(shown, image_shape=dataset.image_shape), step=step)


def check_undefended(config: Config) -> None:
    """Raises: InputError where the undefended twin's folder has no exported privatizer."""
    folder = config.tracking.undefended
    if folder is not None and not (folder / "privatizer.pt2").is_file():
        raise InputError(f"tracking.undefended is {folder}, which has no privatizer.pt2: give the output folder of a finished run")
