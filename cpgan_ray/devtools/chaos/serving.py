"""Kills of replicas and changes of the bundle while clients ask the service, and the answers with which each reply is compared."""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.deploy.answers import Answer, probabilities
from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.client import Client
from cpgan_ray.deploy.service.served import served
from cpgan_ray.devtools.chaos.settings import Settings
from cpgan_ray.devtools.serving.made_bundle import draw_pictures, make_bundle, read_pictures
from cpgan_ray.devtools.serving.process import RELOAD_S, ServiceProcess, last_line, serving

logger = logging.getLogger(__name__)

REPLICAS = 2
SIDE, NUM_PICTURES, MAX_PICTURES = 64, 64, 8
"""Side of the pictures; how many there are; most pictures in a call."""
TOLERANCE = 1e-5
"""Two batch sizes of onnxruntime round differently."""
DIFFERENT = 1e-3
"""Answers of the two bundles to a picture differ by at least this much in one label, else the test would see no mistake."""
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Expected:
    """A bundle, and its own answers to each picture."""

    bundle: Bundle
    answers: list[Answer]

    def matches(self, rows: Sequence[int], answers: Sequence[Answer]) -> bool:
        return len(rows) == len(answers) and all(
            np.allclose(values_of(self.answers[row]), values_of(answer), rtol=0, atol=TOLERANCE)
            for row, answer in zip(rows, answers, strict=True)
        )


@dataclass
class ServingTally:
    """Counts of the fault test of the service."""

    calls: int = 0
    answers: int = 0
    wrong: int = 0
    failed: int = 0
    retries: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    replica_kills: int = 0
    redeployments: int = 0
    lasted_s: float = 0.0


def values_of(answer: Answer) -> np.ndarray:
    """All probabilities of an answer."""
    return np.hstack([list(value.values()) if isinstance(value, dict) else value for value in answer.values()])


def expected_of(bundle: Bundle, pictures: Sequence[np.ndarray]) -> Expected:
    """The answers of a bundle's own models in this process, to the codes that arrive."""
    codec = bundle.codec
    with Client(bundle) as client:
        z = client.codes(pictures)
    z = codec.codes(codec.levels(z)) if isinstance(codec, LevelCodec) else z
    return Expected(bundle, probabilities(served(bundle).logits(z), bundle.manifest.labels))


def ensure_different(one: Expected, other: Expected) -> None:
    """Raises: RuntimeError if an answer of one bundle could pass as the other's."""
    for a, b in zip(one.answers, other.answers, strict=True):
        if np.abs(values_of(a) - values_of(b)).max() < DIFFERENT:
            raise RuntimeError("two bundles give a picture the same answer: the fault test would see no mistake")


def run_serving_test(s: Settings, folder: Path) -> dict[str, Any]:
    """Serve two bundles in turn for `s.seconds`, with `s.clients` clients, and return the counts."""
    files = draw_pictures(folder / "faces", number=NUM_PICTURES, side=SIDE)
    pictures = read_pictures(files, side=SIDE)
    expected = [expected_of(make_bundle(folder / f"bundle-{seed}", pictures, seed=seed).bundle, list(pictures)) for seed in (0, 1)]
    ensure_different(*expected)
    place = folder / "service"
    place.mkdir()
    tally = ServingTally()
    with serving(expected[0].bundle.path, place, replicas=REPLICAS) as service:
        load = Load(service.url, service.key, list(pictures), expected, tally, clients=s.clients, seed=s.seed)
        with load:
            disturb(service, load, s, tally)
    return summary(s, tally)


def disturb(service: ServiceProcess, load: "Load", s: Settings, tally: ServingTally) -> None:
    """Kill replicas and change the bundle at random moments of `s.seconds`. A kill waits until all replicas listen."""
    rng, begun = random.Random(s.seed), time.monotonic()
    following = itertools.cycle(load.expected[1:] + load.expected[:1])

    def kill() -> None:
        victim = rng.choice(wait_for_replicas(service))
        victim.kill()
        tally.replica_kills += 1
        logger.info(f"killed replica {victim.pid} ({tally.replica_kills} of {s.replica_kills}); {tally.calls} calls so far")

    def redeploy() -> None:
        bundle = next(following)
        service.redeploy(bundle.bundle.path)
        tally.redeployments += 1
        load.deployed(bundle)
        logger.info(f"changed the bundle ({tally.redeployments} of {s.redeployments}); {tally.calls} calls so far")

    events: list[tuple[float, Callable[[], None]]] = [(rng.uniform(0.03, 0.9), kill) for _ in range(s.replica_kills)]
    events += [(rng.uniform(0.03, 0.9), redeploy) for _ in range(s.redeployments)]
    for moment, event in sorted(events, key=lambda pair: pair[0]):
        sleep_until(begun + moment * s.seconds, service)
        event()
    sleep_until(begun + s.seconds, service)
    wait_for_replicas(service)
    tally.lasted_s = time.monotonic() - begun


