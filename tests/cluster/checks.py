"""Checks of the files in cluster/: each takes the repository's root and returns error messages, none if the files are correct."""

import functools
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from kubernetes_validate.utils import schema_contents
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic.warnings import PydanticDeprecationWarning
from referencing import Registry, Resource

from cluster import lock, pin_images
from cpgan_ray import cli
from cpgan_ray.deploy.service.keys import API_KEY
from cpgan_ray.deploy.service.settings import entries_of, settings_of
from cpgan_ray.errors import InputError
from tests.cluster import kuberay
from tests.cluster.containers import interpolated, read_compose

KUBERNETES = "1.34"
SECRETS = ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "CPGAN_OWNER_KEY")
SECRETS += ("CPGAN_API_KEY",)
SETTINGS: dict[str, str] = dict.fromkeys((*SECRETS, "MLFLOW_TRACKING_USERNAME"), "0" * 64)
OVERLAYS = ("gpu", "cpu", "job", "service")
CLIENT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "CPGAN_OWNER_KEY")
"""Environment variables of a job, on every node of the cluster."""
SECRET_WORDS = re.compile(r"(token|password|secret|key)$", re.IGNORECASE)

# ----------------------------------------------------------------------------------------------------------------- command lines


@functools.cache
def commands() -> dict[tuple[str, str], click.Command]:
    """Ray's and MLflow's own parsers of the commands that the files use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns when it is imported
        from mlflow.cli import server
    from ray.scripts.scripts import start, stop

    return {("ray", "start"): start, ("ray", "stop"): stop, ("mlflow", "server"): server}


def command_errors(words: Sequence[str]) -> list[str]:
    """Errors in a command line, as the installed program parses it, down to each option."""
    words = list(words)
    if tuple(words[:2]) not in commands():
        return [] if shutil.which(words[0]) or words[0] == "pg_isready" else [f"no program {words[0]!r}"]
    try:
        with commands()[words[0], words[1]].make_context(words[1], words[2:]):
            return []
    except click.ClickException as e:
        return [f"{shlex.join(words)}: {e.format_message()}"]


def job_errors(root: Path, words: Sequence[str]) -> list[str]:
    """Errors in a job's command line: a missing script, or an unknown flag. `train_or_resume.sh` has the folder first."""
    *_, script = (n for n, word in enumerate(words) if word.endswith((".py", ".sh")))
    path = root / re.sub(r"^/opt/cpgan_ray/", "", words[script])
    if not path.is_file():
        return [f"{shlex.join(words)}: no {path}"]
    flags = list(words[script + 1 :])
    if path.suffix == ".sh":
        flags = [*flags[1:], "--output", flags[0]]
    if path.name == "gpu_check.py":
        return []
    try:
        if path.name == "serve.py":
            cli.parse_serve(flags, description="")
            return []
        cli.parse_train(flags, default="faces", description="")
    except InputError as e:
        return [f"{shlex.join(words)}: {e}"]
    return []


# ----------------------------------------------------------------------------------------------------------------------- versions


