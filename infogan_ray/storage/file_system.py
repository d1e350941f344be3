"""A folder on a disk, on a mounted share or in an object store, behind one seam on pyarrow.fs.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID and its kin, GOOGLE_APPLICATION_CREDENTIALS): a URI that
holds some is refused, so they cannot reach a configuration, a log or a checkpoint. Names below a folder are single
plain components; neither ``..`` nor a symbolic link leads out of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from infogan_ray import UserError

SETTINGS = {"s3": ("endpoint_override", "region", "scheme"), "gs": ("endpoint_override", "scheme", "anonymous")}
CHUNK = 1 << 20
PATIENCE_S = 20.0  # how long a reader waits for a storage that is away
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
T = TypeVar("T")


class StorageError(Exception):
    """Storage that does not do as asked. ``passing``: to try again may help (an outage, a timeout, a 503)."""

    def __init__(self, message: str, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Entry:
    """What a folder holds under one name. ``size`` in bytes; 0 for folders."""

    name: str
    is_folder: bool
    size: int


@dataclass(frozen=True)
class Storage:
    """One folder. Errors are FileNotFoundError and StorageError, this after ``patience_s`` seconds if it may pass.

    Names that are not plain, and symbolic links, raise ValueError.
    """

    filesystem: pafs.FileSystem
    path: str
    scheme: str = ""
    settings: str = ""
    patience_s: float = PATIENCE_S

    @property
    def is_local(self) -> bool:
        return self.scheme == ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Storage:
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def uri(self) -> str:
        """What ``open_storage`` opens again on any machine with the credentials in its environment."""
        if self.is_local:
            return self.path
        query = f"?{self.settings}" if self.settings else ""
        return f"{self.scheme}://{urllib.parse.quote(self.path)}{query}"

    @property
    def is_itself_a_file(self) -> bool:
        """Whether there is a file where this folder should be."""
        above, _, name = self.path.rpartition("/")
        if not name or (not above and not self.is_local):  # the root of a disk; a bucket
            return False
        return self._try(self.path, lambda: self.filesystem.get_file_info(self.path)).type == pafs.FileType.File

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> Storage:
        return replace(self, path=self._at(name))

    def patient(self, seconds: float) -> Storage:
        return replace(self, patience_s=seconds)

    # Reading --------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a megabyte at a time. Raises FileNotFoundError."""
        path = self._at(name)
        stream = self._try(path, lambda: self.filesystem.open_input_stream(path))
        with stream:
            while chunk := self._try(path, lambda: stream.read(CHUNK)):
                yield chunk

    def entries(self) -> list[Entry]:
        """What lies in this folder, by name; nothing if it does not exist. Passed over are symbolic links, and names
        that are not UTF-8: nothing of ours has one."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        found = self._try(self.path, lambda: self.filesystem.get_file_info(selector))
        entries = [entry for entry in map(_entry, found) if entry is not None]
        named = [entry for entry in entries if not (self.is_local and os.path.islink(f"{self.path}/{entry.name}"))]
        return sorted(named, key=lambda entry: entry.name)

    def exists(self, name: str) -> bool:
        path = self._at(name)
        return self._try(path, lambda: self.filesystem.get_file_info(path)).type != pafs.FileType.NotFound

    def is_file(self, name: str) -> bool:
        path = self._at(name)
        return self._try(path, lambda: self.filesystem.get_file_info(path)).type == pafs.FileType.File

    # Writing --------------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file: a reader sees the old bytes or the new ones. The length is read back."""
        path = self._at(name)
        self._try(path, lambda: self._write(path, content))

    def _write(self, path: str, content: bytes) -> None:
        target = path
        if self.is_local:  # an object appears at once when it is complete; a file must be renamed into place
            folder, _, name = path.rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            target = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with self.filesystem.open_output_stream(target, compression=None) as stream:
                stream.write(content)
            written = self.filesystem.get_file_info(target).size
            if written != len(content):
                raise OSError(f"{written} of {len(content)} bytes arrived")
            if self.is_local:
                with open(target, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(target, path)
        except BaseException:
            if self.is_local and os.path.lexists(target):
                os.unlink(target)
            raise

    def append(self, name: str, content: bytes) -> None:
        """Add to a file, which need not exist; local folders alone can. Not tried again: some of it may stand there."""
        assert self.is_local
        path = self._at(name)

        def add() -> None:
            with self.filesystem.open_append_stream(path) as stream:
                stream.write(content)

        guarded(self._shown(path), add)

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is no error."""
        path = self._at(name)
        try:
            self._try(path, lambda: self.filesystem.delete_file(path))
        except FileNotFoundError:
            pass
        except StorageError:
            if self.exists(name):
                raise

    def delete_all(self) -> None:
        """Delete this folder with all in it; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._try(self.path, lambda: self.filesystem.delete_dir(self.path))

    # ----------------------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"'{name}' is not a plain name in {self}")
        path = f"{self.path.rstrip('/')}/{name}"
        if self.is_local and os.path.islink(path):
            raise UserError(f"{path} is a symbolic link; links below a storage folder are not followed")
        return path

    def _try(self, path: str, action: Callable[[], T]) -> T:
        return patiently(lambda: guarded(self._shown(path), action), self.patience_s)

    def _shown(self, path: str) -> str:
        return path if self.is_local else f"{self.scheme}://{path}"


def _entry(info: pafs.FileInfo) -> Entry | None:
    try:
        name = info.base_name
    except UnicodeDecodeError:
        return None
    return Entry(name, info.type == pafs.FileType.Directory, info.size or 0) if name else None


def guarded(where: str, action: Callable[[], T]) -> T:
    """The result of an action on storage. Raises FileNotFoundError, or StorageError with the reason in one line."""
    try:
        return action()
    except FileNotFoundError:
        raise
    except pa.ArrowInvalid as error:  # a ValueError of pyarrow's, for names that a store cannot have
        raise StorageError(f"{where}: {' '.join(str(error).split())}", passing=False) from None
    except OSError as error:
        if re.search(r"NO_SUCH_KEY|NoSuchKey", str(error)):  # deleted since it was opened
            raise FileNotFoundError(where) from None
        raise _explained(where, error) from None


def patiently(action: Callable[[], T], seconds: float) -> T:
    """Repeat an action whose errors may pass, with growing pauses, for so many seconds."""
    deadline, pause = time.monotonic() + seconds, 0.2
    while True:
        try:
            return action()
        except StorageError as error:
            if not error.passing or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))  # so that many workers do not come back all at once
        pause = min(2 * pause, 5.0)


