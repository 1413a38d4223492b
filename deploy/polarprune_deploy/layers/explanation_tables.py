"""An explanation for people: plain words first, then where the time goes, then layer by layer."""

from typing import TYPE_CHECKING, Any

from polarprune_deploy.layers.explanation import Explanation
from polarprune_deploy.layers.gap_budget import LAYOUT_OPERATORS, Budget, Cause, LayerCost
from polarprune_deploy.layers.layer_times import Measured, NetworkTimes

if TYPE_CHECKING:
    from rich.table import Table

WORTH_WORDS = 0.03
"""Of the measured time: smaller items stand in the table only."""

NCHWC = "_nchwc"
"""What ends the name of a node that ONNX Runtime computes in blocks of channels."""

SMALL = 0.005
"""Of a run: operators below it on both sides share one row."""

LEFT: tuple[Cause, ...] = ("rate", "rest")
"""They are what no other cause explains: of layers, and of the run."""

SLOWED = 1.02
"""A profile that fits so well needs no words."""

ABOVE_ROOF = 1.1

CAUSES: dict[Cause, str] = {
    "where": "MACs were taken where they cost little time (below 0: much time)",
    "multiples": "channel counts that the kernels run slowly",
    "rounding": "channels that kernels compute although they are not there",
    "memory": "layers that wait for memory",
    "rate": "layers that run fewer MACs a second than before, for no other reason found",
    "better": "layers that run more MACs a second than before",
    "layout": "changes of layout or type between kernels",
    "others": "operators without MACs (pooling, adding; batch norms and activations on their own)",
    "launches": "starting kernels",
    "rest": "unexplained rest",
}


def tell(explanation: Explanation) -> list[Any]:
    """Strings and rich tables, in the order to be read."""
    return [
        "\n".join(words(explanation)),
        budget_table(explanation),
        layer_table(explanation),
    ]


def words(explanation: Explanation) -> list[str]:
    """What happened and what to do, one sentence or two a line."""
    measured, budget = explanation.measured, explanation.budget
    lines = [_headline(measured, budget)]
    if measured.interrupted:
        lines.append(
            "Other processes took CPUs from most of these runs, so time outside of kernels, and "
            "the unexplained rest, are theirs in part: measure again on a quiet machine."
        )
    silent = [layer for layer, ms in measured.pruned.layer_ms().items() if not ms]
    if silent:
        lines.append(
            f"No time was found for {len(silent)} of {len(measured.pruned.layers)} layers "
            f"({', '.join(silent[:3])}): the backend names them otherwise, so they are in the "
            "rows of their operators."
        )
    lines += _about_slowing(measured)
    lines += _about_the_roof(measured)
    lines += _about_counts(explanation)
    lines += _about_lost_blocks(measured)
    lines += _about_rounding(explanation)
    lines += _about_others(measured, budget)
    lines += _about_layers(explanation)
    lines += _about_overhead(measured)
    if explanation.aligned_by != "name":
        lines.append(
            "The two networks name their layers differently; they were matched by order and shape."
        )
    lines += _about_changes(explanation)
    return lines


def _headline(measured: Measured, budget: Budget) -> str:
    ratio = budget.dense_ms / budget.measured_ms
    speed = f"{ratio:.2f} x as fast" if ratio >= 1 else f"{1 / ratio:.2f} x as slow"
    start = (
        f"Why, at batch {measured.batch} (runs of its own, the quietest third; what is faster, the "
        f"bench says): {budget.dense_ms:.3f} ms before, {budget.measured_ms:.3f} ms pruned "
        f"({speed}), with {budget.kept_macs:.0%} of the MACs. "
    )
    if budget.gap_ms > max(measured.noise_ms, WORTH_WORDS * budget.measured_ms):
        return start + (
            f"Had time followed the MACs it would take {budget.expected_ms:.3f} ms; the other "
            f"{budget.gap_ms:.3f} ms are explained here."
        )
    return start + (
        f"By its MACs alone it would take {budget.expected_ms:.3f} ms: time followed the MACs."
    )


def _about_slowing(measured: Measured) -> list[str]:
    slowed = max(measured.dense.slowed, measured.pruned.slowed)
    if slowed <= SLOWED:
        return []
    return [
        f"The profiler slowed the kernels ({slowed:.2f} times as long as a plain run has room "
        "for); their times are scaled down in proportion, so single short layers are less certain."
    ]


