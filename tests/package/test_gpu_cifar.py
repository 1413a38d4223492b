"""The CIFAR part of the GPU benchmark: runs that stop, fail or go on, and mosaics."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import polarprune
from benchmarks.gpu import cifar
from benchmarks.gpu.image_shards import CLASSES, is_shards, tree_of, unpack
from benchmarks.gpu.record_file import RecordFile
from polarprune.errors import DataError

HEAD = {"part": "cifar", "what": "a test", "device": "a device", "dry_run": True}


@pytest.mark.slow
def test_a_run_that_time_stopped_is_packed_and_goes_on(tmp_path: Path) -> None:
    options = {"model": "resnet20", "data": "digits", "epochs": 1, "device": "cpu",
               "image_size": 8}  # fmt: skip
    record = RecordFile(tmp_path / "out" / "cifar.jsonl", HEAD)

    def jobs(work: Path, ends: float) -> list[Any]:
        return cifar.jobs_left(["dense"], range(1), record, work, ends, options, None)

    (job,) = jobs(tmp_path / "first", time.time() + 2.0)
    (amid,) = [replace(job, config=replace(job.config, epochs=200))]
    stopped = cifar.train_until(amid)
    assert "dense-0" in stopped["stopped"]
    packed = cifar.pack(job.config.out, record.path)
    assert packed == tmp_path / "out" / "dense-0.tar"
    (again,) = jobs(tmp_path / "out", time.time() + 100.0)
    assert again.config.resume
    found = cifar.train_until(replace(again, config=replace(again.config, epochs=200), ends=0.0))
    assert "dense-0" in found["stopped"]  # it is the run of 200 epochs, gone on with
    (fresh,) = jobs(tmp_path / "second", time.time() + 100.0)
    finished = cifar.train_until(fresh)
    record.add("run", row="dense", seed=0, **finished)
    assert 0 < finished["result"]["top1"] <= 1
    assert jobs(tmp_path / "second", time.time()) == []
    assert cifar.cifar_table(record).row_count == 1


@pytest.mark.slow
def test_a_run_that_fails_does_not_cost_the_others_theirs(tmp_path: Path) -> None:
    record = RecordFile(tmp_path / "cifar.jsonl", HEAD)
    options = {"model": "resnet20", "epochs": 1, "device": "cpu", "image_size": 8}

    def job(row: str, data: str) -> Any:
        ends = time.time() + 100.0
        return cifar.jobs_left([row], range(1), record, tmp_path, ends, {**options, "data": data},
                               None)[0]  # fmt: skip

    jobs = [job("dense", str(tmp_path / "absent")), job("macs-0.5", "digits")]
    (left,) = cifar.train_all(jobs, record, 2, {"train": 1})
    assert left.startswith("dense-0 failed: DataError: data folder")
    (line,) = record.all("run")
    assert (line["row"], line["seed"], line["images"]) == ("macs-0.5", 0, {"train": 1})
    assert line["result"]["macs_ratio"] <= 0.5


def mosaic(folder: Path, name: str, seed: int) -> np.ndarray:
    """100 images in one row of tiles."""
    images = np.random.default_rng(seed).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    row = images.transpose(1, 0, 2, 3).reshape(32, 3200, 3)
    Image.fromarray(row).save(folder / f"{name}.webp", lossless=True)
    return images


def test_mosaics_become_the_tree_that_training_reads(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    shards = tmp_path / "shards"
    shards.mkdir()
    assert not is_shards(shards)
    test = mosaic(shards, "test", 0)
    second = mosaic(shards, "train-1", 1)
    labels = np.arange(200, dtype=np.uint8) % 10
    np.save(shards / "test-labels.npy", labels[:100])
    np.save(shards / "train-labels.npy", (labels + (np.arange(200) >= 100)) % 10)
    assert is_shards(shards)
    # The first training mosaic was not sent along; the second has labels of its own.
    assert unpack(shards, tmp_path / "tree") == {"train": 100, "test": 100}
    for split, place, image, label in (
        ("test", 17, test[17], 7), ("train", 117, second[17], 8),
    ):  # fmt: skip
        file = tmp_path / "tree" / split / CLASSES[label] / f"{place:05d}.png"
        assert (np.asarray(Image.open(file)) == image).all()
    data = polarprune.datasets.load_dataset(tmp_path / "tree")
    assert (len(data.train), len(data.test), len(data.classes)) == (100, 100, 10)
    once = tree_of(shards)
    assert once[1] == {"train": 100, "test": 100}
    (shards / "train-1.webp").write_bytes(b"not looked at again")
    assert tree_of(shards) == once
    np.save(shards / "test-labels.npy", labels[:99])
    mosaic(shards, "train-1", 1)
    with pytest.raises(DataError, match="99 labels"):
        unpack(shards, tmp_path / "again")