def check_versions(root: Path) -> list[str]:
    """Versions other than those in requirements.lock and pyproject.toml; all other files repeat these."""
    lock = {name: package.version for packages in locks(root).values() for name, package in packages.items()}
    project = tomllib.loads((root / "pyproject.toml").read_text())
    python = re.escape(project["tool"]["pyright"]["pythonVersion"])
    image = re.escape(project["project"]["version"])
    cuda = set(re.findall(r"--build-arg DEVICE=(\w+)", (root / "cluster" / "Dockerfile").read_text()))
    rules = {
        r"cpgan_ray:([\w.-]+)": rf"{image}-(cpu|{'|'.join(cuda)})",
        r"newTag: (\S+)": rf"{image}-(cpu|{'|'.join(cuda)})",
        r"rayVersion: (\S+)": re.escape(lock["ray"]),
        r"ARG PYTHON_IMAGE=python:(\S+)": rf"{python}\.\d+-slim-bookworm(@sha256:[0-9a-f]{{64}})?",
        r"\b(cu1\d\d) --tag": "|".join(cuda),
        r"FROM (?:rayproject/ray|pytorch/pytorch)\S*(.*)": "(?!)",
    } | {rf"\b{re.escape(name)}==([\w.]+)": re.escape(version) for name, version in lock.items()}
    errors = []
    if len(cuda) != 1:
        errors.append(f"Dockerfile: more than one CUDA in its commands: {sorted(cuda)}")
    for path in sorted(p for p in (root / "cluster").rglob("*") if p.is_file() and p.suffix not in (".pyc", ".py", ".lock")):
        text = path.read_text()
        for pattern, wanted in rules.items():
            wrong = [version for version in re.findall(pattern, text) if not re.fullmatch(wanted, version)]
            errors += [f"{path.relative_to(root)}: version {version!r}, wanted {wanted}" for version in wrong]
        unpinned = re.findall(r"image: (?!cpgan_ray$)([\w./-]+(?::latest)?)\s*$", text, re.MULTILINE)
        errors += [f"{path.relative_to(root)}: image {name} is not pinned" for name in unpinned]
        images = re.findall(r"^ *(?:- )?(?:\w+_)?image: ([\w./:-]+:[\w.-]+)", text, re.MULTILINE)
        referenced = {ref.image for ref in pin_images.references(root / "cluster") if ref.file == path}
        errors += [f"{path.relative_to(root)}: `make pin` overlooks image {name}" for name in set(images) - referenced]
    return errors


# ------------------------------------------------------------------------------------------------------------------------- README


def locks(root: Path) -> dict[str, lock.Packages]:
    """The packages of every lock file."""
    return {name: lock.parse((root / name).read_text()) for name in lock.FILES}


def check_locks(root: Path) -> list[str]:
    """Contradictions between the lock files, pyproject.toml, and the commands that install from the lock files."""
    try:
        lock_files = locks(root)
    except ValueError as e:
        return [str(e)]
    errors = []
    files_of: dict[str, list[str]] = {}
    for file, packages in lock_files.items():
        for name in packages:
            files_of.setdefault(name, []).append(file)
        errors += [f"{file}: {name} is locked without a checksum" for name, package in packages.items() if not package.hashes]
    clouds = {f"cluster/vms/{cloud}.lock" for cloud in lock.CLOUDS}
    errors += [f"{name} is in {files}" for name, files in files_of.items() if len(set(files) - clouds) > 1 or len(files) > 2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for kind, requirements in {"run": [*project["dependencies"], *extras["server"], *lock.BUILD], "dev": extras["dev"]}.items():
        for requirement in map(Requirement, requirements):
            name = canonicalize_name(requirement.name)
            versions = [p.version for packages in lock_files.values() for key, p in packages.items() if key == name]
            allowed = [version for version in versions if requirement.specifier.contains(version)]
            if not allowed or versions != allowed:
                errors.append(f"{requirement} is locked as {versions or 'nothing'}")
            if kind == "run" and name in lock_files["requirements-dev.lock"]:
                errors.append(f"{name} is not in the image: requirements-dev.lock has it")
    cuda = re.findall(r"nvidia-[a-z]+-cu(\d+)", (root / "requirements-cuda.lock").read_text())
    device = set(re.findall(r"DEVICE=cu(\d+)", (root / "cluster" / "Dockerfile").read_text()))
    errors += [
        f"libraries of CUDA {version} in an image for cu{device}"
        for version in cuda
        if not all(d.startswith(version) for d in device)
    ]
    index = re.compile(r"https?://|--(?:extra-)?index-url|--find-links|--trusted-host")
    errors += [f"{file}: names an index" for file in lock_files if index.search((root / file).read_text())]
    for path in [root / "Makefile", root / "cluster" / "Dockerfile", *(root / "cluster" / "vms").glob("*.yaml")]:
        for command in re.findall(r"pip install[^;&#\n]*(?:\\\n[^;&#\n]*)*", path.read_text()):
            if "--editable" in command or "install --quiet uv" in command:
                continue
            if "--require-hashes" not in command or "--no-deps" not in command or "--extra-index-url" in command:
                errors.append(f"{path.name}: {shlex.join(command.split()[:6])} ... installs packages without a checksum")
    return errors


def check_readme(root: Path) -> list[str]:
    """Errors in its commands: flags that a job does not have, and missing files."""
    text = (root / "cluster" / "README.md").read_text()
    errors = []
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "jobs/" in line:
                errors += job_errors(root, words)
            paths = [root / word for word in words if re.match(r"cluster/\w", word)]
            errors += [f"README.md: no {path.relative_to(root)}" for path in paths if not path.exists()]
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    return errors + [f"README.md: no {link}" for link in links if not (root / "cluster" / link).exists()]


# --------------------------------------------------------------------------------------------------------------------- Dockerfile


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1].strip()) for line in lines if line.strip()]


