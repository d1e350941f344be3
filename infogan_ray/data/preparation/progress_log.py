"""The progress of preparing a dataset: its settings, the finished tasks, and the manifest.

    DEST/.progress/settings.json    the source and the settings; written first
    DEST/.progress/00000.json …     one for each finished task, written after its shards
    DEST/MANIFEST.json              written last

The records stay, so that a lost shard can be prepared again without the others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infogan_ray import UserError
from infogan_ray.data.preparation.shard_plan import ShardPlan, ShardTask, differences
from infogan_ray.data.preparation.shard_writer import TaskRecord
from infogan_ray.data.shards.dataset import MANIFEST, PROGRESS, TEST, TRAIN, ShardSet
from infogan_ray.storage.claim import take_folder
from infogan_ray.storage.file_system import Storage

SETTINGS = "settings.json"
OURS = re.compile(r"\.?(train|test)-\d{5,}\.parquet(\.\w+\.tmp)?|\.?MANIFEST\.json(\.\w+\.tmp)?|\.progress|probe-\w{8}")
LEFTOVER = re.compile(r"\..+\.\w{8}\.tmp")
MOST_NAMED = 1000  # broken files in the manifest
READERS = 16  # threads: records are small, and each needs one request to storage


class ProgressLog:
    """The progress in DEST. Methods raise StorageError, and UserError, in one line, if DEST has other content."""

    def __init__(self, folder: Storage) -> None:
        self.folder, self.progress = folder, folder / PROGRESS

    def check(self, request: Mapping[str, Any], overwrite: bool) -> None:
        """Raise UserError if the folder has other content. Changes nothing."""
        if self.folder.path_is_file:
            raise UserError(f"DEST is {self.folder}, a file; name a folder that is new or empty")
        foreign = [entry.name for entry in self.folder.entries() if not OURS.fullmatch(entry.name)]
        if foreign:
            raise UserError(
                f"DEST is {self.folder}, which contains other files ({', '.join(foreign[:3])}); "
                "name a new or empty folder"
            )
        saved = self.saved_request()
        if overwrite:
            return
        if saved is None:
            if self.folder.entries():
                raise UserError(f"DEST is {self.folder}, whose shards have no record of settings; add --overwrite")
        elif differing := differences(saved, request):
            raise UserError(
                f"DEST is {self.folder}, prepared with other settings: {'; '.join(differing)}; use the same settings, "
                "name another folder, or replace it with --overwrite"
            )

    def begin(self, request: Mapping[str, Any], overwrite: bool) -> None:
        """Start or continue. Deletes partial files of a killed attempt; with ``overwrite``, all our files."""
        self.check(request, overwrite)
        if overwrite:
            self.folder.delete(MANIFEST)  # first: without it the folder is not a dataset
            for entry in self.folder.entries():
                if not entry.is_folder:
                    self.folder.delete(entry.name)
            self.progress.delete_all()
        for folder in (self.folder, self.progress):
            for entry in folder.entries():
                if LEFTOVER.fullmatch(entry.name):
                    folder.delete(entry.name)
        if self.saved_request() is None:
            try:
                take_folder(self.progress, SETTINGS, json.dumps(request, indent=1).encode())
            except FileExistsError:  # another process began at the same moment; with equal settings both may continue
                self.check(request, overwrite=False)

    def saved_request(self) -> dict[str, Any] | None:
        """The saved source and settings. None if there are none; empty if the file is damaged."""
        try:
            return json.loads(self.progress.read(SETTINGS))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            return {}

    def done(self, tasks: Sequence[ShardTask]) -> dict[int, TaskRecord]:
        """Records of the tasks whose shards exist and have the right size."""
        sizes = {entry.name: entry.size for entry in self.folder.entries()}
        names = {entry.name for entry in self.progress.entries()}
        wanted = [task.number for task in tasks if _name(task.number) in names]
        with ThreadPoolExecutor(READERS) as pool:
            found = [record for record in pool.map(self._record, wanted) if record is not None]
        return {
            record.number: record
            for record in found
            if all(sizes.get(shard.file) == shard.bytes for shard in record.shards.values())
        }

    def _record(self, number: int) -> TaskRecord | None:
        try:
            return TaskRecord.from_dict(json.loads(self.progress.read(_name(number))))
        except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError):
            return None

    def add(self, record: TaskRecord) -> None:
        self.progress.write(_name(record.number), json.dumps(record.to_dict(), indent=1).encode())

    def write_manifest(self, plan: ShardPlan, records: Iterable[TaskRecord]) -> ShardSet:
        """Write the manifest. It does not depend on the order of the tasks."""
        ordered = sorted(records, key=lambda record: record.number)
        conversions: Counter[str] = sum((record.conversions for record in ordered), Counter())
        broken = [item for record in ordered for item in record.broken.items()]
        about = {
            "source": plan.name, "asked": plan.request, "conversions": dict(sorted(conversions.items())),
            "broken": len(broken), "broken_files": dict(broken[:MOST_NAMED]),
        }  # fmt: skip
        train, test = (
            tuple(record.shards[split] for record in ordered if split in record.shards) for split in (TRAIN, TEST)
        )
        settings = plan.settings
        shards = ShardSet(
            self.folder, settings.encoding, settings.image_size, settings.channels, plan.classes, train, test, about,
            settings.how,
        )  # fmt: skip
        self.folder.write(MANIFEST, shards.to_json())
        return shards


def _name(number: int) -> str:
    return f"{number:05d}.json"
