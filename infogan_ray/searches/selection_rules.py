"""Rules that pick the winner of a search from the rows of its leaderboard. No rule uses labels.

Good and bad models alike reach a bound near its ceiling, so the bound alone picks no winner. Every rule but ``bound``
and ``quality`` picks among the trials whose images are nearly as good as the best trial's. docs/selection.md measures
how far each rule agrees with the clustering error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import BOARD_COLUMNS, BOUND, is_in_group, lower_is_better

GATE = 1.5  # largest ratio of a winner's SWD to the least SWD of all trials
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
    """The trial that a rule picks among the finished ones; None if it can rank none of them.

    Raises UserError, naming the rules, for another name.
    """
    check_rule(rule)
    metric = _bound(metric)
    ended = _ended(rows, metric)
    if not ended:
        return None
    least = min(row["swd"] for row in ended)
    if rule == "quality":
        return min(ended, key=lambda row: (row["swd"], row["trial"]))
    near = [row for row in ended if rule == "bound" or row["swd"] <= GATE * least]
    score = SCORE_OF.get(rule, metric)
    if rule == DEFAULT and not any(finite(row.get(score)) for row in near):
        score = metric  # no categorical code among them
    able = [row for row in near if finite(row.get(score))]
    return max(able, key=lambda row: (row[score], -row["trial"]), default=None)


def best_by(rows: Sequence[Row], column: str) -> Row | None:
    """The finished trial that is best in one column of the board, whatever its images look like; None if none has it.

    Raises UserError, naming the columns, for another name.
    """
    if column not in BOARD_COLUMNS:
        raise UserError(f"metric is '{column}'; of a search valid are {', '.join(BOARD_COLUMNS)}")
    ended = [row for row in rows if row["state"] == "finished" and finite(row.get(column))]
    sign = -1 if lower_is_better(column) else 1
    return max(ended, key=lambda row: (sign * row[column], -row["trial"]), default=None)


def check_rule(rule: str) -> None:
    if rule not in RULES:
        raise UserError(f"select is '{rule}'; valid are {', '.join(RULES)}")


def pareto(rows: Sequence[Row], metric: str) -> list[Row]:
    """The trials that no other one beats in both bound and image quality, best bound first."""
    metric = _bound(metric)
    front: list[Row] = []
    for row in sorted(_ended(rows, metric), key=lambda row: (-row[metric], row["swd"], row["trial"])):
        if not front or row["swd"] < front[-1]["swd"]:
            front.append(row)
    return front


def ranked(rows: Sequence[Row], metric: str, rule: str) -> list[Row]:
    """Finished trials in the order in which a rule picks them; then the others by images seen."""
    left, order = list(rows), list[Row]()
    while (best := winner(left, metric, rule)) is not None:
        order.append(best)
        left.remove(best)

    def how_far(row: Row) -> tuple[float, float, int]:
        return -row["images"], -row[metric] if finite(row[metric]) else 0.0, row["trial"]

    return order + sorted(left, key=how_far)


def _bound(metric: str) -> str:
    """The column that is the bound: of a search whose metric is not a bound, mi_fraction."""
    return metric if is_in_group(metric, BOUND) else "mi_fraction"


def _ended(rows: Sequence[Row], metric: str) -> list[Row]:
    return [row for row in rows if row["state"] == "finished" and finite(row[metric]) and finite(row["swd"])]


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
