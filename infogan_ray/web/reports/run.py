"""The report of a run as one HTML file: the effect of each code, the training curves, and the command to repeat it.

A run in any state can have a report. Missing or broken data leaves a gap and a note.
"""

from __future__ import annotations

import time
from typing import Any

from infogan_ray import UserError
from infogan_ray.data.progress import counted
from infogan_ray.evaluation.diagnosis import failures
from infogan_ray.evaluation.metrics import HEADLINES, LABELLED, REGISTRY, SORTING, of_group
from infogan_ray.evaluation.texts import (
    CLUSTERING_ERROR,
    NOT_MEASURED,
    baseline_text,
    compared_error_text,
    values_text,
    why_no_agreement,
)
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.storage.visible_text import shell_word, to_utf8
from infogan_ray.training.model_card import changes_note
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
    """Write ``report.html`` into the run's folder. Raises UserError if the folder is not a run, and StorageError."""
    run.folder.write(run.REPORT, to_utf8(run_report(run)))


def run_report(run: RunDirectory) -> str:
    """The report as one self-contained HTML page. Raises UserError if the folder is not a run."""
    found = read_run(run)
    budget = PictureBudget()
    sections = [
        ("codes", "What each code does", codes(found, budget)),
        ("measured", "Metrics", measured(found)),
        ("labels", "Categories and labels", labels(found)),
        ("curves", "Curves", curves(found)),
        ("time", "Samples over time", samples_over_time(found, budget)),
        ("again", "Configuration, and how to run it again", reproduction(found)),
    ]
    return page(f"Run {run.name}", sections, headline(found))


def headline(found: RunFindings) -> str:
    status, latest, uri = found.status, found.latest, shell_word(found.run.folder.uri)
    over = status["state"] == "finished"
    parts = [f"<h1>Run {escape(found.run.name)}</h1>"]
    state = f"{status['state']} at step {status['step']:,}"
    state += f" after {counted(status['restarts'], 'restart')} of workers" if status.get("restarts") else ""
    state += f": {status['message']}" if status.get("message") else ""
    parts.append(paragraph(f"{state}.", "lead"))
    parts += [paragraph(text, "lead") for text in failures(latest, found.ceilings)]
    ceilings = found.ceilings
    facts = []
    for metric in (REGISTRY[name] for name in HEADLINES if is_number(latest.get(name))):
        note = metric.direction
        if metric.name == "mi_bound" and ceilings:
            note = f"of {sum(ceilings.values()):.3f}"
        elif is_number(data := latest.get(f"{metric.name}_data")):
            note = f"two halves of the data: {metric.text(data)}; {note}"
        elif metric.name == CLUSTERING_ERROR and (comparison := compared_error_text(latest)):
            note = f"{comparison}; {note}"
        facts.append((metric.title, metric.text(latest[metric.name]), note))
    if speeds := sorted(value for _, value in found.curve("images_per_second")):
        facts.append(("images a second", f"{speeds[len(speeds) // 2]:,.0f}", "the median"))
    parts.append(tiles(facts) if facts else paragraph("Nothing has been measured yet."))
    if over:
        best = f" The model is from step {status['best']:,}." if is_number(status.get("best")) else ""
        parts.append(paragraph(f"These commands download the model and open the explorer.{best}"))
        parts.append(command(f"infogan pull {uri} {shell_word(found.run.name)}-model\ninfogan explore {uri}"))
    else:
        parts.append(paragraph("The results are preliminary. This command updates the report:"))
        parts.append(command(f"infogan report {uri}"))
    if is_number(status.get("time")):
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(status["time"]))
        parts.append(paragraph(f"Last status of the run: {moment} UTC.", "soft"))
    return "".join(parts) + "".join(paragraph(note, "soft") for note in found.notes)


def codes(found: RunFindings, budget: PictureBudget) -> str:
    latents, latest, ceilings = found.latents, found.latest, found.ceilings
    parts, notes = [], {}
    if latents is not None:
        rows = []
        for name, code in latents.items():
            bound = latest.get(f"mi/{name}")
            given_name = found.names.get(name, "")
            prior = f"{code.kind}={code.text()}"
            rows.append([name, given_name, prior, bound if is_number(bound) else None, ceilings[name]])
            measured = [f"bound {bound:.2f} of {ceilings[name]:.2f} nats"] if is_number(bound) else []
            notes[name] = ", ".join([*([given_name] if given_name else []), *measured])
        parts.append(table(["code", "name", "prior", "bound (nats)", "ceiling (nats)"], rows, sortable=False))
    if found.run.model.entries():
        return "".join(parts) + model_pictures(found.run.model, found.run.name, notes, budget)
    names = _picture_names(found.run.traversals)
    last = max((name[: len(step_name(0))] for name in names), default="")
    figures = [
        _picture(
            found.run.traversals, name, name.removeprefix(f"{last}_").removesuffix(".png"), _step_text(last), budget
        )
        for name in names
        if name.startswith(last)
    ]
    if not figures:
        figures = [paragraph("There are no pictures yet: the first checkpoint will make them.")]
    return "".join(parts) + f'<div class="pictures">{"".join(figures)}</div>'


def measured(found: RunFindings) -> str:
    """A table of the registry's metrics that have a value."""
    latest = found.latest
    rows = [
        [metric.name, Cell(metric.text(latest[metric.name]), latest[metric.name]), metric.direction, metric.sentence]
        for metric in REGISTRY.values()
        if is_number(latest.get(metric.name))
    ]
    if not rows:
        return paragraph("Nothing has been measured yet.")
    return table(["metric", "value", "direction", "definition"], rows, sortable=False)


def labels(found: RunFindings) -> str:
    counts = found.latest.get("confusion")
    if not (isinstance(counts, list) and counts and all(isinstance(row, list) and row for row in counts)):
        reason = "there is no evaluation yet"
        if found.latents is not None and (NOT_MEASURED in found.latest or is_number(found.latest.get("mi_bound"))):
            reason = why_no_agreement(found.latest, found.latents)
        return paragraph(f"Not measured: {reason}.")
    latest, total = found.latest, sum(map(sum, counts)) or 1
    headings: list[str | Cell] = ["category", *_label_names(found.latest, len(counts[0])), "share"]
    rows = []
    for category, row in enumerate(counts):
        row_total = sum(row) or 1
        cells = [
            Cell(str(n), n, markup=f'<span class="heat" style="--share: {n / row_total:.3f}">{n:,}</span>')
            for n in map(int, row)
        ]
        rows.append([category, *cells, Cell(f"{sum(row) / total:.1%}", sum(row))])
    agreement = "; ".join(filter(None, (values_text(latest, of_group(LABELLED)), baseline_text(latest))))
    words = f"Numbers of test images by their category of {latest.get('clustering_code', 'the code')} and their label. "
    words += "Training does not use labels. The last column is the share of images in each category."
    return paragraph(words) + table(headings, rows) + paragraph(f"{agreement}.", "soft")


def _label_names(latest: dict[str, Any], count: int) -> list[str]:
    names = latest.get("classes")
    if isinstance(names, list) and len(names) >= count:
        return [str(name) for name in names[:count]]
    return [f"label {label}" for label in range(count)]


