"""From samples to figures and verdicts, host latency and device time each by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from polarprune_deploy.comparisons import Comparison, DeviceTime, Sample, WarmUp
from polarprune_deploy.gpu_state import GpuReport
from polarprune_deploy.statistics import (
    CONTROL_CONFIDENCE,
    RatioInterval,
    Verdict,
    corrected_confidence,
    decide,
    paired_ratio,
)
from polarprune_deploy.timing import Entrant

# Above this share of the CPU time taken by hypervisor or quota, what is timed is the queue.
THROTTLED_SHARE = 0.10


@dataclass(frozen=True)
class Circumstances:
    """What was asked for, and what the machine did meanwhile."""

    family: int
    scenario: str
    cache: str
    evicted_bytes: int
    across_precisions: bool
    stolen_share: float
    gpu: GpuReport | None
    reference_errors: dict[str, float]

    def throttled(self) -> str | None:
        """Why the machine was not itself; None where it was."""
        if self.stolen_share > THROTTLED_SHARE:
            return f"the machine throttled: {self.stolen_share:.0%} of the CPU time was taken away"
        held = None if self.gpu is None else self.gpu.throttled()
        return None if held is None else f"the machine throttled: {held}"


@dataclass(frozen=True)
class _Judged:
    effect: RatioInterval
    control: RatioInterval
    verdict: Verdict
    reason: str


def conclude(
    against: Entrant,
    pair: tuple[Entrant, Entrant],
    samples: Sequence[Sample],
    warm_ups: Sequence[WarmUp],
    circumstances: Circumstances,
) -> Comparison:
    """The comparison of one candidate; each quantity it has counts in the family."""
    candidate, control = pair
    roles = (against.role, candidate.role, control.role)
    mine = [sample for sample in samples if sample.network in roles]
    on_device = all(sample.device_ns is not None for sample in mine)
    family = circumstances.family * (2 if on_device else 1)
    # Samples lie in round order, so equal positions in these rows are one round.
    times = {role: [s.run_ms for s in mine if s.network == role] for role in roles}
    host = _judge(times, roles, family, circumstances)
    device = _device_time(mine, roles, family, circumstances) if on_device else None
    errors = circumstances.reference_errors
    return Comparison(
        backend=candidate.runner.backend,
        device=candidate.runner.device,
        precision=candidate.runner.precision,
        batch=samples[0].batch,
        against=against.runner.name,
        candidate=candidate.runner.name,
        against_ms=median(times[against.role]),
        ms=median(times[candidate.role]),
        effect=host.effect,
        control=host.control,
        verdict=host.verdict,
        reason=host.reason,
        settings=dict(candidate.runner.settings),
        sha256={"against": against.runner.sha256, "candidate": candidate.runner.sha256},
        stolen_share=circumstances.stolen_share,
        warm_ups=tuple(w for w in warm_ups if w.network in roles),
        samples=tuple(mine),
        device_time=device,
        scenario=circumstances.scenario,
        cache=circumstances.cache,
        evicted_bytes=circumstances.evicted_bytes,
        against_precision=(against.runner.precision if circumstances.across_precisions else None),
        reference_errors={
            side: errors[entrant.role]
            for side, entrant in (("against", against), ("candidate", candidate))
            if entrant.role in errors
        },
        gpu=circumstances.gpu,
    )


def _judge(
    times: dict[str, list[float]],
    roles: tuple[str, str, str],
    family: int,
    circumstances: Circumstances,
) -> _Judged:
    against, candidate, control = (times[role] for role in roles)
    effect = paired_ratio(against, candidate, confidence=corrected_confidence(family))
    twin = paired_ratio(
        candidate, control, confidence=corrected_confidence(family, CONTROL_CONFIDENCE)
    )
    verdict, reason = decide(effect, twin)
    throttled = circumstances.throttled()
    if throttled is not None:
        verdict, reason = "inconclusive", throttled
    return _Judged(effect, twin, verdict, reason)


def _device_time(
    samples: Sequence[Sample],
    roles: tuple[str, str, str],
    family: int,
    circumstances: Circumstances,
) -> DeviceTime:
    times = {role: [s.device_ms for s in samples if s.network == role] for role in roles}
    judged = _judge(times, roles, family, circumstances)
    enqueue = {
        role: [(s.enqueue_ns or 0) / s.repetitions / 1e6 for s in samples if s.network == role]
        for role in roles
    }
    against, candidate, _ = roles
    return DeviceTime(
        against_ms=median(times[against]),
        ms=median(times[candidate]),
        against_enqueue_ms=median(enqueue[against]),
        enqueue_ms=median(enqueue[candidate]),
        effect=judged.effect,
        control=judged.control,
        verdict=judged.verdict,
        reason=judged.reason,
    )
