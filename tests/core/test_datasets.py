"""load_dataset by name, and splits that are held in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polarprune.datasets import cifar as cifar_module
from polarprune.datasets import load_dataset
from polarprune.datasets.memory import MemorySplit, channel_statistics
from polarprune.errors import ConfigError, DataError

_REPOSITORY = Path(__file__).resolve().parents[2]
_MEAN, _STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _split(count: int = 50, side: int = 8, **options: object) -> tuple[MemorySplit, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count)
    return MemorySplit(images, labels, mean=_MEAN, std=_STD, **options), images, labels  # type: ignore[arg-type]


def _denormalised(batch: Tensor) -> Tensor:
    """Back to (n, h, w, 3) of 0..255."""
    values = batch.permute(0, 2, 3, 1) * torch.tensor(_STD) + torch.tensor(_MEAN)
    return (values * 255).round().to(torch.uint8)


def _epoch(split: MemorySplit, **options: object) -> list[tuple[Tensor, Tensor]]:
    return list(split.batches(16, **options))  # type: ignore[arg-type]


def test_plain_batches_are_the_images_in_order_normalised() -> None:
    split, images, labels = _split()

    batches = _epoch(split, shuffle_seed=None, augment=False)

    assert [len(x) for x, _ in batches] == [16, 16, 16, 2]
    # float32 rounding of one multiplication and one addition of values below 4.
    expected = (images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(_MEAN).view(3, 1, 1)) / (
        torch.tensor(_STD).view(3, 1, 1)
    )
    result = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6)
    assert torch.equal(torch.cat([y for _, y in batches]), labels)


@pytest.mark.parametrize("image_size", [8, 12])
def test_batches_are_made_where_the_images_are(image_size: int) -> None:
    split = _split(image_size=image_size)[0]
    split.to(torch.device("meta"))  # refuses to be mixed with tensors of the CPU, as a GPU does

    for images, labels in _epoch(split, shuffle_seed=1, augment=True, part=(1, 2)):
        assert (images.device.type, labels.device.type) == ("meta", "meta")
        assert images.shape[1:] == (3, image_size, image_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_batches_on_a_gpu_are_those_of_the_cpu() -> None:
    here, there = _split()[0], _split()[0]
    there.to(torch.device("cuda"))
    pairs = zip(
        _epoch(here, shuffle_seed=1, augment=True),
        _epoch(there, shuffle_seed=1, augment=True),
        strict=True,
    )
    for (ours, classes), (theirs, classes_there) in pairs:
        torch.testing.assert_close(ours, theirs.cpu(), rtol=0, atol=2e-6)
        assert torch.equal(classes, classes_there.cpu())


@pytest.mark.parametrize("augment", [True, False])
def test_batches_are_float32_channels_last_and_int64(augment: bool) -> None:
    images, labels = _epoch(_split()[0], shuffle_seed=1, augment=augment)[0]

    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64


def test_same_seed_gives_the_same_batches_bit_for_bit() -> None:
    split, _, _ = _split()

    torch.manual_seed(0)
    first = _epoch(split, shuffle_seed=5, augment=True)
    torch.manual_seed(1)  # the global generator plays no part
    second = _epoch(split, shuffle_seed=5, augment=True)
    other = _epoch(split, shuffle_seed=6, augment=True)

    for (x, y), (x2, y2) in zip(first, second, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert not torch.equal(first[0][0], other[0][0])


def test_shuffled_epoch_has_every_image_once() -> None:
    split, _, labels = _split()

    seen = torch.cat([y for _, y in _epoch(split, shuffle_seed=2, augment=True)])

    assert not torch.equal(seen, labels)
    assert torch.equal(seen.sort().values, labels)


def test_drop_last_leaves_the_short_batch_out() -> None:
    split, _, _ = _split()

    batches = list(split.batches(16, shuffle_seed=0, augment=False, drop_last=True))

    assert [len(x) for x, _ in batches] == [16, 16, 16]


@pytest.mark.parametrize("flip", [True, False])
def test_augmented_image_is_a_shift_and_flip_of_its_reflected_original(flip: bool) -> None:
    """Against one image at a time with numpy's reflection padding."""
    split, images, _ = _split(count=200, side=8, flip=flip, max_shift=2)

    batches = _epoch(split, shuffle_seed=4, augment=True)

    found = set()
    for x, y in batches:
        for augmented, label in zip(_denormalised(x).numpy(), y.tolist(), strict=True):
            margins = ((2, 2), (2, 2), (0, 0))
            padded = np.pad(images[label].numpy(), margins, mode="reflect")
            matches = [
                (top, left, mirrored)
                for top in range(5)
                for left in range(5)
                for mirrored in (False, True)
                if np.array_equal(
                    augmented, padded[top : top + 8, left : left + 8][:, :: -1 if mirrored else 1]
                )
            ]
            assert len(matches) == 1
            found.add(matches[0])
    # All 25 shifts occur among 200 images; mirrored ones only where they may.
    assert {match[:2] for match in found} == {(t, left) for t in range(5) for left in range(5)}
    assert {match[2] for match in found} == ({False, True} if flip else {False})


