"""The drawing of a network: its operators as cards, with the sites they read and write, as SVG."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from html import escape

from polarprune.inspection.graph_grid import Box
from polarprune.inspection.graph_layout import Line, Rect, lay_out
from polarprune.inspection.inspecting import NetworkInspection, SiteRow
from polarprune.inspection.operator_graph import Channels, Operator, ResidualBlock

_WIDE, _NARROW = 276, 190  # a mixing operator, any other
_BAR, _PAD, _ROW, _CHIPS = 5, 7, 14, 17
_CHARACTER, _LARGE_CHARACTER = 6.1, 7.3  # the width of a monospace one of 10 and of 12 px
_SHOWN_SITES = 12  # in a tooltip
_Chip = tuple[int | None, str, str]  # site, class, text
_STRIPES, _STRIPE = 5, 7  # a line of more sites is grey


class SiteTags:
    """How the picture and its tables name and colour each site."""

    def __init__(self, sites: Sequence[SiteRow]) -> None:
        """Number blocks and channel sites apart."""
        self.sites = sites
        self.tags: list[str] = []
        self._hues: list[int] = []
        counts = {"block": 0, "channel": 0}
        for site in sites:
            counts[site.kind] += 1
            count = counts[site.kind]
            self.tags.append(f"{'B' if site.kind == 'block' else 'C'}{count}")
            # The golden angle keeps the hues of neighbours far apart.
            self._hues.append(round(137.508 * count + 70) % 360)

    def style(self, site: int) -> str:
        """The attribute that gives an element the colour of a site."""
        return f'style="--hue:{self._hues[site]}"'

    def count(self, site: int, channels: int) -> str:
        """Channels of a site in words: kept/all where the run is finished."""
        row = self.sites[site]
        if row.kept is None:
            return f"{channels:,}"
        return f"{channels * row.kept // row.units:,}/{channels:,}"


def in_short(count: int) -> str:
    """A large number with three digits: 4.72 M."""
    for power, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= power:
            return f"{count / power:.3g}{unit}"
    return str(count)


def draw_network(found: NetworkInspection, tags: SiteTags) -> str:
    """The whole picture as one SVG element."""
    graph = found.graph
    cards = [_Card(operator, tags, found.dense_macs) for operator in graph.operators]
    layout = lay_out(
        [
            Box(card.width, card.height, card.operator.sources, card.operator.kind == "join")
            for card in cards
        ],
        [block.operators for block in graph.blocks],
    )
    inside: dict[int, list[int]] = {}
    for block in graph.blocks:
        for place in block.operators:
            inside.setdefault(place, []).append(block.site)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{layout.width:g}" '
        f'height="{layout.height:g}" viewBox="0 0 {layout.width:g} {layout.height:g}" '
        f'role="img" aria-label="operators of {escape(found.model)}">'
    ]
    # Large regions first, so that those inside them lie on top.
    order = sorted(range(len(graph.blocks)), key=lambda b: -len(graph.blocks[b].operators))
    for place in order:
        parts += _frames(graph.blocks[place], layout.regions[place], tags)
    for line in layout.lines:
        parts += _line(line, graph.operators, tags)
    for place in order:
        parts += _labels(graph.blocks[place], layout.regions[place], tags)
    parts += [
        card.svg(place, layout.boxes[place], inside.get(place, []))
        for place, card in enumerate(cards)
    ]
    return "\n".join([*parts, "</svg>"])


class _Card:
    """One operator: what it reads on top, what it writes at the bottom."""

    def __init__(self, operator: Operator, tags: SiteTags, dense_macs: int) -> None:
        self.operator = operator
        self.tags = tags
        mixes = operator.kind == "mix"
        self.width = _WIDE if mixes or operator.refused else _NARROW
        self.about = _about(operator, dense_macs)
        self._texts = [("name", operator.name if mixes else _joined(operator))]
        if self.about:
            self._texts.append(("small", self.about))
        if operator.kept is not None and operator.kept != (operator.inputs, operator.outputs):
            style, words = "kept", "cut to {} to {}".format(*operator.kept)
            if operator.removed:
                style, words = "gone-word", "removed"
            self._texts.append((style, words))
        elif operator.removed:
            self._texts.append(("gone-word", "removed, shortcut left"))
        if operator.folded:
            folded = "+ " + ", ".join(operator.folded)
            room = int((self.width - 16) / _CHARACTER)
            self._texts.append(("small", textwrap.shorten(folded, room, placeholder=" …")))
        for reason in dict.fromkeys(operator.refused):
            lines = textwrap.wrap(f"refused: {reason}", int((self.width - 16) / _CHARACTER))
            self._texts += [("reason", line) for line in lines]
        # A joining operator writes what it reads, so once is enough.
        self._reads = self._chips(operator.reads, operator.inputs) if mixes else []
        self._writes = self._chips(operator.writes, operator.outputs)
        chips = _CHIPS * (bool(self._reads) + bool(self._writes))
        self.height = 2 * _PAD + chips + _ROW * len(self._texts) + 4

    def svg(self, place: int, at: Rect, blocks: Sequence[int]) -> str:
        """The card at its place."""
        operator = self.operator
        sites = dict.fromkeys([*(s for s, _ in (*operator.reads, *operator.writes)), *blocks])
        classes = ["op", operator.kind]
        classes += ["gone"] * operator.removed + ["warned"] * bool(operator.refused)
        parts = [
            f'<g class="{" ".join(classes)}" id="op-{place}" tabindex="0" '
            f'data-node="{escape(operator.node)}" data-name="{escape(operator.name)}" '
            f'data-about="{escape(self.about)}" '
            f'data-refused="{escape(json.dumps(operator.refused))}" '
            f'data-sites="{" ".join(map(str, sites))}" '
        ]
        ways = {"reads": operator.reads, "writes": operator.writes}
        if operator.kind != "mix":
            ways = {"carries": operator.writes}
        parts += [f'data-{way}="{_pairs(channels)}" ' for way, channels in ways.items()]
        parts.append(f'transform="translate({at.x:g} {at.y:g})"><title>{self._title()}</title>')
        parts.append(f'<rect class="card" width="{self.width}" height="{self.height}" rx="6"/>')
        y = float(_PAD)
        if operator.kind == "mix":
            parts += self._bar(operator.reads, operator.inputs, 0)
            parts += self._bar(operator.writes, operator.outputs, self.height - _BAR)
        if self._reads:
            parts.append(self._chip_row("in", self._reads, y))
            y += _CHIPS
        for style, text in self._texts:
            y += _ROW
            room = int((self.width - 16) / (_LARGE_CHARACTER if style == "name" else _CHARACTER))
            shown = escape(_shortened(text, room))
            parts.append(f'<text class="{style}" x="8" y="{y - 3:g}">{shown}</text>')
        if self._writes:
            parts.append(self._chip_row("out" if self._reads else "", self._writes, y + 3))
        return "".join([*parts, "</g>"])

    def _title(self) -> str:
        """The tooltip."""
        operator = self.operator
        lines = [operator.name, self.about, *(f"then {word}" for word in operator.folded)]
        for way, sites in (("reads", operator.reads), ("writes", operator.writes)):
            lines += [
                f"{way} {self.tags.tags[site]} {self.tags.sites[site].name}: "
                f"{self.tags.count(site, channels)} channels"
                for site, channels in sites[:_SHOWN_SITES]
            ]
            if len(sites) > _SHOWN_SITES:
                lines.append(f"{way} {len(sites) - _SHOWN_SITES} more sites; click for all")
        lines += [f"refused: {reason}" for reason in operator.refused]
        return escape("\n".join(line for line in lines if line))

    def _chips(self, sites: Channels, all_channels: int) -> list[_Chip]:
        """The chips that there is room for."""
        found: list[_Chip] = [
            (site, "chip", f"{self.tags.tags[site]} {self.tags.count(site, channels)}")
            for site, channels in sites
        ]
        rest = all_channels - sum(channels for _, channels in sites)
        if rest > 0:
            found.append((None, "chip fixed", f"fixed {rest:,}"))
        room = self.width - 36 - 5 * _CHARACTER
        shown: list[_Chip] = []
        for count, chip in enumerate(found):
            room -= _chip_width(chip[2]) + 4
            if room < 0 and count:
                shown.append((None, "chip more", f"+{len(found) - count}"))
                break
            shown.append(chip)
        return shown

    def _chip_row(self, way: str, chips: list[_Chip], y: float) -> str:
        parts = [f'<text class="way" x="8" y="{y + 10:g}">{way}</text>'] if way else []
        x = 28.0 if way else 8.0
        for site, kind, text in chips:
            wide = _chip_width(text)
            colour = "" if site is None else f' data-site="{site}" {self.tags.style(site)}'
            parts.append(
                f'<g class="{kind}"{colour}><rect x="{x:g}" y="{y:g}" width="{wide:g}" '
                f'height="14"/><text x="{x + 4:g}" y="{y + 10.5:g}">{text}</text></g>'
            )
            x += wide + 4
        return "".join(parts)

    def _bar(self, sites: Channels, all_channels: int, y: float) -> Iterator[str]:
        """All channels as one bar, each site's part in its colour."""
        total = max(all_channels, sum(channels for _, channels in sites), 1)
        x, space = 3.0, self.width - 6
        for site, channels in sites:
            wide = space * channels / total
            yield (
                f'<rect class="bar" {self.tags.style(site)} x="{x:.1f}" y="{y:g}" '
                f'width="{wide:.1f}" height="{_BAR}"/>'
            )
            x += wide
        if x < 2.9 + space:
            yield (
                f'<rect class="bar fixed" x="{x:.1f}" y="{y:g}" width="{3 + space - x:.1f}" '
                f'height="{_BAR}"/>'
            )


