"""What the page can open: a model folder, or a run with its checkpoints, below the folder that it was started on.

Everything has an id, its path below the root: "" for the root itself, ``first``, ``quick/trials/trial_0003``.
"""

from __future__ import annotations

import re
import shlex
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from infogan_ray import UserError
from infogan_ray.data.datasets import DataConfig, ImageSet, is_at_hand, load_images
from infogan_ray.models.code_names import read_names
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import Bernoulli, Categorical
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.traversal import walk
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory, sample_picture, traversal_picture
from infogan_ray.training.config import RunConfig, from_saved
from infogan_ray.training.load_model import load
from infogan_ray.training.model_card import SAMPLES, traversal_file
from infogan_ray.training.publish import CONFIG, METRICS, check_content, is_model
from infogan_ray.training.run_listing import state_of

OPEN = 8  # models in memory; one of the paper's takes some 60 MB
PART = re.compile(r"[^./\\][^/\\]*")


class NotThere(UserError):
    """No such model, checkpoint or picture."""


@dataclass(frozen=True)
class RealImages:
    """Images to pick from (N, C, H, W) uint8, with labels where there are some."""

    images: torch.Tensor
    labels: torch.Tensor | None

    def choose(self, count: int, seed: int) -> list[int]:
        order = torch.randperm(len(self.images), generator=seeded_generator(seed, "real images"))
        return order[:count].tolist()


