"""Ten categorical codes with ten categories each, on colour images of faces: Optuna proposes λ and both learning rates.

    pip install 'infogan-ray[search]'
    infogan search tuning/celeba.py --data DIR/img_align_celeba --storage s3://my-bucket/runs --name celeba

For a cluster of GPUs. --dry-run shows the cost: 24 trials of at most 11,719 steps, with one GPU each. The recipe was
tested on generated images, not on CelebA, so its result on CelebA is not known yet.
"""

from ray import tune

from infogan_ray import Recipe

recipe = Recipe(
    preset="celeba",
    space={
        "objective.lambda_categorical": tune.loguniform(0.1, 3.0),
        "optimizer.lr_discriminator": tune.loguniform(5e-5, 1e-3),
        "optimizer.lr_generator": tune.loguniform(2e-4, 4e-3),
    },
    searcher="optuna",
    generation=6,
    trials=24,
    grace=150_000,
    budget=1_500_000,
)
