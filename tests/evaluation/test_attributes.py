"""Tests of the attribute map: planted attributes are inferred, others are at chance, and score labels select nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.data import Task
from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.attacks.base import AttackData, Pairs
from cpgan_ray.evaluation.attributes import InferredAttribute, attribute_map, train_classifiers
from cpgan_ray.training.adversaries.base import Target

torch.set_num_threads(1)

SIZES = {"fit": 2000, "tune": 500, "score": 1000}
K = 6
SCALES = np.logspace(-2, 2, K)
NAMES = ("planted", "rare", "unrelated", "xor")
TASK = Task.of(NAMES)


def codes() -> dict[str, np.ndarray]:
    """Codes of each set, (N, K), far from standardised."""
    rng = np.random.default_rng(0)
    return {name: 100 + SCALES * rng.normal(size=(num, K)) for name, num in SIZES.items()}


def standardised(z: np.ndarray) -> np.ndarray:
    return (z - 100) / SCALES


def labels() -> dict[str, np.ndarray]:
    """Labels of each set, (N, 4): sign of a coordinate, its top 5 %, a coin toss, whether the signs of two coordinates agree."""
    rng = np.random.default_rng(1)
    result = {}
    for name, raw in codes().items():
        z = standardised(raw)
        truth = [z[:, 0] > 0, z[:, 1] > 1.645, rng.random(len(z)) < 0.5, z[:, 2] * z[:, 3] > 0]
        result[name] = np.stack(truth, axis=1).astype(np.int8)
    return result


def attack_data() -> AttackData:
    """Attack data with codes only, because the attribute map does not use pictures."""

    def pairs(z: np.ndarray) -> Pairs:
        nothing = torch.zeros(len(z), 1)
        return Pairs(torch.from_numpy(z).float(), Target(nothing, nothing[:, 0], 1), nothing, np.arange(len(z)))

    return AttackData(
        **{name: pairs(z) for name, z in codes().items()}, components=torch.eye(1), bounds=None, image_shape=None, seed=0
    )


def mapped(given: dict[str, np.ndarray], *, of: Task = TASK, task: set[str] | None = None) -> dict[str, InferredAttribute]:
    attributes = attribute_map(attack_data(), given, of=of, task=task or set(), late=("rare",))
    return {attribute.name: attribute for attribute in attributes}


@pytest.fixture(scope="module")
def inferred() -> dict[str, InferredAttribute]:
    return mapped(labels(), task={"planted"})


def test_attribute_map_infers_planted_attribute(inferred):
    assert inferred["planted"].balanced_accuracy > 0.95


def test_attribute_map_infers_rare_attribute(inferred):
    assert inferred["rare"].balanced_accuracy > 0.93
    assert inferred["rare"].positive_share == labels()["score"][:, 1].mean() < 0.1


def test_attribute_map_unrelated_attribute_is_at_chance(inferred):
    assert inferred["unrelated"].balanced_accuracy == pytest.approx(0.5, abs=0.05)


def test_attribute_map_infers_nonlinear_attribute(inferred):
    """A linear probe cannot infer it: whether the signs of two coordinates agree is uncorrelated with each of them."""
    assert inferred["xor"].balanced_accuracy > 0.9


def test_linear_probe_misses_nonlinear_attribute():
    given, z = labels(), {name: torch.from_numpy(standardised(z)).float() for name, z in codes().items()}
    torch.manual_seed(0)
    logits = train_classifiers(nn.Linear(K, len(NAMES)), z, given, TASK, share=torch.full((len(NAMES),), 0.5), seed=0)
    right = ((logits["score"] > 0) == (given["score"] > 0)).mean(axis=0)
    assert right[0] > 0.9
    assert right[3] == pytest.approx(0.5, abs=0.06)


def test_attribute_map_lists_attributes_in_order_and_marks_task_and_late_ones(inferred):
    assert tuple(inferred) == NAMES
    assert [name for name, attribute in inferred.items() if attribute.task] == ["planted"]
    assert [name for name, attribute in inferred.items() if attribute.late] == ["rare"]


def test_attribute_map_omits_constant_attributes():
    given = labels()
    given["tune"][:, 0], given["score"][:, 2] = 1, 0
    assert tuple(mapped(given)) == ("rare", "xor")


@pytest.mark.parametrize("part", ["fit", "tune", "score"])
def test_attribute_map_attribute_constant_in_one_set_is_omitted(part):
    given = labels()
    given[part][:, 0] = 0
    assert tuple(mapped(given)) == ("rare", "unrelated", "xor")


def test_attribute_map_without_varying_attribute_is_empty():
    given = labels()
    given["tune"][:] = 1
    assert mapped(given) == {}


def test_attribute_map_predictions_do_not_depend_on_score_labels():
    given, z = labels(), {name: torch.from_numpy(standardised(z)).float() for name, z in codes().items()}
    permuted = given | {"score": np.random.default_rng(2).permutation(given["score"])}
    predictions = []
    for labels_ in (given, permuted):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(K, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, len(NAMES)))
        predictions.append(train_classifiers(network, z, labels_, TASK, share=torch.full((len(NAMES),), 0.5), seed=0))
    for name in ("tune", "score"):
        np.testing.assert_array_equal(predictions[0][name], predictions[1][name])


def test_attribute_map_score_labels_select_neither_probe_nor_epoch(inferred):
    """If the score labels are inverted, each accuracy a must become 1 - a, because the answers stay the same. If score labels
    selected the probe, the better probe would be selected again."""
    given = labels()
    inverted = mapped(given | {"score": 1 - given["score"]})
    for name in NAMES:
        assert inverted[name].balanced_accuracy == pytest.approx(1 - inferred[name].balanced_accuracy, abs=1e-12)


def test_attribute_map_selects_probe_on_tuning_rows(inferred):
    """If the tuning labels of an attribute are inverted, the worst probe is selected."""
    given = labels()
    given["tune"][:, 3] = 1 - given["tune"][:, 3]
    assert mapped(given)["xor"].balanced_accuracy < 0.6 < inferred["xor"].balanced_accuracy


def test_attribute_map_is_repeatable(inferred):
    torch.manual_seed(12345)
    assert mapped(labels(), task={"planted"}) == inferred


def test_attribute_map_of_classes_and_missing_answers():
    """The quarter that a coordinate is in, among binary attributes, with a third of all answers missing."""
    rng, given = np.random.default_rng(5), {}
    for name, raw in codes().items():
        quarter = np.searchsorted([-0.67, 0.0, 0.67], standardised(raw)[:, 4])
        given[name] = np.concatenate([quarter[:, None], labels()[name]], axis=1).astype(np.int8)
        given[name][rng.random(given[name].shape) < 0.33] = MISSING
    of = Task.of(("quarter", *NAMES), classes={"quarter": "abcd"})
    result = mapped(given, of=of)
    assert tuple(result) == ("quarter", *NAMES)
    assert result["quarter"].balanced_accuracy > 0.85 and result["planted"].balanced_accuracy > 0.9
    assert (result["quarter"].chance, result["quarter"].positive_share, result["rare"].chance) == (0.25, None, 0.5)
    assert result["quarter"].scaled_accuracy == pytest.approx(1 - (1 - result["quarter"].balanced_accuracy) * 0.5 / 0.75)
    assert result["unrelated"].scaled_accuracy == result["unrelated"].balanced_accuracy == pytest.approx(0.5, abs=0.06)
    given["tune"][:, 1] = np.where(given["tune"][:, 1] == 1, MISSING, given["tune"][:, 1])
    assert "planted" not in mapped(given, of=of), "only one of its values is known in a set"
