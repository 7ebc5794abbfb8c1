"""The U-Net and its preconditioning: size, boundary, labels, seeds, gradients."""

import math

import pytest
import torch

from gfgw_prod.generator import OneStepGenerator, build_generator, interpolate
from gfgw_prod.generator.precondition import SIGMA_DATA
from gfgw_prod.settings.networks import GeneratorSettings
from gfgw_prod.settings.reading import resolve

SMALL = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "dropout": 0.0}


def small(side: int = 8, channels: int = 1, seed: int = 0, **settings: object) -> OneStepGenerator:
    return build_generator(GeneratorSettings(**(SMALL | settings)), (channels, side, side), 10, seed).eval()


def perturbed(generator: OneStepGenerator) -> OneStepGenerator:
    """Add noise to the weights: a new generator outputs almost zero."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    return generator


def images(count: int = 3, side: int = 8, channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(2))


class Constant(torch.nn.Module):
    """Network with a constant output."""

    def __init__(self, level: float):
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, labels: None) -> torch.Tensor:
        self.seen = x
        return torch.full_like(x, self.level)


@pytest.mark.parametrize(("channel_mult", "count"), [((1, 2, 2, 2), 61_805_827), ((2, 2, 2), 55_734_147)])
def test_network_has_the_published_number_of_parameters(channel_mult: tuple[int, ...], count: int) -> None:
    settings = GeneratorSettings(
        model_channels=128, channel_mult=channel_mult, num_blocks=4, attention_resolutions=(16,), conditional=True
    )
    with torch.device("meta"):
        generator = build_generator(settings, (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in generator.parameters()) == count


def test_generator_is_the_identity_on_data() -> None:
    x = images()
    assert torch.equal(perturbed(small())(x, torch.zeros(3)), x)
    assert torch.equal(perturbed(small(correlation=0.6))(x, torch.zeros(3)), x)


def test_preconditioning_is_edms_at_sigma_t_over_s() -> None:
    generator, t = perturbed(small()), torch.tensor([0.1, 0.5, 0.9])
    x_t = images()
    sigma = (t / (1 - t))[:, None, None, None]
    noisy = x_t / (1 - t)[:, None, None, None]  # EDM's variance-exploding coordinates
    skip, out, scale = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt(), (sigma**2 + 0.25).rsqrt()
    expected = skip * noisy + out * generator.network(scale * noisy, sigma.flatten().log() / 4)
    torch.testing.assert_close(generator(x_t, t), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_preconditioning_is_scaled_for_images_that_correlate_with_their_noise(correlation: float) -> None:
    z, free = torch.randn(2, 1, 1, 500, 500, generator=torch.Generator().manual_seed(0))
    x = SIGMA_DATA * (correlation * z + math.sqrt(1 - correlation**2) * free)
    for moment in (0.2, 0.7, 1.0):
        t, x_t = torch.tensor([moment]), interpolate(x, z, torch.tensor([moment]))
        zero, one = Constant(0.0), Constant(1.0)
        target = x - OneStepGenerator(zero, correlation=correlation)(x_t, t)  # of the network
        assert float(zero.seen.std()) == pytest.approx(1, abs=0.01)
        assert float((target * x_t).mean()) == pytest.approx(0, abs=0.002)  # c_skip x_t is the best linear prediction
        weight = OneStepGenerator(one, correlation=correlation)(torch.zeros_like(x_t), t)
        assert float(target.std() / weight.mean()) == pytest.approx(1, abs=0.01)


def test_output_at_pure_noise_is_finite_and_is_the_sample() -> None:
    generator, z = perturbed(small()), images()
    sample = generator.sample(z)
    assert torch.isfinite(sample).all()
    assert torch.equal(sample, generator(z, torch.ones(3)))
    torch.testing.assert_close(generator(z, torch.full((3,), 1 - 1e-6)), sample, atol=1e-3, rtol=1e-3)


def test_interpolation_runs_from_data_to_noise() -> None:
    data, noise = images(), images() + 1
    t = torch.tensor([0.0, 0.25, 1.0])
    mixed = interpolate(data, noise, t)
    torch.testing.assert_close(mixed, data + t[:, None, None, None])


def test_labels_matter_only_to_a_conditional_generator() -> None:
    z, ones, first, second = images(), torch.ones(3), torch.tensor([0, 1, 2]), torch.tensor([3, 1, 2])
    conditional, unconditional = perturbed(small(conditional=True)), perturbed(small())
    outputs = conditional(z, ones, first), conditional(z, ones, second)
    assert not torch.allclose(outputs[0][0], outputs[1][0])
    torch.testing.assert_close(outputs[0][1:], outputs[1][1:])
    assert torch.equal(unconditional(z, ones, first), unconditional(z, ones, second))


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (64, 3)])
def test_output_has_the_shape_of_the_input(side: int, channels: int) -> None:
    generator = small(side, channels, channel_mult=(1, 2, 2, 2))
    assert generator(images(1, side, channels), torch.ones(1)).shape == (1, channels, side, side)


def test_side_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"channel_mult has 3 levels.* 6 pixels"):
        small(6, channel_mult=(1, 1, 1))


def test_odd_width_is_refused_by_name() -> None:
    """The embedding's sine and cosine halves need an even width."""
    with pytest.raises(Exception, match=r"generator\.model_channels"):
        build_generator(resolve({"generator": {"model_channels": 33}}).generator, (1, 8, 8), 10, seed=0)


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(7)
    first = small(seed=3).state_dict()
    torch.manual_seed(8)
    again, other = small(seed=3).state_dict(), small(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_gradient_reaches_every_parameter() -> None:
    generator = perturbed(small(conditional=True)).train()
    generator(images(), torch.tensor([0.2, 0.7, 1.0]), torch.tensor([0, 4, 9])).square().sum().backward()
    untouched = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


def test_dropout_acts_in_training_only() -> None:
    generator, z = perturbed(small(dropout=0.5)), images()
    assert torch.equal(generator.sample(z), generator.sample(z))
    generator.train()
    assert not torch.equal(generator.sample(z), generator.sample(z))
