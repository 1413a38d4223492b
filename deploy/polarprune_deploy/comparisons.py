"""The result of a latency comparison: raw samples, and what was concluded from them."""

from dataclasses import asdict, dataclass, field

from polarprune_deploy.gpu_state import GpuReport
from polarprune_deploy.statistics import (
    Percentile,
    RatioInterval,
    Verdict,
    allowed_percentiles,
)


@dataclass(frozen=True)
class Sample:
    """One network in one round: `repetitions` runs one after the other.

    Attributes:
        elapsed_ns: host latency of all runs together.
        run_ns: of each run, where each was timed by itself.
        device_ns: device time of as many runs that followed, each.
        enqueue_ns: host time to queue those runs.
        build: which build it is of.
    """

    batch: int
    round: int
    position: int
    network: str
    repetitions: int
    elapsed_ns: int
    cache: str = "warm"
    run_ns: tuple[int, ...] | None = None
    device_ns: tuple[int, ...] | None = None
    enqueue_ns: int | None = None
    build: int = 0

    @property
    def run_ms(self) -> float:
        """Mean host latency of one run in this block."""
        return self.elapsed_ns / self.repetitions / 1e6

    @property
    def device_ms(self) -> float:
        """Mean device time of one run.

        Raises:
            ValueError: the device did not tell any.
        """
        if self.device_ns is None:
            raise ValueError("this sample has no device time")
        return sum(self.device_ns) / len(self.device_ns) / 1e6


@dataclass(frozen=True)
class WarmUp:
    """What it took until the runs of one network were steady: its cold start.

    `prepare_ms` is the time to bind buffers, the very first run included.
    """

    network: str
    load_ms: float
    prepare_ms: float
    runs: int
    steady_run_ms: float
    stable: bool


@dataclass(frozen=True)
class DeviceTime:
    """The same comparison on the device's own clock, and the host's time to queue a run."""

    against_ms: float
    ms: float
    against_enqueue_ms: float
    enqueue_ms: float
    effect: RatioInterval
    control: RatioInterval
    verdict: Verdict
    reason: str

    def as_json(self) -> dict[str, object]:
        """The `device_time` of a row."""
        return {
            "against_ms": self.against_ms,
            "ms": self.ms,
            **self.effect.as_json(),
            "verdict": self.verdict,
            "reason": self.reason,
            "control": self.control.as_json(),
            "against_enqueue_ms": self.against_enqueue_ms,
            "enqueue_ms": self.enqueue_ms,
        }


@dataclass(frozen=True)
class Comparison:
    """One candidate against one network, at one batch size.

    Attributes:
        against_ms, ms, effect, control, verdict: of host latency, always.
        device_time: the same on the device's clock, where it tells.
        against_precision: where comparing across precisions was asked for.
        evicted_bytes: written before each cold run; 0 where runs are warm.
        reference_errors: largest relative error of each side against a float32 reference.
        builds: where everything was loaded several times, the comparison of each build.
    """

    backend: str
    device: str
    precision: str
    batch: int
    against: str
    candidate: str
    against_ms: float
    ms: float
    effect: RatioInterval
    control: RatioInterval
    verdict: Verdict
    reason: str
    settings: dict[str, str | int | float]
    sha256: dict[str, str]
    stolen_share: float
    warm_ups: tuple[WarmUp, ...]
    samples: tuple[Sample, ...]
    device_time: DeviceTime | None = None
    scenario: str = "offline"
    cache: str = "warm"
    evicted_bytes: int = 0
    against_precision: str | None = None
    reference_errors: dict[str, float] = field(default_factory=dict)
    gpu: GpuReport | None = None
    builds: tuple["Comparison", ...] = ()

    @property
    def label(self) -> str:
        """What was measured, to stand beside every number."""
        where = "CPU, not a GPU claim" if self.device == "cpu" else self.device
        return f"host latency, {self.cache} caches ({where})"

    def row(self) -> dict[str, object]:
        """The row of `bench --json`."""
        row: dict[str, object] = {
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "batch": self.batch,
            "against_ms": self.against_ms,
            "ms": self.ms,
            **self.effect.as_json(),
            "verdict": self.verdict,
            "control": self.control.as_json(),
            "against": self.against,
            "candidate": self.candidate,
            "quantity": "host latency",
            "cache": self.cache,
            "scenario": self.scenario,
            "against_images_per_second": self.batch * 1e3 / self.against_ms,
            "images_per_second": self.batch * 1e3 / self.ms,
            "reason": self.reason,
        }
        if "mode" in self.settings:
            row["mode"] = self.settings["mode"]
        if self.against_precision is not None:
            row["against_precision"] = self.against_precision
        if self.device_time is not None:
            row["device_time"] = self.device_time.as_json()
        if self.scenario == "single_stream":
            row["percentiles"] = {
                network: {"n": self.single_runs(network), **_as_json(found)}
                for network, found in self.percentiles().items()
            }
        if self.builds:
            row["builds"] = [_build_row(build) for build in self.builds]
        return row

    def conclusions(self) -> dict[str, object]:
        """Everything but the raw samples, for a record."""
        return {
            "label": self.label,
            **self.row(),
            "confidence": self.effect.confidence,
            "control_confidence": self.control.confidence,
            "rounds": self.effect.rounds,
            "settings": self.settings,
            "sha256": self.sha256,
            "stolen_share": self.stolen_share,
            "evicted_bytes": self.evicted_bytes,
            "reference_errors": self.reference_errors,
            "gpu": None if self.gpu is None else self.gpu.as_dict(),
            "spread": self.spread(),
            "warm_ups": [asdict(warm_up) for warm_up in self.warm_ups],
        }

    def spread(self) -> dict[str, dict[str, float]]:
        """Per network: number of blocks, the percentiles that so many allow, and the maximum."""
        spread: dict[str, dict[str, float]] = {}
        for network in dict.fromkeys(sample.network for sample in self.samples):
            times = [sample.run_ms for sample in self.samples if sample.network == network]
            spread[network] = {
                "n": len(times),
                **{f"p{found.percent}_ms": found.value for found in allowed_percentiles(times)},
                "max_ms": max(times),
            }
        return spread

    def percentiles(self) -> dict[str, list[Percentile]]:
        """Of both sides' runs, in milliseconds: those percentiles that so many runs allow.

        Runs of one block follow each other, so they are not independent; the intervals take them
        to be.
        """
        sides = {"against": _first_role(self, "against"), "candidate": _first_role(self, "cand")}
        return {side: allowed_percentiles(self._single_ms(role)) for side, role in sides.items()}

    def single_runs(self, side: str) -> int:
        """How many runs of a side, "against" or "candidate", were timed by themselves."""
        return len(self._single_ms(_first_role(self, side[:4])))

    def _single_ms(self, role: str) -> list[float]:
        return [
            ns / 1e6
            for sample in self.samples
            if sample.network == role
            for ns in sample.run_ns or ()
        ]


def _first_role(comparison: Comparison, start: str) -> str:
    """The role ("candidate", or "candidate_1" among several) that begins so."""
    return next(s.network for s in comparison.samples if s.network.startswith(start))


def _as_json(found: list[Percentile]) -> dict[str, object]:
    return {f"p{one.percent}_ms": one.as_json() for one in found}


def _build_row(build: Comparison) -> dict[str, object]:
    kept = ("against_ms", "ms", "speedup", "ci_low", "ci_high", "verdict", "reason", "control")
    row = build.row()
    return {key: row[key] for key in (*kept, "device_time") if key in row}
