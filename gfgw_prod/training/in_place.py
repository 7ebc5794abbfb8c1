"""A run that goes on in place when a rank is lost: what the other ranks keep, and how the new one gets the state.

Rank and number of ranks stay as they are, so a rank that is not lost keeps all it has but its process group. The new
rank builds alone what the others have, and takes the state from one of those that have made most steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.checkpoint.choosing import quarantined
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.data.sources import Table, open_table
from gfgw_prod.distributed.lost_peers import lost_connection
from gfgw_prod.distributed.replicated import Replicated
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.process.signals import PREEMPTION, exit_on_stop_signals
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import same_run
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank, spread
from gfgw_prod.training.reporting import PRODUCTIVE
from gfgw_prod.training.state import training_state
from gfgw_prod.training.step import TrainingStep

if TYPE_CHECKING:
    from gfgw_prod.training.trainer import Run

NO_STEP = -1


@dataclass
class Kept:
    """What a rank has when a generation of ranks begins.

    Attributes:
        facts: of the run, as in a manifest.
        built_at: when this start of the run was built, by this rank's clock.
        step: completed steps; ``NO_STEP`` if this rank is new.
        productive_seconds: time in steps that the state has behind it.
    """

    table: Table
    training: TrainingStep
    guard: NumberGuard
    facts: dict[str, Any]
    built_at: float
    step: int = NO_STEP
    productive_seconds: float = 0.0

    @classmethod
    def built_alone(cls, config: Config, world: World, log: Callable[[str], None]) -> Kept:
        """What a new rank can have before it has met the others. Its bank is read from a checkpoint, or encoded."""
        alone = World(0, 1, world.device)
        table = open_table(config.data, alone, log, "off")
        training = build(config, world, table, log, fresh=False, together=alone)
        facts = same_run.run_facts(config, table, training.objective.frozen, world.device)
        if (rows := _bank_in_checkpoint(config)) is not None:
            training.matcher.bank.fill(0, rows)
        else:
            encode_bank(training, cache=BankCache.of(config, facts, log))
        return cls(table, training, NumberGuard(config.resilience), facts, time.monotonic())

    def take_newest(self, world: World) -> None:
        """Take the state of a rank that has made most steps. Collective.

        Raises:
            RuntimeError: if no rank has a state.
        """
        by_rank = world.all_gather_object((self.step, self.productive_seconds))
        newest = max(by_rank)
        source = by_rank.index(newest)
        behind = self.step < newest[0]
        self.step, self.productive_seconds = newest
        if self.step == NO_STEP:
            raise RuntimeError("no rank has the state of the run")
        for table in self.training.matcher.changing():
            if table.whole is None:
                table.whole = table.local.new_zeros(table.total, *table.local.shape[1:])
        world.copy_from(source, [*self.whole().values()], wanted=behind)
        if behind:
            for table in self.training.matcher.changing():
                assert table.whole is not None
                table.fill(0, table.whole)

    def manifest_facts(self) -> dict[str, Any]:
        """What the manifest of a checkpoint would say of the state."""
        return {PRODUCTIVE: self.productive_seconds, **self.guard.counts()}

    def whole(self) -> dict[str, Tensor]:
        """What every rank has whole, by name."""
        state = training_state(self.training, guard=self.guard.tensors())
        tables = enumerate(table.whole for table in self.training.matcher.changing())
        return {name: tensor for name, tensor in state.items() if not isinstance(tensor, DTensor)} | {
            f"table {number}": whole for number, whole in tables if whole is not None
        }


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
    return Kept(run.table, run.training, run.guard, run.facts, run.built_at, run.step, spent)


def keep_whole_tables(training: TrainingStep) -> None:
    """Have every rank keep a whole copy of what steps change in tables that are spread over ranks. Collective."""
    for table in training.matcher.changing():
        table.whole = table.gathered(table.local).clone()


def _bank_in_checkpoint(config: Config) -> Tensor | None:
    """Rows of the bank ``(N, d)`` in the newest good checkpoint, if there is one."""
    for storage in open_storages(config.checkpoint, config.run.dir):
        for checkpoint in reversed(checkpoints_in(storage)):
            if checkpoint.problem() is None:
                blocks: Tensor = checkpoint.read_tensors("bank.rows")["bank.rows"]
                return blocks.flatten(0, 1)
    return None
