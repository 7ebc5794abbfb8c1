"""Save checkpoints in the background: copy the state, then write and commit the copy while training goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gfgw_prod.checkpoint.committing import Committer
from gfgw_prod.checkpoint.finding import step_directories
from gfgw_prod.checkpoint.reading import Checkpoint, State, silence_dcp
from gfgw_prod.checkpoint.retention import Retention
from gfgw_prod.checkpoint.staging import Stage, tensor_bytes
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.checkpoint.storages import claim_storage
from gfgw_prod.checkpoint.uploading import Uploader
from gfgw_prod.checkpoint.waiting import SLOWEST, wait_together
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import NoProgressError, UserError, one_line
from gfgw_prod.process.save_in_flight import saving
from gfgw_prod.process.standard_streams import Warned

if TYPE_CHECKING:
    from gfgw_prod.settings.running import CheckpointSettings

Metrics = tuple[int, int, dict[str, float]]  # step, images, values by tag
LAST_SECONDS = 20.0  # for a save in flight after an error
UPLOAD_SECONDS = 5.0  # for the last upload after a stop signal
OVERHEAD = 1.02  # size of DCP's files over the size of the tensors in them
SPARE_BYTES = 1 << 20  # for the small files


@dataclass(frozen=True)
class Outcome:
    """How a save ended; the same on all ranks, except for ``free_bytes``."""

    step: int
    images: int
    blocked_seconds: float  # of training
    seconds: float = 0.0
    bytes: int = 0  # of the tensors
    free_bytes: int | None = None  # before the save, if known; on rank 0
    problem: str | None = None
    must_stop: bool = False  # this process holds the storage no more


class Saver:
    """Saves a run's checkpoints, one at a time. ``save``, ``join`` and ``finish`` are collective.

    Args:
        storages: where to save and, optionally, where to upload to.
        constant: names of tensors that never change; they are written without a copy.
    """

    def __init__(
        self,
        settings: CheckpointSettings,
        storages: Sequence[Storage],
        world: World,
        log: Callable[[str], None],
        constant: Collection[str] = (),
    ):
        self.storage, *upload_to = storages
        self.saved_step: int | None = None  # of the last committed checkpoint
        self._world, self._log = world, log
        self._max_failures = settings.max_failures
        retention, *upload_retention = (
            Retention(storage, settings.keep, round(settings.keep_every_kimg * 1000)) for storage in storages
        )
        self._counts: Counter[str] = Counter()
        self._metrics: deque[Metrics] = deque()
        self._uploader: Uploader | None = None
        token = world.on_all_ranks(lambda: claim_storage(upload_to[0]) if upload_to and world.is_main else "")
        if token:
            self._uploader = Uploader(self.storage, upload_to[0], token, upload_retention[0], self._count, log)
        self._stage = Stage(world, constant)
        group = world.background_group(SLOWEST)
        self._committer = Committer(self.storage, world, group, retention, self._uploader, log)
        if self._uploader is not None:
            self._uploader.start()
        self._thread: threading.Thread | None = None
        self._preallocating: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None  # of the thread
        self._failures_in_a_row = 0
        self._free_bytes: int | None = None
        silence_dcp()

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Continue after a verified checkpoint. It is uploaded if it was not before."""
        if str(checkpoint.storage) == str(self.storage):
            self.saved_step = checkpoint.step
            self._committer.resume_from(checkpoint)

    def preallocate(self, state: State) -> None:
        """Allocate the buffers for copies in the background: touching new memory takes longer than the copy."""
        self._preallocating = threading.Thread(target=self._preallocate, args=(state,), daemon=True)
        self._preallocating.start()

    def _preallocate(self, state: State) -> None:
        if not self._stage.preallocate(state):
            self._log("page-locked memory for copies of the state was refused; saves hold up training for longer")

    def save(self, state: State, *, step: int, images: int, facts: dict[str, Any]) -> None:
        """Copy the state, and write it in the background. Does nothing if the step is saved already.

        Raises as ``join`` does.

        Args:
            state: tensors and DTensors by name.
            facts: JSON for the manifest.
        """
        started = time.monotonic()
        self.join()
        size = sum(map(tensor_bytes, state.values()))
        saved, problem = self._world.broadcast(self._check(step, size) if self._world.is_main else (False, None))
        if saved:
            self.saved_step = step
            return
        if problem is not None:
            self._record(Outcome(step, images, time.monotonic() - started, problem=problem))
            self._act_on_outcome()
            return
        if self._preallocating is not None:
            self._preallocating.join()
            self._preallocating = None
        staged = self._stage.copy(state)
        outcome = Outcome(step, images, time.monotonic() - started, bytes=size, free_bytes=self._free_bytes)
        manifest = {"step": step, "images": images, "saved_at": time.time(), **facts}
        self._thread = threading.Thread(target=self._run, args=(staged, manifest, outcome), name="save", daemon=True)
        self._thread.start()

    def is_saving(self) -> bool:
        """Whether this rank is still writing its part of a checkpoint."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the save in flight.

        Raises:
            NoProgressError: if too many saves in a row have failed.
            UserError: if this process holds the storage no more.
        """
        if self._thread is not None:
            wait_together(self._world, self._thread, "a save", failing=lambda: self._error is not None)
            self._thread = None
            if self._error is not None:
                raise self._error
            self._act_on_outcome()

    def wait_after_error(self) -> bool:
        """Give a save in flight some time to end. Without its peers it may never end.

        Returns:
            Whether the save is lost.
        """
        deadline = time.monotonic() + LAST_SECONDS
        for thread in (self._preallocating, self._thread):
            if thread is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
        return self._error is not None

    def finish(self, stop_requested: Callable[[], bool] = lambda: False) -> None:
        """Wait for the save and the upload in flight, and release the claims. Raises as ``join`` does.

        Args:
            stop_requested: whether this rank was told to stop. Then a slow upload is left to the next start, because
                the process will soon be killed; the checkpoint itself is safe.
        """
        self.join()
        if self._preallocating is not None:
            self._preallocating.join()
        started = time.monotonic()
        uploaded = wait_together(
            self._world,
            None if self._uploader is None else self._uploader.finish(),
            "the last upload",
            enough=lambda: stop_requested() and time.monotonic() - started >= UPLOAD_SECONDS,
        )
        if not uploaded:
            self._log("told to stop: the unfinished upload is left to the next start")
        if self._world.is_main:
            self._committer.release()

    def close(self) -> None:
        """Let the upload thread end after the newest checkpoint, without waiting for it."""
        if self._uploader is not None:
            self._uploader.finish()

    def take_metrics(self) -> Iterator[Metrics]:
        """Metrics of each save and upload that has ended since the last call."""
        while self._metrics:
            yield self._metrics.popleft()

    def _check(self, step: int, size: int) -> tuple[bool, str | None]:
        """Whether the step is saved already, and why it cannot be saved. On rank 0."""
        try:
            if self._committer.has_saved(step):
                return True, None
            free = self._free_bytes = self.storage.free_bytes()
        except Exception as error:  # clients of object stores raise errors of their own kinds
            return False, one_line(error, 300)
        need = size * OVERHEAD + SPARE_BYTES
        if free is not None and free < need:
            return False, f"it takes {need / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free in {self.storage}"
        return False, None

    def _run(self, staged: State, manifest: dict[str, Any], outcome: Outcome) -> None:
        """Write and commit the copy. The body of the thread, on all ranks."""
        started = time.monotonic()
        try:
            with saving():
                problem, must_stop = self._committer.commit(staged, manifest)
            seconds = time.monotonic() - started
            self._record(replace(outcome, seconds=seconds, problem=problem, must_stop=must_stop))
        except BaseException as error:  # the other ranks are gone; ``join`` raises it
            self._error = error

    def _record(self, outcome: Outcome) -> None:
        """Keep the outcome of a save for ``join``, collect its metrics, and log a failure."""
        self._outcome = outcome
        values = {"run/checkpoint_blocked_seconds": outcome.blocked_seconds}
        if outcome.free_bytes is not None:
            values["run/checkpoint_free_bytes"] = float(outcome.free_bytes)
        if outcome.problem is not None:
            self._log(Warned(f"checkpoint of step {outcome.step} was not saved: {outcome.problem}"))
            self._count(outcome.step, outcome.images, "run/checkpoint_failures", values)
            return
        values |= {"run/checkpoint_seconds": outcome.seconds, "run/checkpoint_bytes": float(outcome.bytes)}
        values["run/checkpoint_images"] = float(outcome.images)
        self._count(outcome.step, outcome.images, "run/checkpoint_saves", values)

    def _count(self, step: int, images: int, tag: str, values: Mapping[str, float] = MappingProxyType({})) -> None:
        """Collect metrics of an ended save or upload, with the number of those; in any thread."""
        self._counts[tag] += 1
        self._metrics.append((step, images, {**values, tag: float(self._counts[tag])}))

    def _act_on_outcome(self) -> None:
        """Count failures in a row, and end the run if it must end. All ranks call it at the same point of the run."""
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        if outcome.must_stop:
            raise UserError(f"{outcome.problem}; this process stops")
        if outcome.problem is None:
            self._failures_in_a_row, self.saved_step = 0, outcome.step
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._max_failures:
            raise NoProgressError(
                f"{self._failures_in_a_row} checkpoints in a row could not be saved; {self._newest_left()}. "
                "Make room, or mend what the lines above name; then the same command goes on from there"
            )

    def _newest_left(self) -> str:
        """The newest earlier checkpoint, in words. Whatever kept the saves from success may have removed it."""
        try:
            found = step_directories(self.storage)
        except Exception as error:  # clients of object stores raise errors of their own kinds
            return f"{self.storage} cannot be listed: {one_line(error, 300)}"
        return f"the newest one in {self.storage} is {found[-1][1]}" if found else f"none is left in {self.storage}"
