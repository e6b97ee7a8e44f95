"""Tests of ONNX models against the programs that they were made of: equal codes of every preset's networks, small weights."""

import functools
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from cpgan_ray.common.codec import level_range
from cpgan_ray.config import PrivatizerConfig, UtilityConfig
from cpgan_ray.config.presets import PRESETS
from cpgan_ray.deploy.onnx_export import Weights, onnx_model
from cpgan_ray.evaluation.encoders.onnx_models import checked_model
from cpgan_ray.models.building import build_privatizer
from cpgan_ray.models.export import export_programs
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.models.utility_heads import build_head
from tests.deploy.bundles import smooth_pictures

SHAPES = {"mnist": (28, 28, 1), "digits": (8, 8, 1), "har": (128, 1, 9), "gaussian": (1, 32, 1), "cifar10": (32, 32, 3)}
SHAPES |= {"svhn": SHAPES["cifar10"]}
"""(H, W, C) of the data sets whose samples are not resized."""
BATCHES = (1, 7, 64)
FIDELITY_ROWS = 256
LARGEST_CHANGES: dict[Weights, tuple[float, float]] = {"float32": (0.0, 0.0), "float16": (0.01, 0.02), "int8": (0.08, 0.04)}
"""Largest share of the numbers of codes that the weights of a model may change, and largest change of R2 and accuracy."""
SERIES = ("har", "gaussian", "gaussian_kernel")
"""Presets whose networks cannot be symmetric."""


FAMILIES = ("smoke", "mnist", "har", "svhn", "gaussian")
"""A preset of each family of networks."""


def networks(*quick: str) -> list[Any]:
    """The networks of all presets, with and without symmetry. Those of other presets than the quick ones, and symmetric ones of
    other families than the default, are for slow tests."""
    return [
        pytest.param(name, symmetric, marks=() if name in quick and (not symmetric or name == "smoke") else pytest.mark.slow)
        for name in PRESETS
        for symmetric in ((False,) if name in SERIES else (False, True))
    ]


def samples(shape: tuple[int, int, int], count: int, *, signals: bool, seed: int) -> np.ndarray:
    height, width, channels = shape
    smooth = smooth_pictures(count, (channels, height, width), seed=seed)
    return smooth.astype(np.float32) / 50 - 2 if signals else smooth


@functools.cache
def programs(preset: str, symmetric: bool) -> tuple[dict[str, Any], tuple[int, int, int], bool, float]:
    """The programs of a preset's networks, with the statistics of some samples; their shape; whether they are signals; the step."""
    config = PRESETS[preset]()
    size, dataset = config.data.image_size, config.data.dataset
    shape, signals = SHAPES.get(dataset, (size, size, 3)), dataset in ("har", "gaussian")
    num_logits = 40 if config.utility.family == "celeba_multi" else 6
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "privatizer": build_privatizer(replace(config.privatizer, symmetric=symmetric), k=config.k, image_shape=shape),
            "head": build_head(config.utility, k=config.k, num_logits=num_logits, image_shape=shape),
        }
    )
    x = torch.from_numpy(samples(shape, 64, signals=signals, seed=99))
    refresh_statistics(net["privatizer"], [x if signals else x.float() / 127.5 - 1])
    exported = export_programs(net, k=config.k, image_shape=shape, dtype=x.numpy().dtype)
    loaded = {name: torch.export.load(io.BytesIO(content)) for name, content in exported.items()}
    return loaded, shape, signals, config.privatizer.quantization_step


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(output)


