"""The service's own ASGI application behind plain uvicorn, without Ray and without the service's limits on connections.

uvicorn --factory cpgan_ray.devtools.bench.plain_server:application     # bundle and key are in the environment
"""

import os

from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.bundle import read_bundle
from cpgan_ray.deploy.service.application import Application, ServiceState
from cpgan_ray.deploy.service.keys import Keys
from cpgan_ray.deploy.service.metrics import Metrics
from cpgan_ray.deploy.service.served import Catalogue, served

BUNDLE, KEY = "CPGAN_BENCH_BUNDLE", "CPGAN_BENCH_KEY"
UNLIMITED = 1e9
"""Requests a second."""


def application() -> Application:
    """What uvicorn serves."""
    state = ServiceState(Catalogue([served(read_bundle(os.environ[BUNDLE]))]), Keys([os.environ[KEY]]))
    return Application(state, ServiceLimits(rate=UNLIMITED), Metrics())
