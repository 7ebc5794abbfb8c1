"""Checkpoints as they are found: listed, verified file by file, read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from gfgw_prod.checkpoint.manifest import METADATA
from gfgw_prod.checkpoint.storage import BLOCK, Storage
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.weights.unpickling import DamagedError, read_metadata

UNREADABLE = "cannot be read"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint and what its manifest says."""

    storage: Storage
    name: str
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.storage}/{self.name}"

    @property
    def step(self) -> int:
        """Optimisation steps made."""
        return int(self.manifest["step"])

    @property
    def images(self) -> int:
        """Images seen."""
        return int(self.manifest["images"])

    @property
    def regular(self) -> bool:
        """Whether its step is one at which every run of these settings saves, wherever it is interrupted."""
        return bool(self.manifest.get("regular", True))

    @property
    def streak_from(self) -> int:
        """The step after which a streak of bad steps began that had not ended; its own where there was none."""
        return int(self.manifest.get("streak_from", self.step))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())

    def problem(self, part: int = 0, parts: int = 1, on_bytes: Callable[[int], None] = lambda more: None) -> str | None:
        """What is wrong with its files, or ``None`` if every one has its size and hash, and DCP's account can be read.

        Args:
            part: which of ``parts`` equal shares of the files to hash; all are looked at.
            on_bytes: how many bytes more were hashed; by several threads.
        """
        try:
            return self.size_problem() or self._content_problem(part, parts, on_bytes)
        except OSError as error:
            return f"{UNREADABLE} ({one_line(error, 200)})"

    def size_problem(self) -> str | None:
        """Which file is missing or of another size, or ``None``."""
        for name, expected in self.manifest["files"].items():
            size = self.storage.size(f"{self.name}/{name}")
            if size is None:
                return f"{name} is missing"
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']}"
        return None

    def _content_problem(self, part: int, parts: int, on_bytes: Callable[[int], None]) -> str | None:
        files = self.manifest["files"]
        mine = sorted(files, key=lambda name: (-files[name]["bytes"], name))[part::parts]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(lambda name: _blake3(self.storage, f"{self.name}/{name}", on_bytes), mine))
        for name, digest in zip(mine, digests, strict=True):
            if digest != files[name]["blake3"]:
                return f"{name} does not match its hash"
        try:
            self.read_metadata()
        except DamagedError as damage:
            return f"{METADATA}: {damage}"
        return None

    def read_metadata(self) -> Any:
        """DCP's account of the tensors.

        Raises:
            DamagedError: if it is not the one that was written, asks for code, or names files that are not listed.
        """
        content = self.storage.read(f"{self.name}/{METADATA}")
        if blake3(content).hexdigest() != self.manifest["files"][METADATA]["blake3"]:
            raise DamagedError("does not match its hash")
        found = read_metadata(content)
        try:
            strangers = {info.relative_path for info in found.storage_data.values()} - self.manifest["files"].keys()
        except (AttributeError, TypeError):
            raise DamagedError("does not say where tensors are") from None
        if strangers:
            raise DamagedError(f"names {min(map(str, strangers))}, which the manifest does not")
        return found

    def read_tensors(self, *prefixes: str) -> State:
        """Whole tensors whose names start with one of the prefixes, on the CPU, without a process group."""
        from torch.distributed.checkpoint import load
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        reader = _reader(self)
        state: State = {}
        for name, entry in reader.read_metadata().state_dict_metadata.items():
            if name.startswith(prefixes) and isinstance(entry, TensorStorageMetadata):
                state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        with _quiet():
            load(state, storage_reader=reader, no_dist=True)
        return state

    def load(self, state: State, world: World) -> None:
        """Fills the tensors of ``state`` in place, on any number of ranks. Collective.

        Raises:
            UserError: if names or shapes differ, that is, if the checkpoint is of another architecture.
        """
        from torch.distributed.checkpoint import load as fill

        reader = _reader(self)
        stored = reader.read_metadata().state_dict_metadata
        for name, tensor in state.items():
            size = getattr(stored.get(name), "size", None)
            if size != tensor.shape:
                held = "nothing" if size is None else tuple(size)
                raise UserError(
                    f"{self} is of another architecture: {name} is {tuple(tensor.shape)} here, {held} there"
                )
        with _quiet():
            fill(state, storage_reader=reader, no_dist=world.world_size == 1)


def _reader(checkpoint: Checkpoint) -> Any:
    """DCP's reader over our storage, which never unpickles what is not verified."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            found = checkpoint.read_metadata()
            found.storage_meta = StorageMeta(load_id=self.load_id)
            return found

    reader = Reader(checkpoint.name)
    reader.fs = checkpoint.storage  # type: ignore[assignment]  # annotated as the local one, used as any
    reader.path = checkpoint.name
    return reader


def _blake3(storage: Storage, path: str, on_bytes: Callable[[int], None]) -> str:
    digest, block = blake3(), bytearray(BLOCK)
    with storage.open(path, "rb") as stream:
        while count := stream.readinto(block):  # type: ignore[attr-defined]
            digest.update(memoryview(block)[:count])
            on_bytes(count)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns of working without a process group, which a run alone means to, and of its own use of old torch API."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield
