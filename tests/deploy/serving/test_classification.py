"""Images as people send them, answered by a real server with classes and probabilities."""

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served_digits import (
    NAMES,
    STEPS,
    digits,
    encoded,
    expected_probabilities,
    write_digits,
)

from polarprune.manifest import TensorSpec, read_manifest
from polarprune_deploy.serving.batch_policy import BatchPolicy
from polarprune_deploy.serving.classification import (
    ImageRequest,
    classify,
    probabilities,
    why_not_classified,
)
from polarprune_deploy.serving.counters import Counters
from polarprune_deploy.serving.image_uploads import uploaded_image
from polarprune_deploy.serving.infer_requests import Signature
from polarprune_deploy.serving.request_errors import BAD, RequestError
from polarprune_deploy.serving.served_model import ModelFacts
from polarprune_deploy.serving.thread_queue import ThreadQueue
from tests.served import Served

PATH = "/v2/models/digits/classify"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_digits(folder / "digits")
    write_digits(folder / "embedded", embedded=True)
    write_digits(folder / "nameless", classes=())
    write_digits(folder / "tensors", preprocessing=None)
    return folder


@pytest.fixture(scope="module")
def server(bundles: Path) -> Iterator[Served]:
    with Served(bundles) as running:
        running.wait_ready()
        yield running
        assert running.process.poll() is None
    assert {line["level"] for line in running.events()} == {"info"}, (
        "a request made noise in the log"
    )


def ask(server: Served, path: str, body: bytes) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    answer = server.ask(path, body)
    return answer.status, answer.document


def digit(number: int) -> tuple[Image.Image, int]:
    """A test image and what it shows."""
    pixels, labels = digits()
    return Image.fromarray(pixels[number]), int(labels[number])


def test_answer_names_the_classes_best_first(server: Served, bundles: Path) -> None:
    image, label = digit(1)
    wanted = expected_probabilities(bundles / "digits", image)
    status, answer = ask(server, PATH, encoded(image))
    assert status == 200
    assert list(answer) == ["model_name", "model_version", "classes"]
    assert (answer["model_name"], answer["model_version"]) == ("digits", "1")
    order = np.argsort(-wanted)[:5]
    assert [one["index"] for one in answer["classes"]] == order.tolist()
    assert [one["name"] for one in answer["classes"]] == [NAMES[index] for index in order]
    assert answer["classes"][0]["name"] == NAMES[label]
    found = [one["probability"] for one in answer["classes"]]
    np.testing.assert_allclose(found, wanted[order], rtol=1e-5)


def test_all_classes_have_probabilities_that_sum_to_one(server: Served) -> None:
    _, answer = ask(server, f"{PATH}?top=10", encoded(digit(0)[0]))
    assert sum(one["probability"] for one in answer["classes"]) == pytest.approx(1, abs=1e-12)
    _, more = ask(server, f"{PATH}?top=99&unknown=1", encoded(digit(0)[0]))
    assert more == answer


def test_a_hundred_images_at_once_get_each_its_own_answer(server: Served, bundles: Path) -> None:
    images = [digit(number)[0] for number in range(100)]
    wanted = [expected_probabilities(bundles / "digits", image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda image: ask(server, f"{PATH}?top=10", encoded(image)), images)
        )
    for (status, answer), shares in zip(answers, wanted, strict=True):
        assert status == 200
        found = {one["index"]: one["probability"] for one in answer["classes"]}
        np.testing.assert_allclose([found[i] for i in range(10)], shares, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [(40, 33), (25, 64), (7, 9)])
def test_images_of_other_sizes_are_brought_to_size(
    server: Served, bundles: Path, size: tuple[int, int]
) -> None:
    image = digit(3)[0].resize(size, Image.Resampling.BICUBIC)
    wanted = expected_probabilities(bundles / "digits", image)
    _, answer = ask(server, f"{PATH}?top=10", encoded(image))
    found = {one["index"]: one["probability"] for one in answer["classes"]}
    # Pixels are rounded twice on their way, the reference's are not.
    np.testing.assert_allclose([found[i] for i in range(10)], wanted, atol=0.02)


def test_a_bundle_with_embedded_preprocessing_gets_pixels(server: Served) -> None:
    for number in range(5):
        content = encoded(digit(number)[0])
        _, plain = ask(server, PATH, content)
        _, embedded = ask(server, "/v2/models/embedded/classify", content)
        assert embedded["model_name"] == "embedded"
        for one, other in zip(plain["classes"], embedded["classes"], strict=True):
            assert other["name"] == one["name"]
            assert other["probability"] == pytest.approx(one["probability"], rel=1e-5)


