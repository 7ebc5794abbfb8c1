"""Saves in the background: the state is copied, then written, hashed and committed while training goes on."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gfgw_prod.checkpoint.finding import open_checkpoint, step_directories, step_name
from gfgw_prod.checkpoint.manifest import encode
from gfgw_prod.checkpoint.reading import Checkpoint, State
from gfgw_prod.checkpoint.retention import retain
from gfgw_prod.checkpoint.staging import Stage, tensor_bytes
from gfgw_prod.checkpoint.storage import MANIFEST, Storage
from gfgw_prod.checkpoint.storages import claim_storage
from gfgw_prod.checkpoint.uploading import News, Uploader
from gfgw_prod.checkpoint.waiting import SLOWEST, wait_together
from gfgw_prod.checkpoint.writing import HashingWriter
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import NoProgressError, UserError, one_line
from gfgw_prod.weights.unpickling import DamagedError

if TYPE_CHECKING:
    from gfgw_prod.settings.running import CheckpointSettings

T = TypeVar("T")
LAST_SECONDS = 20.0  # for a save in flight when training has failed
UPLOAD_SECONDS = 5.0  # for the last upload of a run that is told to stop
FILES = 4  # of a rank, written and hashed side by side
OVERHEAD = 1.02  # DCP's files over the tensors in them
SPARE_BYTES = 1 << 20  # for the small files


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on all ranks."""

    step: int
    images: int
    blocked_seconds: float  # of training
    seconds: float = 0.0
    bytes: int = 0  # of the tensors
    free_bytes: int | None = None  # before it, where that can be told; on rank 0
    problem: str | None = None
    superseded: bool = False


