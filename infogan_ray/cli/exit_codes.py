"""The exit codes of ``infogan``, and the exception by which a command ends with one of them."""

from __future__ import annotations

DONE, FAILED, USAGE, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


class Failed(Exception):
    """A command could not do its work: one line, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
