"""What a model says of itself and of its work, in the protocol's and Triton's JSON."""

from typing import Any

from polarprune.manifest import TensorSpec
from polarprune_deploy.serving.counters import Counters
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.served_model import ModelFacts
from polarprune_deploy.serving.tensors import DATATYPES

EXTENSIONS = (
    "binary_tensor_data",
    "classification_of_images",
    "model_configuration",
    "model_repository",
    "statistics",
)
SERVER_NAME = "polarprune"
KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
NO_CONTROL = "models are loaded and unloaded by what lies in the served folder, not by requests"


def server_document(version: str) -> dict[str, Any]:
    """Of the server."""
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


def metadata_document(facts: ModelFacts) -> dict[str, Any]:
    """Name, versions, inputs and outputs; the batch is the first side, -1."""
    return {
        "name": facts.name,
        "versions": [facts.version],
        "platform": facts.platform,
        "inputs": [_tensor(spec) for spec in facts.signature.inputs],
        "outputs": [_tensor(spec) for spec in facts.signature.outputs],
    }


def config_document(facts: ModelFacts) -> dict[str, Any]:
    """Triton's model configuration, as far as this server has one; dims are without the batch."""
    return {
        "name": facts.name,
        "platform": facts.platform,
        "backend": "onnxruntime" if facts.platform.startswith("onnx") else "tensorrt",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": facts.signature.most,
        "input": [_configured(spec) for spec in facts.signature.inputs],
        "output": [_configured(spec) for spec in facts.signature.outputs],
        "instance_group": [{"name": facts.name, "kind": KINDS[facts.device], "count": 1}],
        "dynamic_batching": {
            "preferred_batch_size": [facts.policy.size],
            "max_queue_delay_microseconds": round(facts.policy.window * 1e6),
        },
    }


def statistics_document(name: str, version: str, counters: Counters) -> dict[str, Any]:
    """Triton's statistics of one model and version; times are summed nanoseconds."""
    now = counters.snapshot()

    def spent(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    done = now.success
    return {
        "name": name,
        "version": version,
        "last_inference": now.last_ms,
        "inference_count": now.inferences,
        "execution_count": now.executions,
        "inference_stats": {
            "success": spent(done, now.duration_ns["request"]),
            "fail": spent(sum(now.failures.values()), now.fail_ns),
            "queue": spent(done, now.duration_ns["queue"]),
            "compute_input": spent(done, now.duration_ns["compute_input"]),
            "compute_infer": spent(done, now.duration_ns["compute_infer"]),
            "compute_output": spent(done, now.duration_ns["compute_output"]),
            "cache_hit": spent(0, 0),
            "cache_miss": spent(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": spent(size.count, size.input_ns),
                "compute_infer": spent(size.count, size.infer_ns),
                "compute_output": spent(size.count, size.output_ns),
            }
            for rows, size in sorted(now.batches.items())
        ],
    }


def statistics_documents(repository: Repository, name: str, version: str) -> list[dict[str, Any]]:
    """Of one model, or with "" of all that ever served.

    Raises:
        RequestError: UNKNOWN, or REJECTED where it is loading.
    """
    wanted = repository.counters
    if name:
        facts = repository.get(name, version).facts
        wanted = [entry for entry in wanted if entry[:2] == (facts.name, facts.version)]
    return [statistics_document(*entry) for entry in wanted]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{DATATYPES[spec.dtype]}",
        "dims": list(spec.shape[1:]),
    }
