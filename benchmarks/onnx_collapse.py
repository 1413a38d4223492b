"""How far does `polarprune collapse-onnx` take a file that somebody else pruned softly?

    python -m benchmarks.onnx_collapse                          # some minutes on two cores
    python -m benchmarks.onnx_collapse --networks resnet18 --image 64 --rounds 0 --out rehearsal
    python -m benchmarks.onnx_collapse --table                  # the table again, from the record

A random half of the units of each channel site of a torchvision network is zeroed: filters,
biases, scales and shifts. It is exported as it is by a bare `torch.onnx.export`, and collapsed as a
file. The yardstick is the collapse of the same decisions on the torch side, which knows the sites.
Latency: ONNX Runtime, the collapsed file against the given one, paired, with an A/A control.
"""

import argparse
import copy
import hashlib
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

import polarprune
from benchmarks.records import describe_machine
from polarprune.collapsing import collapse_with_origins
from polarprune.graph.cut import Cut
from polarprune_deploy import compare_latency
from polarprune_deploy.backends.network_bytes import NetworkBytes
from polarprune_deploy.backends.runner_onnxruntime import OnnxRuntimeRunner
from polarprune_export import collapse_onnx

RESULTS = Path(__file__).parent / "results"
# VGG pools to 7 x 7, which the image has to allow.
IMAGES = {
    "resnet18": 96,
    "resnet50": 96,
    "mobilenet_v2": 96,
    "densenet121": 96,
    "efficientnet_b0": 96,
    "vgg11_bn": 224,
}
SEED = 0
KEPT = 0.5
ROUNDS = 40
BATCH = 1


def lively(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Statistics and affine parts of norms far from 0 and 1, as training leaves them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low, high in (
                ("running_mean", -0.3, 0.3),
                ("running_var", 0.5, 2.0),
                ("weight", 0.5, 1.5),
                ("bias", -0.3, 0.3),
            ):
                tensor = getattr(module, name).data
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    return net.eval()


def decide(sites: list[Any], generator: torch.Generator) -> dict[str, Tensor]:
    """A random half of the units of each site open; at least one."""
    decisions = {}
    for site in sites:
        order = torch.randperm(site.units, generator=generator)
        opened = torch.zeros(site.units, dtype=torch.bool)
        opened[order[: max(1, round(KEPT * site.units))]] = True
        decisions[site.name] = opened
    return decisions


@torch.no_grad()
def zeroed(net: nn.Module, cut: Cut) -> nn.Module:
    """A copy in which the filters, biases, scales and shifts that the cut drops are zero."""
    soft = copy.deepcopy(net)
    kept = {origin.name: origin.kept for origin in cut.origins.values()}
    for name, parameter in soft.named_parameters():
        if name not in kept:
            parameter.zero_()  # a layer of which nothing is left
        elif 0 in kept[name]:
            gone = torch.ones(len(parameter), dtype=torch.bool)
            gone[kept[name][0]] = False
            parameter[gone] = 0
    return soft


def export_bare(net: nn.Module, path: Path, image: int) -> None:
    """What a user writes who knows nothing of us."""
    example = torch.randn(2, 3, image, image, generator=torch.Generator().manual_seed(SEED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            str(path),
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            dynamo=False,
        )


def prepare(name: str, image: int, folder: Path) -> tuple[Path, dict[str, int]]:
    """The softly pruned network as a file, and what the torch side makes of the same decisions."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    net = lively(torchvision.models.get_model(name, weights=None), generator)
    example = torch.randn(1, 3, image, image, generator=generator)
    gated = polarprune.attach_gates(net, example, blocks=False)
    gated.set_decisions(decide(gated.sites, generator))
    small, cut = collapse_with_origins(gated)
    path = folder / f"{name}.onnx"
    export_bare(zeroed(net, cut), path, image)
    torch_side = {
        "macs": polarprune.count_macs(small, example),
        "dense_macs": polarprune.count_macs(net, example),
        "params": sum(parameter.numel() for parameter in small.parameters()),
    }
    return path, torch_side


def runner(path: Path) -> OnnxRuntimeRunner:
    """One thread: the other core of the machine is busy."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return OnnxRuntimeRunner(NetworkBytes(path.stem, content, digest, None), threads=1)


def measure(name: str, image: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One row: counts, error, and latency where rounds are asked for."""
    path, torch_side = prepare(name, image, folder)
    out = folder / f"{name}-small.onnx"
    start = time.perf_counter()
    report = collapse_onnx(path, out).as_dict()
    row = {
        "network": name,
        "image": image,
        "seconds": time.perf_counter() - start,
        "collapse": {key: value for key, value in report.items() if key != "onnx"},
        "torch_side": torch_side,
        "latency": None,
    }
    if rounds:
        sides = [runner(path), runner(out)]
        (comparison,) = compare_latency(
            sides, batch=BATCH, rounds=rounds, seed=SEED, family=len(IMAGES)
        )
        row["latency"] = comparison.conclusions() | {
            "samples": [vars(sample) for sample in comparison.samples]
        }
        for side in sides:
            side.close()
    path.unlink()
    out.unlink()
    return row


def table(record: dict[str, Any]) -> str:
    """The record as a markdown table."""
    lines = [
        "| network | image | operators | file, MB | parameters, M | MACs, M | torch side, M "
        "| MACs kept | largest error | ONNX Runtime, 1 thread |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        found, latency = row["collapse"], row["latency"]
        speed = "-"
        if latency is not None:
            speed = (
                f"{latency['speedup']:.2f}x [{latency['ci_low']:.2f}, {latency['ci_high']:.2f}] "
                f"{latency['verdict']}"
            )
        cells = [
            row["network"],
            str(row["image"]),
            f"{found['dense_nodes']} -> {found['nodes']}",
            f"{found['dense_bytes'] / 1e6:.1f} -> {found['bytes'] / 1e6:.1f}",
            f"{found['dense_params'] / 1e6:.2f} -> {found['params'] / 1e6:.2f}",
            f"{found['dense_macs'] / 1e6:.1f} -> {found['macs'] / 1e6:.1f}",
            f"{row['torch_side']['macs'] / 1e6:.1f}",
            f"{found['macs_ratio']:.3f}",
            f"{found['max_rel_error']:.1e}",
            speed,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every network and write record and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(IMAGES))
    parser.add_argument("--image", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "onnx_collapse")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    written = args.out.with_suffix(".json")
    if not args.table:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for name in args.networks.split(","):
                image = args.image or IMAGES[name]
                rows.append(measure(name, image, args.rounds, Path(folder)))
                print(table({"rows": rows[-1:]}).splitlines()[-1], flush=True)
        record = {
            "what": "softly pruned torchvision networks, collapsed as ONNX files",
            "n": 1,
            "seed": SEED,
            "kept_units": KEPT,
            "batch": BATCH,
            "rounds": args.rounds,
            "machine": describe_machine()
            | {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
            "rows": rows,
        }
        written.write_text(json.dumps(record, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(json.loads(written.read_text())))


if __name__ == "__main__":
    main()
