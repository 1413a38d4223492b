"""Small pieces of HTML. Every text that is given is escaped; only `Html` is taken as it is."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""


def html(text: object) -> Html:
    """A text as it may stand between tags and in quoted attributes."""
    return text if isinstance(text, Html) else Html(escape(str(text)))


def table(left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls by itself where the page is too narrow.

    Args:
        left: heads of the columns of text, the first ones.
        right: heads of the columns of numbers that follow.
    """
    kinds = [""] * len(left) + [' class="number"'] * len(right)
    heads = "".join(
        f"<th{kind}>{html(name)}</th>" for kind, name in zip(kinds, [*left, *right], strict=True)
    )
    kinds[: len(left)] = [' class="name"'] * len(left)
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{html(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return Html(
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>'
        "</table></div>"
    )


def paragraph(text: object, kind: str = "") -> Html:
    """A paragraph; `kind` is a class of the style sheet."""
    return Html(f'<p class="{kind}">{html(text)}</p>' if kind else f"<p>{html(text)}</p>")


def folded(title: str, content: str) -> Html:
    """Content that is shown when its title is clicked."""
    return Html(f"<details><summary>{html(title)}</summary>\n{content}\n</details>")


def meter(share: float) -> Html:
    """A bar as long as a share, 0..1."""
    return Html(
        f'<span class="meter"><i style="width:{100 * min(max(share, 0), 1):.1f}%"></i></span>'
    )
