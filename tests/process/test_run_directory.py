"""The files of a run for people and tools: curves, pictures, records, its configuration."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfgw_prod.settings import reading
from gfgw_prod.telemetry.layout import NOT_CHARTED

from . import runs

IMAGES = [step * runs.BATCH for step in range(1, runs.STEPS + 1)]


def curves(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_curves_hold_the_losses_that_the_records_hold(reference: Path) -> None:
    events, losses = curves(reference), runs.losses(reference)
    for tag in (losses[1] | losses[2]).keys() - NOT_CHARTED:  # of both kinds of steps
        told = {step * runs.BATCH: of_step[tag] for step, of_step in losses.items() if tag in of_step}
        drawn = events.Scalars(tag)
        assert [point.step for point in drawn] == [*told]
        assert [point.value for point in drawn] == pytest.approx([*told.values()], rel=1e-6)


def test_pictures_of_samples_are_drawn_at_their_interval(reference: Path) -> None:
    pictures = curves(reference).Images("samples")
    assert [picture.step for picture in pictures] == IMAGES[1::2]
    assert pictures[-1].encoded_image_string.startswith(b"\x89PNG")
    with Image.open(reference / "samples.png") as picture:
        assert picture.width == picture.height > 10 * 8
        assert len(picture.convert("L").getcolors() or ()) > 10


def test_curves_of_a_killed_run_have_every_step_once(killed_and_resumed: Path) -> None:
    events = curves(killed_and_resumed)
    tags = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    tags["samples"] = [picture.step for picture in events.Images("samples")]
    assert tags["loss/total"] == tags["samples"] == IMAGES
    for tag, steps in tags.items():
        assert all(a < b for a, b in itertools.pairwise(steps)), f"{tag}: {steps}"


def test_records_are_finite_and_name_their_step_and_images(reference: Path) -> None:
    for record in runs.records(reference):
        assert record["images"] == record["step"] * runs.BATCH
        values = (value if isinstance(value, list) else [value] for value in record.values())
        assert all(map(math.isfinite, itertools.chain.from_iterable(values)))
    of_steps = runs.losses(reference).values()  # at t = 1, or before
    assert {
        frozenset(
            term for term in ("flow", "feature", "structure", "energy", "consistency") if f"loss/{term}" in losses
        )
        for losses in of_steps
    } == {frozenset({"flow", "feature", "structure", "energy"}), frozenset({"consistency"})}


def test_configuration_file_resolves_to_the_run_s_own_configuration(reference: Path) -> None:
    resolved = reading.resolve(reading.read_yaml(reference / "config.yaml"))
    assert resolved.model_dump(mode="json") == runs.manifest(reference, runs.STEPS)["config"]
    assert resolved.run.dir == reference
    assert (resolved.train.batch_size, resolved.total_steps) == (runs.BATCH, runs.STEPS)
    assert (resolved.generator.model_channels, resolved.generator.conditional) == (16, True)
