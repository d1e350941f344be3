"""Parallel coordinates as inline SVG: one axis for each value, one line for each trial, coloured by its score.

The last axis also shows the score, so that no information depends on colour alone. Sizes are pixels of the view box.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from infogan_ray.web.reports.markup import escape, format_tick, format_value, is_number, truncate
from infogan_ray.web.reports.scales import Scale, is_log_range, limits, separate_labels
from infogan_ray.web.reports.svg import LABEL_LENGTH, empty_chart, svg, text

SHADES = 7
MAX_TICKS = 8  # labels on an axis; with more choices, only every second, third … has a label

CSS = """
.chart .p { fill: none; stroke: var(--shade, var(--mute, #9aa3ad)); stroke-linejoin: round; }
.chart .p.none { stroke-width: 1; opacity: .6; }
.chart .p.faint .l { stroke-dasharray: 5 4; opacity: .6; }
.chart .p .hit { stroke: transparent; stroke-width: 9; }
.chart .p:hover .l { stroke-width: 4; opacity: 1; }
.chart .axis { stroke: var(--ink, #222); stroke-width: 1.2; }
.chart .bar { fill: var(--shade); }
.h0 { --shade: #a9bccd; stroke-width: 1; } .h1 { --shade: #88acca; stroke-width: 1.2; }
.h2 { --shade: #6199c6; stroke-width: 1.4; } .h3 { --shade: #4084bb; stroke-width: 1.7; }
.h4 { --shade: #2a6aa8; stroke-width: 2; } .h5 { --shade: #1c4f8f; stroke-width: 2.3; }
.h6 { --shade: #102f6b; stroke-width: 2.8; }
@media (prefers-color-scheme: dark) {
.h0 { --shade: #3a5068; } .h1 { --shade: #436785; } .h2 { --shade: #4f82a8; } .h3 { --shade: #5f9cca; }
.h4 { --shade: #7bb7e0; } .h5 { --shade: #a4d0ee; } .h6 { --shade: #d6ecfa; }
}
"""


@dataclass(frozen=True)
class Line:
    """Values by axis. A line without a score is grey. ``faint``: dashed and grey. ``note``: added to its tooltip."""

    label: str
    values: Mapping[str, Any]
    score: float | None
    faint: bool = False
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis of numbers or of choices. It maps a value to pixels from the top."""

    name: str
    scale: Scale
    choices: tuple[str, ...] | None

    @classmethod
    def from_values(cls, name: str, values: Sequence[Any], top: float, bottom: float, log: bool = False) -> Axis:
        """An axis for these values. If not all values are numbers, they become choices.

        An axis of numbers is logarithmic if they span more than a factor of ten.
        """
        present = [value for value in values if not _missing(value)]
        if present and all(is_number(value) for value in present):
            log = is_log_range(present) or (log and is_log_range(present, 1))
            return cls(name, Scale(*limits(present, present, log), bottom, top, log), None)
        numbers = sorted({value for value in present if is_number(value)})
        others = sorted({format_value(value) for value in present if not is_number(value)})
        choices = tuple(dict.fromkeys([format_value(value) for value in numbers] + others))
        return cls(name, Scale(-0.5, len(choices) - 0.5, bottom, top), choices)

    def place(self, value: Any) -> float | None:
        if _missing(value):
            return None
        return self.scale(value if self.choices is None else self.choices.index(format_value(value)))

    def ticks(self, values: Sequence[Any]) -> list[tuple[float, str]]:
        """(pixel, text) of each tick: the values if they are few and far apart, otherwise round numbers."""
        if self.choices is not None:
            stride = -(-len(self.choices) // MAX_TICKS)
            return [(self.scale(index), self.choices[index]) for index in range(0, len(self.choices), stride)]
        distinct = sorted({float(value) for value in values if not _missing(value)})
        gaps = [abs(self.scale(b) - self.scale(a)) for a, b in pairwise(distinct)]
        ticks = distinct if len(distinct) <= 6 and all(gap >= 16 for gap in gaps) else self.scale.ticks(MAX_TICKS)
        return [(self.scale(tick), format_tick(tick)) for tick in ticks]


def parallel_coordinates(
    title: str, lines: Sequence[Line], axes: Sequence[str], score_label: str, *, names: Mapping[str, str] | None = None,
    log: Collection[str] = (), faint_label: str = "", max_labels: int = 6, height: int = 380,
) -> str:  # fmt: skip
    """The chart. Lines with large scores are on top, and the best ``max_labels`` lines have labels.

    ``axes``: keys of the lines' values, in order. ``names``: labels of axes, by key. ``log``: axes that are always
    logarithmic.
    """
    spacing = max(110.0, 700 / max(len(axes), 1))
    left, top, bottom = 90.0, 62.0, height - 26.0
    width = int(left + spacing * len(axes) + 120)
    if not lines or not axes:
        return empty_chart(title, "no values to show", (880, height))
    scaled_axes = [
        Axis.from_values(name, [line.values.get(name) for line in lines], top, bottom, name in log) for name in axes
    ]
    scores = [line.score for line in lines if is_number(line.score)]
    if scores:
        scaled_axes.append(Axis.from_values(score_label, scores, top, bottom))
    columns = [left + spacing * index for index in range(len(scaled_axes))]
    order = sorted(lines, key=lambda line: (not line.faint, _finite(line.score)))
    parts = [_line(line, scaled_axes, columns, axes, bool(scores)) for line in order]
    if scores:
        parts += _bar(columns[-1], scaled_axes[-1].scale)
        best = sorted(
            (line for line in lines if is_number(line.score) and not line.faint), key=lambda line: -_finite(line.score)
        )
        parts += _labels(best[:max_labels], columns[-1], scaled_axes[-1])
    for index, (axis, x) in enumerate(zip(scaled_axes, columns, strict=True)):
        values = scores if scores and index == len(axes) else [line.values.get(axis.name) for line in lines]
        parts.append(f'<path class="axis" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        for y, words in axis.ticks(values):
            parts.append(f'<path class="axis" d="M{x - 4:.1f} {y:.1f}H{x:.1f}"/>')
            parts.append(text(x - 7, y + 4, _abbreviate(words), "soft", "end", title=words))
        name = (names or {}).get(axis.name, axis.name) + (" (log)" if axis.scale.log else "")
        parts.append(text(x, 34 if index % 2 else 50, truncate(name, 30), "", "middle", title=axis.name))
    legend = [f"darker and thicker: better {score_label}"] if scores else []
    legend += [f"dashed: {faint_label}"] if faint_label and any(line.faint for line in lines) else []
    parts.append(text(width - 8, 14, "; ".join(legend), "soft", "end"))
    return svg(f"{title}: {len(lines)} lines over {', '.join(axes)}", (width, height), parts)


def shade(score: float, scale: Scale) -> int:
    """The shade 0 … SHADES - 1 of a score, from the worst to the best."""
    share = (score - scale.low) / (scale.high - scale.low)
    return min(SHADES - 1, max(0, int(share * SHADES)))


def _line(
    line: Line, scaled_axes: Sequence[Axis], columns: Sequence[float], axes: Sequence[str], scored: bool
) -> str:  # fmt: skip
    values = [line.values.get(name) for name in axes] + ([line.score] if scored else [])
    path, pen = "", "M"
    for axis, x, value in zip(scaled_axes, columns, values, strict=True):
        y = axis.place(value)
        if y is None:
            pen = "M"
            continue
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
    has_shade = is_number(line.score) and not line.faint
    hue = f"h{shade(_finite(line.score), scaled_axes[-1].scale)}" if has_shade else "none"
    classes = f"p {hue}{' faint' if line.faint else ''}"
    tooltip = f"{line.label}: " + ", ".join(f"{name} {format_value(line.values.get(name))}" for name in axes)
    tooltip += f", score {format_value(line.score)}" if is_number(line.score) else ""
    tooltip += f", {line.note}" if line.note else ""
    hit = f'<path class="hit" d="{path}"/>'
    return f'<g class="{classes}"><title>{escape(tooltip)}</title><path class="l" d="{path}"/>{hit}</g>'


def _bar(x: float, scale: Scale) -> list[str]:
    """The legend of shades beside the score's axis."""
    step = (scale.start - scale.end) / SHADES
    return [
        f'<rect class="bar h{index}" x="{x + 2:.1f}" y="{scale.start - step * (index + 1):.1f}" width="6" '
        f'height="{step:.1f}"/>'
        for index in range(SHADES)
    ]  # fmt: skip


def _labels(best: Sequence[Line], x: float, axis: Axis) -> list[str]:
    wanted = [axis.place(line.score) or 0.0 for line in best]
    places = separate_labels(wanted, 15, axis.scale.end, axis.scale.start)
    parts = []
    for line, at, place in zip(best, wanted, places, strict=True):
        parts.append(f'<path class="axis" d="M{x + 8:.1f} {at:.1f}L{x + 20:.1f} {place:.1f}"/>')
        parts.append(text(x + 23, place + 4, truncate(line.label, LABEL_LENGTH), title=line.label))
    return parts


def _abbreviate(words: str) -> str:
    """A text of at most 14 characters. A long text keeps both ends, because many texts have the same beginning."""
    return words if len(words) <= 14 else f"{words[:5]}…{words[-8:]}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not is_number(value))


def _finite(score: float | None) -> float:
    return score if score is not None and is_number(score) else float("-inf")