def test_classes_without_names_are_numbered(server: Served) -> None:
    image, label = digit(1)
    _, answer = ask(server, "/v2/models/nameless/versions/1/classify?top=1", encoded(image))
    assert answer["classes"][0]["name"] == str(label)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (PATH, b"only text", 415, "images must be JPEG or PNG; what was sent is neither"),
        (PATH, b"", 400, "the body is empty"),
        (PATH, encoded(digit(0)[0])[:70], 400, "damaged or cut short"),
        (PATH, encoded(Image.new("1", (8000, 8000))), 413, "8000 x 8000 pixels, 50000000 at most"),
        (f"{PATH}?top=0", encoded(digit(0)[0]), 400, "top must be a whole number above 0, got '0'"),
        (f"{PATH}?top=many", encoded(digit(0)[0]), 400, "top must be a whole number"),
        (f"{PATH}?{'a&' * 40}", encoded(digit(0)[0]), 400, "the query of the URL cannot be read"),
        ("/v2/models/none/classify", encoded(digit(0)[0]), 404, "unknown model 'none'"),
        ("/v2/models/tensors/classify", encoded(digit(0)[0]), 400, "/v2/models/tensors/infer"),
    ],
)
def test_what_cannot_be_classified_is_refused_in_one_line(
    server: Served, path: str, body: bytes, status: int, words: str
) -> None:
    found, answer = ask(server, path, body)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_a_body_beyond_the_bound_that_is_set_where_none_is_given_is_refused(
    server: Served,
) -> None:
    answer = server.ask(PATH, b"", {"Content-Length": str((64 << 20) + 1)})
    assert answer.status == 413
    assert "67108864 bytes at most" in answer.document["error"]


def test_the_server_has_no_torch(server: Served) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what a process has loaded")
    assert ask(server, PATH, encoded(digit(0)[0]))[0] == 200
    loaded = maps.read_text()
    assert "onnxruntime" in loaded
    assert "libtorch" not in loaded


@pytest.mark.parametrize(
    "arguments",
    [("--data-binary", "@{image}"), ("-F", "image=@{image}"), ("-T", "{image}", "-X", "POST")],
)
def test_curl_sends_images_in_each_of_its_ways(
    server: Served, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is absent")
    image, label = digit(1)
    # Larger than what curl sends at once; the words of a form's end are in it too.
    content = encoded(image.resize((900, 900)), "JPEG", quality=100, comment=b"\r\n--\r\n\r\n--")
    (tmp_path / "digit.jpg").write_bytes(content)
    filled = [argument.format(image=tmp_path / "digit.jpg") for argument in arguments]
    command = ["curl", "-sS", "--max-time", "30", *filled, f"{server.url}{PATH}"]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert json.loads(said.stdout)["classes"][0]["name"] == NAMES[label]


def form(*parts: tuple[str, bytes], boundary: bytes = b"XyZ") -> bytes:
    """A form's body; each part is what follows its name, and its content."""
    pieces = [
        b'--%b\r\nContent-Disposition: form-data; name="f"%b\r\n\r\n%b\r\n'
        % (boundary, head.encode(), content)
        for head, content in parts
    ]
    return b"".join([*pieces, b"--%b--\r\n" % boundary])


FILE = '; filename="a.png"\r\nContent-Type: image/png'
FORM = b"multipart/form-data; boundary=XyZ"


def test_the_one_file_of_a_form_is_found_byte_for_byte() -> None:
    content = b"\r\n--Xy\r\n\r\n--\r\nXyZ\r\n" + bytes(range(256)) * 300 + b"\r\n--\n--XyZ--"
    assert uploaded_image(form((FILE, content)), FORM) == content
    assert uploaded_image(form(("", b"note"), (FILE, content), ("", b"")), FORM) == content
    quoted = b'Multipart/Form-Data; charset=x; boundary="XyZ"'
    assert uploaded_image(b"preamble\r\n" + form((FILE, content)), quoted) == content
    assert uploaded_image(content, b"image/png") == content
    assert uploaded_image(content, b"application/x-www-form-urlencoded") == content


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (form(("", b"text")), FORM, "the form holds 0 files"),
        (form((FILE, b"a"), (FILE, b"b")), FORM, "the form holds 2 files"),
        (form((FILE, b"a"))[:-6], FORM, "cut short"),
        (form((FILE, b"a")), b"multipart/form-data; boundary=other", "cut short"),
        (b"", FORM, "cut short"),
        (form((FILE, b"a")), b"multipart/form-data", "no boundary"),
        (form((FILE, b"a")), b"multipart/form-data; boundary=" + b"x" * 71, "no boundary"),
        (form(*[("", b"")] * 33), FORM, "more than 32 fields"),
        (b"--XyZ\r\nnothing\r\n--XyZ--\r\n", FORM, "no headers"),
    ],
)
def test_a_form_without_one_file_is_told_how_to_send_it(
    body: bytes, content_type: bytes, words: str
) -> None:
    with pytest.raises(RequestError, match=r"curl -F image=@image\.jpg") as caught:
        uploaded_image(body, content_type)
    assert caught.value.kind == BAD
    assert words in str(caught.value)


