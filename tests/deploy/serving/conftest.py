"""Servers that several files of tests ask hostile things of."""

from collections.abc import Iterator

import pytest

from tests.deploy.serving.hostile_server import SHORT_BOUNDS, TOKEN, HostileServer


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
