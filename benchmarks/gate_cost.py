"""What do searching gates add to a training step?

    OMP_NUM_THREADS=2 python -m benchmarks.gate_cost             # about six minutes on two cores
    python -m benchmarks.gate_cost --rounds 10 --record FILE     # a rehearsal
    python -m benchmarks.gate_cost --device cuda --record FILE   # two minutes

Paired: each round trains sixteen steps on each side, in random order, on one batch: the network
without gates (twice: the control), with gates as OnePass runs them by default, with gates that
decide for each image in every step, and with those of the other methods. A step is forward, losses,
backward, the optimizer's step and OnePass.step(); nothing is cut meanwhile. The recipe is that of
`polarprune train`: bfloat16 where the device has it, channels last, SGD with momentum, batch size
128.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.nn import functional as F

from benchmarks.records import describe_machine
from polarprune import attach_gates, build_network
from polarprune.devices import autocast, choose_bf16, choose_device, fast_layout
from polarprune.onepass import OnePass, Phases
from polarprune_deploy.statistics import corrected_confidence, paired_ratio

RECORD = Path(__file__).parent / "results" / "gate_cost.json"
STEPS = 16  # in one of them each image decides for itself, by default
NETWORKS = ("resnet20", "resnet56")


@dataclass(frozen=True)
class Gating:
    """How gates are attached and run; the fields are what attach_gates and OnePass are given."""

    method: str = "consensus"
    one_pass: dict[str, Any] = field(default_factory=dict)


# None is no gates.
SIDES = {
    "control": None,
    "gated": Gating(),
    "individual": Gating(one_pass={"individual_every": 1}),
    "relaxation": Gating("relaxation"),
    "mask-predictor": Gating("mask-predictor"),
}

Step = Callable[[], None]


def make_step(model: str, batch_size: int, gating: Gating | None, device: torch.device) -> Step:
    """One training step of a fresh network; without gates where there is no gating."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32).to(device)
    labels = torch.randint(0, 10, (batch_size,)).to(device)
    net = build_network(model, num_classes=10).to(device).train()
    layout = fast_layout(net, device)
    net.to(memory_format=layout)
    images = images.to(memory_format=layout)
    bf16 = choose_bf16("auto", device)
    gated = None if gating is None else attach_gates(net, images[:2], method=gating.method)
    module = net if gated is None else gated
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    one = None
    if gated is not None and gating is not None:
        one = OnePass(
            gated, optimizer, target=0.5 if gated.method.bounded else None, total_steps=10**6,
            phases=Phases(search=0.0, settle=1.0), **gating.one_pass,
        )  # fmt: skip

    def step() -> None:
        with autocast(device, bf16):
            outputs = module(images)
        loss = F.cross_entropy(outputs.float(), labels)
        if one is not None:
            loss = loss + one.loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if one is not None:
            one.step()

    return step


def measure(
    model: str, batch_size: int, rounds: int, family: int, device: torch.device
) -> dict[str, Any]:
    """Every side against the network without gates."""
    steps = {"dense": make_step(model, batch_size, None, device)}
    steps |= {side: make_step(model, batch_size, gating, device) for side, gating in SIDES.items()}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for number in range(rounds + 1):  # the first one warms up
        for side in random.Random(number).sample(sorted(steps), len(steps)):
            began = time.perf_counter()
            for _ in range(STEPS):
                steps[side]()
            if device.type == "cuda":
                torch.cuda.synchronize()  # a step is over when the GPU has done it
            if number:
                seconds[side].append((time.perf_counter() - began) / STEPS)
    ratios = {}
    for side in SIDES:
        confidence = corrected_confidence(family)
        # Seconds of the side over those of the dense step: above 1 is slower.
        found = paired_ratio(seconds[side], seconds["dense"], confidence=confidence)
        ratios[side] = {"ratio": found.speedup, "low": found.ci_low, "high": found.ci_high}
    return {
        "model": model,
        "batch_size": batch_size,
        "rounds": rounds,
        "dense_ms": 1000 * statistics.median(seconds["dense"]),
        "ratios": ratios,
        "seconds": seconds,
    }


def main(
    rounds: Annotated[int, typer.Option(help="Of sixteen steps a side.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    networks: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(NETWORKS),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    record: Annotated[Path, typer.Option(help="Where it is written.")] = RECORD,
) -> None:
    """Measure and record."""
    names, where = networks.split(","), choose_device(device)
    rows = []
    for name in names:
        row = measure(name, batch_size, rounds, len(names) * len(SIDES), where)
        rows.append(row)
        print(f"{name}: dense step {row['dense_ms']:.1f} ms")
        for side, found in row["ratios"].items():
            print(f"  {side}: {found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    document = {
        "what": "seconds of a training step with gates over one without, paired",
        "machine": describe_machine(),
        "device": device,
        "threads": torch.get_num_threads(),
        "bf16": choose_bf16("auto", where),
        "steps_a_round": STEPS,
        "rows": rows,
    }
    record.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
