"""matplotlib figures as SVG inside a page: its fonts, its colours, light and dark, nothing fetched. (no torch)"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, top, width, height, in points from the figure's upper left corner

# matplotlib's own colours -> the page's, which are others in the dark
COLOURS = {
    "#000000": "currentColor", "#ffffff": "var(--card)", "#1f77b4": "var(--series-1)", "#ff7f0e": "var(--series-2)",
    "#2ca02c": "var(--series-3)", "#d62728": "var(--series-4)", "#9467bd": "var(--series-5)",
    "#8c564b": "var(--series-6)", "#e377c2": "var(--series-7)", "#7f7f7f": "var(--series-8)",
    "#bcbd22": "var(--series-9)", "#17becf": "var(--series-10)", "#808080": "var(--muted)",
    "#404040": "currentColor",
}  # fmt: skip
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Heiti TC", "Microsoft YaHei",
    "SimHei", "WenQuanYi Micro Hei",
)  # fmt: skip
_POINTS = 72  # an inch, as matplotlib's SVG counts
_MARGIN = 3.0  # points around a panel
_LEGEND_SCALE = 1.4  # panels are drawn larger, too, where there is room
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font-family: [^;]*;? ?")


def inline_panels(figure: "Figure", name: str, translated: Callable[[str], str] = str) -> list[str]:
    """A figure as SVG elements, one for each of its panels, so that on a phone they can stand below each other.

    Args:
        figure: a matplotlib `Figure`.
        name: what the ids in it begin with; each figure of a page needs its own.
        translated: a text in the figure -> what to show instead.

    Returns:
        Markup of each panel, and of what stands beside them, such as a legend of the whole figure.
    """
    root = _drawn(figure, name)
    parts = [part for part in root.find(f"{_SVG}g") if part.get("id") != "patch_1"]  # without the background
    definitions = root.findall(f"{_SVG}defs")
    for element in root.iter():
        _adapt(element, name, translated)
    boxes = _boxes(figure)
    if boxes is None or len(boxes) != len(parts):
        width, height = figure.get_size_inches() * _POINTS
        return [_markup([*definitions, *parts], (0, 0, width, height))]
    contents = [[part] for part in parts]
    contents[0] = [*definitions, *contents[0]]  # an id counts in the whole page: the first panel defines for all
    kinds = ["plot"] * len(figure.axes) + ["plot legend"] * len(figure.legends)
    return [_markup(*each) for each in zip(contents, boxes, kinds, strict=True)]


@contextmanager
def _measuring() -> Iterator[None]:
    """The browser's fonts draw the texts, matplotlib only measures them: a glyph that its fonts lack is not missing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield


def _drawn(figure: "Figure", name: str) -> ElementTree.Element:
    """What matplotlib writes, as a tree without its metadata and its style sheet, which would count for the page."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = [*matplotlib.rcParams["font.sans-serif"], *(font for font in CHINESE_FONTS if font in installed)]
    written = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": fonts}
    with matplotlib.rc_context(settings), _measuring():
        figure.set_dpi(_POINTS)
        figure.savefig(written, format="svg")
    root = ElementTree.fromstring(written.getvalue())
    for element in list(root):
        if element.tag == f"{_SVG}metadata" or element.find(f"{_SVG}style") is not None:
            root.remove(element)
    return root


def _adapt(element: ElementTree.Element, name: str, translated: Callable[[str], str]) -> None:
    """One element as HTML has it: no namespaces, ids of its own figure, the page's colours and fonts."""
    element.tag = element.tag.removeprefix(_SVG)
    for key, value in list(element.attrib.items()):
        if key == "id" and element.tag == "g":  # nothing refers to these
            del element.attrib[key]
            continue
        if key == "id":
            value = f"{name}-{value}"
        elif key == _XLINK:
            del element.attrib[key]
            key, value = "href", value.replace("#", f"#{name}-")
        value = value.replace("url(#", f"url(#{name}-")
        if key == "style":
            value = _COLOUR.sub(_page_colour, _FONT.sub("", value))
        elif key != "id":
            value = " ".join(_LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value).split())
        element.set(key, value)
    if element.text and not element.text.strip():
        element.text = None
    if element.text:
        element.text = translated(element.text)
    element.tail = None


def _page_colour(found: re.Match) -> str:
    """A colour as the page has it; one that is not in the table is dimmed in the dark, so that what is on it shows."""
    return COLOURS.get(found[0]) or f"color-mix(in srgb, {found[0]} var(--keep), var(--card))"


def _boxes(figure: "Figure") -> list[Box] | None:
    """The place of each part in the order in which they are drawn; None where the panels are not one row of them."""
    places = [axes.get_subplotspec() for axes in figure.axes]
    columns = {spec.num1 for spec in places if spec is not None and spec.get_gridspec().nrows == 1}
    if len(columns) != len(places) or figure.get_suptitle():
        return None
    with _measuring():
        bounds = [part.get_tightbbox() for part in (*figure.axes, *figure.legends)]
    height = figure.get_figheight() * _POINTS
    return [(b.x0 - _MARGIN, height - b.y1 - _MARGIN, b.width + 2 * _MARGIN, b.height + 2 * _MARGIN) for b in bounds]


def _markup(content: list[ElementTree.Element], box: Box, kind: str = "plot") -> str:
    """An SVG element that shows what is inside the box; it is not read aloud, as what it says is said beside it."""
    left, top, width, height = (round(float(side), 2) for side in box)
    scale = _LEGEND_SCALE if kind != "plot" else 1
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"{left} {top} {width} {height}", "width": f"{scale * width:.2f}",
            "height": f"{scale * height:.2f}", "preserveAspectRatio": "xMinYMid", "aria-hidden": "true", "class": kind,
        },
    )  # fmt: skip
    svg.extend(content)
    return ElementTree.tostring(svg, encoding="unicode", short_empty_elements=True)
