"""Prometheus metrics with Triton's names, so that dashboards made for it show this server."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from polarprune_deploy.serving.counters import LATENCY_BOUNDS_MS
from polarprune_deploy.serving.repository import Repository

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
COUNTERS = {
    "nv_inference_request_success": "Requests that got their result",
    "nv_inference_request_failure": "Requests that got an error, by reason",
    "nv_inference_count": "Images computed; a batch of n counts n",
    "nv_inference_exec_count": "Batches computed",
    "nv_inference_request_duration_us": "Microseconds from arrival to result, summed",
    "nv_inference_queue_duration_us": "Microseconds of waiting, summed",
    "nv_inference_compute_input_duration_us": "Microseconds of putting batches together, summed",
    "nv_inference_compute_infer_duration_us": "Microseconds in the engine, summed",
    "nv_inference_compute_output_duration_us": "Microseconds from engine to sender, summed",
}
PENDING = "nv_inference_pending_request_count"
LATENCY = "nv_inference_first_response_histogram_ms"
READY = "polarprune_ready"
STATE = "polarprune_model_state"


def render_metrics(repository: Repository) -> bytes:
    """All metrics of this moment as text."""
    registry = CollectorRegistry()
    registry.register(_RepositoryCollector(repository))
    ProcessCollector(registry=registry)
    text = generate_latest(registry)
    # The library would add _total to the names of counters; Triton's have none.
    for name in COUNTERS:
        text = text.replace(f"# TYPE {name} gauge\n".encode(), f"# TYPE {name} counter\n".encode())
    return text


class _RepositoryCollector(Collector):
    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        metrics = {name: Metric(name, words, "gauge") for name, words in COUNTERS.items()}
        latency = Metric(LATENCY, "Milliseconds from arrival to result", "histogram")
        for model, version, counters in self._repository.counters:
            labels = {"model": model, "version": version}
            now = counters.snapshot()
            spent = now.duration_ns
            values = {
                "nv_inference_request_success": now.success,
                "nv_inference_count": now.inferences,
                "nv_inference_exec_count": now.executions,
                **{f"nv_inference_{part}_duration_us": ns // 1000 for part, ns in spent.items()},
            }
            for name, value in values.items():
                metrics[name].add_sample(name, labels, value)
            for reason, count in now.failures.items():
                failure = "nv_inference_request_failure"
                metrics[failure].add_sample(failure, {**labels, "reason": reason}, count)
            _add_histogram(latency, labels, now.latency_counts, spent["request"] / 1e6)
        yield from metrics.values()
        yield latency
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        pending = Metric(PENDING, "Requests that wait", "gauge")
        for model in self._repository.models:
            labels = {"model": model.facts.name, "version": model.facts.version}
            pending.add_sample(PENDING, labels, model.batcher.pending)
        yield pending
        ready = Metric(READY, "Whether the server is ready", "gauge")
        ready.add_sample(READY, {}, float(self._repository.ready))
        yield ready
        state = Metric(STATE, "1 for each line of the repository's index", "gauge")
        for entry in self._repository.index():
            labels = {"model": entry.name, "version": entry.version, "state": entry.state}
            state.add_sample(STATE, labels, 1)
        yield state


def _add_histogram(metric: Metric, labels: Labels, counts: list[int], total: float) -> None:
    running = 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS_MS), "+Inf"), counts, strict=True):
        running += count
        metric.add_sample(f"{LATENCY}_bucket", {**labels, "le": bound}, running)
    metric.add_sample(f"{LATENCY}_count", labels, running)
    metric.add_sample(f"{LATENCY}_sum", labels, total)
