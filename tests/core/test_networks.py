"""build_network: our CIFAR networks, the zoos, the user's factories."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.fx
import torchvision
from torch import Tensor, nn

from polarprune.errors import ConfigError, WeightsError
from polarprune.networks import build_network, default_classes, input_size
from polarprune.networks.cifar_resnet import PaddingShortcut

# He et al. 2015, table 6, with the batch normalisation and option A (0.27M ... 1.7M there).
_PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}


def _layer_macs(net: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates by hooks on eager layers, independent of the package's own count."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += weight[0].numel() * output[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(image)
    return total


@pytest.mark.parametrize("name", _PARAMETERS)
def test_cifar_resnet_has_the_published_parameter_count(name: str) -> None:
    net = build_network(name)

    assert sum(parameter.numel() for parameter in net.parameters()) == _PARAMETERS[name]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == int(name[6:])


@pytest.mark.parametrize(
    ("name", "macs"),
    [("resnet20", 40_551_040), ("resnet56", 125_485_696), ("vgg16_bn", 313_201_664)],
)
def test_own_network_has_the_published_macs(name: str, macs: int) -> None:
    assert _layer_macs(build_network(name).eval(), torch.randn(1, 3, 32, 32)) == macs


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "vgg16_bn"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_own_network_traces_to_a_graph_that_computes_the_same(name: str, training: bool) -> None:
    torch.manual_seed(0)
    net = build_network(name).train(training)
    image = torch.randn(2, 3, 32, 32)

    traced = torch.fx.symbolic_trace(net)

    # The same operators on the same numbers in the same order: no tolerance.
    assert torch.equal(traced(image), net(image))


def test_option_a_shortcut_takes_every_second_pixel_and_pads_zero_channels_on_both_sides() -> None:
    image = torch.arange(2 * 4 * 5 * 6, dtype=torch.float32).reshape(2, 4, 5, 6) + 1

    result = PaddingShortcut(4)(image)

    expected = np.zeros((2, 8, 3, 3), dtype=np.float32)
    for n, c, y, x in np.ndindex(2, 4, 3, 3):
        expected[n, c + 2, y, x] = image[n, c, 2 * y, 2 * x]
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("side", [33, 47])
def test_cifar_resnet_takes_images_of_odd_size(side: int) -> None:
    assert build_network("resnet20", num_classes=7)(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_fresh_network_is_in_training_mode_and_keeps_the_scale_of_its_input() -> None:
    torch.manual_seed(0)
    net = build_network("resnet56")

    assert net.training
    logits = net(torch.randn(16, 3, 32, 32))
    assert 0.05 < float(logits.detach().std()) < 20


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        ("resnet56", (3, 32, 32), 10),
        ("vgg16_bn", (3, 32, 32), 10),
        ("torchvision:resnet18", (3, 224, 224), 1000),
        ("torchvision:inception_v3", (3, 299, 299), 1000),
        ("timm:resnet18", (3, 224, 224), 1000),
        ("timm:tf_efficientnet_b3", (3, 300, 300), 1000),
    ],
)
def test_zoo_states_its_input_size_and_class_count(
    name: str, size: tuple[int, int, int], classes: int
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")

    assert input_size(name) == size
    assert default_classes(name) == classes


@pytest.mark.parametrize(
    "name",
    ["torchvision:mobilenet_v2", "torchvision:googlenet", "torchvision:vgg11_bn", "timm:resnet18"],
)
def test_zoo_network_has_the_classes_asked_for_and_downloads_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    monkeypatch.setattr("socket.socket.connect", _no_network)

    net = build_network(name, num_classes=4)

    logits = net(torch.randn(2, 3, 64, 64))  # in training mode, so without auxiliary heads
    assert logits.shape == (2, 4)


def test_segmentation_network_of_torchvision_downloads_no_backbone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.socket.connect", _no_network)

    net = build_network("torchvision:lraspp_mobilenet_v3_large", num_classes=2)

    assert net(torch.randn(2, 3, 64, 64))["out"].shape == (2, 2, 64, 64)


def _no_network(*_arguments: object) -> None:
    raise AssertionError("something went to the network")


def test_class_count_none_takes_the_zoos_own() -> None:
    assert build_network("torchvision:squeezenet1_1", num_classes=None).num_classes == 1000
    assert build_network("resnet20", num_classes=None)(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which is not on the path yet."""
    (tmp_path / "their_networks.py").write_text(
        "from torch import nn\n"
        "def wide(num_classes=5):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
        "wide.input_size = (3, 2, 2)\n"
        "def fixed():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
        "def convolution():\n"
        "    return nn.Conv2d(3, 3, 1)\n"
        "def text():\n"
        "    return 'a network'\n"
        "def broken():\n"
        "    raise RuntimeError('first line\\nsecond line')\n"
        "made = nn.Flatten()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_networks", raising=False)
    return "their_networks"


