"""Schedule tests over pytest-xdist's workers, and go on when a worker crashes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# These measure durations, or wait on deadlines that a busy machine misses. One worker runs them one after the other.
IN_TURN = (
    "test_slurm",
    "test_two_hosts",
    "test_pods",
    "test_hangs",
    "test_stragglers",
    "test_preemption",
    "test_chaos",
    "test_live_metrics",
    "test_monitoring",
    "test_health",
)

# One worker builds the image and uses it, once the files in turn are done: it keeps the disk busy for minutes.
OF_THE_IMAGE = ("test_image", "test_stack")

# The last ones, since they are long and suffer least from a busy disk.
BESIDE_THE_IMAGE = ("test_world_sizes", "test_many_steps")


class FilesInTurn(LoadScopeScheduling):
    """Gives a worker one file at a time, and gives all files that must not run side by side to the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = Path(file).stem
        return "in turn" if name in IN_TURN else "image" if name in OF_THE_IMAGE else file

    def remove_node(self, node: WorkerController) -> str | None:
        """Reassign the tests that a crashed worker has not run, without the one it was running, which has failed."""
        assigned = self.assigned_work.pop(node)
        unfinished = [(scope, test) for scope, tests in assigned.items() for test, done in tests.items() if not done]
        if not unfinished:
            return None
        scope, crashed = unfinished[0]
        assigned[scope][crashed] = True
        self.workqueue.update({scope: tests for scope, tests in assigned.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Assign tests to a worker, unless it is still collecting; ``schedule`` is called once it has collected."""
        if node not in self.registered_collections:
            return
        if "image" in self.workqueue:
            self.workqueue.move_to_end("image", last=self._is_in_turn_elsewhere(node))
        with suppress(OSError):  # it has just died: its tests are reassigned when that is reported
            super()._assign_work_unit(node)

    def _is_in_turn_elsewhere(self, node: WorkerController) -> bool:
        """Whether another worker has files in turn to run."""
        assigned = (scopes.get("in turn", {}) for other, scopes in self.assigned_work.items() if other is not node)
        return "in turn" in self.workqueue or any(not all(tests.values()) for tests in assigned)

    def schedule(self) -> None:
        """Assign tests. A worker that replaces a crashed one learns here if there is nothing more for it."""
        super().schedule()
        for node in self.nodes:  # a worker holds back its last test until it knows what comes after it
            if self._pending_of(self.assigned_work[node]) < 2:
                self._reschedule(node)


class Failures:
    """Prints one line as soon as a test fails, so that an interrupted run still shows its failures."""

    def __init__(self, config: pytest.Config):
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or not report.failed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        message = str(crash.message if crash else report.longrepr).strip()
        terminal.ensure_newline()
        terminal.write_line(f"FAILED {report.nodeid} {report.when}: {message.splitlines()[0] if message else ''}"[:300])
