"""A model asked from an event loop, on the real ONNX Runtime: nobody gets another's answer."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from echo_engine import EchoEngine, answer_of, number_rows
from small_bundles import CLASSES, SIDE, write_small_bundle

from polarprune.manifest import TensorSpec, read_manifest
from polarprune_deploy.backends.runners import Array
from polarprune_deploy.serving.batch_policy import BatchPolicy
from polarprune_deploy.serving.batcher import QueueLimits
from polarprune_deploy.serving.counters import Counters
from polarprune_deploy.serving.infer_requests import InferRequest, Signature
from polarprune_deploy.serving.model_loading import load_model
from polarprune_deploy.serving.request_errors import BROKEN, CANCELED, LATE, REJECTED, RequestError
from polarprune_deploy.serving.serve_options import ServeOptions
from polarprune_deploy.serving.served_model import ModelFacts, ServedModel

SECONDS = 30
Failures = list[tuple[str, BaseException]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("served") / "small", with_engine=False)


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await work

    asyncio.run(bounded())


def serve(bundle: Path, limits: QueueLimits) -> ServedModel:
    loaded = load_model(bundle, "small", "1", ServeOptions(bundle, threads=1))
    return start(loaded.facts, loaded.engine, limits)


def start(
    facts: ModelFacts, engine: object, limits: QueueLimits, timeout: float | None = None,
    failures: Failures | None = None,
) -> ServedModel:  # fmt: skip
    told = [] if failures is None else failures
    return ServedModel(
        facts, engine, limits, Counters(), timeout=timeout,  # type: ignore[arg-type]
        loop=asyncio.get_running_loop(), is_fatal=lambda error: "sticky" in str(error),
        on_fatal=lambda name, error: told.append((name, error)),
    )  # fmt: skip


class ClosableEcho(EchoEngine):
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def facts(bundle: Path) -> ModelFacts:
    """Of a model that is an `EchoEngine`."""
    specs = (TensorSpec("input", "int64", (-1, 2, 1)),)
    signature = Signature(specs, (TensorSpec("output", "int64", (-1, 2, 1)),), 8)
    manifest = read_manifest(bundle)
    policy = BatchPolicy(4, 0.0)
    return ModelFacts("echo", "7", manifest, signature, "echo", "cpu", "echo", policy, None)


def ask_echo(model: ServedModel, number: int, timeout: float | None = None) -> Awaitable[object]:
    request = InferRequest(number_rows(number, 1), 1, timeout=timeout)
    return asyncio.create_task(model.infer(request))


def alone(bundle: Path) -> Callable[[Array], Array]:
    """ONNX Runtime by itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = (bundle / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"input": images})[0]


def test_thousands_at_once_get_what_onnxruntime_gives_each_alone(bundle: Path) -> None:
    generator = np.random.default_rng(0)
    asked = [
        generator.standard_normal((rows, 3, SIDE, SIDE)).astype(np.float32)
        for rows in generator.integers(1, 9, 2500)
    ]

    async def work() -> None:
        model = serve(bundle, QueueLimits(len(asked)))
        answers = await asyncio.gather(
            *(model.infer(InferRequest({"input": images}, len(images))) for images in asked)
        )
        run_alone = alone(bundle)
        for images, answer in zip(asked, answers, strict=True):
            assert answer["logits"].shape == (len(images), CLASSES)
            # Kernels differ with the batch in their last bits; two requests differ by far more.
            np.testing.assert_allclose(answer["logits"], run_alone(images), rtol=1e-4, atol=1e-5)
        now = model.counters.snapshot()
        assert now.success == len(asked)
        assert now.inferences == sum(map(len, asked))
        assert now.executions == sum(size.count for size in now.batches.values())
        assert now.inferences == sum(rows * size.count for rows, size in now.batches.items())
        assert max(now.batches) == 8
        assert now.executions < len(asked), "they were batched"
        assert sum(now.latency_counts) == now.success
        assert await asyncio.to_thread(model.close, SECONDS)

    run(work())


def test_whatever_becomes_of_requests_each_is_counted_once(bundle: Path) -> None:
    generator = random.Random(0)
    images = {
        n: np.random.default_rng(n).standard_normal((n % 3 + 1, 3, SIDE, SIDE), np.float32)
        for n in range(12)
    }
    ends = Counter[str]()

    async def work() -> None:
        model = serve(bundle, QueueLimits(40))
        run_alone = alone(bundle)
        expected = {n: run_alone(array) for n, array in images.items()}

        async def ask(n: int, timeout: float | None, patience: float | None) -> None:
            await asyncio.sleep(generator.random() * 0.3)
            request = InferRequest({"input": images[n]}, len(images[n]), timeout=timeout)
            asking = asyncio.create_task(model.infer(request))
            if patience is not None:
                asyncio.get_running_loop().call_later(patience, asking.cancel)
            try:
                found = await asking
            except RequestError as error:
                ends[error.kind] += error.counted
            except asyncio.CancelledError:
                ends[CANCELED] += 1
            else:
                ends["answered"] += 1
                np.testing.assert_allclose(found["logits"], expected[n], rtol=1e-4, atol=1e-5)

        patience = [None, None, None, 0.0, 0.0005]
        timeouts = [None, None, None, 1e-5, 0.0005]
        await asyncio.gather(
            *(
                ask(generator.randrange(12), generator.choice(timeouts), generator.choice(patience))
                for _ in range(3000)
            )
        )
        assert await asyncio.to_thread(model.close, SECONDS)
        now = model.counters.snapshot()
        assert now.success == ends["answered"] > 100
        assert now.failures["CANCELED"] == ends[CANCELED] > 20
        assert now.failures["REJECTED"] == ends[REJECTED] + ends[LATE] > 20
        assert ends[LATE] > 20
        assert sum(ends.values()) == 3000
        assert now.success + sum(now.failures.values()) == 3000

    run(work())


