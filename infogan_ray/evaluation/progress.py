"""Durations as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``2m05s``, or ``3h20m`` for an hour and more."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
