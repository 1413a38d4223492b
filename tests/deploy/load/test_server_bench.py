"""`bench --server` from end to end: rows, records, words, refusals, and our own server."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from polarprune.errors import ConfigError
from polarprune_deploy.load.answers import read_tensors
from polarprune_deploy.load.endpoint import parse_endpoint
from polarprune_deploy.load.first_look import ask_each
from polarprune_deploy.load.load_plan import LoadPlan
from polarprune_deploy.load.model_metadata import read_model
from polarprune_deploy.load.server_bench import bench_server, check_right, compare_servers
from polarprune_deploy.load.targets import look_at
from polarprune_deploy.load.traffic import run_loop
from tests.oip_stub import METADATA, Stub
from tests.served import Served
from tests.small_bundles import write_small_bundle

MakeStub = Callable[..., Stub]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run) -> Run:
    """Of `polarprune bench`."""
    return partial(run, "bench")


def test_json_has_a_row_for_each_load_and_people_read_stderr(make_stub: MakeStub, run: Run) -> None:
    stub = make_stub()
    code, out, err = run(
        "--server", stub.url, "--clients", "1,3", "--batch", "1,4", "--seconds", "0.3", "--json"
    )
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [(row["clients"], row["batch"]) for row in rows] == [(1, 1), (3, 1), (1, 4), (3, 4)]
    for row in rows:
        assert (row["server"], row["model"], row["scenario"]) == (stub.url, "small", "closed")
        assert row["rate"] is None
        assert row["n"] == row["ok"] > 5
        assert row["rejected"] == row["failed"] == row["wrong"] == 0
        assert row["throughput"] == pytest.approx(row["batch"] * row["requests_per_second"])
        assert 0 < row["p50_ms"] <= row["max_ms"]
        assert row["client_cpu_us"] > 0
    assert f"small of {stub.url}" in err
    assert "3 clients" in err
    assert "Latency from when a request was sent" in err


def test_poisson_rows_are_told_in_a_table(make_stub: MakeStub, run: Run) -> None:
    stub = make_stub(reject_every=4)
    code, out, err = run("--server", stub.url, "--rate", "100,200", "--seconds", "0.3")
    assert code == 0, err
    assert "Poisson 100/s" in out
    assert "Poisson 200/s" in out
    assert "a refusal took " in out
    assert "In the style of MLPerf's server scenario, no MLPerf result." in " ".join(out.split())


def test_wrong_answers_fail_the_command_behind_its_rows(make_stub: MakeStub, run: Run) -> None:
    stub = make_stub(wrong_every=9)
    code, out, err = run("--server", stub.url, "--seconds", "0.3", "--clients", "2", "--json")
    assert code == 1
    [row] = json.loads(out.splitlines()[-1])["rows"]
    assert row["wrong"] == stub.counts["wrong"] > 1
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {row['wrong']} answers of {stub.url} were wrong: ")


def test_a_server_that_refuses_everything_fails_the_command(make_stub: MakeStub, run: Run) -> None:
    stub = make_stub(reject_every=1, delay_s=0.005)
    code, _, err = run("--server", stub.url, "--seconds", "0.3", "--clients", "1")
    assert code == 1
    assert "answered no request of a load with 200: " in err.splitlines()[-1]


@pytest.mark.parametrize("plan", [LoadPlan(clients=(3,), seconds=0.3),
                                  LoadPlan("poisson", rates=(150.0,), seconds=0.3)])  # fmt: skip
def test_a_record_tells_every_request_so_that_figures_can_be_made_again(
    make_stub: MakeStub, tmp_path: Path, plan: LoadPlan
) -> None:
    record = tmp_path / "load.jsonl"
    stub = make_stub(reject_every=7, delay_s=0.002)
    (row,) = bench_server(stub.url, plan, record=record)["rows"]
    head, load, requests = map(json.loads, record.read_text().splitlines())
    assert head["kind"] == "environment"
    assert head["request"]["server"] == stub.url
    assert {key: load[key] for key in row} == row
    due, done = np.array(requests["due_s"]), np.array(requests["done_s"])
    outcome = np.array(requests["outcome"])
    counted = (due >= 0) & (due < 0.3)
    assert row["n"] == np.sum(counted)
    assert row["rejected"] == np.sum(counted & (outcome == "rejected"))
    times = (done - due)[counted & (outcome == "ok")] * 1e3
    assert row["ok"] == len(times)
    expected = np.percentile(times, 50, method="inverted_cdf")
    assert row["p50_ms"] == pytest.approx(expected, abs=1e-3)
    in_time = (done >= 0) & (done < 0.3) & (outcome == "ok")
    assert row["requests_per_second"] == pytest.approx(np.sum(in_time) / 0.3, abs=4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give a run, bundle or model to measure, or --server URL"),
        (["run", "--clients", "3"], "--clients belongs to --server URL; give that too"),
        (["--against-server", "http://h"], "--against-server belongs to --server URL"),
        (["run", "--server", "http://h"], "give a run, bundle or model, or --server URL, not both"),
        (["--server", "http://h", "--explain"], "--explain says nothing about a server"),
        (["--server", "http://h", "--across-precisions"], "--across-precisions says nothing"),
        (["--server", "http://h", "--device", "cpu"], "--device says nothing about a server"),
        (["--server", "http://h", "--rounds", "50"], "--rounds belongs to --against-server"),
        (["--server", "http://h", "--against-server", "http://i", "--rate", "1"], "closed loops"),
        (["--server", "http://h", "--clients", "0"], "--clients must be from 1 to 512, got [0]"),
        (["--server", "http://h", "--clients", "a"], "--clients must be whole numbers with commas"),
        (["--server", "http://h", "--rate", "a"], "--rate must be numbers with commas"),
        (["--server", "http://h", "--rate", "0"], "--rate must be above 0, got [0.0]"),
        (["--server", "http://h", "--rate", "nan"], "--rate must be above 0, got [nan]"),
        (["--server", "http://h", "--rate", "1"], "are fewer than 20; use more --seconds"),
        (["--server", "http://h", "--rate", "1e9"], "are more than 5,000,000; use a lower --rate"),
        (["--server", "http://h", "--scenario", "poisson"], "which needs one"),
        (["--server", "http://h", "--scenario", "closed", "--rate", "9"], "--rate belongs to"),
        (["--server", "http://h", "--scenario", "offline"], "the scenario of a server is one of"),
        (["--server", "http://h", "--seconds", "0.1"], "must be from 0.2 to 3600, got 0.1"),
        (["--server", "http://h", "--seconds", "nan"], "--seconds must be from 0.2 to 3600"),
        (["--server", "http://h", "--batch", "0"], "--batch must be at least 1, got [0]"),
        (["--server", "http://h", "--rate", "50", "--clients", "1,2"], "one bound on connections"),
        (["--server", "http://h", "--record", "no/where"], "--record: the folder no does not"),
        (["--server", "ftp://h"], "a server is http://HOST:PORT or https://HOST:PORT"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_in_one_line(args: list[str], words: str, run: Run) -> None:
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_free_sides_of_images_take_the_image_size(make_stub: MakeStub) -> None:
    free = {**METADATA["inputs"][0], "shape": [-1, 3, -1, -1]}  # type: ignore[index]
    stub = make_stub(metadata={**METADATA, "inputs": [free]})
    plan = LoadPlan(clients=(1,), seconds=0.3, image_size=6)
    (row,) = bench_server(stub.url, plan)["rows"]
    assert row["ok"] == row["n"] > 5


def test_two_servers_are_compared_in_turn_and_every_block_is_recorded(
    make_stub: MakeStub, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("BLOCK_SECONDS", 0.05), ("WARM_UP_SECONDS", 0.05), ("MIN_ROUNDS", 10)):
        monkeypatch.setattr(f"polarprune_deploy.load.pairs.{name}", value)
    slow, fast = make_stub(delay_s=0.004), make_stub()
    code, out, err = run(
        "--server", fast.url, "--against-server", slow.url, "--clients", "1", "--rounds", "10",
        "--json", "--record", "pair.jsonl",
    )  # fmt: skip
    assert code == 0, err
    [row] = json.loads(out.splitlines()[-1])["rows"]
    assert (row["server"], row["against"]) == (fast.url, slow.url)
    assert row["against_ms"] > 4.0
    assert "in 10 paired rounds of 0.05 s a side" in " ".join(err.split())
    _, pair, *blocks = map(json.loads, (tmp_path / "pair.jsonl").read_text().splitlines())
    assert pair["speedup"] == row["speedup"]
    assert len(blocks) == 3 * 10
    times = {
        role: np.array([b["elapsed_s"] / b["answers"] for b in blocks if b["role"] == role])
        for role in ("against", "candidate")
    }
    ratio = np.exp(np.median(np.log(times["against"] / times["candidate"])))
    assert row["speedup"] == pytest.approx(ratio)


def test_servers_of_different_inputs_are_not_compared(make_stub: MakeStub) -> None:
    other = {**METADATA["inputs"][0], "shape": [-1, 3, 8, 8]}  # type: ignore[index]
    stubs = make_stub(), make_stub(metadata={**METADATA, "inputs": [other]})
    with pytest.raises(ConfigError, match="must take the same inputs to be compared"):
        compare_servers(stubs[0].url, stubs[1].url, LoadPlan(clients=(1,)))


def test_the_client_needs_neither_a_server_nor_a_network_library() -> None:
    program = (
        "import json, sys\n"
        "import polarprune_deploy.load.server_bench, polarprune_deploy.load.load_tables\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(answer.stdout))
    assert "numpy" in loaded
    assert not loaded & {"torch", "onnxruntime", "starlette", "uvicorn", "uvloop", "httptools"}


@pytest.fixture(scope="module")
def our_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`polarprune serve` with a small bundle, in a process of its own."""
    folder = tmp_path_factory.mktemp("served")
    write_small_bundle(folder / "small")
    with Served(folder) as server:
        server.wait_ready()
        yield server.url


