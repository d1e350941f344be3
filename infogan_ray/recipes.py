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

from infogan_ray.config import LABEL_METRICS, RunConfig, preset
from infogan_ray.halving import rungs

SEARCHERS = ("random", "grid")
# What decides which trial is stopped, and is kept with the search.
RULE = ("metric", "budget", "grace", "reduction", "early_stopping", "searcher", "seed")
# What a search itself decides for every trial.
DECIDED = ("preset", "steps", "epochs", "storage", "name", "resume", "checkpoint_every", "metric", "workers", "threads")
# What would make trials incomparable if it differed between them.
ALIKE = ("data", "data_dir", "image_size", "channels", "evaluation", "device", "keep", "max_missed_checkpoints")


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
    """What rungs compare: mi_fraction, or mi_bound where all trials have the same codes."""
    trials: int = 12
    """Of random search; a grid has as many as its points."""
    reduction: int = 3
    early_stopping: bool = True
    """False: all trials run to the end, and rungs only take notes."""
    searcher: str = "random"
    seed: int = 0
    """Of the values drawn; each trial's own seed is a field like others."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}; it must be at least 1")
        if self.searcher not in SEARCHERS:
            raise ValueError(f"searcher is '{self.searcher}'; valid are {', '.join(SEARCHERS)}")
        if self.metric not in ("mi_fraction", "mi_bound"):
            why = ", which needs labels that a search must not see" if self.metric in LABEL_METRICS else ""
            raise ValueError(f"metric is '{self.metric}'{why}; valid are mi_fraction, mi_bound")
        rungs(self.grace, self.budget, self.reduction)
        for path in (*self.space, *self.fixed):
            if path.split(".")[0] in DECIDED:
                raise ValueError(f"'{path}' is decided by the search, and is neither searched nor fixed by a recipe")
        for path in self.space:
            if path.split(".")[0] in ALIKE:
                raise ValueError(f"space: '{path}' must be the same in all trials; give it in 'fixed'")
        if both := set(self.space) & set(self.fixed):
            raise ValueError(f"space: '{sorted(both)[0]}' is fixed as well; take it out of one of them")
        if not any(_is_free(value) for value in self.space.values()):
            raise ValueError("space has no free dimension; give a field tune.loguniform(…), tune.choice(…) or the like")
        for path, values in self._grids().items():
            if not values:
                raise ValueError(f"space: '{path}' has an empty grid")
        for path, value in self.space.items():
            gridded = _grid(value) is not None
            if _is_free(value) and gridded != (self.searcher == "grid"):
                kind = "tune.grid_search(…)" if self.searcher == "grid" else "a distribution such as tune.choice(…)"
                raise ValueError(f"space: '{path}' does not suit the searcher '{self.searcher}'; give it {kind}")
        configs = [self.config(trial) for trial in range(self.count)]
        if self.metric == "mi_bound" and len({config.codes for config in configs}) > 1:
            raise ValueError(
                "metric is 'mi_bound', and codes differ between trials: nats of different priors do not compare, since "
                "log k grows with k; take mi_fraction"
            )

    @property
    def count(self) -> int:
        """The number of trials."""
        return math.prod(len(values) for values in self._grids().values()) if self.searcher == "grid" else self.trials

    @property
    def rungs(self) -> tuple[int, ...]:
        """Images seen at which trials are judged."""
        return rungs(self.grace, self.budget, self.reduction)

    def values(self, trial: int) -> dict[str, Any]:
        """The values of the searched fields in a trial."""
        if self.searcher == "grid":
            points = itertools.product(*self._grids().values())
            chosen = dict(zip(self._grids(), next(itertools.islice(points, trial, None)), strict=True))
            return {path: chosen.get(path, value) for path, value in self.space.items()}
        values = {}
        for position, (path, domain) in enumerate(self.space.items()):
            if _is_free(domain):  # a stream of its own per trial and field: more trials change none of the first ones
                state = np.random.RandomState(np.random.SeedSequence([self.seed, trial, position]).generate_state(4))
                domain = domain.sample(random_state=state)
            values[path] = domain.item() if isinstance(domain, np.generic) else domain
        return values

    def config(self, trial: int) -> RunConfig:
        """The configuration of a trial: it is evaluated, and has a checkpoint, at every rung and at its end.

        Its model is that of its last step: a high bound is reached early, by models that still draw smudges, and
        trials compare after the same number of images only.

        Raises ValueError, naming the field, for values that no run can have.
        """
        base = preset(self.preset) if self.preset else RunConfig()
        config = base.override(_nested(self.fixed), "recipe").override(_nested(self.values(trial)), f"trial {trial}")
        every = -(-self.grace // config.batch_size)
        return dataclasses.replace(
            config, name=f"trial_{trial:04d}", steps=-(-self.budget // config.batch_size), epochs=None,
            checkpoint_every=every, metric="step", workers=1,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What decides the search, as JSON: the rule, and every trial's configuration."""
        rule = {name: getattr(self, name) for name in RULE}
        trials = [self.config(trial).to_dict() for trial in range(self.count)]
        return {**rule, "values": [self.values(trial) for trial in range(self.count)], "trials": trials}

    def _grids(self) -> dict[str, list[Any]]:
        return {path: values for path, value in self.space.items() if (values := _grid(value)) is not None}


def load_recipe(path: str | Path) -> Recipe:
    """The ``recipe`` of a Python file. Raises ValueError in one line for a file without one, or with an error in it."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ValueError(f"recipe {file} {what}; name a file such as tuning/quick.py")
    try:
        found = runpy.run_path(str(file)).get("recipe")
    except Exception as error:  # whatever a user's file does
        places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else places[-1] if places else "?"
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"recipe {file}, line {line}: {kind}{' '.join(str(error).split())}") from None
    if not isinstance(found, Recipe):
        raise ValueError(f"recipe {file} has no 'recipe = Recipe(…)'; see tuning/ for examples")
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


def _is_free(value: Any) -> bool:
    return hasattr(value, "sample") or _grid(value) is not None
