"""Speed of the service next to plain uvicorn and `mlflow models serve` with the same utility head, with cells of several numbers of
clients and of codes in a request. The servers take turns in each cell."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cpgan_ray.deploy.bundle import read_bundle
from cpgan_ray.deploy.client import Client
from cpgan_ray.devtools.bench.client_costs import measure_bytes, measure_client
from cpgan_ray.devtools.bench.load import Order, measure_load
from cpgan_ray.devtools.bench.servers import SERVERS, Server
from cpgan_ray.devtools.bench.settings import Settings
from cpgan_ray.devtools.serving.made_bundle import draw_pictures, make_bundle, read_pictures
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

SIDE, NUM_PICTURES = 64, 256
BODIES = 16
"""Different requests of a cell."""


def measure_serving(s: Settings, folder: Path) -> dict[str, Any]:
    """All measurements. A row `SERVER_cCLIENTS_nCODES` has requests and pictures a second, p50 and p99 in ms, the cores that the
    clients took, and the problem if there are no numbers."""
    given = None if s.serve_bundle is None else read_bundle(s.serve_bundle)
    if given is not None and given.manifest.preprocessing.kind != "picture":
        raise InputError(f"serve_bundle {s.serve_bundle} takes no pictures: give the bundle of a run on pictures")
    folder.mkdir(parents=True)
    files = draw_pictures(folder / "faces", number=NUM_PICTURES, side=SIDE)
    made = make_bundle(folder / "made", read_pictures(files, side=SIDE))
    bundle = given or made.bundle
    result: dict[str, Any] = {"bundle": bundle.manifest.name, "k": bundle.manifest.k, "processes": s.serve_replicas}
    result |= measure_bytes(bundle, files) | measure_client(made, files)
    with Client(bundle) as client:
        z = client.codes([str(file) for file in files])
    with ExitStack() as stack:
        servers = {name: stack.enter_context(start(bundle, folder, processes=s.serve_replicas)) for name, start in SERVERS.items()}
        for clients in s.serve_clients:
            for codes in s.serve_codes:
                for name, server in servers.items():
                    result[f"{name}_c{clients}_n{codes}"] = measure_cell(
                        name, server, z, clients=clients, codes=codes, seconds=s.serve_seconds
                    )
    return result


def measure_cell(name: str, server: Server, z: np.ndarray, *, clients: int, codes: int, seconds: float) -> dict[str, Any]:
    """One server with a number of clients, each of which asks for `codes` of the codes z (N, k) at a time."""
    rows = np.arange(BODIES * codes).reshape(BODIES, codes) % len(z)
    bodies = [server.body(z[part]).hex() for part in rows]
    measured = measure_load(Order(server.port, server.path, dict(server.headers), bodies, clients, seconds))
    if measured["problem"]:
        logger.warning(f"{name} with {clients} clients and {codes} codes a request: {measured['problem']}")
    requests_s = measured.pop("requests_s")
    return {"requests_s": requests_s, "pictures_s": None if requests_s is None else requests_s * codes} | measured
