"""The fields of KubeRay's resources by name and type (API ray.io/v1, operator 1.6), without those of Kubernetes' own pods.

Taken from the API's reference, because no package contains the CRDs. `kubectl apply --dry-run=server` checks against a cluster that
has them.
"""

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def record(required: str = "", **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


POD: Schema = {"type": "object", "required": ["spec"]}
"""Checked separately: see `pods`."""
AUTOSCALER = record(
    version=one_of("v1", "v2"),
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    **dict.fromkeys(("resources", "securityContext"), {"type": "object"}),
    **dict.fromkeys(("env", "envFrom", "volumeMounts"), {"type": "array"}),
)
HEAD = record(
    "template",
    template=POD,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    headService=ANY,
    enableIngress=FLAG,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)
WORKERS = record(
    "groupName maxReplicas minReplicas template",
    groupName=TEXT,
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"), COUNT),
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    template=POD,
    scaleStrategy=record(workersToDelete={"type": "array", "items": TEXT}),
    suspend=FLAG,
)
CLUSTER = record(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=record(mode=one_of("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    headServiceAnnotations=TEXTS,
    gcsFaultToleranceOptions={"type": "object"},
    managedBy=TEXT,
    suspend=FLAG,
)
JOB = record(
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    **dict.fromkeys(("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"), COUNT),
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=record(backoffLimit=COUNT),
    submitterPodTemplate=POD,
    deletionStrategy={"type": "object"},
    managedBy=TEXT,
    rayClusterSpec=CLUSTER,
)
SERVICE = record(
    "rayClusterConfig",
    serveConfigV2=TEXT,
    rayClusterConfig=CLUSTER,
    upgradeStrategy=record(type=one_of("None", "NewCluster", "NewClusterWithIncrementalUpgrade"), clusterUpgradeOptions=ANY),
    serveService=ANY,
    excludeHeadPodFromServeSvc=FLAG,
    suspend=FLAG,
    managedBy=TEXT,
    **dict.fromkeys(
        ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold", "rayClusterDeletionDelaySeconds"), COUNT
    ),
)
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE}
CLUSTERS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Kind -> the field with its cluster."""


def cluster_of(resource: Schema) -> Schema:
    return resource["spec"] if resource["kind"] == "RayCluster" else resource["spec"].get(CLUSTERS[resource["kind"]], {})


def pods(resource: Schema) -> list[Schema]:
    """Pod templates of a RayCluster, RayJob or RayService."""
    cluster = cluster_of(resource)
    groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", [])]
    own = resource["spec"].get("submitterPodTemplate")
    return [*(group.get("template", {}) for group in groups), *([own] if own else [])]


def errors(resource: Schema) -> list[str]:
    """What the API server or the operator would refuse in a resource."""
    kind, spec, name = resource["kind"], resource["spec"], resource["metadata"]["name"]
    if resource["apiVersion"] != "ray.io/v1" or kind not in KINDS:
        return [f"{resource['apiVersion']} {kind}: not of KubeRay"]
    messages = [f"{kind} {name}: {e.json_path} {e.message}" for e in Draft202012Validator(KINDS[kind]).iter_errors(spec)]
    if messages:
        return messages
    cluster = cluster_of(resource)
    rules = {
        "the name is longer than 47 letters": len(name) > 47,
        "autoscaler v2 restarts no pods: leave restartPolicy out": cluster.get("enableInTreeAutoscaling")
        and any(pod.get("spec", {}).get("restartPolicy", "Never") != "Never" for pod in pods(resource)),
        "more workers at least than at most": any(
            group.get("minReplicas", 0) > group.get("maxReplicas", 0) for group in cluster.get("workerGroupSpecs", [])
        ),
    }
    if kind == "RayJob":
        rules |= {
            "either rayClusterSpec or clusterSelector": bool(spec.get("rayClusterSpec")) == bool(spec.get("clusterSelector")),
            "clusterSelector takes no backoffLimit": spec.get("clusterSelector") and spec.get("backoffLimit"),
            "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": spec.get("ttlSecondsAfterFinished")
            and not spec.get("shutdownAfterJobFinishes"),
        }
    return [f"{kind} {name}: {rule}" for rule, broken in rules.items() if broken]
