"""One pass: train, search, cut and settle inside the user's own loop, in four lines.

one = OnePass(gated, optimizer, target=0.5, total_steps=steps)
loss = task_loss(one.network(x), y) + one.loss()
loss.backward(); optimizer.step(); one.step()
net = one.finish()
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from polarprune.averages import Averaged, check_average, gated_in
from polarprune.certificates import Certificate, certify, top1_agreement
from polarprune.collapsing import META, blocks_removed, collapse_with_origins
from polarprune.cut_records import (
    CutRecord,
    Look,
    look_at,
    taken_by,
)
from polarprune.cutting import ClosedFor, CutRule, choose_cut, left_of
from polarprune.decisions import macs_of
from polarprune.errors import Refused
from polarprune.gate_training import GateTrainer
from polarprune.gates import GatedNetwork
from polarprune.graph.cost import count_parameters
from polarprune.last_batch import LastBatch, checked, noise_like
from polarprune.latency_table import LatencyTable
from polarprune.loop_mistakes import check_finite, check_held_out, check_holding
from polarprune.optimizer_state import check_sliceable, hand_over, take_out
from polarprune.option_values import check_range
from polarprune.phases import Phases
from polarprune.runs.ranks import as_rank_0_has_it, average_buffers
from polarprune.targets import budget_of

__all__ = ["OnePass", "Phases"]


class OnePass:
    """Prunes a gated network while the caller trains it.

    Attributes:
        network: what to call for the forward pass: gated at first, plain and small in the end. A
            wrapper of it (DDP, torch.compile) has to be made anew once step() returns a record.
            DDP needs find_unused_parameters=True: gates take no part before the search.
        cuts: one record a cut since this was made.
        steps: training steps done.
    """

    def __init__(
        self,
        gated: GatedNetwork,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        target: float | None = None,
        target_params: float | None = None,
        target_latency: float | None = None,
        latency_table: LatencyTable | None = None,
        total_steps: int,
        phases: Phases | None = None,
        rule: CutRule | None = None,
        individual_every: int = 16,
        ema: Averaged | None = None,
        scaler: torch.amp.GradScaler | None = None,
        held_out: Tensor | None = None,
        measure: Callable[[nn.Module], float] | None = None,
    ) -> None:
        """Take over the gates; the optimizer keeps the network's parameters.

        The gates are trained by an Adam of their own, so that the caller's learning rate, weight
        decay and schedule need not suit them; if the caller's optimizer holds gate parameters they
        are taken out of it.

        Args:
            optimizer: what trains the network; several, where its parameters are shared out. What
                else they hold stays.
            target: kept MACs over dense MACs, a bound, in (0, 1].
            target_params: the same of parameters, in place of target.
            target_latency: the same of the latency that latency_table predicts.
            latency_table: of this network at this image size (latency_table.read_latency_table).
            total_steps: how often step() will be called.
            rule: how long a unit must have been closed to be cut before decisions freeze.
            individual_every: in one of so many steps of the search each image takes its own
                decisions, in the others all take those of the batch, which costs a fraction.
            ema: an average of the network, whose `module` is a copy of it: torch's AveragedModel,
                timm's ModelEma. It is cut along, and in the end `ema.module` is small too.
            scaler: what the caller scales the loss with.
            held_out: images (n, ...) on which agreement is measured and cuts are checked; without
                them the last training batch is taken.
            measure: called on the network before and after each cut, for the record.

        Raises:
            ConfigError: a target or a number out of range, or a target that cannot be reached.
        """
        check_range("total_steps", total_steps, 1)
        check_range("individual_every", individual_every, 1)
        # Wrapped optimizers need not be torch's, but they are no sequence.
        self._optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        check_sliceable(self._optimizers)
        check_held_out(held_out)
        self.budget = budget_of(
            gated,
            target=target,
            target_params=target_params,
            target_latency=target_latency,
            latency_table=latency_table,
        )
        self.phases = phases or gated.method.phases or Phases()
        self.total_steps = total_steps
        self.network: nn.Module = gated
        self.cuts: list[CutRecord] = []
        self.steps = 0
        self.individual_every = individual_every
        self.dense_macs = gated.circuit.dense_macs
        self._macs_now = self.dense_macs
        self._spent_macs = 0
        self._latency_now = self.budget.dense  # nanoseconds, where they are what is bounded
        self._gated: GatedNetwork | None = gated
        self._held_out = held_out
        self._measure = measure
        self._ema = check_average(ema)
        self._at = self.phases.in_steps(total_steps)
        self.rule = rule or CutRule()
        self._closed_for = ClosedFor([site.units for site in gated.sites], self.rule.reopened)
        take_out(self._optimizers, set(gated.gate_parameters()))
        self._gates = GateTrainer(gated, self.budget, self._at.search_steps, scaler)
        self._last_batch = LastBatch()
        self._hook = gated.register_forward_pre_hook(self._last_batch, with_kwargs=True)
        gated.open()
        gated.state.replaced = False  # by another pass, before this one
        if gated.sites and self._at.search == 0:
            self._begin_search(gated)
        self._choose_alike()

    @property
    def settled(self) -> bool:
        """Whether the network is plain and small by now."""
        return self._gated is None

    @property
    def searching(self) -> bool:
        """Whether gates are deciding."""
        return self._gated is not None and self._gated.state.mode == "search"

    @property
    def macs_now(self) -> int:
        """MACs of the network as it is now for one image, searching gates included."""
        return self._macs_now

    @property
    def kept(self) -> float:
        """What the network has by now of what its target bounds, over the dense network's.

        Searching gates count among MACs, which they cost, and not among parameters and latency,
        as they will be gone. Latency is what the table predicts.
        """
        if self.budget.quantity == "MACs":
            return self._macs_now / self.dense_macs
        if self.budget.quantity == "latency":
            return self._latency_now / self.budget.dense
        gates = 0 if self._gated is None else sum(p.numel() for p in self._gated.gate_parameters())
        return (count_parameters(self.network) - gates) / self.budget.dense

    @property
    def train_macs_ratio(self) -> float:
        """MACs computed in training so far, gates included, over those of dense training.

        Evaluation, the measuring of agreement and the checks of cuts are in neither.
        """
        return self._spent_macs / (self.steps * self.dense_macs) if self.steps else 1.0

    def loss(self) -> Float[Tensor, ""]:
        """What to add to the task loss of the batch that has just been through the network.

        Raises:
            TrainingError: that batch did not go through it in training, so that gates would learn
                nothing.
            ConfigError: no optimizer holds any of this network's parameters.
        """
        if self.steps == 0:  # not sooner: whoever resumes may hold the small network's by now
            check_holding(self._optimizers, self.network)
        if self._gated is None or not self.searching:
            like = next(self.network.parameters(), torch.zeros(()))
            return torch.zeros((), device=like.device)
        progress = (self.steps - self._at.search) / (self._at.search_steps)
        return self._gates.loss(self._gated, self.steps, min(1.0, progress))

    def step(self) -> CutRecord | None:
        """Call after optimizer.step(); may cut the network and the optimizer's state.

        Raises:
            ParityError: a cut would change what the network computes; nothing has been cut.
        """
        self._spent_macs += self._macs_now
        self.steps += 1
        if self._gated is None:
            return None
        self._choose_alike()
        self._gates.step()
        if self.searching:
            self._closed_for.see(self._gated.openness())
        if self.steps >= self._at.settle or self.steps >= self.total_steps:
            return self._settle()
        if self.steps == self._at.search and self._gated.sites:
            self._begin_search(self._gated)
        elif self.steps in self._at.cuts and self.searching:
            return self._cut()
        return None

    def finish(self) -> nn.Module:
        """The plain, small network, at or under the target; settles first if steps were cut short.

        Raises:
            ParityError: as step().
        """
        if not self.settled:
            self._settle()
        return self.network

    def state_dict(self) -> dict[str, Any]:
        """Counters and the gates' optimizer; the network's weights are the caller's to save."""
        return {
            "steps": self.steps,
            "spent_macs": self._spent_macs,
            "macs_now": self._macs_now,
            "latency_now": self._latency_now,
            "closed_for": self._closed_for.steps.tolist(),
            **(GateTrainer.NO_STATE if self.settled else self._gates.state_dict()),
            "gone": {
                name: torch.nonzero(gone).flatten().tolist()
                for name, gone in (self._gated.gone() if self._gated is not None else {}).items()
            },
        }

    def load_state_dict(self, state: dict[str, Any], settled: nn.Module | None = None) -> None:
        """Go on from a checkpoint; what had been cut is cut, then the weights can be loaded.

        Args:
            settled: the small network, where the checkpoint was made after the last cut; the
                caller's optimizer must hold its parameters already.
        """
        self.steps = int(state["steps"])
        self._spent_macs = int(state["spent_macs"])
        self._macs_now = int(state["macs_now"])
        self._latency_now = int(state.get("latency_now", self.budget.dense))
        if settled is not None:
            self._become(settled)
            if self._ema is not None:
                self._ema.module = copy.deepcopy(settled)
            return
        assert self._gated is not None
        self._choose_alike()
        self._closed_for.steps = torch.tensor(state["closed_for"], dtype=torch.long)
        if any(state["gone"].values()):
            self._narrow(self._gated, left_of(self._gated, state["gone"]))
        if self.steps >= self._at.search and self._gated.sites:
            self._begin_search(self._gated)
        gates = self._gated.gate_modules()
        self._gates.load_state_dict(state, gates[0].running if gates else torch.zeros(()))

    def _begin_search(self, gated: GatedNetwork) -> None:
        if self._macs_now == self.dense_macs:  # else a checkpoint said what a cut has left
            self._macs_now += gated.gate_macs()
        gated.search()
        if self._ema is not None:
            gated_in(self._ema).search()

    def _choose_alike(self) -> None:
        """Whether the next batch is decided as a whole."""
        if self._gated is not None:
            whole = self._gated.method.thresholds and self.steps % self.individual_every != 0
            self._gated.state.alike = whole

    def _cut(self) -> CutRecord | None:
        """Take out what has been closed for long; the other gates go on."""
        gated = self._gated
        assert gated is not None
        check_finite(gated)
        average_buffers(gated)
        decisions = choose_cut(
            gated,
            self._closed_for,
            self.rule.steps(self.total_steps),
            self.budget,
            least=self.rule.least * self.dense_macs,
        )
        if decisions is None:
            return None
        frozen = copy.deepcopy(gated)
        frozen.set_decisions(decisions)
        certificate = self._certify(frozen, frozen.cut(decisions).graph_module)
        cut = self._describe(gated, decisions)
        before = self._look_at(gated)
        try:
            self._narrow(gated, decisions)
        except Refused:  # this network can only be cut at the end
            self._at = replace(self._at, cuts=frozenset())
            return None
        self._macs_now = macs_of(gated.circuit, list(decisions.values())) + gated.gate_macs()
        gone = blocks_removed(gated.analysis, gated.plain(draft=True))
        return self._record(cut, certificate, gone, before, self._look_at(gated))

    def _narrow(self, gated: GatedNetwork, decisions: dict[str, Tensor]) -> None:
        """Cut the gated network and the optimizer's state; on a freshly made one too."""
        self._note_latency(decisions)
        old = dict(gated.body.named_parameters(remove_duplicate=False))
        cut = gated.narrow(decisions, self._images())
        hand_over(self._optimizers, old, cut.graph_module, cut)
        if self._ema is not None:
            gated_in(self._ema).narrow(decisions, self._images())

    def _settle(self) -> CutRecord | None:
        gated = self._gated
        assert gated is not None
        check_finite(gated)
        average_buffers(gated)
        before = self._look_at(gated)
        decisions = gated.decisions(self.budget if gated.method.bounded else None)
        cut = self._describe(gated, decisions)
        gated.set_decisions(decisions)
        small, taken = collapse_with_origins(gated)
        certificate = self._certify(gated, small) if gated.sites else None
        self._note_latency(decisions)
        old = dict(gated.body.named_parameters(remove_duplicate=False))
        hand_over(self._optimizers, old, small, taken)
        self._macs_now = macs_of(gated.circuit, list(decisions.values()))
        if self._ema is not None:
            averaged = gated_in(self._ema)
            averaged.set_decisions(decisions)
            self._ema.module = collapse_with_origins(averaged)[0]
        self._become(small)
        if certificate is None:  # nothing could go
            return None
        gone = small.meta[META].blocks_removed
        return self._record(cut, certificate, gone, before, self._look_at(small))

    def _note_latency(self, decisions: dict[str, Tensor]) -> None:
        if self.budget.quantity == "latency":
            self._latency_now = self.budget.cost(list(decisions.values()))

    def _images(self) -> Tensor | None:
        """What a cut is looked at with."""
        images, last = self._held_out, self._last_batch.images
        if images is None and last is not None:
            images = as_rank_0_has_it(last)
        if images is None:
            return None
        # Gates look at them outside of the caller's autocast.
        like = next(p for p in self.network.parameters() if p.is_floating_point())
        return images.to(like if images.is_floating_point() else like.device)

    def _certify(self, frozen: GatedNetwork, small: nn.Module) -> Certificate:
        real = self._images()
        shown = noise_like(frozen) if real is None else checked(real)
        return certify(frozen, small, shown, real=real is not None)

    def _look_at(self, network: nn.Module) -> Look:
        seen = self._gated is None or self._gated.sites
        return look_at(network, self._images(), self._measure) if seen else Look(None, None)

    def _describe(self, gated: GatedNetwork, decisions: dict[str, Tensor]) -> dict[str, Any]:
        """What a cut takes, before it is made: the half of its record that needs the gates."""
        images = self._images() if self.searching else None
        forecast = self._gates.forecast
        return {"step": self.steps, "forecast_macs": forecast, **taken_by(gated, decisions, images)}

    def _record(
        self, cut: dict[str, Any], certificate: Certificate, gone: int, before: Look, after: Look
    ) -> CutRecord:
        record = CutRecord(
            **cut,
            blocks_removed=gone,
            max_rel_error=certificate.max_rel_error,
            certificate=certificate.as_dict(),
            metric_before=before.metric,
            metric_after=after.metric,
            output_agreement=top1_agreement(before.outputs, after.outputs),
        )
        self.cuts.append(record)
        return record

    def _become(self, small: nn.Module) -> None:
        assert self._gated is not None
        self._hook.remove()
        self._gated.state.replaced = True
        self._gated = None
        self._last_batch = LastBatch()
        self.network = small
