"""What a node shows of itself over HTTP: health for probes, metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gfgw_prod.settings.running import TelemetrySettings
from gfgw_prod.telemetry.exposition import Prometheus, show_live
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.sinks import Values

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gfgw_prod.telemetry.endpoint import Endpoint


class NodeTelemetry:
    """What a node shows over HTTP. Its first rank opens the endpoint if ``telemetry.prometheus_port`` is set.

    Args:
        health: what `/live` and `/ready` answer.
        is_first: whether this rank is the first of its node.
    """

    def __init__(self, settings: TelemetrySettings, health: Health, *, is_first: bool):
        self.health = health
        self._settings, self._enabled = settings, is_first and settings.prometheus_port > 0
        self._endpoint: Endpoint | None = None

    def listen(self) -> None:
        """Open the endpoint. Probes need it long before there is anything to record.

        Raises:
            UserError: if the port cannot be bound.
        """
        if self._enabled:
            from gfgw_prod.telemetry.endpoint import Endpoint

            self._endpoint = Endpoint(self._settings.prometheus_address, self._settings.prometheus_port, self.health)

    @property
    def registry(self) -> CollectorRegistry | None:
        """The metrics that the endpoint serves; ``None`` without one."""
        return None if self._endpoint is None else self._endpoint.registry

    def show_state(self) -> None:
        """Serve, on every node, that the run has started and whether it evaluates."""
        if self.registry is not None:
            gauges = {"run/started": lambda: 1.0, "run/evaluating": lambda: float(self.health.is_evaluating)}
            show_live(self.registry, gauges)

    def sinks(self, saved_at: float, known: Values, build: Mapping[str, str]) -> list[Prometheus]:
        """The sink of the endpoint, if there is one; see ``Prometheus`` for the arguments."""
        return [] if self.registry is None else [Prometheus(self.registry, saved_at, known, build)]

    def close(self) -> None:
        """Close the endpoint."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
