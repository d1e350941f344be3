"""Successive halving: known decisions, independent of the order of reports. Run: pytest tests/searches/test_asha.py"""

from __future__ import annotations

import json
import random

import pytest

from infogan_ray.searches.asha import Decision, Halving, rungs

RUNGS = (1000, 3000)


def test_rungs_are_powers_of_the_reduction_below_the_budget() -> None:
    assert rungs(1000, 9000, 3) == (1000, 3000)
    assert rungs(1000, 9001, 3) == (1000, 3000, 9000)
    for grace, budget, reduction, message in (
        (9000, 9000, 3, "grace is 9,000 images; it must lie between 0 and the budget of 9,000"),
        (0, 10, 3, "grace is 0"),
        (1, 10, 1, "reduction is 1; it must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            rungs(grace, budget, reduction)


def test_a_trial_is_compared_with_itself_and_earlier_trials() -> None:
    """Reduction 3: one of 1 to 3 trials continues, two of 4 to 6."""
    halving = Halving(RUNGS, 3)
    for trial, score in enumerate([0.5, 0.6, 0.4, 0.55, 0.7, 0.55]):
        halving.report(trial, 1000, score)
    decisions = [halving.decision(trial) for trial in range(6)]
    assert [decision is Decision.CONTINUE for decision in decisions] == [True, True, False, True, True, False]
    assert halving.rank(3, 1000) == (2, 4) and halving.rank(5, 1000) == (3, 6)
    assert halving.stopped_at(2) == 1000 and halving.stopped_at(0) is None
    halving.report(0, 3000, 0.9)
    halving.report(1, 3000, 0.8)
    assert halving.stopped_at(1) == 3000 and halving.decision(0) is Decision.CONTINUE


def test_lower_scores_can_be_better_and_equal_scores_share_the_better_place() -> None:
    halving = Halving(RUNGS, 2, lower_is_better=True)
    for trial, score in enumerate([0.5, 0.5, 0.6]):
        halving.report(trial, 1000, score)
    assert [halving.decision(trial) for trial in range(3)] == [Decision.CONTINUE, Decision.CONTINUE, Decision.STOP]


def test_a_trial_ahead_of_earlier_ones_continues_and_is_decided_when_they_report() -> None:
    halving = Halving(RUNGS, 3)
    halving.report(1, 1000, 0.4)
    assert halving.decision(1) is Decision.WAIT
    halving.report(1, 3000, 0.9)
    assert halving.decision(1) is Decision.WAIT, "later scores do not matter"
    halving.report(0, 1000, 0.5)
    assert halving.decision(1) is Decision.STOP and halving.stopped_at(1) == 1000
    halving.report(0, 3000, 0.1)
    assert halving.rank(0, 3000) == (1, 1), "scores of a stopped trial after its rung do not count"


def test_no_trial_waits_for_an_ended_trial_and_non_finite_scores_never_rank() -> None:
    halving = Halving(RUNGS, 3)
    halving.report(2, 1000, 0.4)
    halving.report(0, 1000, float("nan"))
    assert halving.decision(2) is Decision.WAIT
    halving.end(1)
    assert halving.decision(2) is Decision.CONTINUE and halving.rank(2, 1000) == (1, 1)


def test_a_second_report_at_a_rung_changes_nothing() -> None:
    """This happens after a restart from a checkpoint before the rung."""
    halving = Halving(RUNGS, 3)
    for score in (0.5, 0.1):
        halving.report(0, 1000, score)
    halving.report(1, 1200, 0.4)
    assert halving.stopped_at(1) == 1000 and len(halving.events) == 2


@pytest.mark.parametrize("seed", range(20))
def test_every_order_of_reports_and_a_replay_give_the_same_decisions(seed: int) -> None:
    """Each trial runs at its own speed until it ends. Scores are fixed, their order is random."""
    levels, count = rungs(100, 10_000, 3), 30
    scores = random.Random(1)
    curves = {trial: [scores.random() for _ in levels] for trial in range(count)}
    lost = {4, 17}  # these fail after their first rung

    def decide(order: random.Random) -> list[int | None]:
        halving, progress = Halving(levels, 3), dict.fromkeys(range(count), 0)
        while progress:
            trial = order.choice(list(progress))
            step = progress[trial]
            if halving.decision(trial) is Decision.STOP or step == len(levels) or (trial in lost and step == 1):
                halving.end(trial)
                del progress[trial]
                continue
            halving.report(trial, levels[step], curves[trial][step])
            progress[trial] += 1
            if order.random() < 0.2:  # a crash, and a new searcher
                events = json.loads(json.dumps(halving.events))
                halving = Halving.replay(events, levels, 3)
        return [halving.stopped_at(trial) for trial in range(count)]

    decisions = decide(random.Random(seed))
    assert decisions == decide(random.Random(1000))
    assert sum(rung is None for rung in decisions) < count / 2
