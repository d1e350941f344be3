"""Search recipes: a short Python file with Ray Tune's space primitives over configuration fields, loaded and checked.

Trial i of a recipe is a function of (recipe, seed, i) alone, so a search that was killed continues with the same
trials. This module does not import Ray: it draws values by the primitives' own ``sample``.
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
from infogan_ray.training.config import RunConfig, preset

SEARCHERS = ("random", "grid", "optuna")
MOVED_MODULE = "infogan_ray.recipes"  # from which recipe files of earlier versions import Recipe
POPULATION = "population"  # a searcher of earlier versions, whose searches are still listed and reported
# Fields that decide which trials there are and which are stopped. They are saved with the search.
RULE = ("metric", "budget", "grace", "reduction", "early_stopping", "searcher", "generation", "workers", "seed")
# Fields that the bound's ceiling depends on.
PRIORS = ("codes", "network.sigma_min", "network.sigma_fixed")
# Fields that the search decides for every trial.
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
# Fields that must be the same in all trials; otherwise their scores do not compare.
ALIKE = (
    "data", "data_dir", "image_size", "channels", "labels", "max_bad", "feed", "evaluation", "device", "keep",
    "max_missed_checkpoints", "mlflow", "wandb",
)  # fmt: skip
# Fields that decide no score. A resumed search takes them from the recipe as it is now.
TRACKERS = ("mlflow", "wandb")


@dataclass(frozen=True)
class Recipe:
    """What is searched, by which rule, for how long. Budgets are in images seen, of each trial."""

    space: Mapping[str, Any]
    """Field path ('objective.lambda_categorical') -> tune.loguniform(…), tune.choice(…), tune.grid_search(…), …"""
    budget: int
    grace: int
    """Images that every trial sees before it may be stopped: the first rung."""
    preset: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Field path -> value, the same in every trial."""
    metric: str = "mi_fraction"
    """What rungs compare: mi_fraction, mi_bound where all trials have the same codes, q_score (how Q sorts real
    images; see docs/selection.md), or another metric that needs no labels."""
    trials: int = 12
    """The number of trials of random search and of Optuna; a grid has one for each of its points."""
    reduction: int = 3
    early_stopping: bool = True
    """False: all trials run to the end, and rungs only record scores."""
    searcher: str = "random"
    """random, grid or optuna (TPE)."""
    generation: int = 4
    """The number of trials that optuna proposes at a time, from the scores of all trials before them."""
    workers: int = 1
    """Data-parallel workers of each trial."""
    seed: int = 0
    """Of the drawn values. The seed of a trial's training is the field ``seed``."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"trials is {self.trials}; it must be at least 1")
        for name, least in (("workers", 1), ("generation", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.searcher == POPULATION:
            raise UserError(
                f"searcher is '{POPULATION}', which was removed; take optuna, which learns from trials, random or grid"
            )
        if self.searcher not in SEARCHERS:
            raise UserError(f"searcher is '{self.searcher}'; valid are {', '.join(SEARCHERS)}")
        if self.metric not in RUNG_METRICS:
            why = ", which needs labels that a search must not see" if needs(self.metric, LABELS) else ""
            raise UserError(f"metric is '{self.metric}'{why}; valid are {', '.join(RUNG_METRICS)}")
        rungs(self.grace, self.budget, self.reduction)
        for path in (*self.space, *self.fixed):
            if path.split(".")[0] in DECIDED:
                raise UserError(f"'{path}' is decided by the search, and is neither searched nor fixed by a recipe")
        for path in self.space:
            if path.split(".")[0] in ALIKE:
                raise UserError(f"space: '{path}' must be the same in all trials; give it in 'fixed'")
        if both := set(self.space) & set(self.fixed):
            raise UserError(f"space: '{sorted(both)[0]}' is fixed as well; take it out of one of them")
        if not any(is_free(value) for value in self.space.values()):
            raise UserError("space has no free dimension; give a field tune.loguniform(…), tune.choice(…) or the like")
        for path, values in self._grids().items():
            if not values:
                raise UserError(f"space: '{path}' has an empty grid")
        for path, value in self.space.items():
            gridded = _grid(value) is not None
            if is_free(value) and gridded != (self.searcher == "grid"):
                kind = "tune.grid_search(…)" if self.searcher == "grid" else "a distribution such as tune.choice(…)"
                raise UserError(f"space: '{path}' does not suit the searcher '{self.searcher}'; give it {kind}")
        for path, value in self.space.items():
            if hasattr(value, "func"):
                raise UserError(
                    f"space: '{path}' is tune.sample_from(…), whose values do not follow from the seed; take "
                    "tune.choice(…), tune.uniform(…) or the like"
                )
            if is_one_prior(self.metric) and is_free(value) and path in PRIORS:
                raise UserError(
                    f"metric is '{self.metric}', and '{path}' differs between trials: nats of different priors do not "
                    "compare, since their ceilings differ (log k grows with k); take mi_fraction"
                )
        for trial in range(self.count):
            config = self.config(trial)
            if is_one_prior(self.metric) and config.prior.learn:
                raise UserError(
                    f"metric is '{self.metric}', and prior.learn is on in trial {trial}: each trial has a prior of "
                    "its own then, and their nats do not compare; take mi_fraction"
                )

    @property
    def count(self) -> int:
        """The number of trials."""
        return math.prod(len(values) for values in self._grids().values()) if self.searcher == "grid" else self.trials

    @property
    def rungs(self) -> tuple[int, ...]:
        """Images seen at which trials are judged."""
        return rungs(self.grace, self.budget, self.reduction)

    @property
    def adaptive(self) -> bool:
        """Whether later trials depend on the scores of earlier ones."""
        return self.searcher == "optuna"

    def values(self, trial: int) -> dict[str, Any]:
        """The values of the searched fields in a trial; of an adaptive searcher, random ones."""
        if self.searcher == "grid":
            points = itertools.product(*self._grids().values())
            chosen = dict(zip(self._grids(), next(itertools.islice(points, trial, None)), strict=True))
            return {path: plain(chosen.get(path, value)) for path, value in self.space.items()}
        values = {}
        for position, (path, domain) in enumerate(self.space.items()):
            if is_free(domain):  # own generator for each trial and field: more trials change none of the first
                state = np.random.RandomState(np.random.SeedSequence([self.seed, trial, position]).generate_state(4))
                domain = domain.sample(random_state=state)
            values[path] = plain(domain)
        return values

    def config(self, trial: int, values: Mapping[str, Any] | None = None) -> RunConfig:
        """The configuration of a trial, by default with its own values.

        A trial is evaluated, and writes a checkpoint, at every rung and at its end. Its model is that of its last step,
        since trials compare only after equally many images, and models with poor images can have a high bound early.

        Raises UserError, naming the field, for invalid values.
        """
        base = preset(self.preset) if self.preset else RunConfig()
        values = self.values(trial) if values is None else values
        config = base.override(_nested(self.fixed), "recipe").override(_nested(values), f"trial {trial}")
        if is_in_group(self.metric, SORTING):
            config = config.override({"evaluation": {"sorting": True}}, "recipe")
        categorical = any(code.one_hot for code in config.latents.codes)
        if needs(self.metric, CATEGORICAL_CODE) and not categorical:
            raise UserError(f"metric is '{self.metric}', and trial {trial} has no categorical code; take mi_fraction")
        every = -(-self.grace // config.batch_size)
        return dataclasses.replace(
            config, name=f"trial_{trial:04d}", steps=-(-self.budget // config.batch_size), epochs=None,
            checkpoint_every=every, metric="step", workers=self.workers,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What decides the search, as JSON: the rule, and every trial's configuration as far as it is known."""
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
    """The ``recipe`` of a Python file. Raises UserError, with the line, if the file fails or defines none."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"recipe {file} {what}; name a file such as tuning/quick.py")
    try:
        found = runpy.run_path(str(file)).get("recipe")
    except Exception as error:  # a user's file may raise anything
        places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else places[-1] if places else "?"
        where = f"recipe {file}, line {line}"
        if isinstance(error, ModuleNotFoundError) and error.name == MOVED_MODULE:
            raise UserError(f"{where}: {MOVED_MODULE} has moved; write 'from infogan_ray import Recipe'") from None
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{' '.join(str(error).split())}") from None
    if not isinstance(found, Recipe):
        raise UserError(f"recipe {file} has no 'recipe = Recipe(…)'; see tuning/ for examples")
    return found


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
    """A value as JSON and our configuration have it: numpy's own numbers are neither."""
    return value.item() if isinstance(value, np.generic) else value


def _describe(value: Any) -> Any:
    """A value of a space as JSON: a constant and a grid as they are, a distribution by its kind and limits."""
    if (grid := _grid(value)) is not None:
        return {"grid_search": [plain(one) for one in grid]}
    if not hasattr(value, "sample"):
        return plain(value)
    about: dict[str, Any] = {"kind": type(value).__name__.lower()}
    while (sampler := getattr(value, "sampler", None)) is not None:
        limits = {name: plain(v) for name, v in vars(value).items()}
        about |= {k: v for k, v in limits.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if "categories" in limits:
            about["categories"] = [plain(one) for one in limits["categories"]]
        about["sampler"] = type(sampler).__name__.strip("_").lower()
        about |= {k: plain(v) for k, v in vars(sampler).items() if isinstance(plain(v), (int, float))}
        value = sampler
    return about
