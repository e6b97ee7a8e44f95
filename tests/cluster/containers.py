"""Run the services of a compose file on this machine without an engine, each in Linux namespaces of its own.

A service's command runs unchanged from compose.yaml, with its environment, in a network, mount, process and host name space of its
own: it has its own address, its own /mnt (with its volumes), /run, /dev/shm and /tmp/ray, and reaches the other services by name.
The programs are this machine's, because there is no image. With `read_only` they cannot write to this machine's disk outside of
/tmp; with `cap_drop` and `no-new-privileges` they have none of root's privileges.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.process import GONE_S, HANG_S, below

NETWORK = "10.77.0"
NEW = ["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
POWERLESS = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
WITH_US = ["setpriv", "--pdeathsig", "KILL"]
"""If the tests end in any way, the processes that they started end too, with all processes in their namespaces."""

SET_UP = """
read -r wired
ip link set lo up
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
hostname "$SERVICE"
mount -t tmpfs -o size="$SHM_SIZE" none /dev/shm
mount --bind /tmp /tmp
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
mount --bind "$HOSTS" /etc/hosts
mount -t tmpfs none /mnt && mkdir "$HOME"
mount -t tmpfs none /run
echo "$MOUNTS" | while read -r source target; do
    [ -z "$target" ] || {
        if [ -d "$source" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}" && touch "$target"; fi
        mount --bind "$source" "$target"
    }
done
for folder in $TMPFS; do mkdir -p "$folder" && mount -t tmpfs none "$folder"; done
[ -z "$READ_ONLY" ] || mount -o remount,bind,ro /
cd /mnt
unset ADDRESS GATEWAY HOSTS MOUNTS READ_ONLY SERVICE SHM_SIZE TMPFS
exec "$@"
"""


def missing() -> str | None:
    """Why this machine cannot run the services; None if it can."""
    roots = {Path(sys.prefix).resolve(), Path(__file__).resolve()}
    if any(root.is_relative_to("/mnt") for root in roots):
        return "/mnt contains this project or its Python, and would be hidden"
    process = subprocess.run([*NEW, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return f"this machine permits no new namespaces: {process.stderr.strip()}" if process.returncode else None


def interpolated(value: Any, settings: Mapping[str, str]) -> Any:
    """Replace `${NAME}`, `${NAME:-default}` and `${NAME:?message}` as compose does.

    Raises: KeyError with the message.
    """

    def replacement(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if settings.get(name):
            return settings[name]
        if kind != ":-":
            raise KeyError(f"{name}: {rest or 'not set'}")
        return rest

    if isinstance(value, dict):
        return {key: interpolated(inner, settings) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, settings) for inner in value]
    return re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", replacement, value) if isinstance(value, str) else value


def read_compose(path: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """A compose file with the settings inserted and each service's `env_file` read."""
    compose = interpolated(yaml.safe_load(path.read_text()), settings)
    for service in compose["services"].values():
        if file := service.pop("env_file", None):
            lines = [line for line in (path.parent / file).read_text().splitlines() if line and not line.startswith("#")]
            service["environment"] = dict(line.split("=", 1) for line in lines) | service.get("environment", {})
    return compose


@dataclass
class Container:
    """The processes of a service."""

    name: str
    address: str
    process: subprocess.Popen[str]
    environment: dict[str, str]
    log: Path

    def run(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess:
        """Like `docker compose exec`."""
        (inner,) = psutil.Process(self.process.pid).children()
        enter = ["nsenter", f"--target={inner.pid}", "--mount", "--net", "--pid", "--uts", f"--wd={Path.cwd()}"]
        environment = self.environment if env is None else env
        return subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, **options)

    def healthy(self, test: Sequence[str]) -> bool:
        kind, *command = test
        try:
            return self.run(["sh", "-c", *command] if kind == "CMD-SHELL" else command, timeout=30).returncode == 0
        except subprocess.TimeoutExpired:
            return False


