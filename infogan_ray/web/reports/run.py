"""The report of a run: what each code does, how training went and how to repeat it, in one HTML file.

A run in any state has a report. What is missing or broken leaves a gap and a line about it.
"""

from __future__ import annotations

import shlex
import time
from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import HEADLINES, LABELLED, REGISTRY, SORTING, of_group
from infogan_ray.evaluation.texts import values_text
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.publish import check_content
from infogan_ray.training.train_command import train_command
from infogan_ray.web.reports.charts import SLOTS, Series, line_chart
from infogan_ray.web.reports.markup import escape, is_number
from infogan_ray.web.reports.page import Cell, command, details, figure, page, paragraph, table, tiles
from infogan_ray.web.reports.pictures import PictureBudget, model_pictures, picture
from infogan_ray.web.reports.recipe import LOCATION_FIELDS, flatten_fields, pairs, preset_fields
from infogan_ray.web.reports.run_findings import RunFindings, read_run

MAX_SAMPLE_PICTURES = 8


def write_run_report(run: RunDirectory) -> None:
    """Write ``report.html`` into the run's folder. Raises UserError where there is no run, and StorageError."""
    run.folder.write(run.REPORT, run_report(run).encode())


def run_report(run: RunDirectory) -> str:
    """The report as one HTML page that refers to nothing outside it. Raises UserError where there is no run."""
    found = read_run(run)
    room = PictureBudget()
    sections = [
        ("codes", "What each code does", codes(found, room)),
        ("measured", "What was measured", measured(found)),
        ("labels", "Categories and labels", labels(found)),
        ("curves", "Curves", curves(found)),
        ("time", "Samples over time", samples_over_time(found, room)),
        ("again", "Configuration, and how to run it again", reproduction(found)),
    ]
    return page(f"Run {run.name}", sections, headline(found))


def headline(found: RunFindings) -> str:
    status, latest, uri = found.status, found.latest, shlex.quote(found.run.folder.uri)
    over = status["state"] == "finished"
    parts = [f"<h1>Run {escape(found.run.name)}</h1>"]
    said = f"{status['state']} at step {status['step']:,}"
    said += f" after {status['restarts']} restarts of workers" if status.get("restarts") else ""
    said += f": {status['message']}" if status.get("message") else ""
    parts.append(paragraph(f"{said}.", "lead"))
    ceilings = _ceilings(found)
    facts = []
    for metric in (REGISTRY[name] for name in HEADLINES if is_number(latest.get(name))):
        note = metric.direction
        if metric.name == "mi_bound" and ceilings:
            note = f"of {sum(ceilings.values()):.3f}"
        elif is_number(data := latest.get(f"{metric.name}_data")):
            note = f"two halves of the data: {metric.text(data)}; {note}"
        facts.append((metric.title, metric.text(latest[metric.name]), note))
    if speeds := sorted(value for _, value in found.curve("images_per_second")):
        facts.append(("images a second", f"{speeds[len(speeds) // 2]:,.0f}", "the median"))
    parts.append(tiles(facts) if facts else paragraph("Nothing has been measured yet."))
    if over:
        best = f" The model is that of step {status['best']:,}." if is_number(status.get("best")) else ""
        parts.append(paragraph(f"Fetch it and look closer.{best}"))
        parts.append(command(f"infogan pull {uri} {shlex.quote(found.run.name)}-model\ninfogan explore {uri}"))
    else:
        parts.append(paragraph("This is how things stand until now; this writes the page anew:"))
        parts.append(command(f"infogan report {uri}"))
    if is_number(status.get("time")):
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(status["time"]))
        parts.append(paragraph(f"The run was last heard of on {moment} UTC.", "soft"))
    return "".join(parts) + "".join(paragraph(note, "soft") for note in found.notes)


