"""A copy of the trainer with one random stream keyed by rank trains other weights: the comparison can fail."""

from __future__ import annotations

import re
from functools import partial

import pytest

from . import copies, runs

# Rank 0 keeps its streams, so that only a difference between ranks can change the weights.
BY_RANK = '    text += (__import__("os").environ.get("RANK", "0").strip("0")) if stream == "{stream}" else ""\n'
STEPS = 2
SHORT = (*runs.SMALL, "--train.total-kimg", str(STEPS * runs.SMALL_BATCH / 1000))
# Every stream of a step, and settings that make it matter where those of the tiny run do not.
STREAMS = {
    "noise": (),
    "time": (),
    "flip": (),
    "dropout": (),
    "target": (),
    "order": ("--transport.target", "independent"),
    "bank": ("--transport.scope", "subset", "--transport.subset-rows", "300"),
    "weights": ("--distributed.strategy", "fsdp"),  # DDP broadcasts those of rank 0
    "none of them": (),
}


# Ranks that disagree on what they draw together exchange tensors of different sizes, ask for rows that do not exist, or
# wait for rows that nobody sends.
DISAGREE = "must be the same on all ranks"  # a step is recomputed because the gradient norms differ
CRASHES = {"bank": f"size|{DISAGREE}", "target": "out of bounds", "order": DISAGREE}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Digests by stream: of its mutated copy on two ranks, and of the original in one process."""
    base = tmp_path_factory.mktemp("streams")
    names = {options: f"original-{number}" for number, options in enumerate(sorted({*STREAMS.values()}))}
    commands = {
        name: partial(runs.execute, runs.training(base / name, *SHORT, *options)) for options, name in names.items()
    }
    for stream, options in STREAMS.items():
        by_rank = BY_RANK.format(stream=stream)
        copy = copies.changed(base / f"{stream} package", copies.SEED_IS_DERIVED, after=by_rank)
        commands[stream] = partial(runs.execute_ranks, 2, runs.training(base / stream, *SHORT, *options), copy)
    found = {}
    for name, outcome in runs.execute_all(commands).items():
        if name in CRASHES and outcome.code != 0:
            assert re.search(CRASHES[name], outcome.stderr), outcome.stderr
            found[name] = f"{CRASHES[name]}: ranks that disagree"
        else:
            assert outcome.code == 0, outcome.stderr
            found[name] = runs.digests(base / name)[STEPS]
    return {stream: (found[stream], found[names[options]]) for stream, options in STREAMS.items()}


@pytest.mark.parametrize("stream", STREAMS)
def test_stream_keyed_by_rank_trains_other_weights(weights: dict[str, tuple[str, str]], stream: str) -> None:
    keyed, original = weights[stream]
    assert len(original) == 64, original
    assert (keyed == original) == (stream == "none of them"), keyed
