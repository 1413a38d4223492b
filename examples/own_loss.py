"""`OnePass` with a network of two outputs, a loss of one's own, and any optimizer.

    python examples/own_loss.py --epochs 8 --out small

The network says which digit it sees and, by a head of its own, whether it is odd. The loss is a
focal loss of the first and a binary cross-entropy of the second; gates see no difference.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarprune
from polarprune.datasets import load_dataset


class TwoHeads(nn.Module):
    """A few residual blocks with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
            )
            for _ in range(4)
        )  # fmt: skip
        self.digit = nn.Linear(16, 10)
        self.odd = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the ten digits (n, 10) and of being odd (n,)."""
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        x = x.mean((2, 3))
        return {"digit": self.digit(x), "odd": self.odd(x).flatten()}


def focal_loss(logits: Tensor, classes: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that counts what is known already for less (Lin et al. 2017, equation 4)."""
    own = F.log_softmax(logits, 1).gather(1, classes.unsqueeze(1)).squeeze(1)
    return -((1 - own.exp()) ** gamma * own).mean()


def main() -> None:
    """Train, prune, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--out", default="small")
    args = parser.parse_args()
    torch.manual_seed(0)

    data, batch_size = load_dataset("digits", image_size=16), 64
    example, _ = next(data.train.batches(8, shuffle_seed=0, augment=False))
    steps = args.epochs * (len(data.train) // batch_size)
    net = TwoHeads()
    gated = polarprune.attach_gates(net, example)
    optimizer = torch.optim.NAdam(gated.parameters(), lr=2e-3)
    one = polarprune.OnePass(gated, optimizer, target=args.target, total_steps=steps)
    for epoch in range(args.epochs):
        for images, classes in data.train.batches(
            batch_size, shuffle_seed=epoch, augment=True, drop_last=True
        ):
            out = one.network(images)
            odd = (classes % 2).float()
            task = focal_loss(out["digit"], classes) + 0.3 * F.binary_cross_entropy_with_logits(
                out["odd"], odd
            )
            optimizer.zero_grad()
            (task + one.loss()).backward()
            optimizer.step()
            one.step()
        print(f"epoch {epoch + 1}: loss {task.item():.3f}, {one.macs_now:,} MACs", flush=True)
    small = one.finish().eval()

    right, count = torch.zeros(2), len(data.test)
    for images, classes in data.test.batches(256, shuffle_seed=None, augment=False):
        with torch.no_grad():
            out = small(images)
        right[0] += (out["digit"].argmax(1) == classes).sum()
        right[1] += ((out["odd"] > 0) == (classes % 2 == 1)).sum()
    ratio = polarprune.count_macs(small, example[:1]) / polarprune.count_macs(net, example[:1])
    digit, odd = (right / count).tolist()
    print(f"digit {digit:.4f}, odd {odd:.4f} at {ratio:.3f} of the MACs")
    polarprune.save_network(small, args.out)


if __name__ == "__main__":
    main()
