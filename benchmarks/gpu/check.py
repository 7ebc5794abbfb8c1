"""What a check measures: rows of one table, each of which may pass or fail."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.weights.digest import weights_digest

ROOT = Path(__file__).parents[2]
SECONDS = 480  # of the whole check


@dataclass(frozen=True)
class Row:
    """One figure, and whether it is as it has to be; ``None`` for what is only measured."""

    part: str
    what: str
    value: Any
    good: bool | None = None

    def __str__(self) -> str:
        value = f"{self.value:,.4g}" if isinstance(self.value, float) else str(self.value)
        return (
            f"{self.part:<12}{self.what:<44}{value:>24}  {({True: 'ok', False: 'FAILED'}).get(self.good, '')}".rstrip()
        )


@dataclass(frozen=True)
class Place:
    """Where the check runs: the device, sizes for a test or in full, and a directory for its files."""

    device: torch.device
    small: bool
    directory: Path

    @property
    def network(self) -> tuple[str, ...]:
        """Options of a run of digits for its network, which is the preset's unless sizes are small."""
        return ("--generator.model-channels", "8", "--generator.channel-mult", "[1]") if self.small else ()


Part = Callable[[Place], Iterable[Row]]


def run_parts(parts: Mapping[str, Part], place: Place, show: Callable[[Row], None]) -> list[Row]:
    """Rows of all parts. A part that raises is a failed row; parts that begin after ``SECONDS`` are left out."""
    rows: list[Row] = []
    started = time.monotonic()

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    for name, part in parts.items():
        began = time.monotonic()
        if began - started > SECONDS:
            add(Row(name, "left out: no time left", "", None))
            continue
        try:
            for row in part(place):
                add(row)
        except Exception as error:
            traceback.print_exc()
            add(Row(name, type(error).__name__, str(error).splitlines()[0][:80] if str(error) else "", False))
        add(Row(name, "seconds of this part", time.monotonic() - began))
    return rows


def digest_of(run_dir: Path) -> str:
    """``weights_sha256`` of a run's newest checkpoint, which must be whole."""
    newest = find_checkpoints(run_dir)[-1]
    assert newest.problem() is None, newest
    return weights_digest(newest.read_tensors("generator.", "ema."))


def write(rows: Iterable[Row], file: Path) -> None:
    """Keep the rows as JSON."""
    file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
