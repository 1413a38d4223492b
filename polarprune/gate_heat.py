"""How strong each gated channel is, image by image, for methods whose loss asks for it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polarprune.gating import ChannelGates
from polarprune.methods.protocol import GateOutput


def heat_of(body: nn.Module, outputs: list[GateOutput]) -> tuple[Float[Tensor, "n u"], ...]:
    """Per gate module (n, units) the largest magnitude in the last batch, before gating.

    Of a unit that is read in several tensors the largest of them; -1 where there is none.

    Args:
        outputs: of the gate modules, in their order.
    """
    gates = [module for module in body.modules() if isinstance(module, ChannelGates)]
    images = max((len(gate.peaks) for gate in gates if gate.peaks is not None), default=0)
    found = [
        torch.full((images, len(o.probability)), -1.0, device=o.probability.device) for o in outputs
    ]
    for gate in gates:
        if gate.peaks is None or gate.owners is None or len(gate.peaks) != images:
            continue  # images folded into the batch: whose is not known
        owners = torch.from_numpy(gate.owners).to(gate.peaks.device)
        for number in sorted({*gate.owners[:, 0].tolist()} - {-1}):
            here = owners[:, 0] == number
            units = owners[here, 1].expand(images, -1)
            found[number].scatter_reduce_(1, units, gate.peaks[:, here], "amax")
    return tuple(found)
