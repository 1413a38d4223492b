"""Torch-Pruning as its users use it: train half of the epochs, cut, train the other half.

Data, augmentation, optimizer, precision, batch size and schedule are those of `polarprune train`;
the cut is Torch-Pruning's own, iterated to the target. Its two best-known importances and two
learning rates for the second half (continued, restarted) are rows of their own.

The network is our ResNet-20 with a head that Torch-Pruning can follow: the mean over space in place
of adaptive pooling and flatten. It computes the same.
"""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.pareto.settings import Rival
from polarprune import count_macs
from polarprune.datasets import Dataset, load_dataset
from polarprune.devices import autocast, choose_bf16, fast_layout
from polarprune.graph.cost import count_parameters
from polarprune.networks.cifar_resnet import CifarResNet
from polarprune.runs.evaluation import evaluate
from polarprune.runs.recipe import make_optimizer, peak_rate
from polarprune.runs.schedules import one_cycle
from polarprune.runs.train_config import TrainConfig

_DEPTH = {"resnet20": 3, "resnet56": 9}  # blocks a stage
_ITERATIONS = 200  # steps of the cut: the finer, the closer to the target


class MeanHead(CifarResNet):
    """The CIFAR ResNet with a mean over space as its pooling."""

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return logits


def prune_half_way(
    rival: Rival,
    out: Path,
    *,
    data: str,
    seed: int,
    model: str,
    batch_size: int,
    epochs: int,
    target: float,
) -> dict[str, Any]:
    """Train, cut, train on; what is recorded of it. A run that is stopped begins anew."""
    config = TrainConfig(
        model=model, data=data, out=out, batch_size=batch_size, epochs=epochs, seed=seed
    )
    torch.manual_seed(seed)
    loaded = load_dataset(data, image_size=32)
    net = MeanHead(_DEPTH[model], len(loaded.classes))
    net.train()
    example = torch.zeros(1, loaded.channels, 32, 32)
    dense_macs, dense_params = count_macs(net, example), count_parameters(net)
    began = time.perf_counter()
    half = epochs // 2
    _train(net, loaded, config, range(half), lambda done: one_cycle(done * half / epochs))
    before = evaluate(net, loaded.test)
    _cut(net, rival, example, target * dense_macs)
    after = evaluate(net, loaded.test)
    rest = epochs - half
    if rival.restart:
        _train(net, loaded, config, range(half, epochs), one_cycle)
    else:
        _train(
            net, loaded, config, range(half, epochs),
            lambda done: one_cycle((half + done * rest) / epochs),
        )  # fmt: skip
    macs = count_macs(net, example)
    return {
        "result": {
            "top1": evaluate(net, loaded.test),
            "dense_macs": dense_macs,
            "macs": macs,
            "macs_ratio": macs / dense_macs,
            "params": count_parameters(net),
            "dense_params": dense_params,
            "blocks_removed": 0,
            "train_macs_ratio": (half + rest * macs / dense_macs) / epochs,
            "seconds": round(time.perf_counter() - began, 2),
        },
        "config": {
            "importance": rival.importance, "restart": rival.restart, "epochs": epochs,
            "batch_size": batch_size, "seed": seed, "data": Path(data).name,
        },
        "versions": {"torch": torch.__version__, "torch_pruning": torch_pruning.__version__},
        "threads": torch.get_num_threads(),
        "cuts": [{"top1_before": before, "top1_after": after}],
    }  # fmt: skip


def _cut(net: nn.Module, rival: Rival, example: torch.Tensor, most_macs: float) -> None:
    make = {
        "magnitude": torch_pruning.importance.MagnitudeImportance,
        "bn-scale": torch_pruning.importance.BNScaleImportance,
    }
    importance = make[rival.importance]()
    heads = [module for module in net.modules() if isinstance(module, nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        net, example, importance=importance, pruning_ratio=0.9, iterative_steps=_ITERATIONS,
        max_pruning_ratio=0.9, ignored_layers=heads, global_pruning=True,
    )  # fmt: skip
    for _ in range(_ITERATIONS):
        if count_macs(net, example) <= most_macs:
            return
        pruner.step()
    raise RuntimeError(f"Torch-Pruning stopped at {count_macs(net, example)} MACs")


def _train(net: nn.Module, data: Dataset, config: TrainConfig, epochs: range, rate: Any) -> None:
    bf16 = choose_bf16("auto", torch.device("cpu"))
    layout = fast_layout(net, torch.device("cpu"))
    net.to(memory_format=layout)
    peak = peak_rate(config.batch_size)
    optimizer = make_optimizer(net, config, peak)
    steps = len(data.train) // config.batch_size * len(epochs)
    done = 0
    for epoch in epochs:
        net.train()
        batches = data.train.batches(
            config.batch_size, shuffle_seed=config.seed * 1000 + epoch, augment=True, drop_last=True
        )
        for images, labels in batches:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(done / steps)
            with autocast(torch.device("cpu"), bf16):
                outputs = net(images.to(memory_format=layout))
            loss = F.cross_entropy(outputs.float(), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
