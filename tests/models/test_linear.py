"""Tests of linear layers by oneDNN against torch's own in float64."""

import pytest
import torch
from torch import nn

from cpgan_ray.models.linear import Linear


def results(layer: nn.Linear, x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of its weighted sum for the inputs, the weight and the bias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (3, 5, 2), (64, 130, 33)])
def test_outputs_and_gradients_are_those_of_torchs_layer_in_float64(rows, inputs, outputs):
    torch.manual_seed(0)
    layer, x, weights = Linear(inputs, outputs), torch.randn(rows, inputs), torch.randn(rows, outputs)
    exact = nn.Linear(inputs, outputs).double()
    exact.load_state_dict(layer.state_dict())
    for ours, theirs in zip(results(layer, x, weights), results(exact, x.double(), weights.double()), strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_only_wanted_gradients_are_computed():
    layer = Linear(4, 3).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, 4))
    assert layer.weight.grad is None


def test_exported_layer_is_torchs_own():
    program = torch.export.export(Linear(4, 3), (torch.randn(2, 4),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.linear.default"}


def test_mixed_precision_and_several_dimensions_are_as_in_torchs_layer():
    layer, x = Linear(4, 3), torch.randn(2, 5, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x[0]).dtype == torch.bfloat16
