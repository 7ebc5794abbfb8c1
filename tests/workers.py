"""How tests are spread over pytest-xdist's workers, and what becomes of a worker's tests when it dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Tests of how long something takes, or of what a machine has once; one worker has them all, one after the other.
IN_TURN = (
    "test_slurm",
    "test_two_hosts",
    "test_pods",
    "test_hangs",
    "test_stragglers",
    "test_preemption",
    "test_chaos",
    "test_crash_loops",
    "test_live_metrics",
    "test_monitoring",
    "test_health",
    "test_job_ending",
    "test_orphans",
    "test_stopped_launchers",
    "test_signals_while_starting",
)

# One worker has the image.
OF_THE_IMAGE = ("test_image", "test_stack")

# It keeps the disk busy for minutes; these mind least, and are long enough to run beside it.
BESIDE_THE_IMAGE = ("test_world_sizes", "test_many_steps")


class FilesInTurn(LoadScopeScheduling):
    """Hands a worker a file at a time, and to one worker all files whose tests must not run beside each other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = Path(file).stem
        return "in turn" if name in IN_TURN else "image" if name in OF_THE_IMAGE else file

    def remove_node(self, node: WorkerController) -> str | None:
        """Takes back what a worker has not run. The test it died of has failed, and is not run again by the others."""
        left = self.assigned_work.pop(node)
        undone = [(scope, test) for scope, tests in left.items() for test, done in tests.items() if not done]
        if not undone:
            return None
        scope, died_of = undone[0]
        left[scope][died_of] = True
        self.workqueue.update({scope: tests for scope, tests in left.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return died_of

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Gives a worker tests; one that is still collecting them is told when it has."""
        if node in self.registered_collections:
            super()._assign_work_unit(node)

    def schedule(self) -> None:
        """Hands out tests; a worker that came later is told, too, if there is nothing for it after those it has."""
        super().schedule()
        for node in self.nodes:  # a worker holds back its last test until it knows what comes after it
            if self._pending_of(self.assigned_work[node]) < 2:
                self._reschedule(node)


class Failures:
    """Names a test as soon as it has failed, so that a run that is cut short has told of it."""

    def __init__(self, config: pytest.Config):
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Prints one line for a failure."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or not report.failed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        told = str(crash.message if crash else report.longrepr).strip()
        terminal.ensure_newline()
        terminal.write_line(f"FAILED {report.nodeid} {report.when}: {told.splitlines()[0] if told else ''}"[:300])
