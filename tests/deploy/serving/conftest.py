"""Servers that several files of tests ask something."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.serving.hostile_server import SHORT_BOUNDS, TOKEN, HostileServer
from tests.deploy.serving.served import BODY_MB, MODEL, Reference, Served, make_folder


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the small bundle; nobody changes it."""
    return make_folder(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def served(bundle_folder: Path) -> Iterator[Served]:
    """It serves the small bundle over HTTP and gRPC; at the end it must stop with 0."""
    with Served(bundle_folder, ("--queue", "4096", "--max-body-mb", str(BODY_MB))) as server:
        yield server


@pytest.fixture(scope="session")
def reference(bundle_folder: Path) -> Reference:
    """The same network without a server."""
    return Reference(bundle_folder / MODEL)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileServer]:
    """As the command line starts it."""
    started = HostileServer(tmp_path_factory.mktemp("bundles"))
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileServer]:
    """With a token, and bounds of seconds and few connections."""
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(f"{TOKEN}\n")
    folder = tmp_path_factory.mktemp("bundles")
    started = HostileServer(folder, bounds=SHORT_BOUNDS, token_file=token_file)
    yield started
    assert started.stop() == 0
