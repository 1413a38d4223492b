"""Each network, dense and cut to half of its units, in every precision, as a bundle with an engine.

    python -m benchmarks.precisions run --data TREE --weights resnet56.safetensors --run RUN
    python -m benchmarks.precisions run --only mobilenet_v2 --data TREE    # a small one
    python -m benchmarks.precisions report

TREE is a class-folder tree of CIFAR-10, RUN what `benchmarks.resnet56_cifar10 part` left: those
weights pruned to half. Only these two have an accuracy: the others are trained for 60 steps, so
that their outputs depend on the image, and compared on 64 test images. What an export refuses is a
row that says why.
TensorRT-RTX builds the engines here; no card that it supports was at hand to run them.
"""

import argparse
import json
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.recorded_runs import Record, record_missing, write_table
from benchmarks.records import describe_machine
from polarprune import attach_gates, build_network, collapse, count_macs
from polarprune.datasets import Dataset, load_dataset
from polarprune.errors import PolarpruneError
from polarprune.manifest import Manifest, Preprocessing, read_manifest
from polarprune.manifest_checks import PRECISIONS
from polarprune_export import build_engine, export_bundle, write_bundle
from polarprune_export.bundle import BundleContents

RESULTS = Path(__file__).parent / "results" / "precisions"
ZOO = ("resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121")
STATES = ("dense", "half")
SIDE = 64  # of the zoo's images: 224 would take hours on two cores
EPOCHS = 6  # of 10 batches each
FEW = {"train": 640, "test": 64}  # images of the tree that the zoo's bundles see


