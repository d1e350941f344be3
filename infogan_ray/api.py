"""The package's functions for notebooks and scripts. Commands and functions share all code below ``infogan_ray.cli``.

Messages of UserError name fields here ("name"), where commands name flags ("--name").
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from infogan_ray import UserError
from infogan_ray.cli.compare import compare_models
from infogan_ray.cli.display import TrainDisplay
from infogan_ray.cli.encode import Encode, encode_images
from infogan_ray.cli.evaluate import Evaluate, measure_model
from infogan_ray.cli.pull import Pull, pull_checkpoint
from infogan_ray.cli.search_display import SearchDisplay
from infogan_ray.distributed.train import trainer
from infogan_ray.distributed.tune import search as tune_search
from infogan_ray.models.encoded import Codes
from infogan_ray.models.export import export as export_model
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.recipe import Recipe
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, list_runs
from infogan_ray.training.config import RunConfig
from infogan_ray.training.config_fields import replace_fields
from infogan_ray.training.load_model import load
from infogan_ray.training.run_listing import run_row
from infogan_ray.training.run_outcome import Listener, RunResult

P = ParamSpec("P")
R = TypeVar("R")


def fields_for_flags(text: str) -> str:
    """A message with the names of fields in place of flags: "--image-size" becomes "image_size"."""
    text = re.sub(r"--no-([a-z][a-z.-]*[a-z])", lambda flag: f"{flag[1].replace('-', '_')}=False", text)
    return re.sub(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", lambda flag: flag[1].replace("-", "_"), text)


def _in_python(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose UserErrors name fields in place of flags."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            if (text := fields_for_flags(str(error))) != str(error):
                raise type(error)(text) from None
            raise

    return call


@_in_python
def preset(name: str, **settings: Any) -> RunConfig:
    """The configuration of a preset, with other values for some fields: ``preset("photos", image_size=64)``.

    Raises UserError for an unknown preset or field, or an invalid value.
    """
    return RunConfig().override({"preset": name, **settings}, "preset")


@_in_python
def train(config: RunConfig | None = None, listen: Listener | None = None, **settings: Any) -> RunResult:
    """Train a model: in this process, on the connected cluster, or on a new local cluster. Progress goes to stderr.

    ``settings`` are fields of RunConfig, which replace those of ``config``: ``train(preset="mnist_robust", steps=500,
    network={"width": 32})``. Without a name, the run has that of the data and the time.

    ``listen`` receives every report of rank 0, in place of the display of progress: {"phase": ..., "step": ...,
    metrics}. Raises UserError before work starts, TrainingFailed if workers or storage keep failing, and
    KeyboardInterrupt if a stop left no time for a last checkpoint.
    """
    if listen is not None:
        return trainer.train(config, listen, **settings)
    with TrainDisplay() as shown:
        return trainer.train(config, shown, **settings)


@_in_python
def search(recipe: Recipe, storage: str = "runs", name: str | None = None, **options: Any) -> tune_search.SearchResult:
    """Run all trials of a recipe. Progress goes to stderr.

    ``options`` are resume, accept_changes, threads, data_dir, and ``listen``, which receives the events in place of the
    display of progress (``infogan_ray.distributed.tune.search``). Raises UserError before a trial starts, and
    SearchFailed if no trial finishes.
    """
    if "listen" in options:
        return tune_search.search(recipe, storage, name, **options)
    with SearchDisplay(recipe.count, recipe.budget, recipe.rungs) as shown:
        return tune_search.search(recipe, storage, name, listen=shown, **options)


@_in_python
def evaluate(model: InfoGAN | str | Path, **options: Any) -> dict[str, Any]:
    """Measure a model: the metrics by name, as ``infogan evaluate --json`` prints them.

    ``options`` are those of the command: data, quality, disentanglement, samples and so on. Raises UserError.
    """
    opened = model if isinstance(model, InfoGAN) else load(model)
    given = replace_fields(Evaluate(opened.source.uri), options, "evaluate")
    return measure_model(given, opened)[0]


@_in_python
def encode(model: InfoGAN | str | Path, images: str | Path, **options: Any) -> Codes:
    """The codes that Q predicts for a dataset, a folder or an archive of images, or one image. ``image`` has the names.

    The images are converted as in training. ``options`` are those of ``infogan encode``: max_bad, pixel_range and fit.
    Raises UserError.
    """
    opened = model if isinstance(model, InfoGAN) else load(model)
    given = replace_fields(Encode(opened.source.uri, str(images)), options, "encode")
    return encode_images(given, opened)


@_in_python
def compare(models: Sequence[InfoGAN | str | Path]) -> dict[str, Any]:
    """How much the codes of three or more models agree, without labels (ModelCentrality).

    Returns ``centrality`` by model, ``pick`` (the most central one) and ``scores``, Q of the row's model on images of
    the column's. Raises UserError for fewer than three different models.
    """
    opened = [model if isinstance(model, InfoGAN) else load(model) for model in models]
    return compare_models({model.source.uri: model for model in opened})


@_in_python
def export(model: InfoGAN | str | Path, folder: str | Path, format: str = "onnx") -> float:
    """Write G and Q to a new folder, as ``onnx`` or ``torch`` graphs. Returns their largest difference from the model.

    Raises UserError, and ExportFailed if the graphs differ from the model.
    """
    opened = model if isinstance(model, InfoGAN) else load(model)
    return export_model(opened, Path(folder).expanduser(), format)


@_in_python
def pull(run: str, destination: str | Path | None = None, **options: Any) -> InfoGAN:
    """Copy the best checkpoint of a run or a search to a new folder, by default NAME-model, and open it.

    ``options`` are those of ``infogan pull``: checkpoint, metric, select and trial. Raises UserError.
    """
    given = replace_fields(Pull(run, str(destination) if destination else None), options, "pull")
    return load(pull_checkpoint(given)[0])


@_in_python
def runs(storage: str = "runs") -> list[dict[str, Any]]:
    """A row for each run of a storage folder, or for each trial of a search."""
    folder = open_storage(storage)
    if SearchDirectory(folder).exists:
        return leaderboard(SearchDirectory(folder))
    found = [RunDirectory(folder)] if RunDirectory(folder).looks_like_run else list_runs(folder)
    return [run_row(run) for run in found]
