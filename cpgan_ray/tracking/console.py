"""The progress line of a run."""

import logging
import time
from collections.abc import Sequence

from tqdm import tqdm

from cpgan_ray.common.types import Metrics

logger = logging.getLogger(__name__)

PLAIN_LINE_S = 10.0
"""Interval between two lines if standard error is not a terminal."""


class Console:
    """Shows progress on standard error: a live line on a terminal, plain log lines otherwise."""

    def __init__(self, *, total_rounds: int, rounds_per_epoch: int, names: Sequence[str], done: int = 0) -> None:
        """done: rounds that were already played before this process."""
        self.total_rounds, self.rounds_per_epoch, self.names, self.before = total_rounds, rounds_per_epoch, names, done
        hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: tqdm hides the bar if standard error is not a terminal
        self.bar = tqdm(total=total_rounds, initial=done, unit="round", disable=hidden, dynamic_ncols=True)
        self.started = self.last_line_at = time.monotonic()

    def show(self, played: Sequence[Metrics]) -> None:
        """Updates the line after the rounds `played`."""
        last = played[-1]
        done = int(last["round"]) + 1
        text = self.line(last, done)
        if self.bar.disable:
            now = time.monotonic()
            if now - self.last_line_at >= PLAIN_LINE_S or done == self.total_rounds:
                self.last_line_at = now
                logger.info(f"round {done}/{self.total_rounds}, {(done - self.before) / (now - self.started):.1f} rounds/s, {text}")
        else:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(len(played))

    def line(self, last: Metrics, done: int) -> str:
        epoch = -(-done // self.rounds_per_epoch)
        parts = [f"epoch {epoch}", f"accuracy {last['utility/batch_accuracy']:.3f}"]
        if "utility/val_accuracy" in last:
            guess, balanced = last["utility/val_majority_accuracy"], last["utility/val_balanced_accuracy"]
            parts.append(f"validation {last['utility/val_accuracy']:.3f} (majority guess {guess:.3f}, balanced {balanced:.3f})")
        parts += [f"{name} R2 {last[key]:.3f}" for name in self.names if (key := f"adversary/{name}/r2") in last]
        return ", ".join(parts)

    def close(self) -> None:
        self.bar.close()
