"""Jobs of launch/slurm.sbatch under a real SLURM: they requeue as long as that helps, and end with the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from . import runs
from .slurm import Cluster, require
from .slurm_jobs import ARGUMENTS, SCRIPT, STEPS, Ended, Job

pytestmark = pytest.mark.timeout(600)  # a test also waits for the scenarios before its own


def preempted_twice(directory: Path) -> Ended:
    with Cluster(directory, nodes=2) as cluster:
        job = Job(cluster, "--nodes=2")
        for times in ("1", "2"):
            ranks = job.freeze_after(runs.last_step(job.run_dir))
            cluster.ask(
                "sbatch", "--job-name=rival", "--output=/dev/null", "--partition=high", "--nodes=2", "--wrap=sleep 600"
            )
            job.thaw(ranks)
            cluster.wait_for(lambda: "rival" in cluster.ask("squeue", "--states=running", "--format=%j"))
            assert (job["JobState"], job["Restarts"]) == ("PENDING", times)
            cluster.ask("scancel", "--name=rival")
        return job.end()


def near_its_time_limit(directory: Path) -> Ended:
    with Cluster(directory, nodes=1) as cluster:
        job = Job(cluster, "--time=10", "--signal=B:USR1@60")
        ranks = job.freeze_after(2)
        cluster.ask("scontrol", "update", f"JobId={job.id}", "EndTime=now+90")
        job.thaw(ranks)
        cluster.wait_for(lambda: job["JobState"] == "PENDING")
        cluster.ask("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")
        return job.end()


def on_a_node_that_loses_power(directory: Path) -> Ended:
    with Cluster(directory, nodes=2, patience_seconds=30) as cluster:
        job = Job(cluster, "--nodes=1-2")
        job.freeze_after_checkpoint()
        cluster.lose("n1")
        ended = job.end()
        assert job["NumNodes"] == "1"
        return ended


def on_a_node_taken_for_dead(directory: Path) -> Ended:
    with Cluster(directory, nodes=2, patience_seconds=30) as cluster:
        job = Job(cluster, "--nodes=1")
        stale = job.freeze_after_checkpoint()
        cluster.daemons["n1"].kill()
        cluster.wait_for(lambda: "resumed" in job.said, pause_seconds=0.02)
        successors = job.freeze_after(0, "n2")
        job.thaw(stale, once_signalled=False)
        cluster.wait_for(lambda: not cluster.processes("n1"))
        job.thaw(successors, once_signalled=False)
        return job.end()


def crashing(directory: Path) -> Ended:
    with Cluster(directory, nodes=1) as cluster:
        job = Job(cluster, "--comment=nightly", MAX_RESTARTS="0", MAX_REQUEUES="1")
        for _ in range(2):
            cluster.wait_for(job.ranks)
            (rank,) = job.ranks()
            os.kill(rank, signal.SIGKILL)
            cluster.wait_for(lambda: job["JobState"] != "RUNNING")
        return job.end()


def cancelled(directory: Path) -> Ended:
    with Cluster(directory, nodes=1) as cluster:
        job = Job(cluster)
        ranks = job.freeze_after(2)
        cluster.ask("scancel", job.id)
        job.thaw(ranks)
        return job.end()


def with_a_bad_setting(directory: Path) -> Ended:
    with Cluster(directory, nodes=1) as cluster:
        return Job(cluster, options=("--train.batch-size", "many")).end()


def with_a_bad_environment(directory: Path) -> Ended:
    with Cluster(directory, nodes=1) as cluster:
        return Job(cluster, MAX_REQUEUES="many").end()


SAME_WEIGHTS = {
    preempted_twice: ("told to stop at", "queued again: told to stop"),
    near_its_time_limit: ("told to stop at", "queued again: told to stop"),
    on_a_node_that_loses_power: (),
    on_a_node_taken_for_dead: ("taking over from process",),
}
SCENARIOS = (*SAME_WEIGHTS, crashing, cancelled, with_a_bad_setting, with_a_bad_environment)
Ends = dict[Callable[[Path], Ended], Future[Ended]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """All scenarios at once: they mostly wait for SLURM."""
    require()
    with ThreadPoolExecutor(4) as pool:
        yield {scenario: pool.submit(scenario, tmp_path_factory.mktemp("slurm") / "cluster") for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    without_pictures = ("--telemetry.samples-every-kimg", "1000")
    outcome = runs.execute([*runs.GFGW, "train", *ARGUMENTS, *without_pictures, "--run.dir", str(run_dir)])
    assert outcome.code == 0, outcome.stderr
    return run_dir


@pytest.mark.parametrize("scenario", SAME_WEIGHTS)
def test_job_ends_with_the_weights_of_one_undisturbed_process(
    ends: Ends, undisturbed: Path, scenario: Callable[[Path], Ended]
) -> None:
    job = ends[scenario].result()
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), job.said
    assert job.restarts == ("2" if scenario is preempted_twice else "1"), job.said
    assert job.said.count("resumed") == int(job.restarts)
    assert all(words in job.said for words in SAME_WEIGHTS[scenario]), job.said
    assert runs.digests(job.run_dir)[STEPS] == runs.digests(undisturbed)[STEPS]


def test_crashing_job_is_requeued_max_requeues_times(ends: Ends) -> None:
    job = ends[crashing].result()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "1:0", "1"), job.said
    assert job.comment == "nightly crashes=1"
    assert "queued again: exit code 1, crash 1 of 1" in job.said
    assert "not queued again: exit code 1, and MAX_REQUEUES is 1" in job.said


def test_cancelled_job_saves_and_is_not_requeued(ends: Ends) -> None:
    job = ends[cancelled].result()
    assert (job.state, job.restarts) == ("CANCELLED", "0"), job.said
    assert "not queued again" in job.said
    assert max(runs.digests(job.run_dir)) == runs.last_step(job.run_dir) < STEPS  # saved at its last step


def test_bad_setting_ends_the_job_with_2_and_one_line(ends: Ends) -> None:
    job = ends[with_a_bad_setting].result()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "2:0", "0"), job.said
    assert [line for line in job.said.splitlines() if "train.batch_size" in line], job.said


def test_bad_environment_ends_the_job_with_2_and_one_line(ends: Ends) -> None:
    job = ends[with_a_bad_environment].result()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "2:0", "0"), job.said
    assert job.said == "slurm.sbatch: MAX_REQUEUES must be a whole number of at least 0, not 'many'\n"


def test_script_without_slurm_is_refused() -> None:
    complaint = runs.execute(["bash", str(SCRIPT), *ARGUMENTS]).complaint
    assert complaint == "slurm.sbatch: submit this script with sbatch; without SLURM use launch/elastic.sh"
