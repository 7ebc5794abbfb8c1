"""A job on two hosts ends as one: every node soon exits with the code of the node that ended it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import BAD_INPUT, CRASH_LOOP, CRASHED, FINISHED, PREEMPTED

from . import runs
from .two_hosts import CANNOT, TwoHosts

pytestmark = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)

SOON_SECONDS = 120  # on busy cores; a node that waits in vain for its peer takes 300 or 600


def until(condition: str) -> str:
    """Shell code of a rank that waits; it ends with its agent."""
    return f"while kill -0 $GFGW_AGENT_PID && ! {condition}; do sleep 0.2; done 2>/dev/null"


TRAINS_ON = until("false")
ports = count(29500)


class Job:
    """Agents on two hosts, whose ranks run one shell script per host. Killed at the end of the context."""

    def __init__(
        self, net: TwoHosts, directory: Path, *scripts: str, nodes: str = "2", ranks: int = 1, max_restarts: int = 3
    ):
        self.net, self.directory, self.scripts, self.port = net, directory, scripts, next(ports)
        self.nodes, self.ranks, self.max_restarts = nodes, ranks, max_restarts
        self.agents: dict[int, subprocess.Popen[str]] = {}

    def start(self, host: int) -> None:
        address = self.net.addresses
        launcher = [sys.executable, "-m", "gfgw_prod.launcher", "--nnodes", self.nodes]
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address[0]}:{self.port}", "--rdzv-id", "job"]
        # A read of the rendezvous fails after this time; torch takes as long to give up a connection.
        limits = ["--rdzv-conf", "last_call_timeout=5,read_timeout=10", "--max-restarts", str(self.max_restarts)]
        limits += ["--nproc-per-node", str(self.ranks)]
        rank = ["--local-addr", address[host], "--no-python", "sh", "-c", self.scripts[host]]
        command = [*launcher, *meeting, *limits, *rank]
        self.agents[host] = self.net.start(host, command, {"HERE": str(self.directory)})

    def __enter__(self) -> Job:
        for host in (0, 1):
            self.start(host)
        return self

    def kill(self, host: int) -> None:
        self.agents[host].kill()
        self.agents[host].wait()  # its rank notices when the process id is free

    def __exit__(self, *_: object) -> None:
        for host in self.agents:
            self.kill(host)

    def end(self) -> list[runs.Outcome]:
        """Outcomes by host. Once one agent has ended, the other must end soon."""
        deadline = time.monotonic() + runs.LIMIT_SECONDS
        while all(agent.poll() is None for agent in self.agents.values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return [runs.outcome_of(self.agents[host], SOON_SECONDS) for host in (0, 1)]

    def wait_for(self, *lines: str) -> None:
        """Wait until the ranks have written exactly these lines."""
        file = self.directory / "lines"
        runs.wait_until(lambda: file.exists() and file.read_text().split() == [*lines], self.agents[1])


Ends = list[runs.Outcome]


def bad_input_on_the_host(net: TwoHosts, directory: Path) -> Ends:
    with Job(net, directory, "exit 2", TRAINS_ON) as job:
        return job.end()


def crash_seen_before_its_cause(net: TwoHosts, directory: Path) -> Ends:
    """A node without restarts left sees a broken connection; its cause is known a moment later."""
    cause = "touch $HERE/broken; sleep 0.3; exit 76"
    effect = f"{until('[ -e $HERE/broken ]')}; exit 1"
    with Job(net, directory, cause, effect, max_restarts=0) as job:
        return job.end()


def crash_seen_while_a_neighbour_of_its_cause_exits_slowly(net: TwoHosts, directory: Path) -> Ends:
    """The node knows the cause, but waits for its other rank before it exits."""
    slow = "trap 'sleep 12; exit 75' TERM; touch $HERE/up; while :; do sleep 0.1; done"
    cause = f"[ $LOCAL_RANK = 1 ] && {{ {slow}; }}; {until('[ -e $HERE/up ]')}; touch $HERE/broken; exit 2"
    effect = f"{until('[ -e $HERE/broken ]')}; sleep 1; exit 1"
    with Job(net, directory, cause, effect, ranks=2, max_restarts=0) as job:
        return job.end()


def finished_and_crashed(net: TwoHosts, directory: Path) -> Ends:
    crashes = f"{until('[ -e $HERE/ended ]')}; sleep 5; exit 1"
    with Job(net, directory, "touch $HERE/ended; exit 0", crashes) as job:
        return job.end()


def wrong_setting_on_one(net: TwoHosts, directory: Path) -> Ends:
    """The ranks of the other host wait for their peer."""
    command = runs.elastic(directory / "run")
    agents = [net.start(0, command), net.start(1, [*command, "--train.batchsize", "16"])]
    return [runs.outcome_of(agent, 2 * SOON_SECONDS) for agent in agents]


def one_preempted(net: TwoHosts, directory: Path) -> Ends:
    """As in training, the rank that stays fails because it loses its peer, and is restarted."""
    again = "[ -e $HERE/again ] && exit $TORCHELASTIC_RESTART_COUNT"  # 0: the restart is not counted
    stays = f"{again}; {until('[ -e $HERE/gone ]')}; touch $HERE/again; exit 1"
    with Job(net, directory, stays, f"echo up >> $HERE/lines; {TRAINS_ON}", nodes="1:2") as job:
        job.wait_for("up")
        job.agents[1].terminate()
        gone = runs.outcome_of(job.agents[1], SOON_SECONDS)
        (directory / "gone").touch()
        return [runs.outcome_of(job.agents[0], 2 * SOON_SECONDS), gone]


def restarts_used_up(net: TwoHosts, directory: Path) -> Ends:
    """The rank of host 1 crashes, the host of the rendezvous is lost and comes back, and the rank crashes again."""
    crashes = f"echo $TORCHELASTIC_RESTART_COUNT >> $HERE/lines; {until('rm $HERE/crash')}; exit 1"
    with Job(net, directory, TRAINS_ON, crashes, max_restarts=1) as job:
        job.wait_for("0")
        (directory / "crash").touch()
        job.wait_for("0", "1")
        job.kill(0)
        job.start(0)
        job.wait_for("0", "1", "1")
        (directory / "crash").touch()
        return job.end()


def host_that_closes_connections(net: TwoHosts, directory: Path) -> Ends:
    """Something listens at the rendezvous and closes every connection; then the host comes."""
    job = Job(net, directory, "exit 0", "exit 0")
    answer = f"import socket\ns = socket.create_server(('', {job.port}))\nwhile True: s.accept()[0].close()"
    stand_in = net.start(0, [sys.executable, "-c", answer])
    job.start(1)
    try:
        said = runs.hear(job.agents[1], "lost the rendezvous")
        stand_in.kill()
        runs.outcome_of(stand_in)
        job.start(0)
        host, peer = job.end()
        return [host, runs.Outcome(peer.code, peer.stdout, said + peer.stderr)]
    finally:
        stand_in.kill()
        job.__exit__()


SCENARIOS: list[tuple[Callable[[TwoHosts, Path], Ends], list[int], str]] = [
    (bad_input_on_the_host, [BAD_INPUT, BAD_INPUT], "with exit code 2"),
    (wrong_setting_on_one, [BAD_INPUT, BAD_INPUT], "with exit code 2"),
    (crash_seen_before_its_cause, [CRASH_LOOP, CRASH_LOOP], "with exit code 76"),
    (crash_seen_while_a_neighbour_of_its_cause_exits_slowly, [BAD_INPUT, BAD_INPUT], "with exit code 2"),
    (finished_and_crashed, [FINISHED, FINISHED], "after the other nodes had finished"),
    (one_preempted, [FINISHED, PREEMPTED], "restart 1 of 3"),
    (restarts_used_up, [CRASHED, CRASHED], "no restarts left"),
    (host_that_closes_connections, [FINISHED, FINISHED], "lost the rendezvous"),
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Ends]]]:
    """All scenarios at once, on the same two hosts: they mostly wait."""
    with TwoHosts() as net, ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {
            scenario.__name__: pool.submit(scenario, net, tmp_path_factory.mktemp(scenario.__name__))
            for scenario, _, _ in SCENARIOS
        }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "codes", "said"), [(scenario.__name__, *rest) for scenario, *rest in SCENARIOS])
def test_job_ends_as_one(ends: dict[str, Future[Ends]], name: str, codes: list[int], said: str) -> None:
    outcomes = ends[name].result()
    assert [outcome.code for outcome in outcomes] == codes, outcomes
    assert any(said in outcome.stderr for outcome in outcomes), outcomes
    assert not any("Traceback" in outcome.stderr for outcome in outcomes), outcomes
