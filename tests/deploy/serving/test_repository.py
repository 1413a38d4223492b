"""Real bundles in a folder: which are served, by which names, and what is said of them."""

import asyncio
import logging
import shutil
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polarprune_deploy.serving.bundle_folders import find_bundles
from polarprune_deploy.serving.metrics import COUNTERS, LATENCY, render_metrics
from polarprune_deploy.serving.repository import Repository
from polarprune_deploy.serving.request_errors import REJECTED, UNKNOWN, RequestError
from polarprune_deploy.serving.serve_options import ServeOptions
from tests.deploy.serving.live_repository import (
    SECONDS,
    Asked,
    other_outputs,
    put,
    run,
    serve,
)
from tests.small_bundles import ENGINE, write_small_bundle


def test_all_bundles_of_a_folder_are_served_each_under_its_own_name(
    stock: Path, folder: Path
) -> None:
    for number, name in enumerate(("b", "a", "c.d-1")):
        put(stock / str(number), folder / name)
    (folder / "notes.txt").write_text("not a bundle")
    (folder / "empty").mkdir()

    async def work() -> None:
        served = Asked(folder)
        assert not served.repository.ready
        await served.repository.look()
        assert served.repository.ready
        assert served.states() == [(n, "1", "READY") for n in ("a", "b", "c.d-1")]
        answers = [await served.ask(name, rows=3) for name in ("b", "a", "c.d-1")]
        assert answers == [(0, "1"), (1, "1"), (2, "1")]
        with pytest.raises(RequestError, match=r"unknown model 'notes\.txt'"):
            served.repository.get("notes.txt")
        with pytest.raises(RequestError, match="unknown model 'small'"):
            served.repository.get("small")  # three bundles call themselves so
        assert await served.repository.close(SECONDS)

    run(work())


def test_a_single_bundle_is_served_under_its_folders_name_and_the_name_in_it(stock: Path) -> None:
    async def work(served: Asked) -> None:
        assert served.states() == [("3", "1", "READY")]
        assert (await served.ask("3"))[0] == 3
        assert (await served.ask("small"))[0] == 3

    serve(stock / "3", work)


def test_before_the_first_look_is_over_no_name_is_said_to_be_unknown(
    stock: Path, folder: Path
) -> None:
    put(stock / "0", folder / "a")

    async def work() -> None:
        served = Asked(folder)
        for name in ("a", "small", "nobody"):
            with pytest.raises(RequestError, match="being loaded") as refusal:
                served.repository.get(name)
            assert refusal.value.kind == REJECTED
            assert refusal.value.retry_after is not None
        await served.repository.look()
        assert await served.ask("small") == (0, "1")
        with pytest.raises(RequestError) as refusal:
            served.repository.get("nobody")
        assert refusal.value.kind == UNKNOWN
        assert await served.repository.close(SECONDS)

    run(work())


