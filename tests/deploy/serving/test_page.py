"""The page at `/` in a real browser, before a real server."""

import base64
import hashlib
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from page_visits import PATIENCE_MS, Visit, card, digit, drop, expect, see, sync_api, visits
from served_digits import NAMES, encoded, expected_probabilities, write_digits

from polarprune.manifest import CertificateLink, read_manifest, write_manifest
from tests.served import Served

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>alert(1)</script>"
TOKEN = "a-token-of-this-test-alone"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_digits(folder / "digits")
    link = CertificateLink(
        f"tensorrt {HOSTILE}", "onnxruntime (float32)", None, 0, None, None, None, None, None,
        "no GPU was there",
    )  # fmt: skip
    write_digits(folder / "hostile", name=HOSTILE, classes=(HOSTILE,) * 10, certificate=(link,))
    write_digits(folder / "tensors", preprocessing=None)
    write_digits(folder / "unnamed", classes=())
    write_digits(folder / "broken")
    (folder / "broken" / "model.onnx").write_bytes(b"garbage")
    return folder


@pytest.fixture(scope="module")
def server(bundles: Path) -> Iterator[Served]:
    with Served(bundles) as running:
        running.wait_for("serving", times=3)
        yield running


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Visit]:
    yield from visits(browser, server.url)


def test_a_dropped_image_is_named_with_its_probability(visit: Visit, bundles: Path) -> None:
    page, (image, name) = visit.page, digit(1)
    see(page.locator("#state"), "not ready")  # for the broken one
    page.select_option("#model", "digits")
    drop(page, "mine.png", encoded(image))
    shares = expected_probabilities(bundles / "digits", image)
    best = np.argsort(-shares)[:5]
    expect(page.locator("#classes li")).to_have_count(5, timeout=PATIENCE_MS)
    rows = page.locator("#classes li").all_inner_texts()
    for row, index in zip(rows, best, strict=True):
        shown_name, shown_share = row.split("\n")
        assert shown_name == NAMES[index]
        assert _share(shown_share) == pytest.approx(100 * shares[index], abs=0.051)
    assert rows[0].startswith(name)
    see(page.locator("#result"), re.compile(rf"^{name}, .* %\. Answered by digits, version 1, in"))
    expect(page.get_by_role("img", name="mine.png")).to_be_visible()
    see(page.locator("#about-picture"), "mine.png, 8 x 8")
    widths = page.locator("#classes i").evaluate_all("all => all.map((one) => one.style.width)")
    found = [float(width.rstrip("%")) for width in widths]
    np.testing.assert_allclose(found, 100 * shares[best], rtol=1e-3)


def _share(words: str) -> float:
    return 0.025 if words.startswith("<") else float(words.removesuffix(" %").lstrip("> "))


def test_an_image_is_chosen_with_the_keyboard_alone_or_pasted(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    see(page.locator("#models"), "broken")
    page.select_option("#model", "digits")
    (tmp_path / "chosen.png").write_bytes(encoded(digit(0)[0]))
    with page.expect_file_chooser() as chooser:
        page.locator("#model").focus()
        page.keyboard.press("Tab")
        expect(page.locator("#choose")).to_be_focused()  # by now choosers are caught
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "chosen.png")
    see(page.locator("#result"), digit(0)[1])
    page.evaluate(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        base64.b64encode(encoded(digit(1)[0])).decode(),
    )
    see(page.locator("#result"), digit(1)[1])
    see(page.locator("#about-picture"), "pasted, 8 x 8")


def test_what_is_no_image_is_refused_in_words_and_the_next_one_is_taken(visit: Visit) -> None:
    page = visit.page
    see(page.locator("#models"), "broken")
    page.select_option("#model", "digits")
    drop(page, "notes.png", b"these are only words")
    see(page.get_by_role("alert").filter(has_text="Not classified"), "what was sent is neither")
    expect(page.locator("#classes li")).to_have_count(0)
    expect(page.locator("#picture")).to_be_hidden()
    drop(page, "good.png", encoded(digit(0)[0]))
    see(page.locator("#result"), digit(0)[1])
    expect(page.locator("#error")).to_be_empty()


