"""Tests of the networks: shapes at even and odd sizes, normalisation, and the gradient of the defender."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpgan_ray.common.codec import level_range
from cpgan_ray.config import Config, NeuralConfig, PrivatizerConfig, UtilityConfig
from cpgan_ray.data import Task
from cpgan_ray.data.pca import scale
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.models.export import export_programs
from cpgan_ray.models.privatizers import round_to
from cpgan_ray.training.defender import Defender
from cpgan_ray.training.inputs import to_input

torch.set_num_threads(1)

SHAPES = [(64, 64, 3), (112, 112, 3), (50, 40, 3), (31, 33, 1)]
SERIES = [(128, 1, 9), (50, 1, 3), (9, 1, 1)]
STRIDED = ["conv", "residual", "separable"]
FAMILIES = [*STRIDED, "patch"]
DECODERS = ["conv", "upsample", "resnet"]
CPU = torch.device("cpu")


def pictures(shape: tuple[int, int, int], *, num: int = 16, seed: int = 0) -> Tensor:
    height, width, channels = shape
    return torch.rand(num, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_privatizer_in_training_gives_k_normalised_numbers(family, shape, k):
    privatizer = build_privatizer(PrivatizerConfig(family=family, width=4, depth=3), k=k, image_shape=shape).train()
    z = privatizer(pictures(shape))
    assert z.shape == (16, k)
    assert z.dtype == torch.float32
    assert z.mean(0).abs().max() < 1e-5
    assert (z.var(0, unbiased=False) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_privatizer_rescaled_before_normalisation_gives_the_same_code(family):
    privatizer = build_privatizer(PrivatizerConfig(family=family, width=4, depth=2), k=5, image_shape=(16, 16, 3)).train()
    x = pictures((16, 16, 3), num=32)
    before = privatizer(x)
    with torch.no_grad():
        privatizer.code.weight.mul_(1000)
        privatizer.code.bias.mul_(1000).add_(7)
    assert torch.allclose(privatizer(x), before, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_privatizer_in_evaluation_codes_each_picture_independently(family):
    privatizer = build_privatizer(PrivatizerConfig(family=family, width=4, depth=3), k=6, image_shape=(20, 24, 3))
    x = pictures((20, 24, 3))
    privatizer.train()(x)
    privatizer.eval()
    assert torch.allclose(privatizer(x)[3:4], privatizer(x[3:4]), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(32, 32, 3), (50, 41, 3)])
def test_symmetric_privatizer_gives_mirror_images_the_same_code(family, shape):
    def code_distance(*, symmetric: bool) -> float:
        config = PrivatizerConfig(family=family, width=4, depth=3, symmetric=symmetric)
        privatizer = build_privatizer(config, k=6, image_shape=shape)
        x = pictures(shape)
        privatizer.train()(x)
        privatizer.eval()
        return float((privatizer(x) - privatizer(x.flip(3))).detach().abs().max())

    assert code_distance(symmetric=True) < 1e-4
    assert code_distance(symmetric=False) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_symmetric_privatizer_exported_gives_the_same_codes_for_any_batch(family):
    config = PrivatizerConfig(family=family, width=4, depth=3, symmetric=True, quantization_step=0.5)
    privatizer = build_privatizer(config, k=6, image_shape=(20, 24, 3))
    privatizer.train()(pictures((20, 24, 3)))
    privatizer.eval()
    net = nn.ModuleDict({"privatizer": privatizer, "head": nn.Linear(6, 2)})
    exported = export_programs(net, k=6, image_shape=(20, 24, 3))["privatizer"]
    program = torch.export.load(io.BytesIO(exported)).module()
    for size in (1, 7):
        x = torch.randint(0, 256, (size, 3, 20, 24), dtype=torch.uint8)
        scaled = x.float() / 127.5 - 1
        plain, mirrored = privatizer.encode(torch.cat([scaled, scaled.flip(3)])).chunk(2)
        expected = round_to(privatizer.normalise((plain + mirrored) / 2), 0.5)
        assert torch.equal(privatizer(scaled), expected)
        assert torch.equal(program(x), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("step", [0.5, 2.0])
def test_rounded_code_is_the_nearest_multiple_and_keeps_the_gradient(step, training):
    """The rounding is the same in training and evaluation; its gradient is the identity."""
    x, pull = pictures((16, 16, 3)), torch.randn(16, 5)
    rounded = build_privatizer(PrivatizerConfig(width=4, depth=2, quantization_step=step), k=5, image_shape=(16, 16, 3))
    plain = build_privatizer(PrivatizerConfig(width=4, depth=2), k=5, image_shape=(16, 16, 3))
    for _ in range(60):  # until the running statistics are those of the batch
        rounded.train()(x)
    plain.load_state_dict(rounded.state_dict())
    z, exact = rounded.train(training)(x), plain.train(training)(x)
    assert torch.allclose(z, step * torch.round(exact / step), atol=1e-6)
    assert len(z.unique()) > 1
    (z * pull).sum().backward()
    (exact * pull).sum().backward()
    for (name, parameter), plain_parameter in zip(rounded.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(parameter.grad, plain_parameter.grad, atol=1e-5), name


@pytest.mark.parametrize("step", [0.5, 1.0])
@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_finite_code_is_the_nearest_level_and_clips_the_rest(levels, step):
    """Each level is the nearest one of `levels` equally spaced points around 0; beyond their cells there is no gradient."""
    y = torch.linspace(-4, 4, 1601).requires_grad_()
    z = round_to(y, step, levels)
    points = (np.arange(levels) - (levels - 1) / 2) * step
    nearest = np.abs(y.detach().numpy()[:, None] - points).argmin(axis=1)
    border = np.abs((y.detach().numpy() - points[0]) / step % 1 - 0.5) < 1e-3  # between two levels
    n = np.rint(z.detach().numpy() / step).astype(int)
    lowest, highest = level_range(levels)
    assert (n.min(), n.max(), len(np.unique(n))) == (lowest, highest, levels)
    assert ((n - lowest == nearest) | border).all()
    assert torch.equal(z.detach(), torch.from_numpy(n * step).float()), "codes are exact multiples of the step"
    (gradient,) = torch.autograd.grad(z.sum(), y)
    inside = np.abs(y.detach().numpy()) < levels * step / 2
    edge = np.abs(np.abs(y.detach().numpy()) - levels * step / 2) < 1e-3
    assert ((gradient.numpy() == inside) | edge).all()


@pytest.mark.parametrize("family", STRIDED)
@pytest.mark.parametrize(("shape", "depth"), [((16, 16, 3), 5), ((64, 15, 3), 4), ((50, 40, 3), 6)])
def test_privatizer_too_deep_for_the_pictures_names_the_depth(family, shape, depth):
    with pytest.raises(InputError, match=rf"privatizer\.depth is {depth}.*{shape[0]}x{shape[1]}"):
        build_privatizer(PrivatizerConfig(family=family, width=2, depth=depth), k=2, image_shape=shape)
    build_privatizer(PrivatizerConfig(family=family, width=2, depth=depth - 1), k=2, image_shape=shape)


@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize("hidden", [0, 16])
def test_utility_head_gives_one_logit_per_label(hidden, k):
    head = build_head(UtilityConfig(hidden=hidden), k=k, num_logits=40, image_shape=(64, 64, 3))
    assert head(torch.randn(8, k)).shape == (8, 40)


def test_utility_head_without_hidden_units_is_linear():
    head = build_head(UtilityConfig(hidden=0), k=3, num_logits=2, image_shape=(64, 64, 3))
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.allclose(head(a + b) + head(torch.zeros(4, 3)), head(a) + head(b), atol=1e-5)
    assert sum(p.numel() for p in head.parameters()) == 3 * 2 + 2


def test_utility_head_drops_units_only_in_training():
    head, z = build_head(UtilityConfig(hidden=16, dropout=0.5), k=3, num_logits=2, image_shape=(64, 64, 3)), torch.randn(8, 3)
    assert not torch.equal(head(z), head(z))
    head.eval()
    assert torch.equal(head(z), head(z))


@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 8, 3), (7, 5, 3), *SERIES, (6, 1, 2)])
@pytest.mark.parametrize("architecture", DECODERS)
def test_decoder_gives_every_value_of_the_picture(architecture, shape, k):
    config = NeuralConfig(architecture=architecture, width=2, depth=1)
    network = build_reconstructor(config, k=k, image_shape=shape, target=int(np.prod(shape)))
    assert network(torch.randn(3, k)).shape == (3, int(np.prod(shape)))


@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize("depth", [1, 3])
def test_mlp_gives_as_many_values_as_the_target_has(depth, k):
    network = build_reconstructor(NeuralConfig(architecture="mlp", width=8, depth=depth), k=k, image_shape=(64, 64, 3), target=17)
    assert network(torch.randn(3, k)).shape == (3, 17)
    assert sum(isinstance(m, nn.Linear) for m in network.modules()) == depth + 1


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoder_output_is_flattened_with_the_channel_last(architecture):
    """Value ((i * W) + j) * C + c of the output is pixel (i, j) of channel c: the order of pictures in the store."""
    height, width, channels = shape = (10, 12, 3)
    network = build_reconstructor(NeuralConfig(architecture=architecture, width=4), k=5, image_shape=shape, target=360)
    grids: list[Tensor] = []
    network.last.register_forward_hook(lambda _module, _inputs, output: grids.append(output))
    flat = network(torch.randn(2, 5))
    for i, j, c in [(0, 0, 0), (0, 0, 2), (0, 11, 1), (9, 0, 0), (4, 7, 2), (9, 11, 2)]:
        assert torch.equal(flat[:, (i * width + j) * channels + c], grids[0][:, c, i, j])


@pytest.mark.parametrize("shape", SERIES)
@pytest.mark.parametrize("architecture", DECODERS)
def test_series_decoder_extends_only_along_time_and_uses_every_weight(architecture, shape):
    network = build_reconstructor(
        NeuralConfig(architecture=architecture, width=4, depth=1), k=5, image_shape=shape, target=shape[0] * shape[2]
    )
    assert network.grid[2] == 1
    network(torch.randn(8, 5)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert all(p.shape[3] == 1 for p in network.parameters() if p.ndim == 4)


def test_inputs_and_targets_have_the_same_values_in_two_orders():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    x = to_input(images, CPU)
    assert x.shape == (4, 3, 5, 6)
    assert x.dtype == torch.float32
    assert x.numpy() == pytest.approx(images.transpose(0, 3, 1, 2) / 127.5 - 1, abs=1e-6)
    assert x.permute(0, 2, 3, 1).flatten(1).numpy() == pytest.approx(scale(images), abs=1e-6)


@pytest.mark.parametrize("architecture", ["mlp", *DECODERS])
def test_reconstructor_output_is_not_bounded(architecture):
    """Relative to the mean picture, values of [-1, 1] pictures exceed 1, and a tanh at the end would limit them."""
    network = build_reconstructor(NeuralConfig(architecture=architecture, width=4), k=5, image_shape=(8, 8, 3), target=192)
    last = network[-1] if architecture == "mlp" else network.last
    with torch.no_grad():
        last.bias.fill_(5)
    assert network(torch.randn(3, 5)).mean() > 3


def defender(**changes) -> Defender:
    """A small defender whose head has no dropout, so that its loss can be recomputed."""
    config = Config(
        k=4,
        privatizer=PrivatizerConfig(width=4, depth=2, lr_schedule="constant", **changes),
        utility=UtilityConfig(hidden=8, dropout=0.0),
    )
    task = Task.of(["a", "b", "c"])
    return Defender(config, image_shape=(12, 12, 3), task=task, positive_share=np.full(3, 0.5), total_rounds=10, device=CPU)


def test_defender_step_has_the_gradient_of_the_full_objective():
    """The backward pass of dL_U/dz + g through the privatizer is the gradient of L_U + sum(g * z) for constant g."""
    player, x = defender(), pictures((12, 12, 3))
    y = (torch.rand(16, 3) > 0.5).float()
    full_gradient, pull = copy.deepcopy(player.net).train(), torch.randn(16, 4)
    z = full_gradient["privatizer"](x)
    (nn.functional.binary_cross_entropy_with_logits(full_gradient["head"](z), y) + (pull * z).sum()).backward()

    released = player.release(x)
    assert not released.requires_grad
    assert torch.equal(released, z.detach())
    player.utility(y, round=0)
    player.step(pull)
    grads = {name: p.grad for name, p in player.net.named_parameters()}
    for name, parameter in full_gradient.named_parameters():
        assert torch.allclose(grads[name], parameter.grad, atol=1e-5), name


def test_defender_step_without_move_head_moves_only_the_privatizer():
    player, x = defender(), pictures((12, 12, 3))
    before = copy.deepcopy(player.net)
    player.release(x)
    player.utility(torch.ones(16, 3), round=0)
    player.step(None, move_head=False)
    moved = {n: not torch.equal(p, before.get_parameter(n)) for n, p in player.net.named_parameters()}
    assert all(m for n, m in moved.items() if n.startswith("privatizer.code.weight"))
    assert not any(m for n, m in moved.items() if n.startswith("head."))
    player.step_head()
    assert not torch.equal(player.net["head"][0].weight, before["head"][0].weight)


def test_defender_with_ema_releases_the_moving_average_of_weights():
    """The first step's weights start the average; each further step moves it by a tenth of the way."""
    player, x = defender(ema_decay=0.9), pictures((12, 12, 3))
    history = []
    for round in range(4):
        player.release(x)
        player.utility(torch.ones(16, 3), round=round)
        player.step(None)
        history.append(player.net["privatizer"].code.weight.detach().clone())
    average = history[0]
    for weight in history[1:]:
        average = 0.9 * average + 0.1 * weight
    assert torch.allclose(player.released["privatizer"].code.weight, average, atol=1e-6)
    assert not torch.allclose(average, history[-1], atol=1e-6)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_defender_evaluation_changes_no_weight_and_no_statistic(average):
    player, x = defender(ema_decay=average), pictures((12, 12, 3))
    player.release(x)
    player.utility(torch.ones(16, 3), round=0)
    player.step(None)
    before = copy.deepcopy(player.state_dict())
    z, logits = player.codes(x)
    assert torch.equal(player.codes(x)[0], z)
    assert (z.shape, logits.shape) == ((16, 4), (16, 3))
    for part in ("net", *(["averaged"] if average else [])):
        assert all(torch.equal(v, before[part][n]) for n, v in player.state_dict()[part].items())


def test_utility_loss_that_is_not_finite_raises_with_the_round():
    player = defender()
    player.release(pictures((12, 12, 3)))
    with pytest.raises(FloatingPointError, match="round 7"):
        player.utility(torch.full((16, 3), torch.nan), round=7)
