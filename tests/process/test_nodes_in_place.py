"""Nodes that join, leave or are lost while the others stay: weights and records are those of an undisturbed run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import BAD_INPUT, PREEMPTED

from . import copies, runs
from .test_in_place import HSDP, assert_as_undisturbed, in_place

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finding a rank's process needs /proc")
# Steps at which ranks wait until a node has joined a single one, or one was killed.
JOINS, KILLED_BY, COMES_AGAIN = 2, 4, 6


class Nodes:
    """Launchers on this machine, of one job. The first hosts the rendezvous."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        ranks: int,
        last_call: int,
        steps: int = runs.STEPS,
        waits: tuple[int, ...] = (JOINS, COMES_AGAIN),
    ):
        self.run_dir = directory / "run"
        self._command = in_place(self.run_dir, *options, "--train.total-kimg", str(steps * runs.BATCH / 1000))
        self._port = runs.free_port()
        where = {
            "RDZV_ENDPOINT": f"localhost:{self._port}",
            "LOCAL_ADDR": "localhost",
            "RDZV_LAST_CALL": str(last_call),
        }
        self.goes_on = directory / "goes on"
        copy = copies.in_step(
            directory,
            "import os, time",
            "time.sleep(0.3)",
            f"while self.step == {KILLED_BY} and not os.path.exists('{self.goes_on}'): time.sleep(0.05)",
            f"waits = self.step in {waits} and self.world.world_size == 1",
            "while waits and self.membership._heard_of == self.membership.generation: time.sleep(0.05)",
        )
        self._surroundings = copy | where | {"NNODES": "1:2", "NPROC": str(ranks)}
        self.first = self.start()
        runs.wait_until(lambda: runs.listens(self._port), self.first)

    def start(self, *options: str) -> subprocess.Popen[str]:
        return runs.start([*self._command, *options], self._surroundings)

    def wait_for(self, ranks: int) -> None:
        """Wait until so many ranks have made a step more than the last recorded one."""
        step = runs.last_step(self.run_dir)

        def made() -> bool:
            records = [record for record in runs.records(self.run_dir) if "loss/total" in record]
            return bool(records) and records[-1]["step"] > step and records[-1]["run/world_size"] == ranks

        runs.wait_until((self.run_dir / "stats.jsonl").exists, self.first)
        runs.wait_until(made, self.first)


def restarts_of(run_dir: Path) -> dict[str, int]:
    counts = json.loads((run_dir / "ledger.json").read_text())["restarts"]
    return {cause: count for cause, count in counts.items() if count}


def test_nodes_join_and_leave_and_are_lost_while_ranks_stay(tmp_path: Path) -> None:
    steps = 16
    nodes = Nodes(tmp_path, ranks=1, last_call=1, steps=steps)
    nodes.wait_for(1)
    stays = runs.workers_of(nodes.first.pid)

    lost = nodes.start()
    nodes.wait_for(2)
    lost.kill()
    runs.outcome_of(lost)
    nodes.goes_on.touch()
    nodes.wait_for(1)

    leaves = nodes.start()
    nodes.wait_for(2)
    leaves.terminate()
    left = runs.outcome_of(leaves)
    assert left.code == PREEMPTED, left.stderr
    nodes.wait_for(1)

    assert runs.workers_of(nodes.first.pid) == stays
    outcome = runs.outcome_of(nodes.first)
    assert outcome.code == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    said = [line.partition("ranks ")[2].partition(";")[0] for line in outcome.stderr.splitlines() if " before " in line]
    assert said == [
        "joined: now 2, before 1",
        "were lost: now 1, before 2",
        "joined: now 2, before 1",
        "left: now 1, before 2",
    ]
    assert restarts_of(nodes.run_dir) == {"membership": 4}
    undisturbed = tmp_path / "undisturbed"
    runs.train(undisturbed, steps=steps)
    assert_as_undisturbed(nodes.run_dir, undisturbed, steps)


def test_replica_of_a_sharded_generator_is_lost_with_its_node(reference: Path, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, *HSDP, ranks=2, last_call=60)
    lost = nodes.start()
    nodes.wait_for(4)
    before = runs.workers_of(nodes.first.pid)
    lost.kill()
    runs.outcome_of(lost)
    nodes.goes_on.touch()
    nodes.wait_for(2)
    assert runs.workers_of(nodes.first.pid) == before
    outcome = runs.outcome_of(nodes.first)
    assert outcome.code == 0, outcome.stderr
    assert "ranks were lost: now 2, before 4" in outcome.stderr
    assert restarts_of(nodes.run_dir) == {"membership": 1}
    assert_as_undisturbed(nodes.run_dir, reference)


def test_node_with_other_settings_is_refused_and_the_others_go_on(reference: Path, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, ranks=1, last_call=1, waits=())
    nodes.wait_for(1)
    refused = runs.outcome_of(nodes.start("--optimizer.clip-norm", "3"))
    assert refused.code == BAD_INPUT, refused.stderr
    assert "ranks 0 and 1 were started with different settings (optimizer.clip_norm" in refused.stderr
    assert "Traceback" not in refused.stderr
    nodes.goes_on.touch()
    outcome = runs.outcome_of(nodes.first)
    assert outcome.code == 0, outcome.stderr
    assert restarts_of(nodes.run_dir) == {}
    assert_as_undisturbed(nodes.run_dir, reference)
