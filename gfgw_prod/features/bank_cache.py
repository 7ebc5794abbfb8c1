"""Encoded banks on disk, reused by later runs with the same data, extractor and arithmetic on any number of ranks.

A file holds one block of the bank's rows, which does not depend on the number of ranks. It is written atomically, and
its hash is checked when it is read: cached rows are the bits that encoding would give. An interrupted encoding resumes
from the blocks already written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3
from torch import Tensor

from gfgw_prod.process.durable import clear_partials, write_whole
from gfgw_prod.process.exit_codes import UserError, reason_of
from gfgw_prod.process.standard_streams import Warned

if TYPE_CHECKING:
    from gfgw_prod.settings.config import Config


class BankCache:
    """Cached blocks of one bank, in a directory of its own; logs blocks that are damaged or cannot be written."""

    def __init__(self, directory: Path, log: Callable[[str], None]):
        self.directory, self._log, self._writable = directory, log, True

    @classmethod
    def of(cls, config: Config, facts: dict[str, Any], log: Callable[[str], None]) -> BankCache | None:
        """The cache of a run's bank, from its ``same_run.run_facts``, or ``None`` without ``features.cache``.

        Raises:
            UserError: if the directory cannot be written.
        """
        root = config.features.cache
        if root is None:
            return None
        key: dict[str, Any] = {
            "data_fingerprint": facts["data_fingerprint"],
            # All settings of features except paths, so that a setting added later cannot match rows encoded without it.
            "features": config.features.model_dump(mode="json", exclude={"cache", "weights"}),
            "weights": facts["frozen_weights"][0],
            "precision": "fp32, no TF32",  # of the bank; training's may differ
            # Everything else that changes a row's bits.
            "compile": config.train.compile,
            "threads": config.run.threads,
            "packages": facts["packages"],
            "arithmetic": facts["arithmetic"],
        }
        description = json.dumps(key, indent=1, sort_keys=True).encode()
        directory = root / hashlib.sha256(description).hexdigest()[:32]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for bank in root.glob("[0-9a-f]" * 32):
                clear_partials(bank)
            if not (directory / "bank.json").exists():
                write_whole(directory / "bank.json", description)
        except OSError as error:
            raise UserError(f"features.cache {root} cannot be written ({reason_of(error)}); name a directory") from None
        return cls(directory, log)

    def read(self, block: int, like: Tensor) -> Tensor | None:
        """Rows of a block, with shape and dtype of ``like``; ``None`` if the file is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        path = self._path(block)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                rows: Tensor = file.get_tensor("rows")
                expected = (file.metadata() or {}).get("blake3")
        except (OSError, SafetensorError) as error:
            self._log(Warned(f"features.cache: {path} cannot be read ({reason_of(error)}); encoding its rows again"))
            return None
        if rows.shape != like.shape or rows.dtype != like.dtype or _digest(rows) != expected:
            self._log(Warned(f"features.cache: {path} is damaged; encoding its rows again"))
            return None
        return rows

    def write(self, block: int, rows: Tensor) -> None:
        """Write rows of a block; after the first failure, write no more."""
        from safetensors.torch import save

        if not self._writable:
            return
        rows = rows.cpu().contiguous()
        try:
            write_whole(self._path(block), save({"rows": rows}, {"blake3": _digest(rows)}))
        except OSError as error:
            self._writable = False
            self._log(
                Warned(f"features.cache: {self.directory} cannot be written ({reason_of(error)}); the bank is not kept")
            )

    def _path(self, block: int) -> Path:
        return self.directory / f"rows-{block:05d}.safetensors"


def _digest(rows: Tensor) -> str:
    return blake3(rows.flatten().view(torch.uint8).numpy().data).hexdigest()
