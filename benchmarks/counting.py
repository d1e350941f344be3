"""A local folder that acts as a bucket and counts the calls to an object store."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from infogan_ray.storage.file_system import Storage


class CountingFileSystem:
    """A local file system that counts object-store calls by kind, and the bytes read and written."""

    def __init__(self) -> None:
        self.inner = pafs.LocalFileSystem()
        self.calls: Counter[str] = Counter()
        self.read = self.written = 0

    def get_file_info(self, what: Any) -> Any:
        self.calls["list" if isinstance(what, pafs.FileSelector) else "head"] += 1
        return self.inner.get_file_info(what)

    def open_input_stream(self, path: str) -> Any:
        self.calls["get"] += 1
        info = self.inner.get_file_info(path)
        self.read += info.size or 0
        return self.inner.open_input_stream(path)

    def open_output_stream(self, path: str, compression: None = None) -> Any:
        self.calls["put"] += 1
        os.makedirs(os.path.dirname(path), exist_ok=True)  # an object store needs no folders
        return CountingStream(self, self.inner.open_output_stream(path, compression=compression))

    def open_append_stream(self, path: str) -> Any:
        self.calls["append"] += 1
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return CountingStream(self, self.inner.open_append_stream(path))

    def create_dir(self, path: str, recursive: bool = True) -> None:
        self.inner.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.calls["delete"] += 1
        self.inner.delete_file(path)

    def delete_dir(self, path: str) -> None:
        self.calls["delete"] += 1
        self.inner.delete_dir(path)

    def pop_calls(self) -> Counter[str]:
        """Return the calls since the last use of this method, and reset the counts."""
        calls, self.calls = self.calls, Counter()
        return calls


class CountingStream:
    """An output stream that counts the bytes."""

    def __init__(self, counter: CountingFileSystem, inner: Any) -> None:
        self.counter, self.inner = counter, inner

    def __enter__(self) -> CountingStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()

    def write(self, content: bytes) -> None:
        self.counter.written += len(content)
        self.inner.write(content)


def counting_storage(folder: Path, as_local: bool = False) -> tuple[Storage, CountingFileSystem]:
    """A folder that ``Storage`` treats as a bucket: no rename and no append. ``as_local`` keeps it a folder."""
    filesystem = CountingFileSystem()
    return Storage(filesystem, str(folder), "" if as_local else "s3"), filesystem  # type: ignore[arg-type]
