"""What was tried to make one pass better; each candidate differs from the defaults as it says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.pareto.settings import NARROWED, Rival, Setting
from benchmarks.tuning.changes import (
    agree_at_the_target,
    keep_streams,
    relax_channels_alone,
    take_balanced_prices,
    take_floored_prices,
    take_root_prices,
    take_time,
)
from polarprune.phases import Phases

_SHAPES = "benchmarks.tuning.shapes"
_DENSE = {"target": 1.0}
_LONG = {"phases": Phases(search=0.1, settle=0.5)}


@dataclass(frozen=True)
class Candidate:
    """One thing tried.

    Attributes:
        options: fields of TrainConfig.
        one_pass: keyword arguments of OnePass.
        changes: made to the program before the run.
    """

    what: str
    options: dict[str, Any] = field(default_factory=dict)
    one_pass: dict[str, Any] = field(default_factory=dict)
    rival: Rival | None = None
    changes: tuple[Callable[[], None], ...] = ()

    def setting(self, name: str) -> Setting:
        """As a row of the study, by whose program it is run."""
        return Setting(name, self.what, 1, "tuning", self.options, self.rival)


def _shape(name: str, what: str) -> Candidate:
    return Candidate(what, {**_DENSE, "model": f"{_SHAPES}:{name}"})


CANDIDATES = {
    "dense": Candidate("the whole network", _DENSE),
    "narrowed": Candidate("(11, 23, 45) channels", {**_DENSE, "model": NARROWED}),
    "inner-half": _shape("inner_half", "by hand: half of the channels inside of blocks"),
    "late": _shape("late", "by hand: (8, 25, 52) channels"),
    "shallow": _shape("shallow", "by hand: 1, 2, 2 blocks, all channels"),
    "late-inner": _shape("late_inner", "by hand: inside of blocks 5, 16, 43 channels"),
    "found": _shape("found", "what the search of every-8 found, trained from the start"),
    "default": Candidate("the defaults"),
    "settle-55": Candidate(
        "settle at 0.55, cuts at 0.3, 0.4, 0.48",
        one_pass={"phases": Phases(settle=0.55, cuts=(0.3, 0.4, 0.48))},
    ),
    "settle-75": Candidate(
        "settle at 0.75, cuts at 0.25, 0.35, 0.45, 0.55, 0.65",
        one_pass={"phases": Phases(settle=0.75, cuts=(0.25, 0.35, 0.45, 0.55, 0.65))},
    ),
    "search-05-25": Candidate(
        "search from 0.05, settle at 0.25", one_pass={"phases": Phases(search=0.05, settle=0.25)}
    ),
    "search-10-30": Candidate(
        "search from 0.1, settle at 0.3", one_pass={"phases": Phases(search=0.1, settle=0.3)}
    ),
    "search-30-50": Candidate(
        "search from 0.3, settle at 0.5", one_pass={"phases": Phases(search=0.3, settle=0.5)}
    ),
    "search-30-60": Candidate(
        "search from 0.3, settle at 0.6, cuts at 0.42, 0.48, 0.54",
        one_pass={"phases": Phases(search=0.3, settle=0.6, cuts=(0.42, 0.48, 0.54))},
    ),
    "torch-pruning": Candidate(
        "Torch-Pruning at half of the epochs, magnitude", rival=Rival("magnitude", restart=False)
    ),
    "channel-only": Candidate("channels alone", {"granularity": "channel"}),
    "random-channels": Candidate(
        "channels alone, random decisions", {"granularity": "channel", "method": "random"}
    ),
    "every-8": Candidate(
        "search from 0.1, settle at 0.4, each image decides in one of 8 steps",
        one_pass={"individual_every": 8},
    ),
    "root-prices": Candidate("gradients of the cost: root", changes=(take_root_prices,)),
    "balanced-prices": Candidate(
        "a channel's price times the open share of its site", changes=(take_balanced_prices,)
    ),
    "floored-prices": Candidate(
        "a channel's price falls to 0 where 0.6 of its site is open", changes=(take_floored_prices,)
    ),
    "random": Candidate("random decisions, blocks and channels", {"method": "random"}),
    "keep-streams": Candidate(
        "residual streams stay whole: blocks and the channels inside", changes=(keep_streams,)
    ),
    "cuts": Candidate(
        "the defaults with cuts at 0.2, 0.25, 0.3, 0.35",
        one_pass={"phases": Phases(cuts=(0.2, 0.25, 0.3, 0.35))},
    ),
    "slow-10-50": Candidate(
        "target and agreement late, search from 0.1, settle at 0.5",
        one_pass=_LONG,
        changes=(take_time,),
    ),
    "staged-10-50": Candidate(
        "target at 0.7 of the search, agreement after it, search from 0.1, settle at 0.5",
        one_pass=_LONG,
        changes=(agree_at_the_target,),
    ),
    "staged": Candidate(
        "target at 0.7 of the search, agreement after it", changes=(agree_at_the_target,)
    ),
    "staged-05-35": Candidate(
        "the same, search from 0.05, settle at 0.35",
        one_pass={"phases": Phases(search=0.05, settle=0.35)},
        changes=(agree_at_the_target,),
    ),
    "relaxation-gaussian": Candidate(
        "relaxation, fence-sitter loss as in the authors' code (before 27 November)",
        {"method": "relaxation", "ejector": "gaussian"},
    ),
    "relaxation-annealed": Candidate(
        "relaxation, annealed (before 27 November)",
        {"method": "relaxation", "ejector": "annealed"},
    ),
    "relaxation-channels": Candidate(
        "relaxation, annealed, blocks without a weight of their own (before 27 November)",
        {"method": "relaxation", "ejector": "annealed"},
        changes=(relax_channels_alone,),
    ),
    "rising-gaussian": Candidate(
        "relaxation, rising threshold, fence-sitter loss by shares",
        {"method": "relaxation", "ejector": "gaussian"},
    ),
    "rising-annealed": Candidate(
        "relaxation, rising threshold, annealed", {"method": "relaxation", "ejector": "annealed"}
    ),
    "every-1": Candidate("each image decides in every step", one_pass={"individual_every": 1}),
}