def test_shift_wider_than_a_tiny_image_stays_inside_it() -> None:
    split, images, _ = _split(count=20, side=2, max_shift=5)

    x = torch.cat([x for x, _ in _epoch(split, shuffle_seed=0, augment=True)])

    assert set(_denormalised(x).flatten().tolist()) <= set(images.flatten().tolist())


def test_raw_images_are_spread_over_the_split_and_normalise_to_the_batches() -> None:
    split, images, _ = _split()

    raw, labels = split.raw(10)

    assert labels.tolist() == list(range(0, 50, 5))
    assert torch.equal(raw, images[::5])
    assert len(split.raw(1_000)[0]) == 50


def test_raw_images_do_not_share_memory_with_the_split() -> None:
    split, _, _ = _split()
    before = split.raw(3)[0].clone()

    split.raw(3)[0].zero_()

    assert torch.equal(split.raw(3)[0], before)


def test_other_image_size_resizes_batches_and_raw_images_alike() -> None:
    split, _, _ = _split(side=8, image_size=12)

    x, _ = _epoch(split, shuffle_seed=None, augment=False)[0]
    raw, _ = split.raw(50)

    assert x.shape == (16, 3, 12, 12)
    assert x.is_contiguous(memory_format=torch.channels_last)
    # Resizing commutes with normalisation but for rounding to whole levels, on the way to uint8.
    difference = (_denormalised(x).int() - raw[:16].int()).abs().max()
    assert int(difference) <= 1


def test_channel_statistics_equal_those_of_a_plain_mean() -> None:
    _, images, _ = _split(count=300)
    values = images.double() / 255

    mean, std = channel_statistics(images)

    # Rounded to six digits.
    assert mean == pytest.approx(values.mean((0, 1, 2)).tolist(), abs=1e-6)
    assert std == pytest.approx(values.std((0, 1, 2), correction=0).tolist(), abs=1e-6)


def test_channel_of_one_colour_has_a_standard_deviation_above_zero() -> None:
    mean, std = channel_statistics(torch.full((3, 4, 4, 3), 51, dtype=torch.uint8))

    assert mean == (0.2, 0.2, 0.2)
    assert min(std) > 0


def test_digits_are_the_1797_images_in_a_fixed_stratified_split() -> None:
    data = load_dataset("digits")

    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.classes == [str(digit) for digit in range(10)]
    assert (data.image_size, data.channels) == (32, 3)
    for split in (data.train, data.test):
        labels = split.raw(len(split))[1]
        # Classes of scikit-learn's set have 174 to 183 images.
        shares = torch.bincount(labels, minlength=10) / len(split)
        assert float((shares - 0.1).abs().max()) < 0.005


def test_digits_are_never_mirrored() -> None:
    """An augmented digit is closer to its own image than to the mirrored one, over the set."""
    data = load_dataset("digits")
    images, _ = data.train.raw(len(data.train))
    plain = torch.cat([x for x, _ in data.train.batches(500, shuffle_seed=None, augment=False)])
    augmented = torch.cat([x for x, _ in data.train.batches(500, shuffle_seed=None, augment=True)])

    straight = (augmented - plain).flatten(1).norm(dim=1)
    mirrored = (augmented - plain.flip(3)).flatten(1).norm(dim=1)

    assert len(images) == len(plain)
    # A shift of two pixels moves a near-symmetric digit (0, 8, 1) about as far as its mirror is.
    assert float((straight < mirrored).float().mean()) > 0.95


