"""The outcome of each trial at each rung, in words, from the events of a search's halving."""

from __future__ import annotations

from dataclasses import dataclass

from infogan_ray.searches.asha import Halving, Verdict


@dataclass(frozen=True)
class Decision:
    """``score``: the metric at the rung, or None. ``place``: (rank, number of trials ranked), or None."""

    score: float | None
    place: tuple[int, int] | None
    outcome: str


def decisions(halving: Halving, trial: int, state: str) -> list[Decision]:
    """One decision for each rung, in order. ``state``: the state in the trial's row."""
    stopped_at, verdict = halving.stopped_at(trial), halving.verdict(trial)
    state = state.partition(",")[0]
    found, over = [], ""
    for rung in halving.rungs:
        score, place = halving.score(trial, rung), halving.place(trial, rung)
        if stopped_at is not None and rung > stopped_at:
            outcome = "never got there" if score is None else "had continued, does not count"
            found.append(Decision(score, None, outcome))
        elif score is not None:
            waiting = verdict is Verdict.WAIT and place is None
            outcome = "stopped" if rung == stopped_at else "waits for earlier trials" if waiting else "went on"
            found.append(Decision(score, place, outcome))
        else:
            outcome = over or _missing_outcome(state, halving.has_ended(trial))
            over = "never got there" if outcome in ("diverged", "failed", "never got there") else outcome
            found.append(Decision(None, None, outcome))
    return found


def _missing_outcome(state: str, ended: bool) -> str:
    if state in ("diverged", "failed", "not begun"):
        return state
    if state == "finished":
        return "no score"
    return "never got there" if ended else "not there yet"


def replay_with_stopping(halving: Halving, reduction: int) -> Halving:
    """The same events with early stopping: what it would have stopped in a search that ran all trials to their end."""
    return Halving.replay(halving.events, halving.rungs, reduction)
