"""Steps whose numbers can be trusted: a suspect step is computed again, and so is an unsuspicious one now and then.

A step is a pure function. If a second computation differs, the hardware erred: that is counted by rank and leaves no
trace in the weights. If it gives the same bad numbers, they are the run's own, and all ranks skip the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import HardwareError
from gfgw_prod.process.standard_streams import Warned
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult

Measured = tuple[int, dict[str, float]]  # a step, and its metrics by catalogue tag
NONE_YET = -1
MOST_COMPUTATIONS = 5  # of one step, until two agree
# Stages of a step, in order. Those in OWN use this rank's inputs only; all others use data of every rank.
STAGES = ("features of generated images", "matching", "dual", "losses", "gradient", "sum of gradients", "gradient norm")
FEATURES, MATCHING, DUAL, LOSSES, GRADIENT, SUM, NORM = range(7)
OWN = {FEATURES, LOSSES, GRADIENT}
SHARDED = ("generator.", "ema.", "optimizer.")  # how names of tensors begin that FSDP spreads over ranks


@dataclass(frozen=True)
class StepChecksums:
    """Checksums of one computation, ``(world_size, len(STAGES), turns)``: by rank, stage and turn."""

    by_rank: Tensor

    def first_difference(self, other: StepChecksums) -> tuple[str, list[int]] | None:
        """The first stage that differs, and the ranks at fault; no ranks if that cannot be known.

        Later stages depend on earlier ones of all ranks, so they are not looked at. Where ranks' numbers have met, one
        rank's error spreads to others, or to a part of the sum that another rank holds.
        """
        different = (self.by_rank != other.by_rank).any(dim=2)
        for stage, name in enumerate(STAGES):
            if ranks := different[:, stage].nonzero().flatten().tolist():
                # If own gradients agree and one rank's sum differs, that rank erred; without checksums nobody knows.
                own_are_checked = stage != SUM or bool(self.by_rank[:, GRADIENT].any())
                most = 1 if stage == SUM else len(different) - 1  # several ranks may hold one slice of the sum
                known = stage in OWN or len(different) == 1 or (len(ranks) <= most and own_are_checked)
                return name, ranks if known else []
        return None


class CheckedStep:
    """Computes a run's steps and applies only sound ones.

    Args:
        audit_every_steps: interval between steps that are computed twice whatever their numbers; 0 is off.
        hosts: host name of each rank.
    """

    def __init__(
        self,
        step: TrainingStep,
        guard: NumberGuard,
        world: World,
        *,
        audit_every_steps: int,
        hosts: Sequence[str],
        log: Callable[[str], None],
    ):
        self._step, self._guard, self._world = step, guard, world
        self._audit_every, self._hosts, self._log = audit_every_steps, hosts, log
        self.errors = [0] * world.world_size  # of the hardware, by rank
        self.audits = self.wrong = 0  # steps computed again; computations that differed from the agreed one
        self.measured: Measured = (NONE_YET, {})  # the last step whose metrics were taken, on all ranks the same
        # Of the last step: what was computed, and the numbers by which all ranks judge it. If a peer is lost meanwhile,
        # a rank that has all but those numbers settles the step when it has heard them from another rank.
        self.computed: StepResult | None = None
        self.verdict: tuple[float, float] | None = None

    def __call__(self, step: int, stream: Iterator[CellRows], *, recorded: bool = False) -> StepResult:
        """Compute a step and apply it if it is sound. Collective.

        Args:
            recorded: whether to take its metrics before it counts, so that each rank has them if another is lost.

        Raises:
            HardwareError: if no two computations agree, or ranks disagree on what must be the same on all.
        """
        rows = [next(stream) for _ in range(self._step.parallel.assignment.turns_per_rank)]
        result = self.computed = self._step.compute(step, rows)
        numbers, same_on_all = self._numbers(result)
        anomaly = self._guard.anomaly(numbers)
        audit = self._audit_every > 0 and (step + 1) % self._audit_every == 0
        if anomaly or not same_on_all or audit:
            self.audits += 1
            result = self.computed = self._compute_until_two_agree(result, rows)
            numbers, _ = self._numbers(result)
        if recorded:
            self.measure(result)
        self._step.clock.lap("check")
        self._world.require_peers()
        self.settle(result, numbers)
        return result

    def settle(self, result: StepResult, numbers: tuple[float, float]) -> None:
        """Apply a step, or skip it, by the numbers of all ranks. This meets no other rank."""
        self.verdict = numbers
        anomaly, name = self._guard.anomaly(numbers), f"step {result.step + 1}"
        if anomaly is None:
            self._guard.accept(numbers)
            self._step.apply(result)
        elif self._step.lower_loss_scale():
            self._log(f"{name} has {anomaly}; the step is skipped and the loss scale halved")
        else:
            self._guard.skip()
            self._step.skip()
            self._log(Warned(f"{name} has {anomaly}, also when it is computed again; skipped"))

    def measure(self, result: StepResult) -> dict[str, float]:
        """Metrics of a step by catalogue tag. Collective, unless they are taken already."""
        if self.measured[0] != result.step:
            values = result.values(self._world, self._step.parallel.assignment)
            self._world.require_peers()
            self.measured = result.step, values
        return self.measured[1]

    def values(self) -> dict[str, float | Sequence[float]]:
        """Metrics by catalogue tag: what was checked so far."""
        return {
            "run/audits": self.audits,
            "run/wrong_computations": self.wrong,
            "run/hardware_errors": list(self.errors),
            **{f"run/{name}": count for name, count in self._guard.counts().items()},
        }

    def check_replicas(self, state: Mapping[str, Tensor]) -> None:
        """Compare what every rank holds whole, and shards that several ranks hold, before they are saved. Collective.

        Raises:
            HardwareError: if ranks differ.
        """
        if self._world.world_size == 1:
            return
        whole = [tensor.to(self._world.device) for tensor in state.values() if not isinstance(tensor, DTensor)]
        by_rank = self._world.all_gather(checksum(whole)).tolist()
        self._refuse_different(by_rank, "weights, moments or duals")
        spread = self._step.parallel.shards
        if spread is not None and spread.count < self._world.world_size:
            own = [
                local(each) for name, each in state.items() if name.startswith(SHARDED) and isinstance(each, DTensor)
            ]
            by_rank = self._world.all_gather(checksum(own)).tolist()
            for shard in range(spread.count):
                self._refuse_different(by_rank[shard :: spread.count], "weights or moments", shard, spread.count)

    def _compute_until_two_agree(self, first: StepResult, rows: Sequence[CellRows]) -> StepResult:
        """Compute the step again until two computations agree; the last one's gradient is left in ``.grad``."""
        seen = [self._checksums(first)]
        while len(seen) < MOST_COMPUTATIONS:
            watch.progress(f"computing step {first.step + 1} again")
            again = self._step.compute(first.step, rows)
            checksums = self._checksums(again)
            agree = any(old.first_difference(checksums) is None for old in seen)
            self._world.require_peers()
            if agree:
                self._count_errors(first.step, checksums, seen)
                # Without sharding every rank holds the whole sum of gradients.
                for stage in (MATCHING, NORM, *([SUM] if self._step.parallel.replicated else [])):
                    self._refuse_different(checksums.by_rank[:, stage, 0].tolist(), STAGES[stage])
                return again
            seen.append(checksums)
        raise HardwareError(f"no two of {MOST_COMPUTATIONS} computations of step {first.step + 1} agree")

    def _count_errors(self, step: int, agreed: StepChecksums, seen: Sequence[StepChecksums]) -> None:
        """Count and report the ranks whose computations differ from the agreed one."""
        for other in seen:
            if (found := agreed.first_difference(other)) is None:
                continue
            stage, ranks = found
            self.wrong += 1
            for rank in ranks:
                self.errors[rank] += 1
            who = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in ranks) or "an unknown rank"
            wrong = f"{who} computed the {stage} wrongly, then correctly; the weights are not affected"
            self._log(Warned(f"step {step + 1}: {wrong}, but check that hardware"))

    def _refuse_different(self, values: list[int], what: str, first: int = 0, stride: int = 1) -> None:
        """Refuse values of ranks, from the first one on, that are not all the same."""
        usual, ranks = max(set(values), key=values.count), range(first, self._world.world_size, stride)
        others = [f"{rank} on {self._hosts[rank]}" for rank, found in zip(ranks, values, strict=True) if found != usual]
        if others:
            whose = ", ".join(others) if len(others) * 2 < len(values) else "half of the ranks or more"
            raise HardwareError(f"{what} that must be the same on all ranks differ on {whose}; check that hardware")

    def _numbers(self, result: StepResult) -> tuple[tuple[float, float], bool]:
        """Gradient norm and largest loss over all ranks, and whether all ranks have the same norm. Collective."""
        # NaN becomes infinity: a maximum may pass over NaN.
        norm = torch.where(result.finite, result.gradient_norm, torch.inf).double().nan_to_num(torch.inf, torch.inf)
        loss = result.largest_loss.double().nan_to_num(torch.inf, torch.inf)
        largest, negative_smallest, most = self._world.all_reduce_max(torch.stack([norm, -norm, loss])).tolist()
        return (largest, most), largest == -negative_smallest

    def _checksums(self, result: StepResult) -> StepChecksums:
        """Checksums of every stage of a computation whose gradient is in ``.grad``. Collective."""
        match, turns = result.match, len(result.losses)
        stages = {
            FEATURES: torch.stack([checksum([features]) for features in result.features]),
            MATCHING: checksum([match.rows, match.features]),
            DUAL: checksum(match.dual_inputs) if match.dual_inputs else torch.zeros_like(result.gradient_checksums[0]),
            LOSSES: torch.stack([checksum([losses]) for losses in result.losses]),
            GRADIENT: result.gradient_checksums,
            SUM: checksum(self._step.gradients()),
            NORM: checksum([result.gradient_norm, result.finite]),
        }
        return StepChecksums(
            self._world.all_gather(torch.stack([stages[stage].expand(turns) for stage in range(NORM + 1)]))
        )
