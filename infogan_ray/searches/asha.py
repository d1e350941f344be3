"""Asynchronous successive halving whose decisions depend only on scores, not on the order of reports.

The original is Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning". There a trial passes a rung if
it is among the best 1/reduction of the trials that have reached the rung so far. "So far" depends on the speed of
machines, so a killed and resumed search would make other decisions. Here trials have an order, and trial i is ranked
only among trials 0 … i. So the same scores give the same decisions for any order of reports. A trial continues until
earlier trials have reported. It may then be stopped at a rung that it has already passed.

Rungs are counted in images seen, which a restart does not reset. This module imports neither torch nor Ray.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from infogan_ray import UserError


class Decision(Enum):
    """A trial continues, is stopped, or continues while it waits for the reports of earlier trials."""

    CONTINUE = "continue"
    STOP = "stop"
    WAIT = "wait"


def rungs(grace: int, budget: int, reduction: int) -> tuple[int, ...]:
    """The rungs in images seen: grace, grace·reduction, … below the budget.

    Raises UserError if there is no rung.
    """
    if reduction < 2:
        raise UserError(f"reduction is {reduction}; it must be at least 2")
    if not 0 < grace < budget:
        raise UserError(f"grace is {grace:,} images; it must lie between 0 and the budget of {budget:,}, both excluded")
    levels = [grace]
    while levels[-1] * reduction < budget:
        levels.append(levels[-1] * reduction)
    return tuple(levels)


class Halving:
    """Scores by trial and rung, and the decisions from them. Trials have numbers from 0 in the order of the search.

    With a ``reduction`` of 1, no trial is stopped.
    """

    def __init__(self, rungs: Sequence[int], reduction: int, lower_is_better: bool = False) -> None:
        self.rungs, self.reduction = tuple(rungs), reduction
        self._sign = -1.0 if lower_is_better else 1.0
        self._scores: dict[tuple[int, int], float] = {}
        self._ended: set[int] = set()
        self._rankings = [_Ranking() for _ in self.rungs]
        self.events: list[dict[str, Any]] = []

    @classmethod
    def replay(
        cls, events: Iterable[dict[str, Any]], rungs: Sequence[int], reduction: int, lower_is_better: bool = False
    ) -> Halving:
        """Restore the state from saved events. They are JSON objects, so that a search can continue after a crash."""
        halving = cls(rungs, reduction, lower_is_better)
        for event in events:
            if event["event"] == "ended":
                halving.end(event["trial"])
            else:
                halving.report(event["trial"], event["images"], event["score"])
        return halving

    def report(self, trial: int, images: int, score: float) -> None:
        """Record a trial's score after ``images`` images. Only the first report at or after a rung counts for the rung.

        A score that is not finite ends the trial: it is not ranked, and no trial waits for it. Scores after a trial's
        end do not count, because other trials were compared without them.
        """
        if trial in self._ended:
            return
        if not math.isfinite(score):
            self.end(trial)
            return
        reached = [rung for rung in self.rungs if rung <= images and (trial, rung) not in self._scores]
        for rung in reached:
            self._scores[trial, rung] = score
        if reached:
            self.events.append({"event": "score", "trial": trial, "images": images, "score": score})

    def end(self, trial: int) -> None:
        """Record that a trial will not report again: it has finished, failed or diverged."""
        if trial not in self._ended:
            self._ended.add(trial)
            self.events.append({"event": "ended", "trial": trial})

    def has_ended(self, trial: int) -> bool:
        return trial in self._ended

    def decision(self, trial: int) -> Decision:
        """Whether a trial may continue, from all rungs that it has reached."""
        return self._decide(trial)[0]

    def stopped_at(self, trial: int) -> int | None:
        """The rung, in images, at which a trial was stopped; None if it was not."""
        decision, rung = self._decide(trial)
        return rung if decision is Decision.STOP else None

    def score(self, trial: int, rung: int) -> float | None:
        """A trial's score at a rung; None if it has not reached the rung."""
        return self._scores.get((trial, rung))

    def rank(self, trial: int, rung: int) -> tuple[int, int] | None:
        """A trial's rank at a rung among trials 0 … trial, and the number of ranked trials among them.

        1 is the best; equal scores share the better rank. None if the trial is not ranked at this rung, or not yet.
        """
        level = self.rungs.index(rung)
        ranking = self._rankings[level]
        while ranking.next <= trial and (counts := self._reaches(ranking.next, level)) is not None:
            ranking.add(self._sign * self._scores[ranking.next, rung] if counts else None)
        return ranking.ranks.get(trial)

    def _decide(self, trial: int) -> tuple[Decision, int | None]:
        for level, rung in enumerate(self.rungs):
            if (trial, rung) not in self._scores:
                break
            passes = self._passes(trial, level)
            if passes is None:
                return Decision.WAIT, rung
            if not passes:
                return Decision.STOP, rung
        return Decision.CONTINUE, None

    def _passes(self, trial: int, level: int) -> bool | None:
        """Whether a trial passes a rung; None if that is not known yet. A known result never changes."""
        reaches = self._reaches(trial, level)
        if not reaches:
            return reaches
        rank = self.rank(trial, self.rungs[level])
        return None if rank is None else rank[0] <= max(1, math.ceil(rank[1] / self.reduction))

    def _reaches(self, trial: int, level: int) -> bool | None:
        """Whether a trial is ranked at a rung; None if that is not known yet.

        A trial that was stopped at a lower rung is not ranked, even if it continued to train.
        """
        if level > 0:
            passed = self._passes(trial, level - 1)
            if not passed:
                return passed
        if (trial, self.rungs[level]) in self._scores:
            return True
        return False if trial in self._ended else None


class _Ranking:
    """The trials at one rung, added in their order. A trial is ranked among those before it; its rank never changes."""

    def __init__(self) -> None:
        self.next = 0
        self.ranks: dict[int, tuple[int, int]] = {}
        self._scores: list[float] = []  # sorted

    def add(self, score: float | None) -> None:
        """Add the next trial with its score (higher is better), or None if it is not ranked at this rung."""
        if score is not None:
            bisect.insort(self._scores, score)
            better = len(self._scores) - bisect.bisect_right(self._scores, score)
            self.ranks[self.next] = 1 + better, len(self._scores)
        self.next += 1
