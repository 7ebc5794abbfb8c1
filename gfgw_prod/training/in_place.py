"""Continue a run in place when ranks are lost, join or leave: each keeps what it has, and fetches what it lacks.

A rank that stays keeps everything except its process groups, the objects that hold them, and the tables whose shard
changes with the number of ranks. A new rank builds the networks on its own, and receives its share of the state from a
replica, or from the rank that keeps a copy of that share.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from gfgw_prod.checkpoint.choosing import quarantined
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.distributed.lost_group import connections
from gfgw_prod.distributed.lost_peers import lost_connection
from gfgw_prod.distributed.packed import Packed
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.process.exit_codes import CRASHED
from gfgw_prod.process.signals import PREEMPTION, exit_on_stop_signals, on_stop_request
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import same_run
from gfgw_prod.resilience.membership import RegroupedError
from gfgw_prod.resilience.peer_copies import NO_STEP
from gfgw_prod.training.building import spread
from gfgw_prod.training.kept import newest_restorable
from gfgw_prod.training.run import Run


def prepare_to_continue(error: BaseException, run: Run) -> bool:
    """Prepare a run to continue in place, if a change of ranks caused the error. Returns whether it can.

    If so, the next generation has begun, what outlives the run is kept, and what holds the process group is gone. From
    here on a stop signal ends the process at once, if a rank was lost; else the run stops once its ranks have met.
    """
    if run.membership is None or not _is_of_lost_group(error, run) or not run.holds_state:
        return False
    if not run.membership.wait_for_next(lambda: run.stop.requested_here):
        return False
    if run.membership.is_after_loss:
        exit_on_stop_signals(PREEMPTION)  # until all ranks are back, no checkpoint can be saved
    else:
        run.kept.told_to_stop = False
        on_stop_request(partial(setattr, run.kept, "told_to_stop", True))
        run.kept.told_to_stop |= run.stop.requested_here
    kept, checked = run.kept, run.checked_step
    kept.spent, kept.shard_before = run.reporter.productive_seconds(), kept.shard
    kept.step_seconds = run.reporter.step_seconds()
    kept.computed, kept.verdict, kept.measured = checked.computed, checked.verdict, checked.measured
    kept.training.end()
    if kept.copies is not None:
        kept.copies.end()
    return True


def _is_of_lost_group(error: BaseException, run: Run) -> bool:
    """Whether a change of ranks caused an error."""
    if run.world.device.type == "cuda" and not connections.are_whole:
        return isinstance(error, Exception)  # an aborted collective leaves arbitrary numbers, which may raise anything
    lost = isinstance(error, RuntimeError) and lost_connection(error) is not None
    return lost or isinstance(error, RegroupedError)


def continue_in_place(run: Run) -> None:
    """Continue a run with the ranks of the new generation. Collective.

    It continues after the last step that any rank has completed, or after that of the newest copies.
    """
    kept, world = run.kept, run.world
    with watch.paused():  # waits for new ranks, which have watchdogs of their own
        run.reached = _settle_last_step(run)
        # What this rank had before the change. A new one had nothing, and may be built for another number of ranks.
        is_new, bank = kept.step == NO_STEP, kept.training.matcher.bank
        share, ranks = [] if is_new else kept.share(), 0 if is_new else kept.training.world.world_size
        by_rank = world.all_gather_object((ranks, kept.has_whole_tables))
        ranks, with_tables = max(ranks for ranks, _ in by_rank), any(with_tables for _, with_tables in by_rank)
        spread(run.training, world)
        _take_rows(run, bank if kept.has_rows else None)
        if with_tables and not kept.has_whole_tables:
            kept.make_room()
        _take_shares(run, share)
        run.checked_step.check_replicas(kept.state())
    run.first_step = kept.step
    kept.step_seconds = max(world.all_gather_object(kept.step_seconds))  # a new rank knows none
    same_run.accept_rank_differences(dict(enumerate(world.all_gather_object(kept.facts))), kept.facts, kept.step)
    assert run.membership is not None
    news = _news(ranks, world.world_size, is_after_loss=run.membership.is_after_loss)
    run.reporter.introduce(kept.step, run.training.table, 0, "", in_place=news)
    newest = checkpoints_in(run.storages[0])[-1:] if world.is_main else []
    manifest = {**(newest[0].manifest if newest else {}), **kept.manifest_facts()}
    damaged = len(quarantined(run.storages)) if world.is_main else 0
    world.on_all_ranks(lambda: run.reporter.open(kept.step, manifest, damaged))
    if values := dict(world.all_gather_object(kept.measured)).get(kept.step - 1):
        run.reporter.record_missed(kept.step, run.images, values)
    run.saver.preallocate(run.state())
    run.startup.done("checkpoint")


def _news(before: int, now: int, *, is_after_loss: bool) -> str:
    """A log line's words for a change of the number of ranks."""
    if before == now:
        return "a lost rank was replaced"
    fewer = "were lost" if is_after_loss else "left"
    return f"ranks {'joined' if now > before else fewer}: now {now}, before {before}"


def _settle_last_step(run: Run) -> int:
    """Apply or skip the last computed step here if another rank has, since all have computed it then. Collective.

    Returns:
        The largest number of completed steps of any rank.
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


def _take_rows(run: Run, earlier: FeatureBank | None) -> None:
    """Assemble this rank's shard of the bank, if that of any rank has changed. Collective.

    Args:
        earlier: the bank with this rank's previous shard, if it has one.
    """
    kept, bank = run.kept, run.training.matcher.bank
    if any(run.world.all_gather_object(earlier is not bank)) and not bank.take_rows(earlier):
        kept.find_rows(run.reporter.log_from_any_rank)
    kept.has_rows = True


def _take_shares(run: Run, before: list[Tensor]) -> None:
    """Bring all ranks to the newest step of which every shard of the state survives. Collective.

    Args:
        before: this rank's share of the state before the change of ranks.

    Raises:
        SystemExit: exit code 1, if there is no such step.
    """
    kept, world = run.kept, run.world
    held = world.all_gather_object(kept.held())
    if (chosen := newest_restorable(held, kept.shards)) is None:
        run.reporter.log("no rank has a copy of a lost rank's part of the state; all restart")
        raise SystemExit(CRASHED)
    step, sources = chosen
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
            world.receive(received.bytes, giver)
            received.unpack(share)
        elif world.rank == giver and rank % kept.shards == kept.shard_before:
            world.send(Packed(before).pack(before).bytes, rank)
        elif world.rank == giver:
            assert kept.copies is not None
            world.send(kept.copies.before(step), rank)
    kept.step, kept.spent, kept.copies = step, held[source][step, kept.shard], None
    kept.fill_tables()
