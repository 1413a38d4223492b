"""Everything the coverage program asks of one network, as one row of its record."""

import copy
import re
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.measures import (
    Row,
    foreign_layers,
    one_sided_share,
    pinned_shares,
    random_half,
    same_network,
    verdict,
)
from benchmarks.coverage.reference import closed, find_readers, restricted
from benchmarks.coverage.signal import largest_relative_error, outputs, prepare, variation
from polarprune import attach_gates, collapse, count_macs, load_network, save_network
from polarprune.decisions import macs_of
from polarprune.errors import ParityError, PolarpruneError
from polarprune.gates import GatedNetwork
from polarprune.graph.cost import count_parameters
from polarprune.networks import build_network, input_size

EXACT = 1e-9
MAX_REPAIRS = 50
SLOW_SECONDS = 15.0
"""What takes longer once is not timed again."""
MOVERS = ("Slice", "Concat", "Gather", "Transpose", "Split", "Reshape")


@dataclass(frozen=True)
class Settings:
    """How every network is checked; a row is reused only under equal settings.

    Attributes:
        image_size: in place of each network's own.
        compare_size: comparisons run at this size, or at the network's own where that is smaller
            or the network takes no other.
        batch: images in a comparison; at least two, for training mode.
        repeats: of each timing; the median is reported.
    """

    image_size: int | None = None
    compare_size: int = 128
    batch: int = 3
    seed: int = 0
    repeats: int = 3
    onnx: bool = True


class Wrong(Exception):
    """Something that has to hold does not."""