def _about(operator: Operator, dense_macs: int) -> str:
    if operator.kind != "mix":
        return ""
    share = 100 * operator.macs / dense_macs if dense_macs else 0.0
    width = f"{operator.inputs} to {operator.outputs}"
    return f"{operator.detail}, {width}, {in_short(operator.macs)} ({share:.1f} %)"


def _joined(operator: Operator) -> str:
    return {"add": "+ add"}.get(operator.name, operator.name)


def _pairs(sites: Channels) -> str:
    return " ".join(f"{site}:{channels}" for site, channels in sites)


def _chip_width(text: str) -> float:
    return len(text) * _CHARACTER + 8


def _shortened(text: str, most: int) -> str:
    """The end says more than the start of a layer's name, so the middle goes."""
    if len(text) <= most:
        return text
    return f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def _frames(block: ResidualBlock, frames: Sequence[Rect], tags: SiteTags) -> Iterator[str]:
    gone = " gone" * (tags.sites[block.site].kept == 0)
    for at in frames:
        yield (
            f'<rect class="frame{gone}" data-site="{block.site}" data-sites="{block.site}" '
            f'x="{at.x:g}" y="{at.y:g}" width="{at.width:g}" height="{at.height:g}"/>'
        )


def _labels(block: ResidualBlock, frames: Sequence[Rect], tags: SiteTags) -> Iterator[str]:
    """The block's name on its first frame, its tag on the others."""
    row, tag = tags.sites[block.site], tags.tags[block.site]
    gone = row.kept == 0
    share = "removed" if gone else f"{100 * row.macs_share:.1f} %"
    title = escape(f"residual block {tag} {row.name}, {share}")
    for place, at in enumerate(frames):
        room = int(at.width / _CHARACTER) - len(share) - 4
        words = tag if place else f"{_shortened(f'{tag} {row.name}', room)}, {share}"
        yield (
            f'<text class="label{" gone" * gone}" data-site="{block.site}" '
            f'data-sites="{block.site}" x="{at.x + 7:g}" y="{at.y + 11:g}">'
            f"<title>{title}</title>{escape(words)}</text>"
        )