def _about_the_roof(measured: Measured) -> list[str]:
    own = measured.pruned.layer_ms()
    shares = [measured.roof.share(layer, own[layer.name]) for layer in measured.pruned.layers]
    above = [share for share in shares if share > ABOVE_ROOF]
    if not above or measured.settings.get("precision") == "int8":
        return []
    return [
        f"{len(above)} layers reached more than the roof, up to {max(above):.0%}: it was measured "
        "while something else ran, so shares of it are too high."
    ]


def _about_counts(explanation: Explanation) -> list[str]:
    measured, budget, best = explanation.measured, explanation.budget, explanation.padding
    if best is None:
        if measured.padded:
            tried = ", ".join(str(each.multiple) for each in measured.padded)
            if measured.padded[0].run_ms is None:
                return [
                    f"More channels do not make its layers faster: padded to multiples of {tried}, "
                    "each timed alone, they took no less time."
                ]
            return [
                f"More channels do not make it faster: padded to multiples of {tried} it took no "
                "less time (measured)."
            ]
        return [f"Other channel counts were not tried: {measured.why_not_padded}."]
    off = [cost for cost in budget.layers if cost.multiples > 0]
    off.sort(key=lambda cost: -cost.multiples)
    if best.run_ms is None:
        lines = [f"{len(off)} layers run faster with more channels, in multiples of "
                 f"{best.multiple} (each timed alone)."]  # fmt: skip
    else:
        gain = budget.measured_ms - best.run_ms
        lines = [
            f"Channel counts cost {gain:.3f} ms: with zero channels added up to multiples of "
            f"{best.multiple} the same network, with the same outputs, takes {best.run_ms:.3f} ms "
            "(measured)."
        ]
    worst = [_with_more_channels(cost) for cost in off[:3] if cost.padded_ms is not None]
    return [*lines, f"Most of it: {'; '.join(worst)}."] if worst else lines


def _with_more_channels(cost: LayerCost) -> str:
    layer, widths = cost.pair.pruned, cost.padded_widths
    if layer is None or widths is None or cost.padded_ms is None:
        return ""
    changed = []
    for side, own, more in zip(
        ("input", "output"), (layer.in_channels, layer.out_channels), widths, strict=True
    ):
        if own != more:
            changed.append((f"{own} {side}", str(more)))
    given = " and ".join(each for each, _ in changed)
    wanted = " and ".join(each for _, each in changed)
    less = 1 - cost.padded_ms / cost.pair.pruned_ms
    return f"{layer.name} with {given} channels, where {wanted} take {less:.0%} less"


def _about_lost_blocks(measured: Measured) -> list[str]:
    """ONNX Runtime on a CPU: which convolutions it no longer runs in blocks of channels.

    Its optimiser takes a convolution of 8 (AVX2) or 16 (AVX-512) input channels or more into
    blocks only where they are a multiple of 4 (NchwcTransformer, in nchwc_transformer.cc).
    """
    sides = [
        {kernel.layer for kernel in times.kernels if kernel.name.endswith(NCHWC)}
        for times in (measured.dense, measured.pruned)
    ]
    lost = [each for each in measured.pruned.layers if each.name in sides[0] - sides[1]]
    odd = [each for each in lost if each.in_channels % 4]
    if not odd:
        return []
    inputs = ", ".join(str(count) for count in sorted({each.in_channels for each in odd}))
    return [
        f"{len(odd)} convolutions lost ONNX Runtime's blocked layout, which takes input channels "
        f"in multiples of 4; these have {inputs}."
    ]


def _about_rounding(explanation: Explanation) -> list[str]:
    budget = explanation.budget
    if budget.ms("rounding") < WORTH_WORDS * budget.measured_ms:
        return []
    rounded = [cost for cost in budget.layers if cost.rounding > 0 and cost.free_widths]
    rounded.sort(key=lambda cost: -cost.rounding)
    examples = "; ".join(
        f"{cost.pair.name} {cost.pair.pruned.widths} as {cost.free_widths[0]}>{cost.free_widths[1]}"
        for cost in rounded[:3]
        if cost.pair.pruned and cost.free_widths
    )
    return [
        f"{len(rounded)} layers would take no longer with more channels (measured): {examples}. "
        f"About {budget.ms('rounding'):.3f} ms go into channels that are not there: keep these for "
        "nothing, or prune down to the next multiple."
    ]


