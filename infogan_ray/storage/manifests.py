"""Manifests: folders whose files are either all as they were written, or not there for a reader.

MANIFEST.json is written last and holds the size and SHA-256 of every other file. A folder without one, or whose bytes
do not match it, is never loaded. Checkpoints and model folders have manifests. Nothing pickled is written or read.
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
    """A folder that does not match its manifest; the message names the file and what is wrong with it."""


class IncompleteCheckpoint(BadCheckpoint):
    """A folder without a manifest: it is being written, or its writer was interrupted."""


@dataclass(frozen=True)
class Manifest:
    """What a folder must hold: size in bytes and SHA-256 by file name."""

    folder: Storage
    files: dict[str, tuple[int, str]]

    @classmethod
    def load(cls, folder: Storage, required: tuple[str, ...] = ()) -> Manifest:
        """The manifest of a folder, after a check of all sizes. Raises BadCheckpoint, also where it lacks a required
        file."""
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
                raise BadCheckpoint(f"{folder}/{name} has {sizes[name]} bytes where the manifest says {size}")
        return cls(folder, files)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file. Raises BadCheckpoint unless they match the manifest."""
        try:
            content = self.folder.read(name)
        except FileNotFoundError:
            raise BadCheckpoint(f"{self.folder}/{name} is missing") from None
        self._compare(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def verify(self) -> None:
        """Read every file. Raises BadCheckpoint for the first whose bytes do not match the manifest."""
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
            raise BadCheckpoint(
                f"{self.folder}/{name} does not have the bytes that the manifest says (SHA-256 differs)"
            )


def write_with_manifest(
    folder: Storage, files: Mapping[str, bytes], before_each: Callable[[], None] = lambda: None
) -> None:
    """Write files into a folder, then their manifest. Other files in the folder are deleted.

    ``before_each`` is called before the first change and before every file, the manifest included. It may raise.
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
    """Replace or add some files of a folder that has a manifest; returns the new manifest.

    Their old entries are removed from the manifest first. After a kill in between, the folder is valid without them.
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
    """Write MANIFEST.json in one write, in the place of an older one."""
    entries = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(listed.items())}
    folder.write(MANIFEST, json.dumps({"format": FORMAT, "files": entries}, indent=1).encode())


def parse_tensors(where: str, content: bytes) -> dict[str, Tensor]:
    """Raises BadCheckpoint if the bytes are not safetensors. They are never executed."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        pickled = content[:1] == b"\x80" or content[:2] == b"PK"
        what = "a pickle (or torch.save) file" if pickled else f"broken: {error}"
        raise BadCheckpoint(f"{where} is not a safetensors file; it is {what}, and pickles are never read") from None


def parse_json(where: str, content: bytes) -> dict[str, Any]:
    """Raises BadCheckpoint if the bytes are not a JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{where} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{where} does not hold a JSON object")
    return value