def test_our_own_server_stands_the_load(our_server: str) -> None:
    for plan in (
        LoadPlan(clients=(1, 8), batches=(1, 3), seconds=0.3),
        LoadPlan("poisson", rates=(100.0,), seconds=0.3),
    ):
        rows = bench_server(our_server, plan)["rows"]
        check_right(rows)
        for row in rows:
            assert row["ok"] == row["n"] > 5
            assert row["model"] == "small"


def test_the_right_answers_are_those_that_tritonclient_gets(our_server: str) -> None:
    endpoint = parse_endpoint(our_server)
    model = read_model(endpoint)
    target = look_at(endpoint, model, batch=2)
    head, body = target.ring[5].split(b"\r\n\r\n", 1)
    length = int(head.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
    images = np.frombuffer(body[length:], "<f4").reshape(2, 3, 8, 8)
    given = triton.InferInput("input", images.shape, "FP32")
    given.set_data_from_numpy(images)
    with triton.InferenceServerClient(our_server.removeprefix("http://")) as client:
        expected = client.infer("small", [given]).as_numpy("logits")
    answers = run_loop(ask_each(target.dialer, target.ring[5:6]), exact_timers=False)
    got = read_tensors(answers[0], model, 2)["logits"]
    assert got == pytest.approx(expected.ravel(), rel=1e-5)
