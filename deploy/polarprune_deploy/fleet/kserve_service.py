"""A KServe InferenceService (serving.kserve.io/v1beta1) as plain dicts and lists.

It is for KServe's Standard mode (0.16 and later): plain Deployments, which may have three ports,
probes of their own and a grace period, and are scaled by CPU or memory.
"""

import re
from dataclasses import dataclass
from typing import Any

from polarprune.errors import ConfigError, quote
from polarprune.option_values import check_choice, check_range
from polarprune_deploy.fleet.server_image import (
    GRPC_PORT,
    HTTP_PORT,
    METRICS_PORT,
    USER_ID,
    server_arguments,
)

RUNTIMES = ("polarprune", "triton")
TRITON_RUNTIME = "kserve-tritonserver"
"""The ClusterServingRuntime that KServe comes with."""
TRITON_HTTP_PORT = 8080
"""Of that runtime."""

SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 53
"""A label of a host name has 63 characters, and KServe appends "-predictor"."""
SCALE_METRICS = ("cpu", "memory")
STORAGE = ("s3", "gs", "pvc", "hf", "oci", "https", "http", "hdfs", "webhdfs", "file")
CPUS = re.compile(r"\d{1,4}(\.\d{1,3})?|\d{1,7}m")
MEMORY = re.compile(r"\d{1,12}(\.\d{1,3})?(k|[MGTPE]|[KMGTPE]i)?")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*[A-Za-z0-9]")

LAME_DUCK_SECONDS = 5
"""A replica that is to end answers on while the cluster learns that it is not ready."""
GRACE_SECONDS = LAME_DUCK_SECONDS + 10
"""Beyond the drain."""


@dataclass(frozen=True)
class KServeOptions:
    """What the bundle does not say.

    Attributes:
        runtime: "polarprune", the embedded server in an image of its own, or "triton".
        name: of the service; None makes one of the bundle's name.
        image: that the cluster pulls; None makes a name of the bundle's name and digest.
        storage_uri: where KServe fetches the bundle (the Triton repository) from; None puts the
            bundle into the image.
        min_replicas, max_replicas: between these KServe scales.
        scale_metric: "cpu" or "memory".
        scale_target: percent of what a replica asks for that it may use on average.
        cpu, memory: of a replica, as Kubernetes writes them.
        gpus: of a replica, of Triton alone; None takes one where the bundle needs it.
        drain_seconds: how long a replica goes on with what it has taken once it is told to end.
    """

    runtime: str = "polarprune"
    name: str | None = None
    image: str | None = None
    storage_uri: str | None = None
    min_replicas: int = 1
    max_replicas: int = 3
    scale_metric: str = "cpu"
    scale_target: int = 70
    cpu: str = "2"
    memory: str = "2Gi"
    gpus: int | None = None
    drain_seconds: int = 30

    def check(self) -> None:
        """Refuses what KServe or Kubernetes would.

        Raises:
            ConfigError: the option, what it may be, and what was got.
        """
        for option, word, allowed in (
            ("--runtime", self.runtime, RUNTIMES),
            ("--scale-metric", self.scale_metric, SCALE_METRICS),
        ):
            check_choice(option, word, allowed)
        for option, value, low, high in (
            ("--min-replicas", self.min_replicas, 1, 10_000),
            ("--max-replicas", self.max_replicas, self.min_replicas, 10_000),
            ("--scale-target", self.scale_target, 1, 100),
            ("--gpus", self.gpus or 0, 0, 64),
            ("--drain-seconds", self.drain_seconds, 0, 3600),
        ):
            check_range(option, value, low, high)
        for option, text, form, example in (
            ("--cpu", self.cpu, CPUS, "2 or 500m"),
            ("--memory", self.memory, MEMORY, "2Gi or 512Mi"),
        ):
            if not form.fullmatch(text) or not re.search("[1-9]", text):
                raise ConfigError(f"{option} must be a quantity, as {example}, got {quote(text)}")
        if self.name is not None:
            check_service_name(self.name)
        if self.image is not None and not IMAGE.fullmatch(self.image):
            raise ConfigError(
                f"--image must name an image, as registry/name:tag, got {self.image!r}"
            )
        if self.storage_uri is not None:
            _check_storage(self.storage_uri)
        self._check_runtime()

    def _check_runtime(self) -> None:
        if self.runtime == "triton":
            if self.storage_uri is None:
                raise ConfigError(
                    "with --runtime triton KServe fetches the model repository; give "
                    "--storage-uri, where you will put it"
                )
            if self.image is not None:
                raise ConfigError(
                    f"--image is not for --runtime triton ({TRITON_RUNTIME} is one); leave it out"
                )
        elif self.gpus:
            raise ConfigError(
                "--gpus is for --runtime triton; the embedded server's image has CPUs; leave it out"
            )