class Coverage:
    """One network's checks; `row` is complete after each stage as far as that got."""

    def __init__(self, name: str, settings: Settings, save: Callable[[Row], None]) -> None:
        """Take `save` to be called with the row after each stage."""
        self.settings = settings
        self.save = save
        self.row: Row = {"name": name, "settings": asdict(settings), "problems": []}

    def run(self) -> Row:
        """All stages; one that fails leaves its line in the row, and those that can, go on."""
        start = time.perf_counter()
        if self.stage("build", self.build) and self.stage("attach", self.attach):
            self.stage("collapse", self.collapse_at_own_size)
            if self.stage("attach float64", self.attach_float64):
                self.compare()
        self.row["verdict"] = verdict(self.row)
        self.row["seconds"] = round(time.perf_counter() - start, 1)
        self.save(self.row)
        return self.row

    def compare(self) -> None:
        """The comparisons in float64, and the export of what they collapsed."""
        self.stage("exact", self.compare_channels)
        if "exact" in self.row:
            self.stage("reference", self.compare_reference)
        self.stage("blocks", self.compare_blocks)
        if self.settings.onnx and "exact" in self.row:
            self.stage("onnx", self.export)

    def stage(self, name: str, function: Callable[[], None]) -> bool:
        """Run one stage; whether it went well."""
        self.row["stage"] = name
        self.save(self.row)
        before = len(self.row["problems"])
        try:
            function()
        except Exception as error:
            self.problem(name, error)
        return len(self.row["problems"]) == before

    def problem(self, stage: str, error: Exception) -> None:
        """Note what went wrong, in one line."""
        kind = "crash"
        if isinstance(error, Wrong | ParityError):
            kind = "WRONG"
        elif isinstance(error, PolarpruneError):
            kind = "refused"
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        found: Row = {"stage": stage, "kind": kind, "line": line[:300]}
        if kind == "crash":
            frame = traceback.extract_tb(error.__traceback__)[-1]
            found["line"] = f"{type(error).__name__}: {found['line']}"
            found["at"] = f"{Path(frame.filename).name}:{frame.lineno}"
        self.row["problems"].append(found)

    def expect(self, stage: str, holds: bool, line: str) -> None:
        """Note a wrong result and go on."""
        if not holds:
            self.problem(stage, Wrong(line))

    def build(self) -> None:
        """The network, with a signal in it."""
        torch.manual_seed(self.settings.seed)
        name = self.row["name"]
        self.net = build_network(name, num_classes=None).eval()
        channels, own, _ = input_size(name)
        self.size = self.settings.image_size or own
        self.small = self._comparison_size(channels)
        self.row |= {"parameters": count_parameters(self.net), "image_size": self.size}
        self.row["compare_size"] = self.small
        self.images = self._images(channels, self.small).double()
        prepare(self.net, self.images.float(), self.settings.seed)
        self.example = self._images(channels, self.size)[:1]
        self.net64 = copy.deepcopy(self.net).double()
        plain = outputs(self.net64, self.images, training=False)
        self.row["output"] = {
            "largest": float(max(t.abs().max() for t in plain)),
            "variation": variation(plain),
        }

    def _images(self, channels: int, side: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed + 1)
        return torch.randn(self.settings.batch, channels, side, side, generator=generator)

    def _comparison_size(self, channels: int) -> int:
        """The smaller size where the network runs on it in both modes."""
        wanted = min(self.size, self.settings.compare_size)
        try:
            for training in (False, True):
                outputs(self.net, self._images(channels, wanted), training=training)
        except Exception:  # whatever a network says of a size that it does not take
            return self.size
        return wanted

    def attach(self) -> None:
        """Gates at the network's own size, in float32."""
        self.gated, seconds = self._timed(lambda: attach_gates(self.net, self.example))
        self.row["attach_seconds"] = seconds
        kinds: dict[str, list[int]] = {"block": [], "channel": []}
        for site in self.gated.sites:
            kinds[site.kind].append(site.units)
        self.row["sites"] = {kind: len(units) for kind, units in kinds.items()}
        self.row["units"] = {kind: sum(units) for kind, units in kinds.items()}
        self.row["refusals"] = [{"where": r.where, "reason": r.reason} for r in self.gated.refused]
        self.row["pinned"] = pinned_shares(self.gated)
        self.row["one_sided"] = one_sided_share(self.gated)

    def collapse_at_own_size(self) -> None:
        """A random half of the channels cut: MACs, plain layers, second cut, file."""
        decisions = self._decide(self.gated, blocks=False)
        dense, seconds = self._timed(lambda: collapse(self.gated))
        macs = count_macs(self.net, self.example)
        kept = count_macs(dense, self.example)
        self.row["collapse_seconds"] = seconds
        self.row |= {"macs": macs, "macs_kept": kept, "kept": kept / macs}
        ordered = [decisions[site.name] for site in self.gated.sites]
        expected = macs_of(self.gated.circuit, ordered)
        self.expect("macs", kept == expected, f"counted {kept} MACs, expected {expected}")
        self.row["foreign_layers"] = foreign_layers(dense)
        again = collapse(dense)
        self.row["idempotent"] = same_network(dense, again)
        self.expect("idempotence", self.row["idempotent"], "a second collapse changes the network")
        self.stage("file", lambda: self._round_trip(dense))

    def _round_trip(self, dense: nn.Module) -> None:
        """Saved and loaded in this process: equal tensors, bit-equal outputs.

        At the network's own size: one that branches on sizes was cut for that one.
        """
        size = self.row["image_size"]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, self.images.shape[1], size, size, generator=generator)
        with tempfile.TemporaryDirectory() as folder:
            save_network(dense, folder)
            loaded = load_network(folder)
        # Buffers that no state_dict holds are compared too.
        before, after = (
            {**dict(net.named_parameters()), **dict(net.named_buffers())} for net in (dense, loaded)
        )
        same = before.keys() == after.keys() and all(
            torch.equal(before[k], after[k]) for k in after
        )
        if same:
            pairs = zip(
                outputs(dense, images, training=False),
                outputs(loaded, images, training=False),
                strict=True,
            )
            same = all(torch.equal(a, b) for a, b in pairs)
        self.row["round_trip"] = same
        self.expect("file", same, "the loaded network is not the saved one")

    def attach_float64(self) -> None:
        """The same gates in float64 at the size of the comparisons."""
        self.gated64 = attach_gates(self.net64, self.images)
        same = [(s.name, s.units) for s in self.gated.sites] == [
            (s.name, s.units) for s in self.gated64.sites
        ]
        self.row["same_sites_at_compare_size"] = same

    def compare_channels(self) -> None:
        """Collapsed against frozen gates, a random half of the channels closed."""
        self.channels = self._decide(self.gated64, blocks=False)
        self.dense64 = collapse(self.gated64)
        self.row["exact"] = self._errors("exact", self.gated64, self.dense64)

    def compare_reference(self) -> None:
        """Collapsed against the original network with hooks."""
        readers = find_readers(self.net64, self.gated64, self.images)
        decisions = restricted(self.channels, readers.sites)
        self.gated64.set_decisions(decisions)
        dense = self.dense64 if not readers.skipped else collapse(self.gated64)
        with closed(self.net64, readers, decisions) as reference:
            errors = self._errors("reference", reference, dense)
        channel_sites = sum(site.kind == "channel" for site in self.gated64.sites)
        self.row["reference"] = {
            **errors,
            "layers": len(readers.positions),
            "skipped": readers.skipped,
            "sites": len(readers.sites),
            "sites_left_open": channel_sites - len(readers.sites),
        }

    def compare_blocks(self) -> None:
        """The same with a random half of the blocks closed as well."""
        decisions = self._decide(self.gated64, blocks=True)
        dense = collapse(self.gated64)
        errors = self._errors("blocks", self.gated64, dense)
        kept = count_macs(dense, self.images)
        expected = macs_of(
            self.gated64.circuit, [decisions[site.name] for site in self.gated64.sites]
        )
        self.expect("blocks", kept == expected, f"counted {kept} MACs, expected {expected}")
        self.expect(
            "blocks", same_network(dense, collapse(dense)), "a second collapse changes the network"
        )
        whole = count_macs(self.net64, self.images)
        self.row["blocks"] = {
            **errors,
            "closed": sum(not bool(decisions[s.name][0]) for s in self.gated64.sites
                          if s.kind == "block"),
            "kept": kept / whole,
        }  # fmt: skip

    def _errors(self, stage: str, expected: nn.Module, got: nn.Module) -> Row:
        found: Row = {}
        for training in (False, True):
            mode = "training" if training else "evaluation"
            want = outputs(expected, self.images, training=training)
            error = largest_relative_error(want, outputs(got, self.images, training=training))
            found[mode] = error
            found[f"{mode}_variation"] = variation(want)
            self.expect(stage, error <= EXACT, f"relative error {error:.1e} in {mode} mode")
        return found

    def _decide(self, gated: GatedNetwork, *, blocks: bool) -> dict[str, Tensor]:
        """Set a random half, opening a site again where a live layer would read nothing."""
        decisions = random_half(gated, self.settings.seed, blocks=blocks)
        for repairs in range(MAX_REPAIRS + 1):
            try:
                gated.set_decisions(decisions)
            except ValueError as error:
                named = [n for n in re.findall(r"'([^']+)'", str(error)) if n in decisions]
                if not named or repairs == MAX_REPAIRS:
                    raise
                decisions[named[0]] = torch.ones_like(decisions[named[0]])
            else:
                self.row["repairs"] = self.row.get("repairs", 0) + repairs
                return decisions
        raise AssertionError("unreachable")

    def export(self) -> None:
        """ONNX of the collapsed network in float32: written, linted, run, counted."""
        from polarprune_export import check_parity, lint_onnx, write_onnx
        from polarprune_export.base_operators import base_operators

        found: Row = {}
        self.row["onnx"] = found
        dense = copy.deepcopy(self.dense64).float().eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            report = write_onnx(dense, path, self.images.float()[:1])
            found["operators"] = {kind: report.operators.get(kind, 0) for kind in MOVERS}
            found["unfolded"] = len(report.unfolded)
            net = build_network(self.row["name"], num_classes=None).eval()
            base = base_operators(report, dense, self.images.float()[:1], lambda: net)
            found["base_operators"] = base
            try:
                lint_onnx(path, base=base)
                found["lint"] = None
            except PolarpruneError as error:
                found["lint"] = str(error).replace(str(path), "the graph").splitlines()[0][:300]
            links = check_parity(dense, path, real_images=None).links
        found["parity"] = max(link.max_rel_error for link in links)

    def _timed(self, function: Callable[[], Any]) -> tuple[Any, Row]:
        """The last result and the median of a few timings; n is how many."""
        seconds: list[float] = []
        while len(seconds) < self.settings.repeats and max(seconds, default=0) < SLOW_SECONDS:
            start = time.perf_counter()
            result = function()
            seconds.append(time.perf_counter() - start)
        return result, {
            "median": round(statistics.median(seconds), 3),
            "n": len(seconds),
            "raw": [round(s, 3) for s in seconds],
        }


def check_network(name: str, settings: Settings, save: Callable[[Row], None] | None = None) -> Row:
    """One row of the record."""
    return Coverage(name, settings, save or (lambda row: None)).run()
