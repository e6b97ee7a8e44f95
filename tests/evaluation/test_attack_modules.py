"""Tests of attacks as torch modules and ONNX models: the same pictures as the attack's own reconstructions."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, to_pixels
from cpgan_ray.evaluation.attacks.modules import NoModuleError, eve_of
from cpgan_ray.evaluation.attacks.stack import stack_attack
from cpgan_ray.pipelines.export.eve import eve_model

torch.set_num_threads(1)

SHAPE, D = (8, 8, 3), 192
FEW_ROWS = AttackConfig(mlp_widths=(16,), decoder_width=2, epochs=2, decoder_epochs=1, max_budget_doublings=0, restarts=2)
RANDOM_FEATURES = dataclasses.replace(FEW_ROWS, kernel_rows=50, kernel_features=64)


@pytest.fixture(scope="module")
def data(data_of) -> AttackData:
    """Codes that say much about pictures in [-1, 1], whose mean is not grey."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 5))
    x = np.tanh(np.sin(z @ rng.normal(size=(5, D))) + 0.2 * rng.normal(size=(500, D)) + np.linspace(-1, 1, D))
    low = torch.from_numpy(-1 - x[:300].mean(axis=0)).float()
    made = data_of(z, x, components=12, image_shape=SHAPE)
    return dataclasses.replace(made, bounds=(low, low + 2), pictures=True)


def of_attack(data: AttackData, fitted: Fitted) -> np.ndarray:
    """The attack's own pictures (B, C, H, W) in [0, 255]."""
    assert data.bounds is not None
    values = 127.5 * (to_pixels(data, fitted, data.score.z) - data.bounds[0]).numpy()
    return values.reshape(-1, *SHAPE).transpose(0, 3, 1, 2)


def of_model(content: bytes, z: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (pictures,) = session.run(["pictures"], {"z": z})
    return np.asarray(pictures)


@pytest.mark.parametrize(
    ("name", "config"),
    [("ridge", FEW_ROWS), ("kernel", FEW_ROWS), ("kernel", RANDOM_FEATURES), ("mlp", FEW_ROWS), ("decoder", FEW_ROWS)],
    ids=["ridge", "exact kernel", "random features", "mlp", "decoder"],
)
def test_model_gives_the_pictures_of_the_attack(data, name, config):
    fitted = ATTACKS[name](data, config)
    content, expected = eve_model(eve_of(fitted, data), data.score.z), of_attack(data, fitted)
    for count in (1, len(expected)):
        np.testing.assert_allclose(of_model(content, data.score.z[:count].numpy()), expected[:count], atol=1.1)
    assert expected.std(axis=0).max() > 20, "the pictures differ, so a constant would not pass"


def test_model_of_a_stack_gives_its_pictures(data):
    members = {name: ATTACKS[name](data, FEW_ROWS) for name in ("ridge", "kernel")}
    stack = stack_attack(data, members)
    content = eve_model(eve_of(stack, data), data.score.z)
    np.testing.assert_allclose(of_model(content, data.score.z.numpy()), of_attack(data, stack), atol=1.1)


def test_attack_without_a_module_is_refused(data):
    with pytest.raises(NoModuleError, match="Neighbours"):
        eve_of(ATTACKS["nearest"](data, FEW_ROWS), data)
    with pytest.raises(NoModuleError, match="no pictures"):
        eve_of(ATTACKS["ridge"](data, FEW_ROWS), dataclasses.replace(data, pictures=False))
