"""Tests that strided 1x1 convolutions equal torch's, have correct gradients, and are the only ones in all networks."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from cpgan_ray.config import PrivatizerConfig, UtilityConfig
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.pointwise import StridedPointwise
from tests.process import HANG_S


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("size", "stride"), [((8, 8), 2), ((7, 5), 2), ((9, 6), 3), ((4, 4), 1)])
def test_strided_pointwise_equals_torchs_convolution(size, stride, bias):
    torch.manual_seed(0)
    ours = StridedPointwise(3, 5, stride=stride, bias=bias).double()
    reference = nn.Conv2d(3, 5, 1, stride=stride, bias=bias).double()
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *size).double()
    results = []
    for conv in (ours, reference):
        read = x.clone().requires_grad_()
        out = conv(read)
        (out**3).sum().backward()
        results.append([out, read.grad, *(p.grad for p in conv.parameters())])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


GRADIENTS = """
import torch
from cpgan_ray.models.pointwise import StridedPointwise
torch.manual_seed(0)
for threads in (1, 2):
    torch.set_num_threads(threads)
    for channels in range(1, 17):
        conv = StridedPointwise(channels, 8, stride=2).to(memory_format=torch.channels_last)
        for side in (6, 32):
            x = torch.randn(16, channels, side, side).contiguous(memory_format=torch.channels_last)
            conv.weight.grad = None
            out = conv(x)
            g = torch.randn_like(out)
            out.backward(g)
            expected = torch.einsum("bohw,bihw->oi", g.double(), x[:, :, ::2, ::2].double())
            torch.testing.assert_close(conv.weight.grad[:, :, 0, 0].double(), expected, rtol=1e-4, atol=1e-3)
"""


def test_strided_pointwise_with_few_channels_has_the_right_gradient():
    """Runs in a separate process, because oneDNN's implementation damages memory or hangs."""
    ran = subprocess.run([sys.executable, "-c", GRADIENTS], capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode == 0, ran.stderr[-2000:]


def strided_1x1_convolutions(network: nn.Module) -> list[str]:
    """torch's own 1x1 convolutions with a stride."""
    convs = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and not isinstance(m, StridedPointwise)]
    return [name for name, conv in convs if conv.kernel_size == (1, 1) and conv.stride != (1, 1)]


@pytest.mark.parametrize(
    ("family", "shape", "k"),
    [
        ("conv", (64, 64, 3), 8),
        ("residual", (64, 64, 3), 8),
        ("lenet", (64, 64, 3), 8),
        ("generator", (32, 32, 3), 8),
        ("picture", (32, 32, 3), 3072),
        ("celeba_single", (112, 112, 3), 8),
        ("celeba_multi", (175, 175, 3), 8),
    ],
)
def test_privatizers_have_no_other_strided_1x1_convolution(family, shape, k):
    bottleneck = family != "picture"
    network = build_privatizer(PrivatizerConfig(family=family, bottleneck=bottleneck), k=k, image_shape=shape)
    assert strided_1x1_convolutions(network) == []


@pytest.mark.parametrize("family", ["wide", "shake"])
def test_heads_have_no_other_strided_1x1_convolution(family):
    network = build_head(UtilityConfig(family=family), k=3072, num_logits=10, image_shape=(32, 32, 3))
    assert any(isinstance(m, StridedPointwise) for m in network.modules())
    assert strided_1x1_convolutions(network) == []
