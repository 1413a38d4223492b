"""Servers that several files of tests ask something."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.serving.hostile_server import SHORT_BOUNDS, TOKEN, HostileServer
from tests.deploy.serving.live_repository import BIAS
from tests.deploy.serving.served_bundle import BODY_MB, MODEL, Reference, make_folder
from tests.small_bundles import write_small_bundle


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the small bundle; nobody changes it."""
    return make_folder(tmp_path_factory.mktemp("bundles") / "served")


@pytest.fixture(scope="session")
def reference(bundle_folder: Path) -> Reference:
    """The same network without a server."""
    return Reference(bundle_folder / MODEL)


@pytest.fixture(scope="session")
def server(bundle_folder: Path) -> Iterator[HostileServer]:
    """It serves the small bundle over HTTP and gRPC; at the end it must stop with 0."""
    options = ("--grpc-port", "0", "--queue", "4096", "--max-body-mb", str(BODY_MB))
    with HostileServer(bundle_folder, *options) as started:
        started.wait_ready()
        yield started


@pytest.fixture(scope="session")
def strict_server(
    bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HostileServer]:
    """With a token, and bounds of seconds and few connections; it must stop with 0 as well."""
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(f"{TOKEN}\n")
    options = ("--token-file", str(token_file))
    bounds = json.dumps(SHORT_BOUNDS)
    with HostileServer(bundle_folder, *options, hurt=bounds, token=TOKEN) as started:
        started.wait_ready()
        yield started


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles 0, 1, 2, ... whose answers differ by `BIAS`."""
    folder = tmp_path_factory.mktemp("stock")
    for number in range(6):
        write_small_bundle(folder / str(number), number * BIAS, with_engine=False)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is served; nothing yet."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"
