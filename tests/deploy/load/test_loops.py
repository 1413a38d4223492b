"""Both loops against a server that does what it is told, and counts it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polarprune.errors import ServerError
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.figures import LoadFigures
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.measuring import measure
from polarprune_deploy.load.model_metadata import read_model
from polarprune_deploy.load.samples import Outcome
from polarprune_deploy.load.schedule import poisson_arrivals
from polarprune_deploy.load.targets import Target, look_at
from tests.oip_stub import FIRST_LOOK, Stub

MakeStub = Callable[..., Stub]
SHORT = LoadPlan(seconds=0.3)
POISSON = LoadPlan("poisson", seconds=0.3, rates=(1.0,))


def target(stub: Stub, token_file: Path | None = None) -> Target:
    endpoint = parse_endpoint(stub.url, token_file)
    return look_at(endpoint, read_model(endpoint), batch=None)


def answers(figures: LoadFigures, outcome: Outcome) -> int:
    """Of all requests, those of the warm-up included, as the server counts."""
    return int(np.sum(figures.samples.outcomes == outcome))


def test_a_closed_loop_sees_the_servers_delay_and_every_request(make_stub: MakeStub) -> None:
    stub = make_stub(delay_s=0.01)
    figures = measure(target(stub), SHORT, 4, None)
    times = figures.latencies_ms(Outcome.OK)
    assert min(times) >= 10.0
    assert np.median(times) < 100.0  # the machine may be busy; test_virtual_time is exact
    assert len(figures.samples) == stub.counts["infer"] - FIRST_LOOK
    assert answers(figures, Outcome.OK) == len(figures.samples)


def test_arrivals_follow_the_schedule_and_are_never_early(make_stub: MakeStub) -> None:
    stub = make_stub(delay_s=0.03)
    plan = replace(POISSON, seed=7)
    figures = measure(target(stub), plan, 256, 150.0)
    due = figures.samples.due - (figures.begin - plan.warm_up)
    assert due == pytest.approx(poisson_arrivals(150.0, 0.4, seed=7), abs=1e-6)
    assert np.all(figures.samples.sent >= figures.samples.due)
    assert min(figures.latencies_ms(Outcome.OK)) >= 30.0
    assert stub.counts["infer"] - FIRST_LOOK == len(due)


@pytest.mark.parametrize("connections", [1, 64])
def test_what_is_due_while_the_server_stands_still_waits_from_then_on(
    make_stub: MakeStub, connections: int
) -> None:
    stub = make_stub(stall_at=20, stall_s=0.4)
    figures = measure(target(stub), replace(POISSON, seconds=0.6), connections, 100.0)
    [(start, stop)] = stub.stalls
    samples = figures.samples
    during = (samples.due > start) & (samples.due < stop)
    assert np.sum(during) > 5
    # The stub's clock is the loop's: one machine, one process.
    assert np.all((samples.done - samples.due)[during] >= stop - samples.due[during])


def test_every_outcome_is_counted_as_the_server_counts(make_stub: MakeStub) -> None:
    stub = make_stub(
        delay_s=0.002, reject_every=5, fail_every=7, wrong_every=11, cut_every=13, noise=0.001
    )
    figures = measure(target(stub), SHORT, 4, None)
    counts = stub.counts
    assert min(counts[what] for what in ("rejected", "failed", "wrong", "cut")) > 2
    assert answers(figures, Outcome.REJECTED) == counts["rejected"]
    assert answers(figures, Outcome.WRONG) == counts["wrong"] == figures.wrong
    assert answers(figures, Outcome.FAILED) == counts["failed"] + counts["cut"]
    assert len(figures.samples) == counts["infer"] - FIRST_LOOK
    reasons = dict(figures.samples.reasons)
    assert reasons.pop("the connection was closed before the answer was whole") == counts["cut"]
    # The words of the first one stand for all of its status.
    assert reasons == {"status 500: 'out of luck in run 7'": counts["failed"]}
    row = figures.row()
    assert row["ok"] + row["rejected"] + row["failed"] + figures.count(Outcome.WRONG) == row["n"]
    assert row["rejected_ms"]["max"] >= 2.0


@pytest.mark.parametrize("coding", ["chunked", "close"])
@pytest.mark.parametrize("rate", [None, 150.0])
def test_any_framing_of_http_is_read(make_stub: MakeStub, coding: str, rate: float | None) -> None:
    stub = make_stub(coding=coding)
    plan = replace(SHORT if rate is None else POISSON, seconds=0.1)
    figures = measure(target(stub), plan, 2, rate)
    assert answers(figures, Outcome.OK) == len(figures.samples) > 5


def test_a_server_without_binary_tensors_gets_numbers(make_stub: MakeStub) -> None:
    stub = make_stub(binary=False)
    figures = measure(target(stub), replace(SHORT, seconds=0.1), 2, None)
    assert answers(figures, Outcome.OK) == len(figures.samples) > 5
    assert figures.row()["encoding"] == "json"
    assert "the server takes no binary tensors: numbers went as JSON" in figures.remarks()


@pytest.mark.parametrize("rate", [None, 300.0])
def test_a_server_that_dies_ends_the_load_with_its_words(
    make_stub: MakeStub, rate: float | None
) -> None:
    stub = make_stub(die_at=40)
    aimed = target(stub)
    plan = LoadPlan(seconds=60.0) if rate is None else replace(POISSON, seconds=60.0)
    with pytest.raises(ServerError, match=r"stopped answering, after \d+ answers: ") as caught:
        measure(aimed, plan, 8, rate)
    assert stub.url in str(caught.value)


@pytest.mark.parametrize("rate", [None, 300.0])
def test_a_server_that_falls_silent_ends_the_load(
    make_stub: MakeStub, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polarprune_deploy.load.traffic.PATIENCE_SECONDS", 0.3)
    aimed = target(make_stub(hang_every=1))
    plan = LoadPlan(seconds=60.0) if rate is None else replace(POISSON, seconds=60.0)
    with pytest.raises(ServerError, match=r"after 0 answers: no answer within 0 s"):
        measure(aimed, plan, 2, rate)


@pytest.mark.parametrize("rate", [None, 300.0])
def test_an_answer_that_never_comes_is_a_failure(
    make_stub: MakeStub, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polarprune_deploy.load.traffic.PATIENCE_SECONDS", 0.3)
    stub = make_stub(hang_every=60)
    figures = measure(target(stub), SHORT if rate is None else POISSON, 64, rate)
    hung = stub.counts["hung"]
    assert hung >= 1
    assert answers(figures, Outcome.FAILED) == hung
    assert dict(figures.samples.reasons) == {"no answer within 0 s": hung}
    assert answers(figures, Outcome.OK) == len(figures.samples) - hung
