"""Tests of a privatizer with several workers: same results as with one, failures, --resume, errors, whole-batch layers."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist
from torch import nn

from cpgan_ray.config import Config, ReproduceJob, SearchJob, override
from cpgan_ray.config.search_space import dimensions
from cpgan_ray.distributed.driver import RayGame
from cpgan_ray.errors import InputError
from cpgan_ray.training.checkpoint import decode
from cpgan_ray.training.game import Game, play_in_process
from tests.games import untimed
from tests.killing import kill
from tests.mixed import mixed_config
from tests.process import HANG_S, RIDGE_ONLY, environment
from tests.teaching import with_random_teacher

ROOT = Path(__file__).parents[3]
JOB = [sys.executable, str(ROOT / "jobs" / "train_celeba.py")]
NAMES = ("mlp", "ridge_epoch")
WORKERS = 2
BATCH = 79  # 39 and 40 rows: the mean of two means is not the mean
CANCELLED = ("privatizer.code.bias", "head.0.bias", "head.4.bias")
"""Biases that a batch norm cancels: their gradients are rounding errors, from which Adam makes steps of full size."""


def play_all(
    game: Game | RayGame, *, chunk: int = 2, before: Callable[[int], object] = lambda done: None
) -> list[dict[str, float]]:
    """Plays all rounds; `before` is called with the number of returned rounds while the next rounds are played."""
    played: list[dict[str, float]] = []
    while len(played) < game.total_rounds:
        started = game.play(chunk)
        before(len(played))
        played += game.get(started) if isinstance(game, RayGame) else started
    return played


def in_parallel(config: Config, folder: Path, **changes: Any) -> Config:
    dotted = {"runtime.backend": "ray", "privatizer.num_workers": WORKERS, "output": str(folder), "recovery.backoff_s": 0.1}
    return override(config, dotted | {key.replace("__", "."): value for key, value in changes.items()})


# ------------------------------------------------------------------------------------------------- same results

MIXED = "mixed labels with missing answers, and teachers"
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "stale1": (("ridge", "mlp"), {"game.schedule": "stale1", "privatizer.ema_decay": 0.5, "game.aggregate": "softmax"}),
    "epochwise": (("mlp", "ridge_epoch"), {"game.schedule": "epochwise"}),
    "weighted classes": (
        ("mlp",),
        {
            "data.dataset": "digits",
            "utility.class_weighted_loss": True,
            "utility.hidden": 0,
            "privatizer.family": "linear",
            "privatizer.code_activation": "raw",
        },
    ),
    MIXED: (("mlp",), {"utility.class_weighted_loss": True, "utility.label_weights": ["odd=0.3", "ink=2"], "epochs": 1}),
}


@dataclass(frozen=True)
class Played:
    """A game with two workers that has ended."""

    config: Config
    rounds: tuple[int, int]
    played: list[dict[str, float]]
    weights: Any
    outcome: Any
    sample: Any
    events: list[Any]


def play_in_parallel(config: Config) -> Played:
    with RayGame(config) as game:
        played, rounds = play_all(game), (game.total_rounds, game.rounds_per_epoch)
        return Played(config, rounds, played, game.weights(), game.outcome(), game.sample(30), list(game.events))


def test_two_workers_give_the_same_results_as_one(unbroken):
    ensure_same_as_one_worker(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("ray_session")
def test_two_workers_with_other_settings_give_the_same_results_as_one(case, tiny, tmp_path):
    names, changes = CASES[case]
    config = tiny(*names, batch_size=BATCH, privacy_weight=3, changes=changes)
    if case == MIXED:
        config = with_random_teacher(mixed_config(config, tmp_path / "cache"), tmp_path)
    ensure_same_as_one_worker(play_in_parallel(in_parallel(config, tmp_path)))


def ensure_same_as_one_worker(parallel: Played) -> None:
    config = override(parallel.config, {"privatizer.num_workers": 1, "runtime.backend": "local"})
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    assert parallel.rounds == (local.total_rounds, local.rounds_per_epoch)
    played, weights, outcome, sample = parallel.played, parallel.weights, parallel.outcome, parallel.sample
    for single, double in zip(expected, played, strict=True):
        assert single.keys() == double.keys()
        validation = {name for name in single if "val_" in name}  # with running statistics, which depend on the cancelled biases
        for name in single.keys() - {n for n in single if n.startswith("time/")}:
            tolerance = 1e-3 if name in validation else 5e-6
            assert double[name] == pytest.approx(single[name], abs=tolerance), (single["round"], name)
    parameters = dict(local.privatizer.defender.net.named_parameters())
    net = weights["privatizer"]["net"]
    assert net.keys() == local.privatizer.defender.net.state_dict().keys()
    for name in parameters.keys() - set(CANCELLED):
        torch.testing.assert_close(net[name], parameters[name].detach(), rtol=1e-3, atol=2e-5, msg=name)
    for name, player in local.weights().items():
        assert weights[name].keys() == player.keys()
    assert outcome.programs.keys() == {"privatizer", "utility_head"}
    for split in ("train", "val", "test"):
        codes, _ = local.privatizer.codes(split)
        np.testing.assert_allclose(outcome.codes[split], codes, atol=2e-2)
    for name, (rows, codes) in local.privatizer.sample(30).items():
        np.testing.assert_array_equal(sample[name][0], rows)
        np.testing.assert_allclose(sample[name][1], codes, atol=2e-2)


# ------------------------------------------------------------------------------------------------------------------ losses


EPOCHS, ROUNDS_PER_EPOCH = 3, 4


@pytest.fixture(scope="module")
def unbroken(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Played:
    """A game with two workers and without failures."""
    game = play_in_parallel(broken_config(tiny_config, tmp_path_factory.mktemp("unbroken")))
    assert game.events == []
    return game


def broken_config(config: Config, folder: Path, **changes: Any) -> Config:
    changed = override(config, {"epochs": EPOCHS, "batch_size": BATCH, "privacy_weight": 3.0, "recovery.snapshot_every": 3})
    changed = Config(**{**vars(changed), "adversaries": {name: config.adversaries[name] for name in NAMES}})
    return in_parallel(changed, folder, **changes)


LOSSES: dict[str, tuple[int, Callable[[], object], set[str]]] = {
    "a worker in mid-epoch": (6, lambda: kill("RayTrainWorker", 1), {"privatizer"}),
    "the other worker in mid-epoch": (10, lambda: kill("RayTrainWorker", 0), {"privatizer"}),
    "a worker before there is an epoch": (2, lambda: kill("RayTrainWorker", 1), {"privatizer"}),
    "worker and adversary": (6, lambda: (kill("AdversaryActor", 1), kill("RayTrainWorker", 1)), {"privatizer"}),
    "an adversary": (6, lambda: kill("AdversaryActor", 1), set(NAMES)),
    "the host": (6, lambda: kill("ParallelHost"), {"privatizer"}),
}


@pytest.mark.parametrize(
    "case", [case if case == "worker and adversary" else pytest.param(case, marks=pytest.mark.slow) for case in LOSSES]
)
def test_game_with_workers_that_loses_players_is_bit_identical(case, tiny_config, unbroken, differing, tmp_path):
    when, lose, players = LOSSES[case]
    with RayGame(broken_config(tiny_config, tmp_path)) as game:
        played = play_all(game, before=lambda done: lose() if done == when else None)
        final_weights, events = game.weights(), list(game.events)
    assert [int(m["round"]) for m in played] == list(range(EPOCHS * ROUNDS_PER_EPOCH)), "each round is returned once"
    assert untimed(played) == untimed(unbroken.played)
    assert differing(unbroken.weights, final_weights) == []
    assert players & {player for event in events for player in event.players}
    for event in events:
        assert event.seconds > 0
        assert event.cause
        assert 0 <= event.replayed <= EPOCHS * ROUNDS_PER_EPOCH


@pytest.mark.slow
def test_lost_worker_restores_adversaries_from_the_epochs_checkpoint(tiny_config, unbroken, tmp_path):
    config = broken_config(tiny_config, tmp_path)
    with RayGame(config) as game:
        for _ in range(3):
            game.get(game.play(2))
        folder = tmp_path / "checkpoints" / "train"
        (newest,) = sorted(folder.rglob("game.ckpt"), key=lambda path: path.stat().st_mtime)[-1:]
        deadline = time.monotonic() + 60
        while newest.parent.name not in (folder / "checkpoint_manager_snapshot.json").read_text():
            assert time.monotonic() < deadline, "Ray Train does not commit the epoch's checkpoint"
            time.sleep(0.1)
        newest = decode(newest.read_bytes(), "newest")
        assert newest.round == ROUNDS_PER_EPOCH
        assert newest.players.keys() == {"privatizer", *NAMES}
        kill("RayTrainWorker", 1)
        game.get(game.play(1))
        (event,) = game.events
    assert (event.players, event.replayed) == (("privatizer",), 2)
    assert re.search(r"privatizer worker [01]: \w*Actor\w*Error", event.cause)
    assert not (tmp_path / "checkpoints" / "train").exists(), "Ray Train's folder is deleted"


@pytest.mark.slow
def test_game_after_too_many_lost_workers_raises(tiny_config, tmp_path):
    config = broken_config(tiny_config, tmp_path, recovery__max_failures=0)
    with (
        pytest.raises(RuntimeError, match=r"lost in round 2: privatizer worker \d: .*max_failures = 0"),
        RayGame(config) as game,
    ):
        play_all(game, before=lambda done: kill("RayTrainWorker", 1) if done == 2 else None)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_adversary_error_reaches_the_driver_and_frees_all_cpus(tiny, tmp_path):
    config = tiny("ridge", "mlp", changes={"adversaries.mlp.learning_rate": 1e30, "adversaries.mlp.memory_batches": 0})
    with pytest.raises(FloatingPointError, match=r"'mlp'.*round 1\b"), RayGame(in_parallel(config, tmp_path)) as game:
        play_all(game)
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


# ------------------------------------------------------------------------------------------------------------ input errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime.backend": "local"}, r"num_workers is 2, but runtime\.backend is 'local'"),
        ({"privatizer.num_workers": 0}, r"num_workers is 0; it must be at least 1"),
        ({"privatizer.num_workers": 100}, r"num_workers is 100, but a batch has only 80 pictures"),
        ({"utility.family": "shake"}, r"num_workers is 2, but the utility head 'shake'"),
        ({"game.gradient_norms": True}, r"num_workers is 2, but game\.gradient_norms .*: leave out one of the two"),
        ({"runtime.compile": True}, r"num_workers is 2, but with --runtime\.compile .*: leave out one of the two"),
        ({"runtime.privatizer_gpus": 0.5}, r"num_workers is 2 with 0\.5 GPUs each, but NCCL needs whole ones"),
    ],
)
def test_config_that_excludes_several_workers_is_refused(tiny, changes, message):
    with pytest.raises(InputError, match=message) as refused:
        tiny("ridge", changes={"runtime.backend": "ray", "privatizer.num_workers": 2} | changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("job", "where"), [(SearchJob, "a search"), (ReproduceJob, "a comparison")])
def test_search_and_comparison_with_several_workers_are_refused(tiny, tmp_path, job, where):
    with pytest.raises(InputError, match=f"num_workers is 2, but {where} runs each privatizer in one process"):
        job(config=in_parallel(tiny("ridge"), tmp_path))
    with pytest.raises(InputError, match=r"over privatizer\.num_workers: no field of that name can be searched"):
        dimensions(["privatizer.num_workers=1,2"], tiny("ridge"), grid=True)


@pytest.mark.usefixtures("ray_session")
def test_workers_beyond_the_cluster_are_refused_with_the_numbers(tiny, tmp_path):
    config = in_parallel(tiny("ridge"), tmp_path, runtime__privatizer_cpus=1.0, runtime__adversary_cpus=0.5)
    with pytest.raises(InputError, match=r"3 actors need 2\.5 CPUs, the cluster has 2"), RayGame(config):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_input_error_in_a_worker_reaches_the_driver_as_input_error(tiny, tmp_path):
    config = in_parallel(tiny("ridge", changes={"privatizer.depth": 7}), tmp_path)
    with pytest.raises(InputError, match=r"privatizer\.depth is 7"), RayGame(config):
        pass


# -------------------------------------------------------------------------------------------------------------------- jobs

FLAGS = (
    f"smoke --adversaries ridge mlp --epochs 12 {RIDGE_ONLY} --recovery.checkpoint-every 7 "
    "--data.image-size 16 --data.final-fraction 0 --batch-size 81 "
    "--privatizer.depth 2 --tracking.no-log-models --tracking.no-system-metrics"
)


def flags(folder: Path, cache_dir: Path, *more: str) -> list[str]:
    return [*FLAGS.split(), "--cache-dir", str(cache_dir), "--output", str(folder), "--privatizer.num-workers", "2", *more]


def end_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The released weights of a run, and its metrics without times and failures."""
    program = torch.export.load(folder / "privatizer.pt2").state_dict
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if not k.startswith(("time/", "recovery/"))} for row in rows if "utility/loss" in row]
    return dict(program), metrics


