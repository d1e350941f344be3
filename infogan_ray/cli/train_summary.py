"""What ``infogan train`` prints at its end: the result, what each code does, what is wrong, and what to do next."""

from __future__ import annotations

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.output import print_result, warn
from infogan_ray.cli.terminal_pictures import print_images, shows_pictures
from infogan_ray.data.progress import counted
from infogan_ray.evaluation import texts
from infogan_ray.evaluation.diagnosis import failures
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.storage.errors import StorageError
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.training.config import RunConfig
from infogan_ray.training.learned_prior import with_measured_prior
from infogan_ray.training.run_outcome import RunResult

MOST_CODES = 6  # in the terminal; all have a picture in the model's folder


def print_summary(config: RunConfig, result: RunResult, seconds: float) -> None:
    """Print the result of a finished run that took ``seconds``."""
    metrics, folder = result.metrics, result.run.model
    spec = with_measured_prior(config.latents, metrics)
    restarts = f", {counted(result.restarts, 'worker restart')}" if result.restarts else ""
    best = metrics["best_step"]
    chosen = "" if best == metrics["step"] else f", step {best:,}, the best by {config.metric}"
    took = display.duration(seconds)
    print_result(f"{config.name}: {counted(metrics['step'], 'step')} in {took}{restarts}; model {folder}{chosen}")
    print_result(f"bound (nats): {texts.bound_text(metrics, spec.ceilings)}")
    print_result(f"clustering error: {texts.clustering_text(metrics, spec)}")
    display.print_categories(metrics)
    print_result(f"image quality: {texts.quality_text(metrics)}")
    print_result(f"variety: {texts.variety_text(metrics)}")
    for text in failures(metrics, spec.ceilings):
        print_result(f"warning: {text}")
    print_result(f"pictures: {folder}/samples.png; what each code changes: {folder}/traversal_*.png")
    print_result(f"next: infogan explore {shell_word(result.run.folder.uri)}")
    value = f"{spec.names[0]}=1"  # 1 is valid for every prior
    print_result(f"      infogan sample {shell_word(folder.uri)} --set {value} -o one.png")
    if shows_pictures():
        try:
            _print_codes(result.model)
        except (UserError, StorageError) as error:
            warn(f"the codes are not shown: {error}")


def _print_codes(model: InfoGAN) -> None:
    """Show in the terminal one image for each value of each discrete code, and one row for each continuous code."""
    for name in list(model.codes)[:MOST_CODES]:
        traversal = model.traverse(name)
        if traversal.inside is None:
            print_result(f"{name}: one image for each value, from {traversal.rows[0]}")
            print_images(traversal.images[:, 0], most_rows=2)
        else:
            first, last = traversal.inside
            print_result(f"{name}, from {traversal.columns[first]} to {traversal.columns[last]}, all else equal:")
            print_images(traversal.images[0, first : last + 1], most_rows=1)
