"""The outcome of each trial at each rung as text, from the events of a search's successive halving."""

from __future__ import annotations

from dataclasses import dataclass

from infogan_ray.searches.asha import Decision, Halving


@dataclass(frozen=True)
class RungDecision:
    """``score``: the metric at the rung, or None. ``place``: (rank, number of trials ranked), or None."""

    score: float | None
    place: tuple[int, int] | None
    outcome: str


def decisions(halving: Halving, trial: int, state: str) -> list[RungDecision]:
    """One decision for each rung, in order. ``state``: the state in the trial's row."""
    stopped_at, decision = halving.stopped_at(trial), halving.decision(trial)
    state = state.partition(",")[0]
    found, over = [], ""
    for rung in halving.rungs:
        score, rank = halving.score(trial, rung), halving.rank(trial, rung)
        if stopped_at is not None and rung > stopped_at:
            outcome = "not reached" if score is None else "continued, score ignored"
            found.append(RungDecision(score, None, outcome))
        elif score is not None:
            waiting = decision is Decision.WAIT and rank is None
            outcome = "stopped" if rung == stopped_at else "waits for earlier trials" if waiting else "continued"
            found.append(RungDecision(score, rank, outcome))
        else:
            outcome = over or _missing_outcome(state, halving.has_ended(trial))
            over = "not reached" if outcome in ("diverged", "failed", "not reached") else outcome
            found.append(RungDecision(None, None, outcome))
    return found


def _missing_outcome(state: str, ended: bool) -> str:
    if state in ("diverged", "failed", "not begun"):
        return state
    if state == "finished":
        return "no score"
    return "not reached" if ended else "not reached yet"


def replay_with_stopping(halving: Halving, reduction: int) -> Halving:
    """The same events with early stopping, for a search without it. It shows which trials would have been stopped."""
    return Halving.replay(halving.events, halving.rungs, reduction)