def service_name(bundle_name: str) -> str:
    """A name that KServe takes, made of a bundle's.

    >>> service_name("torchvision-resnet18_x2")
    'torchvision-resnet18-x2'
    >>> service_name("50.Net-")
    'model-50-net'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", bundle_name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"model-{plain}"
    return plain[:LONGEST_NAME].strip("-")


def check_service_name(name: str) -> None:
    """Refuses a name that KServe would refuse, or that makes too long a host name.

    Raises:
        ConfigError: it is one.
    """
    if not SERVICE_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"--name must have up to {LONGEST_NAME} lower-case letters, digits and '-', the first "
            f"a letter, the last no '-', got {quote(name)}"
        )


def inference_service(
    name: str, image: str | None, manifest_sha256: str, options: KServeOptions
) -> dict[str, Any]:
    """The document.

    Args:
        name: of the service.
        image: of the embedded server; None for Triton, whose runtime has one.
        manifest_sha256: of the bundle, recorded as an annotation.
        options: checked before.
    """
    predictor: dict[str, Any] = {
        "minReplicas": options.min_replicas,
        "maxReplicas": options.max_replicas,
        "scaleMetric": options.scale_metric,
        "scaleTarget": options.scale_target,
        "terminationGracePeriodSeconds": options.drain_seconds + GRACE_SECONDS,
    }
    if image is None:
        predictor["model"] = _triton(options)
    else:
        predictor["annotations"] = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(METRICS_PORT),
            "prometheus.io/path": "/metrics",
        }
        predictor["containers"] = [_container(image, options)]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "hpa",
                "polarprune/manifest-sha256": manifest_sha256,
            },
        },
        "spec": {"predictor": predictor},
    }


def _container(image: str, options: KServeOptions) -> dict[str, Any]:
    environment = [{"name": "PROTOCOL", "value": "v2"}]
    if options.storage_uri is not None:  # for a container of one's own this is how KServe is told
        environment.append({"name": "STORAGE_URI", "value": options.storage_uri})
    return {
        "name": "kserve-container",
        "image": image,
        "args": [
            *server_arguments(options.drain_seconds),
            *("--lame-duck-seconds", str(LAME_DUCK_SECONDS)),
            # The node's CPUs are all in sight; with a thread on each the quota would be used up.
            *("--threads", str(_whole_cpus(options.cpu))),
        ],
        "env": environment,
        # KServe's service leads from port 80 to the first one.
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(options),
        **_probes(HTTP_PORT),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _triton(options: KServeOptions) -> dict[str, Any]:
    return {
        "modelFormat": {"name": "triton"},
        "runtime": TRITON_RUNTIME,
        "protocolVersion": "v2",
        "storageUri": options.storage_uri,
        "resources": _resources(options),
        **_probes(TRITON_HTTP_PORT),
    }


def _whole_cpus(cpu: str) -> int:
    cpus = int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    return max(1, int(cpus))


def _resources(options: KServeOptions) -> dict[str, Any]:
    """Asked for and bounded alike: a replica that is slowed down misses every deadline."""
    amounts = {"cpu": options.cpu, "memory": options.memory}
    if options.gpus:
        amounts["nvidia.com/gpu"] = str(options.gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _probes(port: int) -> dict[str, Any]:
    """Five minutes to load, verify and warm up; traffic while ready; an end when it hangs."""
    ready, live = "/v2/health/ready", "/v2/health/live"
    return {
        "startupProbe": _probe(ready, port, period=2, failures=150),
        "readinessProbe": _probe(ready, port, period=5, failures=2),
        "livenessProbe": _probe(live, port, period=10, failures=3),
    }


def _probe(path: str, port: int, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _check_storage(uri: str) -> None:
    kind, _, place = uri.partition("://")
    if kind not in STORAGE or not place or not uri.isprintable() or " " in uri:
        raise ConfigError(
            f"--storage-uri must begin with one of {', '.join(f'{k}://' for k in STORAGE)}, got "
            f"{quote(uri)}"
        )
