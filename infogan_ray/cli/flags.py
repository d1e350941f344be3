"""What the commands share: flags to dataclasses, messages to people, a run's saved configuration."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import tyro
from PIL import Image

from infogan_ray import UserError
from infogan_ray.cli import display, flag_errors
from infogan_ray.cli.main import FAILED
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig, from_saved

START_OR_RESUME = "--start-or-resume"
PICTURES = (".png", ".jpg", ".webp")  # endings that a picture may be written by
T = TypeVar("T")


class Failed(Exception):
    """A command that could not do its work: one line and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around imports: a package that is missing is said, with the extra that brings it. Raises Failed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("infogan_ray"):
            raise
        raise Failed(f"{what} needs {error.name}; install it with: pip install 'infogan-ray[{name}]'") from None


def parse(
    kind: type[T],
    command: str,
    arguments: Sequence[str],
    description: str,
    default: T | None = None,
    taken: Sequence[str] = (),
) -> T:
    """Flags to a dataclass. Raises UserError, in one line, for flags and values that are not right.

    With a default, flags of a section have its name before them. ``taken`` are flags that were taken out before.
    """
    said = io.StringIO()
    options: dict[str, Any] = {"args": list(arguments), "description": description}
    options |= {"config": (tyro.conf.OmitArgPrefixes,)} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, prog=f"infogan {command}", **options)
    except SystemExit as end:
        if not end.code:
            raise
        # Once more, for what it says in black and white and without a break: no terminal is asked for its width.
        with flag_errors.plain(), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            tyro.cli(kind, prog=f"infogan {command}", **options)
        reason = flag_errors.in_one_line(said.getvalue(), kind, default is not None, taken)
        raise UserError(f"{reason}; see 'infogan {command} --help'") from None


def take_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    return [a for a in arguments if a != flag], flag in arguments


def peek(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, in either of its forms, before all flags are parsed."""
    for position, word in enumerate(arguments):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def print_rows(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table, or one JSON object."""
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    if not rows:
        print(f"{title}: nothing yet", file=sys.stderr)
        return

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
        return "-" if value is None else str(value)

    names = [name if "." in name else name.replace("_", " ") for name in rows[0]]
    display.table(title, names, [[text(v) for v in r.values()] for r in rows])


def warn(line: str) -> None:
    print(f"infogan: {line}", file=sys.stderr)


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if isinstance(v, (int, float, str))}


def config_of(run: RunDirectory) -> RunConfig:
    return from_saved(run.read_config(), f"{run.folder}/{run.CONFIG}")


def output_path(text: str, valid: tuple[str, ...]) -> Path:
    """Raises UserError for another ending, and where there is no folder to write into."""
    path = Path(text).expanduser()
    if path.suffix.lower() not in valid:
        raise UserError(f"output is '{text}'; valid endings are {', '.join(valid)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output is '{text}', and the folder {path.absolute().parent} does not exist")
    return path


def write_output(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """What ``fill`` writes, whole: what stands there already is replaced in the end, or stays. Raises StorageError."""
    content = io.BytesIO()
    fill(content)
    open_storage(str(path.absolute().parent)).with_retry_timeout(0).write(path.name, content.getvalue())


def write_picture(path: Path, picture: Image.Image) -> None:
    """As the ending says. Raises StorageError."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_output(path, lambda file: picture.save(file, kind))
