"""Line charts and scatters as inline SVG: pure functions of numbers and labels that return a string.

They know nothing of searches or runs. Sizes are pixels of the view box. Colours come from CSS, which the page includes
once; a line is told apart by its marker and its label too, not by its colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infogan_ray.web.reports.markup import brief, clipped, escape, is_number
from infogan_ray.web.reports.scales import Scale, limits, padded, spans, spread, thinned

SLOTS = 12  # lines that one chart can tell apart: eight colours with six markers repeat after 24
MOST_POINTS = 150  # of a line, so that a page of hundreds of trials stays small
LABEL = 16  # characters of a label in a chart; the whole stands in its title

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
class Series:
    """A line. ``slot`` 0 … SLOTS - 1 is its colour and marker, the same in every chart; None: grey and unlabelled.

    ``faint``: dashed. ``note``: more words for its title, which is seen on hovering.
    """

    label: str
    points: Sequence[tuple[float, float]]
    slot: int | None = None
    faint: bool = False
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A mark in a scatter. ``front``: on the front, ringed and joined. ``weight``: large is labelled first."""

    label: str
    x: float
    y: float
    slot: int | None = None
    front: bool = False
    weight: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """The plot's own area: both axes in pixels, and what they are called."""

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
            parts.append(text(left - 6, y + 4, brief(tick), "soft", "end"))
        for tick in self.x.ticks(max(2, int((right - left) / 75))):
            x = self.x(tick)
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom:.1f}V{bottom + 5:.1f}"/>')
            parts.append(text(x, bottom + 18, brief(tick), "soft", "middle"))
        parts.append(text((left + right) / 2, bottom + 36, self.x_label, "soft", "middle"))
        parts.append(text(4, top - 10, self.y_label, "soft"))
        return parts


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False,
    ceiling: float | None = None, ceiling_label: str = "ceiling", marks: Sequence[tuple[float, str]] = (),
    faint_label: str = "", size: tuple[int, int] = (880, 340),
) -> str:  # fmt: skip
    """Lines in the order of their importance, the first drawn on top. ``marks``: vertical lines (x, label).

    Points that are not finite, or not positive on a logarithmic x, are left out; far outliers are drawn at the edge.
    """
    kept = [(one, _drawable(one.points, log_x)) for one in series]
    kept = [(one, points) for one, points in kept if points]
    if not kept:
        return empty_chart(title, "nothing measured yet", size)
    labelled = [pair for pair in kept if pair[0].slot is not None]
    frame = _frame(
        [point for _, points in kept for point in points], x_label, y_label, size, 130 if labelled else 20,
        [x for x, _ in marks if x > 0 or not log_x], [] if ceiling is None else [ceiling], log_x,
    )  # fmt: skip
    parts = frame.draw() + _marks(frame, marks)
    if ceiling is not None:
        parts.append(_limit(frame, ceiling, ceiling_label, at_right=True))
    for one, points in reversed(kept):
        parts.append(_line(frame, one, points))
    parts += _end_labels(frame, labelled)
    parts += _notes(frame, labelled, len(kept) - len(labelled), faint_label, any(one.faint for one, _ in kept))
    return svg(f"{title}: {y_label} over {x_label}, {len(kept)} lines", size, parts)


def scatter(
    title: str, points: Sequence[Point], x_label: str, y_label: str, *, log_y: bool = False, limit: float | None = None,
    limit_label: str = "", better: str = "", most_labels: int = 14, size: tuple[int, int] = (880, 380),
) -> str:  # fmt: skip
    """Marks, the front ringed and joined. ``limit``: a horizontal line; ``better``: where good points lie, in words."""
    kept = [point for point in points if is_number(point.x) and is_number(point.y)]
    if not kept:
        return empty_chart(title, "nothing measured yet", size)
    extra = [] if limit is None else [limit]
    frame = _frame([(point.x, point.y) for point in kept], x_label, y_label, size, 40, [], extra, log_y=log_y)
    parts = frame.draw()
    if limit is not None:
        parts.append(_limit(frame, limit, limit_label))
    front = sorted((point for point in kept if point.front), key=lambda point: (point.x, point.y))
    if len(front) > 1:  # by steps: between two points of a front nothing is known to be reachable but their corner
        path = f"M{frame.x(front[0].x):.1f} {frame.y(front[0].y):.1f}" + "".join(
            f"V{frame.y(point.y):.1f}H{frame.x(point.x):.1f}" for point in front[1:]
        )
        parts.append(f'<path class="mark" d="{path}"/>')
    for point in sorted(kept, key=lambda point: (point.front, point.weight)):
        x, y = frame.x(point.x), frame.y(point.y)
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>' if point.front else ""
        mark = f'<path class="m" d="{marker(point.slot or 0, x, y, 5)}"/>'
        said = f"{point.label}: {x_label} {brief(point.x)}, {y_label} {brief(point.y)}"
        hue = "muted" if point.slot is None else hue_class(point.slot)
        said += f", {point.note}" if point.note else ""
        parts.append(f'<g class="s {hue}"><title>{escape(said)}</title>{mark}{ring}</g>')
    parts += _free_labels(frame, sorted(kept, key=lambda point: -point.weight)[:most_labels], kept)
    legend = "; ".join(word for word in ("ringed: beaten by no other in both" if front else "", better) if word)
    parts.append(text(frame.x.end, frame.y.end - 10, legend, "soft", "end"))
    return svg(f"{title}: {y_label} over {x_label}, {len(kept)} points", size, parts)


