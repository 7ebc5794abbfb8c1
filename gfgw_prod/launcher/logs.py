"""Where workers' output goes: to the launcher's own, and into no file."""

import os

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs


class NoFiles(LogsSpecs):
    """No log directory. torch's default makes one, which an agent that is killed or told to stop leaves behind.

    torch can do without when it is given the null device, but then has threads read from it, and a signal that arrives
    while it waits for one of these is lost.
    """

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Output of each local rank: none of it is redirected or copied."""
        unchanged = dict.fromkeys(range(len(envs)), "")
        return LogsDest(stdouts=unchanged, stderrs=unchanged, error_files=dict.fromkeys(unchanged, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """No directory."""
        return os.devnull
