"""How fast is the surgery itself? Attach and collapse, against Torch-Pruning and against depth.

    python -m benchmarks.surgery_speed                             # about 10 minutes on two cores
    python -m benchmarks.surgery_speed --networks resnet18 --rounds 6 --image-size 64 \
        --depths 8,14 --densenets densenet121 --repeats 1 --record speed.json --picture speed.png

Paired: in each round both cut a fresh copy of the same network to half of its channels, in
alternating order, on one thread. Ours: attach_gates, set_decisions (a random half of each site's
units) and collapse. Theirs: MagnitudePruner at pruning ratio 0.5, the classifier ignored, and its
step. Ours includes verifying that the traced graph computes what the network does; theirs verifies
nothing, but computes its importances. Both end with plain layers.

Seconds are CPU seconds: the clock's on a quiet machine, and still comparable on a busy one; the
clock's stand beside them. Copying networks is not counted; garbage is collected before each cut.

The curve: seconds against nodes of the torch.fx graph, for CIFAR ResNets of growing depth and
torchvision's DenseNets, with the slope in log-log (1 is proportional) of all points and of the last
two, where constant costs weigh least.

Needs torch-pruning and matplotlib.
"""

import copy
import gc
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import torchvision
import typer
from torch import Tensor, fx, nn

from benchmarks.records import describe_machine
from polarprune import GatedNetwork, attach_gates, collapse, count_macs
from polarprune.networks.cifar_resnet import build_cifar_resnet
from polarprune_deploy.environment import describe_environment
from polarprune_deploy.statistics import corrected_confidence, paired_ratio

RESULTS = Path(__file__).parent / "results"
NETWORKS = "resnet18,resnet50,mobilenet_v2,regnet_y_400mf,efficientnet_b0,densenet121,densenet201"
DEPTHS = "20,32,44,56,110,218,434"
DENSENETS = "densenet121,densenet169,densenet201"
PRUNING_RATIO = 0.5
SEED = 0

Stages = dict[str, float]


def half_of_the_units(gated: GatedNetwork) -> dict[str, Tensor]:
    """A random half of each channel site's units, rounded up."""
    generator = torch.Generator().manual_seed(SEED)
    decisions = {}
    for site in gated.sites:
        if site.kind == "channel":
            order = torch.rand(site.units, generator=generator).argsort()
            decisions[site.name] = order < (site.units + 1) // 2
    return decisions


def cut_ours(net: nn.Module, example: Tensor) -> tuple[nn.Module, Stages]:
    """The small network, and the seconds of each stage."""
    start = time.process_time()
    gated = attach_gates(net, example)
    attached = time.process_time()
    gated.set_decisions(half_of_the_units(gated))
    decided = time.process_time()
    small = collapse(gated)
    done = time.process_time()
    return small, {
        "attach_s": attached - start,
        "decide_s": decided - attached,
        "collapse_s": done - decided,
        "total_s": done - start,
    }


def cut_theirs(net: nn.Module, example: Tensor) -> tuple[nn.Module, Stages]:
    """The same network, made small in place by Torch-Pruning, and the seconds of each stage."""
    import torch_pruning

    classifier = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    start = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        net,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=PRUNING_RATIO,
        ignored_layers=[classifier],
    )
    built = time.process_time()
    pruner.step()
    done = time.process_time()
    return net, {"build_s": built - start, "step_s": done - built, "total_s": done - start}


Cutter = Callable[[nn.Module, Tensor], tuple[nn.Module, Stages]]
SIDES: dict[str, Cutter] = {"ours": cut_ours, "theirs": cut_theirs}


def timed(cut: Cutter, template: nn.Module, example: Tensor) -> tuple[nn.Module, Stages]:
    """One cut of a fresh copy, without a garbage collection inside of it.

    Stages are CPU seconds; `wall_s` is what passed by, which on a busy machine is more.
    """
    net = copy.deepcopy(template)
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        small, stages = cut(net, example)
        return small, {**stages, "wall_s": time.perf_counter() - start}
    finally:
        gc.enable()


