"""The commands behind ``infogan``: each parses its flags, calls the package, prints, and returns an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from infogan_ray import checkpoints, display
from infogan_ray.cli import DIVERGED, DONE, FAILED, INTERRUPTED
from infogan_ray.config import METRICS, RunConfig, from_saved, load_config, preset
from infogan_ray.data import DataConfig, load_images
from infogan_ray.data.datasets import NAMES, image_files, read_files
from infogan_ray.evaluation import EvaluationConfig, measure_bound, measure_clustering
from infogan_ray.model import InfoGAN, load
from infogan_ray.publishing import pull as pull_model
from infogan_ray.publishing import train_command
from infogan_ray.runs import RunDirectory, RunExists, runs_in
from infogan_ray.storage import open_storage
from infogan_ray.training import checkpoint_bytes
from infogan_ray.traversal import draw, tile

USER_ERRORS = (RunExists,)  # ValueErrors of a type of their own that are the user's to mend
T = TypeVar("T")


class Failed(Exception):
    """A command that could not do its work: one line and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def parse(kind: type[T], command: str, arguments: Sequence[str], description: str, default: T | None = None) -> T:
    """Flags to a dataclass. Raises ValueError, in one line, for flags and values that are not right."""
    said = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.OmitArgPrefixes,) if default is None else ()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, prog=f"infogan {command}", args=list(arguments), description=description, config=config, **options
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(f"{_unbox(said.getvalue())}; see 'infogan {command.split()[0]} --help'") from None


def _unbox(text: str) -> str:
    """The message out of the box that the parser draws around it, in one line."""
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    message = " ".join(itertools.takewhile(lambda line: not line.startswith("─"), lines))
    return re.sub(r"^Error parsing \w+: ", "", message)


# ---------------------------------------------------------------------------------------------------------------- train


def train(arguments: list[str]) -> int:
    arguments, dry_run = _take_flag(arguments, "--dry-run")
    arguments, as_json = _take_flag(arguments, "--json")
    config = train_config(arguments)
    if config.name is None:
        if config.resume:
            raise ValueError("name is not set, and --resume needs the run's --name")
        data = Path(config.data or "run").name.replace(" ", "_").lstrip(".-") or "run"
        config = dataclasses.replace(config, name=f"{data}-{time.strftime('%Y%m%d-%H%M%S')}")
    from infogan_ray.distributed import trainer

    if dry_run:
        return _dry_run(config, trainer)
    assert config.name is not None
    RunDirectory.free(open_storage(config.storage), config.name, config.resume)  # before anything is fetched
    started = time.monotonic()
    try:
        with display.TrainDisplay(config.steps) as shown:
            result = trainer.train(config, shown)
    except trainer.HeadLost as error:
        _warn(f"{error}. Go on with: {_resume_command(config)}")
        os._exit(FAILED)  # an orderly end would wait for the dead head, and then print Ray's own traces
    except trainer.TrainingFailed as error:
        raise Failed(f"{error}. Go on with: {_resume_command(config)}") from None
    except KeyboardInterrupt:
        raise Failed(f"interrupted; go on with: {_resume_command(config)}", INTERRUPTED) from None
    if result.state == "interrupted":
        raise Failed(f"interrupted: {result.message}; go on with: {_resume_command(config)}", INTERRUPTED)
    if result.state == "diverged":
        last_good = result.run.get_status().get("last_good")
        kept = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint before that"
        raise Failed(f"{config.name} diverged: {result.message}; {kept}", DIVERGED)
    if as_json:
        print(json.dumps({"run": result.run.folder.uri, "state": result.state, **_scalars(result.metrics)}))
        return DONE
    spec = config.latents
    ceilings = {name: code.ceiling(spec.sigma) for name, code in spec.items()}
    model = result.run.model
    took = display.duration(time.monotonic() - started)
    restarts = f", {result.restarts} restarts of workers" if result.restarts else ""
    print(f"{config.name}: {result.metrics['step']:,} steps in {took}{restarts}; model {model}")
    print(f"bound (nats): {display.bound_text(result.metrics, ceilings)}")
    print(f"clustering error: {display.clustering_text(result.metrics)}")
    print(f"pictures: {model}/samples.png and {model}/traversal_*.png")
    print(f"next: infogan sample {shlex.quote(model.uri)} {_example_set(spec.names[0])} -o one.png")
    return DONE


