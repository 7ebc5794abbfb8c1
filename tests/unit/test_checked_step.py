"""Bad numbers: errors of the hardware leave no trace in the weights; numbers that are the run's own are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import UNetBlock
from gfgw_prod.process.exit_codes import HardwareError, NoProgressError
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import reading
from gfgw_prod.settings.running import ResilienceSettings
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.resuming import resume
from gfgw_prod.training.run import Run
from gfgw_prod.weights.digest import weights_digest

from ..checkpoints import ALONE
from ..process.runs import free_port

STEPS = 12
BATCH = 16
KIMG = BATCH / 1000
SETTINGS: dict[str, Any] = {
    # No pass waits for its targets: the first of a cell is without gradient, the second has one.
    "train": {"batch_size": BATCH, "cell_size": 8, "total_kimg": STEPS * KIMG, "kept_passes": 0},
    "generator": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_resolutions": []},
    "features": {"extractor": "pixels"},
    "transport": {"scope": "full", "dual": "persistent", "tolerance": 1e-2},
    "telemetry": {"log_every_kimg": KIMG, "samples_every_kimg": 1000, "sample_grid": 1, "progress": "off"},
}
Hook = Callable[[Tensor], Tensor]


def run_in(
    directory: Path, world: World, keep: int = 100, precision: str = "fp32", port: int = 0, **resilience: Any
) -> Run:
    """A run that has been taken up in the directory."""
    checkpoint = {"every_kimg": 3 * KIMG, "keep": keep}
    settings = {
        **SETTINGS,
        "train": {**SETTINGS["train"], "precision": precision},
        "checkpoint": checkpoint,
        "telemetry": {**SETTINGS["telemetry"], "prometheus_port": port},
        "run": {"dir": str(directory)},
        "resilience": {"skips_before_rollback": 2, **resilience},
    }
    config = reading.resolve(settings)
    run = Run(config, world, StartCounter(config.run.dir, config.resilience.max_no_progress, world), Startup())
    resume(run)
    return run


def weights(run: Run) -> str:
    """The digest of a run that has ended."""
    run.close()
    return digest(run)


def digest(run: Run) -> str:
    """A digest of all that a checkpoint holds, but for the counts of what went wrong."""
    return weights_digest({name: tensor for name, tensor in run.state().items() if name != "guard.counts"})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = run_in(tmp_path_factory.mktemp("undisturbed") / "run", ALONE)
    assert run.loop()
    return weights(run)


@contextmanager
def disturbed(run: Run, place: str, fault: Hook, when: Callable[[Run], bool]) -> Iterator[list[int]]:
    """Has a fault of the arithmetic strike: in the features, a loss, or the gradient of the graded pass."""
    struck: list[int] = []

    def strike(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if (place == "gradient") != output.requires_grad or not when(run):
            return None
        struck.append(run.step)
        if place == "gradient":
            output.register_hook(fault)
            return None
        return fault(output)

    block = next(module for module in run.training.parallel.module.modules() if isinstance(module, UNetBlock))
    handle = block.register_forward_hook(strike)
    try:
        yield struck
    finally:
        handle.remove()


def once(step: int) -> Callable[[Run], bool]:
    """At one pass of the step, as an error of the hardware."""
    left = [step]
    return lambda run: run.step == step and bool(left) and left.pop() == step


def flipped(tensor: Tensor) -> Tensor:
    """A bit of one number flipped: nothing that a look at the numbers would show."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    copy.view(torch.int32).view(-1)[0] ^= 1 << 20
    return copy


def broken(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan)


@pytest.mark.parametrize("place", ["features", "gradient"])
def test_number_that_was_not_finite_once_leaves_no_trace(
    tmp_path: Path, alone: World, undisturbed: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path / "run", alone)
    with disturbed(run, place, broken, once(7)) as struck:
        assert run.loop()
    assert struck == [7]
    assert weights(run) == undisturbed
    assert run.checked_step.values() == {
        "run/audits": 1,
        "run/wrong_computations": 1,
        "run/hardware_errors": [1],
        "run/skipped_steps": 0,
        "run/rollbacks": 0,
    }
    stage = "gradient" if place == "gradient" else "features of generated images"
    assert f"step 8: rank 0 on {run.checked_step._hosts[0]} computed the {stage} wrongly" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["features", "gradient"])
