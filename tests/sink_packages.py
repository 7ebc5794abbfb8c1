"""Sinks of other packages."""

from __future__ import annotations

from pathlib import Path


def register(directory: Path, package: str, entry_points: str) -> None:
    """Make a directory on the search path name sinks, as if a package with these entry points were installed there."""
    installed = directory / f"{package.replace('-', '_')}-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(entry_points)
