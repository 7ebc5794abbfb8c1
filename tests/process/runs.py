"""Start tiny runs as real processes, and read what they write."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from gfgw_prod.commands import cli

from . import forks

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.yaml"
ELASTIC = ROOT / "launch" / "elastic.sh"
WRITES_DOWN = Path(__file__).with_name("writes_down.sh")  # in place of an interpreter
GFGW = (sys.executable, "-m", "gfgw_prod")
# Options of a launcher that meets no other.
MEETS_ITSELF = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "localhost")
LIMIT_SECONDS = 600  # of one process; far more than a run takes on two busy cores

# Six cells of 16 images, every source of randomness, and every loss term that needs no downloaded weights. The network
# has one level; test_world_sizes.py trains one that resamples.
BATCH = 96
STEPS = 6
EVERY_STEP_KIMG = BATCH / 1000
# Of one length, so that a shorter run is the beginning of a longer one.
SCHEDULES = tuple(
    word
    for name in (
        "consistency.kimg",
        "optimizer.decay-kimg",
        "transport.epsilon-kimg",
        "transport.structure-weight-kimg",
    )
    for word in (f"--{name}", str(STEPS * EVERY_STEP_KIMG))
)
TINY = (
    *("--config", str(DIGITS), "--train.batch-size", str(BATCH), "--train.cell-size", "16"),
    *("--generator.model-channels", "16", "--generator.channel-mult", "[1]"),
    *("--generator.dropout", "0.1", "--generator.conditional", "true"),
    *(
        "--data.flip",
        "true",
        "--transport.scope",
        "full",
        "--transport.target",
        "sample",
        "--train.one-step-share",
        "0.5",
    ),
    *("--loss.feature", "0.1", "--loss.structure", "0.1", "--checkpoint.keep", "3"),
    *("--optimizer.warmup-kimg", "0", "--checkpoint.every-kimg", str(2 * EVERY_STEP_KIMG)),
    *("--telemetry.log-every-kimg", str(EVERY_STEP_KIMG), "--telemetry.samples-every-kimg", str(2 * EVERY_STEP_KIMG)),
    *("--evaluation.every-kimg", "0", "--telemetry.progress", "off"),
    *SCHEDULES,
)
# The smallest network on four cells of 8 images, for many steps on few cores. Two of three ranks run weightless cells.
SMALL_BATCH = 32
SMALL = (
    *("--train.batch-size", str(SMALL_BATCH), "--train.cell-size", "8", "--transport.tolerance", "1e-2"),
    *("--generator.model-channels", "8"),
    *("--telemetry.log-every-kimg", str(SMALL_BATCH / 1000), "--telemetry.samples-every-kimg", "100"),
)
METRICS = "fd,kid,pr,coverage,memorisation"  # all that need no weights of a network
# Large pictures at every step: the same weights, with time for a kill between two checkpoints.
UNHURRIED = ("--telemetry.samples-every-kimg", str(EVERY_STEP_KIMG), "--telemetry.sample-grid", "32")


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a process."""

    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The one line on stderr of a command that exits with 2."""
        lines = self.stderr.splitlines()
        assert self.code == 2, f"exit code {self.code}\n{self.stderr}"
        assert len(lines) == 1, self.stderr
        return lines[0]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without variables of torchrun and make, with the tests' interpreter and no network."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name
        not in {
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
            "LOGLEVEL",
            "ARGS",
            "CI",
            "ORT_DISABLE_TELEMETRY",
        }
        and not name.startswith(
            ("MAKE", "MFLAGS", "NNODES", "NPROC", "RDZV_", "MAX_RESTARTS", "GRACE_SECONDS", "TORCHELASTIC_", "GFGW_")
        )
        and not name.upper().endswith("_PROXY")
    }
    nobody = "http://127.0.0.1:9"  # the discard port: every download is refused at once
    return {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "HTTP_PROXY": nobody,
        "HTTPS_PROXY": nobody,
        "http_proxy": nobody,
        "https_proxy": nobody,
        **(extra or {}),
    }


@cache
def fork_server() -> forks.ForkServer:
    """The server of this process that has imported what a run needs."""
    return forks.ForkServer(forks.RUNS, environment({"TORCH_CPP_LOG_LEVEL": "FATAL"}))  # as runs say to torch


def start(
    command: Sequence[str],
    extra: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: TextIO | None = None,
    *,
    anew: bool = False,
    server: forks.ForkServer | None = None,
) -> subprocess.Popen[str]:
    """Start a process. Its output waits for ``outcome_of``, or goes to a file: an unread pipe fills up.

    A program of this repository is forked from a process that has imported what it needs, and so are the launcher that
    launch/elastic.sh starts and the server that it forks ranks from.

    Args:
        anew: start an interpreter, as the test is about that, or about variables that it reads.
        server: to fork from; by default that of this process.
    """
    how: dict[str, Any] = {
        "cwd": cwd,
        "env": environment(extra),
        "stdin": subprocess.DEVNULL,
        "stdout": output or subprocess.PIPE,
        "stderr": output or subprocess.PIPE,
    }
    if anew or sys.platform != "linux":
        return subprocess.Popen(command, text=True, **how)
    if is_elastic(command) and how["env"]["PYTHON"] == sys.executable:
        script, command = launcher_of(command, how)
        if script is not None:
            return script
    if not is_ours(command):
        return subprocess.Popen(command, text=True, **how)
    return forks.Forked(server or fork_server(), command, **how)


def launcher_of(command: Sequence[str], how: dict[str, Any]) -> tuple[subprocess.Popen[str] | None, list[str]]:
    """What launch/elastic.sh would start, and in ``how`` the environment; or the script itself, if it has refused."""
    with tempfile.NamedTemporaryFile() as written:
        environment = {**how["env"], "PYTHON": str(WRITES_DOWN), "WRITTEN": written.name}
        script = subprocess.Popen(command, text=True, **{**how, "env": environment})
        script.wait()
        count, *parts = written.read().decode().split("\0")[:-1] or [""]
    if not count:
        return script, []
    for stream in (script.stdout, script.stderr):
        if stream is not None:
            stream.close()
    variables = dict(each.split("=", 1) for each in parts[int(count) :])
    variables["PYTHON"] = sys.executable
    del variables["WRITTEN"]
    how["env"] = variables
    return None, [sys.executable, *parts[: int(count)]]


def is_elastic(command: Sequence[str]) -> bool:
    """Whether a command is the launch script."""
    return tuple(command[:2]) == ("bash", str(ELASTIC))


def is_ours(command: Sequence[str]) -> bool:
    """Whether a command runs a module of this repository."""
    return tuple(command[:2]) == GFGW[:2] and command[2].startswith(("gfgw_prod", "tests."))


def start_ranks(
    ranks: int, command: Sequence[str], extra: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start the ranks of a job without a launcher."""
    port = str(free_port())
    job = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [
        start(command, {**job, "RANK": str(rank), "LOCAL_RANK": str(rank), **(extra or {})}) for rank in range(ranks)
    ]


