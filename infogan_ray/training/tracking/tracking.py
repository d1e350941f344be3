"""What rank 0 tells TensorBoard, MLflow and Weights & Biases, each in a thread of its own; training never waits.

They are extras: one that fails or falls behind is said once, and the run goes on without it.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import CHECKPOINT, END, HEADLINES, REGISTRY
from infogan_ray.storage.run_directory import RunDirectory, step_name

if TYPE_CHECKING:
    from infogan_ray.training.config import RunConfig

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
SCHEMES = ("http", "https", "sqlite", "databricks")
LIMIT_BYTES, ROW_BYTES = 64 << 20, 1000  # what may wait for a tracker, and what a row is reckoned at
PAUSE_S, LONGEST_PAUSE_S, SETTLE_S = 2.0, 60.0, 1.0
LAST_PATIENCE_S = 60.0  # for what still waits when a run is over
SHORT_PATIENCE_S = 3.0  # likewise where it must go at once, and for a tracker that is in trouble

# Of what training logs, by group; metrics have the groups of their registry. What is in none is not a curve.
GROUPS = {
    "loss": ("d_loss", "g_loss", "consistency_loss", "contrastive_loss", "r1_penalty"),
    "discriminator": ("d_accuracy", "d_real", "d_fake", "contrastive_accuracy"),
    "gradient": ("d_grad_norm", "g_grad_norm"),
    "sorting": ("restarted",),
    "speed": ("images_per_second",),
}
MEASURED = tuple(metric for metric in REGISTRY.values() if metric.measured == CHECKPOINT)
TAGS = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}
TAGS |= {metric.name: f"{metric.group}/{metric.name}" for metric in MEASURED}
RESULTS = tuple(name for name in HEADLINES if REGISTRY[name].measured in (CHECKPOINT, END))
LATEST = "The latest measurement; at the end, one step after the last, of the best checkpoint on all data."
DESCRIPTIONS = {
    "loss/d_loss": "Of the discriminator, from logits; 2 log 2 = 1.386 where it cannot tell images apart.",
    "loss/g_loss": "Of the generator, the non-saturating form; log 2 = 0.693 where D cannot tell images apart.",
    "loss/consistency_loss": "How far Q is from saying the same of real images and their moved copies, in nats.",
    "loss/contrastive_loss": "Cross-entropy of which code a pair of made images shares, in nats; log K is chance.",
    "discriminator/contrastive_accuracy": "Share of pairs of made images whose shared code is named; 1/K is chance.",
    "loss/r1_penalty": "The penalty on D's gradient at real images, as it enters D's loss.",
    "discriminator/d_accuracy": "Share of real and of made images of the batch that D judges rightly; 0.5 is chance.",
    "discriminator/d_real": "D's mean probability of 'real' for real images.",
    "discriminator/d_fake": "D's mean probability of 'real' for made images.",
    "sorting/restarted": "Categories that were dead on real images and began anew, per step.",
    "speed/images_per_second": "Real images that all workers together train on.",
    **{TAGS[metric.name]: metric.description for metric in MEASURED},
    **{f"achieved/{name}": f"{REGISTRY[name].description} {LATEST}" for name in RESULTS},
}
# Of the configuration: where a run lies and what it runs on, and not what it is.
PLACE = (
    "preset", "data_dir", "epochs", "threads", "device", "gpus_per_worker", "placement", "wait", "storage", "name",
    "resume", "checkpoint_every", "keep", "max_missed_checkpoints", "log_every", "metric", "mlflow", "wandb",
    "evaluation", "labels", "max_bad", "profile",
)  # fmt: skip


class Tracker(Protocol):
    """Lives in the thread of its channel. Whatever it raises is said once; what it was given is given again."""

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None: ...

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None: ...

    def flush(self, due: bool) -> None: ...

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None: ...


def check_addresses(mlflow: str | None, wandb: str | None) -> None:
    """Raises UserError for what can be no tracker's address, and for one with credentials in it."""
    if mlflow is not None:
        scheme, divider, rest = mlflow.partition("://")
        if mlflow != "databricks" and (not divider or scheme not in SCHEMES or not rest.strip("/")):
            said = mlflow if "@" not in mlflow else f"{scheme}://…"
            raise UserError(f"mlflow is '{said}'; write http://HOST:5000, sqlite:///FILE.db or databricks")
        if "@" in rest.split("/")[0] or "?" in rest:
            raise UserError(
                "mlflow has credentials or settings in its URI; they belong into the environment "
                "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN)"
            )
    if wandb is not None and (not wandb or set(wandb) & set("/\\#?%:") or len(wandb) > 128):
        raise UserError(
            f"wandb is '{wandb}'; write a project's name, without / \\ # ? % : (its owner is $WANDB_ENTITY)"
        )