def _explained(where: str, error: OSError) -> StorageError:
    text = " ".join(str(error).split())
    if error.errno in NO_ROOM:
        return StorageError(f"{where}: no room is left ({os.strerror(error.errno)})", passing=False)
    if error.errno in NOT_ALLOWED:
        return StorageError(f"{where}: {os.strerror(error.errno)}", passing=False)
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return StorageError(f"{where}: {os.strerror(error.errno)}", passing=False)
    if re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT|HTTP status 403", text):
        names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if where.startswith("gs://"):
            names = "GOOGLE_APPLICATION_CREDENTIALS"
        return StorageError(
            f"{where}: the server refuses the credentials of the environment (403); check {names}", passing=False
        )
    if re.search(r"NO_SUCH_BUCKET|does not exist|HTTP status 404", text):
        return StorageError(f"{where}: the bucket does not exist", passing=False)
    if of_aws := re.search(r"AWS Error (.+?) during (\w+) operation:? *(?:curlCode: \d+, )?([^;]*)", text):
        code, operation, detail = of_aws.groups()
        text = f"{operation} failed, {code.replace('_', ' ').lower()} ({detail.strip(' .')})"
    return StorageError(f"{where}: {text[:300]}", passing=True)


def open_storage(text: str | Path) -> Storage:
    """A path, ``file://``, ``s3://bucket/prefix?region=…`` or ``gs://…``. Nothing is made there.

    AWS is asked for a bucket's region where neither the URI nor the environment says it; else nothing is contacted.
    Raises UserError for another scheme, credentials in the URI, unknown settings and names that lead elsewhere.
    """
    text = str(text)
    if not text:
        raise UserError("storage is empty; name a folder, or a URI such as s3://bucket/prefix")
    scheme, divider, rest = text.partition("://")
    if not divider:
        return _local(text)
    address, _, query = rest.partition("?")
    text = f"{scheme}://{address}"  # of what was typed, the messages repeat this alone
    # First of all. A secret may hold a slash, so that '@' alone would not show it.
    if re.search("[:@]", urllib.parse.unquote(re.split("[/#]", address)[0])):
        raise UserError("storage has credentials in its URI; they belong into the environment (AWS_ACCESS_KEY_ID …)")
    if scheme not in ("file", *SETTINGS):
        raise UserError(f"storage is '{text}'; valid are a folder, file://, s3://bucket/… and gs://bucket/…")
    given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    for key in given:
        if key not in SETTINGS.get(scheme, ()):
            credentials = "; credentials belong into the environment" if re.search("key|secret|token", key) else ""
            valid = ", ".join(SETTINGS.get(scheme, ())) or "none"
            raise UserError(f"storage has the setting '{key}'; valid are {valid}{credentials}")
    if "#" in rest:
        raise UserError(f"storage is '{text}'; in a URI '#' begins a fragment: write %23")
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise UserError(f"storage is '{text}'; in a URI '%' begins an escape: write %25")
    parts = [urllib.parse.unquote(part) for part in address.split("/") if part]
    if bad := next((part for part in parts if part in (".", "..") or "/" in part or "\0" in part), None):
        raise UserError(f"storage is '{text}'; '{bad}' is not a plain name")
    if scheme == "file":
        if not address.startswith("/"):
            raise UserError(f"storage is '{text}'; a file URI has three slashes: file:///folder")
        return _local("/" + "/".join(parts))
    if not parts:
        raise UserError(f"storage is '{text}'; name a bucket: {scheme}://bucket/prefix")
    filesystem, used = _s3(given, parts[0]) if scheme == "s3" else _gs(given)
    return Storage(filesystem, "/".join(parts), scheme, urllib.parse.urlencode(used))


