"""Why a run was restarted: the values of a metric's label."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal, get_args

Cause = Literal["hang", "killed", "signal", "error", "membership", "preempted", "unknown"]
CAUSES: tuple[Cause, ...] = get_args(Cause)  # by precedence: the first that any rank knows of
# Set by the elastic launcher for its ranks:
RESTART_CAUSE = "GFGW_RESTART_CAUSE"  # why they are restarted
EXPECTED_RANKS = "GFGW_EXPECTED_RANKS"  # the number of ranks when all nodes are there


def of_exit_codes(codes: Iterable[int]) -> Cause:
    """The cause behind the exit codes of ranks (negative: the signal that killed them)."""
    found = {*codes}
    if -9 in found:  # by hand, out of memory, or at the end of a grace period
        return "killed"
    if any(code < 0 for code in found):
        return "signal"
    return "membership" if found == {75} else "error"


def take_from_launcher() -> Cause | None:
    """The cause that the launcher set, removed from the environment so that it is counted once."""
    value = os.environ.pop(RESTART_CAUSE, None)
    return next((cause for cause in CAUSES if cause == value), None)


def expected_ranks() -> int:
    """The number of ranks that the launcher set; 0 if it set none."""
    value = os.environ.get(EXPECTED_RANKS, "")
    return int(value) if value.isascii() and value.isdigit() else 0


def first_of(causes: Iterable[Cause | None]) -> Cause | None:
    """The cause of a restart from what each rank knows: a lost connection follows from what another rank saw."""
    known = {*causes}
    return next((cause for cause in CAUSES if cause in known), None)