def check_dockerfile(root: Path) -> list[str]:
    """Errors in the Dockerfile: those of hadolint, files that are missing in the repository, and secrets."""
    path = root / "cluster" / "Dockerfile"
    hadolint = Path(sys.executable).parent / "hadolint"
    process = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)
    errors = process.stdout.splitlines() if process.returncode else []
    steps = instructions(path)
    arguments = dict(rest.split("=", 1) for name, rest in steps if name == "ARG" and "=" in rest)
    bases = [re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), rest) for name, rest in steps if name == "FROM"]
    errors += [f"base image {base!r} is not pinned by a full version" for base in bases if not re.search(r":\d+\.\d+\.\d+", base)]
    users = [rest for name, rest in steps if name == "USER"]
    errors += [] if users and users[-1].isdigit() and users[-1] != "0" else ["the last USER is root, or no number"]
    names = [word.split("=")[0] for name, rest in steps if name in ("ARG", "ENV") for word in rest.split()]
    errors += [f"{name} looks like a secret" for name in names if SECRET_WORDS.search(name)]
    is_sent = build_context(root)
    for name, rest in steps:
        if name == "COPY":
            *sources, _ = rest.split()
            errors += [f"COPY {source}: missing, or not sent to the builder" for source in sources if not is_sent(source)]
        if name == "CMD":
            errors += job_errors(root, shlex.split(re.sub(r"[\[\],]", " ", rest)))
    return errors


