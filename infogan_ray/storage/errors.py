"""Storage errors: one exception class with messages of one line, and retries of transient errors."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PERMANENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
T = TypeVar("T")


class StorageError(Exception):
    """A storage operation failed. ``transient``: a retry may help (an outage, a 503)."""

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def translate_errors(location: str, action: Callable[[], T]) -> T:
    """Run a storage action. Raises FileNotFoundError, or StorageError with the reason in one line."""
    try:
        return action()
    except FileNotFoundError:
        raise
    except pa.ArrowInvalid as error:  # raised by pyarrow for names that a store does not support
        raise StorageError(f"{location}: {' '.join(str(error).split())}", transient=False) from None
    except OSError as error:
        if re.search(r"NO_SUCH_KEY|NoSuchKey", str(error)):  # deleted after it was opened
            raise FileNotFoundError(location) from None
        raise _to_storage_error(location, error) from None


def retry(action: Callable[[], T], timeout_s: float) -> T:
    """Repeat an action that raises transient errors, with growing pauses, until the timeout has passed."""
    deadline, pause = time.monotonic() + timeout_s, 0.2
    while True:
        try:
            return action()
        except StorageError as error:
            if not error.transient or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))  # so that many workers do not retry at the same moment
        pause = min(2 * pause, 5.0)


def _to_storage_error(location: str, error: OSError) -> StorageError:
    text = " ".join(str(error).split())
    if error.errno in NO_SPACE:
        return StorageError(f"{location}: no space is left ({os.strerror(error.errno)})", transient=False)
    if error.errno in PERMANENT:
        return StorageError(f"{location}: {os.strerror(error.errno)}", transient=False)
    if re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT|HTTP status 403", text):
        names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if location.startswith("gs://"):
            names = "GOOGLE_APPLICATION_CREDENTIALS"
        return StorageError(
            f"{location}: the server refuses the credentials of the environment (403); check {names}", transient=False
        )
    if re.search(r"NO_SUCH_BUCKET|does not exist|HTTP status 404", text):
        return StorageError(f"{location}: the bucket does not exist", transient=False)
    if aws_error := re.search(r"AWS Error (.+?) during (\w+) operation:? *(?:curlCode: \d+, )?([^;]*)", text):
        code, operation, detail = aws_error.groups()
        text = f"{operation} failed, {code.replace('_', ' ').lower()} ({detail.strip(' .')})"
    return StorageError(f"{location}: {text[:300]}", transient=True)
