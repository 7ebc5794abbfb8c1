"""What a rank keeps of a run when other ranks are lost, join or leave: what was built, and the state."""

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
from gfgw_prod.resilience.ledger import PRODUCTIVE
from gfgw_prod.resilience.peer_copies import NO_STEP, PeerCopies
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import NONE_YET, Measured
from gfgw_prod.training.state import CONSTANT, training_state
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult


@dataclass
class Kept:
    """One rank's part of a run that outlives its process group.

    Attributes:
        training, guard: the step, and the judge of its numbers.
        facts: facts of the run, as a manifest has them.
        built_at, saved_at: times of the build and of the last save, by this rank's monotonic clock.
        step: completed steps; ``NO_STEP`` if this rank is new.
        spent: productive seconds that led to the state, as of the last change of ranks.
        step_seconds: seconds per step before that change, or 0 if unknown.
        shard_before: index of this rank's shard of the generator before that change.
        copies: copies of shares of the state, if no two ranks hold the same share.
        has_rows: whether this rank has its shard of the bank.
        told_to_stop: whether a stop signal came during a change of ranks.
        computed, verdict, measured: those of ``CheckedStep`` for the last step.
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
        """The part of a run that was just built."""
        config, now = training.config, time.monotonic()
        facts = same_run.run_facts(config, training.table, training.objective.frozen, training.world.device)
        return cls(training, NumberGuard(config.resilience), facts, built_at=now, saved_at=now, step=step)

    @classmethod
    def built_alone(cls, config: Config, world: World, log: Callable[[str], None], *, with_bank: bool) -> Kept:
        """What a new rank can build before it has met the others.

        Args:
            with_bank: whether to read or encode its shard of the bank too; if not, other ranks send it.
        """
        alone = World(0, 1, world.device)
        table = open_table(config.data, alone, log, "off")
        kept = cls.of(build(config, world, table, log, fresh=False, together=alone), NO_STEP)
        if config.compiles_alone:
            kept.training.rehearse()
        if with_bank:
            kept.find_rows(log)
        kept.has_rows = with_bank
        return kept

    def find_rows(self, log: Callable[[str], None]) -> None:
        """Read this rank's shard of the bank from the newest checkpoint whose hashes match, or encode it."""
        config = self.training.config
        if (rows := _bank_in_checkpoint(config)) is not None:
            self.training.matcher.bank.fill(0, rows)
        else:
            encode_bank(self.training, cache=BankCache.of(config, self.facts, log))

    def state(self) -> dict[str, Tensor]:
        """The tensors that steps change, by name; of sharded ones this rank's shard, or the whole where it is kept."""
        state = training_state(self.training, guard=self.guard.tensors())
        for name, table in self.training.matcher.changing().items():
            if table.whole is not None:
                state[f"transport.{name}"] = table.whole
        return {name: tensor for name, tensor in state.items() if name not in CONSTANT}

    def share(self) -> list[Tensor]:
        """This rank's local tensors of ``state``, not copied, in its order."""
        return [local(tensor) for tensor in self.state().values()]

    @property
    def shard(self) -> int:
        """Index of this rank's shard of the generator; ranks with the same shard have the same state."""
        shards = self.training.parallel.shards
        return 0 if shards is None else shards.own

    @property
    def shards(self) -> int:
        """Number of shards of the generator."""
        shards = self.training.parallel.shards
        return 1 if shards is None else shards.count

    def make_safe(self, spent: float) -> None:
        """Make every part of the state redundant, so that the loss of a rank loses none. Collective.

        Where several ranks have the same shard of the generator, each keeps a full copy of the sharded tables that
        steps change. Otherwise each rank's share is copied to a neighbour.

        Args:
            spent: productive seconds that led to the state.
        """
        config = self.training.config
        if self._has_replicas:
            for table in self._tables:
                table.whole = table.gathered(table.local).clone()
            self.training.world.require_peers(wait=True)
        else:
            if self.copies is None:
                every, timeout = config.resilience.peer_copy_every_steps, config.distributed.timeout_seconds
                self.copies = PeerCopies(self.training.world, self.share(), every, timeout)
            self.copies.make(self.step, self.share(), spent)
            self.copies.wait()

    def copy_if_due(self, spent: Callable[[], float]) -> None:
        """Renew the copies at their interval, if this run keeps any. Collective."""
        if self.copies is not None and self.copies.is_due(self.step):
            self.copies.make(self.step, self.share(), spent())

    def finish_copies(self) -> None:
        """Wait for copies in flight. Collective."""
        if self.copies is not None:
            self.copies.wait()

    @property
    def has_whole_tables(self) -> bool:
        """Whether ``make_safe`` has added full copies of tables to this rank's share."""
        return any(table.whole is not None for table in self._tables)

    def make_room(self) -> None:
        """Allocate full copies of the tables, which other ranks send."""
        for table in self._tables:
            table.whole = table.local.new_zeros(table.total, *table.local.shape[1:])

    def fill_tables(self) -> None:
        """Fill this rank's shard of each table from its full copy, if there is one; drop copies that are not needed."""
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
        """Whether several ranks have the same shard of the generator, as under DDP and HSDP, or would if one joined."""
        return self.shards < max(self.training.world.world_size, 2)

    @property
    def ranks_multiple(self) -> int:
        """What the number of ranks must be a multiple of; 0 if it cannot change without a restart."""
        return self.shards if self._has_replicas else 0

    def held(self) -> dict[tuple[int, int], float]:
        """The states that this rank can offer after a change of ranks: productive seconds by step and shard."""
        if self.step == NO_STEP:
            return {}
        copies = {} if self.copies is None else self.copies.held()
        return {**copies, (self.step, self.shard_before): self.spent}

    def manifest_facts(self) -> dict[str, Any]:
        """Facts of the state, as the manifest of a checkpoint has them."""
        return {PRODUCTIVE: self.spent, **self.guard.counts()}


def newest_restorable(held: Sequence[Collection[tuple[int, int]]], shards: int) -> tuple[int, list[int]] | None:
    """The newest step of which every shard survives, and the rank that each rank takes its shard from.

    A rank that has its shard takes it from itself.

    Args:
        held: by rank, the steps and shards that it has.
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