def build_context(root: Path) -> Callable[[str], bool]:
    """A function that reports whether a file or folder exists and is sent to the builder, by Dockerfile.dockerignore."""
    lines = [line for line in (root / "cluster" / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    included = {line[1:] for line in lines if line.startswith("!")}

    def is_sent(source: str) -> bool:
        parents = {str(parent) for parent in Path(source).parents} | {source.rstrip("/")}
        return lines[0] == "*" and bool(parents & included) and (root / source).exists()

    return is_sent


# ------------------------------------------------------------------------------------------------------------------------ compose


HARDENED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
"""Settings of every service."""


def check_compose(root: Path) -> list[str]:
    """Errors by the Compose specification's schema, in references between services, in command lines, and in required secrets."""
    errors = []
    schema = Draft202012Validator(get_builtin_schema("vendor.compose-spec"))
    whole = read_compose(root / "cluster" / "compose.yaml", SETTINGS)
    for name in ("compose.yaml", "compose.gpu.yaml"):
        content = interpolated(yaml.safe_load((root / "cluster" / name).read_text()), SETTINGS)
        errors += [f"{name}: {e.json_path} {reason(e)}" for e in schema.iter_errors(content)]
        errors += [f"{name}: no service {s!r} in compose.yaml" for s in content["services"] if s not in whole["services"]]
    for secret in SETTINGS:
        try:
            read_compose(root / "cluster" / "compose.yaml", {k: v for k, v in SETTINGS.items() if k != secret})
            errors.append(f"compose.yaml: {secret} has a default")
        except KeyError as e:
            errors += [] if "make secrets" in str(e) else [f"compose.yaml: {e} does not name the remedy"]
    for name, service in whole["services"].items():
        errors += [f"{name}: {error}" for error in service_errors(root, service, whole)]
    return errors


def service_errors(root: Path, service: dict[str, Any], whole: dict[str, Any]) -> Iterator[str]:
    services = whole["services"]
    yield from (f"{key} is not {wanted}" for key, wanted in HARDENED.items() if service.get(key) != wanted)
    yield from (f"{key} is set" for key in ("privileged", "cap_add", "devices", "pid", "ipc", "network_mode") if key in service)
    if not 0 < service.get("pids_limit", 0) <= 8192:
        yield "pids_limit is missing, or no limit"
    if not any(entry.startswith("/tmp:") for entry in service.get("tmpfs", ())):
        yield "no tmpfs at /tmp, which the read-only image lacks"
    if "postgres" in service["image"]:
        if [name for name in service.get("networks", ["default"]) if not (whole["networks"][name] or {}).get("internal")]:
            yield "the database is in a network with a way out"
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user"))):
            yield "user is root, or no number"
    if "mlflow" in service.get("command", ()):
        if "basic-auth" not in service["command"]:
            yield "MLflow requires no password"
        path = service["environment"].get("MLFLOW_AUTH_CONFIG_PATH", "")
        if not any(volume.split(":")[1:] == [path, "ro"] for volume in service.get("volumes", ())):
            yield f"no file is mounted at {path!r}, the settings of the users"
    if "ray" in service.get("command", ()):
        yield from (f"no {name}" for name in CLIENT if name not in service["environment"])
    yield from command_errors(service.get("command", ["true"]))
    if any(word.endswith(".py") for word in service.get("command", ())):
        yield from job_errors(root, service["command"])
    for word in [*service.get("command", []), *map(str, service["environment"].values())]:
        for host, port in re.findall(r"(?:://(?:[^@/]*@)?|--address=)([a-z][\w-]*):(\d+)", word):
            if host not in services:
                yield f"no service {host!r}, which is called"
            elif f"--port={port}" not in services[host].get("command", []) and port != default_port(services[host]):
                yield f"{host} does not listen on {port}"
            elif (
                "MLFLOW_SERVER_ALLOWED_HOSTS" in (e := services[host]["environment"])
                and f"{host}:" not in e["MLFLOW_SERVER_ALLOWED_HOSTS"]
            ):
                yield f"{host} does not answer to its own name"
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            yield f"no service {other!r} to depend on"
        elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            yield f"{other} has no healthcheck to wait for"
    for volume in service.get("volumes", []):
        if volume.startswith("./") and not (root / "cluster" / volume.split(":")[0]).is_file():
            yield f"no file {volume.split(':')[0]!r}"
        elif not volume.startswith("./") and volume.split(":")[0] not in whole["volumes"]:
            yield f"no volume {volume.split(':')[0]!r}"
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            yield f"port {port} is open to the network"
    if service["environment"].get("RAY_AUTH_MODE", "token") != "token":
        yield "no token is required"
    if "ray" in service.get("command", []) and "RAY_AUTH_TOKEN" not in service["environment"]:
        yield "Ray without a token"
    if build := service.get("build"):
        dockerfile = root / "cluster" / build["context"] / build["dockerfile"]
        if not dockerfile.is_file():
            yield f"no {dockerfile}"
        device = build["args"]["DEVICE"]
        if not service["image"].endswith(f"-{device}"):
            yield f"image {service['image']} is built for {device}"


def default_port(service: dict[str, Any]) -> str:
    environment = service["environment"]
    return "5432" if "postgres" in service["image"] else str(environment.get("MLFLOW_PORT"))


def reason(e: ValidationError) -> str:
    """The shortest message of all alternatives."""
    return min((e.message, *(c.message for c in e.context or ())), key=len)


# --------------------------------------------------------------------------------------------------------------------- Kubernetes


def kubectl(root: Path, overlay: str) -> list[dict[str, Any]]:
    """The resources of an overlay as kustomize makes them.

    Raises: CalledProcessError with kustomize's message.
    """
    command = ["kubectl", "kustomize", str(root / "cluster" / "kubernetes" / overlay)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return [resource for resource in yaml.safe_load_all(process.stdout) if resource]


def check_kubernetes(root: Path) -> list[str]:
    """Errors in every resource of the base and, if kubectl is installed, of each overlay as kustomize makes it."""
    base = root / "cluster" / "kubernetes" / "base"
    listed = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    files = {path.name for path in base.glob("*.yaml")} - {"kustomization.yaml"}
    errors = [f"base/{name} is in no kustomization.yaml, or missing" for name in files ^ set(listed)]
    resources = [r for name in sorted(files) for r in yaml.safe_load_all((base / name).read_text())]
    errors += [f"base: {error}" for resource in resources for error in resource_errors(resource)]
    if not errors and shutil.which("kubectl"):
        for overlay in OVERLAYS:
            try:
                resources = kubectl(root, overlay)
            except subprocess.CalledProcessError as e:
                errors.append(f"{overlay}: {e.stderr.strip()}")
                continue
            errors += [f"{overlay}: {error}" for resource in resources for error in resource_errors(resource)]
            if not errors:
                errors += [f"{overlay}: {error}" for error in reference_errors(root, resources)]
    return errors


def resource_errors(resource: dict[str, Any]) -> Iterator[str]:
    """Errors in one resource by itself."""
    if resource["apiVersion"].startswith("ray.io/"):
        yield from kuberay.errors(resource)
        for pod in kuberay.pods(resource):
            template = {"metadata": {}} | pod
            yield from resource_errors({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template})
        return
    where = f"{resource['kind']} {resource['metadata'].get('name', '')}"
    try:
        schema = kubernetes(resource["kind"], resource["apiVersion"])
    except FileNotFoundError:
        yield f"{where}: Kubernetes {KUBERNETES} has no schema for {resource['apiVersion']}"
        return
    yield from (f"{where}: {e.json_path} {reason(e)}" for e in schema.iter_errors(resource))


@functools.cache
def kubernetes(kind: str, api: str) -> Draft202012Validator:
    """Kubernetes' schema of a kind, from kubernetes_validate, whose own `validate` reads two megabytes for each resource.

    Raises: FileNotFoundError if this version of Kubernetes does not have the kind.
    """
    folder = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    own, shared = (schema_contents(f"{folder}/{name}.json", KUBERNETES) for name in (f"{kind.lower()}-{group}", "_definitions"))
    return Draft202012Validator(
        own, registry=Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in (own, shared))
    )


def reference_errors(root: Path, resources: Sequence[dict[str, Any]]) -> Iterator[str]:
    """References from one resource to another one that does not exist."""
    existing = {(r["kind"], r["metadata"]["name"]) for r in resources}
    keys = {r["metadata"]["name"]: set(r.get("data", {})) for r in resources if r["kind"] in ("Secret", "ConfigMap")}
    services = {r["metadata"]["name"]: r for r in resources if r["kind"] == "Service"}
    labels = [t["metadata"]["labels"] for r in resources if (t := r["spec"].get("template") if "spec" in r else None)]
    rays = [pod for r in resources if r["kind"] in kuberay.KINDS for pod in kuberay.pods(r)]
    labels += [pod.get("metadata", {}).get("labels", {}) | {"ray.io/is-ray-node": "yes"} for pod in rays]
    labels += [*PODS.values(), {"app.kubernetes.io/name": "kuberay-operator"}, {"k8s-app": "kube-dns"}]  # KubeRay's, Kubernetes'
    for resource in resources:
        where = f"{resource['kind']} {resource['metadata']['name']}"
        if resource["kind"] != "Namespace" and resource["metadata"].get("namespace") != "cpgan":
            yield f"{where}: not in the namespace"
        for path, value in leaves(resource):
            last = path[-1]
            if last == "claimName" and ("PersistentVolumeClaim", value) not in existing:
                yield f"{where}: no volume claim {value!r}"
            if (path[-2:] in (("configMapRef", "name"), ("configMap", "name"))) and ("ConfigMap", value) not in existing:
                yield f"{where}: no config map {value!r}"
            if last == "secretName" and "auth_token" not in keys.get(value, ()):
                yield f"{where}: secret {value!r} has no auth_token"
            if path[-2:] == ("secretKeyRef", "key") and value not in set().union(*keys.values()):
                yield f"{where}: no secret has {value!r}"
            if isinstance(value, str):
                for host, port in re.findall(r"(?:://|@)([a-z][\w-]*):(\d+)", value):
                    if int(port) not in {p["port"] for p in services.get(host, {"spec": {"ports": []}})["spec"]["ports"]}:
                        yield f"{where}: no service {host}:{port}"
        for selector in selectors(resource):
            if not any(selector.items() <= pod_labels.items() for pod_labels in labels):
                yield f"{where}: selects no pod: {selector}"
        if resource["kind"] in kuberay.KINDS:
            cluster = kuberay.cluster_of(resource)
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                options = [f"--{name}={value}" for name, value in group.get("rayStartParams", {}).items()]
                yield from command_errors(["ray", "start", *options])
            if cluster.get("authOptions", {}).get("mode") != "token":
                yield f"{where}: no token is required"
        if resource["kind"] == "RayService":
            yield from serve_errors(resource, where)
        if resource["kind"] == "RayJob":
            yield from job_errors(root, shlex.split(resource["spec"]["entrypoint"]))
        if resource["kind"] in (*kuberay.KINDS, "Deployment", "StatefulSet"):
            yield from security_errors(resource, where)
    yield from (f"no {kind}" for kind in ("NetworkPolicy", "Secret", "StatefulSet") if kind not in {k for k, _ in existing})


def serve_errors(resource: dict[str, Any], where: str) -> Iterator[str]:
    """Errors in a configuration of Ray Serve, by Serve's own schema and by the application's own checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticDeprecationWarning)  # Serve's own code, when it is imported
        from ray.serve.schema import ServeDeploySchema

        from cpgan_ray.deploy.service import replica
    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(resource["spec"]["serveConfigV2"]))
        for application in config.applications:
            module, _, name = application.import_path.partition(":")
            if module != replica.__name__ or not hasattr(replica, name):
                yield f"{where}: no {application.import_path}"
            settings_of(application.args)
            for deployment in application.deployments:
                if deployment.name != replica.DEPLOYMENT:
                    yield f"{where}: no deployment {deployment.name!r}"
                entries_of(deployment.user_config)
    except ValueError as e:
        yield f"{where}: {' '.join(str(e).split())}"
        return
    containers = [c for pod in kuberay.pods(resource)[1:] for c in pod["spec"]["containers"]]
    ports = {port["containerPort"] for container in containers for port in container.get("ports", ()) if port["name"] == "serve"}
    if ports != {settings_of(config.applications[0].args).port}:
        yield f"{where}: the application does not listen on the port named serve"
    if not all(API_KEY in {variable["name"] for variable in container.get("env", ())} for container in containers):
        yield f"{where}: no {API_KEY}"


POD_SECURITY = {("runAsNonRoot",): True, ("seccompProfile", "type"): "RuntimeDefault"}
CONTAINER_SECURITY = POD_SECURITY | {
    ("allowPrivilegeEscalation",): False,
    ("readOnlyRootFilesystem",): True,
    ("capabilities", "drop"): ["ALL"],
}
"""Settings of every container itself, so that they cannot be missing in a pod with a further container."""
FORBIDDEN = ("privileged", "procMount", "windowsOptions")
HOST = ("hostNetwork", "hostPID", "hostIPC")


def security_errors(resource: dict[str, Any], where: str) -> Iterator[str]:
    kuberay_own = resource["kind"] in kuberay.KINDS
    pods = kuberay.pods(resource) if kuberay_own else [resource["spec"]["template"]]
    for pod in pods:
        spec = pod["spec"]
        yield from context_errors(spec.get("securityContext", {}), POD_SECURITY, f"{where}: pod")
        yield from (f"{where}: {key} is set" for key in HOST if spec.get(key))
        containers = [*spec.get("initContainers", ()), *spec["containers"], *spec.get("ephemeralContainers", ())]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        volumes |= {claim["metadata"]["name"]: claim for claim in resource["spec"].get("volumeClaimTemplates", ())}
        cluster = kuberay.cluster_of(resource) if kuberay_own else {}
        if cluster.get("enableInTreeAutoscaling") and pod is cluster.get("headGroupSpec", {}).get("template"):
            autoscaler = cluster.get("autoscalerOptions", {})
            containers.append({"name": "autoscaler", "image": containers[0]["image"]} | autoscaler)
        elif spec.get("automountServiceAccountToken") is not False:
            yield f"{where}: a pod that does not use Kubernetes' API has its token"
        for container in containers:
            name = container["name"]
            yield from context_errors(container.get("securityContext", {}), CONTAINER_SECURITY, f"{where}: {name}")
            yield from command_errors(container.get("command") or ["true"])
            mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
            if missing := sorted(set(mounts.values()) - set(volumes)):
                yield f"{where}: no volume {missing}"
            elif "emptyDir" not in volumes.get(mounts.get("/tmp", ""), {}):
                yield f"{where}: {name} has no emptyDir at /tmp, which its read-only image lacks"
            if name.startswith(("ray-head", "ray-worker")):
                shared = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
                if shared.get("medium") != "Memory":
                    yield f"{where}: {name} has no memory at /dev/shm"
                variables = {variable["name"] for variable in container.get("env", ())}
                wanted = () if resource["kind"] == "RayService" else CLIENT
                yield from (f"{where}: {name} has no {variable}" for variable in wanted if variable not in variables)
            if container.get("command", [])[:2] == ["mlflow", "server"] and "basic-auth" not in container["command"]:
                yield f"{where}: MLflow requires no password"


def context_errors(context: dict[str, Any], wanted: dict[tuple[str, ...], Any], where: str) -> Iterator[str]:
    for path, value in wanted.items():
        actual: Any = context
        for key in path:
            actual = actual.get(key) if isinstance(actual, dict) else None
        if actual != value:
            yield f"{where}: {'.'.join(path)} is {actual}, not {value}"
    if context.get("runAsUser") == 0:
        yield f"{where}: runs as root"
    yield from (f"{where}: {key} is set" for key in FORBIDDEN if context.get(key))
    if (context.get("capabilities") or {}).get("add"):
        yield f"{where}: adds capabilities"


# All needed connections as (from, to, port); all others are refused. PODS has the labels that policies select by.
RAY_HEAD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
PODS = {
    "head": RAY_HEAD,
    "worker": RAY_HEAD | {"ray.io/node-type": "worker"},
    "mlflow": {"app": "mlflow"},
    "postgres": {"app": "postgres"},
    "submitter": {"app": "submitter"},
    "stranger": {"app": "stranger"},
}
PORTS = (5000, 5432, 6379, 8265, 10002)
NEEDED = {
    *((source, target, port) for source in ("head", "worker") for target in ("head", "worker") for port in PORTS),
    *((source, "mlflow", 5000) for source in ("head", "worker")),
    ("mlflow", "postgres", 5432),
    ("submitter", "head", 8265),
}


def check_network(root: Path) -> list[str]:
    """Differences between the needed and the allowed connections, at both ends, and pods that may leave the cluster."""
    path = root / "cluster" / "kubernetes" / "base" / "network.yaml"
    policies = list(yaml.safe_load_all(path.read_text()))
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    errors = [] if any(policy["spec"] == closed for policy in policies) else ["no policy refuses all other connections"]
    for source, target, port in itertools.product(PODS, PODS, PORTS):
        ends = {
            "Egress": allowed(policies, "Egress", PODS[source], PODS[target], port),
            "Ingress": allowed(policies, "Ingress", PODS[target], PODS[source], port),
        }
        needed = (source, target, port) in NEEDED
        errors += [
            f"{direction}: {source} {'reaches' if open_ else 'does not reach'} port {port} of {target}"
            for direction, open_ in ends.items()
            if open_ != needed
        ]
    dns = {name for name, labels in PODS.items() if allowed(policies, "Egress", labels, {"k8s-app": "kube-dns"}, 53, "kube-system")}
    if dns != set(PODS) - {"postgres"}:
        errors.append(f"DNS is open to {sorted(dns)}")
    leaving = {
        name for name, labels in PODS.items() for rule in rules(policies, "Egress", labels) if blocks(rule) - {"169.254.20.10/32"}
    }
    if leaving - {"head"}:
        errors.append(f"{sorted(leaving - {'head'})} may leave the cluster")
    return errors


def rules(policies: Sequence[dict[str, Any]], direction: str, labels: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rules of all policies that select a pod."""
    for policy in policies:
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], labels):
            yield from policy["spec"].get(direction.lower(), ())


