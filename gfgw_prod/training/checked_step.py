"""Steps whose numbers can be trusted: what looks wrong is computed again, and now and then a step that does not.

A step is a pure function, so computing it again tells an error of the hardware, which does not come back, from numbers
that are the run's own. The first is counted, named by rank, and leaves no trace in the weights; a step of the second
kind is skipped on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import HardwareError
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult

MOST_COMPUTATIONS = 5  # of one step, until two agree
# In the order of the step. A rank alone answers for some; in the others all ranks' numbers have met.
STAGES = ("features of generated images", "matching", "dual", "losses", "gradient", "sum of gradients", "gradient norm")
FEATURES, MATCHING, DUAL, LOSSES, GRADIENT, SUM, NORM = range(7)
OWN = {FEATURES, LOSSES, GRADIENT}


@dataclass(frozen=True)
class Fingerprint:
    """Checksums of all ranks' part in a step, ``(world_size, len(STAGES), turns)``, by stage and turn."""

    by_rank: Tensor

    def first_difference(self, other: Fingerprint) -> tuple[str, list[int]] | None:
        """The first stage that came out otherwise, and the ranks that did it; none if that cannot be told.

        Later stages depend on earlier ones of all ranks, so a difference there says nothing more. Where ranks have met,
        what one of them brought spoils the others' results, too, or a part of the sum that is another's.
        """
        different = (self.by_rank != other.by_rank).any(dim=2)
        for stage, name in enumerate(STAGES):
            if ranks := different[:, stage].nonzero().flatten().tolist():
                looked = stage != SUM or bool(self.by_rank[:, GRADIENT].any())  # at what each rank brought
                most = 1 if stage == SUM else len(different) - 1  # a slice of the sum that several hold is nobody's own
                known = stage in OWN or len(different) == 1 or (len(ranks) <= most and looked)
                return name, ranks if known else []
        return None