def test_factory_is_called_with_num_classes_if_it_takes_it(user_module: str) -> None:
    image = torch.randn(1, 3, 2, 2)

    assert build_network(f"{user_module}:wide", num_classes=8)(image).shape == (1, 8)
    assert build_network(f"{user_module}:wide", num_classes=None)(image).shape == (1, 5)
    assert build_network(f"{user_module}:fixed", num_classes=8)(image).shape == (1, 3)


def test_factory_states_input_size_and_classes(user_module: str) -> None:
    assert input_size(f"{user_module}:wide") == (3, 2, 2)
    assert default_classes(f"{user_module}:wide") == 5
    assert input_size(f"{user_module}:fixed") == (3, 224, 224)
    assert default_classes(f"{user_module}:fixed") == 3


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("absent", "has no callable 'absent'"),
        ("text", "gave str; it must give a torch.nn.Module"),
        ("broken", "failed: first line"),
        ("made", "their_networks:made' is a network; name a function that builds one"),
    ],
)
def test_factory_that_fails_is_a_one_line_error(
    user_module: str, factory: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(f"{user_module}:{factory}")

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_factory_without_a_linear_layer_cannot_say_its_classes(user_module: str) -> None:
    with pytest.raises(ConfigError, match="give --num-classes"):
        default_classes(f"{user_module}:convolution")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet57", "did you mean resnet56?"),
        ("resnet21", "did you mean resnet20?"),
        ("their_networks", "of their_networks.py here write their_networks:FACTORY"),
        ("their_networks.py:wide", "; write their_networks:wide$"),
        ("transformer", "ours are resnet20, .* torchvision:NAME, timm:NAME or package.module:fac"),
        ("torchvision:resnet19", "did you mean torchvision:resnet1[08]"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown model"),
        ("timm:hf-hub:someone/something", "unknown model"),
        ("no_such_package:build", "run this in the folder that no_such_package lies in, or put"),
        (":build", "cannot import"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_unknown_name_is_a_one_line_error(name: str, message: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(name)

    assert "\n" not in str(caught.value)


def test_class_count_below_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--num-classes must be at least 1, got 0"):
        build_network("resnet20", num_classes=0)


def test_own_network_has_nothing_pretrained_to_download() -> None:
    with pytest.raises(ConfigError, match="model 'resnet20' has no pretrained weights"):
        build_network("resnet20", weights="pretrained")


def _zoo_that_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Make torchvision's published weights random ones; return them as they are handed out."""
    real = torchvision.models.get_model
    published: dict[str, Tensor] = {}

    def get_model(name: str, *, weights: str | None, **options: object) -> nn.Module:
        options.pop("progress", None)
        net: nn.Module = real(name, weights=None, **options)
        if weights == "DEFAULT":
            published.update(net.state_dict())
        return net

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    return published


@pytest.mark.parametrize("classes", [1000, 4])
def test_pretrained_network_keeps_all_but_a_classifier_of_other_size(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = _zoo_that_needs_no_network(monkeypatch)

    net = build_network("torchvision:squeezenet1_1", num_classes=classes, weights="pretrained")

    random = {
        name for name, value in net.state_dict().items() if value.shape != published[name].shape
    }
    assert random == (set() if classes == 1000 else {"classifier.1.weight", "classifier.1.bias"})
    for name, value in net.state_dict().items():
        assert name in random or torch.equal(value, published[name]), name


def test_failed_download_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    with pytest.raises(WeightsError, match=r"could not be downloaded .*no route") as caught:
        build_network("torchvision:squeezenet1_1", weights="pretrained")

    assert "\n" not in str(caught.value)
