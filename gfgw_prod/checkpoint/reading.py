"""Verify a checkpoint's files and read its tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    """A committed checkpoint and its manifest."""

    storage: Storage
    name: str
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.storage}/{self.name}"

    @property
    def step(self) -> int:
        """Optimiser steps of the run up to here."""
        return int(self.manifest["step"])

    @property
    def images(self) -> int:
        """Images seen."""
        return int(self.manifest["images"])

    @property
    def regular(self) -> bool:
        """Whether it was saved at the regular interval, not because the run was interrupted."""
        return bool(self.manifest.get("regular", True))

    @property
    def streak_from(self) -> int:
        """The last step before the present streak of bad steps; its own step if there is no streak."""
        return int(self.manifest.get("streak_from", self.step))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())

    def problem(self, part: int = 0, parts: int = 1, on_bytes: Callable[[int], None] = lambda more: None) -> str | None:
        """Describe what is wrong with the files; ``None`` if all sizes and hashes match and ``.metadata`` is readable.

        Args:
            part: which of ``parts`` shares of the files to hash. The sizes of all files are checked.
            on_bytes: called with the number of bytes hashed since the last call, from several threads.
        """
        try:
            return self.size_problem() or self._content_problem(part, parts, on_bytes)
        except OSError as error:
            return f"{UNREADABLE} ({one_line(error, 200)})"

    def size_problem(self) -> str | None:
        """Name a file that is missing or has the wrong size, or return ``None``."""
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
        """Read DCP's ``.metadata``: names, shapes and places of the tensors.

        Raises:
            DamagedError: if its hash differs, it refers to code, or it names files that the manifest does not list.
        """
        content = self.storage.read(f"{self.name}/{METADATA}")
        if blake3(content).hexdigest() != self.manifest["files"][METADATA]["blake3"]:
            raise DamagedError("does not match its hash")
        found = read_metadata(content)
        try:
            unlisted = {info.relative_path for info in found.storage_data.values()} - self.manifest["files"].keys()
        except (AttributeError, TypeError):
            raise DamagedError("does not say where the tensors are") from None
        if unlisted:
            raise DamagedError(f"names {min(map(str, unlisted))}, which the manifest does not list")
        return found

    def read_tensors(self, *prefixes: str) -> State:
        """Read the whole tensors whose names start with one of the prefixes, to the CPU, without a process group."""
        from torch.distributed.checkpoint import load
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        reader = _reader(self)
        state: State = {}
        for name, entry in reader.read_metadata().state_dict_metadata.items():
            if name.startswith(prefixes) and isinstance(entry, TensorStorageMetadata):
                state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        silence_dcp()
        load(state, storage_reader=reader, no_dist=True)
        return state

    def load(self, state: State, world: World) -> None:
        """Fill the tensors of ``state`` in place, on any number of ranks. Collective.

        Raises:
            UserError: if a tensor's name or shape differs: the checkpoint is of another architecture.
        """
        from torch.distributed.checkpoint import load as dcp_load

        reader = _reader(self)
        stored = reader.read_metadata().state_dict_metadata
        for name, tensor in state.items():
            size = getattr(stored.get(name), "size", None)
            if size != tensor.shape:
                stored_shape = "missing" if size is None else tuple(size)
                raise UserError(
                    f"{self} is of another architecture: {name} is {stored_shape} in it, {tuple(tensor.shape)} here"
                )
        silence_dcp()
        dcp_load(state, storage_reader=reader, no_dist=world.world_size == 1)


def _reader(checkpoint: Checkpoint) -> Any:
    """A DCP reader over our storage that never unpickles unverified bytes."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            found = checkpoint.read_metadata()
            found.storage_meta = StorageMeta(load_id=self.load_id)
            return found

    reader = Reader(checkpoint.name)
    reader.fs = checkpoint.storage  # type: ignore[assignment]  # annotated as FileSystem, works with any
    reader.path = checkpoint.name
    return reader


def _blake3(storage: Storage, path: str, on_bytes: Callable[[int], None]) -> str:
    digest, block = blake3(), bytearray(BLOCK)
    with storage.create_stream(path, "rb") as stream:
        while count := stream.readinto(block):  # type: ignore[attr-defined]
            digest.update(memoryview(block)[:count])
            on_bytes(count)
    return digest.hexdigest()


def silence_dcp() -> None:
    """Silence DCP's warnings about a missing process group, which is intended, and about its own deprecated calls.

    For the rest of the process, and not around each call: filters belong to the process, and saves run in a thread.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
