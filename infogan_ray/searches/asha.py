"""Asynchronous successive halving whose decisions depend on scores alone, not on which trial reported first.

ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning") lets a trial pass a rung if it is among
the best 1/reduction of the trials that have reached that rung so far. "So far" depends on the speed of machines, so a
search that was killed and resumed would decide differently. Here trials have an order, and trial i is judged among
trials 0 … i alone: the same scores give the same decisions, whatever the order of reports. A trial continues while
earlier trials have not reported, and may then be stopped at a rung that it has passed.

Rungs are counted in images seen, which a restart does not reset. This module imports neither torch nor Ray.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from infogan_ray import UserError


class Verdict(Enum):
    """A trial continues, is stopped, or waits (while it continues) for earlier trials to report."""

    CONTINUE = "continue"
    STOP = "stop"
    WAIT = "wait"


def rungs(grace: int, budget: int, reduction: int) -> tuple[int, ...]:
    """Images seen at which trials are judged: grace, grace·reduction, … below the budget.

    Raises UserError if there would be no rung.
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
    """Scores by trial and rung, and the decisions that follow. Trials are numbered from 0 in the order of the search.

    A ``reduction`` of 1 stops no trial.
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
        """The state after saved events. They are JSON objects, so that a search survives any crash."""
        halving = cls(rungs, reduction, lower_is_better)
        for event in events:
            if event["event"] == "ended":
                halving.end(event["trial"])
            else:
                halving.report(event["trial"], event["images"], event["score"])
        return halving

    def report(self, trial: int, images: int, score: float) -> None:
        """A trial's score after so many images. The first report at or past a rung counts for it, later ones do not.

        A score that is not finite ends the trial: it never ranks, and no trial waits for it. Scores after a trial's end
        do not count, since other trials have been judged without them.
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
        """The trial will not report again: it has finished, failed or diverged."""
        if trial not in self._ended:
            self._ended.add(trial)
            self.events.append({"event": "ended", "trial": trial})

    def has_ended(self, trial: int) -> bool:
        return trial in self._ended

    def verdict(self, trial: int) -> Verdict:
        """Whether a trial may continue, by all rungs that it has reached."""
        return self._judge(trial)[0]

    def stopped_at(self, trial: int) -> int | None:
        """The rung, in images, where a trial was stopped; None if it was not."""
        verdict, rung = self._judge(trial)
        return rung if verdict is Verdict.STOP else None

    def score(self, trial: int, rung: int) -> float | None:
        """The score by which a trial was judged at a rung; None if it has not reached the rung."""
        return self._scores.get((trial, rung))

    def place(self, trial: int, rung: int) -> tuple[int, int] | None:
        """A trial's rank at a rung among trials 0 … trial (1 is best, equals share the better rank), and their number.

        None if the trial is not ranked there, or if its rank is not known yet.
        """
        level = self.rungs.index(rung)
        ranking = self._rankings[level]
        while ranking.next <= trial and (counts := self._reaches(ranking.next, level)) is not None:
            ranking.add(self._sign * self._scores[ranking.next, rung] if counts else None)
        return ranking.places.get(trial)

    def _judge(self, trial: int) -> tuple[Verdict, int | None]:
        for level, rung in enumerate(self.rungs):
            if (trial, rung) not in self._scores:
                break
            passes = self._passes(trial, level)
            if passes is None:
                return Verdict.WAIT, rung
            if not passes:
                return Verdict.STOP, rung
        return Verdict.CONTINUE, None

    def _passes(self, trial: int, level: int) -> bool | None:
        """Whether a trial passes a rung; None if that is not known yet. A known answer never changes."""
        reaches = self._reaches(trial, level)
        if not reaches:
            return reaches
        place = self.place(trial, self.rungs[level])
        return None if place is None else place[0] <= max(1, math.ceil(place[1] / self.reduction))

    def _reaches(self, trial: int, level: int) -> bool | None:
        """Whether a trial is ranked at a rung: not if it was stopped at a lower one, even if it trained on."""
        if level > 0:
            passed = self._passes(trial, level - 1)
            if not passed:
                return passed
        if (trial, self.rungs[level]) in self._scores:
            return True
        return False if trial in self._ended else None


class _Ranking:
    """The trials at one rung, added in their order. A trial ranks among those before it; its place never changes."""

    def __init__(self) -> None:
        self.next = 0
        self.places: dict[int, tuple[int, int]] = {}
        self._scores: list[float] = []  # rising

    def add(self, score: float | None) -> None:
        """Add the next trial with its score (high is good), or None if it is not ranked at this rung."""
        if score is not None:
            bisect.insort(self._scores, score)
            better = len(self._scores) - bisect.bisect_right(self._scores, score)
            self.places[self.next] = 1 + better, len(self._scores)
        self.next += 1
