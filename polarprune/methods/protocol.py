"""What a method has to provide; nothing else in polarprune knows which method is at work."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class GateRequest:
    """One tensor that gates look at: `units` decisions from `channels` pooled features.

    The units are those of all sites that look at the tensor, one site after the other.
    """

    units: int
    channels: int


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
    """

    probability: Float[Tensor, " g"]
    openness: Float[Tensor, " g"]
    share: Float[Tensor, " g"]


class Method(ABC):
    """A way to drive gates.

    Attributes:
        known: every method that has been defined by now.
        name: what --method takes; a method of polarprune's own has its file's name.
        options: keywords that its constructor takes, each an option of `train` of that name.
        thresholds: an open probability above one half is an open gate. Then a batch can be decided
            as a whole, by its mean probability; where it is something else, gates are asked for
            their values in every step.
        watches: gates look at their input; those of a method that does not get (n, 0) features.
        weighs: an open unit may keep a weight other than 1 when decisions freeze (open_weights).
    """

    known: ClassVar[dict[str, "type[Method]"]] = {}
    name: str
    options: tuple[str, ...] = ()
    thresholds = True
    watches = True
    weighs = False

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
        self,
        units: Units,
        ratio: Float[Tensor, ""],
        target: float,
        progress: float,
    ) -> Float[Tensor, ""]:
        """What is added to the task loss.

        Args:
            ratio: expected over dense cost (MACs or parameters), differentiable.
            target: the user's bound on what is kept of it, 0..1.
            progress: of the search, 0 at its start, 1 when decisions freeze.
        """

    def open_weights(self, gate: nn.Module) -> Float[Tensor, " g"]:
        """What each unit of a gate is multiplied by if it stays open when decisions freeze.

        Above 0; folded into the network when it is collapsed. Only asked of a method that weighs.
        """
        raise NotImplementedError
