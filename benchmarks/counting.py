"""A folder that is taken for a bucket, and counts what an object store would be asked."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from infogan_ray.storage.file_system import Storage


class Counting:
    """A local filesystem that counts what an object store would be asked, by kind, and the bytes that go either way."""

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
        os.makedirs(os.path.dirname(path), exist_ok=True)  # which an object store does not need
        return Written(self, self.inner.open_output_stream(path, compression=compression))

    def open_append_stream(self, path: str) -> Any:
        self.calls["append"] += 1
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return Written(self, self.inner.open_append_stream(path))

    def create_dir(self, path: str, recursive: bool = True) -> None:
        self.inner.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.calls["delete"] += 1
        self.inner.delete_file(path)

    def delete_dir(self, path: str) -> None:
        self.calls["delete"] += 1
        self.inner.delete_dir(path)

    def taken(self) -> Counter[str]:
        """The calls since the last time that this was asked."""
        calls, self.calls = self.calls, Counter()
        return calls


class Written:
    """A stream that counts what is written."""

    def __init__(self, counter: Counting, inner: Any) -> None:
        self.counter, self.inner = counter, inner

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()

    def write(self, content: bytes) -> None:
        self.counter.written += len(content)
        self.inner.write(content)


def counted(folder: Path, as_local: bool = False) -> tuple[Storage, Counting]:
    """A folder that ``Storage`` takes for a bucket: neither renames nor appends, as on an object store."""
    filesystem = Counting()
    return Storage(filesystem, str(folder), "" if as_local else "s3"), filesystem  # type: ignore[arg-type]
