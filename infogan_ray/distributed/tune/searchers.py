"""Proposes trials with Optuna's TPE from the scores of earlier trials.

A generation of trials depends only on the scores of all earlier generations. A killed search therefore continues with
the same trials; in return, it waits at the end of each generation. Ray Tune's own adapter proposes a trial when another
trial reports, and pickles its state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.searches.recipe import Recipe, is_free


@dataclass(frozen=True)
class TrialOutcome:
    """The values of an earlier trial, its last score (or None), and the images seen at that score."""

    values: Mapping[str, Any]
    score: float | None
    images: int
    finished: bool


def propose_trials(recipe: Recipe, outcomes: Sequence[TrialOutcome]) -> list[dict[str, Any]]:
    """The searched values of the next generation's trials; the first generation is random.

    Raises UserError if Optuna is not installed or does not support a distribution.
    """
    count = min(recipe.generation, recipe.count - len(outcomes))
    distributions = _distributions(recipe)  # also for the first generation, so that an error does not come hours later
    if not outcomes:
        return [recipe.values(number) for number in range(count)]
    return _tpe(recipe, outcomes, distributions, count)


def _tpe(
    recipe: Recipe, outcomes: Sequence[TrialOutcome], distributions: dict[str, Any], count: int
) -> list[dict[str, Any]]:
    """Tree-structured Parzen estimator (Bergstra et al. 2011). A stopped trial is added with its last score."""
    import optuna

    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([recipe.seed, len(outcomes)]).generate_state(1)[0]),
        n_startup_trials=recipe.generation,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for outcome in outcomes:
        params = {path: outcome.values[path] for path in distributions}
        known: dict[str, Any] = {"params": params, "distributions": distributions}
        if outcome.score is None:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, **known))
        elif outcome.finished:
            study.add_trial(optuna.trial.create_trial(value=outcome.score, **known))
        else:
            pruned: dict[str, Any] = {
                "state": optuna.trial.TrialState.PRUNED,
                "intermediate_values": {outcome.images: outcome.score},
            }
            study.add_trial(optuna.trial.create_trial(**pruned, **known))
    constants = {path: value for path, value in recipe.space.items() if path not in distributions}
    return [{**study.ask(distributions).params, **constants} for _ in range(count)]


def _distributions(recipe: Recipe) -> dict[str, Any]:
    """The searched fields of the space as Optuna distributions."""
    try:
        import optuna
    except ImportError:
        raise UserError("searcher is 'optuna', which is not installed; pip install 'infogan-ray[search]'") from None
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(logging.WARNING)
    try:
        found = OptunaSearch.convert_search_space(dict(recipe.space))
    except (TypeError, ValueError) as error:
        raise UserError(f"space: {error}; use tune.uniform, loguniform, randint or choice") from None
    return {path: found[path] for path, value in recipe.space.items() if is_free(value)}
