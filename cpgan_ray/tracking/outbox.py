"""The queue of metrics of a run, which survives that the tracking store does not respond for a while."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import mlflow
from mlflow.entities import Metric

from cpgan_ray.common.credentials import redacted
from cpgan_ray.errors import printable

logger = logging.getLogger(__name__)

BATCH_LIMIT = 1000
"""Largest number of metrics that MLflow accepts in one call."""
POLL_S = 0.02
"""Interval at which the queue is checked until it is empty."""
RETRY_S = (1.0, 30.0)
"""Shortest and longest wait before metrics are sent again."""


class Outbox:
    """A queue of metrics and a thread that sends them to the store, again and again until the store accepts them."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.waiting: deque[Metric] = deque()
        self.awake, self.closing = threading.Event(), False
        self.thread = threading.Thread(target=self.deliver, daemon=True)
        self.thread.start()

    def put(self, metrics: Sequence[Metric]) -> None:
        self.waiting.extend(metrics)
        if len(self.waiting) >= BATCH_LIMIT:
            self.send()

    def send(self) -> None:
        self.awake.set()

    def settle(self, timeout_s: float) -> bool:
        """Waits until the queue is empty, at most `timeout_s`. Returns whether it is."""
        deadline = time.monotonic() + timeout_s
        while self.waiting and time.monotonic() < deadline:
            self.send()
            time.sleep(POLL_S)
        return not self.waiting

    def close(self, timeout_s: float) -> bool:
        """Waits like `settle`, then stops sending. Returns whether everything was delivered."""
        delivered = self.settle(timeout_s)
        self.closing = True
        self.send()
        return delivered

    def deliver(self) -> None:
        wait_s = 0.0
        while True:
            self.awake.wait()
            self.awake.clear()
            while self.waiting and not self.closing:
                part = [self.waiting[i] for i in range(min(BATCH_LIMIT, len(self.waiting)))]
                try:
                    self.client.log_batch(self.run_id, metrics=part, synchronous=True)
                except Exception as e:  # each type of store raises its own errors
                    if not wait_s:
                        log_outage(e)
                    wait_s = min(max(2 * wait_s, RETRY_S[0]), RETRY_S[1])
                    time.sleep(wait_s)
                    continue
                if wait_s:
                    logger.info("MLflow responds again")
                wait_s = 0.0
                for _ in part:
                    self.waiting.popleft()
            if self.closing:
                return


def log_outage(error: BaseException) -> None:
    reason = printable(redacted(str(error).partition("\n")[0]))[:200]
    logger.warning(f"MLflow does not respond ({reason}); the run continues and logs this later")
