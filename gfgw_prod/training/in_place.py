"""A run that goes on in place when a rank is lost: the other ranks keep what they have, and the new one gets the state.

Rank and number of ranks stay as they are, so a rank that is not lost keeps all it has but its process groups, and what
holds them. The new rank builds alone what the others have, and takes its share of the state from one that has the same:
from a replica, or from the rank that has a copy of it.
"""

from __future__ import annotations

from torch import Tensor

from gfgw_prod.checkpoint.choosing import quarantined
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.distributed.lost_peers import lost_connection
from gfgw_prod.distributed.packed import Packed
from gfgw_prod.process.exit_codes import CRASHED
from gfgw_prod.process.signals import PREEMPTION, exit_on_stop_signals
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import same_run
from gfgw_prod.resilience.peer_copies import NO_STEP
from gfgw_prod.training.building import spread
from gfgw_prod.training.kept import choose
from gfgw_prod.training.run import Run


def kept_after(error: BaseException, run: Run) -> bool:
    """Whether a run goes on after an error, as a peer was lost and is replaced. What it holds of the group is freed."""
    lost = isinstance(error, RuntimeError) and lost_connection(error) is not None
    if run.membership is None or not lost or not run.holds_state:
        return False
    if not run.membership.is_peer_replaced(lambda: run.stop.requested_here):
        return False
    exit_on_stop_signals(PREEMPTION)  # until all ranks are back, there is nobody to save with
    kept, checked = run.kept, run.checked_step
    kept.spent = run.reporter.productive_seconds()
    kept.computed, kept.verdict, kept.measured = checked.computed, checked.verdict, checked.measured
    kept.training.end()
    if kept.copies is not None:
        kept.copies.end()
    return True


def go_on(run: Run) -> None:
    """Have a run go on with a new rank among them. Collective.

    It goes on after the last step that any rank has made, or after that of the newest copies.
    """
    kept, world = run.kept, run.world
    with watch.paused():  # a new rank may take longer, and has a watch of its own
        run.reached = _settle_last_step(run)
        before = kept.share()
        spread(run.training)
        _take_shares(run, before)
        run.checked_step.check_replicas(kept.state())
    run.first_step = kept.step
    same_run.accept_rank_differences(world.all_gather_object(kept.facts), kept.facts, kept.step)
    run.reporter.introduce(kept.step, run.training.table, 0, None)
    newest = checkpoints_in(run.storages[0])[-1:] if world.is_main else []
    manifest = {**(newest[0].manifest if newest else {}), **kept.manifest_facts()}
    damaged = len(quarantined(run.storages)) if world.is_main else 0
    world.on_all_ranks(lambda: run.reporter.open(kept.step, manifest, damaged))
    if values := dict(world.all_gather_object(kept.measured)).get(kept.step - 1):
        run.reporter.record_missed(kept.step, run.images, values)
    run.saver.preallocate(run.state())
    run.startup.done("checkpoint")


def _settle_last_step(run: Run) -> int:
    """Settle the last step here if another rank has done so: if any has, all had computed it. Collective.

    Returns:
        The number of steps that ranks have made.
    """
    kept = run.kept
    by_rank = run.world.all_gather_object((kept.step, kept.spent, kept.verdict))
    newest, spent, verdict = max(by_rank, key=lambda each: each[:2])
    if NO_STEP < kept.step < newest:
        assert kept.computed is not None
        assert verdict is not None
        assert kept.computed.step == kept.step == newest - 1
        run.checked_step.settle(kept.computed, verdict)
        kept.step, kept.spent = newest, spent
    kept.computed = None
    return newest


def _take_shares(run: Run, before: list[Tensor]) -> None:
    """Bring all ranks to the newest step of which every part of the state is left. Collective.

    Args:
        before: this rank's share before the generator was spread anew.

    Raises:
        SystemExit: as after a crash, if there is no such step.
    """
    kept, world = run.kept, run.world
    held = world.all_gather_object(kept.held())
    if (chosen := choose(held, kept.shards)) is None:
        run.reporter.log("a lost rank had a part of the state that no other has, nor a copy of it; all restart")
        raise SystemExit(CRASHED)
    step, sources = chosen
    if kept.step == NO_STEP:
        kept.make_room()
    share, source = kept.share(), sources[world.rank]
    if source == world.rank and step == kept.step:
        moved = [pair for pair in zip(share, before, strict=True) if pair[0].data_ptr() != pair[1].data_ptr()]
        for tensor, old in moved:
            tensor.copy_(old)
    elif source == world.rank:
        assert kept.copies is not None
        kept.copies.own(step).unpack(share)
    for rank, giver in enumerate(sources):
        if giver == rank:
            continue
        if world.rank == rank:
            received = Packed(share)
            world.take(received.bytes, giver)
            received.unpack(share)
        elif world.rank == giver:
            world.give(kept.given(step, rank % kept.shards), rank)
    kept.step, kept.spent, kept.copies = step, held[source][step, kept.shard], None
    kept.fill_tables()
