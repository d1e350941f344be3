"""infogan train: reads flags and files, trains a run, and prints its summary."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.display import scalars
from infogan_ray.cli.exit_codes import DIVERGED, DONE, FAILED, INTERRUPTED, Failed
from infogan_ray.cli.flags import START_OR_RESUME, parse, peek, take_flag
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.cli.train_summary import print_summary
from infogan_ray.data.feeds.feed_policy import feed_line
from infogan_ray.data.image_set import AUTO
from infogan_ray.distributed.cluster.connection import PrintedToLog
from infogan_ray.distributed.train import torchrun, trainer
from infogan_ray.distributed.train.checks import check, runs_in_this_process
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory, default_name
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.training import resume
from infogan_ray.training.config import RunConfig, load_values
from infogan_ray.training.ddp import gradient_bytes
from infogan_ray.training.disk_room import run_warning
from infogan_ray.training.run_cost import checkpoint_plan, checkpoint_size, steps_plan, wire_plan
from infogan_ray.training.run_estimate import computed_cost, cost_text, cost_warnings, measured_cost
from infogan_ray.training.run_listing import outcome
from infogan_ray.training.run_outcome import LAST_STATUS_S, HeadLost, OutOfMemory, TrainingFailed
from infogan_ray.training.run_setup import resolve_feed
from infogan_ray.training.train_command import train_command

EXIT_CODES = {"finished": DONE, "interrupted": INTERRUPTED, "diverged": DIVERGED}


def train(arguments: list[str]) -> int:
    arguments, dry_run = take_flag(arguments, "--dry-run")
    arguments, measure = take_flag(arguments, "--measure")
    arguments, as_json = take_flag(arguments, "--json")
    arguments, either = take_flag(arguments, START_OR_RESUME)
    config = train_config(arguments, either)
    if measure and not dry_run:
        raise UserError("--measure times steps for --dry-run; give both")
    if torchrun.is_other_rank():  # rank 0 alone prints and writes
        return DONE if dry_run else EXIT_CODES[trainer.join_rank_zero().state]
    if config.name is None and (config.resume or either):
        raise UserError(f"name is not set, but {'--resume' if config.resume else START_OR_RESUME} needs --name")
    name = config.name or default_name(config.data or "run")
    config = dataclasses.replace(config, name=name)
    if either and not dry_run:
        config = dataclasses.replace(config, resume=(RunDirectory(open_storage(config.storage) / name)).can_resume)
    storage = open_storage(config.storage)
    if not dry_run or (storage.is_local and not either):  # a dry run does not need an existing bucket
        RunDirectory.check_name(storage, name, config.resume)  # before anything is fetched
    if dry_run:
        return _dry_run(config, as_json, measure)
    started = time.monotonic()
    try:
        with display.TrainDisplay(config.epochs) as shown, contextlib.redirect_stdout(PrintedToLog()):
            result = trainer.train(config, shown)
    except HeadLost as error:
        if as_json:
            _print_outcome(config, "failed", str(error))
        warn(f"{error}. Continue with: {_resume_command(config)}")
        os._exit(FAILED)  # a normal exit would wait for the dead head and print Ray's traces
    except OutOfMemory as error:
        raise Failed(str(error)) from None
    except TrainingFailed as error:
        if as_json:
            _print_outcome(config, "failed", str(error))
        raise Failed(f"{error}. Continue with: {_resume_command(config)}") from None
    except KeyboardInterrupt:
        if as_json:
            _print_outcome(config, "interrupted", "")
        with contextlib.suppress(StorageError):
            if not RunDirectory(open_storage(config.storage) / name).exists:
                raise Failed("interrupted before the run started", INTERRUPTED) from None
        raise Failed(f"interrupted; continue with: {_resume_command(config)}", INTERRUPTED) from None
    if as_json and result.state != "finished":
        _print_outcome(config, result.state, result.message)
    if result.state == "interrupted":
        raise Failed(f"interrupted: {result.message}; continue with: {_resume_command(config)}", INTERRUPTED)
    reported = _report(result.run)
    if result.state == "diverged":
        last_good = result.metrics.get("last_good")
        hint = f"the last good checkpoint is {last_good}" if last_good else "there is no earlier checkpoint"
        raise Failed(f"{config.name} diverged: {result.message}; {hint}", DIVERGED)
    if as_json:
        print_json({"run": result.run.folder.uri, "state": result.state, **scalars(result.metrics)})
        return DONE
    print_summary(config, result, time.monotonic() - started)
    if reported:
        print_result(f"report: {result.run.folder}/{RunDirectory.REPORT}")
    return DONE


def _report(run: RunDirectory) -> bool:
    """Write the run's report. Returns whether that succeeded; an error is only a warning."""
    from infogan_ray.web.reports.run import write_run_report

    try:
        write_run_report(run)
    except (UserError, StorageError) as error:
        warn(f"the report was not written: {error}; write it with: infogan report {shell_word(run.folder.uri)}")
        return False
    return True


