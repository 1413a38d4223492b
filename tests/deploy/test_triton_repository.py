"""Triton repositories: the next version, what is in the way, and never half-written."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployed_bundles import convolution, failing_disk, tree, write_bundle_of
from triton_reader import parameters, read_config, refusals_of_triton, without_parameters

from polarprune.errors import ConfigError, PolarpruneError, Refused
from polarprune.manifest import read_manifest, write_manifest
from polarprune_deploy.fleet.triton_config import TritonOptions
from polarprune_deploy.fleet.triton_repository import write_triton_repository


def test_other_models_and_versions_stay_as_they_are(
    small: Path, plan: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    (repository / "theirs" / "3").mkdir(parents=True)
    (repository / "theirs" / "config.pbtxt").write_text('name: "theirs"')
    before = tree(repository)
    write_triton_repository(small, repository)
    write_triton_repository(plan, repository)
    own = without_parameters(read_config(repository / "small"))
    first = tree(repository)
    assert {name: first[name] for name in before} == before
    answer = write_triton_repository(small, repository)
    after = tree(repository)
    assert answer["version"] == 2
    assert set(after) - set(first) == {"small/2", "small/2/model.onnx"}
    assert {name for name in first if first[name] != after[name]} == {"small/config.pbtxt"}
    model = repository / "small"
    said = parameters(read_config(model))
    assert said["polarprune.1.model_sha256"] == said["polarprune.2.model_sha256"]
    assert without_parameters(read_config(model)) == own


def test_a_version_is_taken_as_it_is_asked_for(small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert write_triton_repository(small, repository, version=7)["version"] == 7
    assert write_triton_repository(small, repository)["version"] == 8
    answer = write_triton_repository(small, repository, version=3)
    assert any("highest version: 8, not 3" in remark for remark in answer["remarks"])
    before = tree(repository)
    with pytest.raises(Refused, match="has a version 7 already"):
        write_triton_repository(small, repository, version=7)
    assert tree(repository) == before


def without_engine(bundle: Path, place: Path) -> Path:
    """Another bundle of the same network: the same tensors, another manifest."""
    shutil.copytree(bundle, place)
    manifest = read_manifest(bundle)
    assert manifest.engine is not None
    files = {name: e for name, e in manifest.files.items() if name != manifest.engine.file}
    (place / manifest.engine.file).unlink()
    write_manifest(dataclasses.replace(manifest, engine=None, files=files), place)
    return place


def test_a_bundle_of_the_same_kind_is_the_next_version(small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_triton_repository(small, repository)
    other = without_engine(small, tmp_path / "other")
    assert write_triton_repository(other, repository)["version"] == 2
    said = parameters(read_config(repository / "small"))
    assert said["polarprune.1.manifest_sha256"] != said["polarprune.2.manifest_sha256"]


def test_a_bundle_whose_name_is_no_models_name_takes_another(tmp_path: Path) -> None:
    bundle = write_bundle_of(tmp_path / "bundle", convolution(), name="my net/2")
    with pytest.raises(ConfigError, match="the bundle's name is 'my net/2'; give --name"):
        write_triton_repository(bundle, tmp_path / "repository")
    answer = write_triton_repository(bundle, tmp_path / "repository", name="my-net")
    assert read_config(tmp_path / "repository" / "my-net").name == answer["model"] == "my-net"


def put(path: Path, text: str) -> None:
    """At the end of a file, which is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def written(repository: Path, bundle: Path, **options: Any) -> Path:
    write_triton_repository(bundle, repository, options=TritonOptions(**options))
    return repository / "small"


IN_THE_WAY: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a file": (lambda r, b: put(r, ""), "is a file"),
    "a bundle": (lambda r, b: shutil.copytree(b, r), "is a bundle"),
    "a run": (lambda r, b: put(r / "run.json", "{}"), "is a run"),
    "a file of the model's name": (lambda r, b: put(r / "small", ""), "is a file"),
    "a folder without a configuration": (
        lambda r, b: (r / "small" / "1").mkdir(parents=True), "has no config.pbtxt"
    ),
    "a configuration that is none": (
        lambda r, b: put(r / "small" / "config.pbtxt", "nonsense: true"), "not a config.pbtxt"
    ),
    "a configuration with a field too many": (
        lambda r, b: put(written(r, b) / "config.pbtxt", "max_batchsize: 3\n"),
        "not a config.pbtxt",
    ),
    "other labels": (
        lambda r, b: (written(r, b) / "labels.txt").write_text("x\ny\nz\n"),
        "names other classes",
    ),
    "a model of other options": (
        lambda r, b: written(r, b, instances=2, device="cpu"), r"\(instance_group differs\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_stays_and_is_named(kind: str, small: Path, tmp_path: Path) -> None:
    place, message = IN_THE_WAY[kind]
    repository = tmp_path / "repository"
    place(repository, small)
    before = tree(tmp_path)
    with pytest.raises(Refused, match=message) as refused:
        write_triton_repository(small, repository)
    assert "\n" not in str(refused.value)
    assert tree(tmp_path) == before


def is_whole(repository: Path) -> bool:
    """Whether a server that looks now sees only whole models."""
    for model in repository.iterdir() if repository.exists() else ():
        config = read_config(model)
        versions = [place for place in model.iterdir() if place.is_dir()]
        files = [place / config.default_model_filename for place in versions]
        if not files or not all(file.stat().st_size > 0 for file in files):
            return False
        if refusals_of_triton(config, model):
            return False
    return True


@pytest.mark.parametrize("already", [False, True], ids=["a new model", "a new version"])
def test_a_disk_that_fills_up_leaves_what_was_there(
    already: bool, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(place: Path, after: int) -> int:
        repository = place / "repository"
        if already and not repository.exists():
            write_triton_repository(small, repository)
        with failing_disk(monkeypatch, after, lambda: seen.append(is_whole(repository))) as writes:
            write_triton_repository(small, repository)
        return len(writes)

    seen: list[bool] = []
    for name in ("unlimited", "full"):
        (tmp_path / name).mkdir()
    needed = write(tmp_path / "unlimited", after=1000)
    assert needed > 4
    if already:
        write_triton_repository(small, tmp_path / "full" / "repository")
    before = tree(tmp_path)
    for after in range(needed):
        with pytest.raises(PolarpruneError, match="No space left on device") as failed:
            write(tmp_path / "full", after)
        assert "partial" not in str(failed.value)
        assert tree(tmp_path) == before
    assert all(seen)
    write(tmp_path / "full", needed)
    assert is_whole(tmp_path / "full" / "repository")
    assert not [name for name in tree(tmp_path) if "partial" in name]
