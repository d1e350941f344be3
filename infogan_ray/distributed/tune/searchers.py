"""Searchers that learn from the trials before: Optuna's TPE, and population-based training.

Trials are proposed a generation at a time, from the scores of all generations before it and from nothing else. That
costs a wait at the end of each generation, and buys that a search which was killed goes on with the very trials that
it would have had: a proposer has no state that a crash could lose. It is also why Tune's own adapters, which propose
trials as they report and keep their state in pickles, are not used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.searches.recipe import Recipe, is_free

QUANTILE = 0.25  # of a population: the worst this many take over from the best this many
RESAMPLED = 0.25  # how often a value is drawn afresh and not changed by a factor
FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Past:
    """What is known of a trial: its values, and its last score with the images seen by then; None without one."""

    values: Mapping[str, Any]
    score: float | None
    images: int
    finished: bool


@dataclass(frozen=True)
class Proposal:
    """The values of a new trial, and the number of the trial whose last checkpoint it goes on from."""

    values: dict[str, Any]
    parent: int | None = None


def propose(recipe: Recipe, past: Sequence[Past]) -> list[Proposal]:
    """The next generation of a search by a searcher that learns; the first one is drawn at random.

    Raises UserError where Optuna is not installed or does not know a kind of distribution, and where no member of a
    population is left to go on from.
    """
    count = min(recipe.generation, recipe.count - len(past))
    if recipe.searcher == "optuna":
        distributions = _distributions(recipe)  # at once: that something is missing should not be news hours later
        if past:
            return [Proposal(values) for values in _by_optuna(recipe, past, distributions, count)]
    if not past:
        return [Proposal(recipe.values(number)) for number in range(count)]
    return _by_population(recipe, past)


def _by_optuna(recipe: Recipe, past: Sequence[Past], distributions: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Tree-structured Parzen estimator (Bergstra et al. 2011); a stopped trial counts as far as it came."""
    import optuna

    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([recipe.seed, len(past)]).generate_state(1)[0]),
        n_startup_trials=recipe.generation,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in past:
        params = {path: trial.values[path] for path in distributions}
        known: dict[str, Any] = {"params": params, "distributions": distributions}
        if trial.score is None:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, **known))
        elif trial.finished:
            study.add_trial(optuna.trial.create_trial(value=trial.score, **known))
        else:
            pruned: dict[str, Any] = {
                "state": optuna.trial.TrialState.PRUNED,
                "intermediate_values": {trial.images: trial.score},
            }
            study.add_trial(optuna.trial.create_trial(**pruned, **known))
    constants = {path: value for path, value in recipe.space.items() if path not in distributions}
    return [{**study.ask(distributions).params, **constants} for _ in range(count)]


def _distributions(recipe: Recipe) -> dict[str, Any]:
    try:
        import optuna
    except ImportError:
        raise UserError("searcher is 'optuna', which is not installed; pip install 'infogan-ray[search]'") from None
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(logging.WARNING)
    try:
        found = OptunaSearch.convert_search_space(dict(recipe.space))
    except (TypeError, ValueError) as error:
        raise UserError(f"space: {error}; take tune.uniform, loguniform, randint or choice") from None
    return {path: found[path] for path, value in recipe.space.items() if is_free(value)}


def _by_population(recipe: Recipe, past: Sequence[Past]) -> list[Proposal]:
    """Jaderberg et al. 2017 ("Population Based Training of Neural Networks"), with truncation selection.

    Every member goes on from its own checkpoint, but the worst QUANTILE, and those that failed, from that of one of
    the best, with values that are changed a little.
    """
    size = recipe.generation
    first = len(past) - size  # the number of the last generation's first member
    members = list(past[first:])
    order = sorted(
        (place for place, member in enumerate(members) if _ranks(member)),
        key=lambda place: (-_score(members[place]), place),
    )
    if not order:
        raise UserError(f"no trial of the population's trials {first} to {len(past) - 1} came to its end")
    few = max(1, math.ceil(len(order) * QUANTILE))
    best = order[:few]
    losers = {place for place in range(size) if not _ranks(members[place])}
    losers |= {place for place in order[-few:] if place not in best}
    proposals = []
    for place, member in enumerate(members):
        if place not in losers:
            proposals.append(Proposal(dict(member.values), first + place))
            continue
        rng = np.random.RandomState(np.random.SeedSequence([recipe.seed, len(past) + place]).generate_state(4))
        donor = int(rng.choice(best))
        values = {
            path: _changed(recipe.space[path], value, rng) for path, value in members[donor].values.items()
        }  # fmt: skip
        proposals.append(Proposal(values, first + donor))
    return proposals


def _ranks(member: Past) -> bool:
    return member.finished and member.score is not None and math.isfinite(member.score)


def _score(member: Past) -> float:
    assert member.score is not None
    return member.score


def _changed(domain: Any, value: Any, rng: np.random.RandomState) -> Any:
    """Drawn afresh, or moved: by one of FACTORS inside the domain's limits, or to the choice beside it."""
    if not is_free(domain):
        return value
    if rng.rand() < RESAMPLED:
        drawn = domain.sample(random_state=rng)
        return drawn.item() if isinstance(drawn, np.generic) else drawn
    up = bool(rng.rand() < 0.5)
    choices = getattr(domain, "categories", None)
    if choices is not None:
        place = list(choices).index(value) + (1 if up else -1)
        return choices[min(max(place, 0), len(choices) - 1)]
    step = getattr(domain.sampler, "q", None) or (1 if isinstance(value, int) else None)
    most = domain.upper - 1 if isinstance(value, int) and step == 1 else domain.upper  # as Ray draws integers
    moved = min(max(value * FACTORS[up], domain.lower), most)
    if step is None:
        return float(moved)
    places = min(max(round(moved / step), math.ceil(domain.lower / step)), math.floor(most / step))
    return type(value)(places * step)
