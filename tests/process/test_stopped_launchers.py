"""A launcher gets a stop signal where there is nothing to save, also between two rounds: 75, and no orphans."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import CRASHED, PREEMPTED

from . import runs

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding orphans needs /proc")
MANY = 64  # ranks: spawning them takes far longer than the first takes to send a signal


def launcher(script: str, *options: str) -> list[str]:
    """A launcher whose ranks are shell scripts."""
    return [sys.executable, "-m", "gfgw_prod.launcher", *options, "--no-python", "sh", "-c", script]


def meets_at(port: int) -> tuple[str, ...]:
    """Options with which launchers on this machine meet at a port."""
    here = ("--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost")
    return ("--rdzv-backend", "c10d", "--rdzv-id", "job", *here)


@contextmanager
def kill_at_the_end() -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers that must not outlive a test, however it ends."""
    agents: list[subprocess.Popen[str]] = []
    try:
        yield agents
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


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
def test_launcher_signalled_while_it_spawns_its_ranks_exits_with_75_and_no_orphans(number: signal.Signals) -> None:
    signals = f"[ $LOCAL_RANK = 0 ] && kill -{number.value} $GFGW_AGENT_PID; exec sleep 600"
    agent = runs.start(launcher(signals, *runs.MEETS_ITSELF, "--nproc-per-node", str(MANY)))
    outcome = runs.outcome_of(agent, limit_seconds=60)
    assert outcome == runs.Outcome(PREEMPTED, "", "")
    assert ranks_of(agent.pid) == []


def test_launcher_under_nohup_survives_a_hangup(tmp_path: Path) -> None:
    up = tmp_path / "up"
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    agent = runs.start([*nohup, *launcher(f"touch {up}; exec sleep 600", *runs.MEETS_ITSELF)])
    runs.wait_until(up.exists, agent)
    for _ in range(20):
        agent.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    assert agent.poll() is None
    agent.terminate()
    assert runs.outcome_of(agent, limit_seconds=60) == runs.Outcome(PREEMPTED, "", "")


# Saves for eight seconds after a signal, and exits at once at a second one, as a rank does.
SAVES = """
import os, signal, sys, time
def stop(*_):
    open(sys.argv[1] + ".signalled", "w").close()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
    time.sleep(8)
    open(sys.argv[1] + ".saved", "w").close()
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
open(sys.argv[1], "w").close()
while True:
    time.sleep(0.1)
"""


def test_launcher_signalled_twice_lets_its_ranks_save(tmp_path: Path) -> None:
    script = tmp_path / "saves.py"
    script.write_text(SAVES)
    places = {again: tmp_path / again.name for again in (signal.SIGTERM, signal.SIGUSR1)}  # both at once: they wait
    with kill_at_the_end() as agents:
        for up in places.values():
            agents.append(runs.start(launcher(f"exec {sys.executable} {script} {up}", *runs.MEETS_ITSELF)))
        for agent, up in zip(agents, places.values(), strict=True):
            runs.wait_until(up.exists, agent)
        for agent in agents:
            agent.send_signal(signal.SIGUSR1)
        time.sleep(2)
        for agent, again in zip(agents, places, strict=True):
            agent.send_signal(again)
        for agent, up in zip(agents, places.values(), strict=True):
            assert runs.outcome_of(agent, limit_seconds=60).code == PREEMPTED
            assert up.with_suffix(".saved").exists()


def test_launcher_signalled_while_its_ranks_save_for_a_joining_node_lets_them_save(tmp_path: Path) -> None:
    script, up = tmp_path / "saves.py", tmp_path / "up"
    script.write_text(SAVES)
    waits = ("--nnodes", "1:2", "--rdzv-conf", "last_call_timeout=1")
    command = launcher(f"exec {sys.executable} {script} {up}", *meets_at(runs.free_port()), *waits)
    with kill_at_the_end() as agents:
        agent = runs.start(command)
        agents.append(agent)
        runs.wait_until(up.exists, agent)
        agents.append(runs.start(command))
        runs.wait_until((tmp_path / "up.signalled").exists, agent)
        agent.terminate()
        outcome = runs.outcome_of(agent, limit_seconds=60)
        assert outcome.code == PREEMPTED, outcome.stderr
        assert (tmp_path / "up.saved").exists()


def test_launcher_signalled_after_its_last_restart_exits_as_crashed(tmp_path: Path) -> None:
    """The other rank takes its time to exit. Its 75 follows from the crash, not from the signal to the launcher."""
    stopping = tmp_path / "stopping"
    stays = f"trap 'touch {stopping}; sleep 4; exit {PREEMPTED}' TERM; touch {tmp_path}/up; while :; do sleep 0.1; done"
    crashes = f"while ! [ -e {tmp_path}/up ]; do sleep 0.1; done; exit 1"
    script = f"[ $LOCAL_RANK = 0 ] && {{ {crashes}; }}; {stays}"
    agent = runs.start(launcher(script, *runs.MEETS_ITSELF, "--nproc-per-node", "2", "--max-restarts", "0"))
    runs.wait_until(stopping.exists, agent)
    agent.terminate()
    outcome = runs.outcome_of(agent, limit_seconds=60)
    assert outcome.code == CRASHED, outcome.stderr


def test_launcher_signalled_while_it_waits_for_its_peer_after_a_crash_exits_with_75(tmp_path: Path) -> None:
    up, lost = tmp_path / "up", tmp_path / "lost"
    trains = f"echo >> {up}; while kill -0 $GFGW_AGENT_PID && ! [ -e {lost} ]; do sleep 0.2; done 2>/dev/null; exit 1"
    port = runs.free_port()
    command = launcher(trains, *meets_at(port), "--nnodes", "2", "--max-restarts", "3")
    with kill_at_the_end() as agents:
        agent = runs.start(command)
        agents.append(agent)
        runs.wait_until(lambda: runs.listens(port), agent)  # so that the store does not go with the peer
        peer = runs.start(command)
        agents.append(peer)
        runs.wait_until(lambda: up.exists() and len(up.read_text().splitlines()) == 2, agent)
        peer.kill()
        peer.wait()
        lost.touch()  # its rank's connections break, so the other rank fails
        runs.hear(agent, "restart 1 of 3")
        agent.terminate()
        outcome = runs.outcome_of(agent, limit_seconds=60)
        assert outcome.code == PREEMPTED, outcome.stderr
