"""A thousand malformed inputs: exit code 2, one line on stderr, no traceback, no hang, nothing left behind."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from . import malformed_inputs, runs
from .forks import Forked, ForkServer
from .malformed_arguments import SETTINGS_FILES
from .malformed_inputs import Case

LIMIT_SECONDS = 60  # of one case; most take a twentieth of a second
CASES = malformed_inputs.cases()
pytestmark = pytest.mark.timeout(900)  # the first test runs all cases, which take a minute on two idle cores
LIGHT = tuple(f"gfgw_prod.commands.{name}" for name in ("cli", "train", "pack"))
HEAVY = (
    *(f"gfgw_prod.{name}" for name in ("training.trainer", "commands.dry_run", "sampling.files", "sampling.trained")),
    *("gfgw_prod.commands.evaluate", "gfgw_prod.commands.doctor", "gfgw_prod.checkpoint.remote_storage"),
    *("timm", "lpips", "torchvision", "huggingface_hub", "tensorboard", "prometheus_client", "safetensors.torch"),
)
Ending = tuple[str, str, str, set[str]]
KINDS = sorted({case.kind for case in CASES})


@pytest.fixture(scope="module")
def surroundings(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files, directories and sockets that are not what a setting expects."""
    here = tmp_path_factory.mktemp("surroundings")
    for name in ("empty", "unpacked/cifar-10-batches-py", "garbage/checkpoints/step-00000001", "stats-is-binary"):
        (here / name).mkdir(parents=True)
    (here / "garbage" / "checkpoints" / "step-00000001" / "manifest.json").write_bytes(b"\x00garbage")
    (here / "stats-is-binary" / "stats.jsonl").mkdir()
    for kind, names in (
        ("lock", ".lock"),
        ("stats", "stats.jsonl"),
        ("picture", "samples.png"),
        ("config", "config.yaml"),
    ):
        (here / f"{kind}-is-directory" / names).mkdir(parents=True)
    for name in ("tensorboard", "samples", "checkpoints"):
        (here / f"{name}-is-file").mkdir()
        (here / f"{name}-is-file" / name).write_text("not what was meant")
    for name in ("cut", "archive-is-fifo", "lock-is-fifo", "checkpoints-is-loop"):
        (here / name).mkdir()
    (here / "archive-is-directory" / "cifar-10-python.tar.gz").mkdir(parents=True)
    (here / "cut" / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    for fifo in ("fifo", "archive-is-fifo/cifar-10-python.tar.gz", "lock-is-fifo/.lock"):
        os.mkfifo(here / fifo)
    for loop in ("loop", "checkpoints-is-loop/checkpoints"):
        (here / loop).symlink_to(here / loop)
    for name, content in SETTINGS_FILES.items():
        (here / name).write_bytes(content)
    (here / "file").write_text("not what was meant")
    (here / "pickle").write_bytes(pickle.dumps(Path.home()))
    torch.save({"features.0.weight": torch.zeros(2)}, here / "tensors.pth")
    save_file({"weight": torch.zeros(2)}, here / "weights.safetensors")
    shutil.copytree(reference, here / "reference")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(here / "socket"))
        yield here


@pytest.fixture(scope="module")
def endings(surroundings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Ending]]:
    """Exit code, stdout, stderr and new files of every case."""
    place = tmp_path_factory.mktemp("cases")
    caches = {"HF_HOME": str(surroundings / "no-hub"), "TORCH_HOME": str(surroundings / "no-torch")}
    servers = {
        needs_torch: ForkServer(modules, runs.environment()) for needs_torch, modules in enumerate((LIGHT, HEAVY))
    }
    with socket.create_server(("127.0.0.1", 0)) as busy, ThreadPoolExecutor(2) as pool:
        port = str(busy.getsockname()[1])

        def ended(needs_torch: int) -> dict[int, Ending]:
            """Endings by number of the case."""
            return {
                number: _ending(servers[needs_torch], case, place / str(number), surroundings, port, caches)
                for number, case in enumerate(CASES)
                if case.needs_torch == needs_torch
            }

        light, heavy = pool.map(ended, servers)
    yield [(light | heavy)[number] for number in range(len(CASES))]
    for server in servers.values():
        server.close()


def _ending(
    server: ForkServer, case: Case, directory: Path, surroundings: Path, port: str, caches: dict[str, str]
) -> Ending:
    directory.mkdir()
    for name, content in case.files.items():
        (directory / name).write_bytes(content)
    environment = {**runs.environment(caches), **case.environment}
    with ExitStack() as files:
        streams = {
            name: files.enter_context(open(place, "r+")) if (place := getattr(case, name)) else subprocess.PIPE
            for name in ("stdout", "stderr")
        }
        process = Forked(
            server,
            [*runs.GFGW, *(each.replace("@", str(surroundings)).replace("{port}", port) for each in case.arguments)],
            case.closed,
            cwd=directory,
            env={name: value for name, value in environment.items() if value is not None},
            stdin=subprocess.DEVNULL,
            errors="replace",
            **streams,
        )
        try:
            out, err = process.communicate(timeout=LIMIT_SECONDS)
            code = str(process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            code = "no end"
    left = {str(path.relative_to(directory)) for path in directory.rglob("*")} - case.files.keys()
    return code, out or "", err or "", left


def _fault(case: Case, surroundings: Path, ending: Ending) -> str | None:
    """Why a case ended wrongly, or ``None``."""
    code, out, err, left = ending
    lines = err.splitlines()
    if code != "2":
        return f"exit code {code}"
    if not case.stderr and 2 not in case.closed:
        if len(lines) != 1 or not lines[0].startswith("gfgw: "):
            return f"{len(lines)} lines on stderr"
        if missing := [word for word in case.words if word.replace("@", str(surroundings)) not in lines[0]]:
            return f"says nothing of {missing}"
        if len(lines[0]) > 2_000 + sum(map(len, case.arguments)):
            return f"a line of {len(lines[0])} characters"
    if out and not case.stdout:
        return "something on standard output"
    half = {
        name for name in left if not case.begun or "step-" in name or "partial" in name or name.endswith("stats.jsonl")
    }
    return f"left {sorted(half)[:5]}" if half else None


def test_there_are_a_thousand_cases() -> None:
    assert len(CASES) >= 1000


@pytest.mark.parametrize("kind", KINDS)
def test_refused_in_one_line_with_nothing_left_behind(endings: list[Ending], surroundings: Path, kind: str) -> None:
    faults = []
    for case, ending in zip(CASES, endings, strict=True):
        if case.kind == kind and (fault := _fault(case, surroundings, ending)) is not None:
            faults.append(f"{fault}: {str(case)[:400]}\n  {ending[2][:300]}...{ending[2][-500:]}")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_refused_run_is_unchanged(endings: list[Ending], surroundings: Path, reference: Path) -> None:
    assert endings
    for name in ("config.yaml", "stats.jsonl"):
        assert (surroundings / "reference" / name).read_bytes() == (reference / name).read_bytes()
    assert runs.digests(surroundings / "reference") == runs.digests(reference)
    assert not list((surroundings / "empty").iterdir())
