"""What ``infogan train --help`` prints. ``--help-all`` lists every setting."""

from __future__ import annotations

SHORT = """usage: infogan train [CONFIG.yaml] [OPTIONS]

Train an InfoGAN. Flags override CONFIG.yaml, which overrides the preset.

Examples:
  infogan train --preset mnist_robust --name first
  infogan train --preset photos --data photos --image-size 64 --channels 3
  infogan train --name first --resume

data
  --preset NAME             mnist_robust (digits), glyphs (letters, signs), photos (colour, or above 32 x 32), shapes;
                            the paper's form: mnist, fashion_mnist, svhn, celeba, faces, chairs
  --data NAME|PATH|URI      mnist, fashion_mnist, shapes, or images: a folder, .zip, .tar, .npz or prepared data
  --image-size PIXELS       height and width to which images are resized
  --channels 1|3            grey or RGB
  --labels FILE             a CSV or JSON list of files and labels, to measure errors

model
  --codes 'noise=62 cat=10 uniform=2'
                            G's inputs: noise=N, and codes cat=K, uniform=N, gaussian=N, bernoulli=N, vonmises=N
  --network.width N         channels of D's first convolution; all other layers scale with it

objective
  --objective.lambda-categorical W
  --objective.lambda-continuous W
                            weights of the mutual-information bound
  --consistency W           weight of the term that makes Q ignore small rotations, sizes and shifts

run
  --steps N | --epochs N    length of the run
  --batch-size N            images of a step, over all workers
  --seed N                  equal seeds give equal runs on a CPU
  --resume                  continue the run of this --name with its own settings
  --start-or-resume         continue it if it exists, else start it (for schedulers)
  --dry-run                 print the time, memory and storage that the run takes; start nothing
  --measure                 with --dry-run: time some steps on this machine, for ten seconds or more
  --json                    print one JSON object on stdout

resources
  --workers N|MIN:MAX       data-parallel workers
  --device auto|cpu|cuda
  --threads N               CPU threads of each worker
  --precision auto|fp32|tf32|bf16

storage
  --storage FOLDER|URI      a folder, s3://bucket/prefix or gs://bucket/prefix
  --name NAME               by default the data and the time
  --checkpoint-every STEPS
  --keep N                  checkpoints to keep; the best and the last always stay
  --metric NAME             selects the best checkpoint

tracking
  --mlflow URI              also log to MLflow
  --wandb PROJECT           also log to Weights & Biases

'infogan train --help-all' lists every setting with its default: also network, consistency, contrastive, prior,
augment, stability, optimizer and evaluation."""
