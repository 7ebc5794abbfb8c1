"""A run that goes on in place when a rank is lost: the other ranks keep what they have, and the new one gets the state.

Rank and number of ranks stay as they are, so a rank that is not lost keeps all it has but its process group. The new
rank builds alone what the others have, and takes the state from one of those that have made most steps.
"""

from __future__ import annotations

from gfgw_prod.checkpoint.choosing import quarantined
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.distributed.lost_peers import lost_connection
from gfgw_prod.distributed.replicated import Replicated
from gfgw_prod.process.signals import PREEMPTION, exit_on_stop_signals
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import same_run
from gfgw_prod.training.building import spread
from gfgw_prod.training.kept import Kept
from gfgw_prod.training.run import Run


def go_on(run: Run, kept: Kept) -> None:
    """Have a run go on after the last step that any rank has made, with a new rank among them. Collective."""
    with watch.paused():  # a new rank may take longer, and has a watch of its own
        kept.take_newest(run.world)
        run.checked_step.check_replicas(kept.whole())  # before DDP makes all weights those of rank 0
        spread(run.training)
    run.facts, run.step, run.first_step = kept.facts, kept.step, kept.step
    same_run.accept_rank_differences(run.world.all_gather_object(run.facts), run.facts, run.step)
    run.reporter.introduce(run.step, run.table, 0, None)
    newest = checkpoints_in(run.storages[0])[-1:] if run.world.is_main else []
    manifest = {**(newest[0].manifest if newest else {}), **kept.manifest_facts()}
    damaged = len(quarantined(run.storages)) if run.world.is_main else 0
    run.world.on_all_ranks(lambda: run.reporter.open(run.step, manifest, damaged))
    if values := dict(run.world.all_gather_object(kept.measured)).get(run.step - 1):
        run.reporter.record_missed(run.step, run.images, values)
    run.saver.preallocate(run.state())
    run.startup.done("checkpoint")


def kept_after(error: BaseException, run: Run) -> Kept | None:
    """What this rank goes on with after an error: all that it has, if a peer was lost and is replaced."""
    lost = isinstance(error, RuntimeError) and lost_connection(error) is not None
    if run.membership is None or not lost or not run.holds_state:
        return None
    if not run.membership.is_peer_replaced(lambda: run.stop.requested_here):
        return None
    exit_on_stop_signals(PREEMPTION)  # until all ranks are back, there is nobody to save with
    assert isinstance(run.training.parallel, Replicated)
    run.training.parallel.end()
    spent = run.reporter.productive_seconds()
    times, measured = (run.built_at, run.saved_at), run.checked_step.measured
    return Kept(run.table, run.training, run.guard, run.facts, *times, run.step, spent, measured)
