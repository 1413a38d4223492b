"""Run folders that look trained and bundles that look exported, without the work."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import polarprune
from polarprune.collapsing import describe
from polarprune.graph.cost import count_parameters
from polarprune.manifest import (
    BatchProfile,
    CertificateLink,
    FileEntry,
    Manifest,
    Preprocessing,
    TensorSpec,
    write_manifest,
)

LAST_STEP, SEARCH_STEP, CUT_STEP = 100, 10, 40


def write_pruned_run(folder: Path, model: str = "resnet20") -> Path:
    """Every third block and channel of a network closed, and the story that led there."""
    torch.manual_seed(0)
    net = polarprune.build_network(model)
    example = torch.zeros(2, 3, 8, 8)
    gated = polarprune.attach_gates(net, example)
    blocks = [site.name for site in gated.sites if site.kind == "block"]
    decisions = {
        site.name: torch.arange(site.units) % 3 != 0
        if site.kind == "channel"
        else torch.tensor([blocks.index(site.name) % 3 != 1])
        for site in gated.sites
    }
    gated.set_decisions(decisions)
    small = polarprune.collapse(gated)
    polarprune.save_network(small, folder / "pruned")
    description = describe(small)
    assert description is not None
    dense_macs, macs = (polarprune.count_macs(side, example) for side in (net, small))
    document = {
        "schema": 1,
        "config": {"model": model, "data": "digits", "target": 0.5, "granularity": "both"},
        "mean": [0.3, 0.3, 0.3],
        "std": [0.3, 0.3, 0.3],
        "resize_side": 8,
        "classes": [str(digit) for digit in range(10)],
        "input_shape": [3, 8, 8],
        "result": {
            "run": str(folder),
            "top1": 0.9,
            "dense_macs": dense_macs,
            "macs": macs,
            "macs_ratio": macs / dense_macs,
            "params": count_parameters(small),
            "dense_params": count_parameters(net),
            "blocks_removed": description.blocks_removed,
            "agreement": 1.0,
            "train_macs_ratio": 0.7,
            "seconds": 1.0,
        },
    }
    (folder / "run.json").write_text(json.dumps(document))
    cut = {"step": CUT_STEP, "macs_before": dense_macs, "macs_after": macs, "agreement": 1.0}
    (folder / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "step": LAST_STEP}) + "\n")
    (folder / "openness.jsonl").write_text("".join(_openness_lines(decisions)))
    return folder


def _openness_lines(decisions: dict[str, torch.Tensor]) -> Iterator[str]:
    """From all open before the search to what was decided, at the cut."""
    for step in range(SEARCH_STEP + 1, CUT_STEP):
        share = (step - SEARCH_STEP) / 50
        opened = {
            name: [1 - share * (0.2 if kept else 1.4) for kept in units.tolist()]
            for name, units in decisions.items()
        }
        yield json.dumps({"step": step, "open": opened}) + "\n"


@pytest.fixture(scope="session")
def pruned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-20 without blocks 2, 5 and 8 and without every third channel; read it only."""
    return write_pruned_run(tmp_path_factory.mktemp("pruned") / "run")


@pytest.fixture(scope="session")
def make_pruned_run() -> Callable[..., Path]:
    return write_pruned_run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose one file is no network: enough to be looked at."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    link = CertificateLink("collapsed", "gated", "real", 32, 1e-9, 1e-15, 2e-15, 1.0, True)
    made = Manifest(
        name="resnet20",
        precision="fp32",
        base={"model": "resnet20"},
        inputs=(TensorSpec("input", "float32", (-1, 3, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", (-1, 2)),),
        preprocessing=Preprocessing(8, 8, 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        classes=("cat", "dog"),
        batch=BatchProfile(1, 8, 64),
        engine=None,
        certificate=(link,),
        real_images="32 test images of pets",
        accuracy=None,
        tools={},
        files={"model.onnx": FileEntry.of(b"weights")},
    )
    write_manifest(made, folder)
    return folder
