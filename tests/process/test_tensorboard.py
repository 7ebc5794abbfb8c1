"""TensorBoard of a run that was killed and resumed: one curve, the same as that of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from . import runs

SAME = ("loss/total", "loss/flow", "optimizer/gradient_norm", "optimizer/learning_rate", "transport/sharpness")


def curves(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_curves_of_a_resumed_run_are_those_of_an_undisturbed_one(reference: Path, killed_and_resumed: Path) -> None:
    expected, found = curves(reference), curves(killed_and_resumed)
    assert len(list((killed_and_resumed / "tensorboard").iterdir())) == 2, "one file for each start"
    for tag in SAME:
        points = [(event.step, event.value) for event in found.Scalars(tag)]
        assert points == [(event.step, event.value) for event in expected.Scalars(tag)]
        every = 2 if tag == "loss/flow" else 1  # the second of two steps is at t = 1: generated images meet targets
        assert [step for step, _ in points] == [runs.BATCH * step for step in range(every, runs.STEPS + 1, every)]


def test_resumed_run_has_one_grid_for_every_step(killed_and_resumed: Path) -> None:
    steps = [event.step for event in curves(killed_and_resumed).Images("samples")]
    assert steps == [runs.BATCH * step for step in range(1, runs.STEPS + 1)]  # runs.UNHURRIED draws at every step


def test_resumed_run_shows_settings_and_layout(killed_and_resumed: Path) -> None:
    shown = curves(killed_and_resumed)
    text = shown.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "    seed: 0\n" in text
    assert shown.Tensors("custom_scalars__config__")
    lost = [event.value for event in shown.Scalars("run/restarts/unknown")]
    assert (lost[0], lost[-1]) == (0, 1)  # killed, and started again by hand
