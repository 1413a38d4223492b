"""What `polarprune export` takes: a run folder, a saved network, or the name of a network."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polarprune.errors import ConfigError, RunFolderError
from polarprune.manifest import CertificateLink, Preprocessing, is_bundle
from polarprune.network_files import image_shape, is_network_folder, load_network
from polarprune.option_values import check_range, refuse_given
from polarprune.runs.run_folder import (
    CUTS_FILE,
    RUN_FILE,
    RunFolder,
    means_a_path,
)
from polarprune.tasks.protocol import scores_of

if TYPE_CHECKING:
    from polarprune.datasets import Dataset

Triple = tuple[float, float, float]
RANDOM_WEIGHTS = "random"  # what `base.weights` says of a network that nobody trained


@dataclass(frozen=True)
class ExportSource:
    """A network and what is known about it.

    Attributes:
        input_shape: (c, h, w), or whatever a saved network takes.
        unpruned: makes the network before pruning; `network` itself where nothing was pruned.
    """

    network: nn.Module
    name: str
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    cuts: tuple[CertificateLink, ...]
    base: Mapping[str, Any]
    data: "Dataset | None"
    unpruned: Callable[[], nn.Module]


def open_source(
    source: str | Path,
    *,
    data: str | None,
    weights: str | Path | None,
    num_classes: int | None,
    image_size: int | None,
) -> ExportSource:
    """The network of a run folder, of save_network or of a `--model` name, with its data set.

    Raises:
        RunFolderError, ConfigError, WeightsError, DataError: what is wrong with which argument.
    """
    if Path(source).is_dir():
        if is_bundle(Path(source)) and not (Path(source) / RUN_FILE).exists():
            raise RunFolderError(f"{source} is a bundle already; give the run or model to export")
        given = {"--weights": weights, "--num-classes": num_classes, "--image-size": image_size}
        refuse_given(given, f"belongs to a model, and {source} is a folder")
        if is_network_folder(Path(source)):
            return _open_network(Path(source), data)
        return _open_run(Path(source), data)
    if means_a_path(str(source)):
        raise RunFolderError(f"{source} is no run folder; give one, or a model's name")
    return _open_model(str(source), data, weights, num_classes, image_size)


def _open_run(folder: Path, data: str | None) -> ExportSource:
    run = RunFolder(folder)
    channels, height, width = run.input_shape
    mean, std = _triple(run.mean), _triple(run.std)
    classes = tuple(run.classes)
    network = run.pruned_network()
    dataset = _load_data(data, height, (mean, std), run.task)
    if dataset is not None and tuple(dataset.classes) != classes:
        raise ConfigError(
            f"{dataset.name} has the classes {_few(dataset.classes)}, the run was trained on "
            f"{_few(classes)}; give the run's own data"
        )
    config = run.config
    return ExportSource(
        network=network,
        name=_plain_name(run.model),
        input_shape=(channels, height, width),
        preprocessing=Preprocessing(height, width, run.resize_side, mean, std),
        classes=classes,
        cuts=cut_links(run.path / CUTS_FILE),
        base={"model": run.model, "data": config.get("data"), "target": config.get("target")},
        data=dataset,
        unpruned=run.base_network,
    )


def _open_network(folder: Path, data: str | None) -> ExportSource:
    network = load_network(folder)
    shape = image_shape(network)
    dataset = _load_data(data, shape[-1], None, None)
    preprocessing = None
    if dataset is not None:
        with torch.no_grad():
            count = scores_of(network(torch.zeros(1, *shape))).shape[1]
        _check_classes(dataset, str(folder), count, "other data")
        preprocessing = _preprocessing(dataset, *shape[-2:])
    return ExportSource(
        network=network,
        name=_plain_name(folder.resolve().name),
        input_shape=shape,
        preprocessing=preprocessing,
        classes=() if dataset is None else tuple(dataset.classes),
        cuts=(),
        base={"network": folder.resolve().name},
        data=dataset,
        unpruned=lambda: network,
    )


def _open_model(
    name: str,
    data: str | None,
    weights: str | Path | None,
    num_classes: int | None,
    image_size: int | None,
) -> ExportSource:
    from polarprune import networks
    from polarprune.runs.run_inputs import check_classes

    check_range("--image-size", image_size, 1)
    network = networks.build_network(name, num_classes, weights).eval()
    channels, height, width = networks.input_size(name)
    if image_size is not None:
        height = width = image_size
    check_classes(network, name, num_classes, (channels, height, width))
    known = None if weights is None else networks.weights_normalisation(weights)
    dataset = _load_data(data, height, known, None)
    preprocessing = None
    if dataset is not None:
        count = networks.default_classes(name) if num_classes is None else num_classes
        _check_classes(dataset, name, count, "--num-classes or other data")
        preprocessing = _preprocessing(dataset, height, width)
    elif known is not None:
        preprocessing = Preprocessing(height, width, height, _triple(known[0]), _triple(known[1]))
    return ExportSource(
        network=network,
        name=_plain_name(name),
        input_shape=(channels, height, width),
        preprocessing=preprocessing,
        classes=() if dataset is None else tuple(dataset.classes),
        cuts=(),
        base={"model": name, "weights": RANDOM_WEIGHTS if weights is None else Path(weights).name},
        data=dataset,
        unpruned=lambda: network,
    )


def _check_classes(dataset: "Dataset", name: str, count: int, wanted: str) -> None:
    if len(dataset.classes) != count:
        raise ConfigError(
            f"{dataset.name} has {len(dataset.classes)} classes, {name} has {count}; give {wanted}"
        )


def _preprocessing(dataset: "Dataset", height: int, width: int) -> Preprocessing:
    mean, std = _triple(dataset.mean), _triple(dataset.std)
    return Preprocessing(height, width, dataset.resize_side, mean, std)


def cut_links(path: Path) -> tuple[CertificateLink, ...]:
    """The certificate links of the cuts of a run, in the order of training.

    Raises:
        RunFolderError: a line is not a record of a cut.
    """
    links = []
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        for line in filter(str.strip, lines):
            record = json.loads(line)
            check = record.get("certificate") or record
            links.append(
                CertificateLink(
                    stage=f"cut at step {record['step']}",
                    against=check.get("against", "the gated network, frozen"),
                    inputs=check.get("inputs", "real"),
                    n=int(check.get("n", 0)),
                    tolerance=_number(check.get("tolerance")),
                    max_abs_error=_number(check.get("max_abs_error")),
                    max_rel_error=_number(check.get("max_rel_error")),
                    top1_agreement=_number(check.get("top1_agreement")),
                    passed=check.get("passed"),
                )
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} has a line that records no cut ({error!r})") from None
    return tuple(links)


def _load_data(
    data: str | None, image_size: int, mean_std: tuple[Triple, Triple] | None, task: str | None
) -> "Dataset | None":
    if data is None:
        return None
    from polarprune.datasets import load_dataset, task_of

    return load_dataset(data, image_size=image_size, mean_std=mean_std, task=task or task_of(data))


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _few(classes: Any) -> str:
    names = list(classes)
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def _plain_name(model: str) -> str:
    """A name that a server accepts as a model's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model)
