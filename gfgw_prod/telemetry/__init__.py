"""Telemetry: one catalogue of metrics, several sinks, on rank 0 only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gfgw_prod.process.exit_codes import reason_of
from gfgw_prod.process.standard_streams import log
from gfgw_prod.telemetry.catalogue import BY_TAG
from gfgw_prod.telemetry.exposition import Prometheus
from gfgw_prod.telemetry.sinks import JsonLines, Sink, TensorBoard, Values

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Telemetry:
    """Hands every record to every sink; on ranks that do not speak for the run there are none."""

    def __init__(self, sinks: list[Sink], report: Callable[[str], None] = log):
        """``report``: says a line."""
        self._sinks, self._report = sinks, report
        self._failing: set[Sink] = set()

    @classmethod
    def open(
        cls,
        run_dir: Path,
        registry: CollectorRegistry | None = None,
        *,
        step: int,
        images: int,
        saved_at: float,
        known: Values | None = None,
        build: Mapping[str, str] | None = None,
        resolved: str = "",
        report: Callable[[str], None] = log,
    ) -> Telemetry:
        """All sinks of a run that starts or resumes at ``step``.

        Args:
            registry: what the endpoint serves, if there is one.
            saved_at: from when on the age of the last checkpoint counts, seconds since the epoch.
            known: values by tag that a scraper is told before the first record.
            build: labels of ``run/build``.
            resolved: the whole configuration as text.
            report: says a line.
        """
        sinks: list[Sink] = []
        if registry is not None:
            sinks.append(Prometheus(registry, saved_at, known, build))
        files = (JsonLines(run_dir / "stats.jsonl", step), TensorBoard(run_dir / "tensorboard", images, resolved))
        telemetry = cls([*sinks, *files], report)
        for file in files:
            telemetry._try(file, file.open)
        return telemetry

    def add(self, sink: Sink) -> None:
        """One more sink, for what comes from now on."""
        self._sinks.append(sink)

    def record(self, step: int, images: int, values: Values) -> None:
        """Values by tag of the catalogue."""
        unknown = values.keys() - BY_TAG.keys()
        assert not unknown, f"not in the catalogue: {unknown}"
        for sink in self._sinks:
            self._try(sink, partial(sink.record, step, images, values))

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """A picture ``(3, h, w)`` of bytes."""
        for sink in self._sinks:
            self._try(sink, partial(sink.picture, images, tag, grid))

    def close(self) -> None:
        """Flushes and closes all sinks."""
        while self._sinks:
            sink = self._sinks.pop()
            self._try(sink, sink.close)

    def _try(self, sink: Sink, action: Callable[[], object]) -> None:
        """A sink that cannot be written, on a full disk say, is told of once, and tried again; the run goes on."""
        try:
            action()
        except OSError as error:
            if sink not in self._failing:
                self._failing.add(sink)
                why = reason_of(error)
                self._report(f"metrics cannot be written by {type(sink).__name__} ({why}); the run goes on")
        else:
            self._failing.discard(sink)
