"""Triton's own HTTP clients, unchanged, against a real server and ONNX Runtime itself."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

import polarprune
from tests.deploy.serving.served_bundle import MODEL, MOST, Images, Reference, some_images
from tests.served import Served

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(server), concurrency=4) as opened:
        yield opened


def address(server: Served) -> str:
    return server.address()


def tensor(images: Images, binary: bool = True) -> triton.InferInput:
    described = triton.InferInput("input", list(images.shape), "FP32")
    described.set_data_from_numpy(images, binary_data=binary)
    return described


@pytest.mark.parametrize("binary_out", [True, False, None], ids=["binary", "json", "all"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["from binary", "from json"])
@pytest.mark.parametrize("version", ["", "1"])
def test_outputs_are_those_of_onnxruntime(
    client: triton.InferenceServerClient, reference: Reference, version: str, binary_in: bool,
    binary_out: bool | None,
) -> None:  # fmt: skip
    images = some_images(1, 3)
    asked = [] if binary_out is None else [
        triton.InferRequestedOutput("logits", binary_data=binary_out)
    ]  # fmt: skip
    result = client.infer(
        MODEL, [tensor(images, binary_in)], model_version=version, outputs=asked or None,
        request_id="seven",
    )  # fmt: skip
    np.testing.assert_allclose(result.as_numpy("logits"), reference(images), **CLOSE)
    response = result.get_response()
    assert (response["model_name"], response["model_version"]) == (MODEL, "1")
    assert response["id"] == "seven"
    assert ("data" in result.get_output("logits")) == (binary_out is False)


def test_the_manuals_example_runs_as_it_stands(server: Served, reference: Reference) -> None:
    manual = (Path(__file__).parents[3] / "deploy" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", manual, re.M | re.S)
    (block,) = [block for block in blocks if "tritonclient" in block]
    assert block.count("127.0.0.1:8000") == 1
    names: dict[str, Any] = {}
    code = block.replace("127.0.0.1:8000", address(server)).replace('"bundle"', repr(MODEL))
    exec(code, names)
    names["client"].close()
    found = names["result"].as_numpy("logits")
    np.testing.assert_allclose(found, reference(names["images"]), **CLOSE)


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_give_the_same(
    client: triton.InferenceServerClient, reference: Reference, algorithm: str, answer: str | None
) -> None:
    images = some_images(2, 2)
    result = client.infer(
        MODEL, [tensor(images)], request_compression_algorithm=algorithm,
        response_compression_algorithm=answer,
    )  # fmt: skip
    np.testing.assert_allclose(result.as_numpy("logits"), reference(images), **CLOSE)


def test_requests_in_flight_each_get_their_own_answer(
    client: triton.InferenceServerClient, reference: Reference
) -> None:
    images = [some_images(seed) for seed in range(40)]
    asked = [client.async_infer(MODEL, [tensor(part)]) for part in images]
    found = np.concatenate([each.get_result().as_numpy("logits") for each in asked])
    np.testing.assert_allclose(found, reference(np.concatenate(images)), **CLOSE)


def test_health_and_documents(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready("nobody")
    metadata = client.get_server_metadata()
    assert metadata["version"] == polarprune.__version__
    for version in ("", "1"):
        model = client.get_model_metadata(MODEL, version)
        assert (model["name"], model["versions"]) == (MODEL, ["1"])
        wanted = {"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}
        assert model["inputs"] == [wanted]
        config = client.get_model_config(MODEL, version)
        assert config["max_batch_size"] == MOST
        assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}]
    (entry,) = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == (MODEL, "1", "READY")


def test_every_request_is_counted_once(client: triton.InferenceServerClient) -> None:
    def counts() -> list[int]:
        (found,) = client.get_inference_statistics(MODEL, "1")["model_stats"]
        assert client.get_inference_statistics()["model_stats"] == [found]
        stats = found["inference_stats"]
        return [stats["success"]["count"], stats["fail"]["count"], found["inference_count"]]

    before = counts()
    client.infer(MODEL, [tensor(some_images(0, 3))])
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [tensor(some_images(0, MOST + 1))])
    assert np.subtract(counts(), before).tolist() == [1, 1, 3]


@pytest.mark.parametrize(
    ("status", "words", "ask"),
    [
        ("404", "unknown model 'no'", lambda c: c.get_model_metadata("no")),
        ("404", "has version 1, not '2'", lambda c: c.get_model_config(MODEL, "2")),
        ("404", "unknown model 'no'", lambda c: c.infer("no", [tensor(some_images(0))])),
        ("400", "holds 9 images", lambda c: c.infer(MODEL, [tensor(some_images(0, 9))])),
        ("400", "not by requests", lambda c: c.load_model(MODEL)),
        ("400", "not by requests", lambda c: c.unload_model(MODEL)),
        ("404", "no such route", lambda c: c.get_system_shared_memory_status()),
    ],
)
def test_refusals_come_as_the_clients_exception(
    client: triton.InferenceServerClient, status: str, words: str, ask: Any
) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        ask(client)
    assert caught.value.status() == status


def test_shared_memory_is_refused_and_not_passed_over(
    client: triton.InferenceServerClient,
) -> None:
    described = triton.InferInput("input", [1, 3, 8, 8], "FP32")
    described.set_shared_memory("region", 768)
    asked = triton.InferRequestedOutput("logits")
    asked.set_shared_memory("region", 12)
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.infer(MODEL, [described])
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.infer(MODEL, [tensor(some_images(0))], outputs=[asked])


def test_the_asyncio_client_works_alike(server: Served, reference: Reference) -> None:
    images = [some_images(seed, 1 + seed % 3) for seed in range(100)]

    async def run() -> list[Any]:
        async with triton_aio.InferenceServerClient(address(server)) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(MODEL, "1")
            assert (await client.get_model_metadata(MODEL))["name"] == MODEL
            assert (await client.get_model_config(MODEL))["max_batch_size"] == MOST
            assert len(await client.get_model_repository_index()) == 1
            stats = await client.get_inference_statistics(MODEL)
            assert stats["model_stats"][0]["name"] == MODEL
            compressed = await client.infer(
                MODEL, [tensor(images[2])], request_compression_algorithm="gzip"
            )
            np.testing.assert_allclose(compressed.as_numpy("logits"), reference(images[2]), **CLOSE)
            return await asyncio.gather(
                *(
                    client.infer(MODEL, [tensor(part, number % 2 == 0)], request_id=str(number))
                    for number, part in enumerate(images)
                )
            )

    for number, (result, part) in enumerate(zip(asyncio.run(run()), images, strict=True)):
        assert result.get_response()["id"] == str(number)
        np.testing.assert_allclose(result.as_numpy("logits"), reference(part), **CLOSE)
