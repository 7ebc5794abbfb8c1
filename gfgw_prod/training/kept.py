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
from gfgw_prod.distributed.packed import Packed
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
        copies: of shares of the state, if no two ranks have the same.
        computed, verdict, measured: what ``CheckedStep`` has of the last step.
    """

    training: TrainingStep
    guard: NumberGuard
    facts: dict[str, Any]
    built_at: float
    saved_at: float
    step: int
    spent: float = 0.0
    copies: PeerCopies | None = None
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
    def built_alone(cls, config: Config, world: World, log: Callable[[str], None]) -> Kept:
        """What a new rank can have before it has met the others. Its bank is read from a checkpoint, or encoded."""
        alone = World(0, 1, world.device)
        table = open_table(config.data, alone, log, "off")
        kept = cls.of(build(config, world, table, log, fresh=False, together=alone), NO_STEP)
        if (rows := _bank_in_checkpoint(config)) is not None:
            kept.training.matcher.bank.fill(0, rows)
        else:
            encode_bank(kept.training, cache=BankCache.of(config, kept.facts, log))
        return kept

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

    def make_room(self) -> None:
        """Make room for what ``make_safe`` has added to the shares of the others."""
        for table in self._tables if self._has_replicas else ():
            table.whole = table.local.new_zeros(table.total, *table.local.shape[1:])

    def fill_tables(self) -> None:
        """Take this rank's rows of tables from the whole copies, where there are any."""
        for table in self._tables:
            if table.whole is not None:
                table.fill(0, table.whole)

    @property
    def _tables(self) -> list[RowTable]:
        return [*self.training.matcher.changing().values()]

    @property
    def _has_replicas(self) -> bool:
        return self.shards < self.training.world.world_size

    def held(self) -> dict[tuple[int, int], float]:
        """What this rank can give or take: seconds spent, by step and shard."""
        if self.step == NO_STEP:
            return {}
        copies = {} if self.copies is None else self.copies.held()
        return {**copies, (self.step, self.shard): self.spent}

    def given(self, step: int, shard: int) -> Tensor:
        """The bytes of a share that this rank holds, of the step at which it is or of a copy."""
        if shard == self.shard:
            return Packed(self.share()).pack(self.share()).bytes
        assert self.copies is not None
        return self.copies.before(step)

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
