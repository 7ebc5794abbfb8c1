"""Log lines at the beginning and end of a start, its entry in ``history.jsonl``, and the command that continues it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.torchrun import rank_environment
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import PREEMPTED
from gfgw_prod.process.restart_causes import expected_ranks
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.build import build_labels

PROGRAM = "GFGW_PROGRAM"  # set by make and launch/elastic.sh: how the user started the run
LAUNCHER = ("NNODES", "NPROC", "RDZV_ENDPOINT", "RDZV_ID", "MAX_RESTARTS")  # what launch/elastic.sh was told
LENGTH = "--train.total-kimg"


def describe_start(world: World, hosts: Sequence[str], resumed_step: int) -> dict[str, Any]:
    """What runs where, as JSON: for the history and for checkpoints' manifests, where no resume compares it."""
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **build_labels(world.device),
        "ranks": world.world_size,
        "nodes": int(os.environ.get("GROUP_WORLD_SIZE", len({*hosts}))),  # launchers, of which a host may have several
        "hosts": dict(Counter(hosts)),  # ranks on each
        "launcher": {name: os.environ[name] for name in LAUNCHER if name in os.environ},
        "backend": dist.get_backend() if world.world_size > 1 else "",
        "command": shlex.join(["gfgw", *sys.argv[1:]]),
        "resumed_step": resumed_step,
    }


def append_to_history(start: dict[str, Any], path: Path) -> None:
    """Append a start to the run's history."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(start)}\n")


def first_lines(config: Config, start: dict[str, Any], table: Table, parameters: int, resumes: str) -> list[str]:
    """The log lines at the beginning of a start: versions, ranks, data, network, run.

    Args:
        parameters: of the generator.
        resumes: name of the checkpoint that the run resumes from; empty for a new run.
    """
    revision = f" ({start['revision']})" if start["revision"] else ""
    ranks, nodes = start["ranks"], start["nodes"]
    backend = f"; {start['backend']}, {config.distributed.strategy}" if start["backend"] else ""
    source, coupling = config.data, config.transport
    coupled = f"{coupling.scope} scope, {coupling.target} targets"
    if coupling.target == "independent":
        coupled = "none, independent targets"
    elif coupling.is_fitted:
        coupled = "noise with all images, fitted before the first step"
    begins = f"resumes from {resumes}" if resumes else "begins"
    ends, total = config.optimizer.decay_kimg, config.train.total_kimg
    rate = config.optimizer.lr * config.optimizer.final_lr_ratio
    lengthened = (
        f"schedules: those of {ends:g} kimg, with which the run began; beyond, the learning rate stays at {rate:.2g} "
        "(another run.dir begins anew, with longer ones)"
    )
    used, cores = config.run.threads, len(os.sched_getaffinity(0))
    cores_idle = used < cores and rank_environment() is None and not torch.cuda.is_available()
    idle = (
        f"{used} of {cores} cores in use; make train, or launch/elastic.sh, starts a rank on each, for the same weights"
    )
    grey = "all images are grey; data.grey true has one channel to train instead of three"
    return [
        f"gfgw_prod {start['version']}{revision}, torch {start['torch']}, Python {start['python']}",
        f"{_count(ranks, 'rank')} on {_count(nodes, 'node')} ({', '.join(start['hosts'])}); {start['device']}{backend}",
        *([idle] if cores_idle else []),
        f"data: {source.source}{f' {source.path}' if source.path else ''}, {len(table):,} images of "
        f"{' x '.join(map(str, table.image_shape))}, {_count(table.num_classes, 'class', 'classes')}",
        *([grey] if not resumes and table.has_equal_channels() else []),
        f"generator: {parameters:,} parameters; coupling: {coupled}",
        f"run: {config.run.dir} {begins}; {config.train.total_kimg:g} kimg in {config.total_steps:,} steps",
        *([lengthened] if resumes and ends < total else []),
    ]


def last_lines(config: Config, step: int, steps: int, seconds: float, measured: str) -> list[str]:
    """The log lines of a start that has trained to its end: what it made, and what to do next.

    Args:
        step: completed steps of the run.
        steps: those of this start, in ``seconds``.
        measured: what the last evaluation measured; may be empty.
    """
    size, total_kimg, run_dir = config.train.batch_size, config.train.total_kimg, config.run.dir
    done = f"trained {steps * size / 1000:.1f} kimg in {seconds:.0f} s" if steps else "nothing to do: already finished"
    out = shlex.quote(str(run_dir / "more-samples"))
    if step == config.total_steps:
        go_on = f"{command(2 * total_kimg)}    (at the last learning rate; another run.dir begins anew)"
    else:
        go_on = f"{command()}    (to {total_kimg:g} kimg; train.max_minutes is over)"
    return [
        f"{done}; {step * size / 1000:.1f} kimg in all, {step:,} steps",
        *([f"figures:    {measured}"] if measured else []),
        f"picture:    {run_dir / 'samples.png'}",
        f"curves:     {program('tensorboard')} --logdir {shlex.quote(str(run_dir))}",
        f"samples:    {program('gfgw')} sample {shlex.quote(str(run_dir))} --num 100 --grid --out {out}",
        f"go on:      {go_on}",
    ]


def stop_lines(images: int) -> list[str]:
    """The lines of a run that has stopped on request after so many images."""
    stopped, launched = f"told to stop at {images / 1000:.1f} kimg; all is saved", rank_environment()
    if launched is not None and launched.local_world_size < expected_ranks():
        return [f"{stopped}; the launchers say what follows"]  # they may stop ranks to take in a node
    return [f"{stopped} (exit code {PREEMPTED})", f"go on:      {command()}"]


def command(total_kimg: float | None = None) -> str:
    """The command that continues this run, as the user would type it; with another length, if one is given."""
    length = () if total_kimg is None else (LENGTH, f"{total_kimg:g}")
    called, words = os.environ.get(PROGRAM, ""), sys.argv[1:]
    if words[:1] != ["train"] or not (called or rank_environment() is None):  # Python, or a launcher not known here
        return f"the same with {' '.join(length)}" if length else "the same command"
    words = [*(_without(words[1:], LENGTH) if length else words[1:]), *length]
    if not called.startswith("make "):
        return f"{called or program('gfgw') + ' train'} {shlex.join(words)}"
    arguments = shlex.join(_without(words, "--config")).replace("$", "$$")  # make has the file of settings
    if not arguments:
        return called
    plain = not any(character in arguments for character in '"$`\\')
    return f"{called} ARGS=" + (f'"{arguments}"' if plain else shlex.quote(arguments))


def program(name: str) -> str:
    """How to call a program of this environment in a shell: by name if it is on the search path, else by path."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(beside) or not beside.exists():
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _without(words: Sequence[str], option: str) -> list[str]:
    """The words of a command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name.replace("_", "-") == option:
            skip = not equals
        else:
            kept.append(word)
    return kept


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
