"""Prints results on stdout, and progress and warnings on stderr.

Inside ``results_alone_on_stdout`` stdout has nothing else: what libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from infogan_ray.storage.json_text import to_json
from infogan_ray.storage.visible_text import printable

_results: TextIO | None = None


@contextlib.contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Inside the block, other prints of this process and its children go to stderr, also those of native code.

    Results get escapes for characters that their encoding lacks: no name may end a command. Raises OSError at the end
    if the last results cannot be written. Does nothing in another thread than the main one, which owns the streams.
    """
    global _results
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stdout, before = sys.stdout, _results
    with contextlib.ExitStack() as after:
        if isinstance(stdout, io.TextIOWrapper):
            stdout.reconfigure(errors="backslashreplace")
        _results = stdout or after.enter_context(open(os.devnull, "w"))
        if _has_descriptor(stdout, 1) and _has_descriptor(sys.stderr, 2):
            stdout.flush()
            descriptor = os.dup(1)
            after.callback(os.close, descriptor)
            after.callback(os.dup2, descriptor, 1)
            _results = after.enter_context(
                open(descriptor, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False)
            )
            os.dup2(2, 1)
        after.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _results = before


def _has_descriptor(stream: TextIO | None, number: int) -> bool:
    """Whether a stream uses this file descriptor. A program that was started without it has None."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
        return stream is not None and stream.fileno() == number
    return False


def results() -> TextIO:
    """The stream of a command's results: the stdout of the program."""
    return _results or sys.stdout


def print_result(*lines: str) -> None:
    """Print lines on the program's stdout, which has only results."""
    print(*map(printable, lines), sep="\n", file=results(), flush=True)


def print_json(value: Any) -> None:
    """Print a JSON object as a line of results."""
    print_result(to_json(value))


def print_progress(line: str) -> None:
    """Print a line on stderr, so that stdout has only results."""
    print(printable(line), file=sys.stderr)


def warn(line: str) -> None:
    print_progress(f"infogan: {line}")
