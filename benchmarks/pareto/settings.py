"""The rows of the study: which networks are trained how, and with how many seeds.

One recipe for all: that of TrainConfig's defaults, at batch size 128, for 12 epochs.
"""

from dataclasses import dataclass, field
from typing import Any

EPOCHS = 12
BATCH_SIZE = 128
NETWORK = "resnet20"
NARROWED = "benchmarks.narrowed_networks:resnet20_half"


@dataclass(frozen=True)
class Rival:
    """One way to use Torch-Pruning.

    Attributes:
        importance: "magnitude" (L2 norm over the group) or "bn-scale".
        restart: the second half has a learning-rate cycle of its own; else the first goes on.
    """

    importance: str
    restart: bool


@dataclass(frozen=True)
class Setting:
    """One row: n runs that differ in their seed alone.

    Attributes:
        options: what differs from the recipe, as fields of TrainConfig.
        group: rows of one group share a colour in the picture.
        rival: how Torch-Pruning is used, where it is what cuts.
    """

    name: str
    what: str
    seeds: int
    group: str
    options: dict[str, Any] = field(default_factory=dict)
    rival: Rival | None = None


# Epochs at which the narrowed network has computed as many MACs in training as ours: those of
# `ours`, 0.70 of 12 dense epochs, over its own 0.4957.
EQUAL_MACS_EPOCHS = 17

SETTINGS = (
    Setting("dense", "the whole network", 5, "dense", {"target": 1.0}),
    Setting("ours", "consensus, blocks and channels", 5, "ours", {"target": 0.5}),
    Setting(
        "narrowed", "uniformly narrower, equal epochs", 5, "narrowed",
        {"target": 1.0, "model": NARROWED},
    ),
    Setting(
        "narrowed-longer", "uniformly narrower, equal training MACs", 5, "narrowed",
        {"target": 1.0, "model": NARROWED, "epochs": EQUAL_MACS_EPOCHS},
    ),
    Setting("block-only", "consensus, blocks", 2, "ours", {"granularity": "block"}),
    Setting("channel-only", "consensus, channels", 2, "ours", {"granularity": "channel"}),
    Setting(
        "input-independent", "one logit a unit instead of a gate", 2, "control",
        {"method": "input-independent"},
    ),
    Setting("random", "random decisions", 2, "control", {"method": "random"}),
    Setting("dropping", "dropout on gates, random decisions", 2, "control", {"method": "dropping"}),
    Setting("ours-0.35", "consensus, blocks and channels", 2, "ours", {"target": 0.35}),
    Setting(
        "ours-params-0.5", "consensus, half of the parameters", 2, "ours",
        {"target": None, "target_params": 0.5},
    ),
    Setting(
        "relaxation", "continuous relaxation", 3, "papers B and C",
        {"method": "relaxation"},
    ),
    # Without a target: 0.85 of the heat maps' mass is about half of the MACs of trained networks
    # (benchmarks/results/mass_forecast.json).
    Setting(
        "mask-predictor", "mask prediction, static consensus", 3, "papers B and C",
        {"method": "mask-predictor", "target": None, "mass": 0.85},
    ),
    *(
        Setting(
            f"torch-pruning-{importance}{'-restarted' if restart else ''}",
            f"Torch-Pruning, {importance}, learning rate {'restarted' if restart else 'continued'}",
            2, "torch-pruning", rival=Rival(importance, restart),
        )
        for importance in ("magnitude", "bn-scale")
        for restart in (False, True)
    ),
)  # fmt: skip
