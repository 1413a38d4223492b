"""What can be cut, how exactly and how fast, in words; from three records."""

from benchmarks.records import load_record


def graph_core_line() -> list[str]:
    """What can be cut, how exactly, how fast: one paragraph from three records."""
    return [" ".join([coverage(), random_graphs(), surgery_speed()])]


def coverage() -> str:
    """How many networks of the zoos can be cut."""
    found = load_record("coverage")["summary"]
    return (
        f"{found['networks']} networks of torchvision and timm with a random half of their "
        f"channels cut: {found['exact']} exact in float64, {found['refused']} with something "
        f"refused as a whole, {found['WRONG']} wrong, {found['crash'] + found['timeout']} crashed "
        "or out of time; [the table](benchmarks/results/coverage.md)."
    )


def random_graphs() -> str:
    """Networks that nobody wrote."""
    record = load_record("random_graphs")
    found = record["outcomes"]
    return (
        f"{record['n']:,} networks put together at random from the same operators, "
        f"{record['cuts']:,} cuts: {found['exact']:,} exact (largest relative error "
        f"{record['largest_relative_error']:.0e}), {found['refused']} refused, "
        f"{found['wrong']} wrong, {found['crash']} crashed."
    )


def surgery_speed() -> str:
    """What attach and collapse cost, beside Torch-Pruning."""
    record = load_record("surgery_speed")
    rows = {row["network"]: row for row in record["rows"]}
    parts = []
    for name, text in (
        ("resnet50", "ResNet-50"),
        ("densenet201", "DenseNet-201"),
        ("efficientnet_b0", "EfficientNet-B0"),
    ):
        ratio = rows[name]["theirs_over_ours"]
        parts.append(
            f"{rows[name]['median_s']['ours']['total_s']:.2f} s for {text}, "
            f"{ratio['speedup']:.1f} times as fast [{ratio['ci_low']:.1f}, {ratio['ci_high']:.1f}]"
        )
    return (
        "Attach and collapse against Torch-Pruning's MagnitudePruner at half of the channels "
        f"(paired, n = {record['n']}, one thread): {'; '.join(parts)}; "
        "[all](benchmarks/results/surgery_speed.png)."
    )