def test_names_that_are_not_plain_are_said_once_and_hidden_ones_ignored(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("fine", "with space", "-dash", ".hidden", "ü", "x" * 129):
        shutil.copytree(stock / "0", folder / name)
    (folder / "without bundle").mkdir()
    shutil.copytree(stock / "0", folder / "line\nbreak")

    async def work(served: Asked) -> None:
        await served.repository.look()
        assert served.states() == [("fine", "1", "READY")]

    serve(folder, work)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 5
    assert all(
        "its name cannot be a model's; rename it" in words and "\n" not in words for words in warned
    )


def test_bundles_beside_the_versions_of_a_model_are_said_once_to_be_none(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("net/2", "net/v3", "net/.4", "only/01"):
        put(stock / "0", folder / place)
    (folder / "net" / "notes").mkdir()

    async def work(served: Asked) -> None:
        await served.repository.look()
        assert served.states() == [("net", "2", "READY")]

    serve(folder, work)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [words.split("'")[1] for words in warned] == ["net/v3", "only/01"]
    assert all("its name is no version; rename it to 1, 2, ..." in words for words in warned)


def test_bundles_that_nobody_could_ask_for_are_said(
    stock: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("net", "net/2", "stats"):
        shutil.copytree(stock / "0", folder / place)

    async def work(served: Asked) -> None:
        assert served.states() == [("net", "1", "READY")]

    serve(folder, work)
    serve(folder / "net", work)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    nested = (
        "the folder 'net/2' holds a bundle, and lies in another bundle; give each its own folder, "
        "as NAME/1 and NAME/2"
    )
    assert [warned[0], warned[2]] == [nested, nested]
    assert "'stats' holds a bundle, and its name cannot be a model's" in warned[1]


def test_links_are_followed_and_keep_their_own_names(stock: Path, folder: Path) -> None:
    releases = folder.parent / "releases"
    for number in ("1", "2"):
        shutil.copytree(stock / number, releases / number)
    (folder / "net").symlink_to(releases / "1")
    (folder / "nowhere").symlink_to(releases / "9")
    (folder / "round").symlink_to(folder / "round")
    alone = folder.parent / "current"
    alone.symlink_to(releases / "1")

    async def work() -> None:
        many, one = Asked(folder), Asked(alone)
        for served in (many, one):
            await served.repository.look()
        assert many.states() == [("net", "1", "READY")]
        assert one.states() == [("current", "1", "READY")]
        for link in (folder / "net", alone):
            new = link.parent / ".link"
            new.symlink_to(releases / "2")
            new.replace(link)
        for served, name in ((many, "net"), (one, "current")):
            await served.repository.look()
            assert (await served.ask(name))[0] == 2
            assert await served.repository.close(SECONDS)

    run(work())


def test_a_link_out_of_a_bundle_is_refused(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "net")
    outside = folder.parent / "model.onnx"
    (folder / "net" / "model.onnx").rename(outside)
    (folder / "net" / "model.onnx").symlink_to(outside)

    async def work(served: Asked) -> None:
        assert "cannot be read (a link out of the folder)" in served.reason()

    serve(folder, work)


def test_an_engine_that_cannot_run_here_is_refused_or_its_onnx_file_served(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_small_bundle(folder / "net")

    async def work() -> None:
        strict, lenient = (
            Asked(folder, backend="auto"),
            Asked(folder, backend="auto", fallback=True),
        )
        for served in (strict, lenient):
            await served.repository.look()
        assert "the engine cannot be served here" in strict.reason()
        assert strict.reason().endswith("; or serve the ONNX file: --fallback")
        assert "--device cpu" not in strict.reason(), "engines run on no CPU"
        assert (await lenient.ask("net"))[0] == 0
        assert lenient.repository.get("net").facts.platform == "onnxruntime_onnx"
        for served in (strict, lenient):
            assert await served.repository.close(SECONDS)

    run(work())
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warned.startswith("the engine cannot be served here (")
    assert warned.endswith("its ONNX file is served")


def test_a_damaged_engine_is_refused_even_where_its_onnx_file_would_be_served(
    folder: Path,
) -> None:
    write_small_bundle(folder / "net")
    (folder / "net" / ENGINE).write_bytes(b"another program")

    async def work(served: Asked) -> None:
        assert ENGINE in served.reason()
        assert "the manifest says 512" in served.reason()

    serve(folder, work, backend="auto", fallback=True)


def test_with_a_key_only_signed_bundles_are_served(stock: Path, folder: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from polarprune_export.signatures import load_signing_key, sign_manifest

    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder.parent / "key.pem", folder.parent / "public.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, form))
    for name, number in (("signed", "1"), ("unsigned", "2"), ("changed", "3")):
        shutil.copytree(stock / number, folder / name)
        if name != "unsigned":
            sign_manifest(folder / name, load_signing_key(private))
    other_outputs(folder / "changed")

    async def work(served: Asked) -> None:
        assert (await served.ask("signed"))[0] == 1
        reasons = {e.name: e.reason for e in served.repository.index() if e.reason}
        assert "has no signature that can be read" in reasons["unsigned"]
        assert "is not the signature" in reasons["changed"]

    serve(folder, work, public_key=public)


def test_metrics_can_be_parsed_and_add_up(stock: Path, folder: Path) -> None:
    put(stock / "1", folder / "a")
    put(stock / "2", folder / "b")

    async def work(served: Asked) -> None:
        await asyncio.gather(*(served.ask("a", rows) for rows in (1, 2, 3, 4, 5)))
        await served.ask("b", 8)
        for kind in (REJECTED, UNKNOWN):
            served.repository.get("a").counters.failed(kind)
        text = render_metrics(served.repository).decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = [s for f in families.values() for s in f.samples]
        names = {line.split("{")[0] for line in text.splitlines()}
        assert set(COUNTERS) <= names, "without _total, which this parser adds"

        def of(name: str, **labels: str) -> list[float]:
            wanted, name = {"version": "1", **labels}.items(), name + "_total" * (name in COUNTERS)
            return [s.value for s in samples if s.name == name and wanted <= s.labels.items()]

        assert all(families[name].type == "counter" for name in COUNTERS)
        assert families[LATENCY].type == "histogram"
        assert of("nv_inference_request_success", model="a") == [5]
        assert of("nv_inference_count", model="a") == [15]
        assert of("nv_inference_count", model="b") == [8]
        assert of("nv_inference_exec_count", model="b") == [1]
        failures = {
            s.labels["reason"]: s.value
            for s in samples
            if s.name == "nv_inference_request_failure_total" and s.labels["model"] == "a"
        }
        assert failures == {"REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": 1}
        (whole,) = of("nv_inference_request_duration_us", model="a")
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        total = sum(of(f"nv_inference_{part}_duration_us", model="a")[0] for part in parts)
        assert total == pytest.approx(whole, abs=len(parts))
        buckets = of(f"{LATENCY}_bucket", model="a")
        assert buckets == sorted(buckets)
        assert [buckets[-1]] == of(f"{LATENCY}_count", model="a") == [5]
        assert of(f"{LATENCY}_sum", model="a")[0] == pytest.approx(whole / 1e3, abs=0.001)
        assert of("nv_inference_pending_request_count", model="b") == [0]
        assert of("polarprune_model_state", model="b", state="READY") == [1]
        assert [s.value for s in samples if s.name == "polarprune_ready"] == [1]

    serve(folder, work)


def test_what_is_no_folder_cannot_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("file", "absent"):
        with pytest.raises(OSError, match="directory"):
            find_bundles(tmp_path / name)
    assert find_bundles(tmp_path).bundles == {}


def test_strangers_are_not_told_where_bundles_lie(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "hidden" / "bundles" / "small")
    (bundle / "model.onnx").write_bytes(b"garbage")

    async def look() -> tuple[str, str]:
        repository = Repository(ServeOptions(bundle.parent, backend="onnxruntime"), fail)
        await repository.look()
        (entry,) = repository.index()
        with pytest.raises(RequestError) as refused:
            repository.get("small")
        await repository.close(5)
        return entry.reason, str(refused.value)

    reason, words = asyncio.run(look())
    assert "model.onnx" in reason
    for told in (reason, words):
        assert "hidden" not in told


def fail(model: str, error: BaseException) -> None:
    raise AssertionError(f"{model} failed: {error}")