def outcome_of(process: subprocess.Popen[str], limit_seconds: float = LIMIT_SECONDS) -> Outcome:
    """Wait for a process to end. One that hangs gets SIGTERM first, so that an agent can stop its ranks."""
    try:
        stdout, stderr = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            stdout, stderr = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
        raise AssertionError(f"no end after {limit_seconds} s: {process.args}\n{stdout}\n{stderr}") from None
    return Outcome(process.returncode, stdout, stderr)


def execute(
    command: Sequence[str], extra: Mapping[str, str] | None = None, cwd: Path | None = None, *, anew: bool = False
) -> Outcome:
    """Run a process to its end."""
    return outcome_of(start(command, extra, cwd, anew=anew))


def execute_ranks(ranks: int, command: Sequence[str], extra: Mapping[str, str] | None = None) -> Outcome:
    """Run the ranks of a job to their end. Returns the largest exit code, and their output together."""
    processes = start_ranks(ranks, command, extra)
    with ThreadPoolExecutor(ranks) as pool:
        outcomes = [*pool.map(outcome_of, processes)]
    texts = ("".join(getattr(outcome, stream) for outcome in outcomes) for stream in ("stdout", "stderr"))
    return Outcome(max((outcome.code for outcome in outcomes), key=abs), *texts)


def execute_all(commands: Mapping[str, Callable[[], Outcome]], at_once: int = 2) -> dict[str, Outcome]:
    """Outcomes by name, running a few processes at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        futures = {name: pool.submit(command) for name, command in commands.items()}
        return {name: future.result() for name, future in futures.items()}


def training(run_dir: Path, *options: str, steps: int = STEPS, ranks: int = 1) -> list[str]:
    """The command of a tiny run, as one process or under torchrun."""
    launcher = list(GFGW)
    if ranks > 1:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
        launcher = [sys.executable, *torchrun, "-m", "gfgw_prod"]
    length = ("--train.total-kimg", str(steps * BATCH / 1000))
    return [*launcher, "train", *TINY, *length, "--run.dir", str(run_dir), *options]


def elastic(run_dir: Path, *options: str, steps: int = STEPS) -> list[str]:
    """The command of a tiny run through the elastic launcher. After a crash all ranks restart by default."""
    restarts = ("--resilience.in-place", "false")
    return ["bash", str(ELASTIC), *training(run_dir, *restarts, *options, steps=steps)[len(GFGW) + 1 :]]


def train(run_dir: Path, *options: str, steps: int = STEPS, ranks: int = 1) -> Outcome:
    """Train a tiny run to its end, which must succeed."""
    command = training(run_dir, *options, steps=steps)
    outcome = execute(command) if ranks == 1 else execute_ranks(ranks, command)
    assert outcome.code == 0, outcome.stderr
    return outcome


def printed_by(*arguments: str) -> str:
    """Output of a command that succeeds in this process, which has imported torch already."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(arguments) == 0
    return printed.getvalue()


