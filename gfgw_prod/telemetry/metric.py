"""Description of a metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

UNITS = ("seconds", "bytes", "ratio", "images", "steps", "iterations", "ranks", "rank", "share")


@dataclass(frozen=True)
class Metric:
    """A metric: ``tag`` is its name in TensorBoard and JSON, ``prometheus`` with fixed labels its name on /metrics.

    A metric ``by`` rank is a list: in JSON as it is, on the endpoint one sample per rank with that label. An ``info``
    has the value 1; its content is in its labels.

    Attributes:
        unit: of the value, where the name does not end in it.
        when: condition under which a run has the metric; empty: every run has it.
    """

    tag: str
    prometheus: str
    kind: Literal["gauge", "counter", "info"]
    help: str
    labels: dict[str, str] = field(default_factory=dict)
    by: str = ""
    unit: str = ""
    when: str = ""

    @property
    def measured_in(self) -> str:
        """The unit: the one given, else the last word of the name that is a unit, else ``number``."""
        words = self.prometheus.split("_")
        return self.unit or next((word for word in reversed(words) if word in UNITS), "number")

    @property
    def exposed(self) -> str:
        """The name on the endpoint."""
        return self.prometheus + {"counter": "_total", "info": "_info"}.get(self.kind, "")
