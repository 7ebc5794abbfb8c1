"""Space and speed of the disk, and weights of frozen networks."""

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
CHECKPOINT_BYTES = 1.0e9  # of the full-size generator: weights, averages, two moments


def space(path: Path) -> Finding:
    """Room for checkpoints."""
    free = shutil.disk_usage(path).free
    detail = f"{free / GIB:.1f} GiB free in {path.absolute()} (a checkpoint of the full-size generator takes 1 GiB)"
    if free > 5 * GIB:
        return Finding("disk", "ok", detail)
    return Finding("disk", "note", detail, "make room, lower checkpoint.keep, or name another disk: checkpoint.root")


def speed(path: Path) -> Finding:
    """How fast a checkpoint is on the disk and not only in memory: writes, flushes and removes 64 MiB."""
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            began = time.perf_counter()
            for _ in range(SAMPLE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = SAMPLE_BYTES / max(time.perf_counter() - began, 1e-9)
    except OSError as error:
        detail = f"{path.absolute()} cannot be written ({error.strerror})"
        return Finding("disk speed", "bad", detail, "run from a directory of your own, or name another with run.dir")
    detail = (
        f"{rate / 1e6:,.0f} MB/s written in {path.absolute()}: {CHECKPOINT_BYTES / rate:.0f} s for a checkpoint of 1 GB"
    )
    if rate >= SLOW_BYTES_PER_SECOND:
        return Finding("disk speed", "ok", detail)
    advice = "save on a faster disk (checkpoint.root) and copy from there (checkpoint.upload_to), or save less often"
    return Finding("disk speed", "note", detail, advice)


def temporary() -> Finding:
    """The directory for what is in passing."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 4096)
        return Finding("temporary", "ok", f"{tempfile.gettempdir()} can be written")
    except OSError as error:
        detail = f"no directory for temporary files can be written ({error.strerror})"
        return Finding(
            "temporary", "bad", detail, "set TMPDIR; in a container with a read-only root mount a tmpfs on /tmp"
        )


def weights() -> list[Finding]:
    """Those that `configs/cifar10.yaml` and FID need, and whether they are whole; the digits run needs none."""
    from gfgw_prod.weights.published import DINOV2, EDM, INCEPTION, VGG16, verify

    findings = []
    for name, published in (("vgg16", VGG16), ("dinov2", DINOV2), ("inception", INCEPTION), *EDM.items()):
        if (path := published.cached()) is not None:
            try:
                with verify(published, path, lambda line: None, user_given=False):
                    findings.append(Finding(name, "ok", f"cached at {path}, whole"))
            except UserError as error:
                findings.append(Finding(name, "bad", "not usable", str(error)))
        else:
            whose = f"{published.file} of {published.title}"
            advice = f"it is fetched on first use where there is a network; else give {whose} as {published.setting}"
            findings.append(
                Finding(name, "note", "not cached; only configs/cifar10.yaml and its like, or FID, need it", advice)
            )
    return findings