def _line(line: Line, operators: Sequence[Operator], tags: SiteTags) -> Iterator[str]:
    """What one operator hands to another, in the colour of its site or in stripes of a few."""
    source, target = operators[line.source], operators[line.target]
    gone = " gone" * any(end.removed and end.kind == "mix" for end in (source, target))
    sites = [site for site, _ in source.writes]
    (x, y), (ex, ey) = line.points[-2:]
    dx, dy = (ex > x) - (ex < x), (ey > y) - (ey < y)
    head = (
        f"M{ex - 5 * dx - 4 * dy:g} {ey - 5 * dy - 4 * dx:g}L{ex:g} {ey:g}"
        f"L{ex - 5 * dx + 4 * dy:g} {ey - 5 * dy + 4 * dx:g}"
    )
    path = "M" + "L".join(f"{px:g} {py:g}" for px, py in line.points)
    one = f' of-site" {tags.style(sites[0])}' if len(sites) == 1 else '"'
    yield (
        f'<path class="line{gone}{one} data-sites="{" ".join(map(str, sites))}" '
        f'data-from="{line.source}" data-to="{line.target}" d="{path}{head}"/>'
    )
    if 1 < len(sites) <= _STRIPES:
        for place, site in enumerate(sites):
            dashes = f"{_STRIPE} {_STRIPE * (len(sites) - 1)}"
            yield (
                f'<path class="line of-site{gone}" {tags.style(site)} data-sites="{site}" '
                f'stroke-dasharray="{dashes}" stroke-dashoffset="{-_STRIPE * place}" d="{path}"/>'
            )
