"""Does what the server counted agree with what its clients saw?"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.server_process import ServerProcess

SAMPLE = re.compile(r"(\w+)\{([^}]*)\} ([0-9.eE+-]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Line:
    """One sum that must come out.

    Attributes:
        what: in words.
        least, most: what the clients' counts allow.
        server: what the server counted.
    """

    what: str
    least: int
    most: int
    server: int

    @property
    def adds_up(self) -> bool:
        """Whether it does."""
        return self.least <= self.server <= self.most

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return {**vars(self), "adds_up": self.adds_up}


@dataclass(frozen=True)
class ServerCounts:
    """Of one model, all versions together, as the metrics tell it."""

    success: int
    images: int
    failures: Counter[str]


def read_counts(server: ServerProcess, model: str, port: str = "http") -> ServerCounts:
    """From the metrics.

    Raises:
        OSError: the server is gone.
    """
    text = server.ask("/metrics", port=port)[1].decode()
    sums: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for name, inside, value in SAMPLE.findall(text):
        labels = dict(LABEL.findall(inside))
        if labels.get("model") != model:
            continue
        sums[name] += int(float(value))
        if name == "nv_inference_request_failure":
            failures[labels["reason"]] += int(float(value))
    return ServerCounts(
        sums["nv_inference_request_success"], sums["nv_inference_count"], failures
    )  # fmt: skip


def read_statistics(server: ServerProcess, model: str) -> ServerCounts:
    """The same from Triton's statistics, which do not tell failures apart."""
    listed = json.loads(server.ask("/v2/models/stats")[1])["model_stats"]
    ours = [entry for entry in listed if entry["name"] == model]
    return ServerCounts(
        sum(entry["inference_stats"]["success"]["count"] for entry in ours),
        sum(entry["inference_count"] for entry in ours),
        Counter(all=sum(entry["inference_stats"]["fail"]["count"] for entry in ours)),
    )