def train_config(arguments: list[str]) -> RunConfig:
    """Preset < CONFIG.yaml < flags, in that order."""
    rest = list(arguments)
    file = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else None
    chosen = _peek(rest, "--preset")
    base = preset(chosen) if chosen else RunConfig()
    if file is not None:
        base = load_config(file, base)
    if _peek(rest, "--epochs") and not _peek(rest, "--steps"):
        base = dataclasses.replace(base, steps=None)
    return parse(
        RunConfig, "train", rest, default=base,
        description="Train an InfoGAN: infogan train [CONFIG.yaml] [flags]. "
        "Example: infogan train --preset mnist --steps 5000 --name first. "
        "Also: --dry-run prints the resolved config and the cost and touches nothing; --json reports as JSON.",
    )  # fmt: skip


def _dry_run(config: RunConfig, trainer: Any) -> int:
    wanted, images = trainer.check(config, say=lambda line: print(line, file=sys.stderr))
    steps = config.total_steps(len(images.images))
    spec = config.model_spec(images.image_size, images.channels)
    generator, discriminator = (sum(p.numel() for p in module.parameters()) for module in spec.build())
    print(json.dumps(config.to_dict(), indent=1))
    print(f"data: {len(images.images):,} images {images.image_size}x{images.image_size}x{images.channels}")
    print(f"parameters: generator {generator:,}, discriminator with Q {discriminator:,}")
    print(
        f"steps: {steps:,} of {config.batch_size} images, {steps * config.batch_size / len(images.images):.1f} epochs"
    )
    print(
        display.checkpoint_plan(config, steps, checkpoint_bytes(spec), open_storage(config.storage) / str(config.name))
    )
    print(f"runs on: {wanted.text}")
    return DONE


def _resume_command(config: RunConfig) -> str:
    return f"{train_command(config)} --resume"


def _example_set(code: str) -> str:
    return f"--set {code}={3 if code.startswith('cat') else 1}"


# ----------------------------------------------------------------------------------------------------------------- runs


@dataclass
class Runs:
    storage: tyro.conf.Positional[str]
    """STORAGE, or STORAGE/NAME for one run's checkpoints."""
    json: bool = False


def runs(arguments: list[str]) -> int:
    given = parse(Runs, "runs", arguments, "List runs. Example: infogan runs runs")
    storage = open_storage(given.storage)
    if RunDirectory(storage).looks_like_one:
        return _one_run(RunDirectory(storage), given.json)
    rows = [_run_row(run) for run in runs_in(storage)]
    if not given.json:
        for row in rows:
            counts = {word: row.pop(word.replace(" ", "_")) for word in _COUNTS}
            row["notes"] = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or None
    _print_rows(str(storage), rows, given.json)
    return DONE


_COUNTS = ("unfinished checkpoints", "broken checkpoints", "restarts")


def _run_row(run: RunDirectory) -> dict[str, Any]:
    status = run.get_status()
    good, bad = _list(run)
    try:
        chosen, state = checkpoints.best(good, _config_of(run).metric), status["state"]
    except ValueError:
        chosen, state = None, f"{status['state']}, without {run.CONFIG}"
    metrics = chosen.metrics if chosen else {}
    last = checkpoints.last(good)
    unfinished = sum(isinstance(error, checkpoints.Unfinished) for error in bad)
    return {
        "name": run.name, "state": state, "step": status["step"],
        "mi_bound": metrics.get("mi_bound"), "mi_fraction": metrics.get("mi_fraction"),
        "clustering_error": metrics.get("clustering_error"), "best": chosen.name if chosen else None,
        "last": last.name if last else None, "unfinished_checkpoints": unfinished,
        "broken_checkpoints": len(bad) - unfinished, "restarts": status.get("restarts", 0),
    }  # fmt: skip


def _one_run(run: RunDirectory, as_json: bool) -> int:
    good, bad = _list(run)
    status = run.get_status()
    chosen, last = checkpoints.best(good, _config_of(run).metric), checkpoints.last(good)
    rows = []
    for checkpoint in good:
        marks = [word for word, other in (("best", chosen), ("last", last)) if other is checkpoint]
        marks += ["last good"] if checkpoint.name == status.get("last_good") else []
        shown = {name: checkpoint.metrics.get(name) for name in ("mi_bound", "mi_fraction", "clustering_error")}
        rows.append({"checkpoint": checkpoint.name, **shown, "is": ", ".join(marks)})
    why = f" ({status['message']})" if status.get("message") else ""
    _print_rows(f"{run.folder}: {status['state']}{why}", rows, as_json)
    for error in bad:
        kind = "unfinished" if isinstance(error, checkpoints.Unfinished) else "broken"
        print(f"{kind}: {error}", file=sys.stderr)
    return DONE


