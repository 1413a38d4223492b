"""VGG-16 with batch normalisation for CIFAR: 13 convolutions and one linear layer.

The two hidden linear layers of Simonyan and Zisserman 2014 are left out, as the pruning literature
does for 32x32 images: behind five poolings there is one pixel of 512 channels.
"""

from jaxtyping import Float
from torch import Tensor, nn

# Configuration D of the paper; 0 stands for a 2x2 max pooling.
_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class CifarVgg(nn.Module):
    """Five stages of 3x3 convolutions, each with BN and ReLU, then pooling and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for c_out in _CHANNELS:
            if c_out == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
            c_in = c_out
        self.features = nn.Sequential(*layers)
        # The identity at 32x32; it lets larger images through.
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits; height and width are at least 32."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits
