"""The report of a search as one HTML file: the winner, the selection rules, all trials and their outcomes.

Each section is a function of ``Findings``. A section without data contains a note.
"""

from __future__ import annotations

from typing import Any

from infogan_ray.data.progress import counted
from infogan_ray.evaluation.metrics import REGISTRY
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import RULES, SCORE_OF
from infogan_ray.storage.visible_text import to_utf8
from infogan_ray.web.reports.charts import SLOTS, Point, Series, line_chart, scatter
from infogan_ray.web.reports.decisions import decisions, replay_with_stopping
from infogan_ray.web.reports.findings import NOT_BEGUN, Findings, Trial, read
from infogan_ray.web.reports.headline import headline
from infogan_ray.web.reports.markup import escape, format_tick, format_value, is_number, short_labels
from infogan_ray.web.reports.page import Cell, figure, page, paragraph, table
from infogan_ray.web.reports.parallel import Line, parallel_coordinates
from infogan_ray.web.reports.pictures import PictureBudget, model_pictures
from infogan_ray.web.reports.recipe import recipe
from infogan_ray.web.reports.scales import is_log_range

MAX_PICTURED_TRIALS = 3
HELP = {
    "images": "images seen by the last measured checkpoint",
    "stopped_at": "images seen at the rung where early stopping ended the trial",
    **{name: metric.description for name, metric in REGISTRY.items()},
}


def write_search_report(search: SearchDirectory) -> None:
    """Write ``report.html`` into the search's folder. Raises the errors of ``search_report``, and StorageError."""
    search.folder.write(search.REPORT, to_utf8(search_report(search)))


def search_report(search: SearchDirectory) -> str:
    """The report as one self-contained HTML page, for a search in any state.

    Raises BadCheckpoint if search.json or events.json is not JSON, FileNotFoundError if there is no search.
    """
    found = read(search)
    sections = [
        ("picks", "What each rule picks", picks(found)),
        ("board", "All trials", board(found)),
        ("curves", "Curves", curves(found)),
        ("space", "Search space", space(found)),
        ("rungs", "Outcome of each trial at each rung", rungs(found)),
        ("pictures", "Pictures of the best trials", pictures(found)),
        ("recipe", "The recipe, and how to run it again", recipe(found)),
    ]
    return page(f"Search {search.name}", sections, headline(found))


def picks(found: Findings) -> str:
    rows = []
    for rule, number in found.picks.items():
        trial = found.trial(number)
        name = f"{rule} (default)" if rule == found.rule else rule
        row = trial.row if trial else {}
        rows.append([name, RULES.get(rule, ""), number, *(row.get(key) for key in _measures(found))])
    parts = [table(["rule", "criterion", "trial", *_measures(found)], rows, sortable=False)]
    if found.front:
        front = ", ".join(str(number) for number in found.front)
        parts.append(paragraph(f"Pareto front of bound and image quality: trials {front}."))
    picked = {number for number in found.picks.values() if number is not None}
    slots = _slots(found)
    points = [
        Point(
            trial.label, trial.row[found.metric], trial.row["swd"], slots.get(trial.number),
            trial.number in found.front, 2 * (trial.number in picked) + (trial.number in found.front), _note(trial),
        )
        for trial in found.trials
        if is_number(trial.row.get(found.metric)) and is_number(trial.row.get("swd"))
    ]  # fmt: skip
    best_swd = min((t.row["swd"] for t in found.trials if t.has_finished and _measured(t)), default=None)
    chart = scatter(
        "Bound and image quality", points, found.metric, "SWD", log_y=is_log_range([point.y for point in points]),
        better="better: to the right and down",
        limit=best_swd and found.gate * best_swd,
        limit_label=f"{found.gate:g} times the smallest SWD:",
    )  # fmt: skip
    caption = "Hover over a mark for its trial. Rules that limit the SWD use only trials below the dashed line."
    return "".join(parts) + figure(chart, caption)


