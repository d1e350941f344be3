"""Parses flags into dataclasses, and reads single flags before the others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import operator
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, Union

import tyro

from infogan_ray import UserError
from infogan_ray.cli import flag_errors
from infogan_ray.cli.exit_codes import Failed
from infogan_ray.cli.output import results
from infogan_ray.training.config_fields import check_numbers

START_OR_RESUME = "--start-or-resume"
NEGATIVE_RANGE = re.compile(r"-[\d.][^:]*:.*")
T = TypeVar("T")
Model = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="MODEL", help="A pulled model folder, a run's folder, or STORAGE/NAME (its best checkpoint)."
    ),
]
REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def optional_value(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """``STR | None`` is a flag with a STR, and has no value by default. The parser's own rule shows None to users."""
    if info.type_origin not in (types.UnionType, Union) or types.NoneType not in typing.get_args(info.type):
        return None
    kind: Any = functools.reduce(operator.or_, (o for o in typing.get_args(info.type) if o is not types.NoneType))
    inner = dataclasses.replace(info, type=kind, type_origin=typing.get_origin(kind))
    spec = REGISTRY.get_primitive_spec(inner)
    if isinstance(spec, tyro.constructors.UnsupportedTypeAnnotationError):
        return None
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["unset"] if value is None else spec.str_from_instance(value),
    )


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
    examples: Sequence[str],
    default: T | None = None,
    taken: Sequence[str] = (),
) -> T:
    """Parse flags into a dataclass. Raises UserError for unknown flags and invalid values.

    ``examples``: what may follow ``infogan``. With a default, a flag's name starts with its section's name. ``taken``:
    valid flags that ``kind`` does not have; the caller has removed them from the arguments.
    """
    message = io.StringIO()
    options: dict[str, Any] = {
        "args": _join_negative_ranges(arguments),
        "description": "\n".join([description, "", "examples:", *(f"  infogan {example}" for example in examples)]),
        "registry": REGISTRY,
    }
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
