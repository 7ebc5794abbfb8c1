"""The manifest of a checkpoint: what it is of, and every file with its size and BLAKE3 hash."""

from __future__ import annotations

import json
from typing import Any

from blake3 import blake3

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.weights.unpickling import DamagedError

FORMAT = 4
FACTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("step", "images", "num_classes"), int),
    "saved_at": (int, float),
    **dict.fromkeys(("config", "packages"), dict),
    **dict.fromkeys(("changes", "image_shape", "frozen_weights"), list),
    **dict.fromkeys(("data_fingerprint", "arithmetic"), str),
}
METADATA = ".metadata"  # DCP's own account of its shards


def encode(manifest: dict[str, Any]) -> bytes:
    """The manifest as a file that ends with a hash of its own."""
    whole = {"format": FORMAT, **manifest}
    return json.dumps({**whole, "blake3": _digest(whole)}, indent=1).encode()


def decode(content: bytes) -> dict[str, Any]:
    """What ``encode`` wrote.

    Raises:
        DamagedError: if it is not whole.
        UserError: if it is whole, and of a format that another version of this package writes.
    """
    try:
        manifest = json.loads(content)
        claimed = manifest.pop("blake3", None)
        found = manifest["format"]
        # Format 1 had no hash of its own.
        whole = (claimed is None and found == 1) or claimed == _digest(manifest)
        told = found != FORMAT or _says_enough(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise DamagedError("is unreadable") from None
    if not whole:
        raise DamagedError("does not match its own hash")
    if found != FORMAT:
        raise UserError(
            f"is of format {found}, and this version reads format {FORMAT}; "
            "go on with the version that wrote it, or use another run.dir"
        )
    if not told:
        raise DamagedError("says too little")
    return dict(manifest)


def _says_enough(manifest: dict[str, Any]) -> bool:
    files = manifest["files"]
    return (
        manifest.keys() >= FACTS.keys()
        and METADATA in files
        and all(map(_is_entry, files, files.values()))
        and all(isinstance(manifest[fact], kind) for fact, kind in FACTS.items())
    )


def _is_entry(name: str, entry: dict[str, Any]) -> bool:
    plain = "/" not in name and "\\" not in name and name not in ("", ".", "..")
    return plain and isinstance(entry["bytes"], int) and isinstance(entry["blake3"], str)


def _digest(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return blake3(canonical.encode()).hexdigest()