def digests(run_dir: Path) -> dict[int, str]:
    """``weights_sha256`` by step, of the checkpoints that verify."""
    found = json.loads(printed_by("inspect", str(run_dir), "--verify", "--json"))["checkpoints"]
    return {each["step"]: each["weights_sha256"] for each in found if each["verified"]}


def manifest(run_dir: Path, step: int) -> dict[str, Any]:
    """The manifest of the checkpoint of a step."""
    return dict(json.loads((run_dir / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text()))


def records(run_dir: Path) -> list[dict[str, Any]]:
    """All complete lines of ``stats.jsonl``."""
    lines = (run_dir / "stats.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(run_dir: Path) -> dict[int, dict[str, float]]:
    """Loss terms, gradient norm and checksum of the batch's row ids, by step."""
    wanted = ("loss/", "optimizer/gradient", "data/")
    return {
        record["step"]: {tag: value for tag, value in record.items() if tag.startswith(wanted)}
        for record in records(run_dir)
        if "loss/total" in record
    }


def last_step(run_dir: Path) -> int:
    """The last recorded step; 0 before the first."""
    return max(losses(run_dir), default=0) if (run_dir / "stats.jsonl").exists() else 0


def assert_each_metric_has_each_step_once(run_dir: Path, steps: int = STEPS) -> None:
    """Assert that the records of a run miss no step and repeat none."""
    by_metric: dict[str, list[int]] = {}
    for record in records(run_dir):
        for metric in record.keys() - {"step", "images", "time"}:
            by_metric.setdefault(metric, []).append(record["step"])
    assert by_metric["loss/total"] == list(range(1, steps + 1))
    for metric, found in by_metric.items():
        assert all(a < b for a, b in itertools.pairwise(found)), f"{metric}: {found}"


def newest_shard(run_dir: Path) -> Path:
    """The largest file of the newest checkpoint."""
    newest = max((run_dir / "checkpoints").glob("step-*"))
    return max(newest.iterdir(), key=lambda file: file.stat().st_size)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], limit_seconds: float = 120) -> Any:
    """Wait for the condition to be true while the process lives. Returns its value."""
    deadline = time.monotonic() + limit_seconds
    while not (value := condition()):
        if process.poll() is not None:
            raise AssertionError(f"ended too early: {outcome_of(process)}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"nothing after {limit_seconds} s: {outcome_of(process)}")
        time.sleep(0.02)
    return value


def hear(process: subprocess.Popen[str], words: str) -> str:
    """Read stderr of a process up to these words, or a little further. The rest is left for ``outcome_of``."""
    assert process.stderr is not None
    said = b""  # read past the file's buffer: communicate() would not find what is left in there
    while words.encode() not in said:
        said += (more := os.read(process.stderr.fileno(), 4096))
        assert more, said
    return said.decode()


def kill_after_checkpoint(process: subprocess.Popen[str], run_dir: Path, step: int, victim: int | None = None) -> None:
    """Send SIGKILL to the process, or to the victim, once the checkpoint of the step exists."""
    wait_until((run_dir / "checkpoints" / f"step-{step:08d}").exists, process)
    os.kill(process.pid if victim is None else victim, signal.SIGKILL)


def parent_of(pid: int) -> int:
    """The process id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers_of(agent: int) -> dict[int, int]:
    """Process ids of the agent's workers by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0") if parent_of(int(entry.name)) == agent else []
        except OSError:  # it has ended meanwhile
            continue
        found |= {int(each[5:]): int(entry.name) for each in variables if each.startswith(b"RANK=")}
    return found


def free_port() -> int:
    """A TCP port that is free and outside the system's range of ephemeral ports."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("", random.randrange(10_000, 20_000))) as server:
            return int(server.getsockname()[1])


def listens(port: int) -> bool:
    """Whether a process listens on the TCP port of this host."""
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0
