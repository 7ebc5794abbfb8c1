"""The catalogue as Prometheus scrapes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gfgw_prod.telemetry.catalogue import BY_TAG, CATALOGUE
from gfgw_prod.telemetry.metric import Metric
from gfgw_prod.telemetry.sinks import Values

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

AGE = "run/checkpoint_age_seconds"
BUILD = "run/build"


class Live:
    """A collector of gauges without labels that are asked for anew for every page; on every node.

    Args:
        asks: by tag of the catalogue.
    """

    def __init__(self, registry: CollectorRegistry, asks: Mapping[str, Callable[[], float]]):
        self._asks = asks
        registry.register(self)

    def describe(self) -> Iterable[Family]:
        """Asked for when it is registered."""
        return []

    def collect(self) -> Iterable[Family]:
        """All of them."""
        from prometheus_client.core import GaugeMetricFamily

        for tag, ask in self._asks.items():
            yield GaugeMetricFamily(BY_TAG[tag].prometheus, BY_TAG[tag].help, value=ask())


class Prometheus:
    """A collector of the last values. Counters begin at zero; a gauge is there once its value is known.

    A record is kept as it is: pages are made by the threads of the endpoint, when they are asked for.

    Args:
        saved_at: from when on the age of the last checkpoint counts, seconds since the epoch.
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
        self._values = {**known, **{tag: _onward(BY_TAG[tag], known.get(tag), new) for tag, new in values.items()}}

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        """Prometheus takes numbers only."""

    def close(self) -> None:
        """The endpoint outlives the records: it is there before the first, and closed by whoever opened it."""

    def describe(self) -> Iterable[Family]:
        """Asked for when it is registered."""
        return []

    def collect(self) -> Iterable[Family]:
        """All families with a value."""
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


def _onward(
    metric: Metric, old: float | Sequence[float] | None, new: float | Sequence[float]
) -> float | Sequence[float]:
    """A counter does not go back: a scraper would take that for a restart of the process."""
    if metric.kind != "counter" or old is None:
        return new
    if isinstance(new, Sequence):
        assert isinstance(old, Sequence)
        return [max(pair) for pair in zip(old, new, strict=True)]
    assert not isinstance(old, Sequence)
    return max(old, new)
