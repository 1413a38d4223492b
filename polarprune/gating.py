"""The modules that gating puts into a graph: pool, decide, apply.

They share one GateState, which says what all gates do at the moment.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polarprune.errors import TrainingError
from polarprune.gate_arithmetic import apply_gate, mean_of_channels, peaks_of_channels
from polarprune.methods import GateOutput, Method, called, naming
from polarprune.runs.ranks import mean_over_ranks, rank_and_count


@dataclass
class GateState:
    """What all gates do at the moment.

    Attributes:
        mode: open: gates cost and do nothing; search: the method decides; frozen: constants.
        alike: while they search in training, all images of a batch are decided by their mean open
            probability; masking weights then takes the place of masking activations.
        replaced: a smaller network is trained in the place of this one.
        watches: gates look at the features of their tensor.
        steers: and let their gradient into it.
        senses: the strength of every gated channel is kept, batch by batch.
        method: what --method calls the method, for errors.
    """

    mode: Literal["open", "search", "frozen"] = "open"
    alike: bool = False
    replaced: bool = False
    watches: bool = True
    steers: bool = False
    senses: bool = False
    method: str = ""

    @classmethod
    def of(cls, method: Method) -> "GateState":
        """At the start, all open."""
        return cls(
            watches=method.watches, steers=method.steers, senses=method.senses,
            method=called(method),
        )  # fmt: skip


class PooledFeatures(nn.Module):
    """Mean over space, cut off from the gradient: a gate watches the network, it does not steer it.

    (But where a method wants it to.) Shared by all gates that look at one tensor. Gates have as
    many features as the tensor had channels at first: in place of a channel that has been cut they
    see the mean that it had then.
    """

    usual: Float[Tensor, " c"] | None
    places: Tensor | None

    def __init__(
        self,
        state: GateState,
        dtype: torch.dtype,
        axis: int = 1,
        *,
        source: str = "",
        usual: Float[Tensor, " c"] | None = None,
        places: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Give features of this dtype, whatever autocast does to the activations.

        Args:
            axis: of the channels; what lies along the others is space (or tokens).
            source: the name of the tensor that is looked at.
            usual: the mean of each feature, for those whose channels have been cut.
            places: channels that the tensor has, and which features they are.
        """
        super().__init__()
        self.state = state
        self.dtype = dtype
        self.axis = axis
        self.source = source
        self.register_buffer("usual", usual)
        self.register_buffer("places", None if places is None else torch.stack(places))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"] | None:
        """Features (n, c), or None while nobody decides; (n, 0) for gates that do not look."""
        if self.state.mode != "search":
            return None
        if not self.state.watches:
            return x.new_empty((len(x), 0), dtype=self.dtype)
        if not self.state.steers:
            x = x.detach()
        features = mean_of_channels(x, self.axis).to(self.dtype)
        if self.places is None or self.usual is None:
            return features
        channels, found = self.places
        usual = self.usual.to(self.dtype).expand(len(features), -1)
        return usual.index_copy(1, found, features[:, channels])


