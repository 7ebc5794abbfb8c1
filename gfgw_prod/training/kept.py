"""What a rank has of a run, and keeps when another one is lost: what was built, and the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.data.sources import open_table
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.resilience import same_run
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.resilience.peer_copies import NO_STEP, PeerCopies
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import NONE_YET, Measured
from gfgw_prod.training.reporting import PRODUCTIVE
from gfgw_prod.training.state import CONSTANT, training_state
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult


@dataclass
class Kept:
    """What a rank has of a run.

    Attributes:
        facts: of the run, as in a manifest.
        built_at, saved_at: when this start of the run was built, and last saved, by this rank's clock.
        step: completed steps; ``NO_STEP`` if this rank is new.
        spent: seconds in steps that the state had behind it when a rank was lost.
        step_seconds: from one step to the next until then, if known.
        shard_before: part of the generator that this rank had when ranks came or went.
        copies: of shares of the state, if no two ranks have the same.
        has_rows: whether this rank has its part of the bank.
        told_to_stop: whether a stop signal came while ranks came or went.
        computed, verdict, measured: what ``CheckedStep`` has of the last step.
    """

    training: TrainingStep
    guard: NumberGuard
    facts: dict[str, Any]
    built_at: float
    saved_at: float
    step: int
    spent: float = 0.0
    step_seconds: float = 0.0
    shard_before: int = 0
    copies: PeerCopies | None = None
    has_rows: bool = True
    told_to_stop: bool = False
    computed: StepResult | None = None
    verdict: tuple[float, float] | None = None
    measured: Measured = (NONE_YET, {})

    @classmethod
    def of(cls, training: TrainingStep, step: int = 0) -> Kept:
        """A run that was just built."""
        config, now = training.config, time.monotonic()
        facts = same_run.run_facts(config, training.table, training.objective.frozen, training.world.device)
        return cls(training, NumberGuard(config.resilience), facts, built_at=now, saved_at=now, step=step)

    @classmethod
    def built_alone(cls, config: Config, world: World, log: Callable[[str], None], *, with_bank: bool) -> Kept:
        """What a new rank can have before it has met the others.

        Args:
            with_bank: whether it has to find the rows of its part of the bank; else other ranks have them.
        """
        alone = World(0, 1, world.device)
        table = open_table(config.data, alone, log, "off")
        kept = cls.of(build(config, world, table, log, fresh=False, together=alone), NO_STEP)
        if with_bank:
            kept.find_rows(log)
        kept.has_rows = with_bank
        return kept

    def find_rows(self, log: Callable[[str], None]) -> None:
        """Read this rank's part of the bank from a checkpoint, or encode it."""
        config = self.training.config
        if (rows := _bank_in_checkpoint(config)) is not None:
            self.training.matcher.bank.fill(0, rows)
        else:
            encode_bank(self.training, cache=BankCache.of(config, self.facts, log))

    def state(self) -> dict[str, Tensor]:
        """What steps change, by name, as this rank has it."""
        state = training_state(self.training, guard=self.guard.tensors())
        for name, table in self.training.matcher.changing().items():
            if table.whole is not None:
                state[f"transport.{name}"] = table.whole
        return {name: tensor for name, tensor in state.items() if name not in CONSTANT}

    def share(self) -> list[Tensor]:
        """This rank's part of what steps change, in place, without names."""
        return [local(tensor) for tensor in self.state().values()]

    @property
    def shard(self) -> int:
        """Which part of the generator this rank has; ranks with the same part have the same state."""
        spread = self.training.parallel.shards
        return 0 if spread is None else spread.own

    @property
    def shards(self) -> int:
        """The number of such parts."""
        spread = self.training.parallel.shards
        return 1 if spread is None else spread.count

    def make_safe(self, spent: float) -> None:
        """See to it that no rank's loss loses a part of the state from now on. Collective.

        Where several ranks have the same shard of the generator, each also keeps a whole copy of what steps change in
        tables that are spread over ranks.

        Args:
            spent: seconds in steps that the state has behind it.
        """
        config = self.training.config
        if self._has_replicas:
            for table in self._tables:
                table.whole = table.gathered(table.local).clone()
        else:
            if self.copies is None:
                every, timeout = config.resilience.peer_copy_every_steps, config.distributed.timeout_seconds
                self.copies = PeerCopies(self.training.world, self.share(), every, timeout)
            self.copies.make(self.step, self.share(), spent)
            self.copies.wait()

    def copy_if_due(self, spent: Callable[[], float]) -> None:
        """Renew the copies at their interval, where there are any. Collective."""
        if self.copies is not None and self.copies.is_due(self.step):
            self.copies.make(self.step, self.share(), spent())

    def finish_copies(self) -> None:
        """Wait for copies on their way. Collective."""
        if self.copies is not None:
            self.copies.wait()

    @property
    def has_whole_tables(self) -> bool:
        """Whether ``make_safe`` has added whole copies of tables to this rank's share."""
        return any(table.whole is not None for table in self._tables)

    def make_room(self) -> None:
        """Make room for whole copies of tables, which others have."""
        for table in self._tables:
            table.whole = table.local.new_zeros(table.total, *table.local.shape[1:])

    def fill_tables(self) -> None:
        """Take this rank's rows of tables from the whole copies, where there are any, and drop those not needed."""
        for table in self._tables:
            if table.whole is not None:
                table.fill(0, table.whole)
            if not self._has_replicas:
                table.whole = None

    @property
    def _tables(self) -> list[RowTable]:
        return [*self.training.matcher.changing().values()]

    @property
    def _has_replicas(self) -> bool:
        """Whether several ranks have the same shard of the generator, or all of it."""
        return self.shards < max(self.training.world.world_size, 2)

    @property
    def ranks_multiple(self) -> int:
        """Of what the number of ranks is a multiple; 0 if it cannot change without a restart."""
        return self.shards if self._has_replicas else 0

    def held(self) -> dict[tuple[int, int], float]:
        """What this rank could give or take when ranks came or went: seconds spent, by step and shard."""
        if self.step == NO_STEP:
            return {}
        copies = {} if self.copies is None else self.copies.held()
        return {**copies, (self.step, self.shard_before): self.spent}

    def manifest_facts(self) -> dict[str, Any]:
        """What the manifest of a checkpoint would say of the state."""
        return {PRODUCTIVE: self.spent, **self.guard.counts()}


def choose(held: Sequence[Collection[tuple[int, int]]], shards: int) -> tuple[int, list[int]] | None:
    """The newest step of which ranks have every shard, and from whom each rank takes its own; itself if it can.

    Args:
        held: by rank, steps and shards that it has.
    """
    for step in sorted({step for each in held for step, _ in each}, reverse=True):
        holders = [[rank for rank, each in enumerate(held) if (step, shard) in each] for shard in range(shards)]
        if all(holders):
            of_rank = [holders[rank % shards] for rank in range(len(held))]
            return step, [rank if rank in able else able[rank % len(able)] for rank, able in enumerate(of_rank)]
    return None


def _bank_in_checkpoint(config: Config) -> Tensor | None:
    """Rows of the bank ``(N, d)`` in the newest good checkpoint, if there is one."""
    for storage in open_storages(config.checkpoint, config.run.dir):
        for checkpoint in reversed(checkpoints_in(storage)):
            if checkpoint.problem() is None:
                blocks: Tensor = checkpoint.read_tensors("bank.rows")["bank.rows"]
                return blocks.flatten(0, 1)
    return None
