"""The end of a run after a stop signal: of this node alone if the others can continue without it, or else of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gfgw_prod.process.signals import ignore_stop_signals

if TYPE_CHECKING:
    from gfgw_prod.training.run import Run


def save_and_stop(run: Run) -> None:
    """Save the state, then stop the nodes that got a stop signal, or all if the others cannot continue. Collective.

    All save before nodes leave: a scheduler that stops a whole job may signal one after the other.

    Raises:
        RegroupedError: if this node continues.
    """
    run.health.enter_phase("told to stop: saving")
    others_continue = bool(_leaving(run))
    if not others_continue:
        run.end_steps()
    run.save()
    run.saver.finish(lambda: True)
    if run.membership is not None and others_continue:
        if leaving := _leaving(run):
            run.membership.let_leave(leaving)
        run.end_steps(of_all=not leaving)
    if run.world.world_size > 1:  # the launcher signals the other ranks once one exits
        ignore_stop_signals()
    run.reporter.stopped(run.images)


def _leaving(run: Run) -> set[str]:
    """The nodes that have got a stop signal by now; empty if the others cannot continue without them. Collective."""
    if run.membership is None:
        return set()
    told = run.world.all_gather_object(run.membership.node if run.stop.requested_here else "")
    leaving = {*told} - {""}
    possible = run.world.is_main and run.membership.goes_on_without(leaving)
    return leaving if run.world.broadcast(possible) else set()
