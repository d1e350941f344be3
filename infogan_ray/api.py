"""The package's functions for notebooks and scripts: what the commands of ``infogan_ray.cli`` do, without their output.

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
from infogan_ray.evaluation.texts import NOT_MEASURED
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

FLAG, NAME = r"(?<![\w/-])--", r"[a-z][a-z.-]*[a-z]"
NOT_OPTIONS = ("model", "images", "run", "destination", "output", "json")
"""Fields of the commands that are arguments of the functions, or have no meaning here."""
P = ParamSpec("P")
R = TypeVar("R")


def fields_for_flags(text: str) -> str:
    """A message with the names of fields in place of flags: "--image-size" becomes "image_size"."""
    text = re.sub(rf"{FLAG}no-({NAME})", lambda flag: f"{flag[1].replace('-', '_')}=False", text)
    return re.sub(rf"{FLAG}({NAME})", lambda flag: flag[1].replace("-", "_"), text)


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


def _opened(model: InfoGAN | str | Path) -> InfoGAN:
    return model if isinstance(model, InfoGAN) else load(model)


def _with_options(given: Any, options: dict[str, Any], name: str) -> Any:
    """The fields of a command with the options of a function. Raises UserError for an unknown one."""
    if wrong := next((option for option in options if option in NOT_OPTIONS), None):
        raise UserError(f"{name}: '{wrong}' is not an option")
    return replace_fields(given, options, name)


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
    with TrainDisplay(settings.get("epochs") or (config.epochs if config else None)) as shown:
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
    opened = _opened(model)
    given = _with_options(Evaluate(opened.source.uri), options, "evaluate")
    metrics, _ = measure_model(given, opened)
    if NOT_MEASURED in metrics:
        metrics[NOT_MEASURED] = fields_for_flags(metrics[NOT_MEASURED])
    return metrics


@_in_python
def encode(model: InfoGAN | str | Path, images: str | Path, **options: Any) -> Codes:
    """The codes that Q predicts for a dataset, a folder or an archive of images, or one image. ``image`` has the names.

    The images are converted as in training. ``options`` are those of ``infogan encode``: max_bad, pixel_range and fit.
    Raises UserError.
    """
    opened = _opened(model)
    given = _with_options(Encode(opened.source.uri, str(images)), options, "encode")
    return encode_images(given, opened)


@_in_python
def compare(models: Sequence[InfoGAN | str | Path]) -> dict[str, Any]:
    """How much the codes of three or more models agree, without labels (ModelCentrality).

    Returns ``centrality`` by model, ``pick`` (the most central one) and ``scores``, Q of the row's model on images of
    the column's. Raises UserError for fewer than three different models.
    """
    opened: dict[str, InfoGAN] = {}
    for given in models:
        model = _opened(given)
        if (name := model.source.uri) in opened:
            raise UserError(f"{name} is given twice; name each model once, because a model agrees with itself")
        opened[name] = model
    return compare_models(opened)


@_in_python
def export(model: InfoGAN | str | Path, folder: str | Path, format: str = "onnx") -> float:
    """Write G and Q to a new folder, as ``onnx`` or ``torch`` graphs. Returns their largest difference from the model.

    Raises UserError, and ExportFailed if the graphs differ from the model.
    """
    opened = _opened(model)
    return export_model(opened, Path(folder).expanduser(), format)


@_in_python
def pull(run: str, destination: str | Path | None = None, **options: Any) -> InfoGAN:
    """Copy the best checkpoint of a run or a search to a new folder, by default NAME-model, and open it.

    ``options`` are those of ``infogan pull``: checkpoint, metric, select and trial. Raises UserError.
    """
    given = _with_options(Pull(run, str(destination) if destination else None), options, "pull")
    return load(pull_checkpoint(given)[0])


@_in_python
def runs(storage: str = "runs") -> list[dict[str, Any]]:
    """A row for each run of a storage folder, or for each trial of a search."""
    folder = open_storage(storage)
    if SearchDirectory(folder).exists:
        return leaderboard(SearchDirectory(folder))
    found = [RunDirectory(folder)] if RunDirectory(folder).looks_like_run else list_runs(folder)
    return [run_row(run) for run in found]