def _list(run: RunDirectory) -> tuple[list[checkpoints.Checkpoint], list[checkpoints.BadCheckpoint]]:
    """All bytes are compared where they lie on this machine; over a network that would fetch every checkpoint."""
    return checkpoints.list_checkpoints(run.checkpoints, thorough=run.folder.is_local)


def _config_of(run: RunDirectory) -> RunConfig:
    return from_saved(run.read_config(), f"{run.folder}/{run.CONFIG}")


def _print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    if not rows:
        print(f"{title}: nothing yet", file=sys.stderr)
        return

    def text(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    display.table(title, [name.replace("_", " ") for name in rows[0]], [[text(v) for v in r.values()] for r in rows])


# ----------------------------------------------------------------------------------------------------------------- pull


@dataclass
class Pull:
    run: tyro.conf.Positional[str]
    """STORAGE/NAME."""
    destination: tyro.conf.Positional[str | None] = None
    """Folder to make; by default NAME-model."""
    checkpoint: str = "best"
    """best, last or step_XXXXXXXX."""
    metric: str | None = None
    """What 'best' means; by default the run's own."""
    json: bool = False


def pull(arguments: list[str]) -> int:
    given = parse(Pull, "pull", arguments, "Fetch a model. Example: infogan pull runs/first first-model")
    run = RunDirectory(open_storage(given.run))
    if not run.exists:
        raise ValueError(f"run {run.folder} does not exist; 'infogan runs {run.folder.parent}' lists those that do")
    config = _config_of(run)
    metric = given.metric or config.metric
    if metric not in METRICS:
        raise ValueError(f"metric is '{metric}'; valid are {', '.join(METRICS)}")
    destination = Path(given.destination or f"{run.name}-model").expanduser().absolute()
    chosen = pull_model(run, given.checkpoint, metric, config, destination, _warn)
    summary = {"model": str(destination), "step": chosen.step, **_scalars(chosen.metrics)}
    if given.json:
        print(json.dumps(summary))
    else:
        print(f"{destination}: step {chosen.step:,} of {run.name}, verified")
    return DONE


# ------------------------------------------------------------------------------------------------------ using a model


@dataclass
class Evaluate:
    model: tyro.conf.Positional[str]
    data: str | None = None
    """By default the data that the model was trained on."""
    data_dir: str | None = None
    samples: int = 10_000
    """Fresh codes for the bound."""
    json: bool = False


def evaluate(arguments: list[str]) -> int:
    given = parse(Evaluate, "evaluate", arguments, "Measure a model. Example: infogan evaluate first-model")
    model = load(given.model, _warn)
    spec = model.spec.latents
    metrics: dict[str, Any] = measure_bound(
        spec, model.generator, model.discriminator, EvaluationConfig(samples=given.samples)
    )
    data = given.data or _trained_on(model)
    if data is not None:
        config = DataConfig(given.data_dir, model.spec.image_size, model.spec.channels)
        images = load_images(data, config, say=lambda line: print(line, file=sys.stderr))
        if images.labels is not None and images.test_images is not None and images.test_labels is not None:
            metrics |= measure_clustering(
                spec, model.discriminator, images.images, images.labels, images.test_images, images.test_labels
            )
    if given.json:
        print(json.dumps(metrics))
        return DONE
    rows = [[name, f"{metrics[f'mi/{name}']:.3f}", f"{code.ceiling(spec.sigma):.3f}"] for name, code in spec.items()]
    display.table("bound in nats", ["code", "bound", "ceiling"], rows)
    print(f"mi_bound {metrics['mi_bound']:.3f} nats, mi_fraction {metrics['mi_fraction']:.3f}")
    print(f"clustering error: {display.clustering_text(metrics)}")
    return DONE


def _trained_on(model: InfoGAN) -> str | None:
    for folder in (model.source, model.source.parent.parent):  # a model folder, or a checkpoint in its run
        if RunDirectory(folder).exists:
            return _config_of(RunDirectory(folder)).data
    return None


@dataclass
class Traverse:
    model: tyro.conf.Positional[str]
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "traversal.png"
    """File; with several codes the code's name is added to it."""
    code: str | None = None
    """One code; by default all."""
    seed: int = 0


def traverse(arguments: list[str]) -> int:
    given = parse(Traverse, "traverse", arguments, "Draw codes. Example: infogan traverse first-model --code cat0")
    model = load(given.model, _warn)
    output = _picture_path(given.output)
    for name in [given.code] if given.code else list(model.codes):
        path = output if given.code else output.with_name(f"{output.stem}_{name}{output.suffix}")
        draw(model.traverse(name, given.seed)).save(path)
        print(path)
    return DONE


@dataclass
class Sample:
    model: tyro.conf.Positional[str]
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "samples.png"
    """A picture, or an .npz file with an array 'images' (N, H, W, C)."""
    set: list[str] = field(default_factory=list)
    """Fixed codes, for example cat0=3 uniform0=0.5."""
    seed: int = 0


def sample(arguments: list[str]) -> int:
    given = parse(Sample, "sample", arguments, "Make images. Example: infogan sample first-model --set cat0=3 -o 3.png")
    codes = {}
    for word in given.set:
        name, _, value = word.partition("=")
        try:
            codes[name] = float(value)
        except ValueError:
            raise ValueError(f"set is '{word}'; write CODE=NUMBER, for example cat0=3") from None
    output = _picture_path(given.output, ".npz")
    model = load(given.model, _warn)
    images = model.sample(given.n, codes, given.seed)
    if output.suffix == ".npz":
        import numpy as np

        np.savez_compressed(output, images=images.permute(0, 2, 3, 1).numpy())
    else:
        tile(images, columns=min(given.n, 8), scale=max(1, round(56 / model.spec.image_size))).save(output)
    print(output)
    return DONE


@dataclass
class Encode:
    model: tyro.conf.Positional[str]
    images: tyro.conf.Positional[str]
    """A dataset, a folder of images, one image or an .npz file."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "codes.parquet"


def encode(arguments: list[str]) -> int:
    given = parse(
        Encode, "encode", arguments, "Read codes. Example: infogan encode first-model photos -o codes.parquet"
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = load(given.model, _warn)
    size, channels = model.spec.image_size, model.spec.channels
    path = Path(given.images).expanduser()
    if given.images not in NAMES and path.exists() and path.suffix != ".npz":
        files = image_files(path) if path.is_dir() else [path]
        names, images = [str(file) for file in files], read_files(files, size, channels)
    else:
        found = load_images(given.images, DataConfig(None, size, channels), lambda line: print(line, file=sys.stderr))
        parts = [("train", found.images), *([("test", found.test_images)] if found.test_images is not None else [])]
        names = [f"{part}/{row}" for part, tensor in parts for row in range(len(tensor))]
        images = torch.cat([tensor for _, tensor in parts])
    pq.write_table(pa.table({"image": names, **model.encode(images)}), given.output)
    print(f"{given.output}: {len(names):,} images")
    return DONE


# ---------------------------------------------------------------------------------------------------- data and doctor


@dataclass
class Data:
    action: tyro.conf.Positional[Literal["fetch"]]
    name: tyro.conf.Positional[str]
    """mnist or fashion_mnist."""
    data_dir: str | None = None
    """Folder to look into first."""


def data(arguments: list[str]) -> int:
    given = parse(Data, "data", arguments, "Fetch a dataset. Example: infogan data fetch mnist")
    if given.name not in NAMES:
        raise ValueError(f"data is '{given.name}'; valid are {', '.join(NAMES)}")
    images = load_images(given.name, DataConfig(given.data_dir), say=lambda line: print(line, file=sys.stderr))
    assert images.test_images is not None
    print(f"{given.name}: {len(images.images):,} training and {len(images.test_images):,} test images, checksums right")
    return DONE


@dataclass
class Doctor:
    json: bool = False


def doctor(arguments: list[str]) -> int:
    given = parse(Doctor, "doctor", arguments, "Look at this machine. Example: infogan doctor")
    from infogan_ray.distributed.doctor import examine

    findings = examine()
    if given.json:
        print(json.dumps({"findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        display.table("doctor", ["", "what", "finding"], [[f.mark, f.what, f.finding] for f in findings])
    return FAILED if any(f.mark == "bad" for f in findings) else DONE


def _warn(line: str) -> None:
    print(f"infogan: {line}", file=sys.stderr)


def _take_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    return [a for a in arguments if a != flag], flag in arguments


def _peek(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, in either of its forms, before all flags are parsed."""
    for position, word in enumerate(arguments):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def _scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if isinstance(v, (int, float, str))}


def _picture_path(text: str, *others: str) -> Path:
    path = Path(text).expanduser()
    valid = (".png", ".jpg", ".webp", *others)
    if path.suffix.lower() not in valid:
        raise ValueError(f"output is '{text}'; valid endings are {', '.join(valid)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output is '{text}', and the folder {path.absolute().parent} does not exist")
    return path
