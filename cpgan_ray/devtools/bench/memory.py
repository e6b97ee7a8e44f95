"""Measures the peak private memory of each process of a run."""

import os
import threading
from pathlib import Path
from typing import Any

import psutil

from cpgan_ray.config import (
    AttackConfig,
    Config,
    DataConfig,
    KernelConfig,
    NeuralConfig,
    PrivatizerConfig,
    RidgeConfig,
    TrackingConfig,
)
from cpgan_ray.devtools.bench.material import synthetic, timed
from cpgan_ray.devtools.bench.settings import Settings

SAMPLE_S = 0.5


def measure_memory(s: Settings, folder: Path) -> dict[str, Any]:
    """Peak private memory by role, over preparing, one epoch against one adversary of each kind, and the attacks."""
    from cpgan_ray.data import prepare
    from cpgan_ray.pipelines.train import train

    synthetic(folder, rows=s.memory, image_size=112)
    config = Config(
        preset="bench",
        data_dir=folder,
        output=folder / "output",
        epochs=1,
        data=DataConfig(dataset="celeba", image_size=112),
        privatizer=PrivatizerConfig(width=4, depth=4),
        adversaries={
            "ridge": RidgeConfig(),
            "ridge_epoch": RidgeConfig(fit="epoch"),
            "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,)),
            "decoder": NeuralConfig(architecture="conv", width=4),
        },
        attacks=AttackConfig(
            max_rows=20_000,
            mlp_widths=(256,),
            epochs=1,
            max_budget_doublings=0,
            restarts=1,
            kernel_features=1024,
            decoder_width=4,
            fit_fractions=(),
            generative=False,
        ),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
    )
    peaks: dict[str, float] = {}
    done = threading.Event()
    sampler = threading.Thread(target=sample, args=(peaks, done))
    sampler.start()
    try:
        _, prepare_s = timed(prepare, config)
        _, train_s = timed(train, config)
    finally:
        done.set()
        sampler.join()
    return {"rows": s.memory, "peak_own_mb": peaks, "prepare_s": prepare_s, "train_s": train_s}


def sample(peaks: dict[str, float], done: threading.Event) -> None:
    """Records the memory of this process and its descendants until `done` is set."""
    root = psutil.Process()
    while not done.wait(SAMPLE_S):
        for process in [root, *root.children(recursive=True)]:
            try:
                name, mb = role(process), private_mb(process.pid)
            except (psutil.Error, OSError, IndexError):
                continue  # it has ended
            peaks[name] = max(peaks.get(name, 0.0), mb)


def role(process: psutil.Process) -> str:
    """Role of a process of the run: the actor's class for Ray's workers, otherwise the name of the program."""
    title = process.cmdline()[0] if process.pid != os.getpid() and process.cmdline() else "driver"
    return title.removeprefix("ray::").split(".")[0].split()[0] if title.startswith("ray::") else Path(title).name


def private_mb(pid: int) -> float:
    """Resident anonymous memory of a process, without mapped files and shared memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024
