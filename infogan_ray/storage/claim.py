"""Takes the name of a new folder on storage: of several processes that want it, at most one gets it."""

from __future__ import annotations

import os
import random
import time
import uuid

from infogan_ray.storage.errors import translate_errors
from infogan_ray.storage.file_system import Storage

CLAIM = ".claim"  # the ending of a contender's object in an object store; it exists for a moment
TEMPORARY = (".tmp", CLAIM)  # endings of files that a killed process may leave
ATTEMPTS = 8  # of a contender that meets another one. The pauses between them grow, to some ten seconds in all.


def is_taken(folder: Storage) -> bool:
    """Whether a folder has entries. What a killed writer left does not count."""
    return any(not entry.name.endswith(TEMPORARY) for entry in folder.entries())


def take_folder(folder: Storage, first: str, content: bytes) -> None:
    """Write the first file of a new folder. Raises FileExistsError if the folder has entries, and StorageError.

    If several processes do this at the same time, even with different files, at most one of them returns.
    """
    if folder.is_local:
        _take_local(folder, first, content)
    else:
        _take_object(folder, first, content)


def _take_local(folder: Storage, first: str, content: bytes) -> None:
    """Create the file exclusively (O_EXCL). A reader may see it before its content is complete."""
    path = (folder / first).path

    def create() -> bool:
        os.makedirs(folder.path, exist_ok=True)
        try:
            with open(path, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        return True

    if is_taken(folder) or not translate_errors(path, create):
        raise FileExistsError(f"it wrote {first}")
    others = [entry.name for entry in folder.entries() if entry.name != first and not entry.name.endswith(TEMPORARY)]
    if others:  # a process with another first file took the folder at the same moment
        folder.delete(first)
        raise FileExistsError(f"it wrote {others[0]}")


def _take_object(folder: Storage, first: str, content: bytes) -> None:
    """Write the file if no other contender is there: pyarrow has no conditional write for object stores.

    Each contender writes a claim and then lists the folder. A contender that finds another claim withdraws its own, and
    tries again after a random pause. Stores list an object as soon as it is written. So of two contenders that both
    hold a claim, at least one finds the other's.
    """
    for attempt in range(ATTEMPTS):
        if is_taken(folder):
            raise FileExistsError(f"it wrote {first}")
        claim = f"{uuid.uuid4().hex}{CLAIM}"
        folder.write(claim, b"claim")
        try:
            found = [entry.name for entry in folder.entries() if entry.name != claim]
            if not found:
                folder.write(first, content)
                return
        finally:
            folder.delete(claim)
        time.sleep(random.uniform(0.0, 0.1 * 2**attempt))
    raise FileExistsError(f"its claim is {found[0]}; if it was killed, delete that object")
