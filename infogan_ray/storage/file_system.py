"""A folder on a disk, on a mounted share or in an object store, accessed through pyarrow.fs.

Names in a folder are single plain components. Neither ``..`` nor a symbolic link can lead out of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs

from infogan_ray import UserError
from infogan_ray.storage.errors import (
    Refused,
    StorageError,
    existing_part,
    no_such_bucket,
    retry,
    translate_errors,
)
from infogan_ray.storage.uri import Connection, parse_uri

__all__ = ["Entry", "Storage", "StorageError", "open_storage"]

CHUNK = 1 << 20  # bytes
RETRY_TIMEOUT_S = 20.0  # how long operations are retried while storage is unavailable
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """An entry of a folder. ``size``: in bytes, 0 for folders."""

    name: str
    is_folder: bool
    size: int


@dataclass(frozen=True)
class Storage:
    """One folder. Operations raise FileNotFoundError or StorageError, which also a missing bucket is.

    Transient errors are retried for ``retry_timeout_s`` seconds before StorageError is raised. With ``in_run``, a
    server's refusal is transient too, since credentials may be renewed. Names that are not plain, and symbolic links,
    raise UserError.
    """

    connection: Connection = field(compare=False)
    path: str
    scheme: str = ""
    settings: str = ""
    retry_timeout_s: float = RETRY_TIMEOUT_S
    in_run: bool = False

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
    def path_is_file(self) -> bool:
        """Whether this path is a file and not a folder."""
        parent, _, name = self.path.rpartition("/")
        if not name or (not parent and not self.is_local):  # the root of a disk; a bucket
            return False
        return self._type(self.path) == pafs.FileType.File

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> Storage:
        return replace(self, path=self._path_of(name))

    def with_retry_timeout(self, seconds: float) -> Storage:
        """The same folder for a run in progress: with another time limit, and with ``in_run``."""
        return replace(self, retry_timeout_s=seconds, in_run=True)

    # Reading --------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        return b"".join(self.read_chunks(name))

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file in chunks of a mebibyte. Raises FileNotFoundError."""
        path = self._path_of(name)
        stream = self._run(path, lambda filesystem: filesystem.open_input_stream(self._native(path), compression=None))
        with stream:
            while chunk := self._run(path, lambda _: stream.read(CHUNK)):
                yield chunk

    def parse(self, name: str, parse: Callable[[pafs.NativeFile], T]) -> T:
        """The result of ``parse``, which reads any parts of a file, perhaps several times. Raises FileNotFoundError."""
        path = self._path_of(name)

        def read(filesystem: pafs.FileSystem) -> T:
            with filesystem.open_input_file(self._native(path)) as file:
                return parse(file)

        return self._run(path, read)

    def entries(self) -> list[Entry]:
        """The entries of this folder, sorted by name. Empty if the folder does not exist.

        Symbolic links and names that are not UTF-8 are left out: this program never writes them.
        """
        selector = pafs.FileSelector(self._native(self.path), allow_not_found=True)

        def list_folder(filesystem: pafs.FileSystem) -> list[pafs.FileInfo]:
            try:
                found = filesystem.get_file_info(selector)
            except FileNotFoundError:  # another process created or deleted the folder meanwhile
                raise OSError("the folder changed while it was listed") from None
            if not found:
                self._check_bucket(self.path)
            return found

        found = self._run(self.path, list_folder)
        entries = [entry for entry in map(_to_entry, found) if entry is not None]
        plain = [entry for entry in entries if not (self.is_local and os.path.islink(f"{self.path}/{entry.name}"))]
        return sorted(plain, key=lambda entry: entry.name)

    def exists(self, name: str) -> bool:
        return self._type(self._path_of(name)) != pafs.FileType.NotFound

    def is_file(self, name: str) -> bool:
        return self._type(self._path_of(name)) == pafs.FileType.File

    def total_bytes(self) -> int:
        """The bytes of all files below this folder; 0 if it does not exist."""
        selector = pafs.FileSelector(self._native(self.path), allow_not_found=True, recursive=True)
        found = self._run(self.path, lambda filesystem: filesystem.get_file_info(selector))
        return sum(info.size or 0 for info in found)

    def free_bytes(self) -> int | None:
        """The free bytes of the disk on which this folder is or will be. None for an object store."""
        return shutil.disk_usage(existing_part(self.path)).free if self.is_local else None

    # Writing --------------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file. Readers see either the old or the new bytes. The written length is checked."""
        path = self._path_of(name)
        self._run(path, lambda filesystem: self._write(filesystem, path, content))

    def _write(self, filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
        target = path
        if self.is_local:  # objects appear only when complete; a local file is written under another name and renamed
            folder, _, name = path.rpartition("/")
            filesystem.create_dir(self._native(folder), recursive=True)
            target = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with filesystem.open_output_stream(self._native(target), compression=None) as stream:
                stream.write(content)
            written = filesystem.get_file_info(self._native(target)).size
            if written != len(content):
                raise OSError(f"{written} of {len(content)} bytes were written")
            if self.is_local:
                with open(target, "rb") as file:
                    os.fsync(file.fileno())
                try:
                    os.replace(target, path)
                except FileNotFoundError:  # an attempt that continues this run removed it as a dead writer's file
                    raise OSError(f"another process has removed {target}") from None
        except BaseException:
            if self.is_local and os.path.lexists(target):
                os.unlink(target)
            raise

    def append(self, name: str, content: bytes) -> None:
        """Append to a file of a local folder; creates the file. Never retried: a part may have been written."""
        assert self.is_local
        path = self._path_of(name)

        def add() -> None:
            with self.connection.filesystem.open_append_stream(self._native(path)) as stream:
                stream.write(content)

        translate_errors(self._display(path), add)

    def delete(self, name: str) -> None:
        """Delete a file. A missing file is no error."""
        path = self._path_of(name)
        try:
            self._run(path, lambda filesystem: filesystem.delete_file(self._native(path)))
        except FileNotFoundError:
            pass
        except StorageError:
            if self.exists(name):
                raise

    def delete_all(self) -> None:
        """Delete this folder and its content. A missing folder is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._run(self.path, lambda filesystem: filesystem.delete_dir(self._native(self.path)))

    # ----------------------------------------------------------------------------------------------------------------

    def _path_of(self, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"'{name}' is not a plain name in {self}")
        path = f"{self.path.rstrip('/')}/{name}"
        if self.is_local and os.path.islink(path):
            raise UserError(f"{path} is a symbolic link; links below a storage folder are not followed")
        return path

    def _type(self, path: str) -> pafs.FileType:
        def find(filesystem: pafs.FileSystem) -> pafs.FileType:
            found = filesystem.get_file_info(self._native(path)).type
            if found == pafs.FileType.NotFound:
                self._check_bucket(path)
            return found

        return self._run(path, find)

    def _run(self, path: str, action: Callable[[pafs.FileSystem], T]) -> T:
        """Run an action and retry it. After a refusal, the next attempt opens the file system anew."""

        def attempt() -> T:
            try:
                return translate_errors(self._display(path), lambda: action(self.connection.filesystem))
            except FileNotFoundError:
                self._check_bucket(path)
                raise
            except Refused as refusal:
                error = refusal if refusal.explained else self._explain(path, refusal)
                self.connection.renew()
                error.transient = error.transient or (self.in_run and isinstance(error, Refused))
                raise error from None

        return retry(attempt, self.retry_timeout_s)

    def _explain(self, path: str, refusal: Refused) -> StorageError:
        """A refusal with the server's reason, if there is one: the answer to a listing has it."""
        selector = pafs.FileSelector(self._native(path), allow_not_found=True)
        try:
            translate_errors(self._display(path), lambda: self.connection.filesystem.get_file_info(selector))
        except StorageError as explained:
            return explained
        return refusal

    def _check_bucket(self, path: str) -> None:
        """Raise StorageError if the bucket does not exist: servers say only that ``path`` does not exist."""
        if self.is_local or self.connection.has_bucket:
            return
        bucket = self._display(path.partition("/")[0])
        filesystem = self.connection.filesystem
        with contextlib.suppress(Refused):  # the credentials may use objects, but not see the bucket
            found = translate_errors(bucket, lambda: filesystem.get_file_info(path.partition("/")[0]))
            if found.type == pafs.FileType.NotFound:
                raise no_such_bucket(self._display(path))
            self.connection.has_bucket = True

    def _native(self, path: str) -> str | bytes:
        """The path for pyarrow, which encodes text as UTF-8. A local path may have other bytes."""
        return os.fsencode(path) if self.is_local else path

    def _display(self, path: str) -> str:
        return path if self.is_local else f"{self.scheme}://{path}"


def _to_entry(info: pafs.FileInfo) -> Entry | None:
    try:
        name = info.base_name
    except UnicodeDecodeError:
        return None
    return Entry(name, info.type == pafs.FileType.Directory, info.size or 0) if name else None


def open_storage(text: str | Path) -> Storage:
    """Open a path, ``file://``, ``s3://bucket/prefix?region=…`` or ``gs://…``. Creates nothing. Raises UserError."""
    return Storage(*parse_uri(str(text)))
