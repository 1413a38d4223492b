"""Stubs that are stopped when a test is over, and loads that begin at once."""

from collections.abc import Callable, Iterator

import pytest

from polarprune_deploy.load.load_plan import LoadPlan
from tests.oip_stub import Behaviour, Stub


@pytest.fixture
def make_stub() -> Iterator[Callable[..., Stub]]:
    stubs: list[Stub] = []

    def make(certificate: str | None = None, **behaviour: object) -> Stub:
        stubs.append(Stub(Behaviour(**behaviour), certificate))  # type: ignore[arg-type]
        return stubs[-1]

    yield make
    for stub in stubs:
        stub.stop()


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub is as fast with its first request as with its last."""
    monkeypatch.setattr(LoadPlan, "warm_up", 0.1)
