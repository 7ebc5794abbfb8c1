"""Two nodes that come, go and lose their connection end with the weights of one undisturbed process."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import PREEMPTED

from . import copies, runs
from .two_hosts import CANNOT, TwoHosts

pytestmark = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)

STEPS = 24


class Job:
    """A run on two hosts. Its agents are killed at the end of the context.

    Args:
        statements: what each step runs.
    """

    def __init__(self, directory: Path, *options: str, statements: Sequence[str] = ("time.sleep(0.8)",)):
        self.run_dir = directory / "run"
        self.command = runs.elastic(self.run_dir, *options, steps=STEPS)
        self.copy = copies.in_step(directory, "import time", *statements)
        self.agents: list[subprocess.Popen[str]] = []

    @contextmanager
    def on(self, net: TwoHosts) -> Iterator[Job]:
        self.agents = [self.start(net, host) for host in (0, 1)]
        try:
            yield self
        finally:
            for agent in self.agents:
                agent.kill()  # the ranks die with their agent

    def start(self, net: TwoHosts, host: int) -> subprocess.Popen[str]:
        return net.start(host, self.command, self.copy)

    def position(self) -> tuple[int, int]:
        """Number of ranks, and the last recorded step."""
        if not (self.run_dir / "stats.jsonl").exists():
            return 0, 0
        recorded = [record for record in runs.records(self.run_dir) if "run/world_size" in record]
        return (int(recorded[-1]["run/world_size"]), int(recorded[-1]["step"])) if recorded else (0, 0)

    def wait_for(self, ranks: int, after: int = 0) -> int:
        """Wait until that many ranks have made a step after the given one. Returns their step."""

        def there() -> bool:
            now, step = self.position()
            return now == ranks and step > after

        runs.wait_until(there, self.agents[0])
        return self.position()[1]

    def end(self) -> list[runs.Outcome]:
        return [runs.outcome_of(agent) for agent in self.agents]


def killed_agent(directory: Path) -> tuple[Path, list[runs.Outcome]]:
    with TwoHosts() as net, Job(directory).on(net) as job:
        step = job.wait_for(2, after=3)
        job.agents[1].kill()
        assert runs.outcome_of(job.agents[1]).code == -signal.SIGKILL
        alone = job.wait_for(1)
        assert alone >= step - 2  # one interval between checkpoints
        job.agents[1] = job.start(net, 1)
        job.wait_for(2, after=alone)
        ends = job.end()
        assert f"{net.addresses[1]} is lost: it has not answered" in ends[0].stderr
        assert f"1 node ({net.addresses[1]}) joins: all ranks stop and start with it" in ends[0].stderr
        assert "kimg; all is saved; the launchers say what follows" in ends[0].stderr
        assert "go on:      " not in ends[0].stderr.partition("joins")[2].partition("trained")[0]
        assert all("exit code 0: the run is finished" in end.stderr for end in ends)
        restarts = json.loads((job.run_dir / "ledger.json").read_text())["restarts"]
        assert {cause for cause, count in restarts.items() if count} == {"membership"}
        return job.run_dir, ends


def cut_cable(directory: Path) -> tuple[Path, list[runs.Outcome]]:
    in_place = ("--resilience.in-place", "true", "--distributed.timeout-seconds", "10")
    waits = "while waits and self.membership._heard_of == self.membership.generation: time.sleep(0.1)"
    statements = ("time.sleep(0.8)", "waits = self.step == 10 and self.world.world_size == 1", waits)
    with TwoHosts() as net, Job(directory, *in_place, statements=statements).on(net) as job:
        job.wait_for(2, after=3)
        cut_at = time.monotonic()
        net.cable("down")
        # TCP resends a pending request after 25.4 s, and then after 51: too late for the other node.
        time.sleep(24.8 - (time.monotonic() - cut_at))
        net.cable("up")
        job.wait_for(2, after=job.position()[1])
        return job.run_dir, job.end()


def lost_rendezvous(directory: Path) -> tuple[Path, list[runs.Outcome]]:
    with TwoHosts() as net, Job(directory).on(net) as job:
        step = job.wait_for(2, after=3)
        job.agents[0].kill()
        runs.outcome_of(job.agents[0])
        time.sleep(5)  # the other node waits, as there is no rendezvous
        assert job.agents[1].poll() is None
        job.agents[0] = job.start(net, 0)  # as a scheduler would
        job.wait_for(2, after=step)
        return job.run_dir, job.end()


Ends = dict[Callable[[Path], tuple[Path, list[runs.Outcome]]], "Future[tuple[Path, list[runs.Outcome]]]"]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """All scenarios at once: they mostly wait until a node is missed."""
    with ThreadPoolExecutor() as pool:
        yield {
            scenario: pool.submit(scenario, tmp_path_factory.mktemp(scenario.__name__))
            for scenario in (killed_agent, cut_cable, lost_rendezvous)
        }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    runs.train(run_dir, steps=STEPS)
    return run_dir


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (killed_agent, "restart 1 of 3"),
        (cut_cable, "the others go on without this rank"),
        (lost_rendezvous, "lost the rendezvous"),
    ],
)
def test_two_hosts_end_with_the_weights_of_one_process(
    ends: Ends, undisturbed: Path, scenario: Callable[[Path], tuple[Path, list[runs.Outcome]]], said: str
) -> None:
    run_dir, outcomes = ends[scenario].result()
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert any(said in outcome.stderr for outcome in outcomes)
    assert any("resumed" in outcome.stderr for outcome in outcomes) == (scenario is not cut_cable)
    assert not any("Traceback" in outcome.stderr for outcome in outcomes), outcomes
    assert runs.digests(run_dir)[STEPS] == runs.digests(undisturbed)[STEPS]
    assert runs.losses(run_dir) == runs.losses(undisturbed)
    runs.assert_each_metric_has_each_step_once(run_dir, STEPS)


def test_node_that_waits_for_the_rendezvous_exits_at_a_signal(tmp_path: Path) -> None:
    with TwoHosts() as net, Job(tmp_path).on(net) as job:
        job.wait_for(2)
        job.agents[0].kill()
        waiting = job.agents[1]
        assert "all ranks start on 2 nodes" in runs.hear(waiting, "lost the rendezvous")
        waiting.terminate()
        assert waiting.wait(timeout=60) == PREEMPTED
