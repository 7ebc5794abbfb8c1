"""Disk space and speed, and weights of frozen networks."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from gfgw_prod.commands.doctor.finding import Finding
from gfgw_prod.process.exit_codes import UserError

GIB = 2**30
SAMPLE_BYTES = 64 << 20
SLOW_BYTES_PER_SECOND = 100e6
CHECKPOINT_BYTES = 1.0e9  # of the full-size generator: weights, EMA, two moments


def space(path: Path) -> Finding:
    """Check the space for checkpoints."""
    free = shutil.disk_usage(path).free
    detail = f"{free / GIB:.1f} GiB free in {path.absolute()} (a checkpoint of the full-size generator takes 1 GiB)"
    if free > 5 * GIB:
        return Finding("disk", "ok", detail)
    return Finding("disk", "note", detail, "free space, lower checkpoint.keep, or use another disk: checkpoint.root")


def speed(path: Path) -> Finding:
    """Measure the speed of durable writes: write, fsync and remove 64 MiB."""
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            started = time.perf_counter()
            for _ in range(SAMPLE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = SAMPLE_BYTES / max(time.perf_counter() - started, 1e-9)
    except OSError as error:
        detail = f"{path.absolute()} cannot be written ({error.strerror})"
        return Finding("disk speed", "bad", detail, "run from a directory that you can write, or set run.dir")
    took = f"{CHECKPOINT_BYTES / rate:.0f} s for a checkpoint of 1 GB"
    detail = f"{rate / 1e6:,.0f} MB/s written in {path.absolute()}: {took}"
    if rate >= SLOW_BYTES_PER_SECOND:
        return Finding("disk speed", "ok", detail)
    advice = "save to a faster disk (checkpoint.root) and upload from there (checkpoint.upload_to), or save less often"
    return Finding("disk speed", "note", detail, advice)


def temporary() -> Finding:
    """Check the temporary directory."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 4096)
        return Finding("temporary", "ok", f"{tempfile.gettempdir()} can be written")
    except OSError as error:
        detail = f"no temporary directory can be written ({error.strerror})"
        advice = "set TMPDIR; in a container with a read-only root mount a tmpfs on /tmp"
        return Finding("temporary", "bad", detail, advice)


def weights() -> list[Finding]:
    """Check the cached weights that `configs/cifar10.yaml` and FID need; the digits run needs none."""
    from gfgw_prod.weights.published import DINOV2, EDM, INCEPTION, VGG16, verify

    findings = []
    for name, published in (("vgg16", VGG16), ("dinov2", DINOV2), ("inception", INCEPTION), *EDM.items()):
        if (path := published.cached()) is None:
            source = f"{published.file} of {published.title}"
            advice = f"it is downloaded on first use; without a network, name {source} as {published.setting}"
            detail = "not cached; only configs/cifar10.yaml and similar, or FID, need it"
            findings.append(Finding(name, "note", detail, advice))
            continue
        try:
            with verify(published, path, lambda line: None, user_given=False):
                findings.append(Finding(name, "ok", f"cached at {path}, undamaged"))
        except UserError as error:
            findings.append(Finding(name, "bad", "not usable", str(error)))
    return findings
