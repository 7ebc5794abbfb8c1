"""Train: make a run, and another one in its place each time ranks are lost, join or leave."""

from __future__ import annotations

import math

from gfgw_prod.distributed.torchrun import rank_environment
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import FINISHED, PREEMPTED
from gfgw_prod.process.standard_streams import log, log_as_json
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import same_run
from gfgw_prod.resilience.membership import Membership
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.registered_sinks import find_sinks
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.in_place import continue_in_place, prepare_to_continue
from gfgw_prod.training.kept import Kept
from gfgw_prod.training.resuming import resume
from gfgw_prod.training.run import Run


def train(config: Config) -> int:
    """Run or resume the run in ``config.run.dir``; return the exit code.

    Raises:
        UserError: for settings, data, weights, ports or checkpoints that cannot work.
    """
    startup, launched = Startup(), rank_environment()
    if config.telemetry.log_format == "json":
        log_as_json(str(config.run.dir), rank=0 if launched is None else launched.rank)
    find_sinks(config.telemetry.sinks)  # before a start that takes long
    world = World.prepared(config.run.device, config.run.threads)
    membership, kept = Membership.offered(config, world), None
    if membership is not None and membership.is_new:
        say = log if world.is_main else lambda line: None
        kept = Kept.built_alone(config, world, say, with_bank=not membership.joins)
        facts = membership.facts()
        if membership.joins:
            same_run.require_fit(facts, kept.facts, world.rank)
        kept.facts["changes"] = facts["changes"]
    timeouts, meeting = (config.distributed.timeout_seconds, config.resilience.hang_seconds), None
    if membership is not None and membership.is_new:
        world, meeting = membership.meet(timeouts[0])
    world.join(*timeouts, meeting)
    with world.leaving(), StartCounter(config.run.dir, config.resilience.max_no_progress, world) as starts:
        while True:
            startup.done("rendezvous")
            run = Run(config, world, starts, startup, membership, kept)
            try:
                with watch.over(config.resilience.hang_seconds, run.dir, world.rank):
                    if kept is None:
                        resume(run)
                    else:
                        continue_in_place(run)
                    if complete := run.loop():
                        run.finish()
                return FINISHED if complete else PREEMPTED
            except BaseException as error:
                kept = run.kept if prepare_to_continue(error, run) else None
                if run.saver.wait_after_error() and kept is not None:
                    run.reporter.log("a checkpoint was not finished, as ranks came or went")
                    kept.saved_at = -math.inf
                if membership is None or kept is None or run.saver.is_saving():
                    raise
            finally:
                run.close()
            del run
            startup = Startup(again=True)
            world = membership.rejoin(*timeouts)
