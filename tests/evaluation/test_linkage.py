"""Who is recognised: people with a face of their own are, others are not, and no picture is taken for its own companion."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cpgan_ray.evaluation.linkage import Verifier, linkage, same_pairs

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
def verifier() -> Verifier:
    return Verifier(*people(TRAINED))


def test_people_that_the_encoder_has_never_seen_are_recognised(verifier):
    vectors, identity = people(UNSEEN, first=TRAINED)
    embedded = verifier.embed(vectors)
    found = linkage(embedded, embedded, identity, seed=0)
    assert found is not None
    assert found.pairs == UNSEEN * PICTURES * (PICTURES - 1)
    assert found.auc > 0.97
    assert found.low < found.auc < found.high
    assert found.tar_at_1_far > 0.75


def test_the_discriminant_finds_what_the_vectors_themselves_drown(verifier):
    vectors, identity = people(UNSEEN, first=TRAINED)
    raw = linkage(unit(vectors), unit(vectors), identity, seed=0)
    assert raw is not None
    assert raw.auc < 0.7
    assert raw.tar_at_1_far < 0.2


def test_two_forms_of_a_picture_are_compared_across(verifier):
    """A noisy form is recognised less well than a clean one, and better than one of other people."""
    vectors, identity = people(UNSEEN, first=TRAINED)
    clean = verifier.embed(vectors)
    noisy = verifier.embed(vectors + 2 * np.random.default_rng(5).normal(size=vectors.shape))
    others = verifier.embed(people(UNSEEN, first=5000)[0])
    auc = []
    for form in (clean, noisy, others):
        found = linkage(form, clean, identity, seed=0)
        assert found is not None
        auc.append(found.auc)
    assert auc[0] - 0.05 > auc[1] > 0.7
    assert auc[2] == pytest.approx(0.5, abs=0.05)


def test_features_that_have_nothing_to_do_with_people_link_nobody():
    verifier = Verifier(*people(TRAINED, own=0.0))
    for seed in range(3):
        vectors, identity = people(UNSEEN, first=TRAINED, own=0.0, seed=seed)
        embedded = verifier.embed(vectors)
        found = linkage(embedded, embedded, identity, seed=0)
        assert found is not None
        assert found.auc == pytest.approx(0.5, abs=0.05)
        assert found.low < 0.5 < found.high
        assert found.tar_at_1_far < 0.05


def test_area_and_true_accepts_are_those_of_all_pairs(verifier):
    """scikit-learn on every pair of people that there is, of which the module draws some: a one-sided threshold on the cosines."""
    vectors, identity = people(UNSEEN, first=TRAINED, own=0.6)
    embedded = verifier.embed(vectors)
    found = linkage(embedded, embedded, identity, seed=0)
    assert found is not None
    cosines, same = embedded @ embedded.T, identity[:, None] == identity
    counted = ~np.eye(len(identity), dtype=bool)
    assert found.auc == pytest.approx(roc_auc_score(same[counted], cosines[counted]), abs=0.005)
    threshold = np.quantile(cosines[~same], 0.99)
    assert found.tar_at_1_far == pytest.approx((cosines[same & counted] > threshold).mean(), abs=0.03)
    assert 0.1 < found.tar_at_1_far < found.auc < 0.95, "neither end of the scale would show much"


def test_a_picture_is_never_paired_with_itself():
    """Each picture resembles none but itself: an encoder of pictures, not of people."""
    identity = np.repeat(np.arange(UNSEEN), PICTURES)
    own = unit(np.random.default_rng(0).normal(size=(len(identity), 200)))
    found = linkage(own, own, identity, seed=0)
    assert found is not None
    assert found.auc == pytest.approx(0.5, abs=0.05)
    assert found.high < 0.6


def test_pairs_of_one_person_are_all_ordered_pairs_of_different_rows():
    pairs = same_pairs(np.array([7, 3, 7, 5, 7, 3]))
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (0, 4), (1, 5), (2, 0), (2, 4), (4, 0), (4, 2), (5, 1)]


def test_nobody_with_two_pictures_makes_no_pairs_and_no_linkage():
    identity = np.array([4, 1, 3, 9])
    assert same_pairs(identity).shape == (0, 2)
    embedded = np.eye(4)
    assert linkage(embedded, embedded, identity, seed=0) is None


@pytest.mark.parametrize("identity", [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]])
def test_an_encoder_needs_two_people_with_two_pictures_each(identity):
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="at least two people with two pictures"):
        Verifier(vectors, np.array(identity))


def test_people_with_one_picture_teach_nothing(verifier):
    vectors, identity = people(TRAINED)
    rng = np.random.default_rng(6)
    singles = rng.normal(size=(40, vectors.shape[1])).astype(np.float32)
    other = Verifier(np.concatenate([singles, vectors]), np.concatenate([np.arange(9000, 9040), identity]))
    assert other.embed(vectors) == pytest.approx(verifier.embed(vectors))


def test_features_that_never_vary_do_not_hinder_the_encoder(verifier):
    vectors, identity = people(TRAINED)

    def with_constants(v: np.ndarray) -> np.ndarray:
        return np.column_stack([np.zeros(len(v)), v, np.full(len(v), 2.0)]).astype(np.float32)

    other = Verifier(with_constants(vectors), identity)
    unseen, _ = people(UNSEEN, first=TRAINED)
    assert other.embed(with_constants(unseen)) == pytest.approx(verifier.embed(unseen))


def test_embeddings_are_unit_vectors_of_at_most_as_many_dimensions_as_people_differ_in(verifier):
    assert np.linalg.norm(verifier.embed(people(5)[0]), axis=1) == pytest.approx(np.ones(5 * PICTURES))
    few = Verifier(*people(4))
    assert few.embed(people(5)[0]).shape == (5 * PICTURES, 3)


def test_linkage_is_repeatable_from_its_seed(verifier):
    vectors, identity = people(UNSEEN, first=TRAINED)
    embedded = verifier.embed(vectors)
    one, again, other = (linkage(embedded, embedded, identity, seed=seed) for seed in (0, 0, 1))
    assert one == again != other


def test_the_interval_is_one_over_people():
    """As many pairs of few people say much less: here every second person is always recognised, the others never."""
    widths = []
    for num, pictures in ((8, 8), (224, 2)):
        identity = np.repeat(np.arange(num), pictures)
        directions = unit(np.random.default_rng(0).normal(size=(len(identity), 300)))
        directions[identity % 2 == 0] = directions[np.searchsorted(identity, identity[identity % 2 == 0])]
        found = linkage(directions, directions, identity, seed=0)
        assert found is not None
        assert found.pairs == 448
        assert found.auc == pytest.approx(0.75, abs=0.05)
        widths.append(found.high - found.low)
    assert widths[0] > 3 * widths[1] > 0.02


def test_a_collapsed_code_tells_nobody_from_anybody():
    vectors, identity = people(TRAINED)
    collapsed = Verifier(np.zeros_like(vectors), identity).embed(vectors)
    found = linkage(collapsed, collapsed, identity, seed=0)
    assert found is not None
    assert (found.auc, found.low, found.high) == (0.5, 0.5, 0.5)


def test_pictures_of_one_person_alone_are_compared_with_nobody():
    assert linkage(np.ones((3, 2)), np.ones((3, 2)), np.zeros(3), seed=0) is None