def curves(found: RunFindings) -> str:
    if not found.rows:
        return paragraph("Nothing has been logged yet.")
    ceilings = found.ceilings
    names = [key[3:] for key in dict.fromkeys(key for row in found.rows for key in row) if key.startswith("mi/")]
    bounds = []
    for slot, name in enumerate(names):
        colour, label = slot if slot < SLOTS else None, found.names.get(name, name)
        bounds.append(Series(label, found.curve(f"mi/{name}"), colour, note=_ceiling_note(ceilings.get(name))))
    small: list[tuple[str, list[tuple[str, str]], str]] = [
        (title, [(metric.name, metric.title) for metric in of_group(group) if not metric.unit], "share")
        for title, group in (("Agreement with labels", LABELLED), ("Sorting of real images, without labels", SORTING))
    ]
    small += [
        ("Losses of discriminator and generator", [("d_loss", "D"), ("g_loss", "G")], "loss"),
        ("Entropy of learned priors", [(f"prior/{n}/entropy", found.names.get(n, n)) for n in names[:SLOTS]], "nats"),
        ("Consistency of Q on real images", [("consistency_loss", "term")], "nats"),
        (
            "Penalties on the discriminator's gradient, at real (R1) and generated images (R2)",
            [("r1_penalty", "R1"), ("r2_penalty", "R2")], "loss",
        ),
        ("Restarted categories", [("restarted", "categories")], "a step"),
        (
            "Contrastive term: the code that the images of a pair share",
            [("contrastive_loss", "loss"), ("contrastive_accuracy", "accuracy")], "nats, share",
        ),
        (
            "The discriminator's mean probability for 'real', and its accuracy",
            [("d_real", "real images"), ("d_fake", "generated images"), ("d_accuracy", "accuracy")],
            "probability, share",
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
        figure(chart, "L_I by code, measured at each checkpoint on new codes. Hover over a line for its ceiling.")
    )
    if errors := found.curve("clustering_error"):
        chart = line_chart("Clustering error", [Series("error", errors, 0)], "step", "clustering error")
        parts.append(figure(chart, "By labels, which training does not use; small is good."))
    charts = []
    for title, lines, unit in small:
        series = [Series(label, found.curve(name), slot) for slot, (name, label) in enumerate(lines)]
        if not any(line.points for line in series):  # the term is off
            continue
        charts.append(figure(line_chart(title, series, "step", unit, size=(520, 260)), title))
    return "".join(parts) + f'<div class="pair">{"".join(charts)}</div>'


def samples_over_time(found: RunFindings, budget: PictureBudget) -> str:
    names = _picture_names(found.run.samples)
    if not names:
        return paragraph("There are no samples yet: every checkpoint makes some.")
    count = min(MAX_SAMPLE_PICTURES, len(names))
    chosen = [names[round(place * (len(names) - 1) / max(count - 1, 1))] for place in range(count)]
    figures = [_picture(found.run.samples, name, _step_text(name), "", budget) for name in chosen]
    words = f"{count} of {len(names)} checkpoints, all with the same noise and codes. All are in {found.run.samples}."
    return paragraph(words, "soft") + f'<div class="pictures">{"".join(figures)}</div>'


def reproduction(found: RunFindings) -> str:
    parts = []
    if found.config is not None:
        parts += [paragraph("Start it again, with another --name:"), command(train_command(found.config))]
        parts += [paragraph(line) for line in changes_note(found.saved.get("changes") or [])]
        if found.status["state"] != "finished":
            parts += [paragraph("Continue it:"), command(f"{train_command(found.config)} --resume")]
    fields = flatten_fields(found.saved.get("run") or {})
    base = preset_fields(fields.get("preset"))
    changed = {key: value for key, value in fields.items() if key not in LOCATION_FIELDS and base.get(key) != value}
    parts += ["<h3>Differences from the preset</h3>", pairs(changed) if changed else paragraph("None.")]
    parts.append(details("All fields", pairs(fields)) if fields else "")
    environment = found.saved.get("environment")
    if isinstance(environment, dict):
        parts += ["<h3>Environment</h3>", pairs(environment)]
    return "".join(parts)


def _ceiling_note(ceiling: float | None) -> str:
    return "" if ceiling is None else f"ceiling {ceiling:.3f} nats"


def _picture_names(folder: Storage) -> list[str]:
    """The names of the pictures in a folder, in order of steps. Empty if the folder cannot be read."""
    try:
        return sorted(entry.name for entry in folder.entries() if entry.name.endswith(".png"))
    except (UserError, StorageError):
        return []


def _step_text(name: str) -> str:
    digits = name.removeprefix("step_")[:8]
    return f"step {int(digits):,}" if digits.isdigit() else name


def _picture(folder: Storage, name: str, title: str, note: str, budget: PictureBudget) -> str:
    try:
        content = folder.read(name)
        check_content(name, content)
    except (UserError, FileNotFoundError, StorageError) as error:
        return paragraph(str(error), "soft")
    if len(content) > budget.left:
        return paragraph(f"{name} is too large for this page; it is in {folder}", "soft")
    budget.left -= len(content)
    return picture(content, title, note, f"{title}: a grid of generated images {note}".strip())
