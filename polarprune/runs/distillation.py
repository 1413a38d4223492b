"""Learn from a finished run as well as from labels (Hinton et al. 2015, arXiv 1503.02531)."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polarprune.datasets import Dataset
from polarprune.errors import ConfigError
from polarprune.graph.cost import count_macs
from polarprune.runs.run_folder import RunFolder
from polarprune.tasks.protocol import scores_of

# The usual values for CIFAR-size networks; not tuned here.
_TEMPERATURE = 4.0
_WEIGHT = 0.5


class Teacher:
    """The network of a finished run, in evaluation mode, shown images as it was trained on them."""

    def __init__(self, folder: Path, data: Dataset, classes: int, device: torch.device) -> None:
        """Load it.

        Raises:
            RunFolderError: no run, or one that is not finished.
            ConfigError: it knows other classes, or images of another size.
        """
        run = RunFolder(folder)
        net = run.pruned_network()
        found = run.config.get("num_classes") or len(run.classes)
        if found != classes or run.classes != data.classes:
            raise ConfigError(
                f"--teacher {folder} was trained on {run.config.get('data')}, whose classes are "
                f"not those of {data.name}; train a teacher on the same data"
            )
        size = run.input_shape[1]
        if size != data.image_size:
            raise ConfigError(
                f"--teacher {folder} was trained on images of {size} pixels, not "
                f"{data.image_size}; give --image-size {size}"
            )
        self.net: nn.Module = net.to(device).eval().requires_grad_(False)
        self.macs = count_macs(net, torch.zeros(1, *run.input_shape))
        mean, std = (torch.tensor(values) for values in (run.mean, run.std))
        own_mean, own_std = torch.tensor(data.mean), torch.tensor(data.std)
        # (x * own_std + own_mean - mean) / std
        self._scale = (own_std / std).view(3, 1, 1).to(device)
        self._offset = ((own_mean - mean) / std).view(3, 1, 1).to(device)

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c ..."]:
        """What it says about normalised images of the data set."""
        logits: Tensor = scores_of(self.net(torch.addcmul(self._offset, images, self._scale)))
        return logits.float()


def distilled(
    task: Float[Tensor, ""], logits: Float[Tensor, "n c ..."], teacher: Float[Tensor, "n c ..."]
) -> Float[Tensor, ""]:
    """Half the task loss, half the divergence from the teacher at temperature 4 (times 16)."""
    cold = F.log_softmax(logits / _TEMPERATURE, 1)
    wanted = F.log_softmax(teacher / _TEMPERATURE, 1)
    # The mean over images, or over their pixels.
    divergence = F.kl_div(cold, wanted, reduction="none", log_target=True).sum(1).mean()
    return (1 - _WEIGHT) * task + _WEIGHT * _TEMPERATURE**2 * divergence
