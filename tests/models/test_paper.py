"""Tests of the reference networks: parameters, shapes, TensorFlow's padding, Shake-Shake's randomness, export and cost."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cpgan_ray.common.process import torch_stream
from cpgan_ray.config import Config, NeuralConfig, PrivatizerConfig, UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.models.cost import costs, count
from cpgan_ray.models.export import export_programs
from cpgan_ray.models.paper.celeba import GroupedHead, SubNets, halves_map, leaky_head, leaky_stages
from cpgan_ray.models.paper.decoders import PaperDecoder
from cpgan_ray.models.paper.lenet import lenet_head, lenet_stages
from cpgan_ray.models.paper.linear import linear_stages
from cpgan_ray.models.paper.picture import generator_conv, picture_conv, residual_g
from cpgan_ray.models.paper.same_padding import Same, TransposedSame, same_padding
from cpgan_ray.models.paper.series import SeriesConv2d, SeriesConvTranspose2d
from cpgan_ray.models.paper.shake_shake import ShakeShake, shake
from cpgan_ray.models.paper.wide_resnet import WideResNet

torch.set_num_threads(1)

MNIST, GENKI, HAR, CIFAR = (28, 28, 1), (64, 64, 3), (128, 1, 9), (32, 32, 3)
CELEBA_SINGLE, CELEBA_MULTI = (112, 112, 3), (175, 175, 3)
SMALL = (16, 16, 3)

STAGES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "mnist": (lambda: lenet_stages(MNIST), MNIST, 400),
    "genki": (lambda: lenet_stages(GENKI), GENKI, 3136),
    "har": (lambda: lenet_stages(HAR), HAR, 512),
    "cifar_lenet": (lambda: lenet_stages(CIFAR), CIFAR, 576),
    "gaussian": (lambda: linear_stages((1, 1, 32)), (1, 1, 32), 16),
    "residual_g": (lambda: residual_g(3), CIFAR, 3072),
    "picture_conv": (lambda: picture_conv(3), CIFAR, 3072),
    "generator_conv": (lambda: generator_conv(3), CIFAR, 2048),
    "celeba_single": (lambda: leaky_stages(3), CELEBA_SINGLE, 7 * 7 * 256),
    "celeba_multi": (lambda: SubNets(3), CELEBA_MULTI, 2 * 1728),
}
"""Name -> stages, shape of the picture, number of output values."""

HEADS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "linear": (lambda: nn.Linear(12, 2, bias=False), 12, 2),
    "lenet": (lambda: lenet_head(6, outputs=10), 6, 10),
    "lenet_pca": (lambda: lenet_head(6, outputs=2, hidden=(128, 128)), 6, 2),
    "shake": (lambda: ShakeShake(768, outputs=10, image_shape=SMALL, depth=8, width=4), 768, 10),
    "wide": (lambda: WideResNet(768, outputs=10, image_shape=SMALL, depth=10, widen=1), 768, 10),
    "leaky": (lambda: leaky_head(2, outputs=1, hidden=8), 2, 1),
    "grouped": (lambda: GroupedHead(6), 6, 40),
}
"""Name -> a small head, k, outputs."""


def inputs(shape: tuple[int, int, int], *, num: int = 2) -> Tensor:
    height, width, channels = shape
    return torch.rand(num, channels, height, width) * 2 - 1


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", STAGES)
def test_stages_give_the_reference_size_and_finite_gradients(name):
    build, shape, flat = STAGES[name]
    stages = build()
    out = stages(inputs(shape))
    assert out.flatten(1).shape == (2, flat)
    assert out.isfinite().all()
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in stages.parameters() if p.ndim > 1)


@pytest.mark.parametrize(("shape", "k", "number"), [(MNIST, 32, 15_404), (HAR, 32, 20_188), (GENKI, 2048, 6_427_448)])
def test_lenet_privatizer_has_the_reference_number_of_parameters(shape, k, number):
    stages = lenet_stages(shape)
    flat = stages(inputs(shape)).shape[1]
    assert parameters(stages, nn.Linear(flat, k)) == number


@pytest.mark.parametrize(
    ("shape", "k", "number"),
    [
        (MNIST, 32, 122_241),
        (GENKI, 2048, 8_780_867),
        (HAR, 32, 29_065),
        (HAR, 512, 98_185),
        (CIFAR, 3072, 3072 * 1024 + 1024 + 2 * 1024 + 64 * 128 * 9 + 128 + 128 * 64 * 9 + 64 + 64 * 3 * 9 + 3),
    ],
)
def test_paper_decoder_has_the_reference_number_of_parameters(shape, k, number):
    assert parameters(PaperDecoder(k, image_shape=shape)) == number


@pytest.mark.parametrize(
    ("stack", "shape", "k", "number"),
    [
        ("picture", CIFAR, 3072, 3_584 + 73_792 + 18_464 + 867),
        ("auto", CIFAR, 3072, 3_146_752 + 2_048 + 73_856 + 73_792 + 1_731),
        ("leaky", CELEBA_SINGLE, 2, 3 * 12_544 + 2 * 12_544 + 295_040 + 73_792 + 18_464 + 867),
    ],
)
def test_paper_decoder_by_name_has_the_reference_parameters(stack, shape, k, number):
    config = NeuralConfig(architecture="paper", paper_decoder=stack, tanh_output=True)
    decoder = build_reconstructor(config, k=k, image_shape=shape, target=math.prod(shape))
    assert parameters(decoder) == number
    x_hat = decoder(torch.randn(2, k))
    assert x_hat.shape == (2, math.prod(shape)) and x_hat.abs().max() <= 1


def test_picture_decoder_with_another_code_names_k():
    config = NeuralConfig(architecture="paper", paper_decoder="picture")
    with pytest.raises(InputError, match=r"^k is 64; the picture network .* set k to 32x32x3 = 3072 with a privatizer that keeps"):
        build_reconstructor(config, k=64, image_shape=CIFAR, target=3072)


@pytest.mark.parametrize("family", ["picture", "picture_conv"])
def test_picture_code_without_a_bottleneck_is_built_by_name(family):
    config = PrivatizerConfig(family=family, bottleneck=False, code_activation="raw")
    privatizer = build_privatizer(config, k=3072, image_shape=CIFAR)
    assert parameters(privatizer) == parameters(privatizer.stages) == (1_647 if family == "picture" else 395_331)
    assert privatizer(inputs(CIFAR)).shape == (2, 3072)
    with pytest.raises(InputError, match="^k is 64, but without a bottleneck the code is the 3072 features: set k to 3072$"):
        build_privatizer(config, k=64, image_shape=CIFAR)


@pytest.mark.parametrize("momentum", [0.1, 0.01])
def test_picture_privatizer_statistics_move_by_the_given_momentum(momentum):
    config = PrivatizerConfig(family="picture", bottleneck=False, code_activation="raw", norm_momentum=momentum)
    privatizer = build_privatizer(config, k=768, image_shape=SMALL).train()
    norms = [m for m in privatizer.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 18
    x = inputs(SMALL, num=8)
    first = privatizer.stages[0](x).detach()
    privatizer(x)
    assert torch.allclose(norms[0].running_mean, momentum * first.mean((0, 2, 3)), atol=1e-6)


def test_heads_and_picture_privatizers_have_the_reference_parameters():
    """According to their papers, Shake-Shake 26 2x32d has 2.9 M parameters and WRN-16-8 has 11.0 M."""
    assert parameters(lenet_head(32, outputs=10)) == 14_974
    assert parameters(residual_g(3)) == 1_647
    assert parameters(picture_conv(3)) == 896 + 18_496 + 73_856 + 295_168 + 6_915 == 395_331
    assert parameters(ShakeShake(3072, outputs=10, image_shape=CIFAR)) == 2_923_162
    assert parameters(WideResNet(3072, outputs=10, image_shape=CIFAR)) == 10_961_370


@pytest.mark.parametrize("name", HEADS)
def test_head_in_evaluation_gives_the_same_logits_for_any_batch(name):
    build, k, outputs = HEADS[name]
    head, z = build(), torch.randn(8, k)
    logits = head(z)
    assert logits.shape == (8, outputs) and logits.isfinite().all()
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    head.eval()
    assert torch.allclose(head(z)[3:4], head(z[3:4]), atol=1e-5)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize(
    ("shape", "k", "stack"),
    [
        *(
            (shape, 8, "auto")
            for shape in (MNIST, GENKI, HAR, CIFAR, CELEBA_SINGLE, CELEBA_MULTI, (50, 40, 3), (7, 5, 3), (100, 1, 2))
        ),
        (SMALL, 768, "picture"),
        (SMALL, 4, "leaky"),
    ],
)
def test_paper_decoder_exceeds_1_unless_tanh_output_is_set(shape, k, stack, bounded):
    decoder = PaperDecoder(k, image_shape=shape, tanh_output=bounded, name=stack).eval()
    with torch.no_grad():
        biases = [p for p in decoder.parameters() if p.shape == (shape[2],)]
        biases[-1].fill_(5)
        x_hat = decoder(torch.randn(2, k))
    assert x_hat.shape == (2, math.prod(shape))
    assert x_hat.isfinite().all()
    assert (x_hat.abs().max() <= 1) == bounded


def test_paper_decoder_output_is_flattened_with_the_channel_last():
    decoder = PaperDecoder(5, image_shape=(50, 40, 3))
    z = torch.randn(2, 5)
    flat, grid = decoder(z), decoder.layers(z)
    for i, j, c in [(0, 0, 0), (0, 0, 2), (0, 39, 1), (49, 0, 0), (20, 7, 2), (49, 39, 2)]:
        assert torch.equal(flat[:, (i * 40 + j) * 3 + c], grid[:, c, i, j])


@pytest.mark.parametrize("k", [30, 33])
def test_series_decoder_with_k_not_divisible_by_4_names_k(k):
    with pytest.raises(InputError, match=rf"k is {k} .*multiple of 4"):
        PaperDecoder(k, image_shape=HAR)


@pytest.mark.parametrize("stack", ["cifar", "odd"])
def test_fixed_size_decoder_with_larger_pictures_names_their_size(stack):
    with pytest.raises(InputError, match=f"176x20; the {stack} decoder"):
        PaperDecoder(8, image_shape=(176, 20, 3), name=stack)


def values_and_gradients(f: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = f(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize(("kernel", "length"), [(5, 128), (5, 7), (3, 1), (1, 4)])
def test_series_convolution_equals_the_plane_convolution(kernel, length):
    torch.manual_seed(0)
    conv = SeriesConv2d(3, 4, kernel, padding=kernel // 2).double()
    x = torch.randn(5, 3, length, 1, dtype=torch.float64)
    result = values_and_gradients(conv, x, conv)
    plane = values_and_gradients(lambda v: nn.functional.conv2d(v, conv.weight, conv.bias, padding=kernel // 2), x, conv)
    for a, b in zip(result, plane, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2, 4, 5])
@pytest.mark.parametrize("kernel", [3, 5])
def test_transposed_series_convolution_equals_the_plane_one(kernel, stride):
    torch.manual_seed(0)
    module = TransposedSame(3, 4, kernel, stride=(stride, 1)).double()
    x = torch.randn(5, 3, 6, 1, dtype=torch.float64)
    result = values_and_gradients(module, x, module)
    plane = values_and_gradients(lambda v: module.conv(v)[:, :, : 6 * stride, :1], x, module)
    assert result[0].shape == (5, 4, 6 * stride, 1)
    for a, b in zip(result, plane, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 7])
def test_kernel_of_width_1_on_a_series_equals_the_plane_kernel(length):
    x = torch.randn(5, 3, length, 1, dtype=torch.float64)
    conv = SeriesConv2d(3, 4, (3, 1), padding=(1, 0)).double()
    stretch = SeriesConvTranspose2d(3, 4, (4, 1), stride=(2, 1), padding=(1, 0)).double()
    for module, plane in ((conv, nn.Conv2d.forward), (stretch, nn.ConvTranspose2d.forward)):
        expected = values_and_gradients(lambda v, module=module, plane=plane: plane(module, v), x, module)
        for a, b in zip(values_and_gradients(module, x, module), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert stretch(x).shape == (5, 4, 2 * length, 1)


def test_series_code_without_linear_map_keeps_its_steps_separate():
    """The stages give 32 steps of 16 features, channel last: the first 8 steps lead to the first 32 of 128 steps."""
    z = torch.randn(1, 32, 16).requires_grad_()
    PaperDecoder(512, image_shape=HAR)(z.flatten(1))[0, : 32 * 9].square().sum().backward()
    assert z.grad is not None
    assert z.grad[0, :8].any(1).all()
    assert not z.grad[0, 8:].any()


@pytest.mark.parametrize("shape", [(11, 28, 1), (28, 8, 3), (1, 28, 1)])
def test_lenet_with_too_small_pictures_names_their_size(shape):
    with pytest.raises(InputError, match=f"{shape[0]}x{shape[1]}"):
        lenet_stages(shape)


@pytest.mark.parametrize(("size", "sums"), [(4, [3, 5]), (5, [1, 6, 7])])
def test_same_padding_puts_the_odd_zero_after_the_picture(size, sums):
    """Sums over windows of 3 with stride 2: for 0 1 2 3, TensorFlow's sums are 0+1+2 and 2+3+0."""
    row = torch.arange(float(size)).reshape(1, 1, 1, size)
    windows = nn.functional.conv2d(Same(3, stride=2)(row), torch.ones(1, 1, 3, 3), stride=2)
    assert windows.flatten().tolist() == sums


