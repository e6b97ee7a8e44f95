"""The deployment of Ray Serve: each replica is a process that answers on the port of the service itself.

Requests do not go through Serve's proxy. Serve starts the replicas, asks for their health,
replaces a lost one, and hands a changed `user_config` to `reconfigure`, which exchanges the bundles without a restart.
"""

import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve._private import replica as serve_replica

from cpgan_ray.deploy.service.application import Application
from cpgan_ray.deploy.service.metrics import Metrics
from cpgan_ray.deploy.service.server import Server
from cpgan_ray.deploy.service.settings import Page, load_state, settings_of
from cpgan_ray.errors import InputError

DEPLOYMENT = "Bob"
DRAIN_S = 5.0
"""How long requests that have begun may take when a replica ends."""


class Bob:
    """A replica."""

    def __init__(self, settings: dict[str, Any]) -> None:
        only_loopback()
        self.settings = settings_of(settings)
        self.application: Application | None = None
        self.server: Server | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Answer for the bundles and keys of another `user_config`. If one of them cannot be used, nothing changes.

        Raises: InputError with the reason.
        """
        present = [] if self.application is None else self.application.state.catalogue.present()
        known = {one.bundle.digest: one for one in present}
        state = load_state(user_config, self.settings, known=known, page=find_page() if self.settings.demo else None)
        if self.application is not None:
            self.application.change(state)
            return
        self.application = Application(state, self.settings.limits, Metrics())
        tls = (
            (Path(self.settings.tls_cert), Path(self.settings.tls_key))
            if self.settings.tls_cert and self.settings.tls_key
            else None
        )
        try:
            server = Server(self.application, self.settings.limits, host=self.settings.host, port=self.settings.port, tls=tls)
            server.start()
        except OSError as e:
            where = f"{self.settings.host}, port {self.settings.port}"
            raise InputError(f"the service cannot listen on {where} ({e.strerror or e}): give another port or certificate") from e
        self.server = server

    def check_health(self) -> None:
        """Raises: RuntimeError if the replica does not answer, which makes Serve replace it."""
        if self.server is None or not self.server.healthy:
            raise RuntimeError("the server has ended")

    def process(self) -> int:
        """The id of the replica's process."""
        return os.getpid()

    def __del__(self) -> None:
        """Serve calls this when it ends a replica."""
        if getattr(self, "server", None) is not None:
            assert self.server is not None
            self.server.stop(grace_s=DRAIN_S)


def only_loopback() -> None:
    """Ray's own server in this replica, for calls between deployments, which this application does not have, listens only on
    loopback. Without this it would be open on every interface."""
    module: Any = serve_replica
    add = module.add_port_to_grpc_server
    module.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


def find_page() -> Page | None:
    """What makes the page of the demonstration."""
    from cpgan_ray.deploy.page import HEADERS, page_files

    return lambda bundles: (page_files(bundles), HEADERS)


def build(args: dict[str, Any]) -> serve.Application:
    """The application, as a YAML file of Ray Serve names it: `import_path: cpgan_ray.deploy.service.replica:build`.

    args: the fields of `ReplicaSettings`.

    Raises: InputError that names the field if a value cannot be used.
    """
    deployment = serve.deployment(Bob, name=DEPLOYMENT)
    return deployment.bind(settings_of(args).as_json())
