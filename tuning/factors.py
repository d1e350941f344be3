"""Which weight on the bound makes codes of one factor each? For continuous codes alone; here of the drawn shapes.

    infogan search tuning/factors.py --name factors
    infogan compare runs/factors

A large weight fills the codes soonest, and then none of them is one thing: the bound cannot choose here, and no trial
is stopped by it. ``compare`` asks without labels which codes several trials have in common.
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
