"""Line charts and scatter plots as inline SVG. The functions take numbers and labels and return a string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infogan_ray.data.progress import counted
from infogan_ray.web.reports.markup import escape, format_tick, is_number, truncate
from infogan_ray.web.reports.scales import Scale, is_log_range, limits, separate_labels, subsample, with_padding
from infogan_ray.web.reports.svg import LABEL_LENGTH, Frame, empty_chart, hue_class, marker, svg, text

SLOTS = 12  # lines with a colour in one chart; eight colours with six markers repeat after 24
MAX_POINTS = 150  # of a line, so that a page with hundreds of trials is small


@dataclass(frozen=True)
class Series:
    """A line. ``slot``: 0 … SLOTS - 1, its colour and marker in every chart; None is grey without a label.

    ``faint``: dashed. ``note``: added to its tooltip.
    """

    label: str
    points: Sequence[tuple[float, float]]
    slot: int | None = None
    faint: bool = False
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot. ``front``: it is on the Pareto front and gets a ring.

    ``weight``: points with large weights get labels first. ``note``: added to its tooltip.
    """

    label: str
    x: float
    y: float
    slot: int | None = None
    front: bool = False
    weight: float = 0.0
    note: str = ""


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False,
    ceiling: float | None = None, ceiling_label: str = "ceiling", marks: Sequence[tuple[float, str]] = (),
    faint_label: str = "", size: tuple[int, int] = (880, 340),
) -> str:  # fmt: skip
    """A line chart. The first line is on top. ``marks``: vertical lines (x, label).

    Points that are not finite, or not positive on a logarithmic x, are left out. Far outliers appear at the edge.
    """
    kept = [(line, _valid_points(line.points, log_x)) for line in series]
    kept = [(line, points) for line, points in kept if points]
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
    for line, points in reversed(kept):
        parts.append(_line(frame, line, points))
    parts += _end_labels(frame, labelled)
    parts += _notes(frame, labelled, len(kept) - len(labelled), faint_label, any(line.faint for line, _ in kept))
    return svg(f"{title}: {y_label} over {x_label}, {len(kept)} lines", size, parts)


def scatter(
    title: str, points: Sequence[Point], x_label: str, y_label: str, *, log_y: bool = False, limit: float | None = None,
    limit_label: str = "", better: str = "", max_labels: int = 14, size: tuple[int, int] = (880, 380),
) -> str:  # fmt: skip
    """A scatter plot. Points of the front have rings and are connected. ``limit``: a horizontal line.

    ``better``: a legend that explains which direction is better.
    """
    kept = [point for point in points if is_number(point.x) and is_number(point.y)]
    if not kept:
        return empty_chart(title, "nothing measured yet", size)
    extra = [] if limit is None else [limit]
    frame = _frame([(point.x, point.y) for point in kept], x_label, y_label, size, 40, [], extra, log_y=log_y)
    parts = frame.draw()
    if limit is not None:
        parts.append(_limit(frame, limit, limit_label))
    front = sorted((point for point in kept if point.front), key=lambda point: (point.x, point.y))
    if len(front) > 1:  # a stepped line, because points between two points of the front may be unreachable
        path = f"M{frame.x(front[0].x):.1f} {frame.y(front[0].y):.1f}" + "".join(
            f"V{frame.y(point.y):.1f}H{frame.x(point.x):.1f}" for point in front[1:]
        )
        parts.append(f'<path class="mark" d="{path}"/>')
    for point in sorted(kept, key=lambda point: (point.front, point.weight)):
        x, y = frame.x(point.x), frame.y(point.y)
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>' if point.front else ""
        mark = f'<path class="m" d="{marker(point.slot or 0, x, y, 5)}"/>'
        tooltip = f"{point.label}: {x_label} {format_tick(point.x)}, {y_label} {format_tick(point.y)}"
        hue = "muted" if point.slot is None else hue_class(point.slot)
        tooltip += f", {point.note}" if point.note else ""
        parts.append(f'<g class="s {hue}"><title>{escape(tooltip)}</title>{mark}{ring}</g>')
    parts += _point_labels(frame, sorted(kept, key=lambda point: -point.weight)[:max_labels], kept)
    legend = "; ".join(word for word in ("ringed: on the Pareto front" if front else "", better) if word)
    parts.append(text(frame.x.end, frame.y.end - 10, legend, "soft", "end"))
    return svg(f"{title}: {y_label} over {x_label}, {len(kept)} points", size, parts)


