"""Where metrics go: TensorBoard, Prometheus, ``stats.jsonl`` and a progress display."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from torch import Tensor

from gfgw_prod.process.standard_streams import log
from gfgw_prod.telemetry.layout import custom_scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAIL_BYTES = 1 << 16
Values = Mapping[str, float | Sequence[float]]


class Sink(Protocol):
    """Takes records. ``step`` counts optimisation steps made, ``images`` images seen."""

    def record(self, step: int, images: int, values: Values) -> None: ...

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """A picture ``(3, h, w)`` of bytes."""

    def close(self) -> None: ...


class JsonLines:
    """One JSON object per record in ``stats.jsonl``; on resume, records past the resumed step are dropped."""

    def __init__(self, path: Path, first_step: int):
        self._path, self._first_step = path, first_step
        self._file: TextIO | None = None

    def open(self) -> TextIO:
        """The file, once what is past the resumed step has been dropped."""
        if self._file is None:
            path = self._path
            before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            kept = "".join(f"{line}\n" for line in before.splitlines() if _step_of(line) <= self._first_step)
            if kept != before:
                partial = path.with_name(f".{path.name}.partial")
                partial.write_text(kept, encoding="utf-8")
                partial.replace(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        return self._file

    def record(self, step: int, images: int, values: Values) -> None:
        finite = {tag: _finite(value) for tag, value in values.items()}
        self.open().write(json.dumps({"step": step, "images": images, "time": time.time(), **finite}) + "\n")

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Pictures are not text."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def last_step_on_record(path: Path) -> int:
    """The step of the last whole record, read from the end of the file; 0 if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    steps = [_step_of(line) for line in lines]
    return int(max((step for step in steps if math.isfinite(step)), default=0))


def _finite(value: float | Sequence[float]) -> Any:
    """NaN is no JSON."""
    if isinstance(value, Sequence):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut short by a crash


class TensorBoard:
    """Scalars and pictures over images seen, in one directory for the life of the run.

    The horizontal axis is images seen. After a resume, ``purge_step`` hides what a lost process wrote past the
    checkpoint.

    Args:
        settings: the resolved configuration, shown as text.
    """

    def __init__(self, directory: Path, images_seen: int, settings: str = ""):
        self._directory, self._images_seen, self._settings = directory, images_seen, settings
        self._purge: int | None = images_seen + 1 if images_seen else 0  # records of the resumed position itself stay
        self._writer: SummaryWriter | None = None

    def open(self) -> SummaryWriter:
        """The writer: the run's, or another one in the place of one that has failed, whose thread has ended."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            threading.excepthook = _untold
            self._writer = SummaryWriter(str(self._directory), purge_step=self._purge, flush_secs=5)
            if self._purge is not None:
                self._writer.add_custom_scalars(custom_scalars())
                block = "".join(f"    {line}\n" for line in self._settings.splitlines())  # Markdown's for text as it is
                if block:
                    self._writer.add_text("config", block, self._images_seen)
                self._purge = None
        return self._writer

    def record(self, step: int, images: int, values: Values) -> None:
        with self._opened() as writer:
            for tag, value in values.items():
                if not isinstance(value, Sequence):
                    writer.add_scalar(tag, value, images)

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        with self._opened() as writer:
            writer.add_image(tag, grid, images)
            writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _opened(self) -> Iterator[SummaryWriter]:
        try:
            yield self.open()
        except OSError:
            self._writer = None
            raise


def _untold(raised: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands its error to the next record. Tracebacks for all would be all there is to read."""
    if not (isinstance(raised.exc_value, OSError) and type(raised.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(raised)


class Progress:
    """A bar with rate and time left in a terminal, plain lines in a log file."""

    def __init__(self, mode: Literal["auto", "bar", "plain", "off"], images: int, total_images: int):
        self._total, self._first = total_images, images
        self._started = self._last_line = time.monotonic()
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "plain"
        self._mode = mode
        self._bar: Any = None
        if mode == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            self._bar = Progress(
                *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=Console(stderr=True)
            )
            self._task = self._bar.add_task("training", total=total_images, completed=images, rate="")
            self._bar.start()

    def record(self, step: int, images: int, values: Values) -> None:
        if "loss/total" not in values:
            return
        now = time.monotonic()
        rate = (images - self._first) / max(now - self._started, 1e-9)
        if self._bar is not None:
            text = f"{rate:,.0f} images/s  loss {values['loss/total']:.4f}"
            self._bar.update(self._task, completed=images, rate=text)
        elif self._mode == "plain" and (now - self._last_line >= 10 or images >= self._total):
            self._last_line = now
            left = (self._total - images) / max(rate, 1e-9)
            log(
                f"{images / 1000:.1f} of {self._total / 1000:.1f} kimg  loss {values['loss/total']:.4f}  "
                f"{rate:,.0f} images/s  {max(left, 0):.0f} s left"
            )

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """A terminal shows none."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