def build(name: str, image_size: int) -> tuple[nn.Module, Tensor]:
    """A torchvision network in evaluation mode, and one image."""
    torch.manual_seed(SEED)
    net: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    return net, torch.randn(1, 3, image_size, image_size)


def compare(name: str, image_size: int, rounds: int, family: int) -> dict[str, Any]:
    """One network, cut by both, alternating, with every round."""
    net, example = build(name, image_size)
    dense_macs = count_macs(net, example)
    kept: dict[str, float] = {}
    for side, cut in SIDES.items():  # untimed: first calls import and fill caches
        kept[side] = count_macs(timed(cut, net, example)[0], example) / dense_macs
    samples: dict[str, list[Stages]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in sorted(SIDES, reverse=bool(number % 2)):
            samples[side].append(timed(SIDES[side], net, example)[1])
    confidence = corrected_confidence(family)

    def ratio(seconds: str) -> dict[str, float]:
        theirs, ours = ([s[seconds] for s in samples[side]] for side in ("theirs", "ours"))
        return paired_ratio(theirs, ours, confidence=confidence).as_json()

    return {
        "network": name,
        "rounds": rounds,
        "confidence": confidence,
        "macs_ratio": kept,
        "theirs_over_ours": ratio("total_s"),
        "theirs_over_ours_wall": ratio("wall_s"),
        "median_s": {side: _medians(samples[side]) for side in SIDES},
        "samples": samples,
    }


def _medians(samples: list[Stages]) -> Stages:
    return {stage: median(sample[stage] for sample in samples) for stage in samples[0]}


def measure_point(name: str, net: nn.Module, example: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of attach and collapse of one network, and the size of its graph."""
    samples = [timed(cut_ours, net, example)[1] for _ in range(repeats)]
    nodes = len(fx.symbolic_trace(net).graph.nodes)
    return {"network": name, "nodes": nodes, "median_s": _medians(samples), "samples": samples}


def measure_curve(networks: dict[str, tuple[nn.Module, Tensor]], repeats: int) -> dict[str, Any]:
    """The points of one family of networks, and how their cost grows."""
    points = [measure_point(name, *network, repeats) for name, network in networks.items()]
    slopes = {
        stage: slope_of(points, stage) for stage in ("attach_s", "collapse_s", "total_s", "wall_s")
    }
    last = {stage: slope_of(points[-2:], stage) for stage in slopes}
    return {"points": points, "slope": slopes, "slope_of_the_last_two": last}


def slope_of(points: list[dict[str, Any]], stage: str) -> float | None:
    """The power p of seconds ~ nodes ** p by least squares in log-log; None for one point."""
    if len(points) < 2:
        return None
    nodes = np.log([point["nodes"] for point in points])
    seconds = np.log([point["median_s"][stage] for point in points])
    return float(np.polyfit(nodes, seconds, 1)[0])


def draw(record: dict[str, Any], path: Path) -> None:
    """The curve beside the comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (family, curve), colour in zip(record["curves"].items(), ("C0", "C1"), strict=True):
        nodes = [point["nodes"] for point in curve["points"]]
        for stage, style in (("attach_s", "o-"), ("collapse_s", "s--")):
            seconds = [point["median_s"][stage] for point in curve["points"]]
            slope = curve["slope"][stage]
            words = "" if slope is None else f", slope {slope:.2f}"
            label = f"{family}, {stage.removesuffix('_s')}{words}"
            left.plot(nodes, seconds, style, color=colour, label=label, markersize=4)
    left.set(xscale="log", yscale="log", xlabel="nodes of the graph", ylabel="CPU seconds")
    left.set_title("cost of the surgery against the size of the graph")
    left.legend(fontsize=8)
    rows = record["rows"][::-1]
    for place, row in enumerate(rows):
        ours, theirs = (row["median_s"][side]["total_s"] for side in SIDES)
        right.plot([ours, theirs], [place, place], color="#aaaaaa", zorder=1)
        right.scatter(ours, place, color="C0", zorder=2, label="" if place else "polarprune")
        right.scatter(theirs, place, color="C3", zorder=2, label="" if place else "Torch-Pruning")
        ratio = row["theirs_over_ours"]["speedup"]
        right.annotate(f"{ratio:.2f} x", (max(ours, theirs), place), (6, -3),
                       textcoords="offset points", fontsize=8)  # fmt: skip
    right.set(xscale="log", xlabel="CPU seconds (medians)")
    right.set_yticks(range(len(rows)), [row["network"] for row in rows])
    right.margins(x=0.15)
    right.set_title(f"half of the channels, paired, n = {record['n']} rounds")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(
    networks: Annotated[str, typer.Option(help="torchvision names to compare on")] = NETWORKS,
    rounds: Annotated[int, typer.Option(help="paired rounds a network")] = 9,
    image_size: Annotated[int, typer.Option(help="pixels a side, CIFAR apart")] = 224,
    depths: Annotated[str, typer.Option(help="CIFAR ResNets of the curve, 6n + 2")] = DEPTHS,
    densenets: Annotated[str, typer.Option(help="DenseNets of the curve")] = DENSENETS,
    repeats: Annotated[int, typer.Option(help="cuts a point of the curve")] = 3,
    record: Annotated[Path, typer.Option(help="JSON")] = RESULTS / "surgery_speed.json",
    picture: Annotated[Path, typer.Option(help="PNG")] = RESULTS / "surgery_speed.png",
) -> None:
    """Measure, write the record and the picture, print the figures."""
    torch.set_num_threads(1)
    names = networks.split(",")
    found = describe(rounds, image_size)
    for family, nets in families(depths, densenets, image_size).items():
        curve = found["curves"][family] = measure_curve(nets, repeats)
        print(f"{family}: slope {curve['slope']}, of the last two {curve['slope_of_the_last_two']}")
    for name in names:
        row = compare(name, image_size, rounds, family=len(names))
        found["rows"].append(row)
        print(sentence(row), flush=True)
        record.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    draw(found, picture)


def families(
    depths: str, densenets: str, image_size: int
) -> dict[str, dict[str, tuple[nn.Module, Tensor]]]:
    """The networks of the two curves, with an image each."""
    image = torch.randn(1, 3, 32, 32)
    chain = {
        f"resnet{d}": (build_cifar_resnet(int(d), 10).eval(), image) for d in depths.split(",")
    }
    dense = {name: build(name, image_size) for name in densenets.split(",")}
    return {"CIFAR ResNets": chain, "DenseNets": dense}


def describe(rounds: int, image_size: int) -> dict[str, Any]:
    """The head of the record."""
    return {
        "what": "CPU seconds of attach + decide + collapse, one thread, a random half of channels",
        "n": rounds,
        "seed": SEED,
        "image_size": image_size,
        "pruning_ratio": PRUNING_RATIO,
        "machine": {
            **describe_environment(),
            **describe_machine(),
            "torch_pruning": metadata.version("torch-pruning"),
        },
        "curves": {},
        "rows": [],
    }


def sentence(row: dict[str, Any]) -> str:
    """One comparison in one line."""
    ours, theirs = (row["median_s"][side]["total_s"] for side in SIDES)
    ratio, kept = row["theirs_over_ours"], row["macs_ratio"]
    return (
        f"{row['network']}: {theirs:.3f} s Torch-Pruning, {ours:.3f} s ours, "
        f"{ratio['speedup']:.2f}x [{ratio['ci_low']:.2f}, {ratio['ci_high']:.2f}]; "
        f"kept MACs {kept['theirs']:.3f}, {kept['ours']:.3f} (n = {row['rounds']})"
    )


if __name__ == "__main__":
    typer.run(main)
