"""What commands print: a run's progress and summary, tables, warnings. rich on a terminal, plain lines elsewhere."""

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
    """Shows the reports of a run on stderr: a bar that moves on a terminal, a line every ten seconds elsewhere."""

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


def bound_text(metrics: dict[str, Any], ceilings: dict[str, float]) -> str:
    return ", ".join(f"{name} {metrics[f'mi/{name}']:.3f} of {top:.3f}" for name, top in ceilings.items())


def clustering_text(metrics: dict[str, Any]) -> str:
    if "clustering_error" not in metrics:
        return "not measured: the data has no labels, or the model no categorical code"
    return (
        f"{metrics['clustering_error']:.1%} ({metrics['clustering_code']}; one-to-one accuracy "
        f"{metrics['clustering_acc_hungarian']:.1%}, NMI {metrics['nmi']:.3f}, ARI {metrics['ari']:.3f})"
    )


def category_rows(metrics: dict[str, Any], most: int = 3) -> list[list[str]]:
    """[code=category, test images, what they are] of what ``measure_clustering`` found: the ``most`` common labels that
    are a twentieth or more, and the first in any case, called as ``metrics["classes"]`` says, if it is there."""
    rows = []
    for category, counts in enumerate(metrics.get("confusion", [])):
        names = metrics.get("classes") or range(len(counts))
        total = sum(counts)
        common = sorted(zip(counts, names, strict=False), key=lambda pair: -pair[0])[:most]
        least = min(total / 20, common[0][0])
        told = [f"{' '.join(str(name).split())} {n / total:.1%}" for n, name in common if n and n >= least]
        rows.append([f"{metrics['clustering_code']}={category}", f"{total:,}", ", ".join(told) or "-"])
    return rows


def quality_text(metrics: dict[str, Any]) -> str:
    if "swd" not in metrics:
        return "not measured: no images of the data to compare with"
    return f"SWD {metrics['swd']:.1f} to the data (two halves of the data: {metrics['swd_data']:.1f}); small is good"


def fidelity_lines(scores: dict[str, Any]) -> list[str]:
    """The figures of ``fidelity.measure_fidelity``."""
    return [
        f"on the features of a classifier of these labels (right on {scores['classifier_accuracy']:.1%} of held-out "
        f"images), {scores['images']:,} drawn images and as many real ones:",
        f"  Fréchet distance {scores['frechet_distance']:.3f} (two halves of the data: "
        f"{scores['frechet_distance_data']:.3f}), kernel distance {scores['kernel_distance']:.4f} "
        f"({scores['kernel_distance_data']:.4f}); small is good",
        f"  precision {scores['precision']:.3f} ({scores['precision_data']:.3f}), recall {scores['recall']:.3f} "
        f"({scores['recall_data']:.3f}); large is good",
    ]


def fid_text(scores: dict[str, Any]) -> str:
    """The figures of ``fidelity.measure_fid``."""
    return (
        f"FID {scores['fid']:.2f} (two halves of the data: {scores['fid_data']:.2f}), KID {scores['kid']:.5f} "
        f"({scores['kid_data']:.5f}), {scores['images']:,} drawn images and as many real ones; Inception's weights "
        f"have the SHA-256 {scores['weights_sha256'][:12]}; small is good"
    )


def sorting_text(metrics: dict[str, Any]) -> str:
    if "q_information" not in metrics:
        return "not measured: the model has no categorical code, or there are no images"
    scores = (f"{name} {value:.3f}" for name, value in metrics.items() if name.startswith("q_"))
    return ", ".join(scores) + "; large is good, 1 at most"


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A rich table on a terminal; tab-separated lines with a header elsewhere."""
    if sys.stdout.isatty():
        shown = Table(title=escape(title), title_justify="left")
        for column in columns:
            shown.add_column(escape(column), overflow="fold")  # a figure that is cut is none
        for row in rows:
            shown.add_row(*map(escape, row))  # a class may be called [b] or :smile:
        Console(emoji=False).print(shown)
        return
    for row in [columns, *rows]:
        print("\t".join(" ".join(cell.split()) for cell in row))


def size(count: float) -> str:
    return decimal(round(count))


def print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """On stdout: a table, or one JSON object."""
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

    names = [name if "." in name else name.replace("_", " ") for name in rows[0]]
    table(title, names, [[text(value) for value in row.values()] for row in rows])


def print_progress(line: str) -> None:
    """On stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr)


def warn(line: str) -> None:
    print_progress(f"infogan: {line}")


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are numbers or text."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float, str))}
