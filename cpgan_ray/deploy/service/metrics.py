"""What the service counts, for Prometheus.

All replicas of a machine answer on one port, so a scrape reaches any of them. Therefore they count in files of one folder, which
prometheus-client reads for all of them (its multiprocess mode, PROMETHEUS_MULTIPROC_DIR). Without that variable a replica counts
only for itself.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
DIGITS = 12
"""Digits of a bundle's digest in a label."""


class Metrics:
    """The counters of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("cpgan_requests", "Requests, by status.", ["status"], registry=self.registry)
        self.codes = Counter("cpgan_codes", "Codes that were answered, by bundle.", ["bundle"], registry=self.registry)
        self.seconds = Histogram(
            "cpgan_request_seconds", "Seconds from the head of a request to its reply.", buckets=SECONDS, registry=self.registry
        )

    def count(self, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def count_codes(self, digest: str, number: int) -> None:
        """Count answered codes."""
        self.codes.labels(digest[:DIGITS]).inc(number)

    def text(self) -> bytes:
        """All counters in the text format of Prometheus: of all replicas of the machine if they share a folder."""
        registry = self.registry
        if FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