def _valid_points(points: Sequence[tuple[float, float]], log_x: bool) -> list[tuple[float, float]]:
    valid = [(x, y) for x, y in points if is_number(x) and is_number(y) and (x > 0 or not log_x)]
    return subsample(valid, MAX_POINTS)


def _frame(
    points: Sequence[tuple[float, float]], x_label: str, y_label: str, size: tuple[int, int], right: int,
    extra_x: Sequence[float], extra_y: Sequence[float], log_x: bool = False, log_y: bool = False,
) -> Frame:  # fmt: skip
    width, height = size
    xs = limits([x for x, _ in points], extra_x, log_x)
    ys = limits([y for _, y in points], extra_y, log_y)
    log_x, log_y = log_x and is_log_range(xs, 2), log_y and is_log_range(ys, 2)
    ys = (ys[0] / 1.2, ys[1] * 1.2) if log_y else with_padding(*ys)
    xs = xs if log_x else with_padding(*xs, 0.02)
    return Frame(Scale(*xs, 58, width - right, log_x), Scale(*ys, height - 48, 34, log_y), x_label, y_label)


def _line(frame: Frame, series: Series, points: Sequence[tuple[float, float]]) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    tooltip = f"{series.label}: {format_tick(points[-1][1])} at {format_tick(points[-1][0])}" + (
        f", {series.note}" if series.note else ""
    )
    classes = f"s {'muted' if series.slot is None else hue_class(series.slot)}{' faint' if series.faint else ''}"
    marks = ""
    if series.slot is not None:
        shown = places if len(places) <= 25 else places[-1:]
        outlines = "".join(marker(series.slot, x, y, 3.5) for x, y in shown)
        marks = f'<path class="hit" d="{path}"/><path class="m" d="{outlines}"/>'
    elif len(places) == 1:
        marks = f'<path class="m" d="{marker(0, *places[0], 2)}"/>'
    return f'<g class="{classes}"><title>{escape(tooltip)}</title><path class="l" d="{path}"/>{marks}</g>'


def _end_labels(frame: Frame, labelled: Sequence[tuple[Series, Sequence[tuple[float, float]]]]) -> list[str]:
    """Labels at the right edge, each near its line's end and connected to it."""
    ends = [(frame.x(points[-1][0]), frame.y(points[-1][1])) for _, points in labelled]
    places = separate_labels([y for _, y in ends], 15, frame.y.end, frame.y.start)
    left = frame.x.end + 22
    parts = []
    for (series, _), (x, y), place in zip(labelled, ends, places, strict=True):
        slot = series.slot or 0
        near = frame.x.end - x < 60  # the connection of a line that ended early would cross other lines
        lead = f'<path class="lead" d="M{x:.1f} {y:.1f}L{left - 7:.1f} {place:.1f}"/>' if near else ""
        sign = f'<path class="m" d="{marker(slot, left, place, 4)}"/>'
        parts.append(f'<g class="s {hue_class(slot)}">{lead}{sign}</g>')
        parts.append(text(left + 9, place + 4, truncate(series.label, LABEL_LENGTH), title=series.label))
    return parts


def _notes(frame: Frame, labelled: Sequence[object], others: int, faint_label: str, any_faint: bool) -> list[str]:
    words = [f"dashed: {faint_label}"] if faint_label and any_faint else []
    words += [f"grey: {counted(others, 'other')}"] if others and labelled else []
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
    return line + text(x, y - 5, f"{label} {format_tick(value)}", "soft", anchor)


def _point_labels(frame: Frame, wanted: Sequence[Point], all_points: Sequence[Point]) -> list[str]:
    """Labels beside points. A label that would cover something is left out; the tooltip also has it."""
    occupied = [(frame.x(p.x) - 6, frame.y(p.y) - 6, frame.x(p.x) + 6, frame.y(p.y) + 6) for p in all_points]
    parts = []
    for point in wanted:
        words = truncate(point.label, LABEL_LENGTH)
        x, y, width = frame.x(point.x), frame.y(point.y), 6.6 * len(words)
        for left, base in ((x + 12, y + 4), (x - 12 - width, y + 4), (x - width / 2, y - 13), (x - width / 2, y + 22)):
            box = (left, base - 10, left + width, base + 3)
            inside = box[0] >= frame.x.start and box[2] <= frame.x.end + 38 and frame.y.end - 4 <= box[1]
            if inside and box[3] <= frame.y.start and not any(_overlap(box, other) for other in occupied):
                occupied.append(box)
                parts.append(text(left, base, words, title=point.label))
                break
    return parts


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
