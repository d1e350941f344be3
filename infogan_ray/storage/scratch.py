"""Temporary folders on this machine. If a process is killed, a later one deletes its folders."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "infogan-scratch-"
MIN_AGE_S = 60.0  # a younger folder may belong to a process that has not locked it yet


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A context with the path of a new folder, which is deleted at the end. First deletes abandoned folders.

    The process holds a lock on the folder. The system releases it if the process is killed.
    """
    delete_abandoned(Path(tempfile.gettempdir()))
    path = tempfile.mkdtemp(prefix=PREFIX)
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; nobody can lock the folder to delete it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        os.close(handle)
        shutil.rmtree(path, ignore_errors=True)


def delete_abandoned(parent: Path) -> None:
    """Delete the scratch folders in ``parent`` that belong to this user and to no living process."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, locked by a living process, or deleted meanwhile
            found = folder.lstat()
            young = time.time() - found.st_mtime < MIN_AGE_S
            if young or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
