"""What does r cost? MACs that the mass criterion foresees before a step is trained (paper C).

    python -m benchmarks.mass_forecast --data TREE --weights FOLDER
    python -m benchmarks.mass_forecast --data digits --images 32 --record FILE    # a rehearsal

For each r, of 256 images: the MACs that `mask-predictor` foresees (from how often each channel is
among the heavy ones), and the mean MACs of the images if each were computed with its own heavy
channels alone. The two differ because a layer's price is a product of its inputs and its outputs.
FOLDER holds published weights (cifar10-resnet20.safetensors, ...); untrained networks, seed 0, say
whether the estimate needs training at all. TREE is a class-folder tree of CIFAR-10.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.records import describe_machine
from polarprune import GatedNetwork, attach_gates, build_network
from polarprune.datasets import load_dataset
from polarprune.dynamic_cost import dynamic_macs, forecast_macs
from polarprune.methods.mask_predictor import heavy_channels
from polarprune.networks import weights_normalisation

RECORD = Path(__file__).parent / "results" / "mass_forecast.json"
MASSES = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
NETWORKS = ("resnet20", "resnet56")


def own_decisions(gated: GatedNetwork, mass: float) -> list[Tensor]:
    """Per site (n, units): which channels are heavy in each image of the last batch."""
    heat = dict(zip(map(id, gated.gate_modules()), gated.units().heat, strict=True))
    return [
        heavy_channels(heat[id(site.source)][:, site.units], mass) for site in gated.site_gates()
    ]


def forecasts(model: str, weights: Path | None, data: str, images: int) -> list[dict[str, Any]]:
    """One row a mass: what is foreseen, and what the images would take, over the dense MACs."""
    given = None if weights is None else str(weights)
    test = load_dataset(
        data, image_size=32, mean_std=None if given is None else weights_normalisation(given)
    ).test
    batch, _ = next(test.batches(images, shuffle_seed=0, augment=False))
    rows = []
    for mass in MASSES:
        torch.manual_seed(0)
        net = build_network(model, num_classes=10, weights=given)
        # A fresh network's running statistics are not those of any image.
        net.train(given is None)
        gated = attach_gates(
            net, batch[:2], blocks=False, method="mask-predictor", method_options={"mass": mass}
        )
        gated.search()  # heads start open: the network is as it was
        with torch.no_grad():
            gated(batch)
        dense = gated.circuit.dense_macs
        foreseen, each = forecast_macs(gated), dynamic_macs(gated, own_decisions(gated, mass))
        assert foreseen is not None
        assert each is not None
        rows.append({"mass": mass, "forecast": foreseen / dense, "own": each / dense})
    return rows


def main(
    data: Annotated[str, typer.Option(help="A class-folder tree, or digits for a rehearsal.")],
    weights: Annotated[Path | None, typer.Option(help="Folder of published weights.")] = None,
    images: Annotated[int, typer.Option(help="Test images.")] = 256,
    record: Annotated[Path, typer.Option(help="Where it is written.")] = RECORD,
) -> None:
    """Forecast and record."""
    rows = []
    for model in NETWORKS:
        trained = None if weights is None else weights / f"cifar10-{model}.safetensors"
        for given in [None] if trained is None else [None, trained]:
            named = "untrained" if given is None else "published weights"
            rows.append(
                {"model": model, "weights": named, "masses": forecasts(model, given, data, images)}
            )
            print(f"{model}, {named}:  r: foreseen, by each image's own channels")
            for row in rows[-1]["masses"]:
                print(f"  {row['mass']:.2f}: {row['forecast']:.3f}, {row['own']:.3f}")
    document = {
        "what": "MACs over dense ones that a mass r keeps, before training",
        "machine": describe_machine(),
        "images": images,
        "seed": 0,
        "rows": rows,
    }
    record.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