def blocks(rule: dict[str, Any]) -> set[str]:
    return {peer["ipBlock"]["cidr"] for peer in rule.get("to", ()) if "ipBlock" in peer}


def allowed(
    policies: Sequence[dict[str, Any]],
    direction: str,
    labels: dict[str, str],
    peer_labels: dict[str, str],
    port: int,
    namespace: str | None = None,
) -> bool:
    """Whether a pod may connect to (Egress) or accept connections from (Ingress) a pod of its own or of another namespace."""
    if not any(direction in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], labels) for p in policies):
        return True
    for rule in rules(policies, direction, labels):
        peers = rule.get("to" if direction == "Egress" else "from")
        if rule.get("ports") and port not in {entry["port"] for entry in rule["ports"]}:
            continue
        if peers is None or any(matches(peer, peer_labels, namespace) for peer in peers):
            return True
    return False


def matches(peer: dict[str, Any], labels: dict[str, str], namespace: str | None) -> bool:
    if "ipBlock" in peer:
        return False
    selector = peer.get("namespaceSelector")
    namespace_labels = {"kubernetes.io/metadata.name": namespace or "cpgan"}
    in_namespace = namespace is None if selector is None else selects(selector, namespace_labels)
    return in_namespace and selects(peer.get("podSelector", {}), labels)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector matches these labels."""
    by_expression = {
        "In": lambda e: labels.get(e["key"]) in e["values"],
        "NotIn": lambda e: labels.get(e["key"]) not in e["values"],
        "Exists": lambda e: e["key"] in labels,
        "DoesNotExist": lambda e: e["key"] not in labels,
    }
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        by_expression[e["operator"]](e) for e in selector.get("matchExpressions", ())
    )


def leaves(value: Any, path: tuple[str, ...] = ("",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, value


def selectors(resource: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The labels by which a resource selects pods."""
    spec = resource.get("spec", {})
    if resource["kind"] == "Service":
        yield spec["selector"]
    if resource["kind"] == "NetworkPolicy":
        yield spec["podSelector"].get("matchLabels", {})
        for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
            peers = [peer for peer in (*rule.get("from", ()), *rule.get("to", ())) if "podSelector" in peer]
            yield from (peer["podSelector"].get("matchLabels", {}) for peer in peers)


