"""What the page shows: the models, their certificates, and how they do just now."""

import dataclasses
from typing import Any

import polarprune
from polarprune_deploy.serving.classification import why_not_classified
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.served_model import ServedModel

QUANTILES = (0.5, 0.9, 0.99)


def status_document(repository: Repository) -> dict[str, Any]:
    """Everything the page needs, as JSON."""
    return {
        "version": polarprune.__version__,
        "ready": repository.ready,
        "draining": repository.leaving or repository.draining,
        "index": [vars(entry) for entry in repository.index()],
        "models": [_model(model) for model in repository.models],
    }


def _model(model: ServedModel) -> dict[str, Any]:
    facts, manifest = model.facts, model.facts.manifest
    now = model.counters.snapshot()
    throughput, latencies = model.counters.recent()
    return {
        "name": facts.name,
        "version": facts.version,
        "network": manifest.name,
        "precision": manifest.precision,
        "runs": facts.runs,
        "batch": {
            "most": facts.signature.most,
            "size": facts.policy.size,
            "window_ms": facts.policy.window * 1e3,
        },
        "classes": len(manifest.classes),
        "image": _image(model),
        "cannot_classify": why_not_classified(facts),
        "accuracy": None if manifest.accuracy is None else dataclasses.asdict(manifest.accuracy),
        "real_images": manifest.real_images,
        "certificate": [dataclasses.asdict(link) for link in manifest.certificate],
        "verified": list(facts.verified),
        "live": {
            "images_per_second": throughput,
            "latency_ms": {
                f"p{round(100 * q)}": _quantile(latencies, q) for q in QUANTILES
            },
            "waiting": model.batcher.pending,
            "answered": now.success,
            "images": now.inferences,
            "batches": now.executions,
            "failed": now.failures,
        },
    }  # fmt: skip


def _image(model: ServedModel) -> list[int] | None:
    """Height and width that an image is brought to, where images can be sent."""
    steps = model.facts.manifest.preprocessing
    return None if steps is None else [steps.height, steps.width]


def _quantile(ordered: list[float], share: float) -> float | None:
    """Milliseconds; the smallest value that so large a share does not exceed."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3