@pytest.mark.parametrize(("size", "stride", "out"), [(7, 2, 14), (14, 2, 28), (4, 4, 16), (6, 1, 6), (1, 1, 1)])
def test_transposed_same_is_the_adjoint_of_the_same_convolution(size, stride, out):
    """This is TensorFlow's definition: <conv(x), y> = <x, transposed(y)>."""
    layer = TransposedSame(2, 3, 3, stride=(stride, stride)).double()
    x, y = torch.randn(1, 3, out, out).double(), torch.randn(1, 2, size, size).double()
    before, after = same_padding(out, kernel=3, stride=stride)
    padded = nn.functional.pad(x, (before, after, before, after))
    with torch.no_grad():
        layer.conv.bias.zero_()
        forward = nn.functional.conv2d(padded, layer.conv.weight, stride=stride)
        assert layer(y).shape == x.shape
        assert forward.shape == y.shape
        assert float((forward * y).sum()) == pytest.approx(float((x * layer(y)).sum()))


def test_lenet_on_a_series_pads_like_tensorflow():
    stages = lenet_stages(HAR)
    x = inputs(HAR)
    ours = stages(x)
    for conv in (m for m in stages if isinstance(m, nn.Conv2d)):
        x = nn.functional.conv2d(nn.functional.pad(x, (2, 2, 2, 2)), conv.weight, conv.bias).relu()
        x = nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 0), value=-torch.inf), 2, (2, 1))
    assert torch.allclose(ours, x.permute(0, 2, 3, 1).flatten(1), atol=1e-6)


