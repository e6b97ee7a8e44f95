"""Stopping a job by a signal to its whole process group, at a chosen moment, and what is seen of it.

    python -m tests.stopping FOLDER --jobs train search --repeats 20     # a line of JSON for each job stopped, then a table

The jobs run on a Ray of their own; FOLDER keeps a cache, an encoder to attack, and a folder for each job.
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
"""Environment variable by which every process that a job has started is known, even one in a session of its own."""
SMALL = "--data.image-size 16 --batch-size 80 --privatizer.depth 2 --tracking.no-log-models --tracking.no-system-metrics"
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
"""Of each kind of job."""
PAIR = """
import runpy, sys
from dataclasses import replace
from cpgan_ray.config.presets import PRESETS, smoke
two = {name: player for name, player in smoke().adversaries.items() if name in ("ridge", "mlp")}
PRESETS["pair"] = lambda: replace(smoke(), preset="pair", adversaries=two)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A job with one more preset: two adversaries, since each takes a process that imports torch."""


@dataclass(frozen=True)
class Place:
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
    """`all`: the newest holds every round that was logged; `none`; or which round it is of."""
    left: list[str]
    """Processes that are left."""
    stderr: str

    def faults(self) -> list[str]:
        """What is not as it should be."""
        asked = 128 + getattr(signal, self.sent)
        ended = self.status == 0 and set(self.runs) == {"FINISHED"}  # it had come to its end
        found = [] if ended or self.status == asked else [f"status {self.status}"]
        if not ended and (set(self.runs[:1]) - {"KILLED"} or "RUNNING" in self.runs):
            found.append(f"runs {self.runs}")
        if self.job == "train" and self.moment != "start" and self.checkpoint != "all":
            found.append(f"checkpoint {self.checkpoint}")
        if self.left:
            found.append(f"left {self.left}")
        if "Traceback" in self.stderr:
            found.append("traceback")
        return found


def moments(job: str, output: Path, stderr: Path) -> dict[str, Callable[[], object]]:
    """When a job is stopped: the name of the moment -> whether it has come."""

    def said(pattern: str) -> Callable[[], object]:
        return lambda: re.search(pattern, stderr.read_text(errors="replace"))

    metrics = output / "metrics.jsonl"
    playing = {
        "train": lambda: metrics.exists() and metrics.stat().st_size,
        "search": lambda: list(output.glob("trials/*/config.json")),
        "comparison": lambda: list(output.glob("cells/*")),
        "attack": said("attack 1/"),
    }
    ends = {"train": "report/report.json", "search": "frontier.json", "comparison": "results.json", "attack": "report/report.json"}
    found: dict[str, Callable[[], object]] = {"start": lambda: True, "play": playing[job]}
    found |= {"attacks": said("attack 1/")} if job == "train" else {}
    return found | {"finish": (output / ends[job]).exists}


def stop(place: Place, job: str, moment: str, sent: signal.Signals, *, delay_s: float) -> Outcome:
    """Start a job, wait for the moment and a little more, signal its process group, and see how it ends."""
    folder = place.folder / f"{job}-{moment}-{sent.name}-{random.SystemRandom().randrange(10**9)}"
    folder.mkdir(parents=True)
    shutil.copy(place.template, folder / "mlflow.db")
    output, stderr = folder / "out", folder / "stderr"
    arguments = FLAGS[job].format(encoder=place.encoder).split()
    if job == "train":
        arguments += ["--epochs", "10000" if moment in ("start", "play") else "2"]
    arguments += ["--output", str(output), "--cache-dir", str(place.cache), "--tracking.uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command = [sys.executable, "-c", PAIR, str(ROOT / "jobs" / arguments[0]), *arguments[1:]]
    env = environment(**{MARK: folder.name, "OMP_NUM_THREADS": "1"})
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start a background job, which would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with stderr.open("w") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=said, text=True, start_new_session=True
        )
    try:
        come = moments(job, output, stderr)[moment]
        wait_until(lambda: come() or process.poll() is not None, f"{moment} of {job} does not come", every_s=0.01)
        time.sleep(delay_s)
        begun = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
            os.killpg(process.pid, sent)  # as `timeout` does
        status = process.wait(HANG_S)
        seconds = time.monotonic() - begun
        left = [p for p in started(folder.name) if p.pid != process.pid]
        _, alive = psutil.wait_procs(left, timeout=GONE_S)
        names = [p.name() for p in alive]
    finally:
        for one in started(folder.name):
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()
    text = stderr.read_text(errors="replace")
    return Outcome(
        job, moment, sent.name, status, round(seconds, 1), runs(folder / "mlflow.db"), checkpoint(output), names, text[-3000:]
    )


def started(mark: str) -> list[psutil.Process]:
    """The processes that have the mark, wherever they are now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


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


def make_place(folder: Path) -> Place:
    """A folder with what the jobs need: an empty store, and the encoder of a short run."""
    place = Place(folder, folder / "cache", folder / "template.db", folder / "encoder.pt2")
    folder.mkdir(parents=True, exist_ok=True)
    if not place.template.exists():
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{place.template}").search_experiments()
    if not place.encoder.exists():
        flags = f"smoke --epochs 1 --privacy-weight 0 --runtime.backend local {SMALL} {LIGHT}".split()
        flags += ["--output", str(folder / "run"), "--cache-dir", str(place.cache)]
        subprocess.run([sys.executable, str(ROOT / "jobs" / "train_celeba.py"), *flags], cwd=folder, env=environment(), check=True)
        shutil.copy(folder / "run" / "privatizer.pt2", place.encoder)
    return place


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="+", default=list(FLAGS))
    parser.add_argument("--signals", nargs="+", default=["SIGTERM", "SIGINT"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--until", type=float, default=float("inf"), help="begin no job after this time, in seconds since 1970")
    read = parser.parse_args(arguments)
    place, drawn = make_place(read.folder.resolve()), random.Random(os.getpid())
    for repeat in range(read.repeats):
        for job in read.jobs:
            for sent in read.signals:
                if time.time() > read.until:
                    return
                names = list(moments(job, place.folder, place.folder))
                moment = names[repeat % len(names)]
                longest_s = {"start": 25.0, "play": 4.0, "attacks": 2.0, "finish": 1.5}[moment]
                found = stop(
                    place, job, moment, getattr(signal, sent), delay_s=drawn.uniform(4.0 if moment == "start" else 0, longest_s)
                )
                print(json.dumps(asdict(found) | {"faults": found.faults()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
