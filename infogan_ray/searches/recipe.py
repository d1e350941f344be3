"""Search recipes: a short Python file with Ray Tune's space primitives over configuration fields, loaded and checked.

Trial i of a recipe is a function of (recipe, seed, i) alone, so that a search that was killed goes on with the same
trials. No Ray here: the primitives are asked for values through their own ``sample``.
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
from infogan_ray.models.latents import Categorical
from infogan_ray.searches.asha import rungs
from infogan_ray.training.config import RunConfig, preset

SEARCHERS = ("random", "grid", "optuna", "population")
# What a population may change: a member goes on with the networks and images of another.
IN_MID_RUN = ("objective", "optimizer")
# What decides which trial is stopped, and is kept with the search.
RULE = ("metric", "budget", "grace", "reduction", "early_stopping", "searcher", "generation", "workers", "seed")
# What the bound's ceiling depends on.
PRIORS = ("codes", "network.sigma_min", "network.sigma_fixed")
# What a search itself decides for every trial.
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
# What would make trials incomparable if it differed between them.
ALIKE = (
    "data", "data_dir", "image_size", "channels", "labels", "max_bad", "feed", "evaluation", "device", "keep",
    "max_missed_checkpoints", "mlflow", "wandb",
)  # fmt: skip
# Of a trial's fields, what decides nothing: as the recipe says now, also of a search that goes on.
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
    """Of random search and of Optuna's; a grid has as many as its points, a population as its members and stages."""
    reduction: int = 3
    early_stopping: bool = True
    """False: all trials run to the end, and rungs only take notes."""
    searcher: str = "random"
    """random, grid, optuna (TPE) or population (population-based training: ``grace`` images between exchanges)."""
    generation: int = 4
    """Trials that optuna proposes at once, from the scores of those before; the members of a population."""
    workers: int = 1
    """Data-parallel workers of each trial."""
    seed: int = 0
    """Of the values drawn; each trial's own seed is a field like others."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"trials is {self.trials}; it must be at least 1")
        for name, least in (("workers", 1), ("generation", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
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
            if self.searcher == "population" and path.split(".")[0] not in IN_MID_RUN:
                valid = " and ".join(f"{section}.*" for section in IN_MID_RUN)
                raise UserError(f"space: '{path}' cannot change in mid-run; a population takes {valid}")
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
            if self.searcher == "population":
                self._check_schedules(config)

    @staticmethod
    def _check_schedules(config: RunConfig) -> None:
        """Each stage of a member is a run of its own steps: what falls over a share of them would rise again."""
        decay, noise = config.optimizer.lr_decay, config.stability.instance_noise
        for name, value in (("optimizer.lr_decay", decay), ("stability.instance_noise", noise)):
            if value:
                raise UserError(
                    f"{name} is {value:g}, which falls over a run's steps, and a population trains in stages; "
                    f"fix '{name}' at 0"
                )

    @property
    def count(self) -> int:
        """The number of trials."""
        if self.searcher == "population":
            return self.generation * -(-self.budget // self.grace)
        return math.prod(len(values) for values in self._grids().values()) if self.searcher == "grid" else self.trials

    @property
    def rungs(self) -> tuple[int, ...]:
        """Images seen at which trials are judged."""
        return rungs(self.grace, self.budget, self.reduction)

    @property
    def adaptive(self) -> bool:
        """Whether later trials depend on the scores of earlier ones."""
        return self.searcher in ("optuna", "population")

    def images(self, trial: int) -> int:
        """Images seen by a trial that runs to its end: the budget, but for the earlier stages of a population."""
        stage = trial // self.generation + 1
        return min(self.budget, self.grace * stage) if self.searcher == "population" else self.budget

    def values(self, trial: int) -> dict[str, Any]:
        """The values of the searched fields in a trial; of an adaptive searcher, those that chance would give it."""
        if self.searcher == "grid":
            points = itertools.product(*self._grids().values())
            chosen = dict(zip(self._grids(), next(itertools.islice(points, trial, None)), strict=True))
            return {path: plain(chosen.get(path, value)) for path, value in self.space.items()}
        values = {}
        for position, (path, domain) in enumerate(self.space.items()):
            if is_free(domain):  # a stream of its own per trial and field: more trials change none of the first ones
                state = np.random.RandomState(np.random.SeedSequence([self.seed, trial, position]).generate_state(4))
                domain = domain.sample(random_state=state)
            values[path] = plain(domain)
        return values

    def config(self, trial: int, values: Mapping[str, Any] | None = None) -> RunConfig:
        """The configuration of a trial, by default with its own values.

        It is evaluated, and has a checkpoint, at every rung and at its end. Its model is that of its last step: a high
        bound is reached early, by models that still draw smudges, and trials compare after equally many images only.

        Raises UserError, naming the field, for values that no run can have.
        """
        base = preset(self.preset) if self.preset else RunConfig()
        values = self.values(trial) if values is None else values
        config = base.override(_nested(self.fixed), "recipe").override(_nested(values), f"trial {trial}")
        if is_in_group(self.metric, SORTING):
            config = config.override({"evaluation": {"sorting": True}}, "recipe")
        categorical = any(isinstance(code, Categorical) for _, code in config.latents.items())
        if needs(self.metric, CATEGORICAL_CODE) and not categorical:
            raise UserError(f"metric is '{self.metric}', and trial {trial} has no categorical code; take mi_fraction")
        every = -(-self.grace // config.batch_size)
        return dataclasses.replace(
            config, name=f"trial_{trial:04d}", steps=-(-self.images(trial) // config.batch_size), epochs=None,
            checkpoint_every=every, metric="step", workers=self.workers,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What decides the search, as JSON: the rule, and every trial's configuration as far as it is known."""
        rule = {name: getattr(self, name) for name in RULE}
        space = {path: _describe(value) for path, value in self.space.items()}
        known = range(0 if self.adaptive else self.count)
        return {
            **rule, "count": self.count, "space": space,
            "values": [self.values(trial) for trial in known], "parents": [None for _ in known],
            "trials": [without_trackers(self.config(trial)) for trial in known],
        }  # fmt: skip

    def _grids(self) -> dict[str, list[Any]]:
        return {path: values for path, value in self.space.items() if (values := _grid(value)) is not None}


def without_trackers(config: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in TRACKERS}


def load_recipe(path: str | Path) -> Recipe:
    """The ``recipe`` of a Python file. Raises UserError in one line for a file without one, or with an error in it."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"recipe {file} {what}; name a file such as tuning/quick.py")
    try:
        found = runpy.run_path(str(file)).get("recipe")
    except Exception as error:  # whatever a user's file does
        places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else places[-1] if places else "?"
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"recipe {file}, line {line}: {kind}{' '.join(str(error).split())}") from None
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
