"""Why a run had to be started again: what a label of a metric can say."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal, get_args

Cause = Literal["hang", "killed", "signal", "error", "membership", "preempted", "unknown"]
CAUSES: tuple[Cause, ...] = get_args(Cause)  # of several, the first that any rank knows of is the cause
RESTART_CAUSE = "GFGW_RESTART_CAUSE"  # the elastic launcher tells its ranks why they are started again
EXPECTED_RANKS = "GFGW_EXPECTED_RANKS"  # and how many there are when all nodes are


def of_exit_codes(codes: Iterable[int]) -> Cause:
    """What ended ranks that left with these codes (negative: the signal that killed them)."""
    found = {*codes}
    if -9 in found:  # by hand, for want of memory, or at the end of a grace period
        return "killed"
    if any(code < 0 for code in found):
        return "signal"
    return "membership" if found == {75} else "error"


def told_by_launcher() -> Cause | None:
    """What the launcher said; it is heard once."""
    told = os.environ.pop(RESTART_CAUSE, None)
    return next((cause for cause in CAUSES if cause == told), None)


def expected_ranks() -> int:
    """What the launcher said of the number of ranks; 0 if it said nothing."""
    told = os.environ.get(EXPECTED_RANKS, "")
    return int(told) if told.isascii() and told.isdigit() else 0


def first_of(causes: Iterable[Cause | None]) -> Cause | None:
    """The cause among what ranks know: a lost connection is the consequence of what another rank's launcher saw."""
    known = {*causes}
    return next((cause for cause in CAUSES if cause in known), None)
