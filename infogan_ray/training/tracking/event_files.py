"""TensorBoard's event files, written through our own storage, where nothing can be appended too.

tensorboardX has the messages and their checksum. Its writer hands events over pickled, puts the machine's name into the
file's, and writes to disks alone, so the records are framed here: length, checksum, message, checksum.
"""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Mapping
from typing import Any

from tensorboardX.proto import api_pb2, event_pb2, plugin_hparams_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory

# What may wait for a storage that is away; the oldest go first.
LIMIT_BYTES = 64 << 20
PATIENCE_S = 3.0
SESSION_START, SESSION_END = "_hparams_/session_start_info", "_hparams_/session_end_info"
# The class of data (field 4 of SummaryMetadata), which tensorboardX's messages lack; TensorBoard's faster reader passes
# over a description without it.
SCALAR, BLOBS = b"\x20\x01", b"\x20\x03"
COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # of PNG to the count of channels


class EventFiles:
    """One attempt's event files: one that grows on a disk; in an object store a further one with each checkpoint.

    TensorBoard reads a folder's files in the order of their names, as one.
    """

    def __init__(
        self, run: RunDirectory, start: int, hparams: Mapping[str, Any], descriptions: Mapping[str, str]
    ) -> None:
        """The first thing written has readers drop whatever an earlier attempt said of steps after ``start``.

        ``descriptions``: by tag, in Markdown. Raises StorageError.
        """
        self._folder = run.folder.with_retry_timeout(PATIENCE_S)
        self._descriptions, self._described = descriptions, set[str]()
        known = [entry.name[len(run.EVENTS) :] for entry in self._folder.entries() if entry.name.startswith(run.EVENTS)]
        times = [int(part) for name in known if (part := name.split(".")[0]).isdigit()]
        # Of two attempts the later one has the greater name, also if the clock of the machine before was ahead.
        self._stem = f"{run.EVENTS}{max(int(time.time()), 1 + max(times, default=0)):010d}.{uuid.uuid4().hex[:8]}"
        self._file, self._torn = 0, False
        self._waiting: list[tuple[int, bytes]] = []
        self._size = 0
        start_info = plugin_hparams_pb2.SessionStartInfo()
        for name, value in hparams.items():
            field = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else None
            setattr(start_info.hparams[name], field or "number_value", value)
        self._head = _version() + _start(start + 1)
        self._head += _hparams(SESSION_START, plugin_hparams_pb2.HParamsPluginData(session_start_info=start_info))

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None:
        """Scalars by tag; ``moment`` in seconds since 1970."""
        summary = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, moment, summary)

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None:
        """A PNG file, whose bytes are taken as they are."""
        width, height, _, colour = struct.unpack(">IIBB", png[16:26])
        image = summary_pb2.Summary.Image(
            width=width, height=height, colorspace=COLOURS.get(colour, 3), encoded_image_string=png
        )
        self._add(step, moment, [summary_pb2.Summary.Value(tag=tag, image=image)])

    def flush(self, due: bool) -> None:
        """Write what waits; to an object store only if ``due``. Raises StorageError; then it waits still."""
        if not self._waiting or not (due or self._folder.is_local):
            return
        if self._torn:  # a record that is cut short ends what can be read of a file: what it held is said again
            self._file, self._torn = self._file + 1, False
            self._head = self._head or _version() + _start(self._waiting[0][0])
        content, name = self._head + b"".join(record for _, record in self._waiting), f"{self._stem}.{self._file:05d}"
        try:
            if self._folder.is_local:
                self._folder.append(name, content)
            else:
                self._folder.write(name, content)
        except StorageError:
            self._torn = self._folder.is_local
            raise
        self._head, self._waiting, self._size = b"", [], 0
        if not self._folder.is_local:
            self._head, self._file = _version(), self._file + 1

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None:
        """``finished`` with the last metrics, one step after the last, ``diverged``, or ``interrupted``."""
        if values:
            self.row(step + 1, values, time.time())
        if state in ("finished", "diverged"):  # TensorBoard keeps to the first end that it reads
            status = api_pb2.STATUS_SUCCESS if state == "finished" else api_pb2.STATUS_FAILURE
            ended = plugin_hparams_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
            self._keep(step, _hparams(SESSION_END, plugin_hparams_pb2.HParamsPluginData(session_end_info=ended)))
        self.flush(due=True)

    def _add(self, step: int, moment: float, values: list[Any]) -> None:
        for value in values:
            if value.tag in self._descriptions and value.tag not in self._described:
                value.metadata.summary_description = self._descriptions[value.tag]
                plugin, kind = ("images", BLOBS) if value.HasField("image") else ("scalars", SCALAR)
                value.metadata.plugin_data.plugin_name = plugin
                value.metadata.MergeFromString(kind)
                self._described.add(value.tag)
        summary = summary_pb2.Summary(value=values)
        self._keep(step, _record(event_pb2.Event(wall_time=moment, step=step, summary=summary)))

    def _keep(self, step: int, record: bytes) -> None:
        self._waiting.append((step, record))
        self._size += len(record)
        while self._size > LIMIT_BYTES and len(self._waiting) > 1:
            self._size -= len(self._waiting.pop(0)[1])


def _record(event: Any) -> bytes:
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join((
        length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))
    ))  # fmt: skip


def _version() -> bytes:
    return _record(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))


def _start(step: int) -> bytes:
    """What was said of ``step`` and later ones before this does not count."""
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return _record(event_pb2.Event(wall_time=time.time(), step=step, session_log=log))


def _hparams(tag: str, data: Any) -> bytes:
    about = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    value = summary_pb2.Summary.Value(tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=about))
    return _record(event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=[value])))
