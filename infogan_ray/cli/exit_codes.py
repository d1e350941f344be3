"""The exit codes of ``infogan``, and the exception that ends a command with one of them."""

from __future__ import annotations

DONE, FAILED, USAGE, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


class Failed(Exception):
    """A command failed. It has a message of one line and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
