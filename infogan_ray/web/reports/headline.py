"""The top of a search's report: the winner, its metrics, what early stopping saved, how to fetch the model."""

from __future__ import annotations

import shlex
import time

from infogan_ray.evaluation.metrics import REGISTRY
from infogan_ray.searches.selection_rules import RULES, SCORE_OF
from infogan_ray.web.reports.findings import Findings
from infogan_ray.web.reports.markup import escape, format_value, is_number
from infogan_ray.web.reports.page import command, paragraph, tiles


def headline(found: Findings) -> str:
    """HTML of the heading, the tiles and the command that fetches the model."""
    best, uri = found.best, found.search.folder.uri
    over = sum(trial.is_over for trial in found.trials)
    finished = sum(trial.has_finished for trial in found.trials)
    parts = [f"<h1>Search {escape(found.search.name)}</h1>"]
    if over < found.planned:
        parts.append(paragraph(f"{over} of {found.planned} trials are over; this is how things stand until now."))
    yet = " yet" if over < found.planned else ""
    if best is None:
        why = f"no trial has come to its end{yet}" if not finished else f"{found.rule} can rank none that finished"
        parts.append(paragraph(f"Nothing has won: {why}.", "lead"))
        parts.append(tiles([("trials that finished", f"{finished} of {found.planned}", ""), compute(found)]))
    else:
        rule = RULES.get(found.rule, found.rule)
        parts.append(paragraph(f"Trial {best.number} is picked by the default rule, {found.rule}: {rule}.", "lead"))
        ceilings = best.ceilings
        bound = "the most is 1; mean over codes of the bound over its ceiling"
        if found.metric == "mi_bound":
            bound = f"nats, of {sum(ceilings.values()):.3f}" if ceilings else "nats"
        facts = [
            ("winner", best.label, f"of {finished} that finished, {found.planned} in all"),
            (found.metric, format_value(best.row.get(found.metric)), bound),
            ("image quality (SWD)", format_value(best.row.get("swd")), "distance to the data; small is good"),
        ]
        score = SCORE_OF.get(found.rule, "")
        if is_number(best.row.get(score)):  # the rule's own, by which it won
            facts.insert(1, (score, format_value(best.row[score]), REGISTRY[score].sentence))
        error = best.row.get("clustering_error")
        if is_number(error):
            facts.append(("clustering error", f"{error:.1%}", "by labels that neither training nor the search saw"))
        parts.append(tiles([*facts, compute(found)]))
        values = ", ".join(f"{path} {format_value(value)}" for path, value in best.values.items())
        parts.append(paragraph(f"Its values: {values}.") if values else "")
        parts.append(command(f"infogan pull {shlex.quote(uri)} best"))
    if found.as_of is not None:
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(found.as_of))
        parts.append(paragraph(f"A trial was last heard of on {moment} UTC.", "soft"))
    return "".join(parts) + "".join(paragraph(note, "soft") for note in found.notes)


def compute(found: Findings) -> tuple[str, str, str]:
    """A tile: the share of images that early stopping saved, over the trials that are over."""
    name = "spared by early stopping"
    over = [trial for trial in found.trials if trial.is_over]
    if found.about.get("searcher") == "population":  # members go on where others were: images are not a trial's own
        return name, "nothing", "a population hands its weights on and stops nobody"
    whole = len(over) * found.budget
    seen = sum(min(trial.images, found.budget) for trial in over)
    spared = sum(max(0, found.budget - trial.images) for trial in over if trial.state == "stopped")
    which = f"all {found.planned} trials" if len(over) == found.planned else f"the {len(over)} trials that are over"
    words = f"{which} saw {seen:,} images; all run to their end would have seen {whole:,}"
    if not found.about.get("early_stopping", True):
        return name, "nothing", f"it was off; {words}"
    return name, f"{spared / whole:.0%}" if whole else format_value(None), words
