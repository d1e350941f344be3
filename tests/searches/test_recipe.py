"""Search recipes: refused recipes, and trials that depend only on their number.

Run: pytest tests/searches/test_recipe.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infogan_ray.searches.recipe import Recipe, load_recipe

tune = pytest.importorskip("ray.tune")


def recipe(**changes: Any) -> Recipe:
    space = {"objective.lambda_categorical": tune.loguniform(0.1, 3.0), "batch_size": tune.choice([64, 128])}
    return Recipe(**{"space": space, "budget": 90_000, "grace": 10_000, "preset": "mnist", "trials": 4, **changes})


def test_a_trial_depends_only_on_its_number_and_is_evaluated_at_every_rung() -> None:
    few, many = recipe(), recipe(trials=20)
    assert [few.values(trial) for trial in range(4)] == [many.values(trial) for trial in range(4)]
    assert len({str(many.values(trial)) for trial in range(20)}) == 20
    assert recipe(seed=1).values(0) != few.values(0)
    assert few.rungs == (10_000, 30_000)
    for trial in range(4):
        config = few.config(trial)
        assert (
            config.data == "mnist"
            and config.objective.lambda_categorical == few.values(trial)["objective.lambda_categorical"]
        )
        seen = [step * config.batch_size for step in range(0, config.steps or 0, config.checkpoint_every)]
        for rung in few.rungs:
            assert min(images for images in seen if images >= rung) < rung * 1.02


def test_numpy_numbers_are_accepted() -> None:
    for changes in (
        {"space": {"network.width": tune.choice(np.arange(16, 64, 16))}, "fixed": {}},
        {"space": {"network.width": tune.grid_search(list(np.arange(16, 64, 16)))}, "searcher": "grid"},
        {"space": {"network.width": np.int64(16), "objective.lambda_categorical": tune.uniform(0, 1)}},
    ):
        found = recipe(**changes)
        assert (
            json.loads(json.dumps(found.describe()))["trials"][0]["network"]["width"] == found.config(0).network.width
        )


def test_a_grid_has_every_point_once() -> None:
    space = {
        "objective.lambda_categorical": tune.grid_search([0.5, 1.0]),
        "codes": tune.grid_search(["noise=62 cat=5", "noise=62 cat=10", "noise=62 cat=20"]),
        "network.width": 32,
    }
    grid = recipe(space=space, searcher="grid")
    assert grid.count == 6 and len({str(grid.values(trial)) for trial in range(6)}) == 6
    assert grid.config(5).codes == "noise=62 cat=20" and grid.config(5).network.width == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"objective.lambda_catgorical": 1}}, "space has no free dimension"),
        ({"space": {"objective.lambda_catgorical": tune.uniform(0, 1)}}, "did you mean 'lambda_categorical'?"),
        ({"space": {"objective.lambda_categorical": tune.uniform(-2, -1)}}, "objective.lambda_categorical is -1"),
        ({"space": {"steps": tune.choice([1, 2])}}, "'steps' is set by the search"),
        ({"fixed": {"name": "x"}}, "'name' is set by the search"),
        ({"space": {"data": tune.choice(["a", "b"])}}, "'data' must be the same in all trials; give it in 'fixed'"),
        ({"fixed": {"batch_size": 64}}, "'batch_size' is also in 'fixed'"),
        ({"metric": "mi_fractoin"}, "metric is 'mi_fractoin'; valid are mi_fraction, mi_bound, q_"),
        ({"metric": "nmi"}, "needs labels that a search must not see"),
        (
            {"metric": "mi_bound", "fixed": {"prior.learn": True}},
            "prior.learn is on in trial 0: each trial then has another prior",
        ),
        (
            {"metric": "mi_bound", "space": {"codes": tune.choice(["noise=62 cat=5", "noise=62 cat=10"])}},
            "nats of different priors are not comparable",
        ),
        (
            {"metric": "mi_bound", "space": {"network.sigma_min": tune.uniform(0.05, 0.2)}},
            "'network.sigma_min' differs between trials",
        ),
        ({"space": {"batch_size": tune.sample_from(lambda spec: 64)}}, "is tune.sample_from(…), whose values do not"),
        ({"metric": "q_score", "fixed": {"codes": "noise=62 uniform=2"}}, "trial 0 has no categorical code"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"grace": 90_000}, "grace is 90,000 images; it must lie between 0 and the budget of 90,000"),
        ({"searcher": "optunna"}, "searcher is 'optunna'; valid are random, grid, optuna"),
        ({"searcher": "population"}, "searcher is 'population', which was removed; take optuna"),
        ({"searcher": "optuna", "generation": 1}, "generation is 1; it must be at least 2"),
        ({"searcher": "grid"}, "does not suit the searcher 'grid'; give it tune.grid_search"),
        ({"space": {"batch_size": tune.grid_search([1, 2])}}, "does not suit the searcher 'random'"),
        ({"trials": 0}, "trials is 0"),
        ({"trials": 10**14}, "trials is 100,000,000,000,000; it must be at most 10,000"),
        (
            {
                "space": {"batch_size": tune.grid_search([64] * 200), "seed": tune.grid_search([1] * 51)},
                "searcher": "grid",
            },
            "the grid's number of points is 10,200; it must be at most 10,000",
        ),
        ({"space": {"batch_size": tune.grid_search([])}, "searcher": "grid"}, "'batch_size' has an empty grid"),
        ({"preset": "mnits"}, "did you mean 'mnist'?"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        recipe(**changes)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; name a file such as"),
        ("x = 1\n", "has no 'recipe = Recipe"),
        ("x = 1\ny = (\n", "line 2: SyntaxError"),
        (
            "from ray import tune\nfrom infogan_ray.recipes import Recipe\n",
            "line 2: infogan_ray.recipes has moved; write 'from infogan_ray import Recipe'",
        ),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (
            "from infogan_ray import Recipe\n\nrecipe = Recipe(space={}, budget=10, grace=1)\n",
            "line 3: space has no free dimension",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "recipe.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError) as refusal:
        load_recipe(file)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_recipe_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(
        "from ray import tune\nfrom infogan_ray import Recipe\n"
        "recipe = Recipe(space={'objective.lambda_continuous': tune.uniform(0, 1)}, budget=10_000, grace=1_000)\n"
    )
    assert load_recipe(file).count == 12


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "tuning").glob("*.py")), ids=lambda file: file.stem
)
def test_included_recipes_load_and_document_their_command(file: Path) -> None:
    found = load_recipe(file)
    assert found.count >= 4 and len(found.rungs) >= 2
    assert f"infogan search tuning/{file.name}" in file.read_text().split('"""')[1]
