"""λ and both learning rates on MNIST, codes as in the paper.

infogan search tuning/mnist.py --trials 12 --name mnist
"""

from ray import tune

from infogan_ray.recipes import Recipe

recipe = Recipe(
    preset="mnist",
    space={
        "objective.lambda_categorical": tune.loguniform(0.1, 3.0),
        "objective.lambda_continuous": tune.loguniform(0.03, 1.0),
        "optimizer.lr_discriminator": tune.loguniform(5e-5, 1e-3),
        "optimizer.lr_generator": tune.loguniform(2e-4, 4e-3),
    },
    fixed={"network.width": 24},
    trials=12,
    grace=16_700,
    budget=150_000,
)
