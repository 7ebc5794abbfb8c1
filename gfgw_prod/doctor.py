"""``gfgw doctor``: can this machine train, and if not, what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from gfgw_prod.resilience.exit_codes import BAD_INPUT, FINISHED


@dataclass(frozen=True)
class Finding:
    """One check: ``ok``, ``note`` (works, with less) or ``bad`` (would fail)."""

    check: str
    state: str
    detail: str


def examine(*, as_json: bool) -> int:
    """Prints findings; returns 2 if any is bad."""
    findings = [_python(), _torch(), *_gpu(), _cores(), _loopback(), _space(Path.cwd()), _temporary(), *_weights()]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.check:<12} {finding.detail}")
    return BAD_INPUT if any(finding.state == "bad" for finding in findings) else FINISHED


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", "ok" if fits else "bad", f"{platform.python_version()} (3.11 or 3.12 needed)")


def _torch() -> Finding:
    import torch

    fits = torch.__version__.split("+")[0] == "2.9.1"
    return Finding(
        "torch", "ok" if fits else "bad", f"{torch.__version__}, built for CUDA {torch.version.cuda} (2.9.1 needed)"
    )


def _gpu() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [
            Finding(
                "gpu", "note", "none usable: training runs on the CPU (for a GPU: driver 570 or newer for CUDA 12.8)"
            )
        ]
    findings = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        findings.append(Finding("gpu", "ok", f"{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    nccl = torch.distributed.is_nccl_available()
    findings.append(
        Finding("nccl", "ok" if nccl else "bad", "available" if nccl else "missing: install the CUDA build of torch")
    )
    return findings


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", "ok", f"{cores}; without a GPU, as many ranks of one thread are the fastest")


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("loopback", "ok", f"a port can be bound ({server.getsockname()[1]} tried)")
    except OSError as error:
        return Finding("loopback", "bad", f"no port can be bound on 127.0.0.1 ({error.strerror}): rendezvous needs one")


def _space(path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    state = "ok" if free > 5 * 2**30 else "note"
    return Finding(
        "disk", state, f"{free / 2**30:.1f} GiB free in {path} (a checkpoint of the full-size generator takes 1 GiB)"
    )


def _temporary() -> Finding:
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 4096)
        return Finding("temporary", "ok", f"{tempfile.gettempdir()} can be written")
    except OSError as error:
        return Finding("temporary", "bad", f"{tempfile.gettempdir()} cannot be written ({error.strerror}); set TMPDIR")


def _weights() -> list[Finding]:
    import torch

    vgg = Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"
    cache = Path(os.environ.get("HF_HUB_CACHE", Path.home() / ".cache" / "huggingface" / "hub"))
    dinov2 = cache / "models--timm--vit_small_patch14_dinov2.lvd142m"
    findings = []
    for name, path, setting in (("vgg16", vgg, "loss.lpips_trunk"), ("dinov2", dinov2, "features.weights")):
        present = path.exists()
        detail = f"cached at {path}" if present else f"not cached: fetched on first use, or give its file as {setting}"
        findings.append(Finding(name, "ok" if present else "note", detail))
    return findings
