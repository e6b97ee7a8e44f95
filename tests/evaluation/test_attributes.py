"""What is planted in a code is read off it, what is not is guessed, and the score rows' labels decide nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.evaluation.attacks.base import AttackData, Pairs
from cpgan_ray.evaluation.attributes import InferredAttribute, attribute_map, train_classifiers
from cpgan_ray.training.adversaries.base import Target

torch.set_num_threads(1)

SIZES = {"fit": 2000, "tune": 500, "score": 1000}
K = 6
SCALES = np.logspace(-2, 2, K)
NAMES = ("planted", "rare", "unrelated", "xor")


def codes() -> dict[str, np.ndarray]:
    """Of each set (N, K), far from standardised."""
    rng = np.random.default_rng(0)
    return {name: 100 + SCALES * rng.normal(size=(num, K)) for name, num in SIZES.items()}


def standardised(z: np.ndarray) -> np.ndarray:
    return (z - 100) / SCALES


def labels() -> dict[str, np.ndarray]:
    """Of each set (N, 4): the side of one coordinate, its top 5 %, the toss of a coin, whether two coordinates agree."""
    rng = np.random.default_rng(1)
    found = {}
    for name, raw in codes().items():
        z = standardised(raw)
        truth = [z[:, 0] > 0, z[:, 1] > 1.645, rng.random(len(z)) < 0.5, z[:, 2] * z[:, 3] > 0]
        found[name] = np.stack(truth, axis=1).astype(np.int8)
    return found


def attack_data() -> AttackData:
    """Only codes: nothing here needs their pictures."""

    def pairs(z: np.ndarray) -> Pairs:
        nothing = torch.zeros(len(z), 1)
        return Pairs(torch.from_numpy(z).float(), Target(nothing, nothing[:, 0], 1), nothing, np.arange(len(z)))

    return AttackData(
        **{name: pairs(z) for name, z in codes().items()}, components=torch.eye(1), bounds=None, image_shape=None, seed=0
    )


def mapped(
    given: dict[str, np.ndarray], *, names: tuple[str, ...] = NAMES, task: set[str] | None = None
) -> dict[str, InferredAttribute]:
    return {found.name: found for found in attribute_map(attack_data(), given, names=names, task=task or set())}


@pytest.fixture(scope="module")
def found() -> dict[str, InferredAttribute]:
    return mapped(labels(), task={"planted"})


def test_a_planted_attribute_is_read_off_the_code(found):
    assert found["planted"].balanced_accuracy > 0.95


def test_a_rare_attribute_is_not_given_up_for_the_majority(found):
    assert found["rare"].balanced_accuracy > 0.93
    assert found["rare"].positive_share == labels()["score"][:, 1].mean() < 0.1


def test_an_unrelated_attribute_is_guessed(found):
    assert found["unrelated"].balanced_accuracy == pytest.approx(0.5, abs=0.05)


def test_what_only_two_coordinates_together_tell_is_found(found):
    """No linear probe can: whether the signs of two coordinates agree is uncorrelated with either."""
    assert found["xor"].balanced_accuracy > 0.9


def test_a_linear_probe_alone_would_miss_it():
    given, z = labels(), {name: torch.from_numpy(standardised(z)).float() for name, z in codes().items()}
    torch.manual_seed(0)
    logits = train_classifiers(nn.Linear(K, len(NAMES)), z, given, share=torch.full((len(NAMES),), 0.5), seed=0)
    right = ((logits["score"] > 0) == (given["score"] > 0)).mean(axis=0)
    assert right[0] > 0.9
    assert right[3] == pytest.approx(0.5, abs=0.06)


def test_all_attributes_are_listed_in_order_and_those_of_the_task_marked(found):
    assert tuple(found) == NAMES
    assert [name for name, attribute in found.items() if attribute.task] == ["planted"]


def test_attributes_that_never_vary_on_the_tuning_or_the_score_rows_are_left_out():
    given = labels()
    given["tune"][:, 0], given["score"][:, 2] = 1, 0
    assert tuple(mapped(given)) == ("rare", "xor")


@pytest.mark.parametrize("part", ["fit", "tune", "score"])
def test_an_attribute_that_never_varies_in_one_of_the_sets_is_left_out_and_the_others_are_not(part):
    given = labels()
    given[part][:, 0] = 0
    assert tuple(mapped(given)) == ("rare", "unrelated", "xor")


def test_where_no_attribute_varies_the_map_is_empty():
    given = labels()
    given["tune"][:] = 1
    assert mapped(given) == {}


def test_permuted_score_labels_leave_all_predictions_as_they_are():
    given, z = labels(), {name: torch.from_numpy(standardised(z)).float() for name, z in codes().items()}
    permuted = given | {"score": np.random.default_rng(2).permutation(given["score"])}
    predictions = []
    for these in (given, permuted):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(K, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, len(NAMES)))
        predictions.append(train_classifiers(network, z, these, share=torch.full((len(NAMES),), 0.5), seed=0))
    for name in ("tune", "score"):
        np.testing.assert_array_equal(predictions[0][name], predictions[1][name])


def test_score_labels_choose_neither_probe_nor_epoch(found):
    """Turned round, they must turn each accuracy round: the same answers are wrong where they were right. Whoever chose by them
    would keep the other probe, the better one again."""
    given = labels()
    turned = mapped(given | {"score": 1 - given["score"]})
    for name in NAMES:
        assert turned[name].balanced_accuracy == pytest.approx(1 - found[name].balanced_accuracy, abs=1e-12)


def test_the_probe_is_the_one_that_is_better_on_the_tuning_rows(found):
    """With the tuning labels of an attribute turned round, the one that knows least about it is."""
    given = labels()
    given["tune"][:, 3] = 1 - given["tune"][:, 3]
    assert mapped(given)["xor"].balanced_accuracy < 0.6 < found["xor"].balanced_accuracy


def test_the_map_is_repeatable_after_other_draws(found):
    torch.manual_seed(12345)
    assert mapped(labels(), task={"planted"}) == found
