"""TensorBoard's event files: written by tensorboardX into a local temporary file, which is then uploaded.

Storage cannot always append, and tensorboardX writes to disks alone. Of its writers RecordWriter is used: SummaryWriter
passes events to a thread through a queue, and cannot be asked to wait until they are in the file.
"""

from __future__ import annotations

import struct
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import RecordWriter
from tensorboardX.proto import api_pb2, event_pb2, plugin_hparams_pb2, summary_pb2

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory

LIMIT_BYTES = 64 << 20  # of the local file, while the storage is unavailable
PATIENCE_S = 3.0
SESSION_START, SESSION_END = "_hparams_/session_start_info", "_hparams_/session_end_info"
# The class of data (field 4 of SummaryMetadata), which tensorboardX's messages lack; TensorBoard's faster reader
# ignores a description without it.
SCALAR, BLOBS = b"\x20\x01", b"\x20\x03"
COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # of PNG to the count of channels


class EventFiles:
    """The event files of one attempt: on a disk one that grows, in an object store one for each checkpoint.

    TensorBoard reads a folder's files in the order of their names, as one.
    """

    def __init__(
        self, run: RunDirectory, start: int, hparams: Mapping[str, Any], descriptions: Mapping[str, str]
    ) -> None:
        """The first event makes readers drop what an earlier attempt wrote for steps after ``start``.

        ``descriptions``: by tag, in Markdown. Raises StorageError.
        """
        self._folder = run.folder.with_retry_timeout(PATIENCE_S)
        self._descriptions, self._described = descriptions, set[str]()
        known = [entry.name[len(run.EVENTS) :] for entry in self._folder.entries() if entry.name.startswith(run.EVENTS)]
        times = [int(part) for name in known if (part := name.split(".")[0]).isdigit()]
        # Of two attempts the later one has the greater name, also if the clock of the machine before was ahead.
        self._stem = f"{run.EVENTS}{max(int(time.time()), 1 + max(times, default=0)):010d}.{uuid.uuid4().hex[:8]}"
        self._number, self._cut_short = 0, False
        self._local = LocalEvents()
        self._local.write(_session_start(start + 1))
        start_info = plugin_hparams_pb2.SessionStartInfo()
        for name, value in hparams.items():
            field = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else None
            setattr(start_info.hparams[name], field or "number_value", value)
        self._local.write(_hparams(SESSION_START, plugin_hparams_pb2.HParamsPluginData(session_start_info=start_info)))
        self._first_step: int | None = None  # of what the local file holds and the storage does not

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None:
        """Scalars by tag; ``moment`` in seconds since 1970."""
        self._add(
            step, moment, [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None:
        """A PNG file, whose bytes are taken as they are."""
        width, height, _, colour = struct.unpack(">IIBB", png[16:26])
        image = summary_pb2.Summary.Image(
            width=width, height=height, colorspace=COLOURS.get(colour, 3), encoded_image_string=png
        )
        self._add(step, moment, [summary_pb2.Summary.Value(tag=tag, image=image)])

    def flush(self, due: bool) -> None:
        """Upload what is new; to an object store only if ``due``. Raises StorageError; then it is uploaded later."""
        if self._first_step is None or not (due or self._folder.is_local):
            return
        content = self._local.content()
        if self._cut_short:  # readers stop at a record that is cut short, so another file repeats what it held
            self._number, self._cut_short = self._number + 1, False
            with LocalEvents() as before:
                before.write(_session_start(self._first_step))
                content = before.content() + content
        name = f"{self._stem}.{self._number:05d}"
        try:
            if self._folder.is_local:
                self._folder.append(name, content)
            else:
                self._folder.write(name, content)
                self._number += 1
        except StorageError:
            self._cut_short = self._folder.is_local
            raise
        self._local.close()
        self._local, self._first_step = LocalEvents(), None

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None:
        """``finished`` with the last metrics, one step after the last, ``diverged``, or ``interrupted``."""
        if values:
            self.row(step + 1, values, time.time())
        if state in ("finished", "diverged"):  # TensorBoard keeps to the first end that it reads
            status = api_pb2.STATUS_SUCCESS if state == "finished" else api_pb2.STATUS_FAILURE
            ended = plugin_hparams_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
            self._write(step, _hparams(SESSION_END, plugin_hparams_pb2.HParamsPluginData(session_end_info=ended)))
        self.flush(due=True)

    def _add(self, step: int, moment: float, values: list[Any]) -> None:
        if self._local.bytes > LIMIT_BYTES:
            self.flush(due=True)  # if that fails, the event stays in its channel's queue, which has a limit of its own
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
    """An event file in a temporary folder of its own, which goes with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="infogan-ray-")
        self._path = Path(self._folder.name, "events")
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
        """All that was written."""
        self._writer.flush()
        return self._path.read_bytes()

    def close(self) -> None:
        self._writer.close()
        self._folder.cleanup()


def _session_start(step: int) -> Any:
    """Readers drop what was written before this for ``step`` and later ones."""
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(wall_time=time.time(), step=step, session_log=log)


def _hparams(tag: str, data: Any) -> Any:
    about = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    value = summary_pb2.Summary.Value(tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=about))
    return event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=[value]))
