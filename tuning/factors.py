"""Which λ gives codes that each contain one factor? For continuous codes only, on the dataset ``shapes``.

    infogan search tuning/factors.py --name factors
    infogan compare runs/factors

A large λ raises the bound fastest, but then each code mixes several factors. So the bound cannot select the best trial,
and it stops none. ``compare`` finds the codes that several trials share, without labels.
"""

from ray import tune

from infogan_ray import Recipe

recipe = Recipe(
    preset="shapes",
    space={
        "objective.lambda_continuous": tune.grid_search([0.05, 0.2, 1.0]),
        "seed": tune.grid_search([0, 1]),
    },
    searcher="grid",
    early_stopping=False,
    grace=128_000,
    budget=768_000,
)
