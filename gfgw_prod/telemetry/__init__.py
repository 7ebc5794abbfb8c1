"""Telemetry: one catalogue of metrics, several sinks, on rank 0 only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gfgw_prod.telemetry.catalogue import BY_TAG
from gfgw_prod.telemetry.sinks import JsonLines, Progress, Prometheus, Sink, TensorBoard, Values

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gfgw_prod.config import TelemetrySettings


class Telemetry:
    """Hands every record to every sink; on ranks that do not speak for the run there are none."""

    def __init__(self, sinks: list[Sink]):
        self._sinks = sinks

    @classmethod
    def open(
        cls,
        settings: TelemetrySettings,
        run_dir: Path,
        registry: CollectorRegistry | None = None,
        *,
        step: int,
        images: int,
        total_images: int,
        saved_at: float,
    ) -> Telemetry:
        """All sinks of a run that starts or resumes at ``step``, from a state saved at ``saved_at`` (seconds, epoch).

        Args:
            registry: what the endpoint serves, if there is one.
        """
        sinks: list[Sink] = []
        if registry is not None:
            sinks.append(Prometheus(registry, saved_at))
        sinks.append(JsonLines(run_dir / "stats.jsonl", step))
        sinks.append(TensorBoard(run_dir / "tensorboard", images))
        sinks.append(Progress(settings.progress, images, total_images))
        return cls(sinks)

    def record(self, step: int, images: int, values: Values) -> None:
        """Values by tag of the catalogue."""
        unknown = values.keys() - BY_TAG.keys()
        assert not unknown, f"not in the catalogue: {unknown}"
        for sink in self._sinks:
            sink.record(step, images, values)

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """A picture ``(3, h, w)`` of bytes."""
        for sink in self._sinks:
            sink.picture(images, tag, grid)

    def close(self) -> None:
        """Flushes and closes all sinks."""
        while self._sinks:
            self._sinks.pop().close()
