"""Asynchronous successive halving whose decisions depend on scores alone, not on which trial reported first.

ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning") lets a trial past a rung if it is among
the best 1/reduction of those that have reached that rung so far. "So far" depends on the speed of machines, and a
search that was killed and resumed decides otherwise than one that was not. Here trials have an order, and trial i is
judged among trials 0 … i alone: whatever the order of their reports, the same scores give the same decisions. A trial
whose predecessors have not all spoken goes on meanwhile, and may be stopped later, at the rung where it stood.

Rungs are counted in images seen, which a restart does not set back. torch-free and Ray-free.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from infogan_ray import UserError


class Verdict(Enum):
    """What is known of a trial: it goes on, it is stopped, or its predecessors have not all spoken."""

    CONTINUE = "continue"
    STOP = "stop"
    WAIT = "wait"


def rungs(grace: int, budget: int, reduction: int) -> tuple[int, ...]:
    """Images seen at which trials are judged: grace, grace·reduction, … below the budget.

    Raises UserError where there would be none.
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
    """Scores by trial and rung, and what follows from them. Trials are numbered from 0 in the order of the search.

    A ``reduction`` of 1 stops nobody.
    """

    def __init__(self, rungs: Sequence[int], reduction: int, lower_is_better: bool = False) -> None:
        self.rungs, self.reduction = tuple(rungs), reduction
        self._sign = -1.0 if lower_is_better else 1.0
        self._scores: dict[tuple[int, int], float] = {}
        self._ended: set[int] = set()
        self._lines = [_Line() for _ in self.rungs]
        self.events: list[dict[str, Any]] = []

    @classmethod
    def replay(
        cls, events: Iterable[dict[str, Any]], rungs: Sequence[int], reduction: int, lower_is_better: bool = False
    ) -> Halving:
        """The state after events that were saved: as JSON objects they survive any crash of the searcher."""
        halving = cls(rungs, reduction, lower_is_better)
        for event in events:
            if event["event"] == "ended":
                halving.end(event["trial"])
            else:
                halving.report(event["trial"], event["images"], event["score"])
        return halving

    def report(self, trial: int, images: int, score: float) -> None:
        """A trial's score after so many images. The first report at or past a rung counts for it, later ones do not.

        A score that is not finite ends the trial: it never ranks, and nobody waits for it. After its end a trial's
        scores do not count any more, since others have been judged without them.
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
        """The trial reports no more: it has finished, failed or diverged."""
        if trial not in self._ended:
            self._ended.add(trial)
            self.events.append({"event": "ended", "trial": trial})

    def has_ended(self, trial: int) -> bool:
        return trial in self._ended

    def verdict(self, trial: int) -> Verdict:
        """Whether a trial may go on, by all rungs that it has reached."""
        return self._judge(trial)[0]

    def stopped_at(self, trial: int) -> int | None:
        """The rung, in images, where a trial was stopped; None if it was not."""
        verdict, rung = self._judge(trial)
        return rung if verdict is Verdict.STOP else None

    def score(self, trial: int, rung: int) -> float | None:
        """What a trial was judged by at a rung; None if it has not come there."""
        return self._scores.get((trial, rung))

    def place(self, trial: int, rung: int) -> tuple[int, int] | None:
        """The rank of a trial at a rung among trials 0 … trial (1 is best, equals share the better one), and how many
        those are. None if it is not among them, or if that is not known yet."""
        level = self.rungs.index(rung)
        line = self._lines[level]
        while line.next <= trial and (counts := self._reaches(line.next, level)) is not None:
            line.take(self._sign * self._scores[line.next, rung] if counts else None)
        return line.places.get(trial)

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
        """Whether a trial gets past a rung; None if that is not known yet. What is known never changes."""
        reaches = self._reaches(trial, level)
        if not reaches:
            return reaches
        place = self.place(trial, self.rungs[level])
        return None if place is None else place[0] <= max(1, math.ceil(place[1] / self.reduction))

    def _reaches(self, trial: int, level: int) -> bool | None:
        """Whether a trial is a rival at a rung: not if it was stopped below it, however far it went on meanwhile."""
        if level > 0:
            passed = self._passes(trial, level - 1)
            if not passed:
                return passed
        if (trial, self.rungs[level]) in self._scores:
            return True
        return False if trial in self._ended else None


class _Line:
    """The trials at one rung, taken in their order: each one's place is among those before it, and never changes."""

    def __init__(self) -> None:
        self.next = 0
        self.places: dict[int, tuple[int, int]] = {}
        self._scores: list[float] = []  # rising

    def take(self, score: float | None) -> None:
        """The next trial, whose score (high is good) counts here, or that does not come here."""
        if score is not None:
            bisect.insort(self._scores, score)
            better = len(self._scores) - bisect.bisect_right(self._scores, score)
            self.places[self.next] = 1 + better, len(self._scores)
        self.next += 1
