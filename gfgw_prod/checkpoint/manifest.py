"""The manifest of a checkpoint: facts about the run, and the size and BLAKE3 hash of every file."""

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
METADATA = ".metadata"  # DCP's index of tensors and shards


def encode(manifest: dict[str, Any]) -> bytes:
    """Encode a manifest as JSON, with its format number and its own hash."""
    content = {"format": FORMAT, **manifest}
    return json.dumps({**content, "blake3": _digest(content)}, indent=1).encode()


def decode(content: bytes) -> dict[str, Any]:
    """Decode and check what ``encode`` wrote.

    Raises:
        DamagedError: if it is damaged or incomplete.
        UserError: if it is intact, but in the format of another version of this package.
    """
    try:
        manifest = json.loads(content)
        claimed = manifest.pop("blake3", None)
        format_number = manifest["format"]
        # Format 1 had no hash of its own.
        intact = (claimed is None and format_number == 1) or claimed == _digest(manifest)
        complete = format_number != FORMAT or _is_complete(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise DamagedError("is unreadable") from None
    if not intact:
        raise DamagedError("does not match its own hash")
    if format_number != FORMAT:
        raise UserError(
            f"is of format {format_number}, and this version reads format {FORMAT}; "
            "continue with the version that wrote it, or use another run.dir"
        )
    if not complete:
        raise DamagedError("lacks required entries")
    return dict(manifest)


def _is_complete(manifest: dict[str, Any]) -> bool:
    files = manifest["files"]
    return (
        manifest.keys() >= FACTS.keys()
        and METADATA in files
        and all(map(_is_file_entry, files, files.values()))
        and all(isinstance(manifest[fact], kind) for fact, kind in FACTS.items())
    )


def _is_file_entry(name: str, entry: dict[str, Any]) -> bool:
    plain = "/" not in name and "\\" not in name and name not in ("", ".", "..")
    return plain and isinstance(entry["bytes"], int) and isinstance(entry["blake3"], str)


def _digest(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return blake3(canonical.encode()).hexdigest()
