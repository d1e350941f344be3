"""Search recipes: loads and checks a short Python file with Ray Tune search spaces for configuration fields.

Trial i depends only on (recipe, seed, i), so a killed search continues with the same trials. This module does not
import Ray: it samples values by the ``sample`` method of the search spaces.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import runpy
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import (
    CATEGORICAL_CODE,
    LABELS,
    RUNG_METRICS,
    SORTING,
    is_in_group,
    is_one_prior,
    needs,
)
from infogan_ray.searches.asha import rungs
from infogan_ray.training.config import RunConfig

SEARCHERS = ("random", "grid", "optuna")
MOVED_MODULE = "infogan_ray.recipes"  # recipe files of earlier versions import Recipe from it
POPULATION = "population"  # a searcher of earlier versions; its searches are still listed and reported
# Fields that determine the trials and which of them are stopped. They are saved with the search.
RULE = ("metric", "budget", "grace", "reduction", "early_stopping", "searcher", "generation", "workers", "seed")
# Fields that change the largest possible bound.
PRIORS = ("codes", "network.sigma_min", "network.sigma_fixed")
# Fields that the search sets for every trial.
DECIDED = (
    "preset",
    "steps",
    "epochs",
    "storage",
    "name",
    "resume",
    "checkpoint_every",
    "metric",
    "workers",
    "threads",
    "ray",
)
MOST_TRIALS = 10_000
# Fields that must be the same in all trials; otherwise scores are not comparable.
SAME_IN_ALL_TRIALS = (
    "data", "data_dir", "image_size", "channels", "labels", "max_bad", "hold_out", "pixel_range", "fit", "feed",
    "evaluation", "device", "keep", "max_missed_checkpoints", "mlflow", "wandb",
)  # fmt: skip
# Fields that do not change scores. A resumed search takes them from the current recipe.
TRACKERS = ("mlflow", "wandb")


@dataclass(frozen=True)
class Recipe:
    """The search space, the rule and the budgets of a search. Budgets are images seen by each trial."""

    space: Mapping[str, Any]
    """Field path ('objective.lambda_categorical') -> tune.loguniform(…), tune.choice(…), tune.grid_search(…), …"""
    budget: int
    grace: int
    """The first rung: images that every trial sees before it can be stopped."""
    preset: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Field path -> value for all trials."""
    metric: str = "mi_fraction"
    """The metric that rungs compare: mi_fraction, mi_bound (if all trials have the same codes), q_score (how well Q
    sorts real images, see docs/research/selection.md), or another metric that needs no labels."""
    trials: int = 12
    """The number of trials of random search and Optuna. A grid has one trial for each of its points."""
    reduction: int = 3
    early_stopping: bool = True
    """False: no trial is stopped, and rungs only record scores."""
    searcher: str = "random"
    """random, grid or optuna (TPE)."""
    generation: int = 4
    """The number of trials that optuna proposes at a time, from the scores of all earlier trials."""
    workers: int = 1
    """Data-parallel workers of each trial."""
    seed: int = 0
    """Seed of the sampled values. The seed of a trial's training is the configuration field ``seed``."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"trials is {self.trials}; it must be at least 1")
        for name, minimum in (("workers", 1), ("generation", 2)):
            if getattr(self, name) < minimum:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.searcher == POPULATION:
            raise UserError(
                f"searcher is '{POPULATION}', which was removed; take optuna, which learns from trials, random or grid"
            )
        if self.searcher not in SEARCHERS:
            raise UserError(f"searcher is '{self.searcher}'; valid are {', '.join(SEARCHERS)}")
        if self.metric not in RUNG_METRICS:
            reason = ", which needs labels that a search must not see" if needs(self.metric, LABELS) else ""
            raise UserError(f"metric is '{self.metric}'{reason}; valid are {', '.join(RUNG_METRICS)}")
        rungs(self.grace, self.budget, self.reduction)
        for path in (*self.space, *self.fixed):
            if path.split(".")[0] in DECIDED:
                raise UserError(f"'{path}' is set by the search; a recipe can neither search nor fix it")
        for path in self.space:
            if path.split(".")[0] in SAME_IN_ALL_TRIALS:
                raise UserError(f"space: '{path}' must be the same in all trials; give it in 'fixed'")
        if repeated := set(self.space) & set(self.fixed):
            raise UserError(f"space: '{sorted(repeated)[0]}' is also in 'fixed'; remove it from one of them")
        if not any(is_free(value) for value in self.space.values()):
            raise UserError("space has no free dimension; give a field tune.loguniform(…), tune.choice(…) or the like")
        for path, values in self._grids().items():
            if not values:
                raise UserError(f"space: '{path}' has an empty grid")
        if self.count > MOST_TRIALS:
            what = "the grid's number of points" if self.searcher == "grid" else "trials"
            raise UserError(f"{what} is {self.count:,}; it must be at most {MOST_TRIALS:,}")
        for path, value in self.space.items():
            gridded = _grid(value) is not None
            if is_free(value) and gridded != (self.searcher == "grid"):
                kind = "tune.grid_search(…)" if self.searcher == "grid" else "a distribution such as tune.choice(…)"
                raise UserError(f"space: '{path}' does not suit the searcher '{self.searcher}'; give it {kind}")
        for path, value in self.space.items():
            if hasattr(value, "func"):
                raise UserError(
                    f"space: '{path}' is tune.sample_from(…), whose values do not depend on the seed; use "
                    "tune.choice(…), tune.uniform(…) or the like"
                )
            if is_one_prior(self.metric) and is_free(value) and path in PRIORS:
                raise UserError(
                    f"metric is '{self.metric}', and '{path}' differs between trials: nats of different priors are "
                    "not comparable, because the largest possible bound differs (log k grows with k); take mi_fraction"
                )
        for trial in range(self.count):
            config = self.config(trial)
            if is_one_prior(self.metric) and config.prior.learn:
                raise UserError(
                    f"metric is '{self.metric}', and prior.learn is on in trial {trial}: each trial then has another "
                    "prior, and their nats are not comparable; take mi_fraction"
                )

    @property
    def count(self) -> int:
        """The number of trials."""
        return math.prod(len(values) for values in self._grids().values()) if self.searcher == "grid" else self.trials

    @property
    def rungs(self) -> tuple[int, ...]:
        """The rungs, in images seen."""
        return rungs(self.grace, self.budget, self.reduction)

    @property
    def adaptive(self) -> bool:
        """Whether later trials depend on the scores of earlier ones."""
        return self.searcher == "optuna"

    def values(self, trial: int) -> dict[str, Any]:
        """The values of the searched fields in a trial; for an adaptive searcher, random ones."""
        if self.searcher == "grid":
            points = itertools.product(*self._grids().values())
            chosen = dict(zip(self._grids(), next(itertools.islice(points, trial, None)), strict=True))
            return {path: plain(chosen.get(path, value)) for path, value in self.space.items()}
        values = {}
        for position, (path, domain) in enumerate(self.space.items()):
            if is_free(domain):  # a generator for each trial and field: more trials do not change the first ones
                state = np.random.RandomState(np.random.SeedSequence([self.seed, trial, position]).generate_state(4))
                domain = domain.sample(random_state=state)
            values[path] = plain(domain)
        return values

    def config(self, trial: int, values: Mapping[str, Any] | None = None) -> RunConfig:
        """The configuration of a trial, by default with its own values.

        A trial is evaluated, and writes a checkpoint, at every rung and at its end. Its model comes from its last step:
        trials are comparable only after equal numbers of images, and an early bound can be high with poor images.

        Raises UserError, which names the field, for invalid values.
        """
        base = RunConfig(preset=self.preset)
        values = self.values(trial) if values is None else values
        config = base.override(_nested(self.fixed), "recipe").override(_nested(values), f"trial {trial}")
        if is_in_group(self.metric, SORTING):
            config = config.override({"evaluation": {"sorting": True}}, "recipe")
        categorical = any(code.one_hot for code in config.latents.codes)
        if needs(self.metric, CATEGORICAL_CODE) and not categorical:
            raise UserError(f"metric is '{self.metric}', and trial {trial} has no categorical code; take mi_fraction")
        checkpoint_every = -(-self.grace // config.batch_size)
        return dataclasses.replace(
            config, name=f"trial_{trial:04d}", steps=-(-self.budget // config.batch_size), epochs=None,
            checkpoint_every=checkpoint_every, metric="step", workers=self.workers,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """The search as JSON: the rule, the space, and the configurations of all trials that are known."""
        rule = {name: getattr(self, name) for name in RULE}
        space = {path: _describe(value) for path, value in self.space.items()}
        known = range(0 if self.adaptive else self.count)
        return {
            **rule, "count": self.count, "space": space,
            "values": [self.values(trial) for trial in known],
            "trials": [without_trackers(self.config(trial)) for trial in known],
        }  # fmt: skip

    def _grids(self) -> dict[str, list[Any]]:
        return {path: values for path, value in self.space.items() if (values := _grid(value)) is not None}


def without_trackers(config: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in TRACKERS}


def load_recipe(path: str | Path) -> Recipe:
    """Load ``recipe`` from a Python file. Raises UserError, with the line, if the file fails or defines none."""
    file = Path(path).expanduser()
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"recipe {file} {problem}; name a file such as tuning/quick.py")
    try:
        recipe = runpy.run_path(str(file)).get("recipe")
    except Exception as error:  # a user's file may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        location = f"recipe {file}, line {line}"
        if isinstance(error, ModuleNotFoundError) and error.name == MOVED_MODULE:
            raise UserError(f"{location}: {MOVED_MODULE} has moved; write 'from infogan_ray import Recipe'") from None
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{location}: {kind}{' '.join(str(error).split())}") from None
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe {file} has no 'recipe = Recipe(…)'; see tuning/ for examples")
    return recipe


def _nested(paths: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in paths.items():
        *sections, name = path.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return values


def _grid(value: Any) -> list[Any] | None:
    return list(value["grid_search"]) if isinstance(value, dict) and set(value) == {"grid_search"} else None


def is_free(value: Any) -> bool:
    """Whether a value of a space is a distribution or a grid, and not a constant."""
    return hasattr(value, "sample") or _grid(value) is not None


def plain(value: Any) -> Any:
    """Convert numpy numbers to Python numbers, which JSON and the configuration need."""
    return value.item() if isinstance(value, np.generic) else value


def _describe(value: Any) -> Any:
    """A value of a space as JSON: a constant and a grid unchanged, a distribution as its kind and limits."""
    if (grid := _grid(value)) is not None:
        return {"grid_search": [plain(item) for item in grid]}
    if not hasattr(value, "sample"):
        return plain(value)
    description: dict[str, Any] = {"kind": type(value).__name__.lower()}
    while (sampler := getattr(value, "sampler", None)) is not None:
        limits = {name: plain(v) for name, v in vars(value).items()}
        description |= {k: v for k, v in limits.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if "categories" in limits:
            description["categories"] = [plain(item) for item in limits["categories"]]
        description["sampler"] = type(sampler).__name__.strip("_").lower()
        description |= {k: plain(v) for k, v in vars(sampler).items() if isinstance(plain(v), (int, float))}
        value = sampler
    return description
