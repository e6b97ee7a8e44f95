"""Starts the replicas on this machine, hands them another configuration, and ends them."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve
from ray.serve import context
from ray.serve.schema import ServeDeploySchema

from cpgan_ray.config import RuntimeConfig
from cpgan_ray.deploy.service.metrics import FOLDER
from cpgan_ray.deploy.service.replica import DEPLOYMENT
from cpgan_ray.deploy.service.settings import ReplicaSettings
from cpgan_ray.distributed.cluster import connect, is_local
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

APPLICATION = "cpgan"
IMPORT_PATH = "cpgan_ray.deploy.service.replica:build"
START_S, RELOAD_S, POLL_S = 300.0, 120.0, 0.1
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S, SHUTDOWN_S = 2.0, 30.0, 10.0


class Service:
    """A running application."""

    def __init__(self, settings: ReplicaSettings, *, replicas: int, metrics_folder: str) -> None:
        self.settings, self.replicas, self.metrics_folder = settings, replicas, metrics_folder

    def deploy(self, user_config: Mapping[str, Any], *, timeout_s: float) -> None:
        """Hand a configuration to Serve and wait until every replica answers with it. A change of only the `user_config` restarts
        none of them.

        Raises: InputError with the reason if a replica refuses it, or it takes too long.
        """
        client: Any = context._get_global_client()
        client.deploy_apps(self._schema(user_config))
        deadline = time.monotonic() + timeout_s
        while True:
            status, message = self.status()
            if status == "RUNNING":
                return
            if status in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > deadline:
                raise InputError(f"the service does not start: {reason(message)}")
            time.sleep(POLL_S)

    def status(self) -> tuple[str, str]:
        """Serve's status of the application, and its message."""
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            return "NOT_STARTED", ""
        messages = [deployment.message for deployment in application.deployments.values()]
        return application.status.value, " ".join([application.message, *messages])

    def processes(self) -> set[int]:
        """The ids of the replicas' processes that answer a few calls."""
        handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        return {handle.process.remote().result(timeout_s=30) for _ in range(4 * self.replicas)}

    def _schema(self, user_config: Mapping[str, Any]) -> ServeDeploySchema:
        here = ray.get_runtime_context().get_node_id()
        label = next(n for n in ray.nodes() if n["NodeID"] == here)["NodeManagerAddress"]
        deployment = {
            "name": DEPLOYMENT,
            "num_replicas": self.replicas,
            "user_config": dict(user_config),
            "health_check_period_s": HEALTH_PERIOD_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            "graceful_shutdown_wait_loop_s": 0.1,
            "graceful_shutdown_timeout_s": SHUTDOWN_S,
            # The bundles, keys and certificates are files of this machine, so the replicas are here.
            "ray_actor_options": {
                "num_cpus": 0,
                "resources": {f"node:{label}": 0.001},
                "runtime_env": {"env_vars": {FOLDER: self.metrics_folder, "OMP_NUM_THREADS": "1"}},
            },
        }
        application = {
            "name": APPLICATION,
            "route_prefix": None,
            "import_path": IMPORT_PATH,
            "args": self.settings.as_json(),
            "deployments": [deployment],
        }
        return ServeDeploySchema.model_validate({"proxy_location": "Disabled", "applications": [application]})


@contextmanager
def running(
    settings: ReplicaSettings, user_config: Mapping[str, Any], *, replicas: int, metrics_folder: str, runtime: RuntimeConfig
) -> Iterator[Service]:
    """The service, as long as the block runs.

    Raises: InputError with the reason if Ray or a replica does not start.
    """
    connect(runtime)
    try:
        serve.start(proxy_location="Disabled", http_options={"host": "127.0.0.1"})
        if others := sorted(serve.status().applications):  # Serve would delete those that another configuration has started
            raise InputError(f"the Ray cluster already serves {others[0]!r}: stop it, or use another cluster")
        service = Service(settings, replicas=replicas, metrics_folder=metrics_folder)
        try:
            service.deploy(user_config, timeout_s=START_S)
            yield service
        finally:
            with suppress(Exception):  # whatever Ray reports, its processes end with the next line
                serve.delete(APPLICATION)
                if not is_local():
                    serve.shutdown()
    finally:
        ray.shutdown()


def reason(message: str) -> str:
    """Serve's report on one line, from the last error on."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "InputError" in line]
    return (errors or lines or ["no reason given"])[-1].split("InputError: ")[-1][:600]
