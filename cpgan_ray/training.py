"""The whole job of training: data, the game on its backend, tracking, fresh attacks, and the folder that is left behind."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cpgan_ray.cli import stop_on_sigterm
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_columns, load
from cpgan_ray.data.base import consecutive, rounds_per_epoch
from cpgan_ray.data.projection import DEFAULT_COMPONENTS, projection, scale, targets
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks import predict, ridge_attack
from cpgan_ray.evaluation.final import Attacked, attack_data, attack_run, label_floor, report
from cpgan_ray.evaluation.panels import panel
from cpgan_ray.game import Game, opponents, play_in_process
from cpgan_ray.messages import Metrics, Outcome
from cpgan_ray.objectives import accuracy, balanced_accuracy
from cpgan_ray.process import available_cpus, set_up_process
from cpgan_ray.tracking import Console, Tracker

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
    for components in {getattr(config.adversaries[name], "components", 0) or DEFAULT_COMPONENTS for name in opponents(config)}:
        projection(dataset, components=components)
    with ExitStack() as players:
        game = players.enter_context(running(config))
        with Tracker(config, output, dataset=dataset) as tracker:
            play(game, config, tracker, dataset)
            outcome = game.outcome()
            players.close()  # their cores and memory are the attacks' now
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
            for metrics in played:
                tracker.log({name: value for name, value in metrics.items() if name != "round"}, step=int(metrics["round"]))
            console.show(played)
            if panel_due:
                draw_panel(config, dataset, game.outcome(), tracker, step=done - 1)
                coming = game.play(chunk)
    finally:
        console.close()


def evaluate(config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, final_round: int) -> dict[str, Any]:
    """Utility on the test split, fresh attacks, the label floor; exported programs, report and panel. Returns the summary."""
    torch.set_num_threads(config.runtime.threads or available_cpus())
    utility = utility_on_test(config, dataset, outcome)
    data, attacked = attack_run(config, dataset, outcome)
    floor = label_floor(config, dataset)
    strongest = attacked[0]
    metrics = {f"utility/{name}": value for name, value in utility.items()}
    metrics |= {f"attack/{a.name}/{key}": getattr(a.score, key) for a in attacked for key in ("r2", "mse_255")}
    metrics |= {f"attack/{a.name}/seconds": a.seconds for a in attacked}
    metrics |= {
        "privacy/strongest_r2": strongest.score.r2,
        "privacy/label_floor_r2": floor.score.r2,
        "privacy/excess_r2": strongest.score.r2 - floor.score.r2,
    }
    tracker.log(metrics, step=final_round)
    tracker.log_report(report(attacked, floor, utility=utility, config=config))
    height, width, channels = dataset.image_shape
    pictures = dataset.test.take(np.arange(2)).transpose(0, 3, 1, 2).copy()
    tracker.log_programs(outcome.programs, {"privatizer": pictures, "utility_head": outcome.codes["test"][:2]})
    draw_panel(config, dataset, outcome, tracker, step=final_round, strongest=strongest)
    result = {"attack": strongest.name, "r2": strongest.score.r2, "low": strongest.score.low, "high": strongest.score.high}
    return {
        "accuracy": round(utility["accuracy"], 4),
        "strongest": {key: round(v, 4) if isinstance(v, float) else v for key, v in result.items()},
        "label_floor_r2": round(floor.score.r2, 4),
    }


def utility_on_test(config: Config, dataset: Dataset, outcome: Outcome) -> dict[str, float]:
    """Accuracy, balanced accuracy and that of the majority guess, averaged over the labels of the task."""
    columns = label_columns(dataset, config.data.labels)
    y, train = dataset.test.labels[:, columns], dataset.train.labels[:, columns]
    majority = np.broadcast_to(train.mean(axis=0) - 0.5, y.shape)
    return {
        "accuracy": float(accuracy(outcome.logits["test"], y).mean()),
        "balanced_accuracy": float(np.nanmean(balanced_accuracy(outcome.logits["test"], y))),
        "majority_accuracy": float(accuracy(majority, y).mean()),
    }


def draw_panel(
    config: Config, dataset: Dataset, outcome: Outcome, tracker: Tracker, *, step: int, strongest: Attacked | None = None
) -> None:
    """Test pictures, what is recovered from undefended codes, and what is recovered from these.

    The defended row is the strongest attack's, or before the end a ridge attack's. Without a finished undefended twin its row
    shows the best linear code of as many numbers, the leading principal components.
    """
    basis = projection(dataset, components=DEFAULT_COMPONENTS)
    shown = consecutive(0, min(PANEL_PICTURES, len(dataset.test)))
    originals = scale(dataset.test.take(shown.rows))

    def recovered(codes: dict[str, np.ndarray], attack: Attacked | None) -> np.ndarray:
        data = attack_data(dataset, codes, basis=basis, max_rows=config.attacks.max_rows, seed=config.seed)
        fitted = attack.fitted if attack else ridge_attack(data, config.attacks)
        return basis.reconstruct(predict(fitted.reconstruct, data.score.z[: len(shown.rows)]).numpy())

    rows = {"original": originals}
    if config.tracking.undefended:
        rows["undefended twin,\nridge attack"] = recovered(twin_codes(config.tracking.undefended, dataset), None)
    else:
        coordinates, _ = targets(basis, dataset.test, shown)
        coordinates[:, config.k :] = 0
        rows[f"undefended:\nbest {min(config.k, coordinates.shape[1])} numbers"] = basis.reconstruct(coordinates)
    defended = f"defended,\n{strongest.name} attack" if strongest else "defended,\nridge attack"
    rows[defended] = recovered(outcome.codes, strongest)
    tracker.log_panel(panel(rows, image_shape=dataset.image_shape), step=step)


def check_undefended(config: Config) -> None:
    """Raises: InputError where the undefended twin's folder has no exported privatizer."""
    folder = config.tracking.undefended
    if folder is not None and not (folder / "privatizer.pt2").is_file():
        raise InputError(f"tracking.undefended is {folder}, which has no privatizer.pt2: give the output folder of a finished run")


def twin_codes(folder: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Codes of all splits by the exported privatizer of another run."""
    encode = torch.export.load(folder / "privatizer.pt2").module()
    codes = {}
    for name, split, mirrored in (
        ("train", dataset.train, False),
        ("train_mirrored", dataset.train, True),
        ("val", dataset.val, False),
        ("test", dataset.test, False),
    ):
        blocks = (b[:, :, ::-1] if mirrored else b for b in split.iter_batches(500))
        with torch.no_grad():
            codes[name] = torch.cat([encode(torch.from_numpy(b.transpose(0, 3, 1, 2).copy())) for b in blocks]).numpy()
    return codes
