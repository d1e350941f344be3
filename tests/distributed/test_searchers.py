"""Searchers that learn: functions of the scores before, and of nothing else.

Run: pytest tests/distributed/test_searchers.py
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray.tune")

from ray import tune

from infogan_ray import Recipe
from infogan_ray.distributed.tune.searchers import Past, Proposal, propose

CATEGORICAL, RATE = "objective.lambda_categorical", "optimizer.lr_generator"


def recipe(searcher: str, **changes: Any) -> Recipe:
    space = {CATEGORICAL: tune.loguniform(0.01, 10.0), RATE: tune.choice([1e-4, 1e-3, 1e-2])}
    return Recipe(**{
        "space": space, "budget": 90_000, "grace": 30_000, "preset": "mnist", "trials": 40, "searcher": searcher,
        **changes,
    })  # fmt: skip


def run(one: Recipe, score: Any) -> list[Past]:
    """A whole search, with a trial's score a function of its values."""
    past: list[Past] = []
    while len(past) < one.count:
        new = propose(one, past)
        assert new == propose(one, past), "the same scores give the same trials"
        past += [Past(each.values, score(each.values), one.images(len(past)), True) for each in new]
    return past


def test_optuna_comes_nearer_to_what_is_best_than_chance() -> None:
    pytest.importorskip("optuna")

    def score(values: dict[str, Any]) -> float:
        return -abs(values[CATEGORICAL] - 2.0) - 100 * abs(values[RATE] - 1e-3)

    one = recipe("optuna")
    found, chance = run(one, score), [score(one.values(trial)) for trial in range(40)]
    assert [each.values for each in found[:4]] == [one.values(trial) for trial in range(4)], "the first ones are drawn"
    late = sorted(each.score for each in found[20:] if each.score is not None)
    assert late[10] > sorted(chance)[30], "its later half does better, as a rule, than chance's best quarter"


def test_optuna_takes_stopped_and_failed_trials_for_what_they_are() -> None:
    pytest.importorskip("optuna")
    one = recipe("optuna")
    past = [
        Past(one.values(0), 0.5, 90_000, True), Past(one.values(1), 0.2, 30_000, False),
        Past(one.values(2), None, 0, False), Past(one.values(3), 0.3, 30_000, False),
    ]  # fmt: skip
    assert len(propose(one, past)) == 4
    assert len(propose(recipe("optuna", trials=6), past)) == 2, "no more than the recipe's trials"
    with pytest.raises(ValueError, match=r"space: .*_Normal.*; take tune.uniform"):
        propose(recipe("optuna", space={CATEGORICAL: tune.randn(1.0, 0.01)}), [])


def test_of_a_population_the_worst_takes_over_from_the_best() -> None:
    one = recipe("population", grace=30_000, budget=90_000)
    assert one.count == 12 and [one.images(trial) for trial in (0, 3, 4, 11)] == [30_000, 30_000, 60_000, 90_000]
    assert one.config(4).steps == -(-60_000 // 128)
    first = propose(one, [])
    assert first == [Proposal(one.values(trial)) for trial in range(4)]
    past = [Past(each.values, score, 30_000, True) for each, score in zip(first, [0.3, 0.9, 0.1, 0.5], strict=True)]
    second = propose(one, past)
    assert [each.parent for each in second] == [0, 1, 1, 3]
    assert [second[place].values for place in (0, 1, 3)] == [first[place].values for place in (0, 1, 3)]
    assert second[2].values != first[1].values, "what is taken over is changed"
    assert 0.01 <= second[2].values[CATEGORICAL] <= 10.0 and second[2].values[RATE] in (1e-4, 1e-3, 1e-2)
    past[1] = Past(first[1].values, float("nan"), 30_000, False)
    past[2] = Past(first[2].values, None, 0, False)
    assert [each.parent for each in propose(one, past)] == [3, 3, 3, 3], "what has failed is replaced"
    with pytest.raises(ValueError, match="no trial of the population's trials 0 to 3 came to its end"):
        propose(one, [Past(each.values, None, 0, False) for each in first])


def test_a_population_changes_only_what_can_change_in_mid_run() -> None:
    with pytest.raises(ValueError, match="'network.width' cannot change in mid-run; a population takes objective"):
        recipe("population", space={"network.width": tune.choice([16, 32])})
    with pytest.raises(ValueError, match="generation is 1; it must be at least 2"):
        recipe("population", generation=1)
    integer = recipe("population", space={CATEGORICAL: tune.randint(1, 5)})
    past = [Past({CATEGORICAL: value}, value / 10, 30_000, True) for value in (1, 2, 3, 4)]
    for seed in range(20):
        changed = propose(recipe("population", space=integer.space, seed=seed), past)[0].values[CATEGORICAL]
        assert isinstance(changed, int) and 1 <= changed <= 4, "the upper end of randint is not among its values"
    for fixed in ({"optimizer.lr_decay": 0.5}, {"stability.instance_noise": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(fixed))} is 0.*falls over a run's steps, and a population"):
            recipe("population", fixed=fixed, grace=30_000, budget=90_000)


def test_a_population_stays_on_the_grid_of_a_quantised_domain() -> None:
    for domain, values, grid in (
        (tune.qrandint(2, 8, 2), (2, 4, 6, 8), {2, 4, 6, 8}),
        (tune.quniform(0.05, 1.0, 0.05), (0.05, 0.45, 0.8, 1.0), {round(0.05 * n, 9) for n in range(1, 21)}),
    ):
        past = [Past({CATEGORICAL: value}, number / 10, 30_000, True) for number, value in enumerate(values)]
        for seed in range(20):
            changed = propose(recipe("population", space={CATEGORICAL: domain}, seed=seed), past)[0].values[CATEGORICAL]
            assert round(changed, 9) in grid and isinstance(changed, type(values[0]))