def codes(found: RunFindings, room: PictureBudget) -> str:
    latents, latest, ceilings = found.latents, found.latest, _ceilings(found)
    parts, notes = [], {}
    if latents is not None:
        rows = []
        for name, code in latents.items():
            bound = latest.get(f"mi/{name}")
            called = found.names.get(name, "")
            prior = f"{code.kind}={code.text()}"
            rows.append([name, called, prior, bound if is_number(bound) else None, ceilings[name]])
            measured = [f"bound {bound:.2f} of {ceilings[name]:.2f} nats"] if is_number(bound) else []
            notes[name] = ", ".join([*([called] if called else []), *measured])
        parts.append(table(["code", "name", "prior", "bound (nats)", "ceiling (nats)"], rows, sortable=False))
    if found.run.model.entries():
        return "".join(parts) + model_pictures(found.run.model, found.run.name, notes, room)
    names = _picture_names(found.run.traversals)
    last = max((name[: len(step_name(0))] for name in names), default="")
    figures = [
        _picture(found.run.traversals, name, name.removeprefix(f"{last}_").removesuffix(".png"), _step_text(last), room)
        for name in names
        if name.startswith(last)
    ]
    if not figures:
        figures = [paragraph("There are no pictures yet: the first checkpoint draws some.")]
    return "".join(parts) + f'<div class="pictures">{"".join(figures)}</div>'


def measured(found: RunFindings) -> str:
    """Every metric of the registry that has a value."""
    latest = found.latest
    rows = [
        [metric.name, Cell(metric.text(latest[metric.name]), latest[metric.name]), metric.direction, metric.sentence]
        for metric in REGISTRY.values()
        if is_number(latest.get(metric.name))
    ]
    if not rows:
        return paragraph("Nothing has been measured yet.")
    return table(["metric", "value", "direction", "what it is"], rows, sortable=False)


def labels(found: RunFindings) -> str:
    counts = found.latest.get("confusion")
    if not (isinstance(counts, list) and counts and all(isinstance(row, list) and row for row in counts)):
        return paragraph("Not measured: the data has no labels, the model no categorical code, or it is too early.")
    latest, total = found.latest, sum(map(sum, counts)) or 1
    headings: list[str | Cell] = ["category", *_label_names(found.latest, len(counts[0])), "share"]
    rows = []
    for category, row in enumerate(counts):
        whole = sum(row) or 1
        cells = [
            Cell(str(count), count, markup=f'<span class="heat" style="--share: {count / whole:.3f}">{count:,}</span>')
            for count in map(int, row)
        ]
        rows.append([category, *cells, Cell(f"{sum(row) / total:.1%}", sum(row))])
    words = (
        f"Test images by the category that {latest.get('clustering_code', 'the code')} puts them in and their label, "
    )
    words += "which training never saw; the last column is how much each category is used."
    return paragraph(words) + table(headings, rows) + paragraph(f"{values_text(latest, of_group(LABELLED))}.", "soft")


def _label_names(latest: dict[str, Any], count: int) -> list[str]:
    names = latest.get("classes")
    if isinstance(names, list) and len(names) >= count:
        return [str(name) for name in names[:count]]
    return [f"label {label}" for label in range(count)]


def curves(found: RunFindings) -> str:
    if not found.rows:
        return paragraph("Nothing has been logged yet.")
    ceilings = _ceilings(found)
    names = [key[3:] for key in dict.fromkeys(key for row in found.rows for key in row) if key.startswith("mi/")]
    bounds = []
    for slot, name in enumerate(names):
        colour, called = slot if slot < SLOTS else None, found.names.get(name, name)
        bounds.append(Series(called, found.curve(f"mi/{name}"), colour, note=_ceiling_note(ceilings.get(name))))
    small: list[tuple[str, list[tuple[str, str]], str]] = [
        (title, [(metric.name, metric.title) for metric in of_group(group) if not metric.unit], "share")
        for title, group in (("Agreement with labels", LABELLED), ("Sorting of real images, without labels", SORTING))
    ]
    small += [
        ("Losses of discriminator and generator", [("d_loss", "D"), ("g_loss", "G")], "loss"),
        ("Entropy of learned priors", [(f"prior/{n}/entropy", found.names.get(n, n)) for n in names[:SLOTS]], "nats"),
        ("Consistency of Q on real images", [("consistency_loss", "term")], "nats"),
        ("Penalty on the discriminator's gradient at real images", [("r1_penalty", "R1")], "loss"),
        ("Dead categories that began anew", [("restarted", "categories")], "a step"),
        (
            "Which code the images of a pair share",
            [("contrastive_loss", "loss"), ("contrastive_accuracy", "right")], "nats, share",
        ),
        (
            "How real the discriminator takes images for, and how many it judges rightly",
            [("d_real", "real"), ("d_fake", "made"), ("d_accuracy", "right")], "probability, share",
        ),
        ("Gradients", [("d_grad_norm", "D"), ("g_grad_norm", "G")], "norm"),
        ("Throughput", [("images_per_second", "rate")], "images a second"),
    ]  # fmt: skip
    parts = []
    highest = max((ceilings[name] for name in names if name in ceilings), default=None)
    chart = line_chart(
        "The bound of each code", bounds, "step", "nats", ceiling=highest, ceiling_label="the highest ceiling"
    )
    parts.append(
        figure(chart, "L_I by code, measured at each checkpoint on fresh codes. Hover for each one's ceiling.")
    )
    if errors := found.curve("clustering_error"):
        chart = line_chart("Clustering error", [Series("error", errors, 0)], "step", "clustering error")
        parts.append(figure(chart, "By labels, which training never saw; small is good."))
    charts = []
    for title, lines, unit in small:
        series = [Series(label, found.curve(name), slot) for slot, (name, label) in enumerate(lines)]
        if not any(one.points for one in series):  # a term that is off
            continue
        charts.append(figure(line_chart(title, series, "step", unit, size=(520, 260)), title))
    return "".join(parts) + f'<div class="pair">{"".join(charts)}</div>'