class Saver:
    """Writes a run's checkpoints, one at a time. ``save``, ``join`` and ``finish`` are collective.

    Args:
        storages: where checkpoints are kept, and where they are uploaded to, if they are.
        report: says a line.
        constant: names of the state's tensors that never change, which are written without a copy.
    """

    def __init__(
        self,
        settings: CheckpointSettings,
        storages: Sequence[Storage],
        world: World,
        report: Callable[[str], None],
        constant: Collection[str] = (),
    ):
        self.storage, *upload_to = storages
        self.world = world
        self.saved_step: int | None = None  # of the last committed checkpoint
        self._keep, self._keep_every = settings.keep, round(settings.keep_every_kimg * 1000)
        self._max_failures, self._report = settings.max_failures, report
        self._uploader: Uploader | None = None
        token = world.together(lambda: claim_storage(upload_to[0]) if upload_to and world.is_main else "")
        if token:
            self._uploader = Uploader(
                self.storage, upload_to[0], token, keep=self._keep, keep_every_images=self._keep_every, report=report
            )
        self._stage = Stage(world, constant)
        self._group = world.background_group(SLOWEST)
        self._token: str = world.broadcast(world.together(lambda: claim_storage(self.storage) if world.is_main else ""))
        self._verified: set[str] = set()  # names of what was read back
        self._thread: threading.Thread | None = None
        self._preallocating: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._broken: BaseException | None = None
        self._failures_in_a_row = 0
        self._free_bytes: int | None = None
        self._counts = {"run/checkpoint_saves": 0.0, "run/checkpoint_failures": 0.0}
        self._news: deque[News] = deque()
        # Once and for all, not around the calls: filters belong to the process, and the calls are made in a thread.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")

    def resume_from(self, found: Checkpoint) -> None:
        """Takes up where a checkpoint was left, which was verified, and may not have been uploaded."""
        if str(found.storage) != str(self.storage):
            return
        self.saved_step = found.step
        self._verified.add(found.name)
        if self._uploader is not None:
            self._uploader.offer(found)

    def preallocate(self, state: State) -> None:
        """Makes the memory for copies of the state in the background: fresh memory takes longer than the copy."""
        self._preallocating = threading.Thread(
            target=self._stage.preallocate, args=(state,), name="preallocate", daemon=True
        )
        self._preallocating.start()

    def save(self, state: State, *, step: int, images: int, facts: dict[str, Any]) -> None:
        """Copies the state, and writes it in the background. A step that is saved already is left as it is.

        Args:
            state: tensors and DTensors by name.
            facts: JSON for the manifest.

        Raises:
            NoProgressError: if too many saves in a row have failed.
            UserError: if another process writes this run now.
        """
        started = time.monotonic()
        self.join()
        exists, problem = self.world.broadcast(self._examine(step, state) if self.world.is_main else (False, None))
        if exists:
            self.saved_step = step
            return
        if problem is not None:
            self._end(Outcome(step, images, time.monotonic() - started, problem=problem))
            self._settle()
            return
        if self._preallocating is not None:
            self._preallocating.join()
            self._preallocating = None
        staged = self._stage.copy(state)
        size = sum(map(tensor_bytes, state.values()))
        begun = Outcome(step, images, time.monotonic() - started, bytes=size, free_bytes=self._free_bytes)
        manifest = {"step": step, "images": images, "saved_at": time.time(), **facts}
        self._thread = threading.Thread(target=self._run, args=(staged, manifest, begun), name="save", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the save in flight.

        Raises:
            NoProgressError: if too many saves in a row have failed.
            UserError: if another process writes this run now.
        """
        if self._thread is not None:
            wait_together(self.world, self._thread, "a save", leaves=lambda: self._broken is not None)
            self._thread = None
            if self._broken is not None:
                raise self._broken
            self._settle()

    def wait_after_error(self) -> None:
        """After an error: lets a save in flight end, for a while; without its peers it may never."""
        deadline = time.monotonic() + LAST_SECONDS
        for thread in (self._preallocating, self._thread):
            if thread is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))

    def finish(self, told_to_stop: Callable[[], bool] = lambda: False) -> None:
        """Waits for all that is still being written and uploaded; raises as ``join`` does.

        Args:
            told_to_stop: whether this rank was. Then what is saved is safe, and an upload that takes long is left to
                the next start: the time until the process is killed is short.
        """
        self.join()
        if self._preallocating is not None:
            self._preallocating.join()
        begun = time.monotonic()
        uploaded = wait_together(
            self.world,
            None if self._uploader is None else self._uploader.finish(),
            "the last upload",
            enough=lambda: told_to_stop() and time.monotonic() - begun >= UPLOAD_SECONDS,
        )
        if not uploaded:
            self._report("told to stop: what is not uploaded yet is left to the next start")
        if self.world.is_main:
            self.storage.release(self._token)

    def take_metrics(self) -> Iterator[News]:
        """What has ended since the last call: step, images and metrics by tag."""
        while self._news:
            yield self._news.popleft()
        if self._uploader is not None:
            yield from self._uploader.take_metrics()

    def _settle(self) -> None:
        """Draws the consequences of a save; all ranks do so at the same point of the run."""
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        if outcome.superseded:
            by = self.storage.owner()
            who = f"process {by.get('pid')} on {by.get('host')}" if by else "another process"
            raise UserError(f"{who} has taken over {self.storage}; this one stops, and leaves the run to it")
        if outcome.problem is None:
            self._failures_in_a_row, self.saved_step = 0, outcome.step
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._max_failures:
            raise NoProgressError(
                f"{self._failures_in_a_row} checkpoints in a row could not be saved; "
                f"those in {self.storage} are as they were"
            )

    def _examine(self, step: int, state: State) -> tuple[bool, str | None]:
        """Whether the step is saved already, and what speaks against saving it. On rank 0."""
        try:
            for name in [name for found, name in step_directories(self.storage) if found == step]:
                try:
                    whole = open_checkpoint(self.storage, name).problem() is None
                except DamagedError:
                    whole = False
                if whole:
                    return True, None
                self.storage.quarantine(name)
            free = self._free_bytes = self.storage.free_bytes()
        except Exception as error:  # a storage raises what it likes
            return False, one_line(error, 300)
        need = sum(map(tensor_bytes, state.values())) * OVERHEAD + SPARE_BYTES
        if free is not None and free < need:
            return False, f"it takes {need / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free in {self.storage}"
        return False, None

    def _run(self, staged: State, manifest: dict[str, Any], begun: Outcome) -> None:
        """The thread: writes on all ranks, commits on rank 0, and lets all know how it ended."""
        started = time.monotonic()
        try:
            problem, superseded = self._write(staged, manifest)
            self._end(replace(begun, seconds=time.monotonic() - started, problem=problem, superseded=superseded))
        except BaseException as error:  # the connection to the other ranks has gone; ``join`` raises it
            self._broken = error

    def _write(self, staged: State, manifest: dict[str, Any]) -> tuple[str | None, bool]:
        """Writes and commits a checkpoint. Collective, over a group that nothing else uses."""
        from torch.distributed.checkpoint import CheckpointException
        from torch.distributed.checkpoint import save as write

        name = step_name(manifest["step"])
        path, problem = self._from_main(lambda: self.storage.begin(name, self._token))
        if path is not None:
            writer = HashingWriter(self.storage, path, files=max(min(FILES, len(staged)), 1))
            try:
                write(staged, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            except CheckpointException as failed:  # on all ranks, whichever it was
                rank, (error, _) = min(failed.failures.items())
                problem = (f"rank {rank}: " if self.world.world_size > 1 else "") + one_line(error, 300)
            files = {
                key: entry
                for each in self.world.all_gather_object(writer.written(), self._group)
                for key, entry in each.items()
            }
            if problem is None:
                _, problem = self._from_main(lambda: self._commit(path, {**manifest, "files": files}))
        if problem is None:
            return None, False
        if path is not None:
            self._from_main(lambda: self.storage.remove(path))
        held, _ = self._from_main(lambda: self.storage.holds(self._token))
        return problem, held is False

    def _commit(self, path: str, manifest: dict[str, Any]) -> None:
        """Makes what was written a checkpoint, and lets go of old ones. On rank 0."""
        if not self.storage.holds(self._token):
            raise OSError("another process has claimed the run")
        for file, entry in manifest["files"].items():
            if self.storage.size(f"{path}/{file}") != entry["bytes"]:
                raise OSError(f"rank 0 does not see {file} as it was written: all ranks must share {self.storage}")
        self.storage.write(f"{path}/{MANIFEST}", encode(manifest))
        name = self.storage.commit(path, step_name(manifest["step"]))
        try:  # it is saved: what fails from here on is told, and not taken for a failed save
            spare: tuple[str | None, ...] = (name,)
            if self._uploader is not None:
                self._uploader.offer(Checkpoint(self.storage, name, manifest))
                spare = (self._uploader.uploading, name)
            retain(self.storage, self._keep, self._keep_every, self._verified, spare=spare)
        except Exception as error:  # a storage raises what it likes
            self._report(f"old checkpoints in {self.storage} could not be removed: {one_line(error, 300)}")

    def _end(self, outcome: Outcome) -> None:
        """Tells of a save, as soon as it has ended."""
        self._outcome = outcome
        values = {"run/checkpoint_blocked_seconds": outcome.blocked_seconds}
        if outcome.problem is None:
            tag = "run/checkpoint_saves"
            values |= {"run/checkpoint_seconds": outcome.seconds, "run/checkpoint_bytes": float(outcome.bytes)}
            values["run/checkpoint_images"] = float(outcome.images)
        else:
            tag = "run/checkpoint_failures"
            self._report(f"checkpoint of step {outcome.step} was not saved: {outcome.problem}")
        if outcome.free_bytes is not None:
            values["run/checkpoint_free_bytes"] = float(outcome.free_bytes)
        self._counts[tag] += 1
        self._news.append((outcome.step, outcome.images, values | {tag: self._counts[tag]}))

    def _from_main(self, action: Callable[[], T]) -> tuple[T | None, str | None]:
        """Rank 0's result of an action and what went wrong with it, on all ranks."""
        answer: tuple[T | None, str | None] = (None, None)
        if self.world.is_main:
            try:
                answer = action(), None
            except Exception as error:  # a storage raises what it likes
                answer = None, one_line(error, 300)
        return self.world.broadcast(answer, self._group)
