"""Tests of identity linkage."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cpgan_ray.data.discriminant import FisherDiscriminant
from cpgan_ray.evaluation.linkage import linkage, same_pairs

TRAINED, UNSEEN, PICTURES = 150, 60, 3
FEATURES, LOUD = 12, 3


def people(num: int, *, first: int = 0, own: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, FEATURES + LOUD) and identities: `own` features of the person, the same in all pictures, under noise; and loud
    ones that change from picture to picture, as light and pose do."""
    rng = np.random.default_rng([seed, first])
    identity = np.repeat(np.arange(first, first + num), PICTURES)
    features = np.repeat(own * rng.normal(size=(num, FEATURES)), PICTURES, axis=0) + 0.4 * rng.normal(
        size=(len(identity), FEATURES)
    )
    loud = 4 * rng.normal(size=(len(identity), LOUD))
    order = rng.permutation(len(identity))
    return np.column_stack([features, loud]).astype(np.float32)[order], identity[order]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def verifier() -> FisherDiscriminant:
    return FisherDiscriminant(*people(TRAINED))


def test_linkage_recognises_unseen_people(verifier):
    vectors, identity = people(UNSEEN, first=TRAINED)
    embedded = verifier.embed(vectors)
    result = linkage(embedded, embedded, identity, seed=0)
    assert result is not None
    assert result.pairs == UNSEEN * PICTURES * (PICTURES - 1)
    assert result.auc > 0.97
    assert result.low < result.auc < result.high
    assert result.tar_at_1_far > 0.75


def test_verifier_beats_raw_vectors_with_loud_noise(verifier):
    vectors, identity = people(UNSEEN, first=TRAINED)
    raw = linkage(unit(vectors), unit(vectors), identity, seed=0)
    assert raw is not None
    assert raw.auc < 0.7
    assert raw.tar_at_1_far < 0.2


def test_linkage_compares_two_forms_of_pictures(verifier):
    """A noisy form is recognised less well than a clean form, and better than a form of other people."""
    vectors, identity = people(UNSEEN, first=TRAINED)
    clean = verifier.embed(vectors)
    noisy = verifier.embed(vectors + 2 * np.random.default_rng(5).normal(size=vectors.shape))
    others = verifier.embed(people(UNSEEN, first=5000)[0])
    auc = []
    for form in (clean, noisy, others):
        result = linkage(form, clean, identity, seed=0)
        assert result is not None
        auc.append(result.auc)
    assert auc[0] - 0.05 > auc[1] > 0.7
    assert auc[2] == pytest.approx(0.5, abs=0.05)


def test_linkage_on_unrelated_features_is_at_chance():
    verifier = FisherDiscriminant(*people(TRAINED, own=0.0))
    for seed in range(3):
        vectors, identity = people(UNSEEN, first=TRAINED, own=0.0, seed=seed)
        embedded = verifier.embed(vectors)
        result = linkage(embedded, embedded, identity, seed=0)
        assert result is not None
        assert result.auc == pytest.approx(0.5, abs=0.05)
        assert result.low < 0.5 < result.high
        assert result.tar_at_1_far < 0.05


def test_linkage_matches_scikit_learn_on_all_pairs(verifier):
    """scikit-learn on every pair of people that there is, of which the module draws some: a one-sided threshold on the cosines."""
    vectors, identity = people(UNSEEN, first=TRAINED, own=0.6)
    embedded = verifier.embed(vectors)
    result = linkage(embedded, embedded, identity, seed=0)
    assert result is not None
    cosines, same = embedded @ embedded.T, identity[:, None] == identity
    counted = ~np.eye(len(identity), dtype=bool)
    assert result.auc == pytest.approx(roc_auc_score(same[counted], cosines[counted]), abs=0.005)
    threshold = np.quantile(cosines[~same], 0.99)
    assert result.tar_at_1_far == pytest.approx((cosines[same & counted] > threshold).mean(), abs=0.03)
    assert 0.1 < result.tar_at_1_far < result.auc < 0.95, "a value at an end of the scale would show little"


