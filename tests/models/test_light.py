"""Tests of the light privatizers: their cost, that they see every pixel, and the budget of the client."""

import pytest
import torch

from cpgan_ray.config import Config, PrivatizerConfig
from cpgan_ray.config.presets import preset
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_privatizer
from cpgan_ray.models.cost import costs, count, ensure_within_budget
from cpgan_ray.models.light import DepthwiseSeparable

SHAPE = (64, 64, 3)


def multiply_adds(*, k: int, **fields) -> int:
    return count(build_privatizer(PrivatizerConfig(**fields), k=k, image_shape=SHAPE), (3, 64, 64)).multiply_adds


@pytest.mark.parametrize(("width", "depth", "k"), [(32, 4, 128), (16, 1, 64)])
def test_cost_of_patches_is_embedding_layers_and_code(width, depth, k):
    expected = 64 * 64 * 3 * width + depth * 8 * 8 * width**2 + 8 * 8 * width * k
    assert multiply_adds(family="patch", width=width, depth=depth, k=k) == expected


@pytest.mark.parametrize(("width", "depth", "k"), [(16, 4, 64), (8, 2, 4)])
def test_cost_of_separable_is_one_channel_per_spatial_kernel(width, depth, k):
    expected, side, channels = 64 * 64 * 3 * width, 16, width
    for _ in range(depth - 2):
        side //= 2
        expected += side**2 * (9 * channels + channels * 2 * channels)
        channels *= 2
    assert multiply_adds(family="separable", width=width, depth=depth, k=k) == expected + side**2 * channels * k


def test_separable_stage_equals_a_convolution_with_the_outer_product_of_its_kernels():
    torch.manual_seed(0)
    stage, x = DepthwiseSeparable(3, 5).eval(), torch.randn(2, 3, 9, 7)
    depthwise, norm, activation, mix, *rest = stage.layers
    torch.nn.init.uniform_(norm.running_mean)
    full = torch.zeros(3, 3, 3, 3)
    full[range(3), range(3)] = depthwise.weight[:, 0]
    between = activation(norm(torch.nn.functional.conv2d(x, full, stride=2, padding=1)))
    expected = torch.einsum("oc,bchw->bohw", mix.weight[:, :, 0, 0], between)
    for layer in rest:
        expected = layer(expected)
    assert torch.allclose(stage(x), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["separable", "patch"])
@pytest.mark.parametrize("shape", [(64, 64, 3), (50, 41, 3), (31, 33, 1), (28, 28, 1), (9, 8, 1)])
def test_every_pixel_reaches_the_code(family, shape):
    height, width, channels = shape
    torch.manual_seed(0)
    config = PrivatizerConfig(family=family, width=4, depth=2, code_activation="raw")
    x = torch.randn(4, channels, height, width, requires_grad=True)
    build_privatizer(config, k=8, image_shape=shape)(x).square().sum().backward()
    assert x.grad is not None and bool((x.grad.abs().amax(dim=(0, 1)) > 0).all())


def test_depth_of_separable_counts_its_patches_as_two_stages():
    with pytest.raises(InputError, match=r"privatizer\.depth is 1, but the first layer of 'separable' counts as two stages"):
        build_privatizer(PrivatizerConfig(family="separable", depth=1), k=4, image_shape=SHAPE)


@pytest.mark.parametrize(("name", "spent"), [("celeba_light", 917_504), ("celeba_tiny", 278_528)])
def test_light_preset_is_within_its_budget(name, spent):
    config = preset(name)
    ensure_within_budget(config, image_shape=SHAPE)
    cost = costs(config, image_shape=SHAPE, outputs=40)
    assert cost["privatizer"]["multiply_adds"] == spent
    assert cost["privatizer"]["max_multiply_adds"] == config.privatizer.max_multiply_adds


def test_client_over_its_budget_is_refused_in_one_line_with_cost_and_remedy():
    config = Config(k=128, privatizer=PrivatizerConfig(max_multiply_adds=1_000_000))
    state = torch.random.get_rng_state()
    with pytest.raises(InputError) as raised:
        ensure_within_budget(config, image_shape=SHAPE)
    assert str(raised.value) == (
        "privatizer.max_multiply_adds is 1,000,000, but the client would spend 15,564,800 multiply-adds on a sample of 64x64x3 "
        "(family 'conv', width 32, depth 4, k 128): lower the width, the depth or k, or set --privatizer.family to separable or "
        "patch"
    )
    assert torch.equal(torch.random.get_rng_state(), state)
