"""Tests of the attacks' decoders, which predict at half the side, and of their bilinear enlargement."""

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.config import NeuralConfig
from cpgan_ray.evaluation.attacks.half_side import MIN_HALVED_SIDE, CoarseToFineDecoder, Enlarge, predicted_shape

torch.set_num_threads(1)


@pytest.mark.parametrize(("small", "large"), [((4, 4, 3), (8, 8, 3)), ((3, 5, 1), (5, 9, 1)), ((2, 1, 6), (7, 1, 6))])
def test_enlarge_is_bilinear_interpolation_with_its_gradient(small, large):
    flat = torch.randn(4, int(np.prod(small)), dtype=torch.float64, requires_grad=True)
    enlarge = Enlarge(small, large).double()
    expected = nn.functional.interpolate(flat.unflatten(1, small).permute(0, 3, 1, 2), size=large[:2], mode="bilinear")
    result = enlarge(flat)
    torch.testing.assert_close(result, expected.permute(0, 2, 3, 1).flatten(1), atol=1e-5, rtol=0)
    weights = torch.randn_like(result)
    gradient, expected_gradient = (
        torch.autograd.grad((out * weights).sum(), flat, retain_graph=True)[0]
        for out in (result, expected.permute(0, 2, 3, 1).flatten(1))
    )
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)


def test_predicted_shape_is_half_only_of_large_pictures():
    assert predicted_shape((64, 64, 3)) == (32, 32, 3)
    assert predicted_shape((65, MIN_HALVED_SIDE, 1)) == (33, MIN_HALVED_SIDE // 2, 1)
    for shape in ((28, 28, 1), (128, 1, 9), (64, MIN_HALVED_SIDE - 1, 3)):
        assert predicted_shape(shape) == shape


@pytest.mark.parametrize("architecture", ["upsample", "resnet", "conv"])
@pytest.mark.parametrize("shape", [(50, 49, 3), (9, 8, 1)])
def test_coarse_to_fine_decoder_learns_a_picture(architecture, shape):
    """A smooth picture that depends on the code is reconstructed at the whole side."""
    torch.manual_seed(0)
    decoder = CoarseToFineDecoder(
        NeuralConfig(architecture=architecture, width=4), k=2, image_shape=shape, fine=predicted_shape(shape)
    )
    z = torch.randn(32, 2)
    ramp = torch.linspace(-1, 1, shape[0])[:, None, None].expand(shape).flatten()
    x = z[:, :1] * ramp
    assert decoder(z).shape == x.shape
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    loss = x.square().mean()
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(decoder(z), x)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 * float(x.square().mean())
