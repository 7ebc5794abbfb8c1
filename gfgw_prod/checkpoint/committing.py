"""Write a staged state into a new directory and commit it as a checkpoint. Runs in the background on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gfgw_prod.checkpoint.finding import is_good, step_directories, step_name
from gfgw_prod.checkpoint.manifest import encode
from gfgw_prod.checkpoint.reading import Checkpoint, State
from gfgw_prod.checkpoint.retention import Retention
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.checkpoint.storages import claim_storage
from gfgw_prod.checkpoint.uploading import Uploader
from gfgw_prod.checkpoint.writing import HashingWriter
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import one_line
from gfgw_prod.process.standard_streams import Warned

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
THREADS = 4  # of a rank, each of which writes and hashes a file


class Committer:
    """Holds the claim on a storage and commits checkpoints to it.

    Args:
        group: process group that nothing else uses; ``None`` for a single rank.

    Raises:
        UserError: if nothing can be written to the storage.
    """

    def __init__(
        self,
        storage: Storage,
        world: World,
        group: ProcessGroup | None,
        retention: Retention,
        uploader: Uploader | None,
        log: Callable[[str], None],
    ):
        self._storage, self._world, self._group = storage, world, group
        self._retention, self._uploader, self._log = retention, uploader, log
        self._token: str = world.broadcast(world.on_all_ranks(lambda: claim_storage(storage) if world.is_main else ""))

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Take a verified checkpoint as the newest of this storage, and upload it if that is still to be done."""
        self._retention.verified.add(checkpoint.name)
        if self._uploader is not None:
            self._uploader.offer(checkpoint)

    def has_saved(self, step: int) -> bool:
        """Whether a good checkpoint of the step exists. Damaged ones are quarantined. On rank 0."""
        for name in [name for found, name in step_directories(self._storage) if found == step]:
            if is_good(self._storage, name):
                return True
            self._storage.quarantine(name)
        return False

    def commit(self, staged: State, manifest: dict[str, Any]) -> tuple[str | None, bool]:
        """Write this rank's part of the state, and commit the checkpoint of all ranks. Collective.

        Returns:
            What went wrong, if anything did, and whether this process must stop: it does not hold the storage any more.
        """
        from torch.distributed.checkpoint import CheckpointException
        from torch.distributed.checkpoint import save as dcp_save

        path, problem = self._on_main(lambda: self._storage.begin(step_name(manifest["step"]), self._token))
        if path is not None:
            writer = HashingWriter(self._storage, path, threads=max(min(THREADS, len(staged)), 1))
            try:
                dcp_save(staged, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            except CheckpointException as failed:  # raised on all ranks
                rank, (error, _) = min(failed.failures.items())
                problem = (f"rank {rank}: " if self._world.world_size > 1 else "") + one_line(error, 300)
            by_rank = self._world.all_gather_object(writer.written(), self._group)
            if problem is None:
                files = {name: entry for written in by_rank for name, entry in written.items()}
                _, problem = self._on_main(lambda: self._publish(path, {**manifest, "files": files}))
        if problem is None:
            return None, False
        if path is not None:
            self._on_main(lambda: self._storage.remove(path))
        lost, _ = self._on_main(self._why_lost)
        return (problem, False) if lost is None else lost

    def release(self) -> None:
        """Give up the claim at the end of a run. On rank 0."""
        self._storage.release(self._token)

    def _publish(self, path: str, manifest: dict[str, Any]) -> None:
        """Turn a written directory into a checkpoint, offer it for upload, and remove old ones. On rank 0."""
        for file, entry in manifest["files"].items():
            if self._storage.size(f"{path}/{file}") != entry["bytes"]:
                raise OSError(f"rank 0 does not see {file} as it was written: all ranks must share {self._storage}")
        name = self._storage.commit(path, step_name(manifest["step"]), encode(manifest), self._token)
        try:  # the save has succeeded: later errors are only logged
            if self._uploader is not None:
                self._uploader.offer(Checkpoint(self._storage, name, manifest))
            self._retention.apply(name, None if self._uploader is None else self._uploader.uploading)
        except Exception as error:  # clients of object stores raise errors of their own kinds
            self._log(Warned(f"old checkpoints in {self._storage} could not be removed: {one_line(error, 300)}"))

    def _why_lost(self) -> tuple[str, bool] | None:
        """Why the claim is gone, if it is, and whether a later claim may be the cause. On rank 0.

        Nothing is made again where everything is gone: that may be the mount point of a lost volume.
        """
        storage = self._storage
        if storage.holds(self._token):
            return None
        if owner := storage.owner():
            return f"process {owner.get('pid')} on {owner.get('host')} has taken over {storage}", True
        if storage.names():
            return f"the claim on {storage} is gone: a later process has removed it, or somebody else", True
        return f"{storage} is empty or gone: was it removed, or unmounted?", False

    def _on_main(self, action: Callable[[], T]) -> tuple[T | None, str | None]:
        """Run an action on rank 0; return its result, or what went wrong with it, on all ranks. Collective."""
        answer: tuple[T | None, str | None] = (None, None)
        if self._world.is_main:
            try:
                answer = action(), None
            except Exception as error:  # clients of object stores raise errors of their own kinds
                answer = None, one_line(error, 300)
        return self._world.broadcast(answer, self._group)
