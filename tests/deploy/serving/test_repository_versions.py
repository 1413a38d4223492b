"""Versions of a model side by side, and requests that meet another one."""

from pathlib import Path

import numpy as np
import pytest

from polarprune_deploy.serving.infer_requests import InferRequest
from polarprune_deploy.serving.request_errors import REJECTED, UNKNOWN, RequestError
from tests.deploy.serving.live_repository import (
    Asked,
    garbage_model,
    put,
    serve,
    truncated_manifest,
)
from tests.small_bundles import write_small_bundle


def test_the_largest_version_is_served_and_asked_for_by_its_number(
    stock: Path, folder: Path
) -> None:
    for version, number in (("2", "1"), ("10", "2"), ("9", "3"), ("011", "4"), ("v12", "5")):
        put(stock / number, folder / "net" / version)
    (folder / "net" / "99").mkdir()  # nothing in it yet

    async def work(served: Asked) -> None:
        assert await served.ask("net") == (2, "10")
        assert await served.ask("net", version="10") == (2, "10")
        for version in ("2", "9", "011", "99", "x" * 1000):
            with pytest.raises(RequestError, match="has version 10, not") as unknown:
                await served.ask("net", version=version)
            assert unknown.value.kind == UNKNOWN
            assert len(str(unknown.value)) < 150

    serve(folder, work)


def test_at_the_start_an_older_version_serves_where_the_newest_does_not_hold(
    stock: Path, folder: Path
) -> None:
    for version in ("1", "2", "3", "4"):
        put(stock / version, folder / "net" / version)
    garbage_model(folder / "net" / "4")
    truncated_manifest(folder / "net" / "3")

    async def work(served: Asked) -> None:
        assert await served.ask("net") == (2, "2")
        assert served.states() == [("net", "2", "READY"), ("net", "4", "UNAVAILABLE")]
        assert served.repository.ready
        await served.repository.look()
        put(stock / "4", folder / "net" / "4")
        await served.repository.look()
        assert await served.ask("net") == (4, "4")
        assert served.states() == [("net", "4", "READY")]

    serve(folder, work)


def test_a_request_for_a_version_is_not_answered_by_its_successor(
    stock: Path, folder: Path
) -> None:
    put(stock / "1", folder / "net" / "1")

    async def work(served: Asked) -> None:
        model = served.repository.get("net", "1")
        put(stock / "2", folder / "net" / "2")
        await served.repository.look()  # while the request's body was still coming
        request = InferRequest({"input": served.images[:1]}, 1)
        with pytest.raises(RequestError, match="has version 2, not '1'"):
            await served.repository.infer(model, request, "1")
        _, answered = await served.repository.infer(model, request)
        assert answered.facts.version == "2"

    serve(folder, work)


def test_a_request_that_the_successor_does_not_take_is_told_so(
    stock: Path, folder: Path, tmp_path: Path
) -> None:
    put(stock / "1", folder / "net")
    smaller = write_small_bundle(tmp_path / "smaller", with_engine=False, batch=4)

    async def work(served: Asked) -> None:
        model = served.repository.get("net")
        put(smaller, folder / "net")
        await served.repository.look()
        few, many = (InferRequest({"input": served.images[:n]}, n) for n in (4, 5))
        outputs, _ = await served.repository.infer(model, few)
        np.testing.assert_allclose(outputs["logits"], served.plain[:4], atol=1e-3)
        with pytest.raises(RequestError, match="was just replaced") as refused:
            await served.repository.infer(model, many)
        assert (refused.value.kind, refused.value.retry_after) == (REJECTED, 1)

    serve(folder, work)
