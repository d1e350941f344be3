"""Storage errors: exceptions with messages of one line, and retries of transient errors."""

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
KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file AWS_SHARED_CREDENTIALS_FILE"
RENEW, CLOCK = "renew the credentials in the environment", "set the clock of this machine"
REGION = "set AWS_REGION, or add ?region= to the URI"
# What to do about an S3 server's refusal, by its code.
NEXT_STEPS = {
    "InvalidAccessKeyId": KEYS, "InvalidClientTokenId": KEYS, "SignatureDoesNotMatch": KEYS,
    "ExpiredToken": RENEW, "InvalidToken": RENEW, "TokenRefreshRequired": RENEW,
    "RequestTimeTooSkewed": CLOCK, "RequestExpired": CLOCK,
}  # fmt: skip
WRONG_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect")
# The permission that an operation needs; all others need s3:PutObject.
PERMISSIONS = {
    "HeadBucket": "s3:ListBucket", "ListObjectsV2": "s3:ListBucket", "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject", "DeleteObject": "s3:DeleteObject", "DeleteObjects": "s3:DeleteObject",
}  # fmt: skip
AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation:? *(.*)")
GOOGLE_REFUSAL = re.compile(
    r"google::cloud::Status\((PERMISSION_DENIED|UNAUTHENTICATED): (?:.*with a last message of )?(.*?)( error_info=|$)"
)
T = TypeVar("T")


class StorageError(Exception):
    """A storage operation failed. ``transient``: a retry may help (an outage, a 503)."""

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class DiskFull(StorageError):
    """No space is left. A retry may help after files were deleted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


class Refused(StorageError):
    """A server refuses a request: credentials that are wrong, expired or missing, or lack a permission; a wrong clock.

    ``explained``: whether the answer has the server's reason. An answer to a HEAD request has none.
    """

    def __init__(self, message: str, explained: bool = True) -> None:
        super().__init__(message, transient=False)
        self.explained = explained


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


def retry_with_room(write: Callable[[], T], make_room: Callable[[], bool]) -> T:
    """Run ``write``. If the disk is full and ``make_room`` has deleted something, run ``write`` once more."""
    try:
        return write()
    except DiskFull:
        if not make_room():
            raise
    return write()


def _to_storage_error(location: str, error: OSError) -> StorageError:
    text = " ".join(str(error).split())
    if refusal := GOOGLE_REFUSAL.search(text):  # before the errors of local disks: pyarrow gives it the same errno
        code, message, _ = refusal.groups()
        advice = "check the account of GOOGLE_APPLICATION_CREDENTIALS and its permissions"
        return Refused(f"{location}: the server refuses the request ({code}: {message.strip(' .')[:300]}); {advice}")
    if error.errno in NO_SPACE:
        reason = "no inode is free: there are too many files" if _has_no_inode(location) else os.strerror(error.errno)
        return DiskFull(f"{location}: no space is left ({reason})")
    if error.errno in PERMANENT:
        return StorageError(f"{location}: {os.strerror(error.errno)}", transient=False)
    if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|Bucket '.*' not found", text):
        return no_such_bucket(location)
    if aws_error := AWS_ERROR.search(text):
        return _to_aws_error(location, *aws_error.groups())
    return StorageError(f"{location}: {text[:300]}", transient=True)


def no_such_bucket(location: str) -> StorageError:
    scheme, _, path = location.rpartition("://")
    bucket = path.partition("/")[0]
    return StorageError(
        f"{location}: the bucket {bucket} does not exist; create it, or correct {scheme}://{bucket}", transient=False
    )


def _to_aws_error(location: str, name: str, status: str | None, operation: str, text: str) -> StorageError:
    """An error of an S3 server. ``name``: the SDK's name of the error, or UNKNOWN. ``text``: what the server said."""
    explained = "No response body" not in text
    text = re.sub(r" *\(Request ID: .*?\)", "", text).strip(" .")
    code, message = "".join(part.capitalize() for part in name.split("_")), text
    if unknown := re.search(r"ExceptionName: (\w+) Message: *(.*)", text):  # a code that the SDK does not know
        code, message = unknown.groups()
    elif status:
        code = f"HTTP status {status}"
    reason = f"{code}: {message[:300]}" if explained else code
    if code in WRONG_REGION:
        return StorageError(f"{location}: the bucket is in another region ({reason}); {REGION}", transient=False)
    if code in NEXT_STEPS:
        return Refused(f"{location}: the server refuses {operation} ({reason}); {NEXT_STEPS[code]}", explained)
    if code == "AccessDenied" or status in ("401", "403") or (status in ("301", "400") and not explained):
        permission = PERMISSIONS.get(operation, "s3:PutObject")
        advice = f"it needs the permission {permission}; if the environment has no credentials, set them there"
        if code != "AccessDenied" and explained:
            advice = "check the account and its permissions"
        return Refused(f"{location}: the server refuses {operation} ({reason}); {advice}", explained)
    detail = re.sub(r"^curlCode: \d+, ", "", message).partition(";")[0].strip(" .")
    known = f"HTTP status {status}" if status else name.replace("_", " ").lower()
    return StorageError(f"{location}: {operation} failed, {known} ({detail})", transient=status != "404")


def _has_no_inode(location: str) -> bool:
    found = os.statvfs(existing_part(location))
    return found.f_files > 0 and found.f_favail == 0


def existing_part(path: str) -> str:
    """The longest part of a local path that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
