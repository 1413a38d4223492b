"""What decides a run, what a run reports, and which values are out of range."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polarprune.budget import OPTIONS, check_targets
from polarprune.errors import ConfigError
from polarprune.methods import build_method, is_bounded
from polarprune.option_values import check_choice, check_range
from polarprune.runs.schedules import build_schedule
from polarprune.tasks import build_task

_LARGEST_SEED = 2**32 - 1  # each epoch has one of its own, some thousand times as large


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run.

    Attributes:
        target: kept MACs over dense MACs, a bound; 1 trains dense. 0.5 where nothing is given.
        target_params: the same of parameters, in place of target.
        target_latency: the same of the latency that latency_table, a file, predicts.
        task: "classification" or "segmentation".
        granularity: "block", "channel" or "both".
        align: kept channel counts are multiples of it; None: what the latency table favours, or 1.
        ejector: what drives relaxed gates away from the middle, "gaussian" or "annealed"; of no
            other method, as the next two.
        mass: what a mask predictor keeps of a heat map, 0..1; it takes no target.
        heads: of a mask predictor, "decoupled" or "joint".
        lr: peak learning rate; None is 0.2 at batch size 128, in proportion.
        teacher: a finished run whose outputs are learned from too.
        compile: let torch.compile make the steps faster; after every cut it compiles anew.
        precision: "auto" takes bfloat16 autocast where the device is fast at it.
        num_classes: None takes the data set's.
        checkpoint_every: steps between checkpoints inside of an epoch; None is once in five
            minutes. There is one at the end of every epoch.
        image_size: side of the square fed to the network; None takes the network's own.
        crop_size: side of the random squares that segmentation trains on; None takes image_size.
    """

    model: str
    data: str
    out: Path
    target: float | None = None
    target_params: float | None = None
    target_latency: float | None = None
    latency_table: Path | None = None
    task: str = "classification"
    method: str = "consensus"
    ejector: str | None = None
    mass: float | None = None
    heads: str | None = None
    granularity: str = "both"
    align: int | None = None
    epochs: int = 20
    batch_size: int = 128
    lr: float | None = None
    schedule: str = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    weights: Path | None = None
    teacher: Path | None = None
    compile: bool = False
    seed: int = 0
    resume: bool = False
    checkpoint_every: int | None = None
    image_size: int | None = None
    crop_size: int | None = None
    num_classes: int | None = None
    precision: str = "auto"
    device: str = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        """Half of the MACs, unless another bound is given or the method takes none."""
        if self.align is None and self.latency_table is None:
            object.__setattr__(self, "align", 1)
        if all(share is None for _, share in self.targets) and is_bounded(self.method):
            object.__setattr__(self, "target", 0.5)

    @property
    def pruning(self) -> bool:
        """Whether anything may go."""
        return all(share != 1 for _, share in self.targets)

    @property
    def targets(self) -> tuple[tuple[str, float | None], ...]:
        """(option, share) of every bound that there can be; None where it is not given."""
        shares = (self.target, self.target_params, self.target_latency)
        return tuple(zip(OPTIONS.values(), shares, strict=True))

    @property
    def method_options(self) -> dict[str, Any]:
        """What only some methods take; None where it is not given."""
        return {"ejector": self.ejector, "mass": self.mass, "heads": self.heads}

    def as_dict(self) -> dict[str, Any]:
        """For run.json; where it is written, and how often, does not describe the run."""
        values = dataclasses.asdict(self)
        for name in ("resume", "out", "checkpoint_every"):
            values.pop(name)
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reports; the keys of `polarprune train --json`.

    Attributes:
        joules: what the GPUs took that trained, by NVML; None without one.
        align: what kept channel counts were made multiples of.
        latency_ratio: latency over the dense network's, as the latency table predicts it; None
            where latency was not bounded.
        top1, agreement: of a classifier: on the test split, and of the gates when they were frozen,
            0..1; NaN of another task.
        more: of a segmentation `miou`, `dice`, and `pixel_agreement`: the share of held-out pixels
            that the small network gives the class that the gated one gave them. `dynamic_top1` (or
            `dynamic_miou`) and `dynamic_macs_ratio` are of the network whose gates still decided
            for each image, just before they were frozen; `forecast_macs_ratio` is what its method
            foresaw; `given_top1` (or `given_miou`) is of the weights that were given. 0..1 each.
    """

    run: str
    dense_macs: int
    macs: int
    macs_ratio: float
    params: int
    dense_params: int
    blocks_removed: int
    train_macs_ratio: float
    seconds: float
    joules: float | None = None
    align: int = 1
    latency_ratio: float | None = None
    top1: float = math.nan
    agreement: float = math.nan
    more: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """All that says how good the network is."""
        own = {"top1": self.top1, "agreement": self.agreement}
        return {key: value for key, value in own.items() if not math.isnan(value)} | self.more

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the figures of another task."""
        values = dataclasses.asdict(self)
        for name in ("top1", "agreement", "more"):
            values.pop(name)
        return {"run": values.pop("run"), **self.figures, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainResult":
        """What as_dict gave."""
        names = {each.name for each in dataclasses.fields(cls)}
        own = {key: value for key, value in values.items() if key in names}
        return cls(**own, more={key: v for key, v in values.items() if key not in names})


def check_config(config: TrainConfig) -> None:
    """Refuse values out of range.

    Raises:
        ConfigError: the option is named.
    """
    method = build_method(config.method, config.method_options)
    check_targets(
        {option: share for option, share in config.targets if share is not None},
        config.latency_table is not None,
        method,
    )
    check_choice("--granularity", config.granularity, ("block", "channel", "both"))
    check_range("--epochs", config.epochs, 1)
    check_range("--batch-size", config.batch_size, 2)
    check_range("--align", config.align, 1)
    check_range("--seed", config.seed, 0)
    check_range("--checkpoint-every", config.checkpoint_every, 1)
    check_range("--num-classes", config.num_classes, 1)
    for option, value in (
        ("--momentum", config.momentum),
        ("--weight-decay", config.weight_decay),
        ("--label-smoothing", config.label_smoothing),
    ):
        if not 0 <= value < 1:
            raise ConfigError(f"{option} must be from 0 to below 1, got {value:g}")
    if config.lr is not None and not 0 < config.lr < math.inf:
        raise ConfigError(f"--lr must be a number above 0, got {config.lr:g}")
    if config.seed > _LARGEST_SEED:
        raise ConfigError(f"--seed must be at most {_LARGEST_SEED}, got {config.seed}")
    build_task(config.task)
    build_schedule(config.schedule)
