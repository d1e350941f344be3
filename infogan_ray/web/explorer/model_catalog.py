"""The models that the page can open: model folders and the checkpoints of runs, below one root folder.

An id is a path relative to the root: "" for the root itself, ``first``, ``quick/trials/trial_0003``.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import Any

from infogan_ray import UserError
from infogan_ray.models.code_names import read_names
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.networks import ModelSpec
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import Storage
from infogan_ray.storage.run_directory import RunDirectory, sample_picture_name, traversal_picture_name
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.training.load_model import load
from infogan_ray.training.model_card import SAMPLES, traversal_file
from infogan_ray.training.publish import METRICS, check_content, is_model
from infogan_ray.training.run_listing import state_of
from infogan_ray.web.explorer.real_images import RealImages, RealImageSource

MAX_OPEN_MODELS = 8  # models in memory; a model of the paper needs about 60 MB
PLAIN_NAME = re.compile(r"[^./\\][^/\\]*")


class NotFound(UserError):
    """The model, checkpoint or picture does not exist."""


class ModelCatalog:
    """``root``: the folder of the page. ``data``: real images to use in place of each run's data."""

    def __init__(self, root: Storage, data: str | None = None, data_dir: str | None = None) -> None:
        self.root, self.start_checkpoint = root, ""
        if root.parent.name == "checkpoints" and re.fullmatch(checkpoints.STEP_FOLDER, root.name):
            self.root, self.start_checkpoint = root.parent.parent, root.name
        self._images = RealImageSource(data, data_dir)
        self._open: OrderedDict[tuple[str, str], InfoGAN] = OrderedDict()
        self._lock = threading.Lock()
        self.kind = folder_kind(self.root) or "storage"

    def folder(self, id: str) -> Storage:
        """The folder of an id. Raises NotFound for an id outside the root."""
        folder = self.root
        for part in id.split("/") if id else []:
            if not PLAIN_NAME.fullmatch(part):
                raise NotFound(f"'{id}' is not a model, run or search here")
            try:
                folder = folder / part
            except UserError as error:
                raise NotFound(str(error)) from None
        return folder

    # One model ------------------------------------------------------------------------------------------------------

    def describe(self, id: str) -> dict[str, Any]:
        """A model or run as JSON for the page, with its codes, checkpoints and pictures."""
        folder = self.folder(id)
        kind = folder_kind(folder)
        if kind not in ("run", "model"):
            raise NotFound(f"'{id or self.root}' is neither a run nor a model folder")
        best, steps = None, []
        if kind == "run":
            run = RunDirectory(folder)
            status = run.get_status()
            valid, errors, chosen, state = state_of(run, status["state"], verify=False)
            found = [_describe_checkpoint(c.name, c.step, c.metrics, c.folder) for c in valid]
            best = chosen.name if chosen else (valid[-1].name if valid else None)
            steps, broken, step = picture_steps(run), [str(error) for error in errors], status["step"]
            if self.start_checkpoint and id == "":
                best = self.start_checkpoint
        else:
            model_metrics = manifests.parse_json(f"{folder}/{METRICS}", folder.read(METRICS))
            step, state, broken = model_metrics.get("step", 0), "model", []
            found = [_describe_checkpoint("", step, model_metrics, folder)]
            best = ""
        description = {
            "id": id, "kind": kind, "title": folder.name, "state": state, "step": step, "checkpoints": found,
            "best": best, "pictures": steps, "broken": broken, "report": folder.is_file(RunDirectory.REPORT),
        }  # fmt: skip
        if best is None:
            return {**description, "codes": []}
        model = self.open(id, best)
        return {
            **description, "size": model.spec.image_size, "channels": model.spec.channels,
            "noise": model.spec.latents.noise, "codes": [self._describe_code(model, name) for name in model.codes],
            "real": self._images.availability(folder),
        }  # fmt: skip

    @staticmethod
    def _describe_code(model: InfoGAN, name: str) -> dict[str, Any]:
        code = model.spec.latents[name]
        return {
            "code": name, "name": model.names.get(name, ""), "prior": code.title,
            "ceiling": code.ceiling(model.spec.latents.sigma), **code.widget(),
        }  # fmt: skip

    def open(self, id: str, checkpoint: str) -> InfoGAN:
        """A verified model, from memory if it was used recently. ``checkpoint`` is empty for a model folder.

        Raises NotFound, or BadCheckpoint for a broken checkpoint.
        """
        key = (id, checkpoint)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._load(self.folder(id), checkpoint)
            self._open.move_to_end(key)
            while len(self._open) > MAX_OPEN_MODELS:
                self._open.popitem(last=False)
            return self._open[key]

    @staticmethod
    def _load(folder: Storage, checkpoint: str) -> InfoGAN:
        if not checkpoint:
            if not is_model(folder):
                raise NotFound(f"'{folder}' is not a model folder; name one of its checkpoints")
            return load(folder.uri)
        if not re.fullmatch(checkpoints.STEP_FOLDER, checkpoint):
            raise NotFound(f"'{checkpoint}' is not a checkpoint")
        run = RunDirectory(folder)
        try:
            found = checkpoints.open_checkpoint(run.checkpoints / checkpoint, verify=False)
        except manifests.IncompleteCheckpoint as error:
            raise NotFound(str(error)) from None
        spec = ModelSpec.from_dict(found.state["model"])
        model = InfoGAN.from_tensors(spec, found.model_tensors(), found.folder)
        model.names = read_names(run.folder, model.codes)
        return model

    def set_names(self, id: str, names: dict[str, str]) -> None:
        """Set the names of codes in all models in memory with this id."""
        with self._lock:
            for (model_id, _), model in self._open.items():
                if model_id == id:
                    model.names = names

    def picture(self, id: str, step: int | None, code: str | None) -> bytes:
        """A PNG file of a run's checkpoint or of a model folder. Raises NotFound or BadCheckpoint.

        ``code``: the code of a traversal. None is the picture of samples.
        """
        folder = self.folder(id)
        try:
            if is_model(folder):
                content = folder.read(SAMPLES if code is None else traversal_file(code))
            elif step is None:
                raise NotFound("step is missing")
            elif code is None:
                content = RunDirectory(folder).samples.read(sample_picture_name(step))
            else:
                content = RunDirectory(folder).traversals.read(traversal_picture_name(step, code))
        except FileNotFoundError:
            raise NotFound(f"this picture of '{id}' does not exist") from None
        check_content("picture.png", content)
        return content

    def real_images(self, id: str, model: InfoGAN) -> RealImages:
        """Real images in the model's size. Raises NotFound if this machine has none."""
        folder = self.folder(id)
        images = self._images.load(folder, model)
        if images is None:
            raise NotFound(self._images.availability(folder)["why"])
        return images

    def report(self, id: str) -> bytes:
        try:
            return self.folder(id).read(RunDirectory.REPORT)
        except FileNotFoundError:
            raise NotFound(f"'{id}' has no {RunDirectory.REPORT}; 'infogan report' writes it") from None


def folder_kind(folder: Storage) -> str | None:
    """``model``, ``search``, ``run``, or None for another folder."""
    if is_model(folder):
        return "model"
    if SearchDirectory(folder).exists:
        return "search"
    return "run" if RunDirectory(folder).looks_like_run else None


def _describe_checkpoint(name: str, step: int, metrics: dict[str, Any], folder: Storage) -> dict[str, Any]:
    """A checkpoint as JSON for the page. ``path`` is the folder's URI, quoted for a shell."""
    numbers = {metric: value for metric, value in metrics.items() if isinstance(value, (int, float))}
    return {"name": name, "step": step, "metrics": numbers, "path": shell_word(folder.uri)}


def picture_steps(run: RunDirectory) -> list[int]:
    """The steps with a picture of samples, including steps whose checkpoint was deleted."""
    steps = [re.fullmatch(r"step_(\d+)\.png", entry.name) for entry in run.samples.entries()]
    return sorted(int(found[1]) for found in steps if found)
