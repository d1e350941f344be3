"""Shows a running search: a live table on a terminal; elsewhere a line for each event, and progress between them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infogan_ray.cli import display
from infogan_ray.data.progress import Pace, counted
from infogan_ray.evaluation.metrics import HEADLINES, LABELS, REGISTRY, SEARCH, needs

SHOWN = tuple(name for name in HEADLINES if not needs(name, LABELS) and REGISTRY[name].measured != SEARCH)
QUIET_S = 30.0  # without a terminal, the progress is printed if no line came for this long
MAX_ROWS = 20  # trials in the table; one line counts the others
ENDED = ("finished", "stopped", "failed", "diverged", "ended", "interrupted")


class SearchDisplay:
    """A search's listener that shows its trials on stderr. ``budget``: images of a trial that is not stopped."""

    def __init__(self, trials: int, budget: int, rungs: Sequence[int]) -> None:
        self.trials, self.budget, self.rungs = trials, budget, rungs
        self.rows: dict[int, dict[str, Any]] = {}
        self.started, self.pace = time.monotonic(), Pace()
        self.printed = self.started
        self.live = Live(console=display.errors, get_renderable=self.render, refresh_per_second=2)
        self.seen_before: dict[int, int] = {}

    def __enter__(self) -> SearchDisplay:
        if display.errors.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live.is_started:
            self.live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if "trial" in event:
            number = event["trial"]
            row = self.rows.setdefault(number, {"event": "starting", "images": 0})
            row.update({name: value for name, value in event.items() if name != "say"})
            self.seen_before.setdefault(number, row["images"])  # images from before this attempt
            self.pace.report(sum(row["images"] - self.seen_before[number] for number, row in self.rows.items()))
        now = time.monotonic()
        line = event.get("say")
        if not line and self.rows and not self.live.is_started and now - self.printed >= QUIET_S:
            line = self.heading()
        if line:
            display.print_above(f"{display.duration(now - self.started)}  {line}")
            self.printed = now

    def render(self) -> Group:
        table = Table(title=self.heading(), title_justify="left", caption="best trial first", caption_justify="left")
        for name in ("trial", "state", "rung", "images", *(REGISTRY[name].heading for name in SHOWN)):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        order = sorted(self.rows, key=lambda n: (-(self.rows[n].get("mi_fraction") or -1.0), n))
        for number in order[:MAX_ROWS]:
            table.add_row(*self.cells(number, self.rows[number]))
        hidden = len(order) - MAX_ROWS
        return Group(table, Text(f"and {hidden} more")) if hidden > 0 else Group(table)

    def cells(self, number: int, row: Mapping[str, Any]) -> list[str]:
        state = {"progress": "running", "score": "running", "ended": "finished"}.get(row["event"], row["event"])
        rung = sum(row["images"] >= level for level in self.rungs)
        shown = [format(row[name], REGISTRY[name].form) if row.get(name) is not None else "" for name in SHOWN]
        share = f"{min(row['images'] / self.budget, 1):.0%}"
        return [str(number), state, f"{rung}/{len(self.rungs)}", f"{row['images']:,} ({share})", *shown]

    def heading(self) -> str:
        ended = sum(row["event"] in ENDED for row in self.rows.values())
        stopped = sum(row["event"] == "stopped" for row in self.rows.values())
        words = [f"{ended} of {counted(self.trials, 'trial')} ended, {stopped} of them stopped early"]
        rest = sum(max(self.budget - row["images"], 0) for row in self.rows.values() if row["event"] not in ENDED)
        rest += self.budget * (self.trials - len(self.rows))
        if (left := self.pace.seconds_for(rest)) is not None:
            words.append(f"{self.pace.speed:,.0f} images/s, {display.duration(left)} left at most")
        return "; ".join(words)
