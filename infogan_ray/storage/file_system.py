"""A folder on a disk, on a mounted share or in an object store, accessed through pyarrow.fs.

Names in a folder are single plain components. Neither ``..`` nor a symbolic link can lead out of it.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs

from infogan_ray import UserError
from infogan_ray.storage.errors import StorageError, retry, translate_errors
from infogan_ray.storage.uri import parse_uri

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
    """One folder. Operations raise FileNotFoundError or StorageError.

    Transient errors are retried for ``retry_timeout_s`` seconds before StorageError is raised. Names that are not
    plain, and symbolic links, raise UserError.
    """

    filesystem: pafs.FileSystem
    path: str
    scheme: str = ""
    settings: str = ""
    retry_timeout_s: float = RETRY_TIMEOUT_S

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
        return self._run(self.path, lambda: self.filesystem.get_file_info(self.path)).type == pafs.FileType.File

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> Storage:
        return replace(self, path=self._path_of(name))

    def with_retry_timeout(self, seconds: float) -> Storage:
        return replace(self, retry_timeout_s=seconds)

    # Reading --------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""
        return b"".join(self.read_chunks(name))

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file in chunks of a mebibyte. Raises FileNotFoundError."""
        path = self._path_of(name)
        stream = self._run(path, lambda: self.filesystem.open_input_stream(path))
        with stream:
            while chunk := self._run(path, lambda: stream.read(CHUNK)):
                yield chunk

    def entries(self) -> list[Entry]:
        """The entries of this folder, sorted by name. Empty if the folder does not exist.

        Symbolic links and names that are not UTF-8 are left out: this program never writes them.
        """
        selector = pafs.FileSelector(self.path, allow_not_found=True)

        def list_folder() -> list[pafs.FileInfo]:
            try:
                return self.filesystem.get_file_info(selector)
            except FileNotFoundError:  # another process created or deleted the folder meanwhile
                raise OSError("the folder changed while it was listed") from None

        found = self._run(self.path, list_folder)
        entries = [entry for entry in map(_to_entry, found) if entry is not None]
        plain = [entry for entry in entries if not (self.is_local and os.path.islink(f"{self.path}/{entry.name}"))]
        return sorted(plain, key=lambda entry: entry.name)

    def exists(self, name: str) -> bool:
        path = self._path_of(name)
        return self._run(path, lambda: self.filesystem.get_file_info(path)).type != pafs.FileType.NotFound

    def is_file(self, name: str) -> bool:
        path = self._path_of(name)
        return self._run(path, lambda: self.filesystem.get_file_info(path)).type == pafs.FileType.File

    # Writing --------------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file. Readers see either the old or the new bytes. The written length is checked."""
        path = self._path_of(name)
        self._run(path, lambda: self._write(path, content))

    def _write(self, path: str, content: bytes) -> None:
        target = path
        if self.is_local:  # objects appear only when complete; a local file is written under another name and renamed
            folder, _, name = path.rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            target = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with self.filesystem.open_output_stream(target, compression=None) as stream:
                stream.write(content)
            written = self.filesystem.get_file_info(target).size
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
            with self.filesystem.open_append_stream(path) as stream:
                stream.write(content)

        translate_errors(self._display(path), add)

    def delete(self, name: str) -> None:
        """Delete a file. A missing file is no error."""
        path = self._path_of(name)
        try:
            self._run(path, lambda: self.filesystem.delete_file(path))
        except FileNotFoundError:
            pass
        except StorageError:
            if self.exists(name):
                raise

    def delete_all(self) -> None:
        """Delete this folder and its content. A missing folder is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._run(self.path, lambda: self.filesystem.delete_dir(self.path))

    # ----------------------------------------------------------------------------------------------------------------

    def _path_of(self, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"'{name}' is not a plain name in {self}")
        path = f"{self.path.rstrip('/')}/{name}"
        if self.is_local and os.path.islink(path):
            raise UserError(f"{path} is a symbolic link; links below a storage folder are not followed")
        return path

    def _run(self, path: str, action: Callable[[], T]) -> T:
        return retry(lambda: translate_errors(self._display(path), action), self.retry_timeout_s)

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
