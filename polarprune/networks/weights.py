"""Weights files: safetensors, or PyTorch's own format read with `weights_only=True`.

A file fits when every parameter and statistic of the network is in it with the same shape, and
nothing else is. Counters of batches (`num_batches_tracked`) may be absent: they change no output.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from polarprune.datasets.splits import IMAGENET_MEAN, IMAGENET_STD
from polarprune.errors import WeightsError, first_line

# Where training programs put the state dict inside a checkpoint (Lightning, torchvision).
_WRAPPERS = ("state_dict", "model")
# Left by DataParallel and DistributedDataParallel.
_PARALLEL_PREFIX = "module."
_COUNTER = "num_batches_tracked"
# In place of a file: the zoo's own weights, downloaded.
PRETRAINED = "pretrained"

Triple = tuple[float, float, float]


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into the network, in the network's dtype and device.

    Raises:
        WeightsError: the file is missing, unreadable or does not fit; the first parameter at fault
            is named, with both shapes. The network is then unchanged.
    """
    copy_state(net, read_state(path), source=str(path))


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by parameter name, on the CPU.

    Raises:
        WeightsError: the file is missing, of an unknown kind, truncated, or not plain tensors.
    """
    path = _present(path)
    if path.suffix == ".safetensors":
        with _safetensors_errors(path):
            state = load_file(path)
    elif path.suffix in {".pt", ".pth"}:
        state = _read_torch_file(path)
    else:
        raise WeightsError(
            f"{path} is not a weights file: its name must end in .safetensors, .pt or .pth"
        )
    if state and all(name.startswith(_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(_PARALLEL_PREFIX): value for name, value in state.items()}
    return state


def _present(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise WeightsError(f"weights file {path} does not exist")
    return Path(path)


@contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file ({first_line(error)}); copy it again"
        ) from error


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Raised for damaged files and for pickled classes alike; torch's text is a page long.
        raise WeightsError(
            f"{path} is damaged or holds pickled objects beside tensors; "
            "save net.state_dict(), best as safetensors"
        ) from error
    except Exception as error:  # of damaged files nearly every type there is
        raise WeightsError(
            f"{path} is not a readable PyTorch file ({first_line(error)}); copy it again"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise _no_state_dict(path, f"it holds {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _no_state_dict(path, f"{name!r} is {type(value).__name__}, not a tensor")
    return dict(content)


def _no_state_dict(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path} is not a state dict: {reason}; save net.state_dict()")


def copy_state(net: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into the network after checking that it fits.

    Args:
        source: what the state dict came from, for messages.

    Raises:
        WeightsError: as `load_weights`.
    """
    wanted = net.state_dict()
    for name, value in wanted.items():
        if name not in state:
            if name.endswith(_COUNTER):
                continue
            raise WeightsError(
                f"{source} has no parameter {name!r} ({_shape(value)}); it is of another network"
            )
        _check_parameter(name, state[name], value, source)
    for name, value in state.items():
        if name not in wanted and not name.endswith(_COUNTER):
            raise WeightsError(
                f"{source} has a parameter {name!r} ({_shape(value)}) that the network lacks; "
                "it is of another network"
            )
    with torch.no_grad():
        for name, value in wanted.items():
            if name in state:
                value.copy_(state[name])


def _check_parameter(name: str, value: Tensor, wanted: Tensor, source: str) -> None:
    if value.shape != wanted.shape:
        hint = ""
        if value.shape[1:] == wanted.shape[1:] and value.ndim:
            hint = f"; for a classifier, give --num-classes {value.shape[0]}"
        raise WeightsError(
            f"{source} does not fit: {name!r} has shape {_shape(value)}, "
            f"the network's has {_shape(wanted)}{hint}"
        )
    if value.is_floating_point() != wanted.is_floating_point():
        raise WeightsError(f"{source} does not fit: {name!r} is {value.dtype}, not {wanted.dtype}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise WeightsError(f"{source} is unusable: {name!r} holds values that are not finite")


def weights_normalisation(path: str | Path) -> tuple[Triple, Triple] | None:
    """The mean and standard deviation (RGB, 0..1 scale) the weights were trained with, if stated.

    ImageNet's for "pretrained", with which torchvision's zoo was trained. Those of a file are read
    from the safetensors metadata `normalize_mean` and `normalize_std`, each three numbers with
    commas; None where the file does not say.

    Raises:
        WeightsError: the file is missing or unreadable, or the metadata are no numbers.
    """
    if str(path) == PRETRAINED:
        return IMAGENET_MEAN, IMAGENET_STD
    path = _present(path)
    if path.suffix != ".safetensors":
        return None
    with _safetensors_errors(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "normalize_mean" not in metadata or "normalize_std" not in metadata:
        return None
    mean = _numbers(metadata["normalize_mean"], "normalize_mean", path)
    std = _numbers(metadata["normalize_std"], "normalize_std", path)
    if min(std) <= 0:
        raise WeightsError(
            f"{path} has normalize_std {metadata['normalize_std']!r}; it must be above 0"
        )
    return mean, std


def _numbers(text: str, key: str, path: Path) -> Triple:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise WeightsError(
            f"{path} has {key} {text!r} in its metadata; expected three numbers with commas"
        ) from None
    return red, green, blue


def _shape(value: Tensor) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar"
