"""What the processes of the service hand to each other: plain values, because Ray Serve keeps them as JSON."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpgan_ray.config.service import ServiceLimits
from cpgan_ray.deploy.bundle import Bundle, read_bundle
from cpgan_ray.deploy.connection import is_loopback
from cpgan_ray.deploy.service.application import File, ServiceState
from cpgan_ray.deploy.service.keys import Keys, keys_of
from cpgan_ray.deploy.service.served import Catalogue, ServedBundle, served
from cpgan_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica needs for its whole life: the `args` of the application in a YAML file of Ray Serve."""

    host: str = "127.0.0.1"
    port: int = 8000
    tls_cert: str | None = None
    tls_key: str | None = None
    keys_file: str | None = None
    """Default: the keys are in CPGAN_API_KEY of the replica's environment."""
    behind_proxy: bool = False
    """A proxy in front of the service has TLS."""
    demo: bool = True
    limits: ServiceLimits = field(default_factory=ServiceLimits)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def settings_of(values: Mapping[str, Any]) -> ReplicaSettings:
    """Raises: InputError that names the field if a value cannot be used."""
    values = dict(values)
    if unknown := values.keys() - ReplicaSettings.__dataclass_fields__.keys():
        raise InputError(f"args has {sorted(unknown)[0]!r}: choose from {', '.join(ReplicaSettings.__dataclass_fields__)}")
    limits = values.pop("limits", {})
    if not isinstance(limits, Mapping) or (unknown := limits.keys() - ServiceLimits.__dataclass_fields__.keys()):
        raise InputError(f"args.limits is {str(limits)[:200]!r}: choose from {', '.join(ServiceLimits.__dataclass_fields__)}")
    settings = ReplicaSettings(**values, limits=ServiceLimits(**limits))
    kinds = {"host": str, "port": int, "tls_cert": str | None, "tls_key": str | None, "keys_file": str | None}
    kinds |= {"behind_proxy": bool, "demo": bool}
    for name, kind in kinds.items():
        if not isinstance(value := getattr(settings, name), kind):
            raise InputError(f"args.{name} is {value!r}, which is not of type {getattr(kind, '__name__', kind)}: correct it")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InputError("args has only one of tls_cert and tls_key: give both files of the certificate")
    if not (is_loopback(settings.host) or settings.tls_cert or settings.behind_proxy):
        raise InputError(
            f"args.host is {settings.host!r}, which other machines reach, but there is no TLS: give tls_cert and tls_key, or set "
            "behind_proxy if a proxy in front of the service has it"
        )
    return settings


@dataclass(frozen=True)
class BundleEntry:
    """A bundle in the `user_config` of the deployment: a path, or a path with its digest and the time at which it ends."""

    path: str
    digest: str | None = None
    until: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def read(self) -> Bundle:
        """Raises: InputError if it is damaged, or has another digest than stated."""
        bundle = read_bundle(self.path)
        if self.digest is not None and bundle.digest != self.digest:
            raise InputError(f"bundle {self.path} has digest {bundle.digest}, not {self.digest}: get the expected bundle")
        return bundle


def entries_of(user_config: Mapping[str, Any]) -> list[BundleEntry]:
    """The bundles in a `user_config`.

    Raises: InputError if it has none, or one of them is neither a path nor an entry.
    """
    values = user_config.get("bundles")
    if not isinstance(values, list) or not values:
        raise InputError("user_config has no bundles: give a list of paths, the newest bundle first")
    return [_entry_of({"path": value} if isinstance(value, str) else value) for value in values]


def _entry_of(value: Any) -> BundleEntry:
    fields = value if isinstance(value, Mapping) and not value.keys() - BundleEntry.__dataclass_fields__.keys() else {}
    path, digest, until = (fields.get(name) for name in BundleEntry.__dataclass_fields__)
    if not isinstance(path, str) or not isinstance(digest, str | None) or not isinstance(until, float | int | None):
        raise InputError(f"user_config: {str(value)[:200]!r} is not a bundle: give its path, or path, digest and until")
    return BundleEntry(path, digest, until)


Page = Callable[[list[Bundle]], tuple[Mapping[str, File], Mapping[str, str]]]
"""Makes the files of the page and their headers from the present bundles."""


def load_state(
    user_config: Mapping[str, Any], settings: ReplicaSettings, *, known: Mapping[str, ServedBundle], page: Page | None
) -> ServiceState:
    """Everything that a `user_config` names, read and checked.

    known: opened bundles by digest, which are used again.

    Raises: InputError if a bundle is damaged, or there is no valid key.
    """
    ready: list[ServedBundle] = []
    for entry in entries_of(user_config):
        old = known.get(entry.digest or "")
        ready.append(served(entry.read(), until=entry.until) if old is None else ServedBundle(old.bundle, old.session, entry.until))
    keys = Keys(keys_of(os.environ, Path(settings.keys_file) if settings.keys_file else None))
    files, headers = ({}, {}) if page is None else page([one.bundle for one in ready if one.until is None])
    return ServiceState(Catalogue(ready), keys, files, headers)
