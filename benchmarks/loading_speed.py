"""How many images a second one thread delivers from memory, shuffled, cropped and flipped.

    python benchmarks/loading_speed.py              CIFAR-sized noise
    python benchmarks/loading_speed.py --data DIR   a class-folder tree; its loading is timed too

Last line: one JSON object; `rounds` holds every sample, and the first round is warm-up.
"""

import argparse
import json
import platform
import time

import torch

from polarprune.datasets import Split, load_dataset
from polarprune.datasets.memory import MemorySplit

_IMAGES = 50_000
_ROUNDS = 6


def images_per_second(split: Split, batch_size: int, *, augment: bool) -> list[float]:
    """The rate of each round over the whole split, the warm-up left out."""
    rates = []
    for round_number in range(_ROUNDS):
        start = time.perf_counter()
        for _ in split.batches(batch_size, shuffle_seed=round_number, augment=augment):
            pass
        rates.append(len(split) / (time.perf_counter() - start))
    return rates[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a class-folder tree; left out, noise")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    split: Split
    if options.data:
        split = load_dataset(options.data).train
    else:
        noise = torch.randint(0, 256, (_IMAGES, 32, 32, 3), dtype=torch.uint8)
        third = (1 / 3, 1 / 3, 1 / 3)
        split = MemorySplit(noise, torch.zeros(_IMAGES).long(), mean=third, std=third)
    load_s = time.perf_counter() - start
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "images": len(split),
                "batch_size": options.batch_size,
                "load_s": round(load_s, 2),
                "augmented_images_per_s": images_per_second(
                    split, options.batch_size, augment=True
                ),
                "plain_images_per_s": images_per_second(split, options.batch_size, augment=False),
            }
        )
    )


if __name__ == "__main__":
    main()
