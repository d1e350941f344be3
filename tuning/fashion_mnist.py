"""λ, both learning rates and the batch on Fashion-MNIST, whose ten kinds of clothing are harder to tell than digits.

infogan search tuning/fashion_mnist.py --trials 8 --name fashion
"""

from ray import tune

from infogan_ray.recipes import Recipe

recipe = Recipe(
    preset="fashion_mnist",
    space={
        "objective.lambda_categorical": tune.loguniform(0.1, 3.0),
        "objective.lambda_continuous": tune.loguniform(0.03, 1.0),
        "optimizer.lr_discriminator": tune.loguniform(5e-5, 1e-3),
        "optimizer.lr_generator": tune.loguniform(2e-4, 4e-3),
    },
    fixed={"network.width": 16},
    metric="q_score",
    trials=8,
    grace=16_700,
    budget=150_000,
)
