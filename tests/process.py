"""Jobs in pytest's own process, which they set up for themselves."""

import contextlib
import os
import signal
from collections.abc import Iterator

import torch


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
