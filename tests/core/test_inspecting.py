"""What `inspect` says, against the networks themselves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

import polarprune
from polarprune.errors import ConfigError, PolarpruneError, RunFolderError
from polarprune.inspection.inspecting import (
    BundleInspection,
    NetworkInspection,
    inspect_source,
)
from polarprune.inspection.inspection_tables import bundle_tables, network_tables


def in_words(*things: object) -> str:
    console = Console(width=200, markup=False)
    with console.capture() as capture:
        for thing in things:
            console.print(thing)
    return capture.get()


def network(found: NetworkInspection | BundleInspection) -> NetworkInspection:
    assert isinstance(found, NetworkInspection)
    return found


@pytest.fixture(scope="module")
def model() -> NetworkInspection:
    return network(inspect_source("resnet20", num_classes=7, image_size=16))


def test_the_sites_of_a_model_are_those_of_attach_gates(model: NetworkInspection) -> None:
    net = polarprune.build_network("resnet20", num_classes=7)
    gated = polarprune.attach_gates(net, torch.zeros(2, 3, 16, 16))
    assert [(row.name, row.kind, row.units, row.unit_macs) for row in model.sites] == [
        (site.name, site.kind, site.units, site.unit_macs) for site in gated.sites
    ]
    assert all(row.kept is None for row in model.sites)
    assert (model.macs, model.params, model.blocks_removed) == (None, None, None)


def test_the_totals_of_a_model_are_counted_on_it(model: NetworkInspection) -> None:
    net = polarprune.build_network("resnet20", num_classes=7)
    assert model.dense_macs == polarprune.count_macs(net, torch.zeros(1, 3, 16, 16))
    assert model.dense_params == sum(p.numel() for p in net.parameters())
    assert [layer.channels for layer in model.layers] == [
        module.out_channels for module in net.modules() if isinstance(module, torch.nn.Conv2d)
    ]


def test_the_layers_that_are_tied_in_a_stream_are_named(model: NetworkInspection) -> None:
    """Option A: the first 16 channels run through all three stages, up to the classifier."""
    [stream] = [row for row in model.sites if row.name == "conv1"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert stream.writers == ("conv1", *(f"{block}.conv2" for block in blocks))
    assert stream.readers == (*(f"{block}.conv1" for block in blocks), "linear")
    assert "layer1.0.conv2, layer1.1.conv2, 7 more" in in_words(*network_tables(model))


def test_a_share_is_what_the_layers_of_the_site_cost(model: NetworkInspection) -> None:
    # layer1.0.conv1 is written by one 3x3 convolution and read by another, 16 to 16 channels.
    [row] = [row for row in model.sites if row.name == "layer1.0.conv1"]
    assert row.macs_share == pytest.approx(2 * 16 * 16 * 9 * 16 * 16 / model.dense_macs)
    [block] = [row for row in model.sites if row.name == "layer1.0"]
    assert block.macs_share == pytest.approx(row.macs_share)
    assert all(0 < row.macs_share < 1 for row in model.sites)


def test_a_depthwise_network_has_shares_and_blocks() -> None:
    found = network(inspect_source("torchvision:mobilenet_v2", num_classes=10, image_size=32))
    assert sum(row.kind == "block" for row in found.sites) == 10
    assert all(0 < row.macs_share < 1 for row in found.sites)


def test_refusals_are_shown_with_their_reasons() -> None:
    found = network(inspect_source("torchvision:convnext_tiny", num_classes=10, image_size=32))
    assert found.refused
    words = in_words(*network_tables(found))
    assert found.refused[0].where in words
    assert "Refused: nothing." not in words


def test_a_run_shows_what_is_left_of_each_site(pruned_run: Path) -> None:
    found = network(inspect_source(str(pruned_run)))
    kept = {row.name: row.kept for row in found.sites}
    assert (kept["layer1.0"], kept["layer1.1"]) == (1, 0)
    assert kept["layer1.0.conv1"] == 10  # of 16, every third closed
    assert found.blocks_removed == 3
    words = in_words(*network_tables(found))
    assert "removed" in words
    assert "Refused: nothing." in words
    assert "Top-1 on the test split: 90.00 %." in words


def test_the_channels_of_a_removed_block_are_not_kept(pruned_run: Path) -> None:
    found = network(inspect_source(str(pruned_run)))
    [row] = [row for row in found.sites if row.name == "layer1.1.conv1"]
    assert row.kept == 0


def test_the_layers_and_totals_of_a_run_are_those_of_its_network(pruned_run: Path) -> None:
    found = network(inspect_source(str(pruned_run)))
    small = polarprune.load_network(pruned_run / "pruned")
    widths = {
        name: module.out_channels
        for name, module in small.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    assert {layer.name: layer.kept for layer in found.layers if layer.kept} == widths
    assert {layer.block for layer in found.layers if layer.kept == 0} == {
        "layer1.1",
        "layer2.1",
        "layer3.1",
    }
    assert found.macs == polarprune.count_macs(small, torch.zeros(1, 3, 8, 8))
    assert found.params == sum(p.numel() for p in small.parameters())
    document = json.loads(json.dumps(found.as_dict()))
    assert document["macs_ratio"] == found.macs / found.dense_macs


def test_an_unfinished_run_is_shown_as_such(pruned_run: Path, tmp_path: Path) -> None:
    shutil.copy(pruned_run / "run.json", tmp_path)
    found = network(inspect_source(str(tmp_path)))
    assert found.macs is None
    assert "--resume" in in_words(*network_tables(found))


def test_a_bundle_is_shown_whole(bundle: Path) -> None:
    found = inspect_source(str(bundle))
    assert isinstance(found, BundleInspection)
    assert found.digests_ok
    words = in_words(*bundle_tables(found))
    for expected in ("model.onnx", "ok", "collapsed", "cat, dog", "batch x 3 x 8 x 8", "centre 8"):
        assert expected in words
    assert json.loads(json.dumps(found.as_dict()))["digests_ok"] is True


def test_a_file_changed_after_export_is_pointed_out(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"WEIGHTS")
    found = inspect_source(str(bundle))
    assert isinstance(found, BundleInspection)
    assert not found.digests_ok
    assert "NOT OK" in in_words(*bundle_tables(found))


def test_a_saved_network_is_looked_at_as_a_model_is(tmp_path: Path) -> None:
    gated = polarprune.attach_gates(polarprune.build_network("resnet20"), torch.zeros(2, 3, 16, 16))
    small = polarprune.collapse(gated)
    polarprune.save_network(small, tmp_path / "small")
    found = inspect_source(str(tmp_path / "small"))
    assert isinstance(found, NetworkInspection)
    assert (found.kind, found.input_shape) == ("network", (3, 16, 16))
    assert found.dense_macs == polarprune.count_macs(small, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match=r"--image-size belongs to a model, and .* is a folder"):
        inspect_source(str(tmp_path / "small"), image_size=8)


def test_a_folder_of_nothing_we_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder, bundle or saved network; give one"):
        inspect_source(str(tmp_path))


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"image_size": 8}])
def test_options_of_a_model_are_refused_for_a_run(
    pruned_run: Path, options: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="belongs to a model"):
        inspect_source(str(pruned_run), **options)


@pytest.mark.parametrize(
    ("name", "options"), [("resnet21", {}), ("resnet20", {"image_size": 0}), ("no/such/run", {})]
)
def test_a_name_or_size_that_makes_no_network_is_one_line(
    name: str, options: dict[str, int]
) -> None:
    with pytest.raises(PolarpruneError) as caught:
        inspect_source(name, **options)
    assert "\n" not in str(caught.value)
