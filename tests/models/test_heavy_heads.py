"""Tests of the utility heads for the cloud: against references, and exported for any batch."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cpgan_ray.config import UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_head
from cpgan_ray.models.cost import count
from cpgan_ray.models.export import export_program
from cpgan_ray.models.heavy_heads import EnsembleHead, ResidualHead, TransformerHead

HEADS = ["residual", "transformer", "ensemble"]


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


def head(family: str, *, k: int = 6, **fields) -> nn.Module:
    return build_head(UtilityConfig(family=family, **({"hidden": 16} | fields)), k=k, num_logits=5, image_shape=(64, 64, 3))


@pytest.mark.parametrize("k", [1, 6, 32, 33, 128])
@pytest.mark.parametrize("family", HEADS)
def test_head_uses_every_number_of_the_code_and_every_weight(family, k):
    network, z = head(family, k=k, dropout=0.0), torch.randn(8, k, requires_grad=True)
    logits = network(z)
    logits.square().sum().backward()
    assert logits.shape == (8, 5)
    assert z.grad is not None and bool((z.grad.abs().sum(dim=0) > 0).all())
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("family", HEADS)
def test_head_exported_gives_the_same_logits_for_any_batch(family):
    network = head(family, k=40)
    network.train()(torch.randn(32, 40))
    network.eval()
    program = export_program(network, torch.zeros(2, 40), what="utility_head")
    torch.export.save(program, buffer := io.BytesIO())
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    for size in (1, 7):
        z = torch.randn(size, 40)
        assert torch.equal(loaded(z), network(z))


def test_transformer_equals_torchs_attention():
    network = head("transformer", width=32, depth=1, dropout=0.3).eval()
    assert isinstance(network, TransformerHead)
    z, layer = torch.randn(3, 6), network.layers[0]
    tokens = torch.stack([z[:, i : i + 1] @ network.weight[i] + network.bias[i] for i in range(6)], dim=1)
    x = torch.cat([network.answer.expand(3, 1, 32), tokens], dim=1)
    query, key, value = layer.project(layer.norm(x)).chunk(3, dim=2)
    heads = [F.scaled_dot_product_attention(*(part[..., 16 * i : 16 * i + 16] for part in (query, key, value))) for i in (0, 1)]
    x = x + layer.merge(torch.cat(heads, dim=2))
    x = x + layer.perceptron(x)
    assert torch.allclose(network(z), network.last(x[:, 0]), atol=1e-5)


def test_residual_head_with_silent_blocks_is_a_perceptron_without_them():
    network = head("residual", depth=2).eval()
    assert isinstance(network, ResidualHead)
    for block in network.blocks:
        nn.init.zeros_(block[-1].weight)
        nn.init.zeros_(block[-1].bias)
    z = torch.randn(4, 6)
    assert torch.equal(network(z), network.last(network.first(z)))


def test_ensemble_is_the_mean_of_independent_members():
    network, z = head("ensemble", members=3).eval(), torch.randn(4, 6)
    assert isinstance(network, EnsembleHead)
    logits = [member(z) for member in network.members]
    assert torch.allclose(network(z), (logits[0] + logits[1] + logits[2]) / 3, atol=1e-6)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_costs_of_heads_equal_their_formulas():
    layers = {"residual": 40 * 16 + 3 * 2 * 16 * 16 + 16 * 5, "ensemble": 4 * (40 * 16 + 16 * 16 + 16 * 5)}
    tokens, width = 20 + 1, 64
    attention = tokens * 4 * width**2 + 2 * tokens**2 * width
    layers["transformer"] = 40 * width + 2 * (attention + tokens * 4 * width**2) + width * 5
    assert {family: count(head(family, k=40), (40,)).multiply_adds for family in HEADS} == layers


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("transformer", {"width": 20}, r"utility\.width is 20, but the transformer's must be a multiple of 16: set it to 64"),
        ("residual", {"hidden": 0}, r"utility\.hidden is 0, but the residual perceptron has hidden units"),
    ],
)
def test_head_with_a_size_that_does_not_fit_names_it(family, fields, message):
    with pytest.raises(InputError, match=message):
        head(family, **fields)


def test_tokens_share_coordinates_of_long_codes():
    assert [(h.tokens, h.size) for k in (32, 33, 128) if isinstance(h := head("transformer", k=k), TransformerHead)] == [
        (32, 1),
        (17, 2),
        (32, 4),
    ]
