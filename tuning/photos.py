"""λ, γ and D's learning rate for images of your own: the weights of the bound, and those of the penalties R1 and R2.

    infogan search tuning/photos.py --data photos --name photos

A large λ fills the codes early, but G then writes them into the images as noise. A small γ and a high learning rate
make D strong and images sharp; D may then win. Twelve trials see 64,000 images each before any is stopped, and at most
320,000. Set the image size below.
"""

from ray import tune

from infogan_ray import Recipe

recipe = Recipe(
    preset="photos",
    fixed={"image_size": 64, "channels": 3},
    space={
        "objective.lambda_categorical": tune.loguniform(0.02, 0.5),
        "objective.lambda_continuous": tune.loguniform(0.01, 0.2),
        "stability.r1": tune.loguniform(0.02, 1.0),
        "stability.r2": tune.loguniform(0.02, 1.0),
        "optimizer.lr_discriminator": tune.loguniform(3e-4, 2e-3),
    },
    metric="q_score",
    trials=12,
    grace=64_000,
    budget=320_000,
)
