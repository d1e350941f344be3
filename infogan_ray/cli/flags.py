"""Parses flags into dataclasses, and reads single flags before the others."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from infogan_ray import UserError
from infogan_ray.cli import flag_errors
from infogan_ray.cli.exit_codes import Failed
from infogan_ray.cli.output import results
from infogan_ray.training.config_fields import check_numbers

START_OR_RESUME = "--start-or-resume"
NEGATIVE_RANGE = re.compile(r"-[\d.][^:]*:.*")
T = TypeVar("T")


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Use this around imports. Raises Failed for a missing package and names the extra that installs it."""
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
    """Parse flags into a dataclass. Raises UserError for unknown flags and invalid values.

    With a default, a flag's name starts with its section's name. ``taken``: valid flags that ``kind`` does not have;
    the caller has removed them from the arguments.
    """
    message = io.StringIO()
    options: dict[str, Any] = {"args": _join_negative_ranges(arguments), "description": description}
    options |= {"config": (tyro.conf.OmitArgPrefixes,)} if default is None else {"default": default}
    try:
        with contextlib.redirect_stdout(results()), contextlib.redirect_stderr(io.StringIO()):  # stdout: --help
            found = tyro.cli(kind, prog=f"infogan {command}", **options)
    except SystemExit as end:
        if not end.code:
            raise
        # Parse once more to get the message without colours and line breaks.
        with flag_errors.without_terminal(), contextlib.redirect_stderr(message), contextlib.suppress(SystemExit):
            tyro.cli(kind, prog=f"infogan {command}", **options)
        reason = flag_errors.in_one_line(message.getvalue(), kind, default is not None, taken)
        raise UserError(f"{reason}; see 'infogan {command} --help'") from None
    check_numbers(found)
    return found


def _join_negative_ranges(arguments: Sequence[str]) -> list[str]:
    """Write ``--flag -1:1`` as ``--flag=-1:1``. Otherwise the parser takes -1:1 for a flag."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and NEGATIVE_RANGE.fullmatch(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def take_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    """Returns the arguments without the flag, and whether they contained it."""
    return [a for a in arguments if a != flag], flag in arguments


def peek(arguments: list[str], flag: str) -> str | None:
    """The value of ``--flag VALUE`` or ``--flag=VALUE`` in unparsed arguments; None without."""
    for position, word in enumerate(arguments):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return None
