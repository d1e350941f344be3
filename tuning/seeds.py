"""How good is the preset at its worst? Five seeds, the rest alike, and none stopped: the bad ones are asked about.

    infogan search tuning/seeds.py --name seeds

Five trials of 1,500 steps each; two at a time on two cores. Put a preset and fields of your own in place of these.
``python -m benchmarks.quality --search runs/seeds``, in a checkout, prints mean and worst.
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
