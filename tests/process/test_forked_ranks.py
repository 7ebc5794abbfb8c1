"""Ranks are forks of a server, look as if they had been started, and do without it if it cannot be had."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from gfgw_prod.process.fork_server import TITLE

from . import copies, runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fork server needs /proc")
TWO_RANKS = {"NPROC": "2"}


def strings(pid: int, file: str) -> list[str]:
    return (Path("/proc") / str(pid) / file).read_text().rstrip("\0").split("\0")


def server_of(agent: int) -> int:
    """Process id of an agent's fork server."""
    (server,) = (
        int(child)
        for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        if strings(int(child), "cmdline") == [TITLE.decode()]
    )
    return server


def test_forked_rank_looks_as_if_it_had_been_started_and_a_lost_server_is_replaced(
    reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = runs.elastic(run_dir)
    agent = runs.start(command, copies.slowed(tmp_path) | TWO_RANKS | {"ANOTHER": "one"}, anew=True)
    workers = runs.wait_until(lambda: len(found := runs.workers_of(agent.pid)) == 2 and found, agent)
    for rank, pid in workers.items():
        assert os.getsid(pid) == os.getpgid(pid) == pid
        assert strings(pid, "cmdline") == [sys.executable, "-u", "-m", "gfgw_prod", "train", *command[2:]]
        expected = {f"RANK={rank}", f"LOCAL_RANK={rank}", "WORLD_SIZE=2", "ANOTHER=one", f"GFGW_AGENT_PID={agent.pid}"}
        assert not expected - {*strings(pid, "environ")}
        assert not any(each.startswith("GFGW_FORK_SERVER=") for each in strings(pid, "environ"))
        for stream in (0, 2):  # 1 is redirected while ranks meet
            assert os.path.samestat(os.stat(f"/proc/{pid}/fd/{stream}"), os.stat(f"/proc/{agent.pid}/fd/{stream}"))

    first = server_of(agent.pid)
    os.kill(first, signal.SIGKILL)
    runs.kill_after_checkpoint(agent, run_dir, step=2, victim=workers[1])
    restarted = runs.wait_until(
        lambda: len(found := runs.workers_of(agent.pid)) == 2 and not {*found.values()} & {*workers.values()} and found,
        agent,
    )
    assert server_of(agent.pid) != first
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == ""
    assert runs.digests(run_dir) == runs.digests(reference)
    assert not any(Path(f"/proc/{pid}").exists() for pid in {*workers.values(), *restarted.values()})


def test_ranks_are_started_anew_if_the_server_cannot_import(tmp_path: Path) -> None:
    """They fail by themselves, and say why."""
    broken = copies.changed(tmp_path, copies.SEED_IS_DERIVED, before='    raise LookupError("planted")\n')
    module = tmp_path / "gfgw_prod" / "training" / "trainer.py"
    module.write_text('raise LookupError("planted")\n')
    outcome = runs.execute(runs.elastic(tmp_path / "run"), broken | TWO_RANKS | {"MAX_RESTARTS": "0"})
    assert outcome.code == 1, outcome.stderr
    assert outcome.stderr.count("LookupError: planted\n") in {1, 2}, outcome.stderr
    assert "gfgw launcher: rank" in outcome.stderr


def test_stopped_rank_is_killed_and_the_run_ends_with_the_same_weights(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    agent = runs.start(runs.elastic(run_dir), copies.slowed(tmp_path) | TWO_RANKS)
    runs.wait_until((run_dir / "checkpoints" / "step-00000002").exists, agent)
    os.kill(runs.workers_of(agent.pid)[1], signal.SIGSTOP)
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "was stopped (SIGSTOP); it is killed" in outcome.stderr
    assert "rank 1 died of SIGKILL; restart 1 of 3" in outcome.stderr
    assert runs.digests(run_dir) == runs.digests(reference)


def launched(script: str) -> runs.Outcome:
    """Outcome of a launcher with two ranks that are shell scripts, and are not restarted."""
    options = (*runs.MEETS_ITSELF, "--nproc-per-node", "2", "--max-restarts", "0", "--no-python")
    return runs.execute([sys.executable, "-m", "gfgw_prod.launcher", *options, "bash", "-c", script])


def test_peer_of_a_crashed_rank_that_does_not_leave_is_killed(tmp_path: Path) -> None:
    up, late = tmp_path / "up", tmp_path / "late"
    deaf = f"trap '' TERM; touch {up}; sleep 15; touch {late}"
    crashes = f"until [ -e {up} ]; do sleep 0.1; done; exit 1"
    outcome = launched(f"if [ $RANK = 0 ]; then {crashes}; else {deaf}; fi")
    assert outcome.code == 1
    assert "rank 0 exited with 1; no restarts left" in outcome.stderr
    assert not late.exists()


def test_peer_of_a_crashed_rank_that_saves_is_not_killed(tmp_path: Path) -> None:
    up, saved = tmp_path / "up", tmp_path / "saved"
    saves = f"trap '' TERM; exec 9<>$GFGW_SAVES; flock --shared 9; touch {up}; sleep 8; touch {saved}"
    crashes = f"until [ -e {up} ]; do sleep 0.1; done; exit 1"
    outcome = launched(f"if [ $RANK = 0 ]; then {crashes}; else {saves}; fi")
    assert outcome.code == 1
    assert saved.exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoints_are_saved_by_time_and_change_no_weight(reference: Path, tmp_path: Path, ranks: int) -> None:
    often = ("--checkpoint.every-kimg", "1000", "--checkpoint.every-minutes", "0.001", "--checkpoint.keep", "9")
    command = runs.elastic(tmp_path / "run", *often)
    agent = runs.start(command, copies.slowed(tmp_path, 0.3) | {"NPROC": str(ranks)})
    early = runs.wait_until(lambda: [*(tmp_path / "run" / "checkpoints").glob("step-0000000[1-5]")], agent)
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert early
    assert runs.digests(tmp_path / "run")[runs.STEPS] == runs.digests(reference)[runs.STEPS]