def test_weights_are_initialised_like_tensorflow():
    decoder, lenet, cifar = PaperDecoder(32, image_shape=MNIST), lenet_stages(MNIST), PaperDecoder(64, image_shape=CIFAR)
    bound = math.sqrt(6 / (32 + 3136))
    assert decoder.layers[0].weight.detach().abs().max() == pytest.approx(bound, rel=1e-3)
    assert lenet[0].weight.abs().max() <= math.sqrt(6 / (25 + 6 * 25))
    assert not any(p.any() for net in (decoder, lenet, cifar) for n, p in net.named_parameters() if n.endswith("bias"))
    assert cifar.layers[0].weight.detach().std() == pytest.approx(0.02, rel=0.02)
    residual = torch.cat([p.detach().flatten() for p in residual_g(3).parameters() if p.ndim == 4])
    assert residual.abs().max() <= 2
    assert residual.std() == pytest.approx(0.88, abs=0.04), "a normal distribution cut at twice its deviation"


def test_shake_in_training_draws_separate_forward_and_backward_weights():
    first, second = torch.ones(4000, 2, 2, 1, requires_grad=True), torch.zeros(4000, 2, 2, 1, requires_grad=True)
    mixed = shake(first, second, training=True)
    mixed.sum().backward()
    a, b = mixed.detach(), first.grad
    assert torch.allclose(b + second.grad, torch.ones_like(b))
    for weights in (a, b):
        assert torch.equal(weights, weights[:, :1, :1, :1].expand_as(weights)), "one weight per sample"
        assert weights.min() >= 0 and weights.max() <= 1
        assert weights.mean() == pytest.approx(0.5, abs=0.02)
        assert (weights[:, 0, 0, 0] < 0.25).float().mean() == pytest.approx(1 / 6, abs=0.03), "r1 / (r1 + r2) is not uniform"
    assert torch.corrcoef(torch.stack([a[:, 0, 0, 0], b[:, 0, 0, 0]]))[0, 1].abs() < 0.06