def svg(label: str, size: tuple[int, int], parts: Sequence[str], kind: str = "") -> str:
    """The whole picture; ``label`` is what a screen reader says of it."""
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
    """The outline of a slot's marker, as path data: circle, square, diamond, two triangles, a star of four."""
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


def _drawable(points: Sequence[tuple[float, float]], log_x: bool) -> list[tuple[float, float]]:
    good = [(x, y) for x, y in points if is_number(x) and is_number(y) and (x > 0 or not log_x)]
    return thinned(good, MOST_POINTS)


def _frame(
    points: Sequence[tuple[float, float]], x_label: str, y_label: str, size: tuple[int, int], right: int,
    more_x: Sequence[float], more_y: Sequence[float], log_x: bool = False, log_y: bool = False,
) -> Frame:  # fmt: skip
    width, height = size
    xs = limits([x for x, _ in points], more_x, log_x)
    ys = limits([y for _, y in points], more_y, log_y)
    log_x, log_y = log_x and spans(xs, 2), log_y and spans(ys, 2)
    ys = (ys[0] / 1.2, ys[1] * 1.2) if log_y else padded(*ys)
    xs = xs if log_x else padded(*xs, 0.02)
    return Frame(Scale(*xs, 58, width - right, log_x), Scale(*ys, height - 48, 34, log_y), x_label, y_label)


def _line(frame: Frame, one: Series, points: Sequence[tuple[float, float]]) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    said = f"{one.label}: {brief(points[-1][1])} at {brief(points[-1][0])}" + (f", {one.note}" if one.note else "")
    classes = f"s {'muted' if one.slot is None else hue_class(one.slot)}{' faint' if one.faint else ''}"
    marks = ""
    if one.slot is not None:
        shown = places if len(places) <= 25 else places[-1:]
        outlines = "".join(marker(one.slot, x, y, 3.5) for x, y in shown)
        marks = f'<path class="hit" d="{path}"/><path class="m" d="{outlines}"/>'
    elif len(places) == 1:
        marks = f'<path class="m" d="{marker(0, *places[0], 2)}"/>'
    return f'<g class="{classes}"><title>{escape(said)}</title><path class="l" d="{path}"/>{marks}</g>'


def _end_labels(frame: Frame, labelled: Sequence[tuple[Series, Sequence[tuple[float, float]]]]) -> list[str]:
    """At the right edge, each near its line's end and joined to it: a legend without a detour."""
    ends = [(frame.x(points[-1][0]), frame.y(points[-1][1])) for _, points in labelled]
    places = spread([y for _, y in ends], 15, frame.y.end, frame.y.start)
    left = frame.x.end + 22
    parts = []
    for (one, _), (x, y), place in zip(labelled, ends, places, strict=True):
        slot = one.slot or 0
        near = frame.x.end - x < 60  # from a line that ended early it would cross all others
        lead = f'<path class="lead" d="M{x:.1f} {y:.1f}L{left - 7:.1f} {place:.1f}"/>' if near else ""
        sign = f'<path class="m" d="{marker(slot, left, place, 4)}"/>'
        parts.append(f'<g class="s {hue_class(slot)}">{lead}{sign}</g>')
        parts.append(text(left + 9, place + 4, clipped(one.label, LABEL), title=one.label))
    return parts


def _notes(frame: Frame, labelled: Sequence[object], others: int, faint_label: str, any_faint: bool) -> list[str]:
    words = [f"dashed: {faint_label}"] if faint_label and any_faint else []
    words += [f"grey: {others} others"] if others and labelled else []
    return [text(frame.x.end, frame.y.end - 10, "; ".join(words), "soft", "end")] if words else []


def _marks(frame: Frame, marks: Sequence[tuple[float, str]]) -> list[str]:
    parts, free_from = [], 0.0
    for x, label in sorted(mark for mark in marks if mark[0] > 0 or not frame.x.log):
        at, width = frame.x(x), 7.0 * len(label)
        parts.append(f'<path class="mark" d="M{at:.1f} {frame.y.end:.1f}V{frame.y.start:.1f}"/>')
        if at >= free_from:
            parts.append(text(at + 4, frame.y.start - 6, label, "soft"))
            free_from = at + width
    return parts


def _limit(frame: Frame, value: float, label: str, at_right: bool = False) -> str:
    y = frame.y(value)
    x, anchor = (frame.x.end - 6, "end") if at_right else (frame.x.start + 6, "start")
    line = f'<path class="limit" d="M{frame.x.start:.1f} {y:.1f}H{frame.x.end:.1f}"/>'
    return line + text(x, y - 5, f"{label} {brief(value)}", "soft", anchor)


def _free_labels(frame: Frame, wanted: Sequence[Point], all_points: Sequence[Point]) -> list[str]:
    """Beside each mark where nothing else lies; a label for which there is no room is left to the mark's title."""
    taken = [(frame.x(p.x) - 6, frame.y(p.y) - 6, frame.x(p.x) + 6, frame.y(p.y) + 6) for p in all_points]
    parts = []
    for point in wanted:
        words = clipped(point.label, LABEL)
        x, y, width = frame.x(point.x), frame.y(point.y), 6.6 * len(words)
        for left, base in ((x + 12, y + 4), (x - 12 - width, y + 4), (x - width / 2, y - 13), (x - width / 2, y + 22)):
            box = (left, base - 10, left + width, base + 3)
            inside = box[0] >= frame.x.start and box[2] <= frame.x.end + 38 and frame.y.end - 4 <= box[1]
            if inside and box[3] <= frame.y.start and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(text(left, base, words, title=point.label))
                break
    return parts


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
