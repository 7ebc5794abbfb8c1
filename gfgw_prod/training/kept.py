"""What a rank keeps when another one is lost, and what a new rank builds alone in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.data.sources import Table, open_table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.resilience import same_run
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import NONE_YET, Measured
from gfgw_prod.training.reporting import PRODUCTIVE
from gfgw_prod.training.state import training_state
from gfgw_prod.training.step import TrainingStep

NO_STEP = -1


@dataclass
class Kept:
    """What a rank has when a generation of ranks begins.

    Attributes:
        facts: of the run, as in a manifest.
        built_at, saved_at: when this start of the run was built, and last saved, by this rank's clock.
        step: completed steps; ``NO_STEP`` if this rank is new.
        productive_seconds: time in steps that the state has behind it.
        measured: the last metrics of a step that were taken.
    """

    table: Table
    training: TrainingStep
    guard: NumberGuard
    facts: dict[str, Any]
    built_at: float
    saved_at: float
    step: int = NO_STEP
    productive_seconds: float = 0.0
    measured: Measured = (NONE_YET, {})

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
        now = time.monotonic()
        return cls(table, training, NumberGuard(config.resilience), facts, built_at=now, saved_at=now)

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
