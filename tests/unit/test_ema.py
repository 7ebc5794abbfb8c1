"""EMA of weights."""

import pytest
import torch

from gfgw_prod.generator.ema import Ema
from gfgw_prod.settings.schedule import ema_decay


def layer() -> torch.nn.Linear:
    with torch.no_grad():
        linear = torch.nn.Linear(3, 2)
        linear.weight.copy_(torch.arange(6.0).view(2, 3))
        linear.bias.fill_(1.0)
    return linear


def test_update_mixes_average_and_weights() -> None:
    module = layer()
    ema = Ema(module)
    with torch.no_grad():
        module.bias.fill_(5.0)
    ema.update(0.75)
    assert torch.equal(ema.tensors["bias"], torch.full((2,), 2.0))
    assert torch.equal(ema.tensors["weight"], module.weight)
    assert torch.equal(module.bias, torch.full((2,), 5.0))


@pytest.mark.parametrize("batch_size", [50, 100, 250])
def test_first_weights_count_one_half_after_a_halflife_of_images(batch_size: int) -> None:
    module = layer()
    ema = Ema(module)
    with torch.no_grad():
        module.bias.zero_()
    for step in range(5000 // batch_size):
        ema.update(ema_decay(5.0, 0.0, batch_size, (step + 1) * batch_size))
    torch.testing.assert_close(ema.tensors["bias"], torch.full((2,), 0.5), atol=1e-5, rtol=0)


def test_rampup_forgets_the_first_weights_sooner() -> None:
    assert ema_decay(500, 0.05, 256, 256) < 1e-5
    assert ema_decay(500, 0.05, 256, 1_000_000) == pytest.approx(0.5 ** (256 / 50_000))
    assert ema_decay(500, 0.05, 256, 100_000_000) == pytest.approx(0.5 ** (256 / 500_000))


def test_applied_sets_the_average_and_restores_exactly() -> None:
    module = layer()
    ema = Ema(module)
    with torch.no_grad():
        module.weight.mul_(1 / 3)
    own, average = module.weight.detach().clone(), ema.tensors["weight"].clone()
    with ema.applied() as averaged:
        assert torch.equal(averaged.weight, average)
    assert torch.equal(module.weight, own)
    assert torch.equal(ema.tensors["weight"], average)


def test_applied_restores_after_an_error() -> None:
    module = layer()
    ema = Ema(module)
    with torch.no_grad():
        module.bias.fill_(7.0)
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert torch.equal(module.bias, torch.full((2,), 7.0))
    assert torch.equal(ema.tensors["bias"], torch.ones(2))
