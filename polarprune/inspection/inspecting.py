"""What `polarprune inspect` shows of a network by name, a run folder or a bundle.

A network is looked at through the same analysis that places the gates, so that sites, units and
refusals are those of a training run; a bundle is looked at without torch.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarprune.errors import BundleError, ConfigError, RunFolderError
from polarprune.figure_words import WORDS
from polarprune.manifest import Manifest, is_bundle, read_manifest, read_verified
from polarprune.option_values import check_range, refuse_given
from polarprune.runs.run_folder import (
    PRUNED,
    RUN_FILE,
    RunFolder,
    means_a_path,
)

if TYPE_CHECKING:
    from torch import fx, nn

    from polarprune.collapsing import Description
    from polarprune.graph.sites import Analysis, MixCost
    from polarprune.inspection.operator_graph import OperatorGraph


@dataclass(frozen=True)
class SiteRow:
    """One gate site.

    `kept` is None where nothing has been decided; of a block it is 0 or 1. `macs_share` (0..1) is
    what the site touches: an operator between two sites counts for both. `writers` are the layers
    whose output channels are tied in a channel site, `readers` those that mix them.
    """

    name: str
    kind: str
    units: int
    kept: int | None
    unit_macs: int
    macs_share: float
    writers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class LayerRow:
    """Output channels of one convolution before and after; `block` is the site it lies in."""

    name: str
    channels: int
    kept: int | None
    block: str | None


@dataclass(frozen=True)
class RefusalRow:
    """What cannot be gated, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class NetworkInspection:
    """A network by name or in a file, or that of a run before and after (None: not finished).

    `graph` is what a picture of it shows; it is not part of the JSON.
    """

    kind: str
    model: str
    input_shape: tuple[int, ...]
    sites: tuple[SiteRow, ...]
    layers: tuple[LayerRow, ...]
    refused: tuple[RefusalRow, ...]
    dense_macs: int
    dense_params: int
    macs: int | None
    params: int | None
    blocks_removed: int | None
    figures: dict[str, float]
    graph: "OperatorGraph"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("graph", "figures")
        }
        for name in ("sites", "layers", "refused"):
            found[name] = tuple(dataclasses.asdict(row) for row in found[name])
        found |= {"top1": None, **self.figures}
        return {**found, "macs_ratio": None if self.macs is None else self.macs / self.dense_macs}


@dataclass(frozen=True)
class FileRow:
    """One file of a bundle; `problem` is None where size and digest are those of the manifest."""

    name: str
    bytes: int
    problem: str | None


