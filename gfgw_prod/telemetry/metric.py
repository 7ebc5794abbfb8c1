"""What is said of a metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

UNITS = ("seconds", "bytes", "ratio", "images", "steps", "iterations", "ranks", "rank", "share")


@dataclass(frozen=True)
class Metric:
    """A metric. ``tag`` names it in TensorBoard and JSON; ``prometheus``, with fixed labels, on the endpoint.

    A metric ``by`` something is a list: in JSON as it is, on the endpoint with the index as that label's value. An
    ``info`` is 1, and says what it says in its labels.

    Attributes:
        unit: of the value, where the name does not say it.
        when: what a run must have for the metric to be there; empty: every run has it.
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
        """The unit, from the last word of the name that is one unless it is given."""
        words = self.prometheus.split("_")
        return self.unit or next((word for word in reversed(words) if word in UNITS), "number")

    @property
    def exposed(self) -> str:
        """The name as it is scraped."""
        return self.prometheus + {"counter": "_total", "info": "_info"}.get(self.kind, "")
