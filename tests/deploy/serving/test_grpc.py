"""Triton's own gRPC clients against a real server, and ONNX Runtime itself as the reference."""

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import polarprune
from tests.deploy.serving.served_bundle import MODEL, MOST, Images, Reference, some_images
from tests.served import Served

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""The same sums in another order: images are computed in batches with strangers'."""
PATIENCE = 30.0


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(server)) as opened:
        yield opened


def address(server: Served) -> str:
    return server.address("grpc")


def tensor(images: Images) -> triton.InferInput:
    described = triton.InferInput("input", list(images.shape), "FP32")
    described.set_data_from_numpy(images)
    return described


def logits(result: Any) -> Images:
    found: Images = result.as_numpy("logits")
    return found


@pytest.mark.parametrize("rows", [1, 3, MOST])
def test_outputs_are_those_of_onnxruntime(
    client: triton.InferenceServerClient, reference: Reference, rows: int
) -> None:
    images = some_images(rows, rows)
    result = client.infer(MODEL, [tensor(images)], request_id="order 66", model_version="1")
    np.testing.assert_allclose(logits(result), reference(images), **CLOSE)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "order 66")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_give_the_same(
    client: triton.InferenceServerClient, reference: Reference, algorithm: str
) -> None:
    images = some_images(4, 2)
    result = client.infer(MODEL, [tensor(images)], compression_algorithm=algorithm)
    np.testing.assert_allclose(logits(result), reference(images), **CLOSE)


def test_typed_contents_give_what_raw_ones_give(server: Served, reference: Reference) -> None:
    images = some_images(5, 2)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    described = request.inputs.add(name="input", datatype="FP32", shape=images.shape)
    described.contents.fp32_contents.extend(images.reshape(-1).tolist())
    response = raw_infer(server, request)
    found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(2, -1)
    np.testing.assert_allclose(found, reference(images), **CLOSE)


def test_only_outputs_that_are_asked_for_come(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("logits")]
    response = client.infer(MODEL, [tensor(some_images(0))], outputs=asked).get_response()
    assert [output.name for output in response.outputs] == ["logits"]


def test_health_and_documents_are_those_of_http(
    client: triton.InferenceServerClient, server: Served
) -> None:
    def http(path: str) -> Any:
        return server.ask(path).document

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().version == polarprune.__version__
    path = f"/v2/models/{MODEL}"
    metadata = client.get_model_metadata(MODEL, as_json=True)
    for tensor_ in [*metadata["inputs"], *metadata["outputs"]]:
        tensor_["shape"] = [int(side) for side in tensor_["shape"]]  # JSON's int64 is text
    assert metadata == http(path)
    config, wanted = client.get_model_config(MODEL).config, http(f"{path}/config")
    assert config.max_batch_size == wanted["max_batch_size"] == MOST
    assert (config.name, config.platform) == (MODEL, wanted["platform"])
    assert [list(each.dims) for each in config.input] == [each["dims"] for each in wanted["input"]]
    assert config.dynamic_batching.preferred_batch_size == [
        *wanted["dynamic_batching"]["preferred_batch_size"]
    ]
    (entry,) = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state) == (MODEL, "1", "READY")


def test_every_request_is_counted_once(
    client: triton.InferenceServerClient, server: Served
) -> None:
    def counts() -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics(MODEL, "1").model_stats
        (every,) = client.get_inference_statistics().model_stats
        assert every == found
        stats = found.inference_stats
        return stats.success.count, stats.fail.count, found.inference_count

    before = counts()
    client.infer(MODEL, [tensor(some_images(0, 3))])
    for wrong in (some_images(0, 3)[:, :2], some_images(0, MOST + 1)):
        with pytest.raises(InferenceServerException):
            client.infer(MODEL, [tensor(wrong)])
    with pytest.raises(InferenceServerException):
        client.infer("nobody", [tensor(some_images(0))])
    assert np.subtract(counts(), before).tolist() == [1, 2, 3]
    stats = server.ask(f"/v2/models/{MODEL}/stats").document["model_stats"][0]
    assert stats["inference_stats"]["fail"]["count"] == counts()[1]


