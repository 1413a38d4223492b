"""What a method has to provide; nothing else in polarprune knows which method is at work."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.phases import Phases


@dataclass(frozen=True)
class GateRequest:
    """One tensor that gates look at: `units` decisions from `channels` pooled features.

    The units are those of all sites that look at the tensor, one site after the other.

    Attributes:
        sites: (kind, units) of each of them; kind is "block" or "channel".
    """

    units: int
    channels: int
    sites: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class GateOutput:
    """What a gate says about one batch.

    Attributes:
        values: (n, units) or (1, units): what multiplies the channels or the branch, where a batch
            is not decided as a whole.
        probability: (units,): open probability, batch mean, differentiable.
        openness: (units,): batch mean of the values, differentiable.
    """

    values: Float[Tensor, "n g"]
    probability: Float[Tensor, " g"]
    openness: Float[Tensor, " g"]


@dataclass(frozen=True)
class Units:
    """What was decided about all units of a network for one batch, one site after the other.

    Attributes:
        probability: open probability, batch mean, differentiable.
        openness: batch mean of the images' own values, differentiable.
        share: weight of each unit where all sites weigh alike; the weights add up to 1.
        heat: per gate, as they were asked for, (n, units): the largest magnitude of each unit's
            channels in each image before they are gated; -1 where there is none (blocks). Of a
            method that senses.
    """

    probability: Float[Tensor, " g"]
    openness: Float[Tensor, " g"]
    share: Float[Tensor, " g"]
    heat: tuple[Float[Tensor, "n u"], ...] = ()


class Method(ABC):
    """A way to drive gates.

    Attributes:
        known: every method that has been defined by now.
        name: what --method takes; a method of polarprune's own has its file's name.
        options: keywords that its constructor takes; those of polarprune's own methods are options
            of `train` of that name.
        thresholds: an open probability above one half is an open gate. Then a batch can be decided
            as a whole, by its mean probability; where it is something else, gates are asked for
            their values in every step.
        watches: gates look at their input; those of a method that does not get (n, 0) features.
        steers: the loss of gates reaches the network through what they look at.
        senses: the loss is told how strong each channel is (Units.heat).
        bounded: the user's target decides how much is kept; otherwise every unit is that is open
            with a probability above one half, and a target is refused.
        phases: when it searches and settles, where nobody says otherwise.
    """

    known: ClassVar[dict[str, "type[Method]"]] = {}
    name: str
    options: tuple[str, ...] = ()
    thresholds = True
    watches = True
    steers = False
    senses = False
    bounded = True
    phases: Phases | None = None

    def __init_subclass__(cls) -> None:
        """Every class with a name of its own can be asked for by it."""
        if "name" in cls.__dict__:
            Method.known[cls.name] = cls

    @abstractmethod
    def make_gates(self, requests: list[GateRequest], parameter_budget: int) -> list[nn.Module]:
        """One gate module a request: pooled features (n, channels) -> GateOutput.

        Args:
            parameter_budget: values that all gates together may have.
        """

    @abstractmethod
    def loss(
        self, units: Units, ratio: Float[Tensor, ""], target: float, progress: float
    ) -> Float[Tensor, ""]:
        """What is added to the task loss.

        Args:
            ratio: expected over dense cost (MACs or parameters), differentiable.
            target: the user's bound on what is kept of it, 0..1.
            progress: of the search, 0 at its start, 1 when decisions freeze.
        """

    def open_weights(self, gate: nn.Module) -> Float[Tensor, " g"]:
        """What each unit of a gate is multiplied by if it stays open when decisions freeze.

        Above 0; folded into the network when it is collapsed. 1 unless a method says otherwise.
        """
        return torch.ones(())

    @property
    def weighs(self) -> bool:
        """Whether an open unit may keep a weight other than 1: whoever says which, does."""
        return type(self).open_weights is not Method.open_weights

    def forecast(self, units: Units) -> Float[Tensor, " g"] | None:
        """How open units will be, by one batch of the network as it is; None where nobody knows.

        One gate's units after the other's, as `Units.heat` has them.
        """
        return None
