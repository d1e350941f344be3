"""The top of a search's report: the winner, its metrics, the savings of early stopping, and the pull command."""

from __future__ import annotations

import time

from infogan_ray.data.progress import counted
from infogan_ray.evaluation.metrics import REGISTRY
from infogan_ray.evaluation.texts import compared_error_text
from infogan_ray.searches.selection_rules import RULES, SCORE_OF, collapsed_text
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.web.reports.findings import Findings
from infogan_ray.web.reports.markup import escape, format_value, is_number
from infogan_ray.web.reports.page import command, paragraph, tiles


def headline(found: Findings) -> str:
    """The heading, the tiles and the command that downloads the model, as HTML."""
    best, uri = found.best, found.search.folder.uri
    over = sum(trial.is_over for trial in found.trials)
    finished = sum(trial.has_finished for trial in found.trials)
    parts = [f"<h1>Search {escape(found.search.name)}</h1>"]
    if over < found.planned:
        are = "is" if 1 in (over, found.planned) else "are"
        parts.append(paragraph(f"{over} of {counted(found.planned, 'trial')} {are} over. The results are preliminary."))
    if collapsed := collapsed_text([trial.row for trial in found.trials]):
        parts.append(paragraph(f"{collapsed[0].upper()}{collapsed[1:]}.", "lead"))
    yet = " yet" if over < found.planned else ""
    if best is None:
        reason = f"no trial has finished{yet}" if not finished else f"{found.rule} cannot rank the finished trials"
        parts.append(paragraph(f"There is no winner: {reason}.", "lead"))
        parts.append(tiles([("trials that finished", f"{finished} of {found.planned}", ""), compute(found)]))
    else:
        rule = RULES.get(found.rule, found.rule)
        parts.append(paragraph(f"The default rule, {found.rule}, picks trial {best.number}: {rule}.", "lead"))
        ceilings = best.ceilings
        bound = "at most 1; mean over codes of the bound divided by its ceiling"
        if found.metric == "mi_bound":
            bound = f"nats, of {sum(ceilings.values()):.3f}" if ceilings else "nats"
        facts = [
            ("winner", best.label, f"of {counted(finished, 'finished trial')}, {found.planned:,} in total"),
            (found.metric, format_value(best.row.get(found.metric)), bound),
            ("image quality (SWD)", format_value(best.row.get("swd")), "distance to the data; small is good"),
        ]
        score = SCORE_OF.get(found.rule, "")
        if is_number(best.row.get(score)):  # the rule's score
            facts.insert(1, (score, format_value(best.row[score]), REGISTRY[score].sentence))
        error = best.row.get("clustering_error")
        if is_number(error):
            note = "by labels, which neither training nor the search used"
            facts.append(
                ("clustering error", f"{error:.1%}", "; ".join(filter(None, (compared_error_text(best.row), note))))
            )
        parts.append(tiles([*facts, compute(found)]))
        values = ", ".join(f"{path} {format_value(value)}" for path, value in best.values.items())
        parts.append(paragraph(f"Its values: {values}.") if values else "")
        parts.append(command(f"infogan pull {shell_word(uri)} best"))
    if found.as_of is not None:
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(found.as_of))
        parts.append(paragraph(f"Last status of a trial: {moment} UTC.", "soft"))
    return "".join(parts) + "".join(paragraph(note, "soft") for note in found.notes)


def compute(found: Findings) -> tuple[str, str, str]:
    """A tile with the share of images that early stopping saved, for the trials that are over."""
    name = "saved by early stopping"
    over = [trial for trial in found.trials if trial.is_over]
    if found.about.get("searcher") == "population":  # a member continues from another's weights and images
        return name, "nothing", "a population copies weights between trials and stops no trial"
    full = len(over) * found.budget
    seen = sum(min(trial.images, found.budget) for trial in over)
    saved = sum(max(0, found.budget - trial.images) for trial in over if trial.state == "stopped")
    which = f"all {found.planned} trials" if len(over) == found.planned else f"the {len(over)} trials that are over"
    if len(over) == 1:
        which = "the only trial" if found.planned == 1 else "the trial that is over"
    words = f"{which} saw {seen:,} images; without early stopping it would be {full:,}"
    if not found.about.get("early_stopping", True):
        return name, "nothing", f"it was off; {words}"
    return name, f"{saved / full:.0%}" if full else format_value(None), words