def _print_outcome(config: RunConfig, state: str, cause: str) -> None:
    """Print a run that has not finished as JSON. If its storage is unavailable, without metrics."""
    run = RunDirectory(open_storage(config.storage) / str(config.name)).with_retry_timeout(LAST_STATUS_S)
    found: dict[str, Any] = {"run": run.folder.uri}
    with contextlib.suppress(StorageError):
        found = outcome(run)
    print_json({**found, "state": state, "cause": cause or found.get("cause")})


SHORT_FLAG = "--consistency"  # means --consistency.weight
HELP_ALL = "--help-all"


def train_config(arguments: list[str], start_or_resume: bool = False, own_settings: bool = True) -> RunConfig:
    """The configuration of the arguments: flags override CONFIG.yaml, which overrides the preset.

    With --resume all these override the run's own settings. ``own_settings``: whether to read these from storage.
    """
    arguments = ["--help" if word == HELP_ALL else word for word in arguments]
    rest = ["--consistency.weight" + word.removeprefix(SHORT_FLAG) if word.partition("=")[0] == SHORT_FLAG else word
            for word in arguments]  # fmt: skip
    file = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else None
    values = {} if file is None else load_values(file)
    if (chosen := peek(rest, "--preset")) is not None:
        values["preset"] = chosen
    base = RunConfig().override(values, str(file))
    if own_settings and (start_or_resume or base.resume or "--resume" in rest):
        storage, name = peek(rest, "--storage") or base.storage, peek(rest, "--name") or base.name
        if name is not None and (run := RunDirectory(open_storage(storage) / name)).exists:
            base = resume.own_settings(run).override(values, str(file))
    if peek(rest, "--epochs") and not peek(rest, "--steps"):
        base = dataclasses.replace(base, steps=None)
    if peek(rest, "--steps") and not peek(rest, "--epochs"):
        base = dataclasses.replace(base, epochs=None)
    return parse(
        RunConfig, "train", rest, default=base, taken=("--dry-run", "--measure", "--json", START_OR_RESUME, HELP_ALL),
        description="", examples=[],  # main.py prints the help of train
    )  # fmt: skip


def _dry_run(config: RunConfig, as_json: bool, measure: bool) -> int:
    """Print what the run would be and take. ``measure``: time some steps in this process."""
    found = check(config, say=print_progress, sample=0)
    wanted, images = found.wanted, found.images
    steps = config.total_steps(images.count)
    spec = config.model_spec(images.image_size, images.channels)
    generator, discriminator = spec.parameter_counts()
    run, size = RunDirectory(open_storage(config.storage) / str(config.name)), checkpoint_size(config, images)
    left = steps - (run.get_status().get("stored", 0) if config.resume else 0)
    cost = (measured_cost if measure else computed_cost)(
        config, images.image_size, images.channels, wanted.device, wanted.threads, wanted.max_workers
    )
    if as_json:
        print_json({
            "config": config.to_dict(), "images": images.count, "steps": steps, "seconds": cost.seconds * left,
            "seconds_per_step": cost.seconds, "memory_bytes": round(cost.memory), "cost_from": cost.source,
            "parameters": {"generator": generator, "discriminator": discriminator}, "checkpoint_bytes": size,
        })  # fmt: skip
        return DONE
    where = "this process" if runs_in_this_process(wanted) else "Ray Train's processes"
    print_result(f"run: {config.name} in {open_storage(config.storage)}")
    print_result(f"data: {images.count:,} images {images.image_size}x{images.image_size}x{images.channels}")
    print_result(steps_plan(config, steps, images.count))
    print_result(cost_text(cost, left))
    print_result(f"runs on: {wanted.text}, in {where}; threads: {wanted.threads_from}")
    print_result(f"parameters: generator {generator:,}, discriminator with Q {discriminator:,}")
    print_result(feed_line(AUTO if config.resume else config.feed, resolve_feed(config), images, found.budget))
    print_result(wire_plan(gradient_bytes(spec, config.optimizer.wire, config.contrastive), config, wanted.max_workers))
    print_result(checkpoint_plan(config, steps, size, run.folder))
    print_result("settings: --json prints all of them" + ("" if measure else "; --measure times steps on this machine"))
    for warning in cost_warnings(config, cost, steps, images.count, left):
        warn(warning)
    if no_room := run_warning(config, steps, size, run):
        warn(no_room)
    return DONE


def _resume_command(config: RunConfig) -> str:
    return f"{train_command(config)} --resume"
