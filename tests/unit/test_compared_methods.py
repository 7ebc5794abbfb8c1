"""Drifting and Sinkhorn drifting, as the comparison has them: a perfect generator stays where it is."""

import pytest
import torch

from benchmarks.quality.data import digits
from benchmarks.quality.drifting import Drifting, SinkhornDrifting
from benchmarks.quality.methods import run_config
from gfgw_prod.distributed.cells import random_stream

SAMPLES, DIGITS, WIDTH, TRIALS = 64, (0, 1, 7), 32, 20


@pytest.mark.parametrize("method", [Drifting, SinkhornDrifting])
@pytest.mark.parametrize("classes", [1, 3])
def test_samples_that_are_data_are_not_drawn_to_the_mean(method: type[Drifting], classes: int) -> None:
    table = digits()
    objective = method(run_config(steps=1, seed=0, changes={}), table, temperatures=(0.05,))
    stream, pulls = random_stream(0, "test", 0), []
    objective.data = torch.randn(len(table), WIDTH, generator=stream)
    for _ in range(TRIALS):
        labels = torch.tensor(DIGITS)[torch.randint(classes, (SAMPLES,), generator=stream)]
        x = torch.randn(SAMPLES, WIDTH, generator=stream)
        _, field = objective.field(x, labels, stream)
        pulls.append(torch.nn.functional.cosine_similarity(field.flatten(), -x.flatten(), dim=0))
    assert abs(torch.stack(pulls).mean()) < 0.1


def test_sample_alone_in_its_class_drifts_to_data_of_it() -> None:
    table = digits()
    objective = SinkhornDrifting(run_config(steps=1, seed=0, changes={}), table, temperatures=(0.05,))
    labels = torch.tensor([3, *[5] * 10])
    stream = random_stream(0, "test", 0)
    x = objective.data_of(labels, stream)
    state = stream.get_state()
    scale, field = objective.field(x, labels, stream)
    stream.set_state(state)
    towards = (objective.data_of(labels, stream) - x)[0] / scale
    assert torch.nn.functional.cosine_similarity(field[0], towards, dim=0) > 0.999
