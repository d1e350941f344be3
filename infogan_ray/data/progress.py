"""Progress as text: counts, durations, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0  # the speed is that of this time
MIN_INTERVALS = 3  # if reports come less often, the speed is that of this many intervals
SPACING_S = 1.0  # a later report replaces one that is nearer


def counted(count: int, noun: str, plural: str = "") -> str:
    """``1 worker``, ``1,200 workers``. ``plural``: the plural if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """``2m05s``, or ``3h20m`` for an hour and more."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class Pace:
    """The speed of some work in the last minute, and the time that the rest takes at this speed.

    Pauses for other work, such as evaluations, do not change the speed. The time left has their share: per unit of
    work, as much as between the last two pauses.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: deque[tuple[float, float]] = deque()
        """Seconds without pauses, and the work that was done then."""
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._before_pause = 0.0
        self._pause_s_per_unit = 0.0

    def report(self, done: float) -> None:
        """Report the work that is done, which ends a pause. Less work than before begins the measurement again."""
        now = self._clock()
        if not self._reports or done < self._reports[-1][1]:
            self._reports.clear()
            self._before_pause = done
        if self._paused_at is not None:
            pause, self._paused_at = now - self._paused_at, None
            self._paused_s += pause
            if done > self._before_pause:
                self._pause_s_per_unit = pause / (done - self._before_pause)
            self._before_pause = done
        worked = now - self._paused_s
        if len(self._reports) > 1 and worked - self._reports[-2][0] < SPACING_S:
            self._reports.pop()
        self._reports.append((worked, done))
        while len(self._reports) > MIN_INTERVALS + 1 and self._reports[1][0] <= worked - WINDOW_S:
            self._reports.popleft()

    def pause(self) -> None:
        """Other work starts now. It lasts until the next report."""
        self._paused_at = self._clock() if self._paused_at is None else self._paused_at

    @property
    def speed(self) -> float:
        """Units of work a second; 0 if it is not known yet."""
        if not self._reports:
            return 0.0
        (began, before), (ended, done) = self._reports[0], self._reports[-1]
        return (done - before) / (ended - began) if done > before and ended > began else 0.0

    def seconds_for(self, rest: float) -> float | None:
        """The time that ``rest`` units will take, with pauses; None if the speed is not known yet."""
        return rest * (1 / self.speed + self._pause_s_per_unit) if self.speed else None

    def left(self, total: float) -> str:
        """``2m05s left`` until ``total`` units are done; an empty text if the speed is not known yet."""
        seconds = self.seconds_for(max(0.0, total - self._reports[-1][1])) if self._reports else None
        return "" if seconds is None else f"{duration(seconds)} left"
