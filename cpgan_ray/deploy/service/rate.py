"""Limits the requests of each key: a token bucket."""

import math
import time
from collections.abc import Callable


class TokenBuckets:
    """A bucket for each key: it holds up to one second's requests, and refills with `rate` requests a second."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.size, self.clock = rate, max(1.0, rate), clock
        self._buckets: dict[int, tuple[float, float]] = {}  # key -> tokens, and when they were counted

    def wait_s(self, key: int) -> int:
        """Take a token. Returns 0, or if there is none, the whole seconds until there is one."""
        now = self.clock()
        tokens, counted = self._buckets.get(key, (self.size, now))
        tokens = min(self.size, tokens + (now - counted) * self.rate)
        self._buckets[key] = (tokens - 1, now) if tokens >= 1 else (tokens, now)
        return 0 if tokens >= 1 else math.ceil((1 - tokens) / self.rate)
