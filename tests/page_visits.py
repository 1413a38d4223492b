"""A browser's visit to the page of a server, and what a visitor does there."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image
from served_digits import NAMES, digits

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is absent")
expect = sync_api.expect

PATIENCE_MS = 30_000


@dataclass
class Visit:
    """A page, and what it complained of or asked for meanwhile."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def visits(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """A visitor with a browser of his own; the page must not complain in its console."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    visit = Visit(page)
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("console", lambda message: visit.complaints.append(message.text))
    page.on("request", lambda request: visit.asked.append(request.url))
    page.goto(url)
    yield visit
    # The browser notes each answer that is no success; the page has words for those.
    noted = [words for words in visit.complaints if not words.startswith("Failed to load resource")]
    context.close()
    assert not noted


def see(locator: Any, words: str | re.Pattern[str]) -> None:
    expect(locator).to_contain_text(words, timeout=PATIENCE_MS)


def card(page: Any, name: str) -> Any:
    """What the page shows of a model."""
    return page.locator("section.model", has=page.get_by_role("heading", name=name, exact=True))


def digit(number: int) -> tuple[Image.Image, str]:
    """A test image, and the name of what it shows."""
    pixels, labels = digits()
    return Image.fromarray(pixels[number]), NAMES[labels[number]]


def drop(page: Any, name: str, content: bytes) -> None:
    """Let a file fall on the page."""
    held = page.evaluate_handle(
        """([name, text]) => {
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], name, { type: "image/png" }));
            return held;
        }""",
        [name, base64.b64encode(content).decode()],
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": held})
    page.dispatch_event("#drop", "drop", {"dataTransfer": held})
