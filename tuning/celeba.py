"""Ten categorical codes of ten on faces in colour: λ and both learning rates, proposed by Optuna, on a cluster of GPUs.

    pip install 'infogan-ray[search]'
    infogan search tuning/celeba.py --data DIR/img_align_celeba --storage s3://my-bucket/runs --name celeba

--dry-run says what it costs: 24 trials of at most 11,719 steps, and one GPU each. It has been run on pictures made for
the purpose, not on CelebA: what it finds there is not known yet.
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
