"""Prints progress, tables and warnings: with rich on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from infogan_ray.evaluation.progress import duration as duration

PLAIN_EVERY_S = 10

errors = Console(stderr=True, highlight=False, emoji=False)


class TrainDisplay:
    """Shows a run's reports on stderr: a bar on a terminal, or a line every PLAIN_EVERY_S seconds elsewhere."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.first: tuple[float, int] | None = None
        self.printed, self.phase = 0.0, ""
        self.last: dict[str, Any] = {}
        self.bar: Progress | None = None
        if errors.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self.bar = Progress(*columns, console=errors, transient=False)
            self.task = self.bar.add_task("starting", total=steps, text="")

    def __enter__(self) -> TrainDisplay:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, report: dict[str, Any]) -> None:
        now = time.monotonic()
        step, phase = report.get("step", 0), report["phase"]
        self.last |= report
        if report.get("say"):
            errors.print(report["say"], soft_wrap=True, markup=False)
        if self.first is None and "d_loss" in report:
            self.first = (now, step)
        text = self._text(now, step) if "d_loss" in self.last else ""
        if self.bar:
            self.bar.update(self.task, description=phase, completed=step, text=text)
        elif phase != self.phase or now - self.printed >= PLAIN_EVERY_S:
            total = f"/{self.steps}" if self.steps else ""
            where = f": step {step}{total}" if "step" in report else ""
            errors.print(f"{phase}{where}{'  ' + text if text else ''}", soft_wrap=True)
            self.printed = now
        self.phase = phase

    def _text(self, now: float, step: int) -> str:
        seen = self.last
        bound = sum(value for name, value in seen.items() if name.startswith("train_mi/"))
        parts = [f"{seen['images_per_second']:,.0f} images/s", f"D {seen['d_loss']:.3f}", f"G {seen['g_loss']:.3f}"]
        parts.append(f"bound {bound:.2f} nats")
        if "mi_bound" in seen:
            parts.append(f"(measured {seen['mi_bound']:.2f})")
        if self.first and self.steps and step > self.first[1]:
            left = (now - self.first[0]) / (step - self.first[1]) * (self.steps - step)
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A rich table on a terminal; tab-separated lines with a header elsewhere."""
    if sys.stdout.isatty():
        shown = Table(title=escape(title), title_justify="left")
        for column in columns:
            shown.add_column(escape(column), overflow="fold")  # never cut a number
        for row in rows:
            shown.add_row(*map(escape, row))  # a class name may contain rich's markup, such as [b] or :smile:
        Console(emoji=False).print(shown)
        return
    for row in [columns, *rows]:
        print("\t".join(" ".join(cell.split()) for cell in row))


def size(count: float) -> str:
    return decimal(round(count))


def print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print a table or one JSON object on stdout."""
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    if not rows:
        print_progress(f"{title}: nothing yet")
        return

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
        return "-" if value is None else str(value)

    keys = list(dict.fromkeys(key for row in rows for key in row))
    names = [key if "." in key else key.replace("_", " ") for key in keys]
    table(title, names, [[text(row.get(key)) for key in keys] for row in rows])


def print_progress(line: str) -> None:
    """Print on stderr, so that stdout contains only results."""
    print(line, file=sys.stderr)


def warn(line: str) -> None:
    print_progress(f"infogan: {line}")


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are numbers or text."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
