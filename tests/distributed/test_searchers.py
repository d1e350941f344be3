"""Optuna's proposals depend only on earlier scores.

Run: pytest tests/distributed/test_searchers.py
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray.tune")

from ray import tune

from infogan_ray import Recipe, UserError
from infogan_ray.distributed.tune.searchers import TrialOutcome, propose_trials

CATEGORICAL, RATE = "objective.lambda_categorical", "optimizer.lr_generator"


def recipe(**changes: Any) -> Recipe:
    space = {CATEGORICAL: tune.loguniform(0.01, 10.0), RATE: tune.choice([1e-4, 1e-3, 1e-2])}
    return Recipe(**{
        "space": space, "budget": 90_000, "grace": 30_000, "preset": "mnist", "trials": 40,
        "searcher": "optuna", **changes,
    })  # fmt: skip


def run(base: Recipe, score: Any) -> list[TrialOutcome]:
    """A complete search in which ``score(values)`` is the score of a trial."""
    outcomes: list[TrialOutcome] = []
    while len(outcomes) < base.count:
        proposed = propose_trials(base, outcomes)
        assert proposed == propose_trials(base, outcomes), "the same scores give the same trials"
        outcomes += [TrialOutcome(values, score(values), base.budget, True) for values in proposed]
    return outcomes


def test_optuna_finds_better_values_than_random_search() -> None:
    pytest.importorskip("optuna")

    def score(values: dict[str, Any]) -> float:
        return -abs(values[CATEGORICAL] - 2.0) - 100 * abs(values[RATE] - 1e-3)

    base = recipe()
    found, chance = run(base, score), [score(base.values(trial)) for trial in range(40)]
    assert [each.values for each in found[:4]] == [base.values(trial) for trial in range(4)], "the first are random"
    late = sorted(each.score for each in found[20:] if each.score is not None)
    assert late[10] > sorted(chance)[30], (
        "the median of its later half is better than the best quarter of random search"
    )


def test_optuna_accepts_stopped_and_failed_trials() -> None:
    pytest.importorskip("optuna")
    base = recipe()
    outcomes = [
        TrialOutcome(base.values(0), 0.5, 90_000, True), TrialOutcome(base.values(1), 0.2, 30_000, False),
        TrialOutcome(base.values(2), None, 0, False), TrialOutcome(base.values(3), 0.3, 30_000, False),
    ]  # fmt: skip
    assert len(propose_trials(base, outcomes)) == 4
    assert len(propose_trials(recipe(trials=6), outcomes)) == 2, "no more than the recipe's trials"
    with pytest.raises(UserError, match=r"space: .*_Normal.*; use tune.uniform"):
        propose_trials(recipe(space={CATEGORICAL: tune.randn(1.0, 0.01)}), [])
