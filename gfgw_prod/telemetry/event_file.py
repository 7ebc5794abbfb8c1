"""An event file of TensorBoard."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")


class EventFile:
    """A new event file, which TensorBoard reads after all others in its directory.

    TensorBoard reads the files of a directory in the order of their names, which start with the time. The clock may be
    behind that of an earlier start, or two starts may fall into one second; so the time in the name is made later than
    that of all files that exist.

    Args:
        purge_from: position from which on TensorBoard hides the records of earlier files.

    Raises:
        OSError: here or in ``add``, if the file cannot be written. A part of a record may then be in the file, behind
            which TensorBoard reads no more: go on with a new file.
    """

    def __init__(self, directory: Path, purge_from: int | None = None):
        directory.mkdir(parents=True, exist_ok=True)
        newest = max((int(found[1]) for name in os.listdir(directory) if (found := NAME.fullmatch(name))), default=0)
        stamp = max(int(time.time()), newest + 1)
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("xb")
        self._write(Event(file_version="brain.Event:2"))
        if purge_from is not None:
            self._write(Event(step=purge_from, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Summary, images: int) -> None:
        """Write a summary at a number of images seen."""
        self._write(Event(summary=summary, step=images))

    def add_scalars(self, values: Mapping[str, float], images: int) -> None:
        """Write numbers by tag."""
        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), images)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what could not be written has raised before
            self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        try:
            self._file.write(record.getvalue())
            self._file.flush()
        except OSError:
            self.close()
            raise
