"""The final table."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from rich.console import Console
from rich.table import Table

from .campaign import Result


def show(result: Result, not_run: Mapping[str, str], console: Console) -> None:
    """Print the faults, their cost, and whether the run equals the undisturbed one."""
    table = Table("fault", title_justify="left")
    for head in ("injected", "survived", "images recomputed", "seconds lost, median", "most"):
        table.add_column(head, justify="right")
    for kind in dict.fromkeys(each.kind for each in result.struck):
        table.add_row(kind, *_row(result, kind))
    table.add_section()
    table.add_row("all", *_row(result))
    console.print(table)
    for kind, reason in not_run.items():
        console.print(f"not run: {kind} ({reason})", highlight=False)
    for each in result.struck:
        if each.problem:
            console.print(f"not survived: {each.kind} ({each.problem})", highlight=False)
    goodput = result.useful_seconds / max(result.wall_seconds, 1e-9)
    lines = [
        f"goodput: {goodput:.0%}, {result.useful_seconds:.0f} s of steps in {result.wall_seconds:.0f} s",
        f"weights after {result.steps} steps {_equal(result.same_weights)} those of an undisturbed run",
        f"losses, gradient norms and batches of all steps {_equal(result.same_losses)} its",
        *([result.problem] if result.problem else []),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _equal(same: bool) -> str:
    return "equal" if same else "DIFFER from"


def _row(result: Result, kind: str | None = None) -> list[str]:
    chosen = [each for each in result.struck if kind in (None, each.kind)]
    seconds = [each.seconds for each in chosen if not each.problem] or [float("nan")]
    return [
        str(len(chosen)),
        str(sum(not each.problem for each in chosen)),
        str(sum(each.images for each in chosen)),
        f"{median(seconds):.1f}",
        f"{max(seconds):.1f}",
    ]
