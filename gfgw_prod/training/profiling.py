"""A trace of a few steps, for Perfetto, TensorBoard or chrome://tracing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gfgw_prod.process.standard_streams import Warned

WARM_UP = 2  # steps of a start before those that are recorded: the first ones load kernels and allocate memory


class StepProfiler:
    """Records the ``steps`` steps after the first two of a start in ``directory``, on rank 0. Nothing with 0 steps."""

    def __init__(self, first_step: int, steps: int, directory: Path, log: Callable[[str], None]):
        self._begin, self._end = first_step + WARM_UP, first_step + WARM_UP + steps
        self._directory, self._log = directory, log
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Step ``step`` (from 0) is about to begin."""
        if step == self._begin < self._end:
            from torch.profiler import ProfilerActivity, profile

            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self._profiler.start()

    def after(self, step: int) -> None:
        """Step ``step`` has ended; after the last one, write the trace."""
        if self._profiler is None or step + 1 < self._end:
            return
        self._profiler.stop()
        path = self._directory / f"steps-{self._begin + 1}-to-{self._end}.pt.trace.json.gz"
        try:
            self._directory.mkdir(exist_ok=True)
            self._profiler.export_chrome_trace(str(path))
            self._log(f"profile:    {path}")
        except (OSError, RuntimeError) as error:
            self._log(Warned(f"{path} could not be written ({error}); the run goes on"))
        self._profiler = None