def test_certificate_and_facts_of_a_model_are_those_of_its_bundle(
    visit: Visit, server: Served, bundles: Path
) -> None:
    shown = card(visit.page, "digits")
    manifest = read_manifest(bundles / "digits")
    assert manifest.accuracy is not None
    assert manifest.accuracy.top1 is not None
    see(shown, "Certificate: 1 of 1 comparisons passed")
    shown.locator("summary").click()
    cells = shown.locator("tbody td")
    expect(cells.first).to_be_visible()
    (link,) = manifest.certificate
    error = f"{link.max_rel_error:.1e}".replace("e-0", "e-")
    assert cells.all_inner_texts() == [
        *("onnxruntime (float32)", "numpy (float64)", "360 real", "1.0e-4", error, "yes")
    ]
    said = server.wait_for("serving", model="digits")
    for words in (
        f"top1 {100 * manifest.accuracy.top1:.2f} % on 360 test images of digits",
        "version 1", "fp32", said["runs"], "8 x 8 pixels, 10 classes",
        "4 stored random inputs give the stored outputs", "2 files as the manifest says",
    ):  # fmt: skip
        see(shown, words)


def test_numbers_move_under_load(visit: Visit, server: Served) -> None:
    shown = card(visit.page, "digits")
    see(shown, "requests answered")
    tiles = {name: shown.locator("dl.tiles > div", has_text=name) for name in ("images", "p99")}
    before = shown.locator("p.soft").first.inner_text()
    path, content = "/v2/models/digits/classify", encoded(digit(0)[0])
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.ask(path, content), range(200)))
    assert {answer.status for answer in answers} == {200}
    expect(shown.locator("p.soft").first).not_to_have_text(before, timeout=PATIENCE_MS)
    rate = tiles["images"].locator("dd").first
    expect(rate).to_have_text(re.compile(r"^\s*[1-9][\d.]*\s*$"), timeout=PATIENCE_MS)
    expect(tiles["p99"].locator("dd").first).to_have_text(re.compile(r"^\d[\d.]* ms$"))
    line = tiles["images"].locator("svg path.line")
    expect(line).to_have_attribute("d", re.compile("^M.*L"), timeout=PATIENCE_MS)


def test_a_model_that_cannot_be_served_shows_its_reason(visit: Visit) -> None:
    shown = card(visit.page, "broken")
    see(shown, "Version 1 is not available:")
    see(shown, "model.onnx has 7 bytes, the manifest says")
    expect(shown.locator("dl.tiles")).to_be_hidden()


def test_a_model_that_takes_no_images_says_why(visit: Visit) -> None:
    see(visit.page.locator("#models"), "tensors")
    visit.page.select_option("#model", "tensors")
    see(visit.page.locator("#no-images"), "does not say how an image becomes its input")
    expect(visit.page.locator("#drop")).to_be_hidden()
    visit.page.select_option("#model", "digits")
    expect(visit.page.locator("#drop")).to_be_visible()


def test_classes_that_have_no_names_are_not_said_to_be_none(visit: Visit) -> None:
    see(card(visit.page, "unnamed").locator("dl.facts"), "8 x 8 pixels, classes without names")


def test_names_are_shown_as_text_whatever_they_hold(visit: Visit) -> None:
    page, shown = visit.page, card(visit.page, "hostile")
    see(shown.locator("dl.facts"), HOSTILE)
    see(shown, f"tensorrt {HOSTILE}")
    see(shown, "no GPU was there")
    page.select_option("#model", "hostile")
    drop(page, f"{HOSTILE}.png", encoded(digit(0)[0]))
    see(page.locator("#classes"), HOSTILE)
    see(page.locator("#about-picture"), f"{HOSTILE}.png")
    assert page.locator("img").count() == 1
    assert page.locator("script").count() == 1
    assert page.title() == "not ready · polarprune"