def test_shake_in_evaluation_averages_the_branches():
    first, second = torch.randn(2, 1, 3, 2, 2)
    expected = (first + second) / 2
    assert torch.equal(shake(first, second, training=False), expected)
    many = shake(first.expand(20_000, -1, -1, -1), second.expand(20_000, -1, -1, -1), training=True)
    assert torch.allclose(many.mean(0), expected[0], atol=0.02)


@pytest.mark.parametrize("name", ["shake", "wide"])
def test_head_in_training_draws_from_the_current_stream(name):
    build, k, _ = HEADS[name]
    z = torch.randn(4, k)

    def logits(round: int) -> Tensor:
        with torch_stream(7, "weights"):
            head = build()
        with torch_stream(7, "head", round):
            return head(z)

    state = torch.random.get_rng_state()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", [ShakeShake, WideResNet])
def test_small_head_learns_to_separate_bright_from_dark(family):
    size = {"depth": 8, "width": 4} if family is ShakeShake else {"depth": 10, "widen": 1}
    head, y = family(192, outputs=2, image_shape=(8, 8, 3), **size), torch.arange(16) % 2
    optimiser = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(12):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(torch.randn(16, 192) + 2 * y[:, None]), y).backward()
        optimiser.step()
    fresh = torch.randn(16, 192) + 2 * y[:, None]
    assert (head(fresh).argmax(1) == y).float().mean() > 0.9