def _about_others(measured: Measured, budget: Budget) -> list[str]:
    lines, floor = [], WORTH_WORDS * budget.measured_ms
    before, after = measured.dense, measured.pruned
    if budget.ms("layout") > floor:
        lines.append(
            f"Changes of layout take {_of(after, True)}; the dense network has {_of(before, True)}."
        )
    if budget.ms("others") > floor:
        lines.append(
            f"Operators without MACs take {_of(after, False)}; in the dense network "
            f"{_of(before, False)}. Fewer MACs do not make them fewer."
        )
    return lines


def _of(times: NetworkTimes, layout: bool) -> str:
    chosen = {
        operator: found
        for operator, found in times.other_ms().items()
        if (operator in LAYOUT_OPERATORS) is layout
    }
    ms, kernels = (sum(found[i] for found in chosen.values()) for i in (0, 1))
    ranked = sorted(chosen, key=lambda operator: -chosen[operator][0])[:3]
    names = ", ".join(f"{operator} x {chosen[operator][1]}" for operator in ranked)
    return f"{ms:.3f} ms ({names})" if kernels else "none"


def _about_layers(explanation: Explanation) -> list[str]:
    budget, roof = explanation.budget, explanation.measured.roof
    lines = []
    grew = [cost.pair for cost in budget.layers if cost.pair.grew]
    if grew:
        grew.sort(key=lambda pair: pair.dense_ms - pair.pruned_ms)
        names = ", ".join(
            f"{p.name} ({p.dense_ms:.3f} to {p.pruned_ms:.3f} ms, {p.kept_macs:.0%} of its MACs)"
            for p in grew[:3]
        )
        more = f" and {len(grew) - 3} more" if len(grew) > 3 else ""
        lines.append(f"Slower than before pruning: {names}{more}.")
    if budget.ms("memory") > WORTH_WORDS * budget.measured_ms:
        bound = [c for c in budget.layers if c.memory > 0]
        lines.append(
            f"{len(bound)} layers are bound by memory: {budget.ms('memory'):.3f} ms (estimated "
            "from the measured bandwidth)."
        )
    if budget.ms("rate") > WORTH_WORDS * budget.measured_ms:
        slower = [c.pair for c in budget.layers if c.rate > 0]
        shares = [
            (roof.share(p.dense, p.dense_ms), roof.share(p.pruned, p.pruned_ms))
            for p in slower
            if p.dense and p.pruned and p.dense_ms > 0
        ]
        before, after = (sum(each) / len(shares) for each in zip(*shares, strict=True))
        lines.append(
            f"{len(slower)} layers make less of this machine than before: they reach {after:.0%} "
            f"of what it can do, on average, where the dense ones reach {before:.0%}: "
            f"{budget.ms('rate'):.3f} ms, with no other reason found."
        )
    if budget.ms("where") > WORTH_WORDS * budget.measured_ms:
        lines.append(
            f"MACs were taken mostly from layers where a MAC takes little time: "
            f"{budget.ms('where'):.3f} ms."
        )
    return lines


def _about_overhead(measured: Measured) -> list[str]:
    times = measured.pruned
    share = times.between_ms / times.run_ms
    if share < WORTH_WORDS:
        return []
    return [
        f"{times.between_ms:.3f} ms ({share:.0%}) of a run pass outside of its "
        f"{len(times.kernels)} kernels, and {measured.dense.between_ms:.3f} ms of a dense one's "
        f"{len(measured.dense.kernels)}."
    ]


def _about_changes(explanation: Explanation) -> list[str]:
    if not explanation.changes:
        return ["No change that was looked at would save more than 2 % of a run."]
    lines = ["What would pay most, in ms of a run (the gains overlap):"]
    for number, change in enumerate(explanation.changes, 1):
        lines.append(f"  {number}. {change.gain_ms:.3f} ms: {change.what} ({change.basis})")
    return lines


