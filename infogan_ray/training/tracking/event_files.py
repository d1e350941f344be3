"""TensorBoard event files. tensorboardX writes them to a local temporary file, which is then uploaded.

Some storage cannot append, and tensorboardX writes to local disks only. This module uses RecordWriter. SummaryWriter
writes in its own thread and has no method that waits for the file.
"""

from __future__ import annotations

import contextlib
import struct
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import RecordWriter
from tensorboardX.proto import api_pb2, event_pb2, plugin_hparams_pb2, summary_pb2

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.storage.scratch import scratch_folder

LIMIT_BYTES = 64 << 20  # of the local file, while storage is unavailable
TIMEOUT_S = 3.0
SESSION_START, SESSION_END = "_hparams_/session_start_info", "_hparams_/session_end_info"
# The data class (field 4 of SummaryMetadata), which tensorboardX's messages do not have. Without it TensorBoard's
# faster reader ignores the description.
SCALAR, BLOBS = b"\x20\x01", b"\x20\x03"
COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # number of channels by PNG colour type


class EventFiles:
    """The event files of one attempt: on a disk one growing file, in an object store one file for each checkpoint.

    TensorBoard reads all files of a folder in the order of their names.
    """

    def __init__(
        self, run: RunDirectory, start: int, hparams: Mapping[str, Any], descriptions: Mapping[str, str]
    ) -> None:
        """Write the first event, so that readers drop earlier attempts' events after step ``start``.

        ``descriptions``: by tag, in Markdown. Raises StorageError.
        """
        self._folder = run.folder.with_retry_timeout(TIMEOUT_S)
        self._descriptions, self._described = descriptions, set[str]()
        known = [entry.name[len(run.EVENTS) :] for entry in self._folder.entries() if entry.name.startswith(run.EVENTS)]
        times = [int(part) for name in known if (part := name.split(".")[0]).isdigit()]
        # The name of a later attempt sorts after earlier names, even if an earlier machine's clock was ahead.
        self._stem = f"{run.EVENTS}{max(int(time.time()), 1 + max(times, default=0)):010d}.{uuid.uuid4().hex[:8]}"
        self._number, self._incomplete = 0, False
        self._local = LocalEvents()
        self._local.write(_session_start(start + 1))
        start_info = plugin_hparams_pb2.SessionStartInfo()
        for name, value in hparams.items():
            field = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else None
            setattr(start_info.hparams[name], field or "number_value", value)
        self._local.write(_hparams(SESSION_START, plugin_hparams_pb2.HParamsPluginData(session_start_info=start_info)))
        self._first_step: int | None = None  # the first step that is in the local file but not in storage

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None:
        """Scalars by tag; ``moment`` in seconds since 1970."""
        self._add(
            step, moment, [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None:
        """Add a PNG file, without re-encoding."""
        width, height, _, colour = struct.unpack(">IIBB", png[16:26])
        image = summary_pb2.Summary.Image(
            width=width, height=height, colorspace=COLOURS.get(colour, 3), encoded_image_string=png
        )
        self._add(step, moment, [summary_pb2.Summary.Value(tag=tag, image=image)])

    def flush(self, due: bool) -> None:
        """Upload new events; to an object store only if ``due``. After a StorageError, a later call uploads them."""
        if self._first_step is None or not (due or self._folder.is_local):
            return
        content = self._local.content()
        if self._incomplete:  # Readers stop at an incomplete record, so a new file repeats the events.
            self._number, self._incomplete = self._number + 1, False
            with LocalEvents() as header:
                header.write(_session_start(self._first_step))
                content = header.content() + content
        name = f"{self._stem}.{self._number:05d}"
        try:
            if self._folder.is_local:
                self._folder.append(name, content)
            else:
                self._folder.write(name, content)
                self._number += 1
        except StorageError:
            self._incomplete = self._folder.is_local
            raise
        self._local.close()
        self._local, self._first_step = LocalEvents(), None

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None:
        """Write the final metrics, one step after the last, and the state: finished, diverged or interrupted."""
        if values:
            self.row(step + 1, values, time.time())
        if state in ("finished", "diverged"):  # TensorBoard uses the first end that it reads
            status = api_pb2.STATUS_SUCCESS if state == "finished" else api_pb2.STATUS_FAILURE
            ended = plugin_hparams_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
            self._write(step, _hparams(SESSION_END, plugin_hparams_pb2.HParamsPluginData(session_end_info=ended)))
        self.flush(due=True)

    def _add(self, step: int, moment: float, values: list[Any]) -> None:
        if self._local.bytes > LIMIT_BYTES:
            self.flush(due=True)  # after an error the event stays in its channel's queue, whose size is limited
        for value in values:
            if value.tag in self._descriptions and value.tag not in self._described:
                value.metadata.summary_description = self._descriptions[value.tag]
                plugin, kind = ("images", BLOBS) if value.HasField("image") else ("scalars", SCALAR)
                value.metadata.plugin_data.plugin_name = plugin
                value.metadata.MergeFromString(kind)
                self._described.add(value.tag)
        self._write(step, event_pb2.Event(wall_time=moment, step=step, summary=summary_pb2.Summary(value=values)))

    def _write(self, step: int, event: Any) -> None:
        self._local.write(event)
        self._first_step = step if self._first_step is None else self._first_step


class LocalEvents:
    """An event file in a temporary folder, which ``close`` deletes."""

    def __init__(self) -> None:
        self._folder = contextlib.ExitStack()
        self._path = Path(self._folder.enter_context(scratch_folder()), "events")
        self._writer = RecordWriter(str(self._path))
        self.bytes = 0
        self.write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def __enter__(self) -> LocalEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, event: Any) -> None:
        message = event.SerializeToString()
        self._writer.write(message)
        self.bytes += len(message)

    def content(self) -> bytes:
        """The bytes of all written events."""
        self._writer.flush()
        return self._path.read_bytes()

    def close(self) -> None:
        self._writer.close()
        self._folder.close()


def _session_start(step: int) -> Any:
    """An event after which readers drop earlier events of ``step`` and later steps."""
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(wall_time=time.time(), step=step, session_log=log)


def _hparams(tag: str, data: Any) -> Any:
    plugin_data = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    value = summary_pb2.Summary.Value(tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin_data))
    return event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=[value]))
