"""Boxes, text and arrows as SVG, coloured by the page's style sheet."""

from __future__ import annotations

import dataclasses
from xml.sax.saxutils import escape

LINE = 17
"""Pixels from one line of text to the next."""

_MARKER = (
    '<marker id="{id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path class="arrowhead" d="M0 0 L8 4 L0 8 z"/></marker>'
)


@dataclasses.dataclass
class Drawing:
    """A picture of fixed size, in pixels, with what it shows in words for those who cannot see it.

    ``kind`` is a class of `_static/eet.css`: it says what is drawn, the style sheet how.
    """

    name: str
    words: str
    width: int
    height: int
    parts: list[str] = dataclasses.field(default_factory=list)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        *,
        kind: str = "plain",
        text_kind: str = "",
        radius: float = 4,
    ) -> None:
        """A rectangle with its text, which may have several lines, in the middle."""
        self.parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" '
            f'rx="{radius}"/>'
        )
        if text:
            lines = text.count("\n")
            self.text(x + width / 2, y + height / 2 + 4.5 - lines * LINE / 2, text, kind=text_kind)

    def text(
        self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "middle"
    ) -> None:
        """Text whose first baseline is at ``y``."""
        for i, line in enumerate(text.split("\n")):
            self.parts.append(
                f'<text class="{kind}" x="{x}" y="{y + i * LINE}" text-anchor="{anchor}">'
                f"{escape(line)}</text>"
            )

    def line(self, *points: tuple[float, float], kind: str = "line", arrow: bool = False) -> None:
        """A line through points."""
        path = " ".join(f"{x},{y}" for x, y in points)
        end = f' marker-end="url(#{self.name}-arrow)"' if arrow else ""
        self.parts.append(f'<polyline class="{kind}" points="{path}"{end}/>')

    def arrow(self, *points: tuple[float, float], kind: str = "line") -> None:
        """A line with a head at its last point."""
        self.line(*points, kind=kind, arrow=True)

    def svg(self) -> str:
        """The picture as an element of a page."""
        marker = _MARKER.format(id=f"{self.name}-arrow")
        return (
            f'<svg class="picture" role="img" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" xmlns="http://www.w3.org/2000/svg">'
            f"<title>{escape(self.words)}</title><defs>{marker}</defs>"
            f"{''.join(self.parts)}</svg>"
        )