def wait_for_replicas(service: ServiceProcess) -> list[psutil.Process]:
    """The replicas, as soon as all of them listen.

    Raises: RuntimeError if the service ends, or does not replace a killed one.
    """
    deadline = time.monotonic() + RELOAD_S
    while len(alive := service.replicas()) < REPLICAS:
        ensure_running(service)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(alive)} of {REPLICAS} replicas listen after {RELOAD_S:g} s: {last_line(service.log)}")
        time.sleep(0.1)
    return alive


def sleep_until(moment: float, service: ServiceProcess) -> None:
    while (left := moment - time.monotonic()) > 0:
        ensure_running(service)
        time.sleep(min(left, 0.5))


def ensure_running(service: ServiceProcess) -> None:
    """Raises: RuntimeError if the service has ended."""
    if service.process.poll() is not None:
        raise RuntimeError(f"the service has ended: {service.log[-1000:]}")


class Load:
    """Clients in threads, each with a connection of its own for each bundle. They ask for a few random pictures at a time, with any
    of the bundles that the service has answered for so far."""

    def __init__(
        self,
        url: str,
        key: str,
        pictures: Sequence[np.ndarray],
        expected: Sequence[Expected],
        tally: ServingTally,
        *,
        clients: int,
        seed: int,
    ) -> None:
        self.url, self.key, self.pictures, self.expected, self.tally = url, key, pictures, list(expected), tally
        self._present = [self.expected[0]]
        self._end, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(random.Random(f"{seed} {i}"),)) for i in range(clients)]

    def deployed(self, one: Expected) -> None:
        """From now on clients also ask with this bundle."""
        if one not in self._present:
            self._present = [*self._present, one]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, rng: random.Random) -> None:
        clients = {id(one): Client(one.bundle, self.url, api_key=self.key) for one in self.expected}
        while not self._end.is_set():
            one = rng.choice(self._present)
            rows = [rng.randrange(len(self.pictures)) for _ in range(rng.randint(1, MAX_PICTURES))]
            begun, answers, problem = time.perf_counter(), None, ""
            try:
                answers = clients[id(one)].answers([self.pictures[row] for row in rows])
            except Exception as e:  # whatever it is, the call has failed
                problem = f"failed: {type(e).__name__}: {e}"
            if answers is not None and not one.matches(rows, answers):
                problem = f"wrong: {answers[0]}"
            self._count(time.perf_counter() - begun, 0 if answers is None else len(answers), problem)
        with self._lock:
            self.tally.retries += sum(client.connection.retries for client in clients.values() if client.connection)
        for client in clients.values():
            client.close()

    def _count(self, seconds: float, answers: int, problem: str) -> None:
        with self._lock:
            self.tally.calls += 1
            self.tally.answers += answers
            self.tally.seconds.append(seconds)
            self.tally.wrong += problem.startswith("wrong")
            self.tally.failed += problem.startswith("failed")
            if problem and len(self.tally.problems) < SHOWN:
                self.tally.problems.append(problem[:300])


def summary(s: Settings, tally: ServingTally) -> dict[str, Any]:
    if not tally.seconds:
        raise RuntimeError("no client has finished a call")
    seconds = np.asarray(tally.seconds)
    return {
        "replica_kills": tally.replica_kills,
        "redeployments": tally.redeployments,
        "clients": s.clients,
        "seconds": round(tally.lasted_s, 1),
        "calls": tally.calls,
        "answers": tally.answers,
        "wrong": tally.wrong,
        "failed": tally.failed,
        "retries": tally.retries,
        "p50_ms": round(float(np.quantile(seconds, 0.5)) * 1e3, 1),
        "p99_ms": round(float(np.quantile(seconds, 0.99)) * 1e3, 1),
        "max_ms": round(float(seconds.max()) * 1e3, 1),
        "problems": tally.problems,
    }