def test_head_unflattens_the_picture_code():
    x = inputs(SMALL)
    head = ShakeShake(768, outputs=2, image_shape=SMALL, depth=8, width=4)
    assert torch.equal(head.unflatten(x.flatten(1)), x)


@pytest.mark.parametrize("head", [ShakeShake, WideResNet])
def test_picture_head_with_bad_code_or_depth_raises(head):
    with pytest.raises(InputError, match=r"k is 64;.*16x16x3 = 768"):
        head(64, outputs=10, image_shape=SMALL)
    with pytest.raises(InputError, match="depth is 12"):
        head(768, outputs=10, image_shape=SMALL, depth=12)


def test_grouped_head_reads_half_of_the_code_for_each_group():
    privatize, head = halves_map(10, k=6), GroupedHead(6, groups=(2, 3, 4), hidden=4).eval()
    features = torch.randn(3, 10)
    other = features.clone()
    other[:, 5:] += 1
    z, moved = privatize(features), privatize(other)
    assert torch.equal(z[:, :3], moved[:, :3]) and not torch.equal(z[:, 3:], moved[:, 3:])
    assert torch.equal(head(z)[:, :2], head(moved)[:, :2]) and not torch.equal(head(z)[:, 2:], head(moved)[:, 2:])
    with pytest.raises(InputError, match="k is 5"):
        halves_map(10, k=5)
    with pytest.raises(InputError, match="k is 5"):
        GroupedHead(5)


SMALL_STAGES = STAGES | {
    "genki": (lambda: lenet_stages(SMALL), SMALL, 64),
    "residual_g": (lambda: residual_g(3, units=1), SMALL, 768),
    "picture_conv": (lambda: picture_conv(3), SMALL, 768),
    "generator_conv": (lambda: generator_conv(3), SMALL, 512),
    "celeba_single": (lambda: leaky_stages(3), SMALL, 256),
    "celeba_multi": (lambda: SubNets(3), (64, 64, 3), 2 * 192),
}