def by_torch(program: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return program.module()(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(("preset", "symmetric"), networks(*FAMILIES))
def test_model_gives_the_codes_of_the_program_for_any_batch(preset, symmetric):
    loaded, shape, signals, step = programs(preset, symmetric)
    content = onnx_model(loaded["privatizer"], input_name="pictures", output_name="z", weights="float32")
    checked_model(content, stochastic=False)  # nothing that attack.py refuses
    for batch in BATCHES:
        x = samples(shape, batch, signals=signals, seed=batch)
        z, expected = run(content, x), by_torch(loaded["privatizer"], x)
        assert z.shape == expected.shape
        if step:
            assert np.array_equal(np.rint(z / step), np.rint(expected / step))
        else:
            np.testing.assert_allclose(z, expected, atol=1e-4)
    assert np.ptp(z) > 0
    head = onnx_model(loaded["utility_head"], input_name="z", output_name="logits", weights="float32")
    np.testing.assert_allclose(run(head, z), by_torch(loaded["utility_head"], z), atol=1e-4)


@pytest.mark.parametrize(("family", "head"), [("separable", "residual"), ("patch", "transformer"), ("patch", "ensemble")])
def test_models_of_light_clients_and_heavy_heads_give_the_outputs_of_the_programs(family, head):
    torch.manual_seed(0)
    config = PrivatizerConfig(family=family, width=4, depth=3, quantization_step=0.5)
    privatizer = build_privatizer(config, k=34, image_shape=(28, 28, 3))
    net = nn.ModuleDict(
        {
            "privatizer": privatizer,
            "head": build_head(UtilityConfig(family=head, hidden=8, width=16), k=34, num_logits=3, image_shape=(28, 28, 3)),
        }
    )
    x = samples((28, 28, 3), 64, signals=False, seed=3)
    refresh_statistics(privatizer, [torch.from_numpy(x).float() / 127.5 - 1])
    loaded = {n: torch.export.load(io.BytesIO(p)) for n, p in export_programs(net, k=34, image_shape=(28, 28, 3)).items()}
    models = {n: onnx_model(p, input_name="x", output_name="y", weights="float32") for n, p in loaded.items()}
    for content in models.values():
        checked_model(content, stochastic=False)
    for batch in BATCHES:
        z = run(models["privatizer"], x[:batch])
        assert np.array_equal(np.rint(z / 0.5), np.rint(by_torch(loaded["privatizer"], x[:batch]) / 0.5))
        np.testing.assert_allclose(run(models["utility_head"], z), by_torch(loaded["utility_head"], z), atol=1e-5)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_model_of_finite_codes_gives_exactly_the_codes_of_the_program(levels):
    privatizer = PrivatizerConfig(width=4, depth=2, levels=levels, quantization_step=0.75)
    torch.manual_seed(levels)
    net = nn.ModuleDict({"privatizer": build_privatizer(privatizer, k=6, image_shape=(16, 16, 3)), "head": nn.Linear(6, 2)})
    x = samples((16, 16, 3), 64, signals=False, seed=3)
    refresh_statistics(net["privatizer"], [torch.from_numpy(x).float() / 127.5 - 1])
    program = torch.export.load(io.BytesIO(export_programs(net, k=6, image_shape=(16, 16, 3))["privatizer"]))
    content = onnx_model(program, input_name="pictures", output_name="z", weights="float32")
    checked_model(content, stochastic=False)
    z = run(content, x)
    assert np.array_equal(z, by_torch(program, x))
    assert np.array_equal(z, net.eval()["privatizer"](torch.from_numpy(x).float() / 127.5 - 1).detach().numpy())
    lowest, highest = level_range(levels)
    assert {*np.unique(z)} == {n * 0.75 for n in range(lowest, highest + 1)}


# --------------------------------------------------------------------------------------------------- weights of every preset


@dataclass(frozen=True)
class Fidelity:
    """How the codes of a model compare with those of the program."""

    changed_numbers: float
    """Share of numbers with another level; without rounding, of numbers that differ by more than 5 % of the standard deviation."""
    r2: float
    """Of the samples as ridge regression recovers them from held-out codes."""
    accuracy: float
    """Of a classifier that was fitted on the program's codes, for whether a sample is brighter than the median."""


def fidelity(preset: str, symmetric: bool, weights: Weights | None) -> Fidelity:
    """Of the model with these weights; None: of the program itself."""
    loaded, shape, signals, step = programs(preset, symmetric)
    x = samples(shape, FIDELITY_ROWS, signals=signals, seed=17)
    expected = np.concatenate([by_torch(loaded["privatizer"], part) for part in np.split(x, 8)])
    z = expected
    if weights is not None:
        content = onnx_model(loaded["privatizer"], input_name="pictures", output_name="z", weights=weights)
        z = np.concatenate([run(content, part) for part in np.split(x, 8)])
    unit = step or 0.1 * expected.std()
    changed = np.mean(np.abs(z - expected) > unit / 2)
    half = FIDELITY_ROWS // 2
    flat = x.reshape(len(x), -1).astype(np.float64)
    recovered = Ridge(1.0).fit(z[:half], flat[:half]).predict(z[half:])
    errors, spread = (recovered - flat[half:]) ** 2, (flat[half:] - flat[:half].mean(axis=0)) ** 2
    bright = flat.mean(axis=1) > np.median(flat.mean(axis=1))
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(expected[:half], bright[:half])
    return Fidelity(float(changed), float(1 - errors.sum() / spread.sum()), float(classifier.score(z[half:], bright[half:])))


@pytest.mark.parametrize(("preset", "symmetric"), networks("smoke", "har"))
def test_weights_of_a_preset_keep_its_r2_and_accuracy(preset, symmetric):
    program = fidelity(preset, symmetric, None)
    assert program.accuracy > 0.6, "codes that say nothing would be no test"
    for weights, (numbers, scores) in LARGEST_CHANGES.items():
        model = fidelity(preset, symmetric, weights)
        assert model.changed_numbers <= numbers, weights
        assert abs(model.r2 - program.r2) <= scores + 1e-4, weights
        assert abs(model.accuracy - program.accuracy) <= scores, weights


@pytest.mark.parametrize(("weights", "largest_share", "size"), [("float16", 0.01, 0.6), ("int8", 0.05, 0.4)])
def test_smaller_weights_change_few_numbers(weights, largest_share, size):
    loaded, shape, _, step = programs("smoke", False)
    x = samples(shape, 300, signals=False, seed=5)
    contents = {
        name: onnx_model(loaded["privatizer"], input_name="pictures", output_name="z", weights=name)
        for name in ("float32", weights)
    }
    z, expected = (run(content, x) for content in contents.values())
    assert np.mean(np.rint(z / step) != np.rint(expected / step)) < largest_share
    assert len(contents[weights]) < size * len(contents["float32"])
    checked_model(contents[weights], stochastic=False)


def test_weights_that_float16_cannot_hold_stay_float32():
    linear = nn.Linear(64, 4)
    with torch.no_grad():
        linear.weight[0, 0] = 1e6
    program = torch.export.export(linear, (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    content = onnx_model(program, input_name="x", output_name="z", weights="float16")
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    np.testing.assert_allclose(run(content, x), by_torch(program, x), rtol=1e-4)


def test_model_of_the_same_program_has_the_same_bytes():
    loaded, *_ = programs("smoke", False)
    first, second = (onnx_model(loaded["privatizer"], input_name="pictures", output_name="z", weights="int8") for _ in range(2))
    assert first == second
    assert {opset.domain for opset in onnx.load_model_from_string(first).opset_import} == {""}


def test_program_that_onnx_cannot_express_is_refused():
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.qr(x.view(-1, 2, 2))[0].flatten(1)

    program = torch.export.export(Sorted(), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with pytest.raises(RuntimeError, match="cannot convert the program to ONNX"):
        onnx_model(program, input_name="x", output_name="z", weights="float32")
