"""Class-folder trees: in memory, streamed, and broken in every way that is named."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polarprune.datasets import IMAGENET_MEAN, IMAGENET_STD, Split, load_dataset
from polarprune.datasets import folder as folder_module
from polarprune.datasets.memory import MemorySplit
from polarprune.datasets.streaming import StreamedSplit, processor_count
from polarprune.errors import DataError


def _picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth, so that resizing keeps it recognisable."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _tree(root: Path, sizes: list[tuple[int, int]], test_name: str = "test") -> Path:
    """Two classes; in each split of each, one image of every size."""
    seed = 0
    for split in ("train", test_name):
        for name in ("bee", "ant"):
            (root / split / name).mkdir(parents=True)
            for width, height in sizes:
                _picture(seed, width, height).save(root / split / name / f"{seed:03d}.png")
                seed += 1
    return root


@pytest.fixture
def square_tree(tmp_path: Path) -> Path:
    return _tree(tmp_path / "square", [(16, 16)] * 5)


@pytest.fixture
def mixed_tree(tmp_path: Path) -> Path:
    return _tree(tmp_path / "mixed", [(40, 30), (30, 64), (33, 33), (90, 40), (25, 25)])


def test_square_images_of_one_size_are_held_in_memory_as_they_are(square_tree: Path) -> None:
    data = load_dataset(str(square_tree))

    assert isinstance(data.train, MemorySplit)
    assert data.name == "square"
    assert data.classes == ["ant", "bee"]
    assert (data.image_size, data.resize_side) == (16, 16)
    images, labels = data.train.raw(10)
    assert labels.tolist() == [0] * 5 + [1] * 5
    for image, path in zip(images, sorted(square_tree.glob("train/*/*")), strict=True):
        np.testing.assert_array_equal(image.numpy(), np.asarray(Image.open(path)))


def test_images_of_mixed_sizes_are_streamed_at_the_size_asked_for(mixed_tree: Path) -> None:
    data = load_dataset(mixed_tree, image_size=28, workers=0)

    assert isinstance(data.train, StreamedSplit)
    assert (data.image_size, data.resize_side) == (28, 32)
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    images, labels = next(data.train.batches(10, shuffle_seed=0, augment=True))
    assert images.shape == (10, 3, 28, 28)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 5


def test_streamed_set_has_the_usual_size_when_none_is_asked_for(mixed_tree: Path) -> None:
    data = load_dataset(mixed_tree, workers=0)

    assert (data.image_size, data.resize_side) == (224, 256)


@pytest.mark.parametrize("odd", ["first", "last"])
def test_one_odd_size_among_many_makes_the_set_a_streamed_one(tmp_path: Path, odd: str) -> None:
    root = _tree(tmp_path / "many", [(8, 8)] * 150)
    paths = sorted(root.glob("train/bee/*"))
    # Not among the files that are looked at first.
    path = paths[1] if odd == "first" else paths[-1]
    _picture(0, 9, 8).save(path)

    data = load_dataset(root, image_size=8, workers=0)

    assert isinstance(data.train, StreamedSplit)
    assert len(data.train) == 300


def test_oblong_images_of_one_size_are_streamed(tmp_path: Path) -> None:
    data = load_dataset(_tree(tmp_path / "oblong", [(20, 16)] * 3), image_size=16, workers=0)

    assert isinstance(data.test, StreamedSplit)


def test_set_beyond_the_memory_limit_is_streamed(
    square_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_MEMORY_LIMIT_BYTES", 20 * 16 * 16 * 3 - 1)

    assert isinstance(load_dataset(square_tree, image_size=16).train, StreamedSplit)


def test_square_images_in_memory_are_resized_to_the_size_asked_for(square_tree: Path) -> None:
    data = load_dataset(square_tree, image_size=24)

    assert isinstance(data.train, MemorySplit)
    assert data.image_size == 24
    assert next(data.test.batches(2, shuffle_seed=None, augment=False))[0].shape == (2, 3, 24, 24)
    assert data.test.raw(2)[0].shape == (2, 24, 24, 3)


def test_val_stands_in_for_test(tmp_path: Path) -> None:
    data = load_dataset(_tree(tmp_path / "v", [(8, 8)] * 2, test_name="val"))

    assert len(data.test) == 4


def test_hidden_files_other_files_and_nested_folders_are_handled(square_tree: Path) -> None:
    ant = square_tree / "train" / "ant"
    (ant / ".hidden.png").write_text("no image")
    (ant / "notes.txt").write_text("no image")
    (square_tree / "train" / ".cache").mkdir()
    (square_tree / "train" / "README").touch()
    (ant / "more").mkdir()
    _picture(99, 16, 16).save(ant / "more" / "UPPER.JPG")

    data = load_dataset(square_tree)

    assert data.classes == ["ant", "bee"]
    assert len(data.train) == 11


def _assert_fails(root: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(root, workers=0)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_tree_without_train_is_an_error(square_tree: Path) -> None:
    shutil.rmtree(square_tree / "train")
    _assert_fails(square_tree, "has no folder train/")


def test_tree_without_test_and_val_is_an_error(square_tree: Path) -> None:
    shutil.rmtree(square_tree / "test")
    _assert_fails(square_tree, "has no folder test/ or val/")


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    _assert_fails(tmp_path, "has no folder train/")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_class_folders_is_an_error(square_tree: Path, split: str) -> None:
    shutil.rmtree(square_tree / split)
    (square_tree / split).mkdir()
    _assert_fails(square_tree, f"{split} has no class folders; expected {split}/<class>")


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_without_images_is_an_error(square_tree: Path, split: str) -> None:
    for path in (square_tree / split / "bee").iterdir():
        path.unlink()
    _assert_fails(square_tree, f"class folder .*{split}/bee has no images")


@pytest.mark.parametrize(("missing", "other"), [("test", "train"), ("train", "test")])
def test_class_in_one_split_only_is_an_error(square_tree: Path, missing: str, other: str) -> None:
    shutil.rmtree(square_tree / missing / "bee")
    _assert_fails(square_tree, f"class 'bee' is in .*{other} but not in .*{missing};")


def test_single_class_is_an_error(square_tree: Path) -> None:
    shutil.rmtree(square_tree / "train" / "bee")
    shutil.rmtree(square_tree / "test" / "bee")
    _assert_fails(square_tree, "one class only")


def _break(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) * 3 // 4])
    elif how == "text":
        path.write_text("not an image")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.symlink_to("nowhere.png")


@pytest.mark.parametrize("how", ["truncated", "text", "empty", "dangling"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("tree", ["square_tree", "mixed_tree"])
def test_broken_image_of_a_small_set_is_named_at_once(
    request: pytest.FixtureRequest, tree: str, split: str, how: str
) -> None:
    root: Path = request.getfixturevalue(tree)
    path = sorted(root.glob(f"{split}/bee/*"))[3]
    _break(path, how)

    _assert_fails(root, f"cannot read image .*{path.name}")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_of_a_large_set_surfaces_from_its_worker_by_name(
    mixed_tree: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    path = sorted(mixed_tree.glob("train/bee/*"))[-1]
    monkeypatch.setattr(folder_module, "_CHECKED_FILES", 0)
    monkeypatch.setattr(folder_module, "_common_side", lambda paths: None)
    _break(path, "truncated")
    data = load_dataset(mixed_tree, image_size=16, workers=workers)
    batches = data.train.batches(2, shuffle_seed=None, augment=True)

    others = set(multiprocessing.active_children())
    next(batches)
    with pytest.raises(DataError, match=f"cannot read image .*{path.name}") as caught:
        list(batches)

    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not set(multiprocessing.active_children()) - others


def test_broken_image_among_the_raw_ones_is_named(
    mixed_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_CHECKED_FILES", 0)
    monkeypatch.setattr(folder_module, "_common_side", lambda paths: None)
    _break(sorted(mixed_tree.glob("test/ant/*"))[0], "text")

    data = load_dataset(mixed_tree, workers=0)

    with pytest.raises(DataError, match="cannot read image"):
        data.test.raw(3)


def test_streamed_batches_do_not_depend_on_the_number_of_workers(mixed_tree: Path) -> None:
    epochs = []
    for workers in (0, 1, 2):
        data = load_dataset(mixed_tree, image_size=16, workers=workers)
        torch.manual_seed(workers)  # the global generator plays no part
        epochs.append(list(data.train.batches(3, shuffle_seed=7, augment=True)))

    for other in epochs[1:]:
        for (x, y), (x2, y2) in zip(epochs[0], other, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_streamed_augmentation_varies_with_the_seed_and_leaves_the_global_generator(
    mixed_tree: Path,
) -> None:
    data = load_dataset(mixed_tree, image_size=16, workers=0)
    state = torch.get_rng_state()

    def first_image(seed: int) -> torch.Tensor:
        batch = next(data.train.batches(10, shuffle_seed=seed, augment=True))
        return batch[0][batch[1].argsort(stable=True)]

    one, again, other = first_image(1), first_image(1), first_image(2)

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_streamed_evaluation_batches_are_the_raw_images_normalised(mixed_tree: Path) -> None:
    data = load_dataset(mixed_tree, image_size=16, workers=2)

    x = torch.cat([x for x, _ in data.test.batches(4, shuffle_seed=None, augment=False)])
    raw, labels = data.test.raw(10)

    assert len(data.test) == len(raw) == 10
    expected = (raw.permute(0, 3, 1, 2).double() / 255 - torch.tensor(data.mean).view(3, 1, 1)) / (
        torch.tensor(data.std).view(3, 1, 1)
    )
    # float32 rounding of one multiplication and one addition of values below 4.
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=2e-6)
    assert labels.tolist() == [0] * 5 + [1] * 5


def test_streamed_evaluation_takes_the_centre_of_the_image(tmp_path: Path) -> None:
    """A wide image with a red left, green middle and blue right shows green only."""
    root = _tree(tmp_path / "wide", [(10, 10), (12, 12)])
    wide = Image.new("RGB", (300, 100), (0, 255, 0))
    wide.paste((255, 0, 0), (0, 0, 90, 100))
    wide.paste((0, 0, 255), (210, 0, 300, 100))
    wide.save(sorted(root.glob("test/ant/*"))[0])

    image = load_dataset(root, image_size=56, workers=0).test.raw(1)[0]

    assert torch.equal(image, torch.tensor([0, 255, 0], dtype=torch.uint8).expand(1, 56, 56, 3))


def test_drop_last_holds_for_streamed_sets(mixed_tree: Path) -> None:
    data = load_dataset(mixed_tree, image_size=16, workers=0)

    batches = data.train.batches(4, shuffle_seed=0, augment=False, drop_last=True)

    assert [len(x) for x, _ in batches] == [4, 4]


@pytest.fixture(params=["in memory", "streamed"])
def split(request: pytest.FixtureRequest, mixed_tree: Path) -> Split:
    if request.param == "streamed":
        return load_dataset(mixed_tree, image_size=16, workers=0).train
    return load_dataset("digits").train


def test_an_epoch_may_begin_at_any_batch(split: Split) -> None:
    size = len(split) // 4
    whole = list(split.batches(size, shuffle_seed=5, augment=True))
    late = list(split.batches(size, shuffle_seed=5, augment=True, first=2))
    assert len(late) == len(whole) - 2 > 1
    for (images, labels), (late_images, late_labels) in zip(whole[2:], late, strict=True):
        assert torch.equal(images, late_images)
        assert torch.equal(labels, late_labels)


@pytest.mark.parametrize("n", [2, 3])
def test_the_parts_of_batches_are_the_whole(split: Split, n: int) -> None:
    size = len(split) // 2 + 1
    whole = list(split.batches(size, shuffle_seed=5, augment=True))
    parts = [list(split.batches(size, shuffle_seed=5, augment=True, part=(k, n))) for k in range(n)]
    for (images, labels), *each in zip(whole, *parts, strict=True):
        for k, (part, part_labels) in enumerate(each):
            assert torch.equal(part, images[k::n])
            assert torch.equal(part_labels, labels[k::n])


# Told to end with the whole group that it is in, as `timeout` and SLURM do.
TERMINATED = """
import multiprocessing, os, signal, sys
from polarprune.datasets import load_dataset

def stop(*_):
    raise SystemExit(3)

signal.signal(signal.SIGTERM, stop)
data = load_dataset(sys.argv[1], image_size=16, workers=2)
batches = data.train.batches(2, shuffle_seed=None, augment=True)
next(batches), next(batches)  # one of each: both have begun
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
signal.pause()
"""


def test_workers_that_are_told_to_end_do_so_in_silence(mixed_tree: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TERMINATED, mixed_tree], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 3
    assert len(workers) == min(2, processor_count())
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
