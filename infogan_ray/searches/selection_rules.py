"""Rules that pick the winner of a search from the rows of its leaderboard. No rule uses labels.

A collapsed trial, whose generated images hardly differ (``diagnosis.has_collapsed``), is picked only if all are.

Both good and bad models can reach almost the largest possible bound, so the bound alone does not show the best model.
All rules except ``bound`` and ``quality`` pick among trials with images nearly as good as the best trial's.
docs/research/selection.md measures how well each rule agrees with the clustering error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.diagnosis import LEAST_SPREAD, has_collapsed
from infogan_ray.evaluation.metrics import BOARD_RANKED, BOUND, is_in_group, lower_is_better

GATE = 1.5  # largest allowed ratio of a winner's SWD to the least SWD of all trials
GATED = f"among those within {GATE:g} times the least SWD"
RULES = {
    "sorting": f"best sorting of real images (q_score) {GATED}; without a categorical code as 'gated'",
    "agreement": f"best agreement with the other trials {GATED}",
    "gated": f"best bound {GATED}",
    "bound": "best bound",
    "quality": "least SWD",
}
SCORE_OF = {"sorting": "q_score", "agreement": "agreement"}
DEFAULT = "sorting"
Row = dict[str, Any]


def winner(rows: Sequence[Row], metric: str, rule: str) -> Row | None:
    """The finished trial that a rule picks; None if the rule can rank none.

    Raises UserError, which lists the rules, for another name.
    """
    check_rule(rule)
    metric = _bound(metric)
    finished = _finished(rows, metric)
    if not finished:
        return None
    least_swd = min(row["swd"] for row in finished)
    if rule == "quality":
        return min(finished, key=lambda row: (row["swd"], row["trial"]))
    candidates = [row for row in finished if rule == "bound" or row["swd"] <= GATE * least_swd]
    score = SCORE_OF.get(rule, metric)
    if rule == DEFAULT and not any(finite(row.get(score)) for row in candidates):
        score = metric  # none of them has a categorical code
    scored = [row for row in candidates if finite(row.get(score))]
    return max(scored, key=lambda row: (row[score], -row["trial"]), default=None)


def best_by(rows: Sequence[Row], column: str) -> Row | None:
    """The finished trial that is best in one column, without regard to its images. None if no trial has a value.

    Raises UserError, which lists the columns, for another name.
    """
    if column not in BOARD_RANKED:
        raise UserError(f"metric is '{column}'; for a search, valid are {', '.join(BOARD_RANKED)}")
    finished = [row for row in rows if row["state"] == "finished" and finite(row.get(column))]
    sign = -1 if lower_is_better(column) else 1
    return max(finished, key=lambda row: (sign * row[column], -row["trial"]), default=None)


def check_rule(rule: str) -> None:
    if rule not in RULES:
        raise UserError(f"select is '{rule}'; valid are {', '.join(RULES)}")


def pareto(rows: Sequence[Row], metric: str) -> list[Row]:
    """The trials that no other trial exceeds in both bound and image quality, best bound first."""
    metric = _bound(metric)
    front: list[Row] = []
    for row in sorted(_finished(rows, metric), key=lambda row: (-row[metric], row["swd"], row["trial"])):
        if not front or row["swd"] < front[-1]["swd"]:
            front.append(row)
    return front


def ranked(rows: Sequence[Row], metric: str, rule: str) -> list[Row]:
    """Finished trials in the order in which a rule picks them, then the others by images seen."""
    remaining, order = list(rows), list[Row]()
    while (best := winner(remaining, metric, rule)) is not None:
        order.append(best)
        remaining.remove(best)

    def by_images(row: Row) -> tuple[float, float, int]:
        return -row["images"], -row[metric] if finite(row[metric]) else 0.0, row["trial"]

    return order + sorted(remaining, key=by_images)


def _bound(metric: str) -> str:
    """The column with the bound: the search's metric if it is a bound, else mi_fraction."""
    return metric if is_in_group(metric, BOUND) else "mi_fraction"


def _finished(rows: Sequence[Row], metric: str) -> list[Row]:
    measured = [row for row in rows if row["state"] == "finished" and finite(row[metric]) and finite(row["swd"])]
    return [row for row in measured if not has_collapsed(row)] or measured


def collapsed_text(rows: Sequence[Row]) -> str:
    """What users must know about finished trials that have collapsed. Empty if there are none."""
    finished = [row for row in rows if row["state"] == "finished"]
    found = [str(row["trial"]) for row in finished if has_collapsed(row)]
    reason = f"G makes the same picture again and again (spread below {LEAST_SPREAD:g})"
    if not found:
        return ""
    if len(found) == len(finished):
        return f"in all finished trials {reason}: the rules pick one all the same, so look at its pictures first"
    return f"no rule picks {', '.join(found)}: {reason}"


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
