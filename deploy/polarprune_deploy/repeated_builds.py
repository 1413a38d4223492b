"""One row from several builds: what a backend chose by chance must not decide a verdict.

A build loads everything afresh. Kernels that a library picks by timing them, where buffers lie,
what a compiler made: all of it is drawn once a build, and rounds within a build cannot show it.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from polarprune_deploy.comparisons import Comparison, DeviceTime
from polarprune_deploy.statistics import RatioInterval, Verdict


def combine_builds(builds: Sequence[Comparison]) -> Comparison:
    """The median build, with the interval that holds those of all builds.

    Args:
        builds: of one candidate and batch size; each with a confidence corrected for their number.
            A single one is returned as it is.
    """
    if len(builds) == 1:
        return builds[0]
    verdict, reason = _agreed(builds)
    return replace(
        builds[0],
        against_ms=median(build.against_ms for build in builds),
        ms=median(build.ms for build in builds),
        effect=_spanning([build.effect for build in builds]),
        control=_spanning([build.control for build in builds]),
        verdict=verdict,
        reason=reason,
        stolen_share=max(build.stolen_share for build in builds),
        warm_ups=tuple(warm_up for build in builds for warm_up in build.warm_ups),
        samples=tuple(
            replace(sample, build=number)
            for number, build in enumerate(builds)
            for sample in build.samples
        ),
        device_time=_combine_device([build.device_time for build in builds]),
        builds=tuple(builds),
    )


def _agreed(builds: Sequence[Comparison | DeviceTime]) -> tuple[Verdict, str]:
    if len({build.verdict for build in builds}) == 1:
        return builds[0].verdict, f"all {len(builds)} builds: {builds[0].reason}"
    speedups = [build.effect.speedup for build in builds]
    return "inconclusive", f"builds differ: {min(speedups):.2f} to {max(speedups):.2f}"


def _spanning(intervals: Sequence[RatioInterval]) -> RatioInterval:
    return replace(
        intervals[0],
        speedup=median(interval.speedup for interval in intervals),
        ci_low=min(interval.ci_low for interval in intervals),
        ci_high=max(interval.ci_high for interval in intervals),
    )


def _combine_device(times: Sequence[DeviceTime | None]) -> DeviceTime | None:
    found = [time for time in times if time is not None]
    if len(found) < len(times):
        return None
    verdict, reason = _agreed(found)
    return DeviceTime(
        against_ms=median(time.against_ms for time in found),
        ms=median(time.ms for time in found),
        against_enqueue_ms=median(time.against_enqueue_ms for time in found),
        enqueue_ms=median(time.enqueue_ms for time in found),
        effect=_spanning([time.effect for time in found]),
        control=_spanning([time.control for time in found]),
        verdict=verdict,
        reason=reason,
    )
