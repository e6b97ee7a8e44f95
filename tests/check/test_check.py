"""Each check finds the fault that it is for."""

import re
from pathlib import Path

import pytest

from cpgan_ray.check.__main__ import main
from cpgan_ray.errors import InputError

NETWORK = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=4)
        {init}

    def forward(self, x):
        {forward}

def build(config, image_shape):
    return Net(image_shape[2])
"""
PLAIN = "return self.conv(x)"
FAULTY_NETWORKS = {
    "builds": ("raise KeyError('no')", PLAIN, r"nets\.py:10: KeyError: 'no', while calling the privatizer nets\.build"),
    "shapes": ("pass", "return self.conv(x).sum(0)", r"nets\.build returns .* it must return floating-point numbers with one row"),
    "gradients": ("self.unused = nn.Linear(2, 2)", PLAIN, "2 parameters get no gradient, the first is .*unused"),
    "determinism": (
        "self.conv.weight.data = torch.from_numpy(np.random.default_rng().random((4, 3, 3, 3), np.float32))",
        PLAIN,
        "differs",
    ),
    "each row": ("pass", "return self.conv(x) + x.mean()", "a row's output changes by"),
    "snapshot": ("self.calls = 0", "self.calls += 1; return self.conv(x) * self.calls ** 0.5", "continues differently|differ"),
    "export": (
        "pass",
        "return self.conv(x) * float(x[0, 0, 0, 0] > 2 or len(x) == 2 or 1.0)",
        "while exporting the privatizer|cannot be exported",
    ),
}


@pytest.mark.parametrize("fault", FAULTY_NETWORKS)
def test_faulty_network_fails_the_check_for_its_fault(fault, tmp_path, capsys):
    init, forward, message = FAULTY_NETWORKS[fault]
    (tmp_path / "nets.py").write_text(NETWORK.format(init=init, forward=forward))
    with pytest.raises(SystemExit) as raised:
        main([f"{tmp_path}/nets.py:build", "--image-size", "16", "--k", "4"])
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert raised.value.code == 1
    assert any(re.search(message, line) for line in failed), failed


ADVERSARY = """
import numpy as np
import torch

class Mean:
    def __init__(self, config, context):
        self.weight = torch.zeros(context.k, context.target)
        self.rounds = 0
        {init}

    def recover(self, z, target):
        {recover}

    def improve(self, z, target):
        self.weight = torch.linalg.lstsq(z, target.values).solution
        self.rounds += 1

    def state_dict(self):
        {state}

    def load_state_dict(self, state):
        self.weight = state["weight"]
"""
RECOVER, STATE = "return target.errors(z @ self.weight + 0 * z.sum()), slice(0, len(z))", 'return {"weight": self.weight}'
FAULTY_ADVERSARIES = {
    "detached": ("pass", "return target.errors(z.detach() @ self.weight), slice(0, len(z))", STATE, "never detach|do not depend"),
    "shape": ("pass", "return target.errors(z @ self.weight).mean(), slice(0, len(z))", STATE, r"errors of shape \(\) for 96 rows"),
    "random": (
        "pass",
        "return (1 + np.random.rand()) * target.errors(z @ self.weight), slice(0, len(z))",
        STATE,
        "differently|claims",
    ),
    "lost state": (
        "pass",
        RECOVER,
        'return {"weight": torch.zeros_like(self.weight)}',
        "put everything that changes into state_dict",
    ),
    "state": ("pass", RECOVER, 'return {"weight": self.weight, "me": self}', "holds other objects than tensors, numbers"),
    "method": ("self.improve = None", RECOVER, STATE, "has no method improve"),
}


@pytest.mark.parametrize("fault", FAULTY_ADVERSARIES)
def test_faulty_adversary_fails_with_its_fault_named(fault, tmp_path, capsys):
    init, recover, state, message = FAULTY_ADVERSARIES[fault]
    (tmp_path / "eve.py").write_text(ADVERSARY.format(init=init, recover=recover, state=state))
    with pytest.raises(SystemExit):
        main([f"{tmp_path}/eve.py:Mean", "--image-size", "8"])
    output = capsys.readouterr().out
    assert any(re.search(message, line) for line in output.splitlines() if line.startswith("FAIL")), output


ATTACK = """
from cpgan_ray.evaluation.attacks.closed_form import ridge_attack
from dataclasses import replace

def attack(data, config):
    fitted = ridge_attack(data, config)
    return {result}
"""


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("replace(fitted, tune_r2=0.99)", "tune_r2 is 0.9900, but the attack"),
        ("replace(fitted, space='components')", r"reconstructs \(2, 192\) from 2 codes; in space 'components' it must be"),
        ("replace(fitted, reconstruct=lambda z: fitted.reconstruct(z))", "pickle"),
        ("fitted.reconstruct", "returns Affine; it must return a Fitted"),
        ("ridge_attack(replace(data, fit=data.score), config)", "attack.py:7: IndexError"),
    ],
)
def test_faulty_attack_fails_with_its_fault_named(result, message, tmp_path, capsys):
    (tmp_path / "attack.py").write_text(ATTACK.format(result=result))
    with pytest.raises(SystemExit):
        main([f"{tmp_path}/attack.py:attack", "--image-size", "8"])
    output = capsys.readouterr().out
    assert any(re.search(message, line) for line in output.splitlines() if line.startswith("FAIL")), output


@pytest.mark.parametrize(
    "name", ["residual --kind privatizer", "lenet --kind head", "kernel --kind adversary", "nearest --kind attack"]
)
def test_built_in_part_passes_the_same_checks(name, capsys):
    main([*name.split(), "--image-size", "16"])
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to check"),
        (["conv"], "say with --kind which kind of part it is"),
        (["{folder}/part.py:other"], r"part\.other has the parameters \(a, b\), which belong to no kind"),
        (["{folder}/none.py:part"], r"none\.py cannot be read"),
    ],
)
def test_check_of_nothing_is_refused(words, message, tmp_path):
    Path(tmp_path / "part.py").write_text("def other(a, b):\n    pass\n")
    with pytest.raises(InputError, match=message):
        main([word.format(folder=tmp_path) for word in words])