def test_flipped_bit_is_found_by_an_audit_that_covers_it(
    tmp_path: Path, alone: World, undisturbed: str, place: str
) -> None:
    run = run_in(tmp_path / "run", alone, audit_every_steps=4)
    with disturbed(run, place, flipped, once(7)):
        assert run.loop()
    assert weights(run) == undisturbed
    assert run.checked_step.audits == STEPS // 4
    assert run.checked_step.errors == [1]


def test_flipped_bit_that_no_audit_covers_changes_the_weights(tmp_path: Path, alone: World, undisturbed: str) -> None:
    run = run_in(tmp_path / "run", alone, audit_every_steps=4)
    with disturbed(run, "gradient", flipped, once(6)):
        assert run.loop()
    assert weights(run) != undisturbed
    assert run.checked_step.errors == [0]


def test_hardware_that_never_computes_the_same_ends_the_run_as_a_crash(tmp_path: Path, alone: World) -> None:
    run = run_in(tmp_path / "run", alone, audit_every_steps=1)

    def noisy(gradient: Tensor) -> Tensor:
        noise.append(0)
        return gradient * (1 + len(noise) / 16)

    noise: list[int] = []
    with (
        disturbed(run, "gradient", noisy, lambda run: run.step == 2),
        pytest.raises(HardwareError, match="no two of 5 computations of step 3 agree"),
    ):
        run.loop()
    run.close()


def test_step_whose_numbers_are_its_own_is_left_out(tmp_path: Path, alone: World, undisturbed: str) -> None:
    run = run_in(tmp_path / "run", alone)
    with disturbed(run, "gradient", broken, lambda run: run.step == 7) as struck:
        assert run.loop()
    assert len(struck) == 4  # two cells, twice
    assert run.checked_step.values()["run/skipped_steps"] == 1
    assert weights(run) != undisturbed
    assert all(tensor.isfinite().all() for tensor in run.state().values())


def test_gradient_that_half_precision_cannot_hold_halves_the_loss_scale_and_is_no_bad_number(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path / "run", alone, precision="fp16")
    scale = 16.0  # with which these small steps stay in range
    run.training.precision.tensors()["scale"][0] = scale
    with disturbed(run, "gradient", broken, lambda run: run.step in (4, 5, 6)):
        assert run.loop()  # three in a row, where two bad steps would go back to a checkpoint
    assert run.training.precision.scale == scale / 8
    assert run.checked_step.values()["run/skipped_steps"] == 0
    assert run.checked_step.values()["run/rollbacks"] == 0
    assert "the step is skipped and the loss scale halved" in capsys.readouterr().err
    run.close()


def test_spike_is_measured_against_the_median_of_steps_that_counted() -> None:
    guard = NumberGuard(ResilienceSettings(spike_factor=10))
    for step in range(100):
        assert guard.anomaly((1e6, 1.0)) == (None if step < 16 else "a gradient norm of 1e+06, 1e+06 times the median")
        assert guard.anomaly((9.0, 1.0)) is None
        guard.accept((1.0, 1.0))
        guard.skip()
    assert guard.anomaly((1.0, 11.0)) == "a loss of 11, 11 times the median"
    for _ in range(40):
        guard.accept((100.0, 11.0))
    assert guard.anomaly((200.0, 100.0)) is None


def bad_twice(run: Run) -> bool:
    return run.step in (7, 8)