# ----------------------------------------------------------------------------------------------------------------------- machines


def check_vms(root: Path) -> list[str]:
    """Errors by Ray's schema and rules, in autoscaling, token and command lines. The content of `node_config` is not checked."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    errors = []
    for path in sorted((root / "cluster" / "vms").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        try:
            validate_config(prepare_config(config))
        except Exception as e:  # from Ray or jsonschema, depending on the mistake
            errors.append(f"{path.name}: {str(e).partition(chr(10))[0]}")
            continue
        errors += [f"{path.name}: {error}" for error in vms_errors(config)]
    return errors


def vms_errors(config: dict[str, Any]) -> Iterator[str]:
    types = config["available_node_types"]
    workers = {name: kind for name, kind in types.items() if name != config["head_node_type"]}
    if types[config["head_node_type"]]["resources"].get("GPU"):
        yield "the head has a GPU"
    for name, kind in workers.items():
        if kind.get("min_workers") != 0:
            yield f"{name} does not stop when it is idle"
        if kind["resources"].get("GPU") and not re.search(r"'(MarketType': 'spot|preemptible': True)", str(kind["node_config"])):
            yield f"{name} is not a spot machine"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "the nodes get no token"
    wanted = ("--cap-drop ALL", "--security-opt no-new-privileges:true")
    yield from (f"containers are not run with {option}" for option in wanted if option not in config["docker"]["run_options"])
    for kind in ("head", "worker"):
        started = [shlex.split(line.replace("$RAY_HEAD_IP", "10.0.0.1")) for line in config[f"{kind}_start_ray_commands"]]
        for words in started:
            if words[:1] == ["env"] and any("mlflow" in word or word == "ray" for word in words):
                environment = [word for word in words if re.match(r"[A-Z_]+=", word)]
                if words[1:3] != ["$(cat", "~/.cpgan.env)"] or "~/.cpgan.env" not in config["file_mounts"]:
                    yield f"{kind}: no secrets in the environment"
                words[:] = words[3 + len(environment) :]
            elif words[:2] in (["ray", "start"], ["mlflow", "server"]):
                yield f"{kind}: no secrets in the environment"
            if "mlflow" in words and "basic-auth" not in words:
                yield "MLflow requires no password"
            end = min((n for n, word in enumerate(words) if word in ("<", ">", "&")), default=len(words))
            yield from command_errors([word for word in words[:end] if word != "nohup"])
        if not any(words[:2] == ["ray", "start"] for words in started):
            yield f"Ray is not started on a {kind}"