@pytest.mark.parametrize(
    ("stages", "head"),
    [
        ("har", "lenet"),
        ("genki", "lenet"),
        ("residual_g", "shake"),
        ("residual_g", "wide"),
        ("picture_conv", "wide"),
        ("gaussian", "linear"),
    ]
    + [("generator_conv", "lenet"), ("celeba_single", "leaky"), ("celeba_multi", "grouped")],
)
def test_every_network_exports_for_any_batch_size(stages, head):
    build, shape, flat = SMALL_STAGES[stages]
    build_head, k, _ = HEADS[head]
    code = nn.Identity() if flat == k else halves_map(flat, k=k) if stages == "celeba_multi" else nn.Linear(flat, k)
    privatizer = nn.Sequential(build(), nn.Flatten(), code)
    net = nn.ModuleDict({"privatizer": privatizer, "head": build_head()})
    programs = export_programs(net, k=k, image_shape=shape)
    net.eval()
    pictures = torch.randint(0, 256, (5, shape[2], *shape[:2]), dtype=torch.uint8)
    z = torch.export.load(io.BytesIO(programs["privatizer"])).module()(pictures)
    logits = torch.export.load(io.BytesIO(programs["utility_head"])).module()(z)
    with torch.no_grad():
        expected = privatizer(pictures.float() / 127.5 - 1)
        assert torch.allclose(z, expected, atol=1e-4, rtol=1e-4)
        assert torch.allclose(logits, net["head"](z), atol=1e-4, rtol=1e-4)


def test_count_gives_parameters_and_multiply_adds_of_one_input():
    lenet = lenet_stages(MNIST)
    assert count(lenet, (1, 28, 28)) == (2_572, 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150)
    assert count(lenet_head(32, outputs=10), (32,)) == (14_974, 32 * 120 + 120 * 84 + 84 * 10)
    assert count(residual_g(3), (3, 32, 32)) == (1_647, 19 * 32 * 32 * 81)
    transposed = TransposedSame(64, 32, 3, stride=(2, 2))
    assert count(transposed, (64, 7, 7)) == (64 * 32 * 9 + 32, 7 * 7 * 64 * 32 * 9)


def test_count_does_not_change_the_network():
    net = residual_g(3, units=2).train()
    before = copy.deepcopy(net.state_dict())
    count(net, (3, 8, 8))
    assert net.training
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


def test_costs_of_a_run_equal_the_counts_of_its_networks():
    config = Config(k=32, privatizer=PrivatizerConfig(family="lenet"), utility=UtilityConfig(family="lenet"))
    before = torch.random.get_rng_state()
    run_costs = costs(config, image_shape=(28, 28, 1), outputs=10)
    assert run_costs["privatizer"]["parameters"] == 15_404
    assert run_costs["privatizer"]["multiply_adds"] == 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 32
    assert run_costs["utility_head"] == {"parameters": 14_974, "multiply_adds": 32 * 120 + 120 * 84 + 84 * 10}
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("family", "side", "flat"), [("celeba_single", 112, 12_544), ("celeba_multi", 175, 3_456)])
def test_celeba_networks_are_built_by_name(family, side, flat):
    config = Config(k=64, privatizer=PrivatizerConfig(family=family), utility=UtilityConfig(family=family))
    privatizer = build_privatizer(config.privatizer, k=64, image_shape=(side, side, 3))
    head = build_head(config.utility, k=64, num_logits=40, image_shape=(side, side, 3))
    z = privatizer(torch.rand(2, 3, side, side))
    assert z.shape == (2, 64)
    assert head(z).shape == (2, 40)
    groups = 2 if family == "celeba_multi" else 1
    assert sum(p.numel() for p in privatizer.code.parameters()) == flat * 64 // groups + 64


def test_grouped_head_with_another_number_of_attributes_raises():
    with pytest.raises(
        InputError, match=r"^utility\.family 'celeba_multi' is for 40 logits, one for each attribute; the task has 1: use 'mlp'$"
    ):
        build_head(UtilityConfig(family="celeba_multi"), k=64, num_logits=1, image_shape=(175, 175, 3))
