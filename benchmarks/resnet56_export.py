"""Published ResNet-56 weights -> our resnet56 -> ONNX -> all 10,000 CIFAR-10 test images.

    python -m benchmarks.resnet56_export --data TREE --weights resnet56.safetensors

Also cuts that network at random decisions (option-A shortcuts, flatten before the classifier) and
certifies the cut on real images, in float64. TREE is a class-folder tree of CIFAR-10.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.records import describe_machine
from polarprune.attaching import attach_gates
from polarprune.certificates import certify
from polarprune.collapsing import collapse
from polarprune.datasets import load_dataset
from polarprune.graph.cost import count_macs
from polarprune.networks import build_network, weights_normalisation
from polarprune_export import export_bundle

RECORD = Path(__file__).parent / "results" / "resnet56_export.json"
PUBLISHED_TOP1 = 0.9339
IMAGES = 128  # real images that the cut is certified on


def certified_cut(weights: str, data: str, seed: int) -> dict[str, object]:
    """A random half of all units closed, cut, and compared on real images."""
    net = build_network("resnet56", num_classes=10, weights=weights).eval()
    normalisation = weights_normalisation(weights)
    test = load_dataset(data, image_size=32, mean_std=normalisation).test
    images, _ = next(iter(test.batches(IMAGES, shuffle_seed=seed, augment=False)))
    gated = attach_gates(net, images[:2])
    generator = torch.Generator().manual_seed(seed)
    decisions = {s.name: torch.rand(s.units, generator=generator) < 0.5 for s in gated.sites}
    for site in gated.sites:
        if site.kind == "channel":
            decisions[site.name][0] = True
    gated.set_decisions(decisions)
    small = collapse(gated)
    macs = count_macs(small, images)
    certificate = certify(gated, small, images, real=True)
    return {"seed": seed, "kept": macs / count_macs(net, images), **certificate.as_dict()}


def main() -> None:
    """Export, evaluate, cut, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        exported = export_bundle("resnet56", data=args.data, weights=args.weights, out=out)
        manifest = json.loads((out / "manifest.json").read_text())
    record = {
        "what": "resnet56, published CIFAR-10 weights, exported to ONNX, run by ONNX Runtime (CPU)",
        "machine": describe_machine(),
        "test_images": 10_000,
        "top1": exported["top1"],
        "published_top1": PUBLISHED_TOP1,
        "max_abs_error": exported["max_abs_error"],
        "certificate": manifest["certificate"],
        "random_cuts": [certified_cut(args.weights, args.data, seed) for seed in range(3)],
    }
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    print(f"top-1 {exported['top1']:.4f} of 10,000 (published {PUBLISHED_TOP1})")
    for cut in record["random_cuts"]:
        print(f"random cut {cut['seed']}: kept {cut['kept']:.3f}, error {cut['max_rel_error']:.1e}")


if __name__ == "__main__":
    main()