def test_bad_steps_in_a_row_go_back_to_a_checkpoint_before_them(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_in(tmp_path / "whole", alone)
    with disturbed(whole, "gradient", broken, bad_twice):
        assert whole.loop()
    assert "rolled back to the state of step-00000006" in capsys.readouterr().err
    assert whole.checked_step.values() | {"run/audits": 0} == {
        "run/audits": 0,
        "run/wrong_computations": 0,
        "run/hardware_errors": [0],
        "run/skipped_steps": 2,
        "run/rollbacks": 1,
    }
    assert 9 in [each.step for each in checkpoints_in(whole.saver.storage)]


def test_scraper_of_a_resumed_run_is_told_at_once_what_was_skipped_before(tmp_path: Path, alone: World) -> None:
    run = run_in(tmp_path / "run", alone)
    with disturbed(run, "gradient", broken, bad_twice):
        assert run.loop()
    run.close()
    resumed = run_in(tmp_path / "run", alone, port=free_port())
    assert (registry := resumed.node.registry) is not None
    assert registry.get_sample_value("gfgw_skipped_steps_total") == 2
    assert registry.get_sample_value("gfgw_rollbacks_total") == 1
    resumed.close()


@pytest.mark.slow
@pytest.mark.parametrize("first_bad", [6, 8], ids=["from-a-regular-save-on", "with-a-regular-save-between"])
def test_run_interrupted_around_bad_steps_goes_back_as_the_whole_run_does(
    tmp_path: Path, alone: World, first_bad: int
) -> None:
    def with_stops_in(*stops: int) -> tuple[str, int]:
        """Weights at the end of a run that is told to stop in these steps, and how often it went back."""
        left = [*stops]

        def strikes(run: Run) -> bool:
            if run.step in left:
                left.remove(run.step)
                run.stop.requested_here = True  # as a signal does
            return first_bad <= run.step < first_bad + 2

        for number in range(len(stops) + 1):
            run = run_in(tmp_path / str(len(stops)), alone, keep=1)
            with disturbed(run, "gradient", broken, strikes):
                assert run.loop() == (number == len(stops))
            run.close()
        return weights(run), run.checked_step.values()["run/rollbacks"]

    whole = with_stops_in()
    assert whole[1] == 1
    assert with_stops_in(first_bad - 2, first_bad - 1, first_bad) == whole


def test_regular_saves_within_a_streak_do_not_take_away_the_checkpoint_before_it(tmp_path: Path, alone: World) -> None:
    run = run_in(tmp_path / "run", alone, keep=1, skips_before_rollback=6)
    with disturbed(run, "gradient", broken, lambda run: 4 <= run.step < 10):
        assert run.loop()
    assert run.checked_step.values()["run/rollbacks"] == 1
    assert [each.step for each in checkpoints_in(run.saver.storage)] == [9, 12]
    run.close()


def test_second_return_to_a_checkpoint_is_the_end(tmp_path: Path, alone: World) -> None:
    run = run_in(tmp_path / "run", alone)
    with (
        disturbed(run, "gradient", broken, lambda run: run.step in (7, 8, 10, 11)),
        pytest.raises(NoProgressError, match="2 steps in a row, up to step 12, had a bad loss or gradient norm, again"),
    ):
        run.loop()
    run.close()


def test_run_whose_first_steps_are_bad_has_nowhere_to_go_back_to(tmp_path: Path, alone: World) -> None:
    run = run_in(tmp_path / "run", alone)
    with (
        disturbed(run, "gradient", broken, lambda run: True),
        pytest.raises(NoProgressError, match="there is no checkpoint from before"),
    ):
        run.loop()
    run.close()


@pytest.mark.parametrize("norm", [1.0, torch.inf], ids=["applied", "skipped"])
def test_step_that_is_computed_counts_without_any_other_rank(tmp_path: Path, norm: float) -> None:
    """Ranks that have heard the numbers of a step settle it, also when another is lost before it has."""
    world = World(0, 1, torch.device("cpu"))
    run = run_in(tmp_path / "run", world)
    run.kept.make_safe(0.0)  # as ranks do that may lose another
    stream = run.stream(1)
    rows = [next(stream) for _ in range(run.training.parallel.assignment.turns_per_rank)]
    result = run.training.compute(0, rows)
    before = digest(run)

    object.__setattr__(world, "world_size", 2)
    with pytest.raises(ValueError, match="process group"):  # so does every collective: the other rank is not there
        world.barrier()
    run.checked_step.settle(result, (norm, 1.0))
    object.__setattr__(world, "world_size", 1)
    assert (digest(run) == before) == (norm == torch.inf)
    run.close()
