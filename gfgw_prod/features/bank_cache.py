"""Encoded banks on disk, for later runs of the same data, extractor and arithmetic, on any number of ranks.

A file holds a block of the bank's rows, the same rows whatever the number of ranks. It is written whole or not at all,
and its hash is checked when it is read: rows from the cache are the bits that encoding would give. What a start that
was cut short has encoded, the next finds.
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

if TYPE_CHECKING:
    from gfgw_prod.settings.config import Config


class BankCache:
    """Blocks of one bank.

    Args:
        place: directory of this bank.
        say: told when a block is damaged, or cannot be kept.
    """

    def __init__(self, place: Path, say: Callable[[str], None]):
        self.place, self._say, self._writes = place, say, True

    @classmethod
    def of(cls, config: Config, facts: dict[str, Any], say: Callable[[str], None]) -> BankCache | None:
        """The cache of a run's bank, if ``features.cache`` names a directory.

        Args:
            facts: what the run's weights are a function of (``same_run.run_facts``).

        Raises:
            UserError: if the directory cannot be made.
        """
        root = config.features.cache
        if root is None:
            return None
        f = config.features
        key: dict[str, Any] = {
            "data_fingerprint": facts["data_fingerprint"],
            # All settings of features but where things are: one that is new must not find rows made without it.
            "features": f.model_dump(mode="json", exclude={"cache", "weights"}),
            "weights": facts["frozen_weights"][0],
            "precision": "fp32",  # of the bank, whatever the precision of training
            # All else that the bits of a row depend on.
            "compile": config.train.compile,
            "threads": config.run.threads,
            "packages": facts["packages"],
            "arithmetic": facts["arithmetic"],
        }
        described = json.dumps(key, indent=1, sort_keys=True).encode()
        place = root / hashlib.sha256(described).hexdigest()[:32]
        try:
            place.mkdir(parents=True, exist_ok=True)
            for bank in root.glob("[0-9a-f]" * 32):
                clear_partials(bank)
            if not (place / "bank.json").exists():
                write_whole(place / "bank.json", described)
        except OSError as error:
            raise UserError(f"features.cache {root} cannot be written ({reason_of(error)}); name a directory") from None
        return cls(place, say)

    def read(self, block: int, like: Tensor) -> Tensor | None:
        """Rows of a block, of the shape of ``like``; ``None`` if they are not there as they were written."""
        from safetensors import SafetensorError, safe_open

        path = self._path(block)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                rows: Tensor = file.get_tensor("rows")
                expected = (file.metadata() or {}).get("blake3")
        except (OSError, SafetensorError) as error:
            self._say(f"features.cache: {path} cannot be read ({reason_of(error)}); encoding its rows again")
            return None
        if rows.shape != like.shape or rows.dtype != like.dtype or _digest(rows) != expected:
            self._say(f"features.cache: {path} is damaged; encoding its rows again")
            return None
        return rows

    def write(self, block: int, rows: Tensor) -> None:
        """Keeps rows of a block, if there is room."""
        from safetensors.torch import save

        if not self._writes:
            return
        rows = rows.cpu().contiguous()
        try:
            write_whole(self._path(block), save({"rows": rows}, {"blake3": _digest(rows)}))
        except OSError as error:
            self._writes = False
            self._say(f"features.cache: {self.place} cannot be written ({reason_of(error)}); the bank is not kept")

    def _path(self, block: int) -> Path:
        return self.place / f"rows-{block:05d}.safetensors"


def _digest(rows: Tensor) -> str:
    return blake3(rows.flatten().view(torch.uint8).numpy().data).hexdigest()
