"""Tests of the privatizer that sends answers: its classifier stays as it is, and it starts at the classifier's hard answers."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.config import PrivatizerConfig, UtilityConfig
from cpgan_ray.errors import InputError
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.answers import AnswersPrivatizer, FixedNorm, answer_shares, classifier_bytes, largest
from cpgan_ray.models.pretrained import pinned_weights

K, LABELS, SHAPE = 6, 5, (16, 16, 3)
SPREAD = np.arange(1, LABELS + 1) / 20
TRUNK = PrivatizerConfig(width=4, depth=2)


@pytest.fixture(scope="module")
def networks() -> nn.ModuleDict:
    """A privatizer without rounding and a head, with batch norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    privatizer = build_privatizer(TRUNK, k=K, image_shape=SHAPE)
    head = build_head(UtilityConfig(hidden=8), k=K, num_logits=LABELS, image_shape=SHAPE)
    net = nn.ModuleDict({"privatizer": privatizer, "head": head}).train()
    for _ in range(3):
        head(privatizer(torch.randn(32, 3, 16, 16)))
    return net.eval()


@pytest.fixture
def file(networks: nn.ModuleDict, tmp_path: Path) -> str:
    return file_of(networks, tmp_path, widths=[1] * LABELS)


def file_of(networks: nn.ModuleDict, tmp_path: Path, *, widths: list[int]) -> str:
    """The file of the classifier; widths: the number of logits of each label."""
    states = {name: part.state_dict() for name, part in networks.items()}
    parts = {"privatizer": TRUNK, "utility": UtilityConfig(hidden=8), "k": K, "image_shape": SHAPE, "widths": widths}
    (tmp_path / "classifier.pt").write_bytes(classifier_bytes(states, SPREAD, **parts))
    return pinned_weights(str(tmp_path / "classifier.pt"))


def answers_privatizer(file: str | None, *, levels: int = 2, k: int = LABELS, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    config = PrivatizerConfig(family="answers", classifier="smoke", weights=file, levels=levels, quantization_step=1.0)
    return build_privatizer(config, k=k, image_shape=shape)


def pictures(rows: int = 64) -> torch.Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.BatchNorm1d(3, affine=False)])
def test_fixed_norm_equals_the_batch_norm_in_use(norm):
    x = torch.randn(8, 3, *(2, 2) if isinstance(norm, nn.BatchNorm2d) else ())
    norm.train()
    norm(3 * x + 1)
    norm.eval()
    torch.testing.assert_close(FixedNorm(norm)(x), norm(x))


def test_untrained_code_is_the_hard_answers_of_the_classifier(networks, file):
    privatizer, x = answers_privatizer(file).eval(), pictures()
    with torch.no_grad():
        z, logits = privatizer(x), networks["head"](networks["privatizer"](x))
    assert set(z.unique().tolist()) == {-1.0, 0.0}
    assert torch.equal(answer_shares(z, levels=2), (logits > 0).float())


def test_answers_of_several_levels_are_the_quantised_logits(networks, file):
    privatizer, x = answers_privatizer(file, levels=4).eval(), pictures()
    with torch.no_grad():
        z, logits = privatizer(x), networks["head"](networks["privatizer"](x)).numpy()
    expected = np.clip(np.floor(logits / SPREAD), -2, 1)
    np.testing.assert_array_equal(z.numpy(), expected)
    assert answer_shares(torch.tensor([-2.0, -1.0, 0.0, 1.0]), levels=4).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_answers_to_a_label_of_several_values_have_one_largest(networks, tmp_path):
    """Of a label of two values and one of four."""
    privatizer, x = answers_privatizer(file_of(networks, tmp_path, widths=[1, 4])).eval(), pictures()
    with torch.no_grad():
        z, logits = privatizer(x), networks["head"](networks["privatizer"](x)).numpy()
    answers = answer_shares(z, levels=2).numpy()
    np.testing.assert_array_equal(answers[:, 0], logits[:, 0] > 0)
    np.testing.assert_array_equal(answers[:, 1:].argmax(1), (logits / SPREAD)[:, 1:].argmax(1))
    assert (answers[:, 1:].sum(1) == 1).all()
    values = torch.randn(8, 4, requires_grad=True)
    weights = torch.randn(8, 4)
    (grad,) = torch.autograd.grad((largest(values) * weights).sum(), values)
    (expected,) = torch.autograd.grad((values.softmax(1) * weights).sum(), values)
    torch.testing.assert_close(grad, expected)
    with pytest.raises(InputError, match="levels is 4, but a label has more than two values, whose answers are hard"):
        answers_privatizer(file_of(networks, tmp_path, widths=[1, 4]), levels=4)


def test_training_changes_only_the_network_behind_the_classifier(file):
    privatizer, x = answers_privatizer(file), pictures()
    assert isinstance(privatizer, AnswersPrivatizer)
    before = copy.deepcopy(privatizer.classifier.state_dict())
    optimiser = torch.optim.SGD(privatizer.parameters(), lr=1.0)
    privatizer.train()
    first = privatizer(x).detach()
    for _ in range(3):
        optimiser.zero_grad()
        privatizer(x).sum().backward()
        optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in privatizer.classifier.state_dict().items())
    assert privatizer(x).sum() < first.sum()


def test_gradient_reaches_only_answers_that_are_not_sure(file):
    """The straight-through gradient of two levels: 1 within one spread of the border, 0 beyond."""
    privatizer, x = answers_privatizer(file).train(), pictures()
    assert isinstance(privatizer, AnswersPrivatizer)
    last = privatizer.change[-1]
    with torch.no_grad():
        certainty = privatizer.classifier(x)[1] / privatizer.classifier.spread
    privatizer(x).sum().backward()
    assert isinstance(last, nn.Linear) and last.bias.grad is not None
    inside = (certainty.abs() <= 1).sum(0).float()
    assert 0 < inside.sum() < inside.numel() * len(x)
    torch.testing.assert_close(last.bias.grad, inside)


def test_classifier_for_other_pictures_or_labels_is_refused(file, tmp_path):
    with pytest.raises(InputError, match="k is 7, but privatizer.family 'answers' sends one number for each of the 5 logits"):
        answers_privatizer(file, k=7)
    with pytest.raises(InputError, match=r"takes samples of shape \(16, 16, 3\), the store has \(32, 32, 3\)"):
        answers_privatizer(file, shape=(32, 32, 3))
    torch.save({"weight": torch.zeros(2)}, buffer := io.BytesIO())
    (tmp_path / "other.pt").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"other\.pt is not the file of a classifier \(KeyError\): delete it, it is made again"):
        answers_privatizer(str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "answers"}, "only family 'answers' runs a classifier, and it needs one"),
        ({"classifier": "celeba"}, "only family 'answers' runs a classifier, and it needs one"),
        ({"family": "answers", "classifier": "celeba"}, "answers have an even number of levels and step 1"),
        ({"family": "answers", "classifier": "celeba", "levels": 3, "quantization_step": 1.0}, "an even number of levels"),
        ({"family": "answers", "classifier": "celeba", "levels": 2, "quantization_step": 2.0}, "and step 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        PrivatizerConfig(**changes)
    assert "\n" not in str(error.value)
