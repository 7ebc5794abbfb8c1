"""The findings of ``gfgw doctor`` and its advice."""

import argparse
import dataclasses
import hashlib
import json
import socket
import time
from pathlib import Path

import pytest

from gfgw_prod.commands import doctor
from gfgw_prod.commands.doctor import gpus, host, storage
from gfgw_prod.process.exit_codes import FINISHED
from gfgw_prod.weights import published


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("570.26", "ok"),
        ("570.133.20", "ok"),
        ("580.65.06", "ok"),
        ("570.20", "note"),
        ("535.183.01", "note"),
        ("525.60.13", "note"),
        ("525.53", "bad"),
        ("470.256.02", "bad"),
    ],
)
def test_driver_is_checked_against_cuda_12_8(version: str, state: str) -> None:
    found = gpus.check_driver(version)
    assert found.state == state
    assert version in found.detail
    assert (found.advice == "") == (state == "ok")


def test_missing_gpu_has_a_reason() -> None:
    assert (gpus.without_gpu(None, None).state, gpus.without_gpu("570.26", None).state) == ("note", "bad")
    assert "--gpus all" in gpus.without_gpu("570.26", "0").advice
    hidden = gpus.without_gpu("570.26", "")
    assert (hidden.state, "CUDA_VISIBLE_DEVICES" in hidden.detail) == ("note", True)


def test_port_in_use_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        number = holder.getsockname()[1]
        taken = host.port("metrics", number)
    assert (taken.state, "--telemetry.prometheus-port" in taken.advice) == ("note", True)
    assert host.port("metrics", number).state == "ok"


def test_variable_that_changes_arithmetic_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.arithmetic().state == "ok"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert (host.arithmetic().state, "MKL_CBWR=COMPATIBLE" in host.arithmetic().detail) == ("note", True)


def test_compiler_is_looked_for_where_torch_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = host.compiler()
    assert (missing.state, "no-such-compiler" in missing.detail) == ("note", True)
    assert "train.compile off" in missing.advice
    monkeypatch.setenv("CXX", "bash")
    assert host.compiler().state == "ok"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert host.compiler().state == "note"


def test_clock_before_the_installation_is_wrong() -> None:
    assert host.clock(now=0.0).state == "note"
    assert "1970-01-01" in host.clock(now=0.0).detail
    assert time.strftime("%Y-%m-%d", time.gmtime()) in host.clock().detail


def test_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = storage.speed(tmp_path)
    assert found.state in ("ok", "note")
    assert "MB/s" in found.detail
    assert list(tmp_path.iterdir()) == []
    assert storage.speed(tmp_path / "missing").state == "bad"


def test_weights_are_looked_for_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert [found.state for found in storage.weights() if found.check == "vgg16"] == ["note"]
    assert [found.state for found in storage.weights() if found.check == "inception"] == ["note"]
    trunk = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    trunk.parent.mkdir(parents=True)
    trunk.touch()
    (found,) = (found for found in storage.weights() if found.check == "vgg16")
    assert found.state == "bad"
    assert "is damaged: its SHA-256 is e3b0c442" in found.advice
    empty = dataclasses.replace(published.VGG16, sha256=hashlib.sha256(b"").hexdigest())
    monkeypatch.setattr(published, "VGG16", empty)
    assert [found.state for found in storage.weights() if found.check == "vgg16"] == ["ok"]


def test_every_check_is_made_and_all_but_ok_comes_with_advice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SLOW_BYTES_PER_SECOND", 0.0)  # the disk may be slow once and fast the next time
    assert doctor.run(argparse.Namespace(json=True)) == FINISHED
    findings = json.loads(capsys.readouterr().out)
    assert {found["check"] for found in findings} >= {
        *("python", "torch", "gpu", "cores", "memory", "shared memory", "compiler", "loopback", "host name", "clock"),
        *("metrics port", "rendezvous port", "disk", "disk speed", "temporary", "vgg16", "dinov2"),
    }
    assert all((found["advice"] == "") == (found["state"] == "ok") for found in findings)
    doctor.run(argparse.Namespace(json=False))
    assert len(capsys.readouterr().out.splitlines()) == len(findings) + sum(bool(each["advice"]) for each in findings)