class SourceGate(nn.Module):
    """The gates of all sites that look at one tensor: one module decides for them at once.

    It holds the method's own module, the frozen decisions and what was decided last, with the units
    of its sites one after the other.

    Attributes:
        weight: what frozen open units are multiplied by; 1 but for methods that weigh.
        gone: units that have been cut out of the network; closed for good.
    """

    frozen: Bool[Tensor, " g"]
    weight: Float[Tensor, " g"]
    running: Float[Tensor, " g"]
    gone: Bool[Tensor, " g"]

    # How fast the running open probability forgets: about 10 batches, a small part of a search.
    MOMENTUM = 0.1

    def __init__(self, state: GateState, gate: nn.Module, units: int) -> None:
        """Wrap the method's module, which decides for so many units."""
        super().__init__()
        self.state = state
        self.gate = gate
        self.output: GateOutput | None = None
        self.register_buffer("frozen", torch.ones(units, dtype=torch.bool))
        self.register_buffer("weight", torch.ones(units))
        self.register_buffer("running", torch.ones(units))
        self.register_buffer("gone", torch.zeros(units, dtype=torch.bool))
        self.some_gone = self.all_gone = False

    def cut(self, closed: Bool[Tensor, " g"]) -> None:
        """Close units for good."""
        self.gone |= closed.to(self.gone.device)
        self.some_gone, self.all_gone = bool(self.gone.any()), bool(self.gone.all())
        self.frozen &= ~self.gone
        self.running.masked_fill_(self.gone, 0.0)

    def last_output(self) -> GateOutput:
        """What was decided for the last batch; all closed where nothing is left to decide."""
        if self.all_gone:
            zeros = torch.zeros_like(self.running)
            return GateOutput(zeros.unsqueeze(0), zeros, zeros)
        assert self.output is not None, "no batch has been seen in search mode"
        return self.output

    def __getstate__(self) -> dict[str, Any]:
        """Without the last output, whose autograd graph cannot be copied."""
        return {**self.__dict__, "output": None}

    def forward(self, pooled: Float[Tensor, "n c"] | None) -> Float[Tensor, "n g"] | None:
        """Gate values (n, units) or (1, units), or None where all gates are open."""
        if self.state.mode == "open":
            return None
        if self.state.mode == "frozen" or pooled is None:
            return (self.frozen * self.weight).unsqueeze(0)
        if torch.compiler.is_compiling():  # which a `try` around the method's code may break
            output = self._ask(pooled)
        else:
            with naming(self.state.method, "the forward of a gate"):
                output = self._ask(pooled)
        if self.some_gone:
            left = (~self.gone).to(output.values.dtype)
            output = GateOutput(
                output.values * left, output.probability * left, output.openness * left
            )
        if self.training and rank_and_count()[1] > 1:
            both = mean_over_ranks(torch.stack([output.probability, output.openness]))
            output = GateOutput(output.values, both[0], both[1])
        self.output = output
        if self.training:
            with torch.no_grad():
                self.running.lerp_(output.probability.detach(), self.MOMENTUM)
            if self.state.alike:
                p = output.probability
                return ((p > 0.5).to(p.dtype) + (p - p.detach())).unsqueeze(0)
        return output.values

    def _ask(self, pooled: Float[Tensor, "n c"]) -> GateOutput:
        """What the method's module says, of the right width."""
        with torch.autocast(pooled.device.type, enabled=False):
            output: GateOutput = self.gate(pooled)
        units = len(self.running)
        for values in (output.values, output.probability, output.openness):
            if values.shape[-1] != units:
                raise TrainingError(
                    f"a gate of method {self.state.method!r} gives {values.shape[-1]} values for "
                    f"{units} units; values, probability and openness take one a unit"
                )
        return output


@dataclass(frozen=True)
class SiteGate:
    """One site's part of a SourceGate; its tensors are views and may be written to."""

    source: SourceGate
    units: slice

    @property
    def frozen(self) -> Bool[Tensor, " g"]:
        """The frozen decision, True = open."""
        return self.source.frozen[self.units]

    @property
    def weight(self) -> Float[Tensor, " g"]:
        """What frozen open units are multiplied by."""
        return self.source.weight[self.units]

    @property
    def running(self) -> Float[Tensor, " g"]:
        """The open probability over the last batches."""
        return self.source.running[self.units]

    @property
    def gone(self) -> Bool[Tensor, " g"]:
        """What has been cut out of the network."""
        return self.source.gone[self.units]

    @property
    def output(self) -> GateOutput:
        """What was decided for the last batch."""
        whole = self.source.last_output()
        return GateOutput(
            whole.values[:, self.units], whole.probability[self.units], whole.openness[self.units]
        )


class ChannelGates(nn.Module):
    """Gates the channels of one tensor on the edge to the operators that mix them.

    A closed channel reads as zero there, whatever value the tensor carries.
    """

    index: Tensor

    def __init__(
        self,
        state: GateState,
        index: Tensor,
        axis: int,
        *,
        masked: bool = False,
        owners: np.ndarray | None = None,
    ) -> None:
        """Take gate `index[i]` for position i; the value after all gates' units is always open.

        Args:
            masked: the tensor's readers mask their weights where all images are decided alike.
            owners: (positions, 2): the gate module and its unit that decide about each position,
                (-1, -1) for none.
        """
        super().__init__()
        self.state = state
        self.axis = axis
        self.masked = masked
        self.owners = owners
        self.peaks: Float[Tensor, "n c"] | None = None
        self.register_buffer("index", index, persistent=False)
        self.reach = int(index.max()) if len(index) else -1

    def forward(self, x: Float[Tensor, "..."], *gates: Tensor | None) -> Float[Tensor, "..."]:
        """X with closed channels zero."""
        if self.state.mode == "open":
            return x
        if self.state.senses and self.state.mode == "search":
            self.peaks = peaks_of_channels(x.detach(), self.axis).float()
        if self.masked and self.state.mode == "search" and _alike(gates):
            return x
        shape = [-1] + [1] * (x.dim() - 1)
        shape[self.axis] = len(self.index)
        values = one_for_all(_at(gates, self.index, self.reach), x).reshape(shape)
        if self.state.mode == "frozen":
            zero = torch.zeros((), dtype=x.dtype, device=x.device)
            return torch.where(values > 0, x * values.to(x.dtype), zero)
        return apply_gate(x, values)


