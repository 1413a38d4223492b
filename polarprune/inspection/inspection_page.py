"""The page of `polarprune inspect --html`: a picture of the network and the tables beside it.

One file that needs no net: its style and script are in it (inspection_page.html).
"""

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from polarprune.errors import ConfigError
from polarprune.figure_words import by_name
from polarprune.files.whole_files import write_whole
from polarprune.inspection.inspecting import BundleInspection, NetworkInspection, SiteRow
from polarprune.inspection.network_drawing import SiteTags, draw_network

_TEMPLATE = "inspection_page.html"

_LEGEND = (
    "Each card is an operator, with its channels, its MACs for one image and their share; those "
    "that follow it and mix or join nothing are folded into it. "
    "The bar on top of a card shows what it reads, the bar below what it writes, each site in its "
    '<span class="tag channel" style="--hue:207">colour</span>. '
    '<span class="tag fixed">fixed</span> channels no gate may cut. '
    '<span class="tag block">Dashed</span> frames are residual blocks. '
    "Point at a site to see where it is read and written, click to hold it, Esc lets go; "
    "click on a card for all its sites."
)


def check_page_path(path: Path, option: str = "--html") -> None:
    """Make sure that a page can be written here, before the work.

    Args:
        option: where the path was given, for the message.

    Raises:
        ConfigError: it is a folder, or its folder is missing.
    """
    if path.is_dir():
        raise ConfigError(f"{option} takes a file, and {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: the folder {path.parent} does not exist; make it first")


def write_page(found: NetworkInspection | BundleInspection, path: Path) -> None:
    """Write the page whole, or not at all.

    Raises:
        ConfigError: the path can't be a file, or what was found is a bundle.
    """
    check_page_path(path)
    if isinstance(found, BundleInspection):
        raise ConfigError(
            f"--html draws a network, and {found.manifest.name} is a bundle; give its run or model"
        )
    write_whole(path, inspection_page(found).encode())


def inspection_page(found: NetworkInspection) -> str:
    """The page as text; equal for equal networks."""
    template = files("polarprune.inspection").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    tags = SiteTags(found.sites)
    return Template(template).substitute(
        title=escape(found.model),
        picture=draw_network(found, tags),
        summary="\n".join(_summary(found)),
        tables="\n".join(_tables(found, tags)),
    )


def _summary(found: NetworkInspection) -> Iterator[str]:
    shape = " x ".join(str(side) for side in found.input_shape)
    blocks = sum(site.kind == "block" for site in found.sites)
    yield (
        f'<p class="soft">input {shape}, {blocks} block sites, '
        f"{len(found.sites) - blocks} channel sites</p>"
    )
    if found.macs is None or found.params is None:
        yield f"<p>MACs {found.dense_macs:,}, parameters {found.dense_params:,}</p>"
        if found.kind == "run":
            yield '<p class="soft">The run is not finished: nothing has been cut yet.</p>'
    else:
        for name, dense, left in (
            ("MACs", found.dense_macs, found.macs),
            ("parameters", found.dense_params, found.params),
        ):
            yield f"<p>{name} {left:,} of {dense:,} ({100 * left / dense:.1f} %)</p>"
        yield f"<p>residual blocks removed: {found.blocks_removed or 0} of {blocks}</p>"
    for name, value in by_name(found.figures).items():
        yield f"<p>{name} on the test split {value}</p>"
    yield f'<p class="soft">{_LEGEND}</p>'
    yield '<p><button id="fit" type="button">fit the width / full size</button></p>'


def _tables(found: NetworkInspection, tags: SiteTags) -> Iterator[str]:
    for kind, title in (("block", "Block sites"), ("channel", "Channel sites")):
        places = [place for place, site in enumerate(found.sites) if site.kind == kind]
        if not places:
            continue
        yield f"<h2>{title}</h2><table><thead><tr><th></th><th>site</th>"
        for name in ("units", "MACs a unit", "MACs share"):
            yield f'<th class="number">{name}</th>'
        yield "</tr></thead><tbody>"
        yield from (_site_row(place, found.sites[place], tags) for place in places)
        yield "</tbody></table>"
    yield '<p class="soft">MACs share: what the site touches; an operator between two sites counts'
    yield "for both.</p>"
    yield '<div class="refused"><h2>Refused</h2>'
    if found.refused:
        shown = {
            name: place
            for place, operator in enumerate(found.graph.operators)
            for name in operator.stands_for
        }
        yield "<ul>"
        for refusal in found.refused:
            where, place = escape(refusal.where), shown.get(refusal.where)
            link = where if place is None else f'<a href="#op-{place}">{where}</a>'
            yield f"<li>{link}: {escape(refusal.reason)}</li>"
        yield "</ul>"
    else:
        yield "<p>Nothing.</p>"
    yield "</div>"


def _site_row(place: int, row: SiteRow, tags: SiteTags) -> str:
    tag, name = tags.tags[place], escape(row.name)
    units, left = f"{row.units:,}", ""
    if row.kind == "block" and row.kept is not None:
        units = "kept" if row.kept else '<span class="removed">removed</span>'
    elif row.kept is not None:
        share = 100 * row.kept / row.units
        meter = f'<span class="meter"><i style="width:{share:.1f}%"></i></span>'
        units = f"{row.kept:,} of {row.units:,}{meter}"
        left = f" ({row.kept:,} of {row.units:,} units left)"
    share = 100 * row.macs_share
    return (
        f'<tr id="site-{place}" tabindex="0" data-site="{place}" data-sites="{place}" '
        f'data-tag="{tag}" data-name="{name}" data-left="{left}">'
        f'<td><span class="tag {row.kind}" {tags.style(place)}>{tag}</span></td>'
        f'<td class="name">{name}</td><td class="number">{units}</td>'
        f'<td class="number">{row.unit_macs:,}</td><td class="number">{share:.1f} %'
        f'<span class="meter"><i style="width:{min(share, 100):.1f}%"></i></span></td></tr>'
    )
