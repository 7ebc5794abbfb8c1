"""Data, weights, ports and directories that are not what the settings say: one line that names them, exit code 2."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import runs

# Name of the case: options on top of a tiny run's ({} is a scratch directory, {port} a busy one), words of the line.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "dinov2 weights out of reach": (
        ["--features.extractor", "dinov2"],
        ["features.extractor dinov2", "model.safetensors", "features.weights"],
    ),
    "dinov2 weights missing": (
        ["--features.extractor", "dinov2", "--features.weights", "{}/none"],
        ["features.weights", "{}/none", "vit_small_patch14_dinov2.lvd142m"],
    ),
    "lpips trunk out of reach": (["--loss.lpips", "0.5"], ["loss.lpips", "loss.lpips_trunk", "vgg16-397923af.pth"]),
    "lpips trunk missing": (
        ["--loss.lpips", "0.5", "--loss.lpips-trunk", "{}/none"],
        ["loss.lpips_trunk", "{}/none", "vgg16-397923af.pth"],
    ),
    "lpips trunk not weights": (
        ["--loss.lpips", "0.5", "--loss.lpips-trunk", "{}/file"],
        ["loss.lpips_trunk", "{}/file"],
    ),
    "cifar10 without a path": (["--data.source", "cifar10"], ["data.path", "cifar-10-python.tar.gz"]),
    "cifar10 path missing": (
        ["--data.source", "cifar10", "--data.path", "{}/none"],
        ["data.path", "{}/none", "cifar-10-python.tar.gz"],
    ),
    "cifar10 path empty": (
        ["--data.source", "cifar10", "--data.path", "{}/empty"],
        ["data.path", "{}/empty", "cifar-10-python.tar.gz"],
    ),
    "cifar10 path empty, no download": (
        ["--data.source", "cifar10", "--data.path", "{}/empty", "--data.download", "false"],
        ["data.path", "{}/empty", "cifar-10-python.tar.gz", "data.download"],
    ),
    "cifar10 path a file": (["--data.source", "cifar10", "--data.path", "{}/file"], ["data.path", "{}/file"]),
    "cifar10 archive cut short": (
        ["--data.source", "cifar10", "--data.path", "{}/cut"],
        ["data.path", "{}/cut", "cifar-10-python.tar.gz"],
    ),
    "metrics port busy": (["--telemetry.prometheus-port", "{port}"], ["telemetry.prometheus_port", "{port}"]),
    "run directory a file": (["--run.dir", "{}/file"], ["run.dir", "{}/file"]),
    "run directory under a file": (["--run.dir", "{}/file/run"], ["run.dir", "{}/file/run"]),
    "run directory in no place for one": (["--run.dir", "/proc/run"], ["run.dir", "/proc/run"]),
    "more scales than the image has": (["--loss.flow-scales", "9"], ["loss.flow_scales"]),
    "resume with another architecture": (
        ["--run.dir", "{}/resumed", "--generator.model-channels", "32"],
        ["{}/resumed", "generator.model_channels 16 -> 32"],
    ),
    "resume with another seed": (["--run.dir", "{}/resumed", "--seed", "1"], ["{}/resumed", "seed 0 -> 1"]),
}


@pytest.fixture(scope="module")
def scratch(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("surroundings")
    (directory / "file").write_text("not what was meant")
    (directory / "empty").mkdir()
    (directory / "cut").mkdir()
    (directory / "cut" / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    shutil.copytree(reference, directory / "resumed")
    return directory


@pytest.fixture(scope="module")
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture(scope="module")
def outcomes(scratch: Path, busy_port: int) -> dict[str, runs.Outcome]:
    def command(name: str, options: list[str]) -> runs.Outcome:
        filled = [option.replace("{}", str(scratch)).replace("{port}", str(busy_port)) for option in options]
        caches = {"HF_HOME": str(scratch / "no-hub"), "TORCH_HOME": str(scratch / "no-torch")}
        return runs.execute(runs.training(scratch / "runs" / name, *filled), caches)

    return runs.execute_all({name: lambda n=name, o=options: command(n, o) for name, (options, _) in CASES.items()})


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line_that_names_what_is_wrong(
    outcomes: dict[str, runs.Outcome], scratch: Path, busy_port: int, case: str
) -> None:
    complaint = outcomes[case].complaint
    assert complaint.startswith("gfgw: ")
    for words in CASES[case][1]:
        assert words.replace("{}", str(scratch)).replace("{port}", str(busy_port)) in complaint


def test_refused_resume_leaves_the_run_as_it_was(
    outcomes: dict[str, runs.Outcome], scratch: Path, reference: Path
) -> None:
    assert outcomes
    for name in ("config.yaml", "stats.jsonl"):
        assert (scratch / "resumed" / name).read_bytes() == (reference / name).read_bytes()
    assert runs.digests(scratch / "resumed") == runs.digests(reference)


def test_refusals_write_no_checkpoint_and_no_half_download(outcomes: dict[str, runs.Outcome], scratch: Path) -> None:
    assert outcomes
    assert not list((scratch / "runs").rglob("step-*"))
    assert not list((scratch / "empty").iterdir())


def test_read_only_run_directory_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    command = runs.training(place)
    if os.geteuid() == 0:  # permission bits do not bind root, a read-only file system does
        mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(place)]
        if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False, timeout=20).returncode:
            pytest.skip("root without the right to mount: no directory is read-only for it")
        command = [*mounted, *command]
    else:
        place.chmod(0o555)
    complaint = runs.execute(command).complaint
    assert complaint.startswith("gfgw: ")
    assert f"run.dir {place}" in complaint


def test_gpu_is_refused_where_there_is_none(tmp_path: Path) -> None:
    command = runs.training(tmp_path / "run", "--run.device", "cuda")
    complaint = runs.execute(command, {"CUDA_VISIBLE_DEVICES": ""}).complaint
    assert complaint.startswith("gfgw: run.device cuda")
