"""Stops a job by a signal to its whole process group at a chosen moment, and reports how it ended.

    python -m tests.stopping FOLDER --jobs train search --repeats 20     # a line of JSON for each stopped job

Each job runs on its own local Ray; FOLDER contains a cache, an encoder to attack, and a folder for each job.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.process import GONE_S, HANG_S, environment, wait_until

ROOT = Path(__file__).parents[1]
MARK = "CPGAN_TEST_STOPPING"
"""Environment variable that identifies every process started by a job, even in another session."""
SMALL = (
    "--data.image-size 16 --data.final-fraction 0 --batch-size 80 --privatizer.depth 2 --tracking.no-log-models "
    "--tracking.no-system-metrics"
)
LIGHT = "--attacks.names ridge mlp --attacks.epochs 1 --attacks.max-budget-doublings 0 --attacks.restarts 1"
FLAGS = {
    "train": f"train_celeba.py pair --recovery.checkpoint-every 7 --runtime.backend ray {SMALL} {LIGHT}",
    "search": f"tune_celeba.py pair --searcher grid --search-space k=4,5 --no-train-undefended --epochs 1 "
    f"--runtime.backend local {SMALL} {LIGHT}",
    "comparison": f"reproduce.py digits --mechanisms noise --num-settings 2 --num-seeds 2 --runtime.backend ray --epochs 1 {LIGHT}"
    " --data.max-train-samples 200 --batch-size 100",
    "attack": f"attack.py {{encoder}} --runtime.backend ray --data.num-identities 200 --data.pictures-per-identity 2 {LIGHT}"
    " --tracking.no-system-metrics",
}
"""Type of job -> script and flags."""
PAIR = """
import runpy, sys
from dataclasses import replace
from cpgan_ray.config.presets import PRESETS, smoke
two = {name: player for name, player in smoke().adversaries.items() if name in ("ridge", "mlp")}
PRESETS["pair"] = lambda: replace(smoke(), preset="pair", adversaries=two)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a job with an additional preset `pair`: only two adversaries, because each one needs a process that imports torch."""


@dataclass(frozen=True)
class Workspace:
    folder: Path
    cache: Path
    template: Path
    encoder: Path


@dataclass(frozen=True)
class Outcome:
    job: str
    moment: str
    sent: str
    status: int
    seconds: float
    runs: list[str]
    """Statuses of the MLflow runs, the oldest first."""
    checkpoint: str
    """`all`: the newest checkpoint has every logged round; `none`: no checkpoint; otherwise its round and the number of rounds."""
    left: list[str]
    """Processes that have not ended."""
    stderr: str

    def faults(self) -> list[str]:
        """Descriptions of everything that is wrong."""
        expected_status = 128 + getattr(signal, self.sent)
        finished = self.status == 0 and set(self.runs) == {"FINISHED"}  # the job ended before the signal
        faults = [] if finished or self.status == expected_status else [f"status {self.status}"]
        if not finished and (set(self.runs[:1]) - {"KILLED"} or "RUNNING" in self.runs):
            faults.append(f"runs {self.runs}")
        if self.job == "train" and self.moment != "start" and self.checkpoint != "all":
            faults.append(f"checkpoint {self.checkpoint}")
        if self.left:
            faults.append(f"left {self.left}")
        if "Traceback" in self.stderr:
            faults.append("traceback")
        return faults


def moments(job: str, output: Path, stderr: Path) -> dict[str, Callable[[], object]]:
    """Name of each moment at which a job can be stopped -> function that returns whether it has been reached."""

    def logged(pattern: str) -> Callable[[], object]:
        return lambda: re.search(pattern, stderr.read_text(errors="replace"))

    metrics = output / "metrics.jsonl"
    playing = {
        "train": lambda: metrics.exists() and metrics.stat().st_size,
        "search": lambda: list(output.glob("trials/*/config.json")),
        "comparison": lambda: list(output.glob("cells/*")),
        "attack": logged("attack 1/"),
    }
    ends = {"train": "report/report.json", "search": "frontier.json", "comparison": "results.json", "attack": "report/report.json"}
    reached: dict[str, Callable[[], object]] = {"start": lambda: True, "play": playing[job]}
    reached |= {"attacks": logged("attack 1/")} if job == "train" else {}
    return reached | {"finish": (output / ends[job]).exists}


def stop(workspace: Workspace, job: str, moment: str, sent: signal.Signals, *, delay_s: float) -> Outcome:
    """Starts a job, waits for the moment and `delay_s` more, signals its process group, and returns how it ended."""
    folder = workspace.folder / f"{job}-{moment}-{sent.name}-{random.SystemRandom().randrange(10**9)}"
    folder.mkdir(parents=True)
    shutil.copy(workspace.template, folder / "mlflow.db")
    output, stderr = folder / "out", folder / "stderr"
    arguments = FLAGS[job].format(encoder=workspace.encoder).split()
    if job == "train":
        arguments += ["--epochs", "10000" if moment in ("start", "play") else "2"]
    arguments += [
        "--output",
        str(output),
        "--cache-dir",
        str(workspace.cache),
        "--tracking.uri",
        f"sqlite:///{folder / 'mlflow.db'}",
    ]
    command = [sys.executable, "-c", PAIR, str(ROOT / "jobs" / arguments[0]), *arguments[1:]]
    env = environment(**{MARK: folder.name, "OMP_NUM_THREADS": "1"})
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # set by shells for background jobs; the job would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with stderr.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=log, text=True, start_new_session=True
        )
    try:
        reached = moments(job, output, stderr)[moment]
        wait_until(lambda: reached() or process.poll() is not None, f"{job} does not reach {moment}", every_s=0.01)
        time.sleep(delay_s)
        signalled_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
            os.killpg(process.pid, sent)  # `timeout` also sends two signals
        status = process.wait(HANG_S)
        seconds = time.monotonic() - signalled_at
        left = [p for p in started(folder.name) if p.pid != process.pid]
        _, alive = psutil.wait_procs(left, timeout=GONE_S)
        names = [p.name() for p in alive]
    finally:
        for remaining in started(folder.name):
            with contextlib.suppress(psutil.Error):
                remaining.kill()
        process.wait()
    text = stderr.read_text(errors="replace")
    return Outcome(
        job, moment, sent.name, status, round(seconds, 1), runs(folder / "mlflow.db"), checkpoint(output), names, text[-3000:]
    )


def started(mark: str) -> list[psutil.Process]:
    """All processes that have the mark in their environment."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                marked.append(process)
    return marked