def test_linkage_never_pairs_picture_with_itself():
    """Each picture is similar only to itself: the code encodes pictures, not people."""
    identity = np.repeat(np.arange(UNSEEN), PICTURES)
    own = unit(np.random.default_rng(0).normal(size=(len(identity), 200)))
    result = linkage(own, own, identity, seed=0)
    assert result is not None
    assert result.auc == pytest.approx(0.5, abs=0.05)
    assert result.high < 0.6


def test_same_pairs_are_ordered_pairs_of_different_rows():
    pairs = same_pairs(np.array([7, 3, 7, 5, 7, 3]))
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (0, 4), (1, 5), (2, 0), (2, 4), (4, 0), (4, 2), (5, 1)]


def test_linkage_without_repeated_person_is_none():
    identity = np.array([4, 1, 3, 9])
    assert same_pairs(identity).shape == (0, 2)
    embedded = np.eye(4)
    assert linkage(embedded, embedded, identity, seed=0) is None


@pytest.mark.parametrize("identity", [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]])
def test_verifier_needs_two_people_with_two_pictures(identity):
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="at least two people with two pictures"):
        FisherDiscriminant(vectors, np.array(identity))


def test_verifier_ignores_people_with_one_picture(verifier):
    vectors, identity = people(TRAINED)
    rng = np.random.default_rng(6)
    singles = rng.normal(size=(40, vectors.shape[1])).astype(np.float32)
    other = FisherDiscriminant(np.concatenate([singles, vectors]), np.concatenate([np.arange(9000, 9040), identity]))
    assert other.embed(vectors) == pytest.approx(verifier.embed(vectors))


def test_verifier_ignores_constant_features(verifier):
    vectors, identity = people(TRAINED)

    def with_constants(v: np.ndarray) -> np.ndarray:
        return np.column_stack([np.zeros(len(v)), v, np.full(len(v), 2.0)]).astype(np.float32)

    other = FisherDiscriminant(with_constants(vectors), identity)
    unseen, _ = people(UNSEEN, first=TRAINED)
    assert other.embed(with_constants(unseen)) == pytest.approx(verifier.embed(unseen))


def test_embed_returns_unit_vectors_of_limited_dimension(verifier):
    assert np.linalg.norm(verifier.embed(people(5)[0]), axis=1) == pytest.approx(np.ones(5 * PICTURES))
    few = FisherDiscriminant(*people(4))
    assert few.embed(people(5)[0]).shape == (5 * PICTURES, 3)


def test_linkage_with_same_seed_is_repeatable(verifier):
    vectors, identity = people(UNSEEN, first=TRAINED)
    embedded = verifier.embed(vectors)
    one, again, other = (linkage(embedded, embedded, identity, seed=seed) for seed in (0, 0, 1))
    assert one == again != other


def test_linkage_interval_resamples_people():
    """The same number of pairs from fewer people gives a wider interval: every second person is always recognised, others never."""
    widths = []
    for num, pictures in ((8, 8), (224, 2)):
        identity = np.repeat(np.arange(num), pictures)
        directions = unit(np.random.default_rng(0).normal(size=(len(identity), 300)))
        directions[identity % 2 == 0] = directions[np.searchsorted(identity, identity[identity % 2 == 0])]
        result = linkage(directions, directions, identity, seed=0)
        assert result is not None
        assert result.pairs == 448
        assert result.auc == pytest.approx(0.75, abs=0.05)
        widths.append(result.high - result.low)
    assert widths[0] > 3 * widths[1] > 0.02


def test_linkage_on_collapsed_code_is_at_chance():
    vectors, identity = people(TRAINED)
    collapsed = FisherDiscriminant(np.zeros_like(vectors), identity).embed(vectors)
    result = linkage(collapsed, collapsed, identity, seed=0)
    assert result is not None
    assert (result.auc, result.low, result.high) == (0.5, 0.5, 0.5)


def test_linkage_of_single_person_is_none():
    assert linkage(np.ones((3, 2)), np.ones((3, 2)), np.zeros(3), seed=0) is None