@dataclass
class Composed:
    """The services of a compose file, and the network between them. All processes end on exit."""

    compose: dict[str, Any]
    folder: Path
    replaced: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Commands of services for which this machine needs other commands than their images do."""
    compose_folder: Path = Path.cwd()
    """The folder of the compose file."""
    containers: dict[str, Container] = field(default_factory=dict)

    def __enter__(self) -> "Composed":
        names = list(self.names())
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=2)}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        self.hub = subprocess.Popen([*WITH_US, "unshare", "--net", "sleep", "infinity"])
        wait_for_namespace(self.hub.pid)
        self.ip("link add bridge type bridge")
        self.ip(f"address add {NETWORK}.1/24 dev bridge")
        self.ip("link set bridge up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*(c.process for c in self.containers.values()), self.hub]:
            inner = below(process.pid)
            process.kill()
            process.wait(GONE_S)
            _, alive = psutil.wait_procs(inner, timeout=GONE_S)
            assert alive == [], "a namespace ends with its first process"

    def names(self) -> Iterator[str]:
        """The names of the containers; further replicas of a service are numbered."""
        for name, service in self.compose["services"].items():
            for number in range(1, int(service.get("deploy", {}).get("replicas", 1)) + 1):
                yield name if number == 1 else f"{name}-{number}"

    def service(self, container: str) -> dict[str, Any]:
        return self.compose["services"][re.sub(r"-\d+$", "", container)]

    def ip(self, words: str) -> None:
        subprocess.run(["nsenter", f"--target={self.hub.pid}", "--net", "ip", *words.split()], check=True)

    def up(self) -> None:
        """Start each service when its dependencies are healthy, and wait until all services are healthy."""
        deadline, healthy = time.monotonic() + HANG_S, set[str]()
        while len(healthy) < len(self.addresses):
            for name in self.addresses.keys() - self.containers.keys():
                if healthy >= self.service(name).get("depends_on", {}).keys():
                    self.start(name)
            for name in self.containers.keys() - healthy:
                container = self.containers[name]
                assert container.process.poll() is None, f"{name} has ended:\n{container.log.read_text()}"
                if container.healthy(self.service(name)["healthcheck"]["test"]):
                    healthy.add(name)
            assert time.monotonic() < deadline, f"only {sorted(healthy)} became healthy: {self.folder}/*.log"
            time.sleep(0.3)

    def start(self, name: str) -> None:
        service = self.service(name)
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "MLFLOW_", "PYTEST_", "PYTHON"))}
        environment |= {"HOME": "/mnt/home", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment |= {"GRPC_DNS_RESOLVER": "native"}  # names are in /etc/hosts; gRPC's own resolver would ask a name server
        environment |= {n: str(v) for n, v in service["environment"].items()}
        mounts = []
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                mounts.append(f"{(self.compose_folder / source).resolve()} {target}")
            elif target.startswith("/mnt/"):
                (self.folder / source).mkdir(exist_ok=True)
                mounts.append(f"{self.folder / source} {target}")
        wiring = {"ADDRESS": self.addresses[name], "GATEWAY": f"{NETWORK}.1", "HOSTS": str(self.folder / "hosts"), "SERVICE": name}
        wiring |= {"MOUNTS": "\n".join(mounts), "SHM_SIZE": service.get("shm_size", "64m").removesuffix("b")}
        folders = [entry.split(":")[0] for entry in service.get("tmpfs", ())]
        wiring |= {"TMPFS": " ".join(folder for folder in folders if folder.startswith("/run/"))}
        wiring |= {"READ_ONLY": "yes" if service.get("read_only") else ""}
        command = self.replaced.get(name) or [*privileges(service), *service["command"]]
        log = self.folder / f"{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [*WITH_US, *NEW, "sh", "-ec", SET_UP, name, *command],
                env=environment | wiring,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                text=True,
                cwd=self.folder,
            )
        self.containers[name] = Container(name, self.addresses[name], process, environment, log)
        wait_for_namespace(process.pid)
        port = f"port{self.addresses[name].rpartition('.')[2]}"  # ends with its namespace, so that the service can start again
        self.ip(f"link add {port} type veth peer name eth0 netns {process.pid}")
        self.ip(f"link set {port} master bridge up")
        assert process.stdin is not None
        process.stdin.write("wired\n")
        process.stdin.close()


def privileges(service: Mapping[str, Any]) -> list[str]:
    """The command prefix that removes root's privileges, if the compose file requires it."""
    dropped = service.get("cap_drop") == ["ALL"] and "no-new-privileges:true" in service.get("security_opt", ())
    return POWERLESS if dropped else []


def wait_for_namespace(pid: int) -> None:
    """Wait until a process has a network of its own."""
    deadline = time.monotonic() + HANG_S
    while True:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink():
                return
        assert time.monotonic() < deadline, "no namespace"
        time.sleep(0.01)