def test_digits_are_enlarged_by_bilinear_interpolation() -> None:
    images, _ = load_dataset("digits").test.raw(1)
    with np.load(_REPOSITORY / "polarprune" / "datasets" / "digits.npz") as file:
        small = file["test_images"][0].astype(float)

    def at(y: int, x: int) -> float:
        """Sample at the centre of pixel (y, x), coordinates clamped at the border."""
        v, u = (min(max((p + 0.5) / 4 - 0.5, 0.0), 7.0) for p in (y, x))
        top, left = min(int(v), 6), min(int(u), 6)
        dy, dx = v - top, u - left
        rows = small[top] * (1 - dy) + small[top + 1] * dy
        return float(rows[left] * (1 - dx) + rows[left + 1] * dx)

    for y, x in np.ndindex(32, 32):
        assert abs(at(y, x) * 255 / 16 - int(images[0, y, x, 0])) <= 0.5
    assert torch.equal(images[..., 0], images[..., 1])
    assert torch.equal(images[..., 0], images[..., 2])


def test_embedded_digits_are_what_the_program_writes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    program = _REPOSITORY / "benchmarks" / "make_digits.py"

    subprocess.run([sys.executable, program, tmp_path / "digits.npz"], check=True, timeout=120)

    embedded = np.load(_REPOSITORY / "polarprune" / "datasets" / "digits.npz")
    written = np.load(tmp_path / "digits.npz")
    assert set(embedded) == set(written)
    for name in written:
        np.testing.assert_array_equal(embedded[name], written[name])


def test_given_normalisation_replaces_the_computed_one() -> None:
    data = load_dataset("digits", mean_std=(_MEAN, _STD))

    assert (data.mean, data.std) == (_MEAN, _STD)
    images, _ = next(data.test.batches(4, shuffle_seed=None, augment=False))
    raw = data.test.raw(len(data.test))[0][:4]
    assert torch.equal(_denormalised(images), raw)


def test_computed_normalisation_gives_zero_mean_and_unit_deviation() -> None:
    data = load_dataset("digits")

    x = torch.cat([x for x, _ in data.train.batches(500, shuffle_seed=None, augment=False)])

    # Mean and deviation are rounded to six digits.
    assert x.double().mean((0, 2, 3)).abs().max() < 1e-4
    assert (x.double().std((0, 2, 3)) - 1).abs().max() < 1e-4


class _SmallCifar:
    """Stands in for torchvision's class: its attributes, and no download."""

    filename = "small.tar.gz"

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        assert root.is_dir()
        assert download
        count = 20 if train else 10
        self.data = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = [index % 2 for index in range(count)]
        self.classes = ["cat", "dog"]


def test_cifar_is_read_from_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARPRUNE_DATA", str(tmp_path / "cache"))
    monkeypatch.setitem(cifar_module._SETS, "cifar10", _SmallCifar)

    data = load_dataset("cifar10")

    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.classes == ["cat", "dog"]
    assert data.image_size == 32
    images, labels = next(data.train.batches(4, shuffle_seed=0, augment=True))
    assert images.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.int64


def test_cifar_without_a_network_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setenv("POLARPRUNE_DATA", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", refuse)

    with pytest.raises(DataError, match=r"cifar100 is not in .* put cifar-100-python") as caught:
        load_dataset("cifar100")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "--image-size must be at least 1, got 0"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
        ({"mean_std": (_MEAN, (0.1, 0.0, 0.1))}, "it must be above 0"),
    ],
)
def test_value_out_of_range_is_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset("digits", **options)  # type: ignore[arg-type]


def test_absent_data_folder_is_an_error_that_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist; give digits, cifar10, cifar100 or"):
        load_dataset(str(tmp_path / "absent"))


def test_file_in_place_of_a_data_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match="file is not a folder"):
        load_dataset(tmp_path / "file")
