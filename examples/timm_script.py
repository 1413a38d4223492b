"""timm's training loop with `OnePass` in it: five lines, marked, and nothing else is different.

    python examples/timm_script.py --epochs 12 --out small

timm's model, optimizer, schedule, mixup with its soft targets, exponential average, gradient
clipping, bfloat16 autocast. The data are scikit-learn's digits, so that it runs in a minute.
"""

import argparse

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad

import polarprune
from polarprune.datasets import load_dataset
from polarprune.runs.evaluation import evaluate


def main() -> None:
    """Train, prune, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--out", default="small")
    args = parser.parse_args()
    torch.manual_seed(0)

    data = load_dataset("digits", image_size=32)
    example, _ = next(data.train.batches(8, shuffle_seed=0, augment=False))
    steps_an_epoch = len(data.train) // args.batch_size
    model = timm.create_model(args.model, num_classes=10)

    gated = polarprune.attach_gates(model, example)  # 1
    optimizer = create_optimizer_v2(gated, opt="adamw", lr=3e-3, weight_decay=0.02)
    scheduler = CosineLRScheduler(optimizer, t_initial=args.epochs, warmup_t=1, warmup_lr_init=3e-4)
    mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.05, num_classes=10)
    criterion = SoftTargetCrossEntropy()
    ema = ModelEmaV3(gated, decay=0.98)
    one = polarprune.OnePass(  # 2
        gated, optimizer, target=args.target, total_steps=args.epochs * steps_an_epoch, ema=ema
    )
    for epoch in range(args.epochs):
        scheduler.step(epoch)
        one.network.train()
        batches = data.train.batches(
            args.batch_size, shuffle_seed=epoch, augment=True, drop_last=True
        )
        for images, classes in batches:
            images, targets = mixup(images, classes)
            with torch.autocast("cpu", torch.bfloat16):
                output = one.network(images)
            loss = criterion(output.float(), targets) + one.loss()  # 3
            optimizer.zero_grad()
            loss.backward()
            # What the optimizer holds: gates are trained and clipped by OnePass.
            held = [p for group in optimizer.param_groups for p in group["params"]]
            dispatch_clip_grad(held, 1.0)
            optimizer.step()
            one.step()  # 4: may cut network, optimizer state and average
            ema.update(one.network)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {one.macs_now:,} MACs", flush=True)
    small = one.finish().eval()  # 5
    averaged = ema.module.eval()  # as small

    dense_macs = polarprune.count_macs(model, example[:1])
    for name, net in (("last", small), ("averaged", averaged)):
        ratio = polarprune.count_macs(net, example[:1]) / dense_macs
        print(f"{name}: top-1 {evaluate(net, data.test):.4f} at {ratio:.3f} of the MACs")
    polarprune.save_network(averaged, args.out)


if __name__ == "__main__":
    main()