@dataclass(frozen=True)
class BundleInspection:
    """A bundle: what its manifest says, and whether its files are still those."""

    manifest: Manifest
    files: tuple[FileRow, ...]

    @property
    def digests_ok(self) -> bool:
        """Whether every file is what was exported."""
        return all(file.problem is None for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        manifest = dataclasses.asdict(self.manifest)
        return {
            "kind": "bundle",
            **manifest,
            "files": [dataclasses.asdict(file) for file in self.files],
            "digests_ok": self.digests_ok,
        }


def inspect_source(
    source: str, num_classes: int | None = None, image_size: int | None = None
) -> NetworkInspection | BundleInspection:
    """Look at whatever the user named.

    Args:
        source: a run folder, a bundle, a folder of save_network, or a `--model` name.
        num_classes: of a model; None takes the zoo's own.
        image_size: of a model, square; None takes the zoo's own.

    Raises:
        RunFolderError, BundleError, ConfigError, Refused: what is wrong with the source.
    """
    path = Path(source)
    if not path.exists():
        if means_a_path(source):
            raise RunFolderError(f"{source} does not exist; give a run folder, a bundle or a model")
        return inspect_model(source, num_classes, image_size)
    given = {"--num-classes": num_classes, "--image-size": image_size}
    refuse_given(given, f"belongs to a model, and {source} is a folder")
    if is_bundle(path):
        return inspect_bundle(path)
    if (path / RUN_FILE).exists():
        return inspect_run(RunFolder(path))
    from polarprune.network_files import image_shape, is_network_folder, load_network

    if is_network_folder(path):
        network = load_network(path)
        return _inspect_network("network", source, network, image_shape(network))
    raise RunFolderError(
        f"{source} is no run folder, bundle or saved network; give one, or a model's name"
    )


def inspect_model(name: str, num_classes: int | None, image_size: int | None) -> NetworkInspection:
    """The sites of a network by its name, with nothing decided."""
    from polarprune.networks import build_network, input_size
    from polarprune.runs.run_inputs import check_classes

    check_range("--image-size", image_size, 1)
    channels, height, width = input_size(name)
    shape = (channels, image_size or height, image_size or width)
    network = build_network(name, num_classes=num_classes)
    check_classes(network, name, num_classes, shape)
    return _inspect_network("model", name, network, shape)


def inspect_run(run: RunFolder) -> NetworkInspection:
    """The sites of a run's base network, and what is left of them where the run is finished."""
    base = run.base_network()
    small = run.pruned_network() if (run.path / PRUNED).is_dir() else None
    # A dense run has no sites of its own; it is shown what it could have had.
    gated = "both" if run.config.get("target") == 1 else run.config.get("granularity", "both")
    result = run.document.get("result") or {}
    figures = {key: result[key] for key in WORDS if result.get(key) is not None}
    return _inspect_network(
        "run", run.model, base, run.input_shape, small, granularity=gated, figures=figures,
        weighed=_weighs(run.config.get("method")),
    )  # fmt: skip


def _weighs(method: str | None) -> bool:
    """Whether a run's method folds weights into blocks, which some of them cannot take."""
    from polarprune.methods import build_method

    try:
        return method is not None and build_method(method).weighs
    except ConfigError:  # somebody else's, and not here
        return False


def inspect_bundle(folder: Path) -> BundleInspection:
    """A bundle's manifest, and each of its files compared with it.

    Raises:
        BundleError: the manifest cannot be read.
    """
    manifest = read_manifest(folder)
    files = []
    for name, entry in sorted(manifest.files.items()):
        problem = None
        try:
            read_verified(folder, manifest, name)
        except BundleError as error:
            problem = str(error)
        files.append(FileRow(name, entry.size, problem))
    return BundleInspection(manifest, tuple(files))


def check_files(found: BundleInspection) -> None:
    """Refuse, once it has been shown, a bundle whose files are not those of its manifest.

    Raises:
        BundleError: what is wrong with which file.
    """
    problems = [file.problem for file in found.files if file.problem is not None]
    if problems:
        raise BundleError("; ".join(problems))


def _inspect_network(
    kind: str,
    model: str,
    base: "nn.Module",
    shape: tuple[int, ...],
    small: "nn.Module | None" = None,
    *,
    granularity: str = "both",
    figures: dict[str, float] | None = None,
    weighed: bool = False,
) -> NetworkInspection:
    import torch

    from polarprune.collapsing import describe
    from polarprune.graph.cost import count_macs, count_parameters
    from polarprune.graph.normalise import normalise
    from polarprune.graph.sites import analyse
    from polarprune.inspection.operator_graph import operator_graph

    example = torch.zeros(2, *shape)
    plain = normalise(base.eval(), example)
    analysis = analyse(
        plain, (1, *shape), blocks=granularity != "channel", channels=granularity != "block",
        weighed=weighed,
    )  # fmt: skip
    dense_macs = count_macs(base, example)
    description = None if small is None else describe(small)
    left = None if small is None else {name for name, _ in small.named_modules()}
    sites = _site_rows(analysis, dense_macs, description, left)
    removed = frozenset(
        place for place, row in enumerate(sites) if row.kind == "block" and row.kept == 0
    )
    return NetworkInspection(
        kind=kind,
        model=model,
        input_shape=shape,
        sites=sites,
        layers=_layer_rows(analysis, plain, small),
        refused=tuple(RefusalRow(r.where, r.reason) for r in analysis.refused),
        dense_macs=dense_macs,
        dense_params=count_parameters(base),
        macs=None if small is None else count_macs(small, example),
        params=None if small is None else count_parameters(small),
        blocks_removed=None if description is None else description.blocks_removed,
        figures=figures or {},
        graph=operator_graph(plain, analysis, removed, small),
    )


def _site_rows(
    analysis: "Analysis",
    dense_macs: int,
    description: "Description | None",
    left: set[str] | None,
) -> tuple[SiteRow, ...]:
    rows = []
    for place, site in enumerate(analysis.sites):
        kept = None
        if description is not None and left is not None:
            kept = description.kept.get(site.name, (site.kind, site.units, site.units))[1]
            writers = [c for c in analysis.costs if place in c.writes and not c.mix.depthwise]
            # The channels inside a block that was removed went with it, open or not.
            if writers and not any(cost.mix.layer in left for cost in writers):
                kept = 0
        touched = (
            site.unit_macs
            if site.kind == "block"
            else sum(_touched_macs(cost, place, site.units) for cost in analysis.costs)
        )
        share = touched / dense_macs if dense_macs else 0.0
        mixing = [cost for cost in analysis.costs if not cost.mix.depthwise]
        writing = dict.fromkeys(cost.mix.layer for cost in mixing if place in cost.writes)
        reading = dict.fromkeys(cost.mix.layer for cost in mixing if place in cost.reads)
        rows.append(
            SiteRow(
                site.name, site.kind, site.units, kept, site.unit_macs, share,
                tuple(writing), tuple(reading),
            )
        )  # fmt: skip
    return tuple(rows)


def _touched_macs(cost: "MixCost", place: int, units: int) -> int:
    """MACs of an operator in which the channels of a site take part."""
    if cost.mix.groups > 1:
        return cost.group_macs.get(place, 0) * units
    read, written = cost.reads.get(place, 0) * units, cost.writes.get(place, 0) * units
    inputs, outputs = len(cost.mix.inputs), len(cost.mix.outputs)
    return cost.per_pair * (read * outputs + inputs * written - read * written)


def _layer_rows(
    analysis: "Analysis", plain: "fx.GraphModule", small: "nn.Module | None"
) -> tuple[LayerRow, ...]:
    """Each convolution once, in the order of the graph."""
    from torch import nn

    kept = {} if small is None else dict(small.named_modules())
    rows: dict[str, LayerRow] = {}
    for mix in analysis.labels.mixes:
        if isinstance(plain.get_submodule(mix.layer), nn.Linear) or mix.layer in rows:
            continue
        channels = None
        if small is not None:
            channels = int(getattr(kept.get(mix.layer), "out_channels", 0))
        around = [p for p, block in analysis.additions.items() if mix.node in block.private]
        # Of blocks inside blocks the innermost: the one with the fewest nodes of its own.
        around.sort(key=lambda p: len(analysis.additions[p].private))
        block = analysis.sites[around[0]].name if around else None
        rows[mix.layer] = LayerRow(mix.layer, len(mix.outputs), channels, block)
    return tuple(rows.values())