@pytest.mark.parametrize(
    ("code", "words", "ask"),
    [
        ("NOT_FOUND", "unknown model 'no'", lambda c: c.get_model_metadata("no")),
        ("NOT_FOUND", "has version 1, not '2'", lambda c: c.get_model_config(MODEL, "2")),
        ("NOT_FOUND", "unknown model 'no'", lambda c: c.get_inference_statistics("no")),
        ("INVALID_ARGUMENT", "not by requests", lambda c: c.load_model(MODEL)),
        ("INVALID_ARGUMENT", "not by requests", lambda c: c.unload_model(MODEL)),
        ("UNIMPLEMENTED", "LogSettings is not served", lambda c: c.get_log_settings()),
        ("UNIMPLEMENTED", "TraceSetting is not served", lambda c: c.get_trace_settings()),
        (
            "UNIMPLEMENTED",
            "SystemSharedMemoryStatus is not served",
            lambda c: c.get_system_shared_memory_status(),
        ),
        (
            "UNIMPLEMENTED",
            "CudaSharedMemoryUnregister is not served",
            lambda c: c.unregister_cuda_shared_memory(),
        ),
    ],
)
def test_other_methods_refuse_in_words(
    client: triton.InferenceServerClient, code: str, words: str, ask: Any
) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        ask(client)
    assert caught.value.status() == f"StatusCode.{code}"


def test_hundreds_of_concurrent_requests_each_get_their_own_answer(
    server: Served, reference: Reference
) -> None:
    count = 400
    rows = [1 + seed % 3 for seed in range(count)]
    images = [some_images(seed, n) for seed, n in enumerate(rows)]

    async def ask_all() -> list[Any]:
        async with triton_aio.InferenceServerClient(address(server)) as client:
            return await asyncio.gather(
                *(
                    client.infer(MODEL, [tensor(part)], request_id=str(number))
                    for number, part in enumerate(images)
                )
            )

    results = asyncio.run(ask_all())
    expected = np.split(reference(np.concatenate(images)), np.cumsum(rows)[:-1])
    assert len({part.tobytes() for part in expected}) == count
    for number, (result, part) in enumerate(zip(results, expected, strict=True)):
        assert result.get_response().id == str(number)
        np.testing.assert_allclose(logits(result), part, **CLOSE)


def test_a_stream_answers_in_order_and_goes_on_after_errors(
    client: triton.InferenceServerClient, reference: Reference
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    count = 200
    images = [some_images(seed) for seed in range(count)]
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for number, part in enumerate(images):
            name = "nobody" if number % 10 == 3 else MODEL
            client.async_stream_infer(name, [tensor(part)], request_id=str(number))
        found = [answers.get(timeout=PATIENCE) for _ in images]
    finally:
        client.stop_stream()
    expected = reference(np.concatenate(images))
    for number, (result, error) in enumerate(found):
        if number % 10 == 3:
            assert result is None
            assert error.message() == "unknown model 'nobody'; the models are small"
        else:
            assert error is None
            assert result.get_response().id == str(number)
            np.testing.assert_allclose(logits(result)[0], expected[number], **CLOSE)
    assert answers.empty()


def test_an_asyncio_stream_gets_its_answers(server: Served, reference: Reference) -> None:
    images = [some_images(seed) for seed in range(20)]

    async def stream() -> list[Any]:
        async def requests() -> Any:
            for part in images:
                yield {"model_name": MODEL, "inputs": [tensor(part)]}

        async with triton_aio.InferenceServerClient(address(server)) as client:
            return [answer async for answer in client.stream_infer(requests())]

    answers = asyncio.run(stream())
    assert all(error is None for _, error in answers)
    found = np.concatenate([logits(result) for result, _ in answers])
    np.testing.assert_allclose(found, reference(np.concatenate(images)), **CLOSE)


def raw_infer(server: Served, request: Any) -> Any:
    with grpc.insecure_channel(address(server)) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return infer(request, timeout=PATIENCE)


def test_request_ids_are_echoed_or_made(server: Served) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")

        def echoed(given: str) -> str:
            _, call = live.with_call(b"", metadata=[("x-request-id", given)], timeout=PATIENCE)
            return str(dict(call.trailing_metadata())["x-request-id"])

        assert echoed("order 66") == "order 66"
        made = {echoed("x" * 129), echoed(""), echoed("x" * 129)}
        assert len(made) == 3
        assert all(len(name) < 30 for name in made)
