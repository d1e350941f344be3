"""The worst result of a preset: five trials that differ only in their seed. None is stopped, so bad ones also finish.

    infogan search tuning/seeds.py --name seeds

Five trials of 1,500 steps each; on two cores, two run at a time. Replace the preset and add fields as you need.
``python -m benchmarks.quality --search runs/seeds``, in a checkout, prints the mean and the worst result.
"""

from ray import tune

from infogan_ray import Recipe

recipe = Recipe(
    preset="mnist_robust",
    space={"seed": tune.grid_search([0, 1, 2, 3, 4])},
    metric="q_score",
    searcher="grid",
    early_stopping=False,
    grace=32_000,
    budget=192_000,
)
