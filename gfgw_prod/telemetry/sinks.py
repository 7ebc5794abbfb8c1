"""Where metrics are written: ``stats.jsonl`` and TensorBoard. Prometheus has a file of its own, ``exposition.py``."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import yaml
from torch import Tensor

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import reason_of
from gfgw_prod.process.standard_streams import Warned
from gfgw_prod.process.standard_streams import log as log_line
from gfgw_prod.process.threads import join_awake
from gfgw_prod.telemetry.layout import COMPARED_METRICS, NOT_CHARTED, compared_settings, custom_scalars

if TYPE_CHECKING:
    from gfgw_prod.telemetry.event_file import EventFile

TAIL_BYTES = 1 << 16
Value = float | Sequence[float]  # a sequence has one number per rank
Values = Mapping[str, Value]  # by tag of the catalogue


class Sink(Protocol):
    """Receives records. ``step`` counts completed optimisation steps, ``images`` images seen."""

    def record(self, step: int, images: int, values: Values) -> None: ...

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Receive a picture ``(3, h, w)`` of bytes."""

    def close(self) -> None: ...


class Telemetry:
    """Passes every record to every sink. Ranks other than 0 have no sinks.

    A sink that fails with an ``OSError``, such as a full disk, is logged once and tried again at the next record; the
    run goes on.

    Args:
        registered: sinks of other packages, which may fail with any error.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        log: Callable[[str], None] = log_line,
        registered: Sequence[Sink] = (),
    ):
        self._sinks, self._log = [*sinks, *registered], log
        # By identity: a sink of another package need not be hashable.
        self._registered = {id(sink) for sink in registered}
        self._failing: set[int] = set()

    @classmethod
    def open(
        cls,
        run_dir: Path,
        sinks: Sequence[Sink] = (),
        *,
        step: int,
        images: int,
        settings: Mapping[str, Any] | None = None,
        log: Callable[[str], None] = log_line,
        registered: Sequence[Sink] = (),
    ) -> Telemetry:
        """Open the files of a run that starts or resumes at ``step``, in addition to ``sinks``.

        Args:
            settings: all settings, nested by section, for TensorBoard to show.
            registered: sinks of other packages.
        """
        files = (JsonLines(run_dir / "stats.jsonl", step), TensorBoard(run_dir / "tensorboard", images, settings))
        telemetry = cls([*sinks, *files], log, registered)
        for file in files:
            telemetry._try(file, file.open)
        return telemetry

    def record(self, step: int, images: int, values: Values) -> None:
        """Pass on values by tag of the catalogue."""
        for sink in self._sinks:
            self._try(sink, partial(sink.record, step, images, values))

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Pass on a picture ``(3, h, w)`` of bytes."""
        for sink in self._sinks:
            self._try(sink, partial(sink.picture, images, tag, grid))

    def close(self, limit_seconds: float = math.inf) -> None:
        """Flush and close all sinks.

        Args:
            limit_seconds: for each sink of another package, which may still be sending.
        """
        while self._sinks:
            sink = self._sinks.pop()
            if id(sink) not in self._registered:
                self._try(sink, sink.close)
                continue
            closing = threading.Thread(target=self._try, args=(sink, sink.close), name="close", daemon=True)
            closing.start()
            join_awake(closing, limit_seconds)
            if closing.is_alive():
                self._log(
                    Warned(f"{type(sink).__name__} has not closed within {limit_seconds:g} s, and is left behind")
                )

    def _try(self, sink: Sink, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            if not isinstance(error, OSError) and id(sink) not in self._registered:
                raise
            if id(sink) not in self._failing:
                self._failing.add(id(sink))
                self._log(
                    Warned(f"metrics cannot be written by {type(sink).__name__} ({reason_of(error)}); the run goes on")
                )
        else:
            self._failing.discard(id(sink))


class JsonLines:
    """One JSON object per record in ``stats.jsonl``. A resume drops the records after its step."""

    def __init__(self, path: Path, first_step: int):
        self._path, self._first_step = path, first_step
        self._file: TextIO | None = None

    def open(self) -> TextIO:
        """Return the file; the first call drops the records after the resumed step."""
        if self._file is None:
            path = self._path
            before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            kept = "".join(f"{line}\n" for line in before.splitlines() if _step_of(line) <= self._first_step)
            if kept != before:
                write_whole(path, kept.encode())
            self._file = path.open("a", encoding="utf-8", buffering=1)
        return self._file

    def record(self, step: int, images: int, values: Values) -> None:
        finite = {tag: _finite(value) for tag, value in values.items()}
        self.open().write(json.dumps({"step": step, "images": images, "time": time.time(), **finite}) + "\n")

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Ignore the picture."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def last_recorded_step(path: Path, tag: str = "") -> int:
    """Step of the last complete record, or of the last one with ``tag``, near the end of the file; 0 without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    steps = [_step_of(line) for line in lines if tag in line]
    return int(max((step for step in steps if math.isfinite(step)), default=0))


def last_values(path: Path) -> dict[str, float]:
    """The last number of every tag in the records of a file, with step, images and time; empty without a record.

    Sequences and tags without a finite last value are left out.
    """
    found: dict[str, Any] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if _step_of(line) < math.inf:
                    found |= json.loads(line)
    except OSError:
        return {}
    return {tag: value for tag, value in found.items() if isinstance(value, int | float)}


def _finite(value: Value) -> Any:
    """The value for JSON, which has no NaN or infinity: ``None`` instead."""
    if isinstance(value, Sequence):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut short by a crash


class TensorBoard:
    """Scalars and pictures over images seen, in one directory for all starts of a run.

    After a resume, ``purge_step`` hides what the killed process wrote after the checkpoint.

    Args:
        settings: all settings, nested by section: shown as text, and some of them compared between runs.
    """

    def __init__(self, directory: Path, images_seen: int, settings: Mapping[str, Any] | None = None):
        self._directory, self._images_seen, self._settings = directory, images_seen, settings
        self._purge: int | None = images_seen + 1 if images_seen else 0  # records of the resumed position itself stay
        self._file: EventFile | None = None

    def open(self) -> EventFile:
        """Return the file; after a failure a new one, because the failed one may end in a part of a record."""
        from torch.utils.tensorboard import summary

        from gfgw_prod.telemetry.event_file import EventFile

        if self._file is None:
            file = EventFile(self._directory, self._purge)
            if self._purge is not None:
                file.add(summary.custom_scalars(custom_scalars()), 0)
                if self._settings is not None:
                    lines = yaml.safe_dump(dict(self._settings), sort_keys=False).splitlines()
                    block = "".join(f"    {line}\n" for line in lines)  # a code block in Markdown
                    file.add(summary.text("config", block), self._images_seen)
                    compared = compared_settings(self._settings), dict.fromkeys(COMPARED_METRICS)
                    for each in summary.hparams(*compared)[:2]:  # without an end: the run goes on
                        file.add(each, self._images_seen)
                self._purge = None
            self._file = file
        return self._file

    def record(self, step: int, images: int, values: Values) -> None:
        charted = {tag: value for tag, value in values.items() if tag not in NOT_CHARTED}
        numbers = {tag: value for tag, value in charted.items() if not isinstance(value, Sequence)}
        with self._opened() as file:
            file.add_scalars(numbers, images)

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        from torch.utils.tensorboard import summary

        with self._opened() as file:
            file.add(summary.image(tag, grid, dataformats="CHW"), images)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @contextmanager
    def _opened(self) -> Iterator[EventFile]:
        try:
            yield self.open()
        except OSError:
            self._file = None
            raise