def board(found: Findings) -> str:
    """The leaderboard, with every scalar field of its rows."""
    fields = list(dict.fromkeys(key for trial in found.trials for key in trial.row if key != "values"))
    fields = [
        key for key in fields
        if key not in ("trial", "state", "step")
        and all(not isinstance(trial.row.get(key), (dict, list)) for trial in found.trials)
        and any(trial.row.get(key) is not None for trial in found.trials)
    ]  # fmt: skip
    paths = _paths(found)
    names = short_labels(paths, [*fields, "trial", "state", "picked by"])
    headings: list[str | Cell] = [
        "trial",
        "state",
        "picked by",
        *(Cell(key, title=HELP.get(key, "")) for key in fields),
    ]
    headings += [Cell(names[path], title=path) for path in paths]
    rows, first = [], []
    for index, trial in enumerate(found.trials):
        by = [rule for rule, number in found.picks.items() if number == trial.number]
        by += ["front"] if trial.number in found.front else []
        if found.best is trial:
            first.append(index)
        words: list[Any] = [trial.number, trial.state, ", ".join(by) or None]
        words += [trial.row.get(key) for key in fields]
        rows.append([*words, *(trial.values.get(path) for path in paths)])
    note = (
        "The default rule decides the order. Click on a heading to sort. front: on the Pareto front of bound and SWD."
    )
    return paragraph(note, "soft") + table(headings, rows, first)


def curves(found: Findings) -> str:
    slots = _slots(found)
    marks = [(float(rung), f"rung {format_tick(rung)}") for rung in found.halving.rungs]
    log = len(marks) > 2

    def lines(name: str) -> list[Series]:
        order = [trial for trial in found.trials if trial.curves[name]]
        return [
            Series(trial.label, trial.curves[name], slots.get(trial.number), trial.state == "stopped", _note(trial))
            for trial in order
        ]

    ceilings = found.best.ceilings if found.best else next((t.ceilings for t in found.trials if t.ceilings), {})
    ceiling = (sum(ceilings.values()) or None) if found.metric == "mi_bound" else 1.0
    unit = REGISTRY[found.metric].heading if found.metric in REGISTRY else found.metric
    chart = line_chart(
        "The metric at each checkpoint", lines(found.metric), "images seen", unit, log_x=log, ceiling=ceiling,
        marks=marks, faint_label="stopped",
    )  # fmt: skip
    parts = [figure(chart, f"Vertical lines are rungs. The best {SLOTS} trials have a colour and a label.")]
    if errors := lines("clustering_error"):
        chart = line_chart(
            "Clustering error", errors, "images seen", "clustering error", log_x=log, marks=marks,
            faint_label="stopped",
        )  # fmt: skip
        parts.append(figure(chart, "By labels, which neither training nor the search used; small is good."))
    small = []
    for name, title in (("d_loss", "Loss of the discriminator"), ("g_loss", "Loss of the generator")):
        if series := lines(name):
            chart = line_chart(title, series, "images seen", name, log_x=log, size=(520, 260))
            small.append(figure(chart, title))
    return "".join(parts) + (f'<div class="pair">{"".join(small)}</div>' if small else "")


def space(found: Findings) -> str:
    with_values = [trial for trial in found.trials if trial.values and trial.state != NOT_BEGUN]
    varied = [path for path in _paths(found) if len({format_value(t.values.get(path)) for t in with_values}) > 1]
    if not varied:
        return paragraph("Fewer than two trials with different values have begun.")
    lines = []
    for trial in with_values:
        score = trial.row.get(found.metric)
        lines.append(
            Line(trial.label, trial.values, score if is_number(score) else None, not _counts(trial), _note(trial))
        )
    chart = parallel_coordinates(
        "Values and scores", lines, varied, found.metric, names=short_labels(varied, []),
        log=_log_uniform_paths(found), faint_label="did not finish",
    )  # fmt: skip
    return figure(chart, f"One line per trial. The last axis is {found.metric}. Hover over a line for all its values.")