def test_nothing_but_the_own_server_may_be_asked_and_nothing_else_run(
    visit: Visit, server: Served
) -> None:
    see(visit.page.locator("#models"), "broken")
    asked = [url for url in visit.asked if not url.startswith(("data:", "blob:"))]
    assert {url.removeprefix(server.url) for url in asked} == {"/", "/status"}
    with urlopen(server.url) as response:
        policy, page = response.headers["content-security-policy"], response.read()
    for kind in (b"script", b"style"):
        (content,) = re.findall(rb"<%b>(.*)</%b>" % (kind, kind), page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{kind.decode()}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(rb"<[^>]* (on\w+|style)=|https?://(?!www\.w3\.org/2000/svg)", page)
    for foreign in (
        "() => document.body.append(Object.assign(document.createElement('script'), {text: '1'}))",
        "() => document.body.setAttribute('onclick', 'document.title = 1')",
        "() => { document.body.innerHTML = '<b>taken</b>'; }",
    ):
        with pytest.raises(sync_api.Error, match="This document requires 'Trusted"):
            visit.page.evaluate(foreign)
    visit.complaints.clear()


def test_a_hidden_page_does_not_ask(visit: Visit) -> None:
    page = visit.page
    see(page.locator("#models"), "broken")
    page.clock.install()
    page.reload()
    see(page.locator("#models"), "broken")
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    count = len(visit.asked)
    page.clock.run_for(60_000)
    assert visit.asked[count:] == []
    with page.expect_request("**/status"):
        page.evaluate(hide, False)
    with page.expect_request("**/status"):
        page.clock.run_for(2_000)


def test_no_width_makes_the_page_scroll_sideways(visit: Visit) -> None:
    page = visit.page
    see(page.locator("#models"), "broken")
    page.select_option("#model", "hostile")
    drop(page, "name-without-any-space-" * 8, encoded(digit(0)[0]))
    expect(page.locator("#classes li")).to_have_count(5, timeout=PATIENCE_MS)
    for summary in page.locator("summary").all():
        summary.click()
    for width in (320, 390, 768, 1024, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, width


def test_light_and_dark_follow_the_system_and_words_stand_out(browser: Any, server: Any) -> None:
    def brightness(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    papers = []
    for scheme in ("light", "dark"):
        for visit in visits(browser, server.url, color_scheme=scheme):
            see(visit.page.locator("#models"), "Version 1 is not available")
            found = visit.page.evaluate(
                """() => [".soft", ".bad", ".warn", "h2", "dd"].map((kind) => {
                    const one = document.querySelector(kind);
                    return [kind, getComputedStyle(one).color,
                            getComputedStyle(one.closest("section") ?? document.body)
                              .backgroundColor];
                })"""
            )
            papers.append(brightness(found[0][2]))
            for kind, ink, paper in found:
                low, high = sorted((brightness(ink), brightness(paper)))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, kind)  # WCAG 2, AA
    assert papers[0] > 0.8
    assert papers[1] < 0.1


def test_the_token_is_asked_for_and_kept_in_the_tab_alone(
    browser: Any, bundles: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with Served(bundles / "digits", "--token-file", str(tmp_path / "token")) as server:
        server.wait_ready()
        for visit in visits(browser, server.url):
            page = visit.page
            see(page.locator("#state"), "token needed")
            expect(page.get_by_label("This server wants a token")).to_be_focused()
            page.keyboard.type("another-token")
            page.keyboard.press("Enter")
            see(page.locator("#token-words"), "not the token that the server wants")
            page.locator("#token").fill(TOKEN)
            page.keyboard.press("Enter")
            see(page.locator("#state"), "ready")
            expect(page.locator("#ask-token")).to_be_hidden()
            drop(page, "mine.png", encoded(digit(1)[0]))
            see(page.locator("#result"), digit(1)[1])
            with page.context.expect_page() as opened:
                page.click("#metrics")
            see(opened.value.locator("body"), "nv_inference_request_success")
            page.reload()
            see(page.locator("#state"), "ready")
            assert TOKEN not in page.content()
            assert page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]
            other = page.context.new_page()
            other.goto(server.url)
            see(other.locator("#state"), "token needed")


def test_a_new_version_a_stop_and_a_server_that_is_gone_are_shown(
    browser: Any, tmp_path: Path
) -> None:
    write_digits(tmp_path / "digits" / "1")
    options = ("--lame-duck-seconds", "4", "--poll-seconds", "0.2")
    with Served(tmp_path, *options) as server:
        server.wait_ready()
        for visit in visits(browser, server.url):
            page = visit.page
            see(page.locator("#state"), "ready")
            see(card(page, "digits"), "version 1")
            folder = write_digits(tmp_path / "hidden")
            manifest = read_manifest(folder)
            (folder / "model.onnx").write_bytes(b"garbage")
            folder.rename(tmp_path / "digits" / "2")
            see(card(page, "digits"), re.compile("Version 2 is not available:.*; version 1 goes"))
            see(page.locator("#state"), "ready, not every version")
            third = write_digits(tmp_path / "hidden")
            write_manifest(manifest, third)
            third.rename(tmp_path / "digits" / "3")
            see(card(page, "digits"), "version 3")
            expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE_MS)
            server.signal(signal.SIGTERM)
            see(page.locator("#state"), "draining")
            see(page.get_by_role("alert").first, "it answers what it has taken, then it ends")
            see(page.locator("#state"), "unreachable")
            see(page.get_by_role("alert").first, "The server does not answer")
            expect(card(page, "digits")).to_be_visible()
            drop(page, "late.png", encoded(digit(0)[0]))
            see(page.locator("#error"), "the server is away")
    assert server.wait(PATIENCE_MS / 1e3) == 0
