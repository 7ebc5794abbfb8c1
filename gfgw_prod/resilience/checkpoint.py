"""Checkpoints: written by torch.distributed.checkpoint beside the old ones, real once their manifest is in place.

``<run>/checkpoints/step-00001234/`` holds DCP's shards and ``manifest.json``, which names every file with its size and
SHA-256. A save goes into a ``.pending-*`` directory; the manifest is written last, then the directory is renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.exit_codes import UserError

MANIFEST = "manifest.json"
FORMAT = 1
FACTS = {
    *("step", "images", "saved_at", "config", "data_fingerprint", "frozen_weights", "packages", "arithmetic"),
    *("changes", "image_shape", "num_classes"),
}
LOCK_SECONDS = 10.0  # how long a run waits for a predecessor that is on its way out
State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimisation steps made."""
        return int(self.manifest["step"])

    @property
    def images(self) -> int:
        """Images seen."""
        return int(self.manifest["images"])

    def problem(self) -> str | None:
        """What is wrong with its files, or ``None`` if every one has its size and SHA-256."""
        for name, expected in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} does not match its SHA-256"
        return None

    def tensors(self, *prefixes: str) -> State:
        """Whole tensors whose names start with one of the prefixes, on the CPU, without a process group."""
        from torch.distributed.checkpoint import FileSystemReader, load
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        reader = FileSystemReader(self.path)
        state: State = {}
        for name, entry in reader.read_metadata().state_dict_metadata.items():
            if name.startswith(prefixes) and isinstance(entry, TensorStorageMetadata):
                state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        with _quiet():
            load(state, storage_reader=reader, no_dist=True)
        return state


def read(path: Path) -> Checkpoint | None:
    """The checkpoint in a directory, or ``None`` if it has no manifest of this format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["format"] == FORMAT and manifest.keys() >= FACTS and ".metadata" in manifest["files"]
        hashed = all({"bytes", "sha256"} <= entry.keys() for entry in manifest["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Checkpoint(path, manifest) if whole and hashed else None


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Committed checkpoints of a run, oldest first; directories without a manifest are none."""
    found = (read(path) for path in sorted((run_dir / "checkpoints").glob("step-*")))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def prepare_directory(run_dir: Path) -> TextIO:
    """Makes the run directory and removes what killed saves left there.

    Returns:
        The directory's lock, held until the file is closed or the process ends.

    Raises:
        UserError: if it is a file, cannot be written or is in use by another process.
    """
    place = run_dir / "checkpoints"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run.dir {run_dir} is, or lies under, a file; name a directory") from None
    except OSError as error:
        raise UserError(f"run.dir {run_dir} cannot be made ({error.strerror})") from None
    if not all(os.access(path, os.W_OK | os.X_OK) for path in (run_dir, place)):
        raise UserError(f"run.dir {run_dir} cannot be written")
    lock = _locked(run_dir / ".lock", run_dir)
    for leftover in place.glob(".pending-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return lock


def _locked(path: Path, run_dir: Path) -> TextIO:
    file = path.open("w")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                file.close()
                raise UserError(f"run.dir {run_dir} is in use by another process; name another directory") from None
            time.sleep(0.2)
        else:
            return file


def newest_good(run_dir: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose every file matches its hash.

    Damaged ones are renamed to ``damaged-*``, so that the step can be saved again, and reported in a line each.
    """
    for path in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        found = read(path)
        problem = found.problem() if found is not None else f"{MANIFEST} is missing or unreadable"
        if problem is None:
            return found
        kept = path.with_name(f"damaged-{path.name}-{time.time_ns()}")
        path.rename(kept)
        report(f"checkpoint {path.name} is damaged ({problem}); kept as {kept.name}, trying the one before")
    return None


def save(
    run_dir: Path, state: State, world: World, *, step: int, images: int, facts: dict[str, Any], keep: int
) -> None:
    """Writes a checkpoint. Collective. A checkpoint of the same step is left as it is.

    Args:
        state: tensors and DTensors by name; replicated tensors are written once.
        facts: JSON for the manifest (configuration, data fingerprint).
    """
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint import save as write

    final = run_dir / "checkpoints" / f"step-{step:08d}"
    if world.share(final.exists()):
        return
    pending = Path(world.share(str(final.with_name(f".pending-{final.name}-{os.getpid()}-{time.time_ns()}"))))
    with _quiet():
        write(state, storage_writer=FileSystemWriter(pending), no_dist=world.world_size == 1)
    if world.is_main:
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(pending.iterdir())
        }
        manifest = {"format": FORMAT, "step": step, "images": images, "saved_at": time.time(), "files": files, **facts}
        _write_synced(pending / MANIFEST, json.dumps(manifest, indent=1))
        _sync_directory(pending)
        pending.rename(final)
        _sync_directory(final.parent)
        _retain(run_dir, keep)
    world.barrier()


def load(checkpoint: Checkpoint, state: State, world: World) -> None:
    """Fills the tensors of ``state`` in place, on any number of ranks. Collective.

    Raises:
        UserError: if names or shapes differ, that is, if the checkpoint is of another architecture.
    """
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint import load as fill

    reader = FileSystemReader(checkpoint.path)
    stored = reader.read_metadata().state_dict_metadata
    for name, tensor in state.items():
        size = getattr(stored.get(name), "size", None)
        if size != tensor.shape:
            held = "nothing" if size is None else tuple(size)
            raise UserError(
                f"{checkpoint.path} is of another architecture: {name} is {tuple(tensor.shape)} here, {held} there"
            )
    with _quiet():
        fill(state, storage_reader=reader, no_dist=world.world_size == 1)


def weights_digest(tensors: State) -> str:
    """SHA-256 over names, shapes and bytes of whole tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns of working without a process group, which a run alone means to, and of its own use of old torch API."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield


def _retain(run_dir: Path, keep: int) -> None:
    for checkpoint in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
