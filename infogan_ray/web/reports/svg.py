"""SVG elements that all charts share: the picture, its axes, texts and markers, and their CSS.

Sizes are pixels of the view box. The page includes the CSS once, with all colours. Lines differ by colour, marker and
label, so that no information depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infogan_ray.web.reports.markup import escape, format_tick
from infogan_ray.web.reports.scales import Scale

LABEL_LENGTH = 16  # characters of a label in a chart; its tooltip has the full text

CSS = """
.chart { display: block; width: 100%; min-width: 46rem; height: auto; font: 12px system-ui, sans-serif; }
.chart.small { min-width: 26rem; }
.chart text { fill: var(--ink, #222); paint-order: stroke; stroke: var(--paper, #fff); stroke-width: 3px;
  stroke-linejoin: round; }
.chart text.soft { fill: var(--soft, #5c6470); }
.chart .grid { stroke: var(--line, #ddd); stroke-width: 1; }
.chart .mark { stroke: var(--soft, #5c6470); stroke-width: 1; stroke-dasharray: 2 4; fill: none; }
.chart .limit { stroke: var(--ink, #222); stroke-width: 1; stroke-dasharray: 8 4; fill: none; }
.chart .s { stroke: var(--hue, var(--mute, #9aa3ad)); fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .s .m { fill: var(--hue, var(--mute, #9aa3ad)); stroke: var(--paper, #fff); stroke-width: .7; }
.chart .s.muted { stroke-width: 1; opacity: .55; }
.chart .s.faint .l { stroke-dasharray: 5 4; opacity: .75; }
.chart .s .hit { stroke: transparent; stroke-width: 11; }
.chart .s:hover { opacity: 1; }
.chart .s:hover .l { stroke-width: 3.5; opacity: 1; }
.chart .lead { stroke-width: .8; opacity: .6; }
.chart .ring { fill: none; stroke: var(--ink, #222); stroke-width: 1.6; }
.c0 { --hue: #0066a8; } .c1 { --hue: #c24d00; } .c2 { --hue: #007a58; } .c3 { --hue: #a8327d; }
.c4 { --hue: #8a6a00; } .c5 { --hue: #5b4bc4; } .c6 { --hue: #b3261e; } .c7 { --hue: #3f6470; }
@media (prefers-color-scheme: dark) {
.c0 { --hue: #5fb2ee; } .c1 { --hue: #ff9a55; } .c2 { --hue: #3ccfa0; } .c3 { --hue: #ef8cc8; }
.c4 { --hue: #e2c04a; } .c5 { --hue: #a99cff; } .c6 { --hue: #ff8078; } .c7 { --hue: #9dc3cf; }
}
"""


@dataclass(frozen=True)
class Frame:
    """The plot area: both axes with their labels, in pixels."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str

    def draw(self) -> list[str]:
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        parts = []
        for tick in self.y.ticks(5):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
            parts.append(text(left - 6, y + 4, format_tick(tick), "soft", "end"))
        for tick in self.x.ticks(max(2, int((right - left) / 75))):
            x = self.x(tick)
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom:.1f}V{bottom + 5:.1f}"/>')
            parts.append(text(x, bottom + 18, format_tick(tick), "soft", "middle"))
        parts.append(text((left + right) / 2, bottom + 36, self.x_label, "soft", "middle"))
        parts.append(text(4, top - 10, self.y_label, "soft"))
        return parts


def svg(label: str, size: tuple[int, int], parts: Sequence[str], kind: str = "") -> str:
    """The complete picture. ``label``: its text for screen readers."""
    width, height = size
    classes = " ".join(word for word in ("chart", kind or ("small" if width < 600 else "")) if word)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="{classes}" viewBox="0 0 {width} {height}"'
    return f'{head} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def empty_chart(title: str, why: str, size: tuple[int, int]) -> str:
    size = (size[0], 60)
    return svg(f"{title}: {why}", size, [text(size[0] / 2, 34, why, "soft", "middle")])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", title: str = "") -> str:
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    hover = f"<title>{escape(title)}</title>" if title and title != words else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{hover}{escape(words)}</text>'


def hue_class(slot: int) -> str:
    return f"c{slot % 8}"


def marker(slot: int, x: float, y: float, r: float) -> str:
    """The outline of a slot's marker as path data: circle, square, diamond, two triangles or a star."""
    corners: tuple[tuple[float, float], ...] = (
        ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
        ((0, -1.4), (0.4, -0.4), (1.4, 0), (0.4, 0.4), (0, 1.4), (-0.4, 0.4), (-1.4, 0), (-0.4, -0.4)),
    )[slot % 6 - 1]  # fmt: skip
    if slot % 6 == 0:
        return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"
    return "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "z"
