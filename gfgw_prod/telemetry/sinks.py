"""Where metrics go: TensorBoard, Prometheus, ``stats.jsonl`` and a progress display."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from gfgw_prod.telemetry.catalogue import BY_TAG, CATALOGUE

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

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
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= first_step]
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            partial.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def record(self, step: int, images: int, values: Values) -> None:
        finite = {tag: _finite(value) for tag, value in values.items()}
        self._file.write(json.dumps({"step": step, "images": images, "time": time.time(), **finite}) + "\n")

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Pictures are not text."""

    def close(self) -> None:
        self._file.close()


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
    """

    def __init__(self, directory: Path, images_seen: int):
        from torch.utils.tensorboard import SummaryWriter

        purge = images_seen + 1 if images_seen else 0  # records of the resumed position itself stay
        self._writer = SummaryWriter(str(directory), purge_step=purge, flush_secs=5)

    def record(self, step: int, images: int, values: Values) -> None:
        for tag, value in values.items():
            if not isinstance(value, Sequence):
                self._writer.add_scalar(tag, value, images)

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        self._writer.add_image(tag, grid, images)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Prometheus:
    """The catalogue in the registry that an endpoint serves."""

    def __init__(self, registry: CollectorRegistry, saved_at: float):
        from prometheus_client import Counter, Gauge

        families: dict[str, Any] = {}
        for metric in CATALOGUE:
            if metric.prometheus not in families:
                kind = Counter if metric.kind == "counter" else Gauge
                names = (*metric.labels, *filter(None, [metric.by]))
                families[metric.prometheus] = kind(metric.prometheus, metric.help, labelnames=names, registry=registry)
        self._series = {
            metric.tag: families[metric.prometheus].labels(**metric.labels)
            if metric.labels
            else families[metric.prometheus]
            for metric in CATALOGUE
        }
        self._counted: dict[tuple[str, str], float] = {}
        self._saved_at = saved_at
        self._series["run/checkpoint_age_seconds"].set_function(lambda: time.time() - self._saved_at)

    def record(self, step: int, images: int, values: Values) -> None:
        for tag, value in values.items():
            if isinstance(value, Sequence):
                for index, each in enumerate(value):
                    self._set(tag, self._series[tag].labels(str(index)), each, str(index))
            elif tag != "run/checkpoint_age_seconds":
                self._set(tag, self._series[tag], value)
        if "run/checkpoint_saves" in values:
            self._saved_at = time.time()

    def _set(self, tag: str, series: Any, value: float, index: str = "") -> None:
        if BY_TAG[tag].kind == "counter":
            series.inc(max(value - self._counted.get((tag, index), 0.0), 0.0))
            self._counted[tag, index] = value
        else:
            series.set(value)

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Prometheus takes numbers only."""

    def close(self) -> None:
        """The endpoint outlives the records: it is there before the first, and closed by whoever opened it."""


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
            print(
                f"{images / 1000:.1f} of {self._total / 1000:.1f} kimg  loss {values['loss/total']:.4f}  "
                f"{rate:,.0f} images/s  {max(left, 0):.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """A terminal shows none."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
