"""The beginning of a run whose ranks were all started: load the newest good checkpoint, or encode the bank."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from gfgw_prod.checkpoint.choosing import newest_good, quarantined
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.run_settings import file_to_write, recorded
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import same_run
from gfgw_prod.settings import reading
from gfgw_prod.training.building import encode_bank
from gfgw_prod.training.run import Run


def resume(run: Run) -> None:
    """Load the newest good checkpoint of the run; for a new run, encode the bank. Collective."""
    config, world, reporter, training, kept = run.config, run.world, run.reporter, run.training, run.kept
    with run.unwatched("starting: looking for a checkpoint"):
        found = newest_good(run.storages, world, reporter.log, progress=config.telemetry.progress)
        damaged = len(quarantined(run.storages)) if world.is_main else 0
        by_rank = world.all_gather_object(kept.facts)
    if found is not None:
        kept.step = run.first_step = run.reached = found.step
    changes = world.on_all_ranks(lambda: _accept_changes(run, found, by_rank))
    for change in changes:
        reporter.log(f"run.allow_changes: going on with {change}")
    cache = world.on_all_ranks(lambda: BankCache.of(config, kept.facts, reporter.log_from_any_rank))
    parameters = sum(p.numel() for p in training.parallel.module.parameters())
    reporter.introduce(run.step, training.table, parameters, "" if found is None else found.name)
    manifest = {} if found is None else found.manifest
    world.on_all_ranks(lambda: reporter.open(run.step, manifest, damaged))
    if found is not None:
        with run.unwatched(f"resuming from {found.name}"):
            found.load(run.state(), world)
            world.barrier()
        run.saver.resume_from(found)
        reporter.log(f"resumed at {run.images / 1000:.1f} kimg")
    else:
        run.grids.show_data(reporter)

        def show(rows: int) -> None:
            watch.progress("encoding the bank")
            reporter.show_encoding(rows, len(training.matcher.bank.local))

        encode_bank(training, show, cache)
        with watch.paused():  # other ranks may take longer, and have watches of their own
            world.barrier()
    if found is None or changes:  # an accepted change may be of what the potential is fitted with
        with run.unwatched("starting: fitting the coupling"):
            training.matcher.fit(math.prod(training.table.image_shape))
    run.health.enter_phase("starting: making ready for the first step")
    run.saver.preallocate(run.state())
    reporter.write_file(file_to_write(run.dir), partial(reading.write_yaml, recorded(config)))
    run.startup.done("bank" if found is None else "checkpoint")


def _accept_changes(run: Run, found: Checkpoint | None, by_rank: list[dict[str, Any]]) -> list[str]:
    """Changes since the checkpoint, and differences between ranks, that ``run.allow_changes`` accepts."""
    if found is not None:
        same_run.require_length(run.config, found.step)
    changes = [] if found is None else same_run.accept_changes(found.manifest, run.kept.facts)
    return changes + same_run.accept_rank_differences(dict(enumerate(by_rank)), run.kept.facts, run.step)