def check_packages(mlflow: str | None, wandb: str | None) -> None:
    """Raises UserError, with the command that installs it, where a tracker's package is missing."""
    for name, value in (("mlflow", mlflow), ("wandb", wandb)):
        if value is not None and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"{name} is '{value}', and its package is not installed; pip install 'infogan-ray[{name}]'")


def with_absolute_path(mlflow: str | None) -> str | None:
    """Workers run in another folder, where the path of a database file means something else."""
    if mlflow is None or not mlflow.startswith("sqlite:///") or mlflow.startswith("sqlite:////"):
        return mlflow
    return f"sqlite:///{Path(mlflow.removeprefix('sqlite:///')).expanduser().absolute()}"


def hparams(config: RunConfig) -> dict[str, bool | float | str]:
    """What a run is, by the paths of its fields, as the columns of a table of runs."""

    def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return found

    fields = flat({key: value for key, value in config.to_dict().items() if key not in PLACE}, "")
    return {key: value for key, value in fields.items() if isinstance(value, (bool, int, float, str))}


def curves(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row of metrics.jsonl by tag."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        tag = TAGS.get(name)
        for prefix, group in (("mi/", "bound"), ("train_mi/", "train_bound"), ("prior/", "prior")):
            tag = f"{group}/{name.removeprefix(prefix)}" if name.startswith(prefix) else tag
        if tag and isinstance(value, (int, float)):
            found[tag] = float(value)
    if "mi_bound" in metrics:
        found |= results(metrics)
    return found


def results(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What runs are compared by, as far as it was measured."""
    return {f"achieved/{name}": float(metrics[name]) for name in RESULTS if isinstance(metrics.get(name), (int, float))}


def descriptions(config: RunConfig) -> dict[str, str]:
    """What each tag is, with the ceilings of this run's codes."""
    latents = config.latents
    ceilings = {name: code.ceiling(latents.sigma) for name, code in latents.items()}
    texts = {
        f"bound/{name}": f"L_I({name}) = H(c) + E[log Q(c|x)] in nats, on fresh codes; at most {ceiling:.3f}."
        for name, ceiling in ceilings.items()
    }
    texts |= {
        f"train_bound/{name}": f"L_I({name}) in nats, of the batches trained on; at most {ceiling:.3f}."
        for name, ceiling in ceilings.items()
    }
    texts["bound/mi_bound"] = f"Sum of the bounds of all codes, in nats; at most {sum(ceilings.values()):.3f}."
    for name in latents.names:
        texts[f"prior/{name}/entropy"] = "H(c) of the probabilities that are learned, in nats."
        texts[f"traversal/{name}"] = "What the code does while all else stands still, at each checkpoint."
    texts["samples"] = "The same noise and codes at each checkpoint."
    return DESCRIPTIONS | texts


class Tracking:
    """Owned by the first rank. Nothing of it waits, but for ``close``."""

    def __init__(self, config: RunConfig, run: RunDirectory, step: int) -> None:
        """``step``: where this attempt starts; what an earlier one said of later steps does not count."""
        about, texts = hparams(config), descriptions(config)

        def event_files() -> Tracker:
            from infogan_ray.training.tracking.event_files import EventFiles

            return EventFiles(run, step, about, texts)

        self._channels = [Channel("TensorBoard's event files", event_files)]

        def mlflow() -> Tracker:
            from infogan_ray.training.tracking.trackers import MLflow

            assert config.mlflow is not None
            return MLflow(config.mlflow, run, about)

        def wandb() -> Tracker:
            from infogan_ray.training.tracking.trackers import WandB

            assert config.wandb is not None
            return WandB(config.wandb, run, about)

        if config.mlflow is not None:
            self._channels.append(Channel("MLflow", mlflow))
        if config.wandb is not None:
            self._channels.append(Channel("Weights & Biases", wandb))
        self._ended = False

    def log(self, metrics: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        step, values, moment = metrics["step"], curves(metrics), time.time()
        for channel in self._channels:
            channel.put(lambda tracker: tracker.row(step, values, moment), ROW_BYTES)

    def show(self, step: int, pictures: Mapping[tuple[str, str], bytes]) -> None:
        """A checkpoint's PNG files as the outbox takes them, by folder and file name; the row comes before them."""
        moment = time.time()
        for left, ((_, name), content) in zip(range(len(pictures) - 1, -1, -1), pictures.items(), strict=True):
            code = name.removeprefix(step_name(step)).removesuffix(".png").removeprefix("_")
            tag = f"traversal/{code}" if code else "samples"
            for channel in self._channels:
                send = functools.partial(_picture, step=step, tag=tag, png=content, moment=moment)
                channel.put(send, len(content), due=not left, keep=False)

    def settle(self) -> None:
        """Give the event files a moment to have all that was said until now."""
        self._channels[0].settle(SETTLE_S)

    def end(self, state: str, step: int, metrics: Mapping[str, Any]) -> None:
        """``finished``, ``diverged`` or ``interrupted``, once; ``metrics`` of the best checkpoint on all data."""
        if self._ended:
            return
        self._ended = True
        values = results(metrics)
        for channel in self._channels:
            channel.put(lambda tracker: tracker.end(state, step, values), ROW_BYTES, due=True)

    def close(self, step: int, patience_s: float = SHORT_PATIENCE_S) -> None:
        """Wait so many seconds at most until all is passed on; a run that has not ended was interrupted."""
        self.end("interrupted", step, {})
        deadline = time.monotonic() + patience_s
        for channel in self._channels:
            channel.close()
        for channel in self._channels:
            channel.wait(deadline)

    def news(self) -> str:
        """What went wrong and was not said yet, in one line."""
        return "; ".join(news for channel in self._channels if (news := channel.news()))


def _picture(tracker: Tracker, **about: Any) -> None:
    tracker.picture(**about)


Action = Callable[[Tracker], None]


class Channel:
    """The way to one tracker: a queue with a bound, and a thread that makes the tracker and passes everything on."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self._queue: deque[tuple[Action, int, bool]] = deque()
        self._bytes, self._dropped, self._due, self._closing = 0, False, False, False
        self._trouble, self._told = "", False
        self._count, self._done = 0, 0  # of what was put, and of what was passed on and written
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"to {name}", daemon=True)
        self._thread.start()

    def put(self, action: Action, size: int, due: bool = False, keep: bool = True) -> None:
        """``size`` in bytes, about. What does not fit is left out; what fails is tried again later if ``keep``."""
        with self._changed:
            if self._bytes + size > LIMIT_BYTES:
                self._dropped = True
                return
            self._queue.append((action, size, keep))
            self._bytes += size
            self._count += 1
            self._due = self._due or due
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until what was put is written; in vain no longer than so many seconds."""
        with self._changed:
            count = self._count
            self._changed.wait_for(lambda: self._done >= count or self._trouble, seconds)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait(self, deadline: float) -> None:
        """Until all is passed on, or the deadline; for one that is in trouble no longer than SHORT_PATIENCE_S."""
        short = min(deadline, time.monotonic() + SHORT_PATIENCE_S)
        while self._thread.is_alive() and time.monotonic() < (short if self._trouble else deadline):
            self._thread.join(0.1)
        if (self._thread.is_alive() or self._queue) and not self._trouble:
            self._trouble = "it does not answer"

    def news(self) -> str:
        trouble = self._trouble or ("it does not keep up" if self._dropped else "")
        if self._told or not trouble:
            return ""
        self._told = True
        return f"{self.name}: {trouble}; the run goes on, and what is shown there may lack something"

    def _work(self) -> None:
        tracker, pause = None, PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._due or self._closing)
                last = self._closing
            try:
                tracker = tracker or self._make()
                with self._changed:
                    count, due, self._due = self._count, self._due, False
                try:
                    self._pass_on(tracker)
                    tracker.flush(due or last)
                except BaseException:
                    self._due = self._due or due
                    raise
                pause = PAUSE_S
                with self._changed:
                    self._done = count
                    self._changed.notify_all()
            except Exception as error:  # whatever another's program does: it must not end the run
                self._note(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if last:
                return
            self._rest(pause)

    def _rest(self, seconds: float) -> None:
        """A pause, so that what comes row by row is passed on in few pieces; what is due ends it if all is well."""
        well = seconds == PAUSE_S
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (well and self._due), seconds)

    def _pass_on(self, tracker: Tracker) -> None:
        while self._queue:
            action, size, keep = self._queue[0]
            try:
                action(tracker)
            except Exception as error:
                if keep:
                    raise
                self._note(error)  # a picture: rows must not wait for it
            with self._changed:
                self._queue.popleft()
                self._bytes -= size

    def _note(self, error: Exception) -> None:
        self._trouble = self._trouble or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
