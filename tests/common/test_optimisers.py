"""Tests of the optimisers that leave torch's compiler out."""

import subprocess
import sys

import pytest
import torch

from cpgan_ray.common import optimisers

CODE = """
import sys, torch
from cpgan_ray.common.optimisers import Adam, AdamW
for kind in (Adam, AdamW):
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = kind([weight], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
    optimiser.zero_grad()
    weight.square().sum().backward()
    optimiser.step()
    schedule.step()
    optimiser.load_state_dict(optimiser.state_dict())
print('torch._dynamo' in sys.modules)
"""


def trained(optimiser_class: type[torch.optim.Optimizer], **settings) -> tuple[torch.Tensor, dict]:
    """A weight after five steps, with the state saved and loaded after the third, and the last state."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=generator))
    optimiser = optimiser_class([weight], lr=0.1, **settings)
    for step in range(5):
        optimiser.zero_grad(set_to_none=True)
        (weight - torch.randn(4, 3, generator=generator)).square().sum().backward()
        optimiser.step()
        if step == 2:
            state = optimiser.state_dict()
            optimiser = optimiser_class([weight], **settings)
            optimiser.load_state_dict(state)
    return weight.detach(), optimiser.state_dict()


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_steps_are_those_of_torchs_optimiser_bit_for_bit(name, fused):
    own, own_state = trained(getattr(optimisers, name), weight_decay=0.1, fused=fused)
    expected, state = trained(getattr(torch.optim, name), weight_decay=0.1, fused=fused)
    assert torch.equal(own, expected)
    assert own_state["param_groups"] == state["param_groups"]
    assert own_state["state"][0].keys() == state["state"][0].keys()
    assert all(torch.equal(own_state["state"][0][key], state["state"][0][key]) for key in state["state"][0])


def test_step_leaves_recording_of_gradients_as_it_was():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimisers.AdamW([weight]).step()
    assert torch.is_grad_enabled()
    assert weight.requires_grad


def test_training_does_not_import_torchs_compiler():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
