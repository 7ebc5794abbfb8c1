"""The catalogue as Prometheus scrapes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gfgw_prod.telemetry.catalogue import BY_TAG, CATALOGUE, Metric
from gfgw_prod.telemetry.sinks import Value, Values

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

AGE = "run/checkpoint_age_seconds"
BUILD = "run/build"


def show_live(registry: CollectorRegistry, gauges: Mapping[str, Callable[[], float]]) -> None:
    """Serve gauges without labels: functions by catalogue tag, called for every page."""
    from prometheus_client import Gauge

    for tag, value in gauges.items():
        gauge = Gauge(BY_TAG[tag].prometheus, BY_TAG[tag].help, registry=None)
        gauge.set_function(value)
        registry.register(gauge)


class Prometheus:
    """Collector of the last recorded values. Counters begin at zero; a gauge appears once it has a value.

    ``record`` only stores the values: the threads of the endpoint render a page when it is requested.

    Args:
        saved_at: start of the last checkpoint's age, seconds since the epoch.
        known: values by tag before the first record.
        build: labels of ``run/build``.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        saved_at: float,
        known: Values | None = None,
        build: Mapping[str, str] | None = None,
    ):
        counters = {metric.tag: 0.0 for metric in CATALOGUE if metric.kind == "counter" and not metric.by}
        self._values: Values = {**counters, **(known or {})}
        self._saved_at, self._build = saved_at, dict(build or {})
        registry.register(self)

    def record(self, step: int, images: int, values: Values) -> None:
        if "run/checkpoint_saves" in values:
            self._saved_at = time.time()
        known = self._values
        new = {tag: _monotonic(BY_TAG[tag], known.get(tag), value) for tag, value in values.items() if tag in BY_TAG}
        self._values = {**known, **new}

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Ignore the picture."""

    def close(self) -> None:
        """Do nothing: the node closes its endpoint."""

    def collect(self) -> Iterable[Family]:
        """Yield all families that have a value."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        values: Values = {**self._values, AGE: time.time() - self._saved_at}
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric in CATALOGUE:
            if (value := values.get(metric.tag)) is None:
                continue
            if metric.prometheus not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                names = (*metric.labels, *filter(None, [metric.by]))
                families[metric.prometheus] = kind(metric.prometheus, metric.help, labels=names)
            family, labels = families[metric.prometheus], tuple(metric.labels.values())
            for index, each in enumerate(value) if isinstance(value, Sequence) else [(None, value)]:
                family.add_metric(labels if index is None else (*labels, str(index)), each)
        yield from families.values()
        if self._build:
            build = BY_TAG[BUILD]
            yield InfoMetricFamily(build.prometheus, build.help, value=self._build)


def _monotonic(metric: Metric, old: Value | None, new: Value) -> Value:
    """The new value, but for a counter never less than the old: a scraper would take that for a process restart."""
    if metric.kind != "counter" or old is None:
        return new
    if isinstance(new, Sequence):
        assert isinstance(old, Sequence)
        return [max(pair) for pair in zip(old, new, strict=True)]
    assert not isinstance(old, Sequence)
    return max(old, new)
