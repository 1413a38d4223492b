"""On a GPU: one run of every method, from the first step to the file that is saved."""

from pathlib import Path

import pytest
import torch
from digit_runs import Killed, config, kill_in_epoch
from mask_trees import write_pairs

from polarprune import attach_gates, build_network, certify, collapse, load_network
from polarprune.methods import is_bounded, method_names
from polarprune.runs.run_folder import PRUNED, RunFolder
from polarprune.runs.train_config import TrainConfig
from polarprune.runs.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def _asked(method: str) -> dict[str, object]:
    return {"device": "cuda", "method": method, "target": 0.5 if is_bounded(method) else None}


@pytest.mark.parametrize("method", method_names())
def test_a_run_is_cut_saved_and_the_same_network_on_the_cpu(tmp_path: Path, method: str) -> None:
    result = train(config(tmp_path / "run", **_asked(method)))

    folder = RunFolder(tmp_path / "run")
    assert folder.document["device"] == "cuda"
    assert result.joules is None or result.joules > 0
    assert result.macs_ratio < 1
    assert folder.cuts()
    assert all(cut["max_rel_error"] < 1e-4 for cut in folder.cuts())
    net = load_network(tmp_path / "run" / PRUNED).double().eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        here, there = net(images), net.to("cuda")(images.to("cuda")).cpu()
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", method_names())
def test_a_cut_on_the_gpu_is_certified_there(method: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32, device="cuda")
    gated = attach_gates(build_network("resnet20", num_classes=10).cuda(), images, method=method)
    gated.set_decisions(
        {
            site.name: torch.rand(site.units) < 0.6 if site.units > 1 else torch.ones(1).bool()
            for site in gated.sites
        }
    )
    small = collapse(gated)

    assert {parameter.device.type for parameter in small.parameters()} == {"cuda"}
    assert certify(gated, small, images).max_rel_error < 1e-9


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(config(tmp_path / "run", device="cuda"), kill_in_epoch(4))
    result = train(config(tmp_path / "run", device="cuda", resume=True))
    whole = train(config(tmp_path / "whole", device="cuda"))
    # cuDNN adds in an order of its own, so the two part a little.
    assert result.top1 == pytest.approx(whole.top1, abs=0.1)
    assert [line["epoch"] for line in RunFolder(tmp_path / "run").metrics()] == [1, 2, 3, 4, 5]


def test_a_unet_is_trained_and_cut(tmp_path: Path) -> None:
    result = train(
        TrainConfig(
            "unet-d2-w8", str(write_pairs(tmp_path / "data")), tmp_path / "run", batch_size=4,
            method="relaxation", task="segmentation", epochs=20, image_size=32, device="cuda",
        )
    )  # fmt: skip
    assert result.macs_ratio < 1


# Inductor imports what torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_run(tmp_path: Path) -> None:
    result = train(config(tmp_path / "run", device="cuda", compile=True))
    assert result.macs_ratio < 1
