"""The elastic agent of one node: torchrun, except that a worker's exit code means something.

torchrun restarts its workers after every failure, whatever their exit code, and exits with 1 itself. Whoever started
the job (a shell, SLURM, Kubernetes) then cannot tell a wrong setting from a preemption or a crash. This agent takes
torchrun's own options, and

* does not restart workers that exited with 2 (bad input), 75 (preempted, state saved) or 76 (crash loop), and exits
  with their code;
* exits with the code that ended the job on another node;
* logs one line for each crash in place of torchrun's banner: the worker has printed its own error already;
* forwards a stop signal to the workers, waits `GRACE_SECONDS` (default 60) for them to save, and leaves no orphans;
* waits for a rendezvous that was lost with the node that hosts it, and joins again when that node is back;
* says, in a job of several nodes, who comes, who is lost, what it waits for, and with which exit code it ends.

Every other failure is a crash: the workers are restarted `--max-restarts` times, then the agent exits with 1.
"""

from gfgw_prod.process import standard_streams


def log(line: str, level: standard_streams.Level = "info") -> None:
    """Write one line to standard error, marked as the launcher's."""
    standard_streams.log(f"gfgw launcher: {line}", level)