class CheckedStep:
    """Makes a run's steps, and sees to it that only sound ones reach the weights.

    Args:
        audit_every_steps: interval between steps that are computed twice, whatever their numbers; 0 is off.
        replicated: whether the sum of gradients must be the same on all ranks.
        hosts: where each rank runs.
        report: says a line.
    """

    def __init__(
        self,
        step: TrainingStep,
        guard: NumberGuard,
        world: World,
        *,
        audit_every_steps: int,
        replicated: bool,
        hosts: Sequence[str],
        report: Callable[[str], None],
    ):
        self._step, self._guard, self._world = step, guard, world
        self._audit_every, self._replicated = audit_every_steps, replicated
        self._hosts, self._report = hosts, report
        self.errors = [0] * world.world_size  # of the hardware, by rank
        self.audits = self.wrong = 0

    def __call__(self, step: int, stream: Iterator[CellRows]) -> StepResult:
        """Computes a step, and applies it if it is sound. Collective.

        Raises:
            HardwareError: if no two computations of it agree, or ranks do not that should.
        """
        rows = [next(stream) for _ in range(self._step.turns)]
        result = self._step.compute(step, rows)
        numbers, alike = self._numbers(result)
        objection = self._guard.anomaly(numbers)
        due = self._audit_every > 0 and (step + 1) % self._audit_every == 0
        if objection or not alike or due:
            self.audits += 1
            result = self._computed_again(result, rows)
            numbers, _ = self._numbers(result)
            objection = self._guard.anomaly(numbers)
        if objection is None:
            self._guard.accept(numbers)
            self._step.apply(result)
        elif self._step.loosen():
            self._report(f"step {step + 1} has {objection}; the loss scale is halved, and the step left out")
        else:
            self._guard.skip()
            self._step.skip()
            self._report(f"step {step + 1} has {objection}, also when it is computed again; skipped")
        return result

    def values(self) -> dict[str, float | Sequence[float]]:
        """What has happened so far, by tag of the catalogue."""
        return {
            "run/audits": self.audits,
            "run/wrong_computations": self.wrong,
            "run/hardware_errors": list(self.errors),
            **{f"run/{name}": count for name, count in self._guard.counts().items()},
        }

    def figures(self) -> dict[str, float]:
        """How long the phases of steps took since the last call, and the loss scale, by tag of the catalogue."""
        return {**self._step.clock.take(), "optimizer/loss_scale": self._step.precision.scale}

    def check_replicas(self, state: Mapping[str, Tensor]) -> None:
        """Compares what every rank holds whole, and must be the same on all, before it is saved. Collective.

        Raises:
            HardwareError: if it is not.
        """
        if self._world.world_size > 1:
            whole = [tensor.to(self._world.device) for tensor in state.values() if not isinstance(tensor, DTensor)]
            self._refuse_different(self._world.all_gather(checksum(whole)).tolist(), "weights, moments or duals")

    def _computed_again(self, first: StepResult, rows: Sequence[CellRows]) -> StepResult:
        """The step as two computations of it agree on; its gradient stands in ``.grad``."""
        seen = [self._fingerprint(first)]
        while len(seen) < MOST_COMPUTATIONS:
            watch.progress(f"computing step {first.step + 1} again")
            again = self._step.compute(first.step, rows)
            fingerprint = self._fingerprint(again)
            if any(old.first_difference(fingerprint) is None for old in seen):
                self._name(first.step, fingerprint, seen)
                for stage in (MATCHING, NORM, *([SUM] if self._replicated else [])):
                    self._refuse_different(fingerprint.by_rank[:, stage, 0].tolist(), STAGES[stage])
                return again
            seen.append(fingerprint)
        raise HardwareError(f"no two of {MOST_COMPUTATIONS} computations of step {first.step + 1} agree")

    def _name(self, step: int, agreed: Fingerprint, seen: Sequence[Fingerprint]) -> None:
        """Counts and reports the ranks that computed something else than what was agreed on."""
        for other in seen:
            if (found := agreed.first_difference(other)) is None:
                continue
            stage, ranks = found
            self.wrong += 1
            for rank in ranks:
                self.errors[rank] += 1
            who = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in ranks) or "nobody knows which rank"
            self._report(
                f"step {step + 1}: {who} computed the {stage} wrongly, and then rightly; "
                "the run goes on exactly, but look at that hardware"
            )

    def _refuse_different(self, by_rank: list[int], what: str) -> None:
        usual = max(set(by_rank), key=by_rank.count)
        others = [f"{rank} on {self._hosts[rank]}" for rank, found in enumerate(by_rank) if found != usual]
        if others:
            whose = ", ".join(others) if len(others) * 2 < len(by_rank) else "half of the ranks or more"
            raise HardwareError(f"{what} that must be the same on all ranks differ on {whose}; look at that hardware")

    def _numbers(self, result: StepResult) -> tuple[tuple[float, float], bool]:
        """Gradient norm and largest loss over all ranks, and whether all ranks have the same norm. Collective."""
        # No comparison holds for what is no number: a maximum may pass over it.
        norm = torch.where(result.finite, result.gradient_norm, torch.inf).double().nan_to_num(torch.inf, torch.inf)
        loss = result.largest_loss.double().nan_to_num(torch.inf, torch.inf)
        largest, negative_smallest, most = self._world.all_reduce_max(torch.stack([norm, -norm, loss])).tolist()
        return (largest, most), largest == -negative_smallest

    def _fingerprint(self, result: StepResult) -> Fingerprint:
        features, losses, gradients = result.checksums.unbind(dim=1)
        met = (
            [result.match.rows, result.match.features],
            self._step.gradients(),
            [result.gradient_norm, result.finite],
        )
        matching, total, norm = (checksum(tensors).expand(len(features)) for tensors in met)
        dual = checksum(result.match.learned).expand(len(features)) if result.match.learned else torch.zeros_like(total)
        return Fingerprint(
            self._world.all_gather(torch.stack([features, matching, dual, losses, gradients, total, norm]))
        )
