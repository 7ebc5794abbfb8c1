"""A lost rank is replaced while the others stay: the weights, losses and records are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.process.proc_stat import stat_fields

from .. import sink_packages
from . import copies, runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finding a rank's process needs /proc")
IN_PLACE = ("--resilience.in-place", "true", "--checkpoint.every-kimg", "1000")
FSDP = ("--distributed.strategy", "fsdp", "--resilience.peer-copy-every-steps", "2")
HSDP = ("--distributed.strategy", "fsdp", "--distributed.shard-ranks", "2")
COMPILED = ("--train.compile", "true")
NOTHING_IS_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}  # by torch, which the launcher does not know


def in_place(run_dir: Path, *options: str) -> list[str]:
    return runs.elastic(run_dir, *IN_PLACE, *options)


def lose(
    agent: subprocess.Popen[str], run_dir: Path, rank: int, step: int, number: int = signal.SIGKILL
) -> dict[int, int]:
    """Send a signal to a rank once the step is made. Returns the ranks as they were before."""
    runs.wait_until(lambda: runs.last_step(run_dir) >= step, agent)
    ranks = runs.workers_of(agent.pid)
    os.kill(ranks[rank], number)
    return ranks


def assert_as_undisturbed(run_dir: Path, reference: Path, steps: int = runs.STEPS) -> None:
    """Weights, averages, moments, duals and all else that a checkpoint has, and the records."""
    here, there = (
        checkpoints_in(LocalStorage(each / "checkpoints"))[-1].read_tensors("") for each in (run_dir, reference)
    )
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []
    assert runs.digests(run_dir)[steps] == runs.digests(reference)[steps]
    assert runs.losses(run_dir) == runs.losses(reference)
    runs.assert_each_metric_has_each_step_once(run_dir, steps)


@pytest.mark.parametrize(
    ("ranks", "lost", "options", "steps"),
    [
        pytest.param(2, 1, (), 1, id="ddp"),
        pytest.param(2, 0, (), 1, id="ddp, rank 0"),
        pytest.param(2, 0, FSDP, 2, id="fsdp, rank 0"),
        pytest.param(3, 1, FSDP, 2, id="fsdp"),
        pytest.param(4, 0, HSDP, 1, id="HSDP, rank 0"),
        pytest.param(2, 1, (*HSDP[:3], "1", *COMPILED), 1, id="HSDP, compiled"),
    ],
)
def test_lost_rank_is_replaced_and_the_others_stay(
    reference: Path, tmp_path: Path, ranks: int, lost: int, options: Sequence[str], steps: int
) -> None:
    """At most ``steps`` steps are computed again for a loss, and one that no other rank has noticed yet."""
    run_dir = tmp_path / "run"
    surroundings = copies.slowed(tmp_path, 1.0) | NOTHING_IS_COMPILED | {"NPROC": str(ranks)}
    agent = runs.start(in_place(run_dir, *options), surroundings)
    before = lose(agent, run_dir, lost, step=2)
    runs.wait_until(lambda: runs.last_step(run_dir) >= 3, agent)
    after = runs.workers_of(agent.pid)
    lose(agent, run_dir, ranks - 1, step=4, number=signal.SIGSTOP)
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert {rank for rank in after if after[rank] != before[rank]} == {lost}, outcome.stderr
    assert f"rank {lost} died of SIGKILL; replacement 1 of 3" in outcome.stderr
    assert f"rank {ranks - 1} died of SIGKILL; replacement 2 of 3" in outcome.stderr
    assert outcome.stderr.count("a lost rank was replaced; the run goes on after step") == 2
    assert "resumed" not in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert_as_undisturbed(run_dir, reference)
    ledger = json.loads((run_dir / "ledger.json").read_text())
    assert ledger["restarts"]["killed"] == 2
    history = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert [(start["cause"], start["launcher"]["NPROC"]) for start in history] == [
        (cause, str(ranks)) for cause in (None, "killed", "killed")
    ]
    assert ledger["lost_images"] <= 2 * steps * runs.BATCH


def test_sink_that_is_slow_to_close_does_not_cost_its_rank(reference: Path, tmp_path: Path) -> None:
    surroundings = copies.slowed(tmp_path, 1.0)
    methods = "def __init__(self, *_): pass", "def record(self, *_): pass", "def picture(self, *_): pass"
    lines = "import time", "class Slow:", *(f"    {each}" for each in (*methods, "def close(self): time.sleep(5)"))
    (tmp_path / "slow_sink.py").write_text("\n".join(lines))
    sink_packages.register(tmp_path, "slow-sink", "[gfgw_prod.sinks]\nslow = slow_sink:Slow\n")
    run_dir = tmp_path / "run"
    agent = runs.start(in_place(run_dir, "--telemetry.sinks", "[slow]"), surroundings | {"NPROC": "2"})
    lose(agent, run_dir, 1, step=2)
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "it is killed" not in outcome.stderr
    assert outcome.stderr.count("a lost rank was replaced; the run goes on after step") == 1
    assert_as_undisturbed(run_dir, reference)


@pytest.mark.parametrize("options", [pytest.param((), id="ddp"), pytest.param((*FSDP[:3], "1"), id="fsdp")])
def test_rank_that_stays_keeps_nothing_of_earlier_generations(tmp_path: Path, options: Sequence[str]) -> None:
    facts = tmp_path / "facts"
    copy = copies.in_step(
        tmp_path,
        "import gc, os, time",
        "time.sleep(0.3)  # threads that end at a start are gone then",
        "dies = self.world.rank == 1 and self.step == self.first_step + 3 and self.membership.generation < 6",
        "dies and os.kill(os.getpid(), 9)",
        f"self.world.rank == 0 and self.step == self.first_step and print(*(len(each) for each in (os.listdir("
        f"'/proc/self/fd'), os.listdir('/proc/self/task'), gc.get_objects())), file=open('{facts}', 'a'), flush=True)",
    )
    small = (*runs.SMALL, "--train.total-kimg", str(32 * runs.SMALL_BATCH / 1000))
    outcome = runs.execute(in_place(tmp_path / "run", *small, *options), copy | {"NPROC": "2", "MAX_RESTARTS": "6"})
    assert outcome.code == 0, outcome.stderr
    _, _, *settled = [[*map(int, line.split())] for line in facts.read_text().splitlines()]
    assert len(settled) == 5, outcome.stderr
    descriptors, threads, objects = zip(*settled, strict=True)
    assert {*descriptors} == {descriptors[0]}
    assert {*threads} == {threads[0]}
    assert max(objects) - min(objects) < len(settled) - 1, objects  # a closure for each would be four


@pytest.mark.parametrize("lost", [0, 1])
def test_rank_lost_between_a_step_and_its_record(reference: Path, tmp_path: Path, lost: int) -> None:
    run_dir, once = tmp_path / "run", tmp_path / "once"
    dies = f"self.step == 3 and self.world.rank == {lost} and not os.path.exists('{once}')"
    kills = f"            import os; {dies} and (open('{once}', 'w'), os.kill(os.getpid(), 9))\n"
    copy = copies.changed(tmp_path, copies.STEP_IS_MADE, after=kills)
    outcome = runs.execute(in_place(run_dir), copy | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert "the run goes on after step 3" in outcome.stderr
    assert_as_undisturbed(run_dir, reference)
    assert all(record["run/world_size"] == 2 for record in runs.records(run_dir) if "loss/total" in record)


def test_rank_lost_while_the_launcher_looks_is_replaced(tmp_path: Path) -> None:
    run_dir, now = tmp_path / "run", tmp_path / "now"
    dies = f"os.remove('{now}'); self._workers()[1].kill(); self._workers()[1].wait()"
    copy = copies.changed(
        tmp_path, copies.WORKERS_WERE_LOOKED_AT, before=f"        if os.path.exists('{now}'): {dies}\n"
    )
    small = (*runs.SMALL, "--train.total-kimg", str(100 * runs.SMALL_BATCH / 1000))
    agent = runs.start(in_place(run_dir, *small), copy | {"NPROC": "2"})
    runs.wait_until(lambda: runs.last_step(run_dir) >= 2, agent)
    now.touch()
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "rank 1 died of SIGKILL; replacement 1 of 3" in outcome.stderr


def test_peer_stuck_in_c_is_killed_and_all_restart(reference: Path, tmp_path: Path) -> None:
    run_dir, stuck = tmp_path / "run", tmp_path / "stuck"
    sleeps = f"(open('{stuck}', 'w'), __import__('ctypes').PyDLL(None).sleep(10**6))"  # and holds the GIL
    condition = f"self.world.rank == 0 and self.step == 3 and not __import__('os').path.exists('{stuck}')"
    agent = runs.start(in_place(run_dir), copies.in_step(tmp_path, f"{condition} and {sleeps}") | {"NPROC": "2"})
    runs.wait_until(stuck.exists, agent)
    began = time.monotonic()
    lose(agent, run_dir, 1, step=3)
    runs.wait_until(lambda: runs.last_step(run_dir) > 3, agent, limit_seconds=30)
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "is stuck while the ranks of a new generation meet; it is killed" in outcome.stderr
    assert "restart 2 of 3" in outcome.stderr
    assert time.monotonic() - began < 60
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]


def test_rank_lost_on_another_node_is_replaced_there(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    here = {"NNODES": "2", "NPROC": "1", "RDZV_ENDPOINT": f"localhost:{runs.free_port()}", "LOCAL_ADDR": "localhost"}
    copy = copies.slowed(tmp_path) | here
    agents = [runs.start(in_place(run_dir), copy) for _ in range(2)]
    runs.wait_until(lambda: runs.last_step(run_dir) >= 2, agents[0])
    for agent in agents:  # one after the other, rank 0 among them
        step = runs.last_step(run_dir)
        (rank,) = runs.workers_of(agent.pid)
        lose(agent, run_dir, rank, step)
        runs.wait_until(lambda: runs.last_step(run_dir) > step, agent)  # noqa: B023
    outcomes = [runs.outcome_of(agent) for agent in agents]
    said = "".join(outcome.stderr for outcome in outcomes)
    assert [outcome.code for outcome in outcomes] == [0, 0], said
    assert said.count("replacement 1 of 3") == 2
    assert_as_undisturbed(run_dir, reference)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("waits", [True, False], ids=["joins", "may be too late"])
def test_ranks_go_on_without_a_lost_one_whose_networks_are_compiled(
    reference: Path, tmp_path: Path, lost: int, waits: bool
) -> None:
    """Where steps wait for it, the new rank joins; else the run may end before its networks are built."""
    copy = copies.in_step(
        tmp_path,
        "import os, time",
        f"dies = self.world.rank == {lost} and self.step == 3 and self.membership.generation == 0",
        "dies and os.kill(os.getpid(), 9)",
        f"while {waits} and self.membership.generation == 1 and self.membership._heard_of == 1: time.sleep(0.01)",
    )
    run_dir = tmp_path / "run"
    outcome = runs.execute(in_place(run_dir, *COMPILED), copy | NOTHING_IS_COMPILED | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert f"rank {lost} died of SIGKILL; replacement 1 of 3" in outcome.stderr
    assert "ranks were lost: now 1, before 2; the run goes on after step 3" in outcome.stderr
    if waits:
        assert "ranks joined: now 2, before 1; the run goes on after step 3" in outcome.stderr
    assert "restart" not in outcome.stderr
    assert "resumed" not in outcome.stderr
    assert_as_undisturbed(run_dir, reference)


def test_run_ends_without_ranks_whose_networks_are_not_compiled_yet(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    copy = copies.changed(tmp_path, copies.RANK_IS_BUILT_ALONE, after="        __import__('time').sleep(10**6)\n")
    small = (*runs.SMALL, "--train.total-kimg", str(100 * runs.SMALL_BATCH / 1000))
    agent = runs.start(in_place(run_dir, *COMPILED, *small), copy | NOTHING_IS_COMPILED | {"NPROC": "3"})
    lose(agent, run_dir, 1, step=2)
    runs.hear(agent, "ranks were lost: now 2, before 3")
    lose(agent, run_dir, 2, step=runs.last_step(run_dir) + 2)
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "replacement 2 of 3" in outcome.stderr
    assert "ranks were lost: now 1, before 2" in outcome.stderr
    assert "restart" not in outcome.stderr


def test_rank_that_was_built_for_another_number_of_ranks_joins(reference: Path, tmp_path: Path) -> None:
    """Others may have joined meanwhile, or been lost."""
    run_dir = tmp_path / "run"
    copy = copies.in_step(
        tmp_path,
        "import os, time",
        "dies = self.world.rank == 1 and self.step == 3 and self.membership.generation == 0",
        "dies and os.kill(os.getpid(), 9)",
        "while self.membership.generation == 1 and self.membership._heard_of == 1: time.sleep(0.01)",
    )
    module, built = tmp_path / "gfgw_prod" / copies.RANK_IS_BUILT_ALONE.module, copies.RANK_IS_BUILT_ALONE.text
    another = "        world = World(world.rank, 3, world.device, world.local_rank, world.local_world_size)\n"
    module.write_text(module.read_text(encoding="utf-8").replace(built, another + built), encoding="utf-8")
    outcome = runs.execute(in_place(run_dir, *COMPILED), copy | NOTHING_IS_COMPILED | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert "ranks joined: now 2, before 1; the run goes on after step 3" in outcome.stderr
    assert "restart" not in outcome.stderr
    assert_as_undisturbed(run_dir, reference)


def test_node_that_is_lost_with_its_shares_is_not_waited_for(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    where = {"NNODES": "1:2", "NPROC": "1", "RDZV_ENDPOINT": f"localhost:{runs.free_port()}", "LOCAL_ADDR": "localhost"}
    copy = copies.slowed(tmp_path) | where | {"RDZV_LAST_CALL": "10"}
    host, other = (runs.start(in_place(run_dir, *FSDP), copy) for _ in range(2))
    runs.wait_until(lambda: runs.last_step(run_dir) >= 2, host)
    other.kill()
    outcome = runs.outcome_of(host)
    assert outcome.code == 0, outcome.stderr
    assert "replacement" not in outcome.stderr
    assert_as_undisturbed(run_dir, reference)


def struck_twice(agent: subprocess.Popen[str], run_dir: Path, pause: float) -> None:
    """SIGKILL to one rank, and to the other as soon as the first is replaced, or a little later."""
    before = lose(agent, run_dir, 1, step=2)
    runs.wait_until(lambda: (now := runs.workers_of(agent.pid)).get(1, before[1]) != before[1] and len(now) == 2, agent)
    time.sleep(pause)
    os.kill(before[0], signal.SIGKILL)


def told_to_stop(agent: subprocess.Popen[str], run_dir: Path, pause: float) -> None:
    """SIGKILL to one rank, and SIGTERM to the launcher while it is replaced."""
    before = lose(agent, run_dir, 1, step=2)
    runs.wait_until(lambda: runs.workers_of(agent.pid).get(1, before[1]) != before[1], agent)
    time.sleep(pause)
    agent.terminate()


@pytest.mark.parametrize("pause", [0.0, 0.3, 0.8])
@pytest.mark.parametrize(("strike", "code"), [(struck_twice, 0), (told_to_stop, 75)])
def test_fault_while_a_rank_is_replaced_changes_no_weight(
    reference: Path, tmp_path: Path, strike: Callable[..., None], code: int, pause: float
) -> None:
    run_dir = tmp_path / "run"
    command, surroundings = in_place(run_dir), copies.slowed(tmp_path) | {"NPROC": "2"}
    agent = runs.start(command, surroundings)
    strike(agent, run_dir, pause)
    outcome = runs.outcome_of(agent)
    assert outcome.code == code, outcome.stderr
    if code:
        assert runs.execute(command, surroundings).code == 0
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)


def test_step_that_always_kills_a_rank_restarts_all_and_ends_the_job(tmp_path: Path) -> None:
    kills = "self.step == 3 and self.world.rank == 1 and __import__('os').kill(__import__('os').getpid(), 9)"
    copy = copies.in_step(tmp_path, kills)
    outcome = runs.execute(in_place(tmp_path / "run"), copy | {"NPROC": "2", "MAX_RESTARTS": "3"})
    assert outcome.code == 1, outcome.stderr
    assert "rank 1 died of SIGKILL; replacement 2 of 3" in outcome.stderr
    assert "ranks were lost twice in a row in step 4; all restart" in outcome.stderr
    assert "restart 3 of 3" in outcome.stderr
    assert "no restarts left" in outcome.stderr


def test_rank_that_missed_the_verdict_on_a_step_settles_it_like_the_others(reference: Path, tmp_path: Path) -> None:
    """Rank 1 is lost as soon as all have judged a step. Rank 3, which has the same shard, has not heard the verdict."""
    run_dir, once = tmp_path / "run", tmp_path / "once"
    strikes = (
        "        import os, time\n"
        f"        once = '{once}-' + str(self._world.rank)\n"
        "        if step == 2 and self._world.rank in (1, 3) and not os.path.exists(once):\n"
        "            open(once, 'w')\n"
        "            time.sleep(1)\n"  # the others have judged it too then
        "            if self._world.rank == 1:\n"
        "                os.kill(os.getpid(), 9)\n"
        "            raise RuntimeError('[/gloo/] Connection closed by peer')\n"
    )
    copy = copies.changed(tmp_path, copies.STEP_IS_JUDGED, before=strikes)
    outcome = runs.execute(in_place(run_dir, *HSDP), copy | {"NPROC": "4"})
    assert outcome.code == 0, outcome.stderr
    assert "replacement 1 of 3" in outcome.stderr
    assert "the run goes on after step 3" in outcome.stderr
    assert "restart" not in outcome.stderr
    assert_as_undisturbed(run_dir, reference)


def dies_once(world: str, once: Path) -> str:
    """Code with which rank 1 of a world is killed, unless a file exists, which it makes."""
    first = f"{world}.rank == 1 and not os.path.exists('{once}')"
    return f"import os; {first} and (open('{once}', 'w'), os.kill(os.getpid(), 9))"


def test_loss_of_a_rank_and_of_the_one_with_its_copy_restarts_all(reference: Path, tmp_path: Path) -> None:
    run_dir, go_on = tmp_path / "run", tmp_path / "go-on"
    command = runs.elastic(run_dir, "--resilience.in-place", "true", *FSDP)
    agent = runs.start(command, copies.held_in_step(tmp_path, 3, until=go_on) | {"NPROC": "3"})
    runs.wait_until((run_dir / "checkpoints" / "step-00000002").exists, agent)
    runs.wait_until(lambda: runs.last_step(run_dir) >= 3, agent)
    ranks = runs.workers_of(agent.pid)
    agent.send_signal(signal.SIGSTOP)  # it shall see both losses at once, and before the rank that is left gives it up
    for rank in (1, 2):
        os.kill(ranks[rank], signal.SIGKILL)
    runs.wait_until(lambda: all(stat_fields(ranks[rank])[0] == "Z" for rank in (1, 2)), agent)
    agent.send_signal(signal.SIGCONT)
    go_on.touch()
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "rank 1 died of SIGKILL, rank 2 died of SIGKILL; replacement 1 of 3" in outcome.stderr
    assert "no rank has a copy of a lost rank's part of the state; all restart" in outcome.stderr
    assert "restart 2 of 3" in outcome.stderr
    assert_as_undisturbed(run_dir, reference)


def test_rank_lost_before_there_are_copies_restarts_all(reference: Path, tmp_path: Path) -> None:
    run_dir, once = tmp_path / "run", tmp_path / "once"
    copy = copies.changed(tmp_path, copies.STATE_IS_MADE_SAFE, before=f"            {dies_once('self.world', once)}\n")
    outcome = runs.execute(in_place(run_dir, *FSDP), copy | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert "replacement" not in outcome.stderr
    assert "restart 1 of 3" in outcome.stderr
    assert_as_undisturbed(run_dir, reference)


def test_rank_lost_when_all_steps_are_made_is_not_replaced(reference: Path, tmp_path: Path) -> None:
    run_dir, once = tmp_path / "run", tmp_path / "once"
    copy = copies.changed(tmp_path, copies.RUN_CLOSES, before=f"                {dies_once('world', once)}\n")
    outcome = runs.execute(in_place(run_dir), copy | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert once.exists()
    assert "replacement" not in outcome.stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
