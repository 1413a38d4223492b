"""What to change, sorted by what it would save; measured where a cheap measurement was possible."""

from dataclasses import dataclass

from polarprune_deploy.layers.gap_budget import Budget, Cause
from polarprune_deploy.layers.layer_times import Measured, Padded

WORTH = 0.02
"""Of a run: less than this is no advice."""
OVERHEAD_SHARE = 0.15
"""Of a run outside of kernels, from which on that is worth attacking by itself."""
LARGER_BATCH = 8
PADDING_TIE = 1.01

WITH_EACH_LAYER: tuple[Cause, ...] = (
    "multiples", "rounding", "memory", "rate", "layout", "others", "launches",
)  # fmt: skip
"""What a layer costs beyond its MACs, and so is saved where the whole layer goes."""


@dataclass(frozen=True)
class Change:
    """One piece of advice; `gain_ms` of a run at this batch size."""

    what: str
    gain_ms: float
    measured: bool
    basis: str


def best_padding(measured: Measured) -> Padded | None:
    """The fastest padded network, the smallest multiple of those within 1 %, if it saves time.

    Where layers were padded one by one, what counts is the sum over the layers that gain by it.
    """
    times: dict[int, float] = {}
    now, kernels = measured.pruned.run_ms, measured.pruned.kernel_ms
    own = measured.pruned.layer_ms()
    least = max(measured.noise_ms, 0.01 * now)
    for padded in measured.padded:
        if padded.kernel_ms is not None and kernels - padded.kernel_ms <= least:
            continue  # a run that was shorter between the kernels says nothing about counts
        gains = [own[name] - ms for name, ms in padded.layer_ms.items() if name in own]
        estimated = now - sum(gain for gain in gains if gain > 0)
        times[padded.multiple] = estimated if padded.run_ms is None else padded.run_ms
    if not times or now - min(times.values()) <= least:
        return None
    close = [m for m, ms in times.items() if ms <= PADDING_TIE * min(times.values())]
    return next(padded for padded in measured.padded if padded.multiple == min(close))


def worthwhile_changes(measured: Measured, budget: Budget, best: Padded | None) -> list[Change]:
    """At most three, the largest gain first; none below 2 % of a run or its noise.

    Gains overlap: what padding saves, removing whole blocks would save too.
    """
    changes = [
        *_padding(measured, budget, best),
        *_blocks(budget),
        *_where(budget),
        *_overhead(measured),
        *_half_precision(measured, budget),
    ]
    least = max(WORTH * budget.measured_ms, measured.noise_ms)
    worth = [change for change in changes if change.gain_ms > least]
    return sorted(worth, key=lambda change: -change.gain_ms)[:3]


def _padding(measured: Measured, budget: Budget, best: Padded | None) -> list[Change]:
    if best is None:
        return []
    what = f"channel counts in multiples of {best.multiple}: train with --align {best.multiple}"
    if best.run_ms is None:
        return [
            Change(what, budget.ms("multiples"), False, "its layers padded were timed one by one")
        ]
    basis = (
        f"measured: this network with zero channels added up to the multiple, same outputs, took "
        f"{best.run_ms:.3f} ms"
    )
    gain = budget.measured_ms - best.run_ms
    if best.kernel_ms is not None and measured.pruned.kernel_ms - best.kernel_ms < gain:
        # The smaller one: the other is partly what lay between kernels.
        gain = measured.pruned.kernel_ms - best.kernel_ms
        basis += ", of which its kernels save this much"
    return [Change(what, gain, True, basis)]


def _blocks(budget: Budget) -> list[Change]:
    left = sum(cost.pair.pruned is not None for cost in budget.layers)
    thin = sum(
        cost.pair.pruned is not None and cost.pair.kept_macs < 1 and cost.pair.excess_ms > 0
        for cost in budget.layers
    )
    gain = min(sum(budget.ms(cause) for cause in WITH_EACH_LAYER), budget.gap_ms)
    if 2 * thin <= left:
        return []
    return [
        Change(
            "as many MACs in whole blocks instead of channels: --granularity block",
            gain,
            False,
            f"estimated, at most: {thin} of {left} layers became thinner and take more than "
            "their MACs; a block that is gone takes its whole time with it",
        )
    ]


def _where(budget: Budget) -> list[Change]:
    dense = sum(cost.pair.dense_ms for cost in budget.layers)
    macs = sum(cost.pair.dense.macs for cost in budget.layers if cost.pair.dense)
    if not dense or not macs:
        return []
    costly = [
        cost.pair
        for cost in budget.layers
        if cost.pair.dense
        and cost.pair.pruned
        and cost.pair.kept_macs > budget.kept_macs
        and cost.pair.dense_ms / dense > 1.2 * cost.pair.dense.macs / macs
    ]
    costly.sort(key=lambda pair: -pair.by_macs_ms)
    if not costly:
        return []
    names = ", ".join(pair.name for pair in costly[:3])
    return [
        Change(
            f"prune where a MAC costs more time: {names}",
            budget.ms("where"),
            False,
            "estimated: MACs were taken mostly where they run fast",
        )
    ]


def _overhead(measured: Measured) -> list[Change]:
    times = measured.pruned
    if times.between_ms <= OVERHEAD_SHARE * times.run_ms:
        return []
    share = f"{times.between_ms / times.run_ms:.0%} of the run passes outside of its kernels"
    if measured.device == "cuda":
        return [
            Change(
                "replay a CUDA graph instead of launching kernel by kernel",
                times.between_ms,
                False,
                f"estimated, at most: {share}",
            )
        ]
    larger = LARGER_BATCH * measured.batch
    return [
        Change(
            f"batches of {larger} instead of {measured.batch}, where requests can wait",
            times.between_ms * (1 - 1 / LARGER_BATCH),
            False,
            f"estimated, a run's share of the larger one: {share}",
        )
    ]


def _half_precision(measured: Measured, budget: Budget) -> list[Change]:
    """Half the bytes; on a CPU, which computes fp16 in float32, it is no advice."""
    if measured.device == "cpu" or measured.settings.get("precision") in ("fp16", "bf16", "int8"):
        return []
    bound = [
        cost.pair.pruned_ms
        for cost in budget.layers
        if cost.pair.pruned and measured.roof.bound(cost.pair.pruned) == "memory"
    ]
    share = sum(bound) / budget.measured_ms
    return [
        Change(
            "fp16: export with --precision fp16",
            sum(bound) / 2,
            False,
            f"estimated: {share:.0%} of the time is bound by memory, and half the bytes move",
        )
    ]
