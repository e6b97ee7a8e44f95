"""Jobs as tests start them: in a process of their own, or in pytest's, which they set up for themselves."""

import contextlib
import os
import signal
from collections.abc import Iterator

import torch


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would lead a job to another cluster or tracking store; and those given."""
    led = ("RAY_", "MLFLOW_", "PYTEST_", "TUNE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(led)} | variables


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """Threads, determinism, signals, environment and MLflow's store are afterwards what they were."""
    import mlflow

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handler, environment = signal.getsignal(signal.SIGTERM), os.environ.copy()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.set_flush_denormal(False)
        signal.signal(signal.SIGTERM, handler)
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
        os.environ.clear()
        os.environ.update(environment)
