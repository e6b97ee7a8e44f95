"""The files in cluster/ pass all checks, and each check finds many kinds of mistakes in a copy of the files."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import checks

ROOT = Path(__file__).parents[2]
KEYS = ("auth_token", "postgres_password", "owner_key", "mlflow_username", "mlflow_password", "mlflow_session_key", "api_key")
SECRETS = "".join(f"{key}=secret\n" for key in KEYS)
CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "versions": checks.check_versions,
    "locks": checks.check_locks,
    "README": checks.check_readme,
    "Dockerfile": checks.check_dockerfile,
    "compose": checks.check_compose,
    "kubernetes": checks.check_kubernetes,
    "network": checks.check_network,
    "vms": checks.check_vms,
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that the checks read, with secrets."""
    for name in ("cluster", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    locks = sorted(path.name for path in ROOT.glob("requirements*.lock"))
    for name in ("pyproject.toml", "Makefile", *locks, "README.md", "LICENSE", "cpgan_ray/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "cluster/kubernetes/base/secrets.env").write_text(SECRETS)
    return tmp_path


@pytest.mark.parametrize("name", CHECKS)
def test_check_of_the_files_finds_no_error(name, copy):
    assert CHECKS[name](copy) == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which makes the resources of an overlay")
def test_overlays_change_gpus_cluster_and_volume(copy):
    resources = {
        overlay: {(r["kind"], r["metadata"]["name"]): r for r in checks.kubectl(copy, overlay)} for overlay in checks.OVERLAYS
    }
    gpus = {
        overlay: [
            container["resources"].get("limits", {}).get("nvidia.com/gpu")
            for cluster in (checks.kuberay.cluster_of(r) for (kind, _), r in by_name.items() if kind in checks.kuberay.KINDS)
            for group in cluster["workerGroupSpecs"]
            for container in group["template"]["spec"]["containers"]
        ]
        for overlay, by_name in resources.items()
    }
    assert gpus == {"gpu": [1], "cpu": [None], "job": [1], "service": [None]}
    assert ("RayCluster", "cpgan") not in resources["job"], "a job has a cluster of its own"
    job, cluster = resources["job"]["RayJob", "celeba"]["spec"], resources["gpu"]["RayCluster", "cpgan"]["spec"]
    assert job["rayClusterSpec"] == cluster
    submitter, head = (pod["spec"]["containers"][0] for pod in (job["submitterPodTemplate"], cluster["headGroupSpec"]["template"]))
    assert submitter["image"] == head["image"] == "cpgan_ray:0.1.0-cpu"
    assert resources["cpu"]["PersistentVolumeClaim", "shared"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    (copy / "cluster/kubernetes/base/secrets.env").unlink()
    assert [error for error in checks.check_kubernetes(copy) if "secrets.env" in error], "secrets have no defaults"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which makes the resources of an overlay")
def test_object_store_is_reachable_only_with_its_component(copy):
    overlay = copy / "cluster/kubernetes/cpu/kustomization.yaml"
    names = [{r["metadata"]["name"] for r in checks.kubectl(copy, "cpu")}]
    overlay.write_text(overlay.read_text() + "components: [../object-store]\n")
    resources = checks.kubectl(copy, "cpu")
    names.append({r["metadata"]["name"] for r in resources})
    assert names[1] - names[0] == {"object-store"}
    policies = [resource for resource in resources if resource["kind"] == "NetworkPolicy"]
    assert [error for policy in policies for error in checks.resource_errors(policy)] == []
    reachable = {cidr for rule in checks.rules(policies, "Egress", checks.PODS["worker"]) for cidr in checks.blocks(rule)}
    assert reachable == {"0.0.0.0/0", "169.254.20.10/32"}
    assert not any(checks.blocks(rule) for rule in checks.rules(policies, "Egress", checks.PODS["postgres"]))


@dataclass(frozen=True)
class Breakage:
    check: str
    file: str
    old: str
    new: str
    error: str
    """Regular expression that one of the check's errors matches."""


def broken(check: str, file: str, *cases: tuple[str, str, str]) -> list[Breakage]:
    return [Breakage(check, file, *case) for case in cases]


INIT = "        initContainers:\n          - name: install\n            image: cpgan_ray\n"

BREAKAGES = [
    *broken("versions", "cluster/Dockerfile", ("python:3.11.14", "python:3.12.1", "3.12.1"), ("0.1.0-cpu", "0.2.0-cpu", "0.2.0")),
    *broken(
        "versions", "cluster/compose.yaml", ("0.1.0-cpu", "0.1.1-cpu", "0.1.1"), ("postgres:17.6-bookworm", "postgres", "pinned")
    ),
    *broken("versions", "cluster/compose.gpu.yaml", ("image: cpgan_ray:0.1.0-cu130", "image: cpgan_ray:0.1.0-cu128", "cu128")),
    *broken("versions", "cluster/kubernetes/base/raycluster.yaml", ("2.60.0", "2.59.0", r"2\.59\.0")),
    *broken("versions", "cluster/kubernetes/base/kustomization.yaml", ("newTag: 0.1.0-cpu", "newTag: latest", "latest")),
    *broken("versions", "cluster/vms/aws.yaml", ("--no-deps --requirement", "filelock==1.0 --requirement", "filelock|1.0")),
    *broken(
        "README",
        "cluster/README.md",
        ("cluster/vms/aws", "cluster/vms/aws2", "aws2"),
        ("--attacks.gpus", "--attack.gpus", "attack"),
    ),
    *broken("versions", "pyproject.toml", ('version = "0.1.0"', 'version = "0.3.0"', "0.1.0-cpu")),
    *broken("versions", "requirements.lock", ("ray==2.60.0", "ray==2.61.0", "2.60.0")),
    *broken(
        "locks",
        "requirements.lock",
        ("\nray==2.60.0 ", "\nray==2.50.0 ", "ray.* is locked as"),
        ("\nray==2.60.0 ", "\nrayy==2.60.0 ", "ray.* is locked as nothing"),
        ("\nray==2.60.0 \\\n", "\nray>=2.60.0 \\\n", "no requirement with =="),
        ("# Written", "--extra-index-url https://index.example\n# Written", "no requirement"),
        ("\nray==2.60.0 ", "\npytest==9.2.0 ", "pytest is in"),
    ),
    *broken("locks", "requirements-dev.lock", ("# Written", "six==1.17.0\n# Written", "no requirement with == and checksums")),
    *broken(
        "locks",
        "cluster/Dockerfile",
        ("--require-hashes --no-deps --requirement requirements.lock", "-r requirements.lock", "without a checksum"),
    ),
    *broken("locks", "Makefile", ("pip install --quiet --require-hashes --no-deps", "pip install --quiet", "without a checksum")),
    *broken("locks", "cluster/vms/aws.yaml", ("--require-hashes --no-deps --requirement", "--constraint", "without a checksum")),
    *broken(
        "Dockerfile",
        "cluster/Dockerfile",
        ("FROM ${PYTHON_IMAGE}", "FROM python:latest", "DL3007"),
        ("PYTHON_IMAGE=python:3.11.14-slim-bookworm", "PYTHON_IMAGE=python:3.11", "not pinned"),
        ("USER 1000", "", "root"),
        ("USER 1000", "USER root", "DL3002"),
        ("ARG DEVICE=cpu", "ARG DEVICE=cpu\nARG POSTGRES_PASSWORD=x", "looks like a secret"),
        ("COPY jobs jobs", "COPY work work", "COPY work"),
        ("COPY jobs jobs", "COPY tests tests", "COPY tests"),
        ("jobs/train_celeba.py", "jobs/train.py", "no .*jobs/train.py"),
        ('"--output"', '"--outptu"', "did you mean --output"),
        (" \\\n    && rm -rf /var/lib/apt/lists/*", "", "DL3009"),
        ("RUN apt-get update", "RUNN apt-get update", "missing whitespace"),
    ),
    *broken("Dockerfile", "cluster/Dockerfile.dockerignore", ("!jobs\n", "", "COPY jobs"), ("*\n", "", "COPY")),
    *broken(
        "compose",
        "cluster/compose.yaml",
        ("healthcheck:", "heathcheck:", "heathcheck"),
        ("condition: service_healthy", "condition: service_well", "service_well"),
        ("interval: 3s", "interval: [3]", "interval"),
        ("      head:\n        condition", "      haed:\n        condition", "no service 'haed'"),
        ("http://mlflow:5000\n", "http://mlflow:5001\n", "5001"),
        ("http://mlflow:5000\n", "http://tracking:5000\n", "no service 'tracking'"),
        ("@postgres:5432", "@database:5432", "no service 'database'"),
        ("--address=head:6379", "--address=head:6380", "6380"),
        ("--dashboard-host=", "--dashbord-host=", "No such option"),
        ("[mlflow, server,", "[mlflow, server, --workes, '1',", "No such option"),
        ("127.0.0.1:8265:8265", "8265:8265", "open to the network"),
        ("${RAY_AUTH_TOKEN:?run 'make secrets'}", "${RAY_AUTH_TOKEN:-secret}", "RAY_AUTH_TOKEN has a default"),
        ("RAY_AUTH_MODE: token", "RAY_AUTH_MODE: disabled", "no token"),
        ("artifacts:/mnt/artifacts", "artefacts:/mnt/artifacts", "no volume 'artefacts'"),
        ("dockerfile: cluster/Dockerfile", "dockerfile: Dockerfile", "no .*Dockerfile"),
        ("DEVICE: cpu", "DEVICE: cu130", "built for cu130"),
        ("  read_only: true\n", "", "mlflow: read_only"),
        ("cap_drop: [ALL]", "cap_drop: [NET_RAW]", "worker: cap_drop"),
        ("no-new-privileges:true", "no-new-privileges:false", "head: security_opt"),
        ("    <<: *hardened\n    image: postgres", "    image: postgres", "postgres: read_only"),
        ("    pids_limit: 256\n", "", "postgres: pids_limit"),
        ("    user: 999:999", "    user: root", "postgres: user"),
        ("    internal: true", "    internal: false", "a way out"),
        ("    networks: [database]\n", "", "a way out"),
        (", --app-name, basic-auth", "", "no password"),
        ("/run/settings/mlflow_auth.ini:ro", "/run/mlflow_auth.ini:ro", "no file is mounted"),
        (
            "    MLFLOW_TRACKING_PASSWORD: ${MLFLOW_TRACKING_PASSWORD:?run 'make secrets'}\n",
            "",
            "head: no MLFLOW_TRACKING_PASSWORD",
        ),
        ("${CPGAN_OWNER_KEY:?run 'make secrets'}", "${CPGAN_OWNER_KEY:-0}", "CPGAN_OWNER_KEY has a default"),
        ("--behind-proxy", "--behind-proxi", "unknown flag"),
        ("${CPGAN_API_KEY:?run 'make secrets'}", "${CPGAN_API_KEY:-}", "CPGAN_API_KEY has a default"),
        ("127.0.0.1:8000:8000", "8000:8000", "port 8000:8000 is open"),
        ("  command: [ray, start, --head", "  privileged: true\n    command: [ray, start, --head", "privileged is set"),
    ),
    *broken(
        "compose",
        "cluster/compose.gpu.yaml",
        ("  worker:", "  workers:", "no service 'workers'"),
        ("count: all", "cuont: all", "cuont"),
    ),
    *broken("compose", "cluster/kubernetes/base/mlflow.env", ("mlflow:*,", "", "own name"), ("PORT=5000", "PORT=5005", "5000")),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/raycluster.yaml",
        ("rayStartParams", "rayStartParam", "rayStartParam"),
        ("      maxReplicas: 4\n", "", "maxReplicas"),
        ("minReplicas: 0", "minReplicas: 5", "at least"),
        ("minReplicas: 0", 'minReplicas: "0"', "integer"),
        ("mode: token", "mode: tokn", "tokn"),
        ("mode: token", "mode: disabled", "no token"),
        ("secretName: cpgan", "secretName: cpgan2", "no auth_token"),
        ("version: v2", "version: v3", "v3"),
        ("containerPort: 6379", "containerPrt: 6379", "containerPort"),
        ("claimName: shared", "claimName: sharde", "sharde"),
        ("name: shared\n                mountPath", "name: share\n                mountPath", "no volume"),
        ("http://mlflow:5000", "http://mlflow:500", "no service mlflow:500"),
        ("dashboard-host:", "dashboard-hots:", "No such option"),
        ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "ray-head: allowPrivilegeEscalation"),
        (
            "    securityContext:\n      runAsNonRoot: true\n      allow",
            "    securityContext:\n      allow",
            "autoscaler: runAsNonRoot",
        ),
        (
            "            readOnlyRootFilesystem: true",
            "            readOnlyRootFilesystem: false",
            "ray-worker: readOnlyRootFilesystem",
        ),
        (
            "        containers:\n          - name: ray-head",
            INIT + "        containers:\n          - name: ray-head",
            "install: capabilities.drop",
        ),
        ("              drop: [ALL]", "              drop: [NET_RAW]", "ray-worker: capabilities.drop"),
        ("mountPath: /tmp\n              -", "mountPath: /var/tmp\n              -", "no emptyDir at /tmp"),
        ("medium: Memory # counts", 'medium: "" # counts', "no memory at /dev/shm"),
        ("- name: CPGAN_OWNER_KEY", "- name: CPGAN_KEY", "ray-worker has no CPGAN_OWNER_KEY"),
        ("ray.io/v1", "ray.io/v2", "not of KubeRay"),
        ("automountServiceAccountToken: false", "restartPolicy: Always", "restartPolicy"),
    ),
    *broken("kubernetes", "cluster/kubernetes/base/mlflow.yaml", ("replicas: 1", "replicas: one", "replicas")),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/mlflow.yaml",
        ("selector:\n    app: mlflow", "selector:\n    app: flow", "selects no"),
    ),
    *broken("kubernetes", "cluster/kubernetes/base/mlflow.yaml", ("key: postgres_password", "key: postgres", "no secret")),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/mlflow.yaml",
        ("name: mlflow\n          env:", "name: flow\n          env:", "config map"),
    ),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/postgres.yaml",
        ("apps/v1", "apps/v2", "schema"),
        ("serviceName", "servicName", "servic"),
    ),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/postgres.yaml",
        ("            readOnlyRootFilesystem: true\n", "", "postgres: readOnlyRootFilesystem"),
        ("      automountServiceAccountToken: false\n", "", "has its token"),
        ("      containers:", "      hostNetwork: true\n      containers:", "hostNetwork is set"),
    ),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/mlflow.yaml",
        (", --app-name, basic-auth", "", "no password"),
        ("key: mlflow_password", "key: password", "no secret has 'password'"),
        ("name: mlflow-auth", "name: auth", "no config map 'auth'"),
    ),
    *broken(
        "network",
        "cluster/kubernetes/base/network.yaml",
        ("policyTypes: [Ingress, Egress]\n---\n# Names", "policyTypes: [Ingress]\n---\n# Names", "no policy refuses"),
        ("        - port: 5000\n---\n# The dashboard", "---\n# The dashboard", "Egress: head reaches port 5432 of mlflow"),
        ("        - port: 8265\n---\n# The head", "---\n# The head", "Ingress: submitter reaches port 6379 of head"),
        ("              app: postgres\n      ports", "              app: mlflow\n      ports", "mlflow does not reach port 5432"),
        ("      ray.io/node-type: head\n  policyTypes", '      ray.io/is-ray-node: "yes"\n  policyTypes', "worker.* may leave"),
        ("        values: [postgres]", "        values: [mlflow]", "DNS is open"),
    ),
    *broken("kubernetes", "cluster/kubernetes/base/storage.yaml", ("[ReadWriteMany]", "ReadWriteMany", "accessModes")),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/network.yaml",
        ("app: mlflow", "app: ml", "selects no"),
        ("policyTypes", "types", "types"),
        ("k8s-app: kube-dns", "k8s-app: dns", "selects no"),
    ),
    *broken(
        "kubernetes",
        "cluster/kubernetes/base/kustomization.yaml",
        ("  - network.yaml\n", "", "network.yaml"),
        ("secrets.env", "s.env", "s.env"),
    ),
    *broken("kubernetes", "cluster/kubernetes/gpu/kustomization.yaml", ("/limits/nvidia", "/limit/nvidia", "limit")),
    *broken("kubernetes", "cluster/kubernetes/cpu/kustomization.yaml", ("[ReadWriteOnce]", "ReadWriteOnce", "accessModes")),
    *broken(
        "kubernetes", "cluster/kubernetes/job/kustomization.yaml", ("[spec.rayClusterSpec]", "[spec.rayCluster]", "rayCluster")
    ),
    *broken(
        "kubernetes",
        "cluster/kubernetes/job/rayjob.yaml",
        ("backoffLimit", "backofLimit", "backofLimit"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "shutdownAfterJobFinishes"),
        ("submissionMode: K8sJobMode", "submissionMode: JobMode", "JobMode"),
        ("--runtime.startup-timeout-s", "--runtime.wiat-s", "wiat-s"),
        ("train_or_resume.sh", "train.sh", "no .*train.sh"),
        ("            readOnlyRootFilesystem: true\n", "", "ray-job-submitter: readOnlyRootFilesystem"),
    ),
    *broken(
        "kubernetes",
        "cluster/kubernetes/service/rayservice.yaml",
        ("proxy_location: Disabled", "proxy_location: Nowhere", "Nowhere"),
        ("num_replicas: 2", "num_replicas: many", "num_replicas"),
        ("service.replica:build", "service.replica:built", "replica:built"),
        ("name: Bob", "name: Alice", "no deployment 'Alice'"),
        ("port: 8000\n          behind", "prt: 8000\n          behind", "args has 'prt'"),
        ("behind_proxy: true", "behind_proxy: false", "there is no TLS"),
        ("demo: false", "limits: {rate: 0}", "limits.rate is 0"),
        ("demo: false", "limits: {codes: 1}", "choose from max_body_bytes"),
        ("bundles:", "bundle:", "no bundles"),
        ("containerPort: 8000", "containerPort: 8001", "does not listen"),
        ("- name: CPGAN_API_KEY", "- name: API_KEY", "no CPGAN_API_KEY"),
        ("key: api_key", "key: apikey", "no secret has 'apikey'"),
        ("upgradeStrategy:", "upgradeStrategie:", "upgradeStrategie"),
        ("rayClusterConfig:", "rayClusterSpec:", "rayClusterConfig"),
        ("mode: token", "mode: disabled", "no token"),
        ("                readOnlyRootFilesystem: true\n", "", "ray-head: readOnlyRootFilesystem"),
    ),
    *broken("kubernetes", "cluster/kubernetes/service/network.yaml", ("app: bob", "app: bobby", "selects no pod")),
    *broken(
        "vms",
        "cluster/vms/aws.yaml",
        ("idle_timeout_minutes", "idle_timeout", "idle_timeout"),
        ("head_node_type: head", "head_node_type: haed", "head_node_type"),
        ("max_workers: 4", "max_workers: four", "four"),
        ("min_workers: 0", "min_workers: 1", "does not stop"),
        ("container_name", "containername", "container & image name"),
        ("{CPU: 8, GPU: 1}", "{CPU: 8, GPU: 0.5}", "0.5"),
        ("MarketType: spot", "MarketType: capacity-block", "not a spot"),
        ("  ~/.ray/auth_token: ~/.ray/auth_token", "  ~/.ray/token: ~/.ray/token", "no token"),
        ("ray start --head", "ray start --haed", "No such option"),
        ("--artifacts-destination", "--artefacts", "No such option"),
        ("--app-name basic-auth ", "", "no password"),
        ("env $(cat ~/.cpgan.env) MLFLOW_TRACKING_URI=http://$RAY", "env MLFLOW_TRACKING_URI=http://$RAY", "worker: no secrets"),
        ("    - --cap-drop ALL\n", "", "--cap-drop ALL"),
    ),
    *broken(
        "vms",
        "cluster/vms/gcp.yaml",
        ("provider:\n  type: gcp", "provider:\n  kind: gcp", "type"),
        ("preemptible: true", "x: 1", "spot"),
    ),
]


@pytest.mark.parametrize("case", BREAKAGES, ids=lambda case: f"{case.file}: {case.new.strip()[:40]!r}")
def test_check_of_a_broken_file_finds_the_error(case, copy):
    path = copy / case.file
    text = path.read_text()
    assert case.old in text
    path.write_text(text.replace(case.old, case.new))
    errors = CHECKS[case.check](copy)
    assert [error for error in errors if re.search(case.error, error)], errors
