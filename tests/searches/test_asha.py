"""Successive halving: known decisions, the same in every order of reports. Run: pytest tests/searches/test_asha.py"""

from __future__ import annotations

import json
import random

import pytest

from infogan_ray.searches.asha import Halving, Verdict, rungs

RUNGS = (1000, 3000)


def test_rungs_are_powers_of_the_reduction_below_the_budget() -> None:
    assert rungs(1000, 9000, 3) == (1000, 3000)
    assert rungs(1000, 9001, 3) == (1000, 3000, 9000)
    for grace, budget, reduction, said in (
        (9000, 9000, 3, "grace is 9,000 images; it must lie between 0 and the budget of 9,000"),
        (0, 10, 3, "grace is 0"),
        (1, 10, 1, "reduction is 1; it must be at least 2"),
    ):
        with pytest.raises(ValueError, match=said):
            rungs(grace, budget, reduction)


def test_a_trial_is_judged_among_itself_and_those_before_it() -> None:
    """By hand, reduction 3: of 1 to 3 trials one may pass, of 4 to 6 two."""
    halving = Halving(RUNGS, 3)
    for trial, score in enumerate([0.5, 0.6, 0.4, 0.55, 0.7, 0.55]):
        halving.report(trial, 1000, score)
    verdicts = [halving.verdict(trial) for trial in range(6)]
    assert [verdict is Verdict.CONTINUE for verdict in verdicts] == [True, True, False, True, True, False]
    assert halving.place(3, 1000) == (2, 4) and halving.place(5, 1000) == (3, 6)
    assert halving.stopped_at(2) == 1000 and halving.stopped_at(0) is None
    halving.report(0, 3000, 0.9)
    halving.report(1, 3000, 0.8)
    assert halving.stopped_at(1) == 3000 and halving.verdict(0) is Verdict.CONTINUE


def test_lower_may_be_better_and_equals_share_the_better_place() -> None:
    halving = Halving(RUNGS, 2, lower_is_better=True)
    for trial, score in enumerate([0.5, 0.5, 0.6]):
        halving.report(trial, 1000, score)
    assert [halving.verdict(trial) for trial in range(3)] == [Verdict.CONTINUE, Verdict.CONTINUE, Verdict.STOP]


def test_a_trial_ahead_of_earlier_ones_continues_and_is_judged_when_they_have_reported() -> None:
    halving = Halving(RUNGS, 3)
    halving.report(1, 1000, 0.4)
    assert halving.verdict(1) is Verdict.WAIT
    halving.report(1, 3000, 0.9)
    assert halving.verdict(1) is Verdict.WAIT, "however well it does later"
    halving.report(0, 1000, 0.5)
    assert halving.verdict(1) is Verdict.STOP and halving.stopped_at(1) == 1000
    halving.report(0, 3000, 0.1)
    assert halving.place(0, 3000) == (1, 1), "what the stopped one did past its rung does not count"


def test_no_trial_waits_for_one_that_has_ended_and_a_score_that_is_not_finite_never_ranks() -> None:
    halving = Halving(RUNGS, 3)
    halving.report(2, 1000, 0.4)
    halving.report(0, 1000, float("nan"))
    assert halving.verdict(2) is Verdict.WAIT
    halving.end(1)
    assert halving.verdict(2) is Verdict.CONTINUE and halving.place(2, 1000) == (1, 1)


def test_a_second_report_at_a_rung_changes_nothing() -> None:
    """As after a restart from a checkpoint before the rung."""
    halving = Halving(RUNGS, 3)
    for score in (0.5, 0.1):
        halving.report(0, 1000, score)
    halving.report(1, 1200, 0.4)
    assert halving.stopped_at(1) == 1000 and len(halving.events) == 2


@pytest.mark.parametrize("seed", range(20))
def test_every_order_of_reports_gives_the_same_decisions_and_so_does_a_replay(seed: int) -> None:
    """Trials run to their end here, each at its own speed; scores are fixed, the order is not."""
    levels, count = rungs(100, 10_000, 3), 30
    scores = random.Random(1)
    curves = {trial: [scores.random() for _ in levels] for trial in range(count)}
    lost = {4, 17}  # these fail after their first rung

    def decide(order: random.Random) -> list[int | None]:
        halving, progress = Halving(levels, 3), dict.fromkeys(range(count), 0)
        while progress:
            trial = order.choice(list(progress))
            step = progress[trial]
            if halving.verdict(trial) is Verdict.STOP or step == len(levels) or (trial in lost and step == 1):
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