def samples_over_time(found: RunFindings, room: PictureBudget) -> str:
    names = _picture_names(found.run.samples)
    if not names:
        return paragraph("There are none yet: every checkpoint draws some.")
    count = min(MAX_SAMPLE_PICTURES, len(names))
    chosen = [names[round(place * (len(names) - 1) / max(count - 1, 1))] for place in range(count)]
    figures = [_picture(found.run.samples, name, _step_text(name), "", room) for name in chosen]
    said = f"{count} of {len(names)} checkpoints; the same noise and codes each time. All lie in {found.run.samples}."
    return paragraph(said, "soft") + f'<div class="pictures">{"".join(figures)}</div>'


def reproduction(found: RunFindings) -> str:
    parts = []
    if found.config is not None:
        parts += [paragraph("Start it anew, with another --name:"), command(train_command(found.config))]
        if found.status["state"] != "finished":
            parts += [paragraph("Continue with it:"), command(f"{train_command(found.config)} --resume")]
    fields = flatten_fields(found.saved.get("run") or {})
    base = preset_fields(fields.get("preset"))
    own = {key: value for key, value in fields.items() if key not in LOCATION_FIELDS and base.get(key) != value}
    parts += ["<h3>What differs from the preset</h3>", pairs(own) if own else paragraph("Nothing.")]
    parts.append(details("All fields", pairs(fields)) if fields else "")
    environment = found.saved.get("environment")
    if isinstance(environment, dict):
        parts += ["<h3>Made with</h3>", pairs(environment)]
    return "".join(parts)


def _ceilings(found: RunFindings) -> dict[str, float]:
    """The largest bound in nats that each code can reach; empty if the configuration cannot be read."""
    latents = found.latents
    return {} if latents is None else {name: code.ceiling(latents.sigma) for name, code in latents.items()}


def _ceiling_note(ceiling: float | None) -> str:
    return "" if ceiling is None else f"ceiling {ceiling:.3f} nats"


def _picture_names(folder: Storage) -> list[str]:
    """The names of the pictures in a folder by rising step; none if it cannot be read."""
    try:
        return sorted(entry.name for entry in folder.entries() if entry.name.endswith(".png"))
    except (UserError, StorageError):
        return []


def _step_text(name: str) -> str:
    digits = name.removeprefix("step_")[:8]
    return f"step {int(digits):,}" if digits.isdigit() else name


def _picture(folder: Storage, name: str, title: str, more: str, room: PictureBudget) -> str:
    try:
        content = folder.read(name)
        check_content(name, content)
    except (UserError, FileNotFoundError, StorageError) as error:
        return paragraph(str(error), "soft")
    if len(content) > room.left:
        return paragraph(f"{name} has no room in this page; it is in {folder}", "soft")
    room.left -= len(content)
    return picture(content, title, more, f"{title}: a grid of generated images {more}".strip())
