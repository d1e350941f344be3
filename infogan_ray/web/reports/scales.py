"""Linear and logarithmic axes: numbers to pixels, ticks, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A range larger than this multiple of the inner 95 % is cut to these: one huge loss would hide all other changes.
OUTLIER_SPAN = 8.0


@dataclass(frozen=True)
class Scale:
    """Maps ``low`` … ``high`` to the pixels ``start`` … ``end``. Values outside are clamped to the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self, count: int = 6) -> list[float]:
        return log_ticks(self.low, self.high, count) if self.log else linear_ticks(self.low, self.high, count)


def is_log_range(values: Sequence[float], factor: float = 10.0) -> bool:
    """Whether to use a logarithmic axis: all values are positive, and max / min is larger than ``factor``."""
    return bool(values) and min(values) > 0 and max(values) > factor * min(values)


def limits(values: Sequence[float], extra: Sequence[float] = (), log: bool = False) -> tuple[float, float]:
    """The smallest and largest number of an axis that shows all of ``extra``, and ``values`` without far outliers.

    The two are never equal. Without numbers the result is 0 … 1.
    """
    if not values and not extra:
        return 0.0, 1.0
    ordered = sorted(values)
    chosen = list(ordered)
    if len(ordered) >= 20:
        inner = ordered[len(ordered) // 40 : len(ordered) - len(ordered) // 40]
        if ordered[-1] - ordered[0] > OUTLIER_SPAN * (inner[-1] - inner[0]) > 0:
            chosen = inner
    chosen += extra
    low, high = min(chosen), max(chosen)
    if low == high:
        margin = abs(low) / 2 or 0.5
        return (low / 2, high * 2) if log else (low - margin, high + margin)
    return low, high


def with_padding(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """The range with margins on both sides, for a linear axis."""
    return low - share * (high - low), high + share * (high - low)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers in low … high."""
    rough = (high - low) / max(count, 1)
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * m for m in (1, 2, 2.5, 5) if power * m >= rough), power * 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) if step > 1e-9 else index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Ticks at 1-2-5, 1-3 or 1 times powers of ten: the densest choice with at most ``count`` ticks."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(found) <= count:
            return found if len(found) > 1 else linear_ticks(low, high, 3)
    return found[:: math.ceil(len(found) / count)]


def separate_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, within low … high. They are at least ``gap`` apart if there is enough space."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    places = [0.0] * len(wanted)
    at = low - gap
    for index in order:
        places[index] = at = max(wanted[index], at + gap)
    at = high + gap
    for index in reversed(order):
        places[index] = at = min(places[index], at - gap)
    return places


def subsample(points: Sequence[tuple[float, float]], max_points: int) -> list[tuple[float, float]]:
    """About ``max_points`` evenly spaced points, always with the last one."""
    step = math.ceil(len(points) / max_points)
    return list(points) if step <= 1 else [*points[: len(points) - 1 : step], points[-1]]
