"""Manifests: a reader loads all files of a folder unchanged, or none of them.

MANIFEST.json is written last and lists the size and SHA-256 of every other file. A folder without a manifest, or with
other bytes than it lists, is never loaded. Checkpoints and model folders have manifests. Pickles are never written or
read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.storage.file_system import Storage

FORMAT = 1
MANIFEST = "MANIFEST.json"


class BadCheckpoint(UserError):
    """The folder does not match its manifest. The message names the file and the error."""


class IncompleteCheckpoint(BadCheckpoint):
    """The folder has no manifest: its writer is still running, or was interrupted."""


@dataclass(frozen=True)
class Manifest:
    """The files that a folder must have: size in bytes and SHA-256 by file name."""

    folder: Storage
    files: dict[str, tuple[int, str]]

    @classmethod
    def load(cls, folder: Storage, required: tuple[str, ...] = ()) -> Manifest:
        """Load the manifest of a folder and check all sizes.

        Raises BadCheckpoint, also if the manifest does not list a required file.
        """
        try:
            entries = json.loads(folder.read(MANIFEST))["files"]
            files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
        except FileNotFoundError:
            raise IncompleteCheckpoint(f"{folder} has no {MANIFEST}: it was never finished") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadCheckpoint(f"{folder}/{MANIFEST} is not a manifest") from None
        for name in required:
            if name not in files:
                raise BadCheckpoint(f"{folder}/{MANIFEST} does not list {name}")
        for name in files:
            if name in (".", "..", "") or "/" in name or "\\" in name or "\0" in name:
                raise BadCheckpoint(f"{folder}/{MANIFEST} lists '{name}', which is not a plain file name")
        sizes = {entry.name: entry.size for entry in folder.entries() if not entry.is_folder}
        for name, (size, _) in files.items():
            if name not in sizes:
                raise BadCheckpoint(f"{folder}/{name} is missing")
            if sizes[name] != size:
                raise BadCheckpoint(f"{folder}/{name} has {sizes[name]} bytes; the manifest lists {size}")
        return cls(folder, files)

    def read(self, name: str) -> bytes:
        """Read a listed file. Raises BadCheckpoint if its bytes do not match the manifest."""
        try:
            content = self.folder.read(name)
        except FileNotFoundError:
            raise BadCheckpoint(f"{self.folder}/{name} is missing") from None
        self._compare(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def verify(self) -> None:
        """Read every file. Raises BadCheckpoint for the first one that does not match the manifest."""
        for name in self.files:
            digest, size = hashlib.sha256(), 0
            try:
                for chunk in self.folder.read_chunks(name):
                    digest.update(chunk)
                    size += len(chunk)
            except FileNotFoundError:
                raise BadCheckpoint(f"{self.folder}/{name} is missing") from None
            self._compare(name, size, digest.hexdigest())

    def read_json(self, name: str) -> dict[str, Any]:
        return parse_json(f"{self.folder}/{name}", self.read(name))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        return parse_tensors(f"{self.folder}/{name}", self.read(name))

    def _compare(self, name: str, size: int, digest: str) -> None:
        if (size, digest) != self.files[name]:
            raise BadCheckpoint(f"{self.folder}/{name} does not match the manifest (SHA-256 differs)")


def write_with_manifest(
    folder: Storage, files: Mapping[str, bytes], before_each: Callable[[], None] = lambda: None
) -> None:
    """Write files into a folder, then their manifest. Deletes other files in the folder.

    ``before_each`` is called before the first change and before every file, including the manifest. It may raise.
    """
    before_each()
    folder.delete(MANIFEST)  # first: while files are replaced, the folder must not look complete
    for name, content in files.items():
        before_each()
        folder.write(name, content)
    listed = describe_files(files)
    for entry in folder.entries():
        if not entry.is_folder and entry.name not in listed:
            folder.delete(entry.name)
    before_each()
    write_manifest(folder, listed)
    Manifest.load(folder)


def replace_files(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Replace or add files of a folder with a manifest. Returns the new manifest.

    First removes their old entries from the manifest. If the process is killed afterwards, the folder is valid without
    these files.
    """
    others = {name: listed for name, listed in manifest.files.items() if name not in files}
    write_manifest(manifest.folder, others)
    for name, content in files.items():
        manifest.folder.write(name, content)
    write_manifest(manifest.folder, others | describe_files(files))
    return Manifest.load(manifest.folder)


def describe_files(files: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 by file name, as a manifest lists them."""
    return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}


def write_manifest(folder: Storage, listed: Mapping[str, tuple[int, str]]) -> None:
    """Write MANIFEST.json in one write. Replaces an older one."""
    entries = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(listed.items())}
    folder.write(MANIFEST, json.dumps({"format": FORMAT, "files": entries}, indent=1).encode())


def parse_tensors(location: str, content: bytes) -> dict[str, Tensor]:
    """Parse safetensors bytes. Raises BadCheckpoint for other bytes, which are never executed."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        pickled = content[:1] == b"\x80" or content[:2] == b"PK"
        problem = "it is a pickle (or torch.save) file, and pickles are never read" if pickled else str(error)
        raise BadCheckpoint(f"{location} is not a safetensors file: {problem}") from None


def parse_json(location: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises BadCheckpoint for other bytes."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{location} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{location} does not hold a JSON object")
    return value