@cache
def zoo_network(name: str, state: str, tree: Path) -> nn.Module:
    """Trained for a moment, so that its outputs depend on its input; half: cut before that."""
    data = load_dataset(str(tree), image_size=SIDE)
    torch.manual_seed(0)
    net = build_network(f"torchvision:{name}", num_classes=10)
    if state == "half":
        net = _halved(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    net.train()
    for epoch in range(EPOCHS):
        for images, labels in data.train.batches(64, shuffle_seed=epoch, augment=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return _settled(net, data)


def _settled(net: nn.Module, data: Dataset) -> nn.Module:
    """With the statistics of its last weights.

    After so few steps they are those of its first, and outputs hardly depend on the image, or are
    in the hundreds. All images at once: each norm is given what it will be given in evaluation.
    """
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        for images, _ in data.train.batches(len(data.train), shuffle_seed=0, augment=False):
            net(images)
    return net.eval()


def _halved(net: nn.Module) -> nn.Module:
    """A random half of the channels of each site."""
    gated = attach_gates(net, torch.zeros(2, 3, SIDE, SIDE), blocks=False)
    generator = torch.Generator().manual_seed(0)
    decisions = {}
    for site in gated.sites:
        order = torch.randperm(site.units, generator=generator)
        decisions[site.name] = torch.zeros(site.units, dtype=torch.bool)
        decisions[site.name][order[: (site.units + 1) // 2]] = True
    gated.set_decisions(decisions)
    return collapse(gated)


def zoo_bundle(name: str, state: str, precision: str, tree: Path, out: Path) -> Manifest:
    """One network of the zoo with the images of a small tree."""
    data = load_dataset(str(tree), image_size=SIDE)
    net = zoo_network(name, state, tree)
    steps = Preprocessing(SIDE, SIDE, data.resize_side, tuple(data.mean), tuple(data.std))
    contents = BundleContents(name, steps, data.classes, data=data, precision=precision)
    example = torch.zeros(2, 3, SIDE, SIDE)
    write_bundle(net, out, example, contents, engine="tensorrt_rtx")
    manifest = read_manifest(out)
    manifest.base["macs"] = count_macs(net, example)
    return manifest


def resnet56_bundle(args: argparse.Namespace, state: str, precision: str, out: Path) -> Manifest:
    """Published weights, or the run that pruned them."""
    given: dict[str, Any] = {"weights": args.weights} if state == "dense" else {}
    source = "resnet56" if state == "dense" else args.run
    export_bundle(
        source, format="trt", precision=precision, data=args.data, out=out, **given
    )  # fmt: skip
    manifest = read_manifest(out)
    manifest.base.pop("data", None)
    return manifest


def few_images(tree: Path, out: Path) -> Path:
    """The first images of each class, as a tree of their own."""
    for split, count in FEW.items():
        classes = sorted(path for path in (tree / split).iterdir() if path.is_dir())
        for folder in classes:
            (out / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[: -(-count // len(classes))]:
                shutil.copy(image, out / split / folder.name)
    return out


def make(args: argparse.Namespace, row: str, tree: Path) -> Record:
    """What one bundle says, or why there is none."""
    try:
        return measured(args, row, tree)
    except PolarpruneError as error:
        name, state, precision = row.split(".")
        head = {"network": name, "state": state, "precision": precision}
        return {
            "result": {**head, "refused": str(error)}, "seed": 0, "machine": describe_machine()
        }  # fmt: skip


def measured(args: argparse.Namespace, row: str, tree: Path) -> Record:
    """One bundle with its engine, and what its manifest says.

    Raises:
        PolarpruneError: it is refused.
    """
    name, state, precision = row.split(".")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        if name != "resnet56":
            zoo_network(name, state, tree)
        began = time.perf_counter()
        if name == "resnet56":
            manifest = resnet56_bundle(args, state, precision, out)
        else:
            manifest = zoo_bundle(name, state, precision, tree, out)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        build_engine(
            out / "model.onnx", out_path=Path(folder) / "again.engine", runtime="tensorrt_rtx"
        )
        build_seconds = time.perf_counter() - began
    link = [link for link in manifest.certificate if link.stage.startswith("onnxruntime")][-1]
    engine = manifest.engine
    assert engine is not None
    accuracy = manifest.accuracy if name == "resnet56" else None
    return {
        "result": {
            "network": name,
            "state": state,
            "precision": precision,
            "stage": link.stage,
            "n": link.n,
            "max_rel_error": link.max_rel_error,
            "top1_agreement": link.top1_agreement,
            "top1": None if accuracy is None else accuracy.top1,
            "test_images": None if accuracy is None else accuracy.n,
            "kept_float32": list(manifest.kept_float32),
            "onnx_bytes": manifest.files["model.onnx"].size,
            "engine_bytes": manifest.files[engine.file].size,
            "engine": f"{engine.runtime} {engine.version}",
            "build_seconds": build_seconds,
            "export_seconds": seconds,
        },
        "seed": 0,
        "machine": describe_machine(),
        "tools": manifest.tools,
    }


def said(record: Record) -> str:
    """A record in a few words."""
    found = record["result"]
    if "refused" in found:
        return "refused"
    accuracy = "" if found["top1"] is None else f", top-1 {100 * found['top1']:.2f} %"
    return f"error {found['max_rel_error']:.1e}{accuracy}"


def report(folder: Path) -> None:
    """The table."""
    rows = []
    for name in ("resnet56", *ZOO):
        for state in STATES:
            for precision in PRECISIONS:
                path = folder / f"{name}.{state}.{precision}-0.json"
                if path.exists():
                    rows.append(_cells(json.loads(path.read_text())["result"]))
    columns = ["network", "precision", "largest error", "agreement", "top-1", "left in float32"]
    columns += ["ONNX, MB", "engine, MB", "engine built in, s", "all, s"]
    write_table(folder.with_suffix(".md"), columns, rows)


def _cells(found: Record) -> list[str]:
    if "refused" in found:
        name = f"{found['network']}, {found['state']}"
        why = found["refused"].partition(": output ")[0].partition("; ")[0]
        return [name, found["precision"], f"refused: {why}", *["-"] * 7]
    top1 = "-" if found["top1"] is None else f"{100 * found['top1']:.2f} %"
    return [
        f"{found['network']}, {found['state']}",
        found["precision"] + (" (emulated)" if "emulated" in found["stage"] else ""),
        f"{found['max_rel_error']:.1e} (n = {found['n']})",
        f"{100 * found['top1_agreement']:.1f} %",
        top1,
        str(len(found["kept_float32"])),
        f"{found['onnx_bytes'] / 1e6:.1f}",
        f"{found['engine_bytes'] / 1e6:.1f}",
        f"{found['build_seconds']:.1f}",
        f"{found['export_seconds']:.0f}",
    ]


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--run")
    parser.add_argument("--only", default=",".join(["resnet56", *ZOO]))
    parser.add_argument("--records", type=Path, default=RESULTS)
    parser.add_argument("--commit", action="store_true")
    args = parser.parse_args()
    if args.what == "report":
        report(args.records)
        return
    rows = [
        (f"{name}.{state}.{precision}", 0)
        for name in args.only.split(",")
        for state in STATES
        for precision in PRECISIONS
    ]
    with tempfile.TemporaryDirectory() as folder:
        tree = few_images(Path(args.data), Path(folder) / "cifar10")
        record_missing(
            rows, lambda row, _: make(args, row, tree), said, args.records, commit=args.commit
        )


if __name__ == "__main__":
    main()