def budget_table(explanation: Explanation) -> "Table":
    """From the time by MACs to the time that was measured; the middle column adds up."""
    from rich.table import Table

    measured, budget = explanation.measured, explanation.budget
    table = Table(title="Where the time goes", title_justify="left", caption_justify="left")
    table.caption = (
        f"Medians of each network's {measured.runs} quietest runs, a third of all, in turn; the "
        f"pruned run is known within {measured.noise_ms:.3f} ms."
    )
    table.add_column("")
    table.add_column("ms", justify="right")
    table.add_column("how known")
    kept = f"{budget.kept_macs:.1%}"
    table.add_row(f"dense time x {kept}, the kept MACs", f"{budget.expected_ms:.3f}", "measured")
    for item in budget.items:
        if abs(item.ms) >= 0.0005:
            known = "measured" if item.measured else "estimated"
            known = "what is left" if item.cause in LEFT else known
            table.add_row(CAUSES[item.cause], f"{item.ms:+.3f}", known)
    table.add_section()
    table.add_row("the pruned network", f"{budget.measured_ms:.3f}", "measured")
    return table


def layer_table(explanation: Explanation) -> "Table":
    """One row a layer that is left, by what it costs beyond its MACs; the others at the end."""
    from rich.table import Table

    roof = explanation.measured.roof
    table = Table(title="Layer by layer", title_justify="left", caption_justify="left")
    on_cpu = explanation.measured.device == "cpu"
    low = explanation.measured.settings.get("precision") in ("fp16", "bf16", "int8")
    over = "the peak is float32's, which int8 may pass; " if low and on_cpu else ""
    fast = max(rate for _, rate in roof.bandwidths)
    table.caption = (
        f"Channels are inputs>outputs; by MACs: the dense layer's time times the MACs it kept; "
        f"roof: share of {roof.macs_per_ms / 1e6:.0f} GMAC/s (compute), or of "
        f"{roof.bandwidths[-1][1] / 1e6:.0f} to {fast / 1e6:.0f} GB/s (memory), which this backend "
        f"reached here; {over}! slower than before."
    )
    multiple = explanation.padding.multiple if explanation.padding else None
    columns = ["layer", "channels", "MACs", "ms", "by MACs", "beyond", "roof"]
    columns += [f"to {multiple}s, ms"] if multiple else []
    for number, title in enumerate(columns):
        table.add_column(title, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for cost in explanation.layers_by_cost():
        pair, layer = cost.pair, cost.pair.pruned
        if layer is None:
            continue
        before = f"{pair.dense.widths} to " if pair.dense and pair.kept_macs < 1 else ""
        cells = [
            pair.name,
            f"{before}{layer.widths}",
            f"{pair.kept_macs:.0%}",
            f"{pair.dense_ms:.3f} to {pair.pruned_ms:.3f}{' !' if pair.grew else ''}",
            f"{pair.by_macs_ms:.3f}",
            f"{pair.excess_ms:+.3f}",
            f"{roof.share(layer, pair.pruned_ms):.0%} {roof.bound(layer)}",
        ]
        if multiple:
            cells.append("" if cost.padded_ms is None else f"{cost.padded_ms:.3f}")
        table.add_row(*cells)
    table.add_section()
    blank = [""] * (len(columns) - 6)
    for name, before_ms, after_ms in _rows_without_macs(explanation):
        expected = explanation.budget.kept_macs * before_ms
        table.add_row(
            name, "", "", f"{before_ms:.3f} to {after_ms:.3f}", f"{expected:.3f}",
            f"{after_ms - expected:+.3f}", *blank,
        )  # fmt: skip
    return table


def _rows_without_macs(explanation: Explanation) -> list[tuple[str, float, float]]:
    """Name, dense ms, pruned ms of layers that are gone, kernels of no layer, and the rest."""
    dense, pruned = explanation.measured.dense, explanation.measured.pruned
    gone = [cost.pair for cost in explanation.budget.layers if cost.pair.pruned is None]
    rows = []
    if gone:
        rows.append((f"layers that are gone: {len(gone)}", sum(p.dense_ms for p in gone), 0.0))
    before, after = dense.other_ms(), pruned.other_ms()
    small: list[tuple[float, float]] = []
    for operator in sorted({*before, *after}, key=lambda o: -after.get(o, (0.0, 0))[0]):
        one, other = before.get(operator, (0.0, 0)), after.get(operator, (0.0, 0))
        if one[0] < SMALL * dense.run_ms and other[0] < SMALL * pruned.run_ms:
            small.append((one[0], other[0]))
        else:
            rows.append((f"{operator}, {one[1]} to {other[1]}", one[0], other[0]))
    if small:
        sums = [sum(each) for each in zip(*small, strict=True)]
        rows.append((f"{len(small)} other operators", sums[0], sums[1]))
    rows.append(("outside of kernels", dense.between_ms, pruned.between_ms))
    return rows