def _local(text: str) -> Storage:
    return Storage(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))


def _s3(given: dict[str, str], bucket: str) -> tuple[pafs.FileSystem, dict[str, str]]:
    endpoint = given.get("endpoint_override")
    if endpoint is None:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    used = dict(given)
    if endpoint and "@" in endpoint:
        raise UserError("storage endpoint has credentials in it; they belong into AWS_ACCESS_KEY_ID and its kin")
    if endpoint:
        scheme, divider, host = endpoint.partition("://")
        if divider:
            used["scheme"], endpoint = scheme, host
        if used.get("scheme", "https") not in ("http", "https"):
            raise UserError(f"storage endpoint has the scheme '{used['scheme']}'; valid are http and https")
        used["endpoint_override"] = endpoint.rstrip("/")
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint:
        region = "us-east-1"  # servers of one's own have no regions; the signature needs a name all the same
    if region is None:
        region = patiently(lambda: guarded(f"s3://{bucket}", lambda: pafs.resolve_s3_region(bucket)), PATIENCE_S)
    used["region"] = region
    options = {name: value for name, value in used.items() if value}
    filesystem = pafs.S3FileSystem(
        connect_timeout=5, request_timeout=20, background_writes=False, allow_delayed_open=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=2), **options,
    )  # fmt: skip
    return filesystem, used


def _gs(given: dict[str, str]) -> tuple[pafs.FileSystem, dict[str, str]]:
    options = {name: given[name] for name in ("endpoint_override", "scheme") if name in given}
    anonymous = given.get("anonymous", "false") == "true"
    return pafs.GcsFileSystem(anonymous=anonymous, retry_time_limit=timedelta(seconds=10), **options), given