def test_outputs_come_in_the_order_in_which_they_were_asked_for(facts: ModelFacts) -> None:
    class Two(ClosableEcho):
        def run(self, batch: dict[str, Array], rows: int) -> dict[str, Array]:
            return {"a": batch["input"], "b": -batch["input"]}

    async def work() -> None:
        model = start(facts, Two(), QueueLimits())
        inputs = number_rows(3, 1)
        found = await model.infer(InferRequest(inputs, 1, outputs=("b", "a")))
        assert list(found) == ["b", "a"]
        np.testing.assert_array_equal(found["b"], -inputs["input"])
        assert list(await model.infer(InferRequest(inputs, 1, outputs=("b",)))) == ["b"]
        assert await asyncio.to_thread(model.close, SECONDS)

    run(work())


def test_a_deadline_ends_the_wait_also_while_the_engine_computes(facts: ModelFacts) -> None:
    async def work() -> None:
        engine = ClosableEcho()
        model = start(facts, engine, QueueLimits(), timeout=0.02)
        engine.gate.clear()
        computing = ask_echo(model, 1)
        assert await asyncio.to_thread(engine.running.wait, SECONDS)
        waiting = ask_echo(model, 2, timeout=0.01)
        patient = ask_echo(model, 3, timeout=SECONDS)
        for late in (waiting, computing):
            with pytest.raises(RequestError, match="deadline passed before there was a result"):
                await late
        engine.gate.set()
        answer = await patient
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["output"], answer_of(3, 1))
        assert [batch[0][0] for batch in engine.batches] == [1, 3], "2 was not computed"
        assert model.counters.snapshot().failures["REJECTED"] == 2
        assert await asyncio.to_thread(model.close, SECONDS)

    run(work())


def test_a_batch_that_fails_fails_its_requests_and_is_not_counted_as_computed(
    facts: ModelFacts,
) -> None:
    async def work() -> None:
        engine = ClosableEcho()
        model = start(facts, engine, QueueLimits())
        engine.error = RuntimeError("no such kernel")
        with pytest.raises(RequestError) as failed:
            await ask_echo(model, 1)
        assert failed.value.kind == BROKEN
        assert failed.value.counted
        assert "kernel" not in str(failed.value), "what went wrong inside is for the log"
        assert str(failed.value.__cause__) == "no such kernel"
        engine.error = None
        await ask_echo(model, 2)
        now = model.counters.snapshot()
        assert (now.success, now.failures["BACKEND"], now.executions) == (1, 1, 1)
        assert await asyncio.to_thread(model.close, SECONDS)
        assert engine.closed

    run(work())


def test_an_error_that_stays_is_told_once_and_nothing_is_answered_after_it(
    facts: ModelFacts,
) -> None:
    async def work() -> None:
        engine, failures = ClosableEcho(), Failures()
        model = start(facts, engine, QueueLimits(), failures=failures)
        engine.gate.clear()
        asking = [ask_echo(model, n) for n in range(6)]
        assert await asyncio.to_thread(engine.running.wait, SECONDS)
        engine.error = RuntimeError("sticky")
        engine.gate.set()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        kinds = Counter(end.kind for end in ends if isinstance(end, RequestError))
        assert kinds[BROKEN] >= 1
        assert kinds[BROKEN] + kinds[REJECTED] == 6
        with pytest.raises(RequestError):
            await ask_echo(model, 9)
        while not failures:  # told once all that waited was refused
            await asyncio.sleep(0.001)
        assert [(name, str(error)) for name, error in failures] == [("echo", "sticky")]
        assert len(engine.batches) == 1
        assert sum(model.counters.snapshot().failures.values()) == 7

    run(work())


def test_closing_in_time_answers_all_and_frees_the_engine(facts: ModelFacts) -> None:
    async def work() -> None:
        engine = ClosableEcho()
        model = start(facts, engine, QueueLimits())
        engine.gate.clear()
        asking = [ask_echo(model, 0)]
        assert await asyncio.to_thread(engine.running.wait, SECONDS)
        asking += [ask_echo(model, n) for n in range(1, 9)]
        await asyncio.sleep(0)
        assert not await asyncio.to_thread(model.close, 0.01)
        assert not engine.closed, "it is still in use"
        ends = await asyncio.gather(*asking[1:], return_exceptions=True)
        assert all(isinstance(end, RequestError) and end.kind == REJECTED for end in ends)
        engine.gate.set()
        assert await asyncio.to_thread(model.close, SECONDS)
        assert engine.closed
        first = await asking[0]
        assert isinstance(first, dict)
        np.testing.assert_array_equal(first["output"], answer_of(0, 1))

    run(work())


def test_results_that_come_when_the_loop_has_ended_bother_nobody(facts: ModelFacts) -> None:
    engine, failures = ClosableEcho(), Failures()
    held: list[ServedModel] = []

    async def work() -> None:
        engine.gate.clear()
        held.append(start(facts, engine, QueueLimits(), failures=failures))
        ask_echo(held[0], 1)
        assert await asyncio.to_thread(engine.running.wait, SECONDS)

    run(work())
    engine.gate.set()
    assert held[0].close(SECONDS)
    assert failures == []