def runs(store: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(store)) as database:
        return [status for (status,) in database.execute("select status from runs order by start_time")]


def checkpoint(output: Path) -> str:
    lines = (output / "metrics.jsonl").read_text().splitlines() if (output / "metrics.jsonl").is_file() else []
    logged = [row["round"] for line in lines if "utility/loss" in (row := json.loads(line))]
    newest = max((int(path.name[6:14]) for path in output.glob("checkpoints/*.ckpt")), default=None)
    if newest is None:
        return "none"
    return "all" if newest == max(logged) + 1 else f"{newest} of {max(logged) + 1}"


def make_workspace(folder: Path) -> Workspace:
    """Creates a folder with everything that the jobs need: an empty tracking store, and the encoder of a short run."""
    workspace = Workspace(folder, folder / "cache", folder / "template.db", folder / "encoder.pt2")
    folder.mkdir(parents=True, exist_ok=True)
    if not workspace.template.exists():
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{workspace.template}").search_experiments()
    if not workspace.encoder.exists():
        flags = f"smoke --epochs 1 --privacy-weight 0 --runtime.backend local {SMALL} {LIGHT}".split()
        flags += ["--output", str(folder / "run"), "--cache-dir", str(workspace.cache)]
        subprocess.run([sys.executable, str(ROOT / "jobs" / "train_celeba.py"), *flags], cwd=folder, env=environment(), check=True)
        shutil.copy(folder / "run" / "privatizer.pt2", workspace.encoder)
    return workspace


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="+", default=list(FLAGS))
    parser.add_argument("--signals", nargs="+", default=["SIGTERM", "SIGINT"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--until", type=float, default=float("inf"), help="start no job after this time, in seconds since 1970")
    args = parser.parse_args(arguments)
    workspace, rng = make_workspace(args.folder.resolve()), random.Random(os.getpid())
    for repeat in range(args.repeats):
        for job in args.jobs:
            for sent in args.signals:
                if time.time() > args.until:
                    return
                names = list(moments(job, workspace.folder, workspace.folder))
                moment = names[repeat % len(names)]
                max_delay_s = {"start": 25.0, "play": 4.0, "attacks": 2.0, "finish": 1.5}[moment]
                delay_s = rng.uniform(4.0 if moment == "start" else 0, max_delay_s)
                outcome = stop(workspace, job, moment, getattr(signal, sent), delay_s=delay_s)
                print(json.dumps(asdict(outcome) | {"faults": outcome.faults()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