class Shelf:
    """``root``: what the page was opened on. ``data``: images to pick from, in place of those of each run."""

    def __init__(self, root: Storage, data: str | None = None, data_dir: str | None = None) -> None:
        self.root, self.start = root, ""
        if root.parent.name == "checkpoints" and re.fullmatch(checkpoints.STEP_FOLDER, root.name):
            self.root, self.start = root.parent.parent, root.name
        self.data, self.data_dir = data, data_dir
        self._open: OrderedDict[tuple[str, str], InfoGAN] = OrderedDict()
        self._images: dict[tuple[str, str | None, int, int], RealImages] = {}
        self._lock = threading.Lock()
        self.kind = kind_of(self.root) or "storage"

    def folder(self, id: str) -> Storage:
        """The folder of an id. Raises NotThere for what is none of ours."""
        folder = self.root
        for part in id.split("/") if id else []:
            if not PART.fullmatch(part):
                raise NotThere(f"'{id}' is not a model, run or search here")
            try:
                folder = folder / part
            except ValueError as error:
                raise NotThere(str(error)) from None
        return folder

    # One model ------------------------------------------------------------------------------------------------------

    def about(self, id: str) -> dict[str, Any]:
        """What the page needs to know of a model or run: codes with names and bounds, checkpoints, pictures."""
        folder = self.folder(id)
        kind = kind_of(folder)
        if kind not in ("run", "model"):
            raise NotThere(f"'{id or self.root}' is neither a run nor a model folder")
        best, steps = None, []
        if kind == "run":
            run = RunDirectory(folder)
            status = run.get_status()
            good, bad, chosen, state = state_of(run, status["state"], thorough=False)
            found = [
                {"name": c.name, "step": c.step, "metrics": numbers(c.metrics), "path": path_of(c.folder)} for c in good
            ]
            best = chosen.name if chosen else (good[-1].name if good else None)
            steps, broken, step = picture_steps(run), [str(error) for error in bad], status["step"]
            if self.start and id == "":
                best = self.start
        else:
            model_metrics = checkpoints.parse_json(f"{folder}/{METRICS}", folder.read(METRICS))
            step, state, broken = model_metrics.get("step", 0), "model", []
            found = [{"name": "", "step": step, "metrics": numbers(model_metrics), "path": path_of(folder)}]
            best = ""
        described = {
            "id": id, "kind": kind, "title": folder.name, "state": state, "step": step, "checkpoints": found,
            "best": best, "pictures": steps, "broken": broken, "report": folder.is_file(RunDirectory.REPORT),
        }  # fmt: skip
        if best is None:
            return {**described, "codes": []}
        model = self.open(id, best)
        return {
            **described, "size": model.spec.image_size, "channels": model.spec.channels,
            "noise": model.spec.latents.noise, "codes": [self._code(model, name) for name in model.codes],
            "real": self.can_pick(id),
        }  # fmt: skip

    @staticmethod
    def _code(model: InfoGAN, name: str) -> dict[str, Any]:
        code = model.spec.latents[name]
        about: dict[str, Any] = {
            "code": name, "name": model.names.get(name, ""), "family": code.family,
            "prior": f"{type(code).__name__}({code.text()})", "ceiling": code.ceiling(model.spec.latents.sigma),
        }  # fmt: skip
        if isinstance(code, (Categorical, Bernoulli)):
            return {**about, "k": code.k if isinstance(code, Categorical) else 2}
        values, (first, last) = walk(code)
        reach, inside = [float(values[0]), float(values[-1])], [float(values[first]), float(values[last])]
        return {**about, "reach": reach, "inside": inside}

    def open(self, id: str, checkpoint: str) -> InfoGAN:
        """A model, verified, from memory if it was open lately; ``checkpoint`` is empty for a model folder.

        Raises NotThere, or BadCheckpoint for a broken one.
        """
        key = (id, checkpoint)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._load(self.folder(id), checkpoint)
            self._open.move_to_end(key)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
            return self._open[key]

    @staticmethod
    def _load(folder: Storage, checkpoint: str) -> InfoGAN:
        if not checkpoint:
            if not is_model(folder):
                raise NotThere(f"'{folder}' is not a model folder; name one of its checkpoints")
            return load(folder.uri)
        if not re.fullmatch(checkpoints.STEP_FOLDER, checkpoint):
            raise NotThere(f"'{checkpoint}' is not a checkpoint")
        run = RunDirectory(folder)
        try:
            found = checkpoints.open_checkpoint(run.checkpoints / checkpoint, thorough=False)
        except checkpoints.Unfinished as error:
            raise NotThere(str(error)) from None
        spec = ModelSpec.from_dict(found.state["model"])
        model = InfoGAN.from_tensors(spec, found.model_tensors(), found.folder)
        model.names = read_names(run.folder, model.codes)
        return model

    def renamed(self, id: str, names: dict[str, str]) -> None:
        """Models in memory learn their new names."""
        with self._lock:
            for (own, _), model in self._open.items():
                if own == id:
                    model.names = names

    def picture(self, id: str, step: int | None, code: str | None) -> bytes:
        """A PNG that was drawn of a run's checkpoint, or lies in a model folder. Raises NotThere, BadCheckpoint."""
        folder = self.folder(id)
        try:
            if is_model(folder):
                content = folder.read(SAMPLES if code is None else traversal_file(code))
            elif step is None:
                raise NotThere("step is missing")
            elif code is None:
                content = RunDirectory(folder).samples.read(sample_picture(step))
            else:
                content = RunDirectory(folder).traversals.read(traversal_picture(step, code))
        except FileNotFoundError:
            raise NotThere(f"no such picture of '{id}'") from None
        check_content("picture.png", content)
        return content

    def report(self, id: str) -> bytes:
        try:
            return self.folder(id).read(RunDirectory.REPORT)
        except FileNotFoundError:
            raise NotThere(f"'{id}' has no {RunDirectory.REPORT}; 'infogan report' writes it") from None

    # Real images ----------------------------------------------------------------------------------------------------

    def can_pick(self, id: str) -> dict[str, Any]:
        """Whether there are real images to pick from without fetching anything, or why not."""
        data, data_dir = self._data_of(id)
        if data is None or not is_at_hand(data, data_dir):
            why = f"the images of {data} are not on this machine" if data else "it is not known what it was trained on"
            return {"why": f"{why}; name some with: infogan explore ... --data"}
        return {"data": data}

    def real_images(self, id: str, model: InfoGAN) -> RealImages:
        """Held-out images where there are some, brought to the model's size. Raises NotThere, ValueError."""
        data, data_dir = self._data_of(id)
        if data is None or not is_at_hand(data, data_dir):
            raise NotThere(self.can_pick(id)["why"])
        key = (data, data_dir, model.spec.image_size, model.spec.channels)
        with self._lock:
            if key not in self._images:
                found = load_images(data, DataConfig(*key[1:], max_bad=1.0), say=lambda line: None)
                self._images[key] = _pickable(found)
            return self._images[key]

    def _data_of(self, id: str) -> tuple[str | None, str | None]:
        if self.data is not None:
            return self.data, self.data_dir
        folder = self.folder(id)
        try:
            config = _config(folder)
        except (ValueError, FileNotFoundError, StorageError):
            return None, None
        return config.data, config.data_dir


def _config(folder: Storage) -> RunConfig:
    return from_saved(checkpoints.parse_json(f"{folder}/{CONFIG}", folder.read(CONFIG)), f"{folder}/{CONFIG}")


def _pickable(found: ImageSet) -> RealImages:
    if found.test_images is not None:
        return RealImages(found.test_images, found.test_labels)
    return RealImages(found.images, found.labels)


def kind_of(folder: Storage) -> str | None:
    """``model``, ``search``, ``run``, or None for what is none of these."""
    if is_model(folder):
        return "model"
    if SearchDirectory(folder).exists:
        return "search"
    return "run" if RunDirectory(folder).looks_like_one else None


def path_of(folder: Storage) -> str:
    """As a word of a command."""
    return shlex.quote(folder.uri)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def picture_steps(run: RunDirectory) -> list[int]:
    """The steps whose samples were drawn, of checkpoints that are pruned by now, too."""
    steps = [re.fullmatch(r"step_(\d+)\.png", entry.name) for entry in run.samples.entries()]
    return sorted(int(found[1]) for found in steps if found)