# What a MaskedReader can read for: their weight has one slice an input channel, along axis 1.
MASKABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class MaskedReader(nn.Module):
    """A mixing operator that, where all images are decided alike, masks its weight instead.

    Zeroing the weights of an input channel is what zeroing the channel does, for the cost of a few
    thousand products in place of a pass over the activations in each direction.
    """

    index: Tensor

    def __init__(self, state: GateState, index: Tensor, layer: nn.Module) -> None:
        """Read for a layer of MASKABLE, one group; it stays where it is in the network."""
        super().__init__()
        self.state = state
        self._layer = (layer,)  # in a tuple, so that its parameters are not listed twice
        self.register_buffer("index", index, persistent=False)
        self.reach = int(index.max()) if len(index) else -1

    def forward(self, x: Float[Tensor, "n ..."], *gates: Tensor | None) -> Float[Tensor, "n ..."]:
        """The layer's output; x is gated already unless all images are decided alike."""
        [layer] = self._layer
        if self.state.mode != "search" or not _alike(gates):
            result: Tensor = layer(x)
            return result
        assert isinstance(layer, MASKABLE)
        mask = _at(gates, self.index, self.reach).to(layer.weight.dtype)
        if _is_watched(layer):
            space = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
            watched: Tensor = layer(x * mask.reshape(-1, *[1] * space).to(x.dtype))
            return watched
        weight = layer.weight * mask.reshape(1, -1, *[1] * (layer.weight.dim() - 2))
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        convolved: Tensor = layer._conv_forward(x, weight, layer.bias)  # knows padding modes
        return convolved


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody's hooks wait for the layer to be called."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks,
        layer._backward_hooks, layer._backward_pre_hooks,
    )  # fmt: skip
    return any(hooks)


def _alike(gates: tuple[Tensor | None, ...]) -> bool:
    return all(gate is None or len(gate) == 1 for gate in gates)


def _at(gates: tuple[Tensor | None, ...], index: Tensor, reach: int) -> Float[Tensor, "n c"]:
    """The gate value of each position; `reach` is the largest of the index."""
    given = [gate for gate in gates if gate is not None]
    if len(given) == 1 and reach < given[0].shape[1]:  # nothing is always open
        return given[0].index_select(1, index)
    ones = given[0].new_ones((len(given[0]), 1))
    return torch.cat([*given, ones], dim=1).index_select(1, index)


class BlockGate(nn.Module):
    """Gates a residual branch just before the addition."""

    def __init__(self, state: GateState, unit: int) -> None:
        """Take this unit of what the gate module decides."""
        super().__init__()
        self.state = state
        self.unit = unit

    def forward(self, branch: Float[Tensor, "n ..."], gate: Tensor | None) -> Tensor:
        """The branch, or zeros where the gate is closed.

        Frozen it selects: a branch that overflows is not multiplied by 0, which would be NaN.
        """
        if gate is None:
            return branch
        if self.state.mode == "frozen":
            weight = gate[0, self.unit].to(branch.dtype)
            return branch * weight if bool(weight > 0) else torch.zeros_like(branch)
        gate = one_for_all(gate[:, self.unit : self.unit + 1], branch)
        return apply_gate(branch, gate.reshape(-1, *[1] * (branch.dim() - 1)))


def one_for_all(values: Float[Tensor, "n g"], x: Float[Tensor, "m ..."]) -> Float[Tensor, "k g"]:
    """Each image's own values, or their mean where images are folded into the batch (windows).

    There what lies where is not known; once all images agree, the mean is what each says.
    """
    return values if len(values) in (1, len(x)) else values.mean(0, keepdim=True)