def rungs(found: Findings) -> str:
    levels = found.halving.rungs
    stopping = bool(found.about.get("early_stopping", True)) and found.about.get("searcher") != "population"
    replayed = None if stopping else replay_with_stopping(found.halving, int(found.about["reduction"]))
    headings: list[str | Cell] = ["trial", *(Cell(f"{rung:,} images") for rung in levels), "state"]
    headings += ["with early stopping"] if replayed else []
    rows = []
    for trial in sorted(found.trials, key=lambda trial: trial.number):
        row: list[Any] = [trial.number]
        for decision in decisions(found.halving, trial.number, trial.state):
            place = f", place {decision.place[0]} of {decision.place[1]}" if decision.place else ""
            score = "" if decision.score is None else f"{escape(format_value(decision.score))}{place}<br/>"
            outcome = decision.outcome
            row.append(Cell(outcome, decision.score, markup=f"{score}<small>{escape(outcome)}</small>"))
        row.append(trial.state)
        if replayed:
            at = replayed.stopped_at(trial.number)
            has_score = any(found.halving.score(trial.number, rung) is not None for rung in levels)
            row.append(Cell(f"stopped at {at:,}", at) if at is not None else Cell("continues") if has_score else None)
        rows.append(row)
    reduction = found.about["reduction"]
    text = f"Scores are {found.metric}. A trial is ranked among the trials that reached the rung and have no larger "
    text += f"number. The best 1/{reduction} continue. So the order in which trials report does not matter."
    parts = [paragraph(text, "soft")]
    if replayed:
        parts.append(paragraph(_replay_summary(found, replayed)))
    return "".join(parts) + table(headings, rows)


def _replay_summary(found: Findings, replayed: Any) -> str:
    stopped = {trial.number: replayed.stopped_at(trial.number) for trial in found.trials}
    saved = sum(max(0, trial.images - (stopped[trial.number] or trial.images)) for trial in found.trials)
    seen = sum(trial.images for trial in found.trials)
    count = sum(at is not None for at in stopped.values())
    words = f"Early stopping was off. With the same scores, it would have stopped {counted(count, 'trial')} and saved "
    words += f"{saved:,} of {seen:,} images" + (f" ({saved / seen:.0%})" if seen else "")
    if found.best:
        lost = stopped[found.best.number] is not None
        outcome = "would also have been stopped" if lost else "would have continued"
        words += f". The winner, trial {found.best.number}, {outcome}"
    return f"{words}."


def pictures(found: Findings) -> str:
    best = [trial for trial in found.trials if trial.has_finished][:MAX_PICTURED_TRIALS]
    if not best:
        return paragraph("There are no pictures yet: a trial gets them when it finishes.")
    parts, budget = [], PictureBudget()
    for trial in best:
        ceilings = trial.ceilings
        notes = {
            code: f"bound {bound:.2f}" + (f" of {ceilings[code]:.2f} nats" if code in ceilings else " nats")
            for code, bound in trial.bounds.items()
        }
        facts = ", ".join(
            f"{key} {format_value(trial.row[key])}" for key in _measures(found) if trial.row.get(key) is not None
        )
        parts.append(f"<h3>{escape(f'Trial {trial.number}: {facts}')}</h3>")
        parts.append(model_pictures(found.search.trial(trial.number).model, trial.label, notes, budget))
    return "".join(parts)


def _slots(found: Findings) -> dict[int, int]:
    """Colour and marker of the first measured trials of the leaderboard, by trial. All charts use the same ones."""
    measured = [trial.number for trial in found.trials if trial.curves[found.metric] or _measured(trial)]
    return {number: slot for slot, number in enumerate(measured[:SLOTS])}


def _measures(found: Findings) -> list[str]:
    """The metric, the SWD, and the measured ones of the rules' scores and the clustering error."""
    wanted = (*SCORE_OF.values(), "clustering_error")
    return [found.metric, "swd", *(key for key in wanted if any(is_number(t.row.get(key)) for t in found.trials))]


def _measured(trial: Trial) -> bool:
    return is_number(trial.row.get("swd"))


def _counts(trial: Trial) -> bool:
    return trial.has_finished or trial.state == "continued"


def _note(trial: Trial) -> str:
    return "" if trial.has_finished else trial.state


def _log_uniform_paths(found: Findings) -> list[str]:
    """The fields whose values the recipe samples log-uniformly."""
    space = found.about.get("space")
    pairs = space.items() if isinstance(space, dict) else ()
    return [path for path, value in pairs if isinstance(value, dict) and value.get("sampler") == "loguniform"]


def _paths(found: Findings) -> list[str]:
    return list(dict.fromkeys(path for trial in found.trials for path in trial.values))