@pytest.mark.slow
def test_job_with_workers_prints_one_json_line_and_resumes(begin, tmp_path, cache_dir):
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": HANG_S}
    whole = subprocess.run([*JOB, *flags(tmp_path / "whole", cache_dir)], **options)
    assert whole.returncode == 0, whole.stderr
    (line,) = whole.stdout.splitlines()
    assert json.loads(line).keys() >= {"run_id", "output", "accuracy", "strongest", "seconds"}
    assert "Traceback" not in whole.stderr

    folder = tmp_path / "stopped"
    stopped = begin(
        [*JOB, *flags(folder, cache_dir)], lambda: list((folder / "checkpoints").glob("*.ckpt")), "no checkpoint is written"
    )
    stopped.send_signal(signal.SIGTERM)
    stdout, stderr = stopped.communicate(timeout=HANG_S)
    assert (stopped.returncode, stdout) == (143, ""), stderr
    assert "Traceback" not in stderr
    played = [json.loads(text)["round"] for text in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = max(int(re.findall(r"\d+", path.name)[0]) for path in (folder / "checkpoints").glob("*.ckpt"))
    assert newest == max(played) + 1, "no played round is lost"

    resumed = subprocess.run([*JOB, "--resume", str(folder)], **options)
    assert resumed.returncode == 0, resumed.stderr
    weights, rows = end_of(folder)
    expected, expected_rows = end_of(tmp_path / "whole")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert rows == expected_rows, "each round is logged once, with the metrics of the uninterrupted run"


@pytest.mark.parametrize("job", ["train_celeba.py", "tune_celeba.py"])
def test_job_with_invalid_workers_ends_with_one_line_and_status_2(job, in_process, tmp_path, cache_dir):
    arguments = flags(tmp_path / "out", cache_dir, "--runtime.backend", "local")
    status, _, err = in_process(ROOT / "jobs" / job, *arguments)
    assert status == 2, err
    assert re.fullmatch(r"error: privatizer\.num_workers is 2, but [^\n]+\n", err), err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- whole-batch layers, without Ray

RANKS, ROWS = 3, 11


def computed(network: nn.Module, x: torch.Tensor, target: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
    """Outputs and gradients of the rows for a loss that is a sum over the batch, and running statistics."""
    x = x[rows].clone().requires_grad_()
    torch.manual_seed(3)
    out = network(x)
    ((out - target[rows]) ** 2).sum().backward()
    assert x.grad is not None
    results = {"out": out.detach(), "x": x.grad} | {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return results | dict(network.named_buffers())


def network_of(kind: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network with batch norms and dropout, inputs far from mean 0, and targets; in float64, because sums over the batch
    cancel."""
    torch.manual_seed(1)
    if kind == "flat":
        layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.4), nn.Linear(7, 4), nn.BatchNorm1d(4, affine=False)]
        x, target = torch.randn(ROWS, 5) * 3 + 2, torch.randn(ROWS, 4)
        return nn.Sequential(*layers).double(), x.double(), target.double()
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Dropout(0.3)).double().to(memory_format=torch.channels_last)
    x = (torch.randn(ROWS, 2, 6, 6) + 5).double().contiguous(memory_format=torch.channels_last)
    return network, x, torch.randn(ROWS, 3, 4, 4).double()


KINDS = ("flat", "pictures")


def run_rank(rank: int, folder: str) -> None:
    """Runs in one of the processes: computes its rows of each network and writes the results to files."""
    from cpgan_ray.distributed.ddp.batch import use_whole_batch_layers

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    rows = slice(ROWS * rank // RANKS, ROWS * (rank + 1) // RANKS)
    for kind in KINDS:
        network, x, target = network_of(kind)
        names = list(network.state_dict())
        use_whole_batch_layers(network, rows=rows, num_rows=ROWS)
        assert list(network.state_dict()) == names
        torch.save(computed(network, x, target, rows), f"{folder}/{kind}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of all processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_whole_batch_layers_on_unequal_parts_equal_the_whole_batch(kind, ranks):
    parts = [torch.load(ranks / f"{kind}-{rank}.pt") for rank in range(RANKS)]
    expected = computed(*network_of(kind), slice(0, ROWS))
    for name, value in expected.items():
        if name in ("out", "x"):
            combined = torch.cat([part[name] for part in parts])
        elif name in dict(network_of(kind)[0].named_buffers()):
            combined = parts[0][name]
            assert all(torch.equal(combined, part[name]) for part in parts)
        else:
            combined = sum(part[name] for part in parts)
        torch.testing.assert_close(combined, value, rtol=1e-9, atol=1e-9, msg=lambda message, name=name: f"{name}: {message}")