def facts(folder: Path, name: str, **changes: Any) -> ModelFacts:
    """Of a bundle as if it were loaded; `changes` are of its signature."""
    manifest = read_manifest(folder / name)
    signature = replace(Signature(manifest.inputs, manifest.outputs, 16), **changes)
    return ModelFacts(
        name, "1", manifest, signature, platform="onnxruntime_onnx", device="cpu",
        runs="nowhere", policy=BatchPolicy(1, 0.0), sizes=None,
    )  # fmt: skip


def test_models_that_images_cannot_be_sent_to_say_why(bundles: Path) -> None:
    def why(steps: Any = STEPS, **changes: Any) -> str | None:
        found = facts(bundles, "digits", **changes)
        return why_not_classified(
            replace(found, manifest=replace(found.manifest, preprocessing=steps))
        )

    image, other = TensorSpec("input", "float32", (-1, 3, 8, 8)), TensorSpec("o", "float32", (-1,))
    assert why() is None
    assert why(inputs=(replace(image, shape=(-1, 3, -1, -1)),)) is None
    assert why(inputs=(replace(image, dtype="bfloat16"),)) is None
    assert why(outputs=(other, TensorSpec("out", "float32", (-1, 10)))) is None
    refusals = {
        "takes 2 inputs": why(inputs=(image, other)),
        "does not say how an image": why(steps=None),
        "images of 1 channels": why(steps=replace(STEPS, mean=(0.5,), std=(0.5,))),
        "is no image as": why(steps=replace(STEPS, height=9)),
        "segmentation": why(outputs=(TensorSpec("out", "float32", (-1, 2, 8, 8)),)),
        "no scores of classes": why(outputs=(TensorSpec("out", "float32", (-1, 1)),)),
    }
    for words, said in refusals.items():
        assert said is not None, words
        assert words in said
        assert said.endswith("send tensors to /v2/models/digits/infer")
    assert why(inputs=(replace(image, dtype="int64"),)) is not None


def test_scores_of_any_size_become_probabilities() -> None:
    scores = np.array([60000.0, 59968.0, -60000.0, 60000.0], np.float16)
    found = probabilities(scores)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [0.5, 0.5 * np.exp(-32), 0.0, 0.5], rtol=1e-12)


class Stub:
    """A served model that answers with the mean of its input, in the last class but one."""

    def __init__(self, found: ModelFacts) -> None:
        self.facts, self.counters = found, Counters()

    async def answer(self, model: Any, request: Any) -> dict[str, np.ndarray]:
        assert model is self
        scores = np.zeros((1, 10), np.float32)
        scores[0, 8] = request.inputs["input"].mean()
        return {"logits": scores}


def test_an_image_is_prepared_anew_for_a_model_that_came_meanwhile(bundles: Path) -> None:
    old = Stub(facts(bundles, "digits"))
    manifest = replace(
        old.facts.manifest,
        preprocessing=replace(STEPS, mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=tuple(f"new {name}" for name in NAMES),
    )
    new = Stub(replace(old.facts, version="2", manifest=manifest))
    looks = iter([old, new, new])
    request = ImageRequest(encoded(Image.new("L", (8, 8), 255)), query=b"top=1")

    async def ask() -> dict[str, Any]:
        return await classify(request, lambda: next(looks), new.answer, ThreadQueue(1), 100)  # type: ignore[arg-type, return-value]

    answer = asyncio.run(ask())
    share = np.e / (np.e + 9)  # white is 1 for the new one, and 1.75 for the old
    assert answer["model_version"] == "2"
    assert answer["classes"] == [
        {"name": "new eight", "index": 8, "probability": pytest.approx(share, rel=1e-6)}
    ]


def test_scores_that_are_no_numbers_are_not_answered(bundles: Path) -> None:
    model = Stub(facts(bundles, "digits"))

    async def infinite(*_: Any) -> dict[str, np.ndarray]:
        return {"logits": np.full((1, 10), np.inf, np.float16)}

    async def ask() -> None:
        request = ImageRequest(encoded(digit(0)[0]))
        await classify(request, lambda: model, infinite, ThreadQueue(1), 100)  # type: ignore[arg-type, return-value]

    with pytest.raises(RequestError, match="no finite scores"):
        asyncio.run(ask())


def test_a_sender_who_goes_while_waiting_for_a_decoder_is_counted(bundles: Path) -> None:
    model, running, done = Stub(facts(bundles, "digits")), threading.Event(), threading.Event()

    def work() -> None:
        running.set()
        assert done.wait(30)

    async def ask() -> None:
        images = ThreadQueue(1)
        first = asyncio.create_task(images.run(work))
        request = ImageRequest(encoded(digit(0)[0]))
        waiting = asyncio.create_task(
            classify(request, lambda: model, model.answer, images, 100)  # type: ignore[arg-type, return-value]
        )
        while not running.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        done.set()
        await first

    asyncio.run(ask())
    assert model.counters.snapshot().failures["CANCELED"] == 1
