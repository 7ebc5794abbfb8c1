"""The elastic launcher on one machine: restarts ranks after a crash, and does not after a wrong setting."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from gfgw_prod.checkpoint.run_directory import prepare_directory
from gfgw_prod.process.exit_codes import PREEMPTED, UserError

from . import copies, runs
from .two_hosts import CANNOT

TWO_RANKS = {"NPROC": "2"}
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding a rank's process needs /proc")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch chooses the port")
def test_port_at_which_ranks_meet_is_reserved_for_them() -> None:
    begins = "import os, socket, sys; port, rank = int(os.environ['MASTER_PORT']), socket.socket(); "
    calls = f"{begins}sys.exit(rank.connect_ex(('127.0.0.1', port)) == 0)"  # nobody listens yet
    takes = f"{begins}rank.bind(('', port))"
    for script, code in ((calls, 0), (takes, 1)):
        rank = ("--max-restarts", "0", "--no-python", sys.executable, "-c", script)
        outcome = runs.execute([sys.executable, "-m", "gfgw_prod.launcher", *runs.MEETS_ITSELF, *rank])
        assert outcome.code == code, outcome.stderr
    assert "Address already in use" in outcome.stderr


@NEEDS_PROC
def test_run_with_a_killed_rank_is_restarted_and_ends_with_the_same_weights(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(runs.DIGITS.read_text())
    agent = runs.start(runs.elastic(run_dir, "--config", str(config)), copies.slowed(tmp_path) | TWO_RANKS)
    workers = runs.wait_until(lambda: len(found := runs.workers_of(agent.pid)) == 2 and found, agent)
    config.write_text("seed: 5\n")  # for the next experiment: this job goes on as it was started
    runs.kill_after_checkpoint(agent, run_dir, step=2, victim=workers[1])
    monkeypatch.setattr("gfgw_prod.checkpoint.run_directory.LOCK_SECONDS", 0)
    refused = set()
    while not (run_dir / "checkpoints" / "step-00000004").exists() and agent.poll() is None:
        with pytest.raises(UserError, match=r"is in use by process \d+; stop it") as error:  # also between two starts
            prepare_directory(run_dir, print)
        refused.add(int(re.findall(r"process (\d+)", str(error.value))[0]))
        time.sleep(0.01)
    assert refused == {agent.pid}
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "restart 1 of 3" in outcome.stderr
    assert signal.SIGKILL.name in outcome.stderr
    assert "gfgw: rank 0 lost the connection to other ranks: " in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "resumed" in outcome.stderr
    assert runs.digests(run_dir) == runs.digests(reference)
    assert runs.losses(run_dir) == runs.losses(reference)
    first, *later = (record for record in runs.records(run_dir) if "startup/launcher" in record)
    assert first["startup/bank"] > 0
    assert all(record["startup/checkpoint"] > 0 for record in later)
    assert later
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())


def test_agent_signalled_before_the_other_nodes_came_leaves_nothing_behind(tmp_path: Path) -> None:
    port, temporary = runs.free_port(), tmp_path / "temporary"
    temporary.mkdir()
    waiting = {"NNODES": "2", "RDZV_ENDPOINT": f"localhost:{port}", "TMPDIR": str(temporary)}
    agent = runs.start(runs.elastic(tmp_path / "run", "--telemetry.log-format", "json"), waiting)
    said = runs.hear(agent, "waiting up to 600 s for 1 more")
    agent.terminate()
    outcome = runs.outcome_of(agent)
    assert (outcome.code, outcome.stdout) == (PREEMPTED, "")
    lines = [json.loads(line) for line in (said + outcome.stderr).splitlines()]
    assert {(line["level"], line["run"]) for line in lines} == {("info", str(tmp_path / "run"))}
    first, _, last = (line["message"] for line in lines)
    assert first == f"gfgw launcher: the rendezvous is on this host, at localhost:{port}, where 2 nodes meet"
    assert last == "gfgw launcher: exit code 75: told to stop; the same command goes on"
    assert not any(temporary.iterdir())


@pytest.mark.skipif(bool(CANNOT), reason=CANNOT)
def test_host_whose_name_does_not_resolve_gets_one_line(tmp_path: Path) -> None:
    nameless = ["unshare", "--uts", "--net", "sh", "-c", 'hostname nowhere; exec "$@"', "sh"]
    two_nodes = {"NNODES": "2", "RDZV_ENDPOINT": "198.18.0.1:29400"}
    complaint = runs.execute([*nameless, *runs.elastic(tmp_path / "run")], two_nodes).complaint
    assert "host name nowhere must resolve" in complaint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.batch-size", "16"], "train.cell_size"),
        (["--data.source", "cifar10", "--data.path", os.devnull], f"data.path {os.devnull}"),
    ],
    ids=["more ranks than cells", "no data set"],
)
def test_wrong_setting_is_refused_once_for_all_ranks_and_not_restarted(
    tmp_path: Path, options: list[str], words: str
) -> None:
    complaint = runs.execute(runs.elastic(tmp_path / "run", *options), TWO_RANKS).complaint
    assert complaint.startswith("gfgw: ")
    assert words in complaint
