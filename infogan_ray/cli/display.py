"""Shows progress and tables: with rich on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from infogan_ray.cli.output import print_json, print_progress, results
from infogan_ray.data.progress import Pace
from infogan_ray.data.progress import duration as duration
from infogan_ray.evaluation import texts
from infogan_ray.storage.visible_text import printable

PLAIN_EVERY_S = 10

# A notebook shows stderr as plain lines: it has no cursor that could move.
_not_a_terminal = False if Console().is_jupyter else None
errors = Console(stderr=True, highlight=False, emoji=False, force_jupyter=False, force_terminal=_not_a_terminal)


class TrainDisplay:
    """Shows a run's reports on stderr: a bar on a terminal, or a line every PLAIN_EVERY_S seconds elsewhere.

    ``epochs``: the run's number of epochs, if the user has given it. The number of steps comes with the first reports.
    """

    def __init__(self, epochs: int | None = None) -> None:
        self.epochs, self.steps = epochs, None
        self.pace = Pace()
        self.printed, self.phase = 0.0, ""
        self.last: dict[str, Any] = {}
        self.bar: Progress | None = None
        if errors.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self.bar = Progress(*columns, console=errors, transient=False)
            self.task = self.bar.add_task("starting", total=None, text="")

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
        self.steps = report.get("total_steps", self.steps)
        if "best_step" not in report:  # else its metrics are those of an earlier step, the best checkpoint's
            self.last |= report
            if "d_loss" in report:
                self.pace.report(step)
                if phase != "training":
                    self.pace.pause()
        if report.get("say"):
            errors.print(report["say"], soft_wrap=True, markup=False)
        text = self._text() if "d_loss" in self.last else ""
        if self.bar:
            self.bar.update(self.task, description=phase, total=self.steps, completed=step, text=text)
        elif phase != self.phase or now - self.printed >= PLAIN_EVERY_S:
            total = f"/{self.steps}" if self.steps else ""
            where = f": step {step}{total}" if "step" in report else ""
            print_above(f"{phase}{where}{'  ' + text if text else ''}")
            self.printed = now
        self.phase = phase

    def _text(self) -> str:
        seen = self.last
        bound = sum(value for name, value in seen.items() if name.startswith("train_mi/"))
        parts = [f"epoch {seen['epoch']:.1f} of {self.epochs}"] if self.epochs else []
        parts += [f"{seen['images_per_second']:,.0f} images/s", f"D {seen['d_loss']:.3f}", f"G {seen['g_loss']:.3f}"]
        parts.append(f"bound {bound:.2f} nats")
        if "mi_bound" in seen:
            parts.append(f"(measured {seen['mi_bound']:.2f})")
        if self.steps:
            parts.append(self.pace.left(self.steps))
        return "  ".join(filter(None, parts))


def print_above(line: str) -> None:
    """Print a line on stderr, above a progress bar or table that is updated."""
    errors.print(printable(line), soft_wrap=True, markup=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A rich table on a terminal; tab-separated lines with a header elsewhere."""
    rows = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    if results().isatty():
        shown = Table(title=escape(printable(title)), title_justify="left")
        for column in columns:
            shown.add_column(escape(column), overflow="fold")  # never cut a number
        for row in rows:
            shown.add_row(*map(escape, row))  # a class name may contain rich's markup, such as [b] or :smile:
        Console(file=results(), emoji=False).print(shown)
        return
    for row in [columns, *rows]:
        print("\t".join(row), file=results())


def print_categories(metrics: dict[str, Any]) -> None:
    """A table of the labels in each category, if they were counted."""
    if rows := texts.category_rows(metrics):
        table("labels in each category", ["category", "test images", "labels"], rows)


def size(count: float) -> str:
    return decimal(round(count))


def print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print a table or one JSON object on stdout."""
    if as_json:
        print_json({"rows": rows})
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


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are numbers or text."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
