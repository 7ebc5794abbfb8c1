"""A launcher that is told to stop where there is nothing to save, also between two rounds: 75, and no orphans."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gfgw_prod.resilience.exit_codes import PREEMPTED

from . import runs

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding orphans needs /proc")
MANY = 64  # ranks, which take far longer to spawn than the first takes to strike


def launcher(script: str, *options: str) -> list[str]:
    """A launcher whose ranks are shell scripts."""
    return [sys.executable, "-m", "gfgw_prod.launcher", *options, "--no-python", "sh", "-c", script]


def ranks_of(agent: int) -> list[str]:
    """Living processes that an agent started, also if it has ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"GFGW_AGENT_PID={agent}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(entry.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


@NEEDS_PROC
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_launcher_told_while_it_spawns_its_ranks_leaves_with_75_and_no_orphans(number: signal.Signals) -> None:
    strike = f"[ $LOCAL_RANK = 0 ] && kill -{number.value} $GFGW_AGENT_PID; exec sleep 600"
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "localhost")
    agent = runs.start(launcher(strike, *meeting, "--nproc-per-node", str(MANY)))
    outcome = runs.outcome_of(agent, limit_seconds=60)
    assert outcome == runs.Outcome(PREEMPTED, "", "")
    assert ranks_of(agent.pid) == []


def test_launcher_told_while_it_waits_for_its_peer_after_a_crash_leaves_with_75(tmp_path: Path) -> None:
    up, lost = tmp_path / "up", tmp_path / "lost"
    trains = f"echo >> {up}; while kill -0 $GFGW_AGENT_PID && ! [ -e {lost} ]; do sleep 0.2; done 2>/dev/null; exit 1"
    port = runs.free_port()
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "job")
    command = launcher(trains, *meeting, "--nnodes", "2", "--local-addr", "localhost", "--max-restarts", "3")
    agent = runs.start(command)
    peer: subprocess.Popen[str] | None = None
    try:
        runs.wait_until(lambda: runs.listens(port), agent)  # so that the store does not go with the peer
        peer = runs.start(command)
        runs.wait_until(lambda: up.exists() and len(up.read_text().splitlines()) == 2, agent)
        peer.kill()
        peer.wait()
        lost.touch()  # its rank's connections are gone, so the other rank fails
        first = runs.hear(agent, "restart 1 of 3").splitlines()[0]
        assert "restart 1 of 3" in first
        agent.terminate()
        outcome = runs.outcome_of(agent, limit_seconds=60)
        assert outcome.code == PREEMPTED, outcome.stderr
    finally:
        for each in (agent, peer):
            if each is not None:
                each.kill()
                each.wait()
