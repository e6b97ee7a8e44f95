"""Tests of attacks that predict who is on the picture, and of what they show, on codes that say only that."""

from dataclasses import replace

import numpy as np
import pytest

from cpgan_ray.config import AttackConfig, Config
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.code_sets import code_sets
from cpgan_ray.evaluation.fitting import EMBEDDING, AttackSpec, EvaluationContext, attack_specs, fit_in_process, stack_specs
from cpgan_ray.evaluation.identity.embedding_target import embeddings_of
from cpgan_ray.evaluation.identity.judges import DISCRIMINANT
from cpgan_ray.evaluation.identity.result import MEAN, PICTURES
from cpgan_ray.evaluation.tournament import TournamentResult, identity_judge, score_attacks
from cpgan_ray.evaluation.tournament_numbers import as_json, metrics

SMALL = AttackConfig(names=("ridge",), fit_fractions=(), attributes=False, similarity=False, variants=("leaked",), num_shifted=0)


@pytest.fixture(scope="module")
def dataset(tiny_config: Config) -> Dataset:
    return load(tiny_config, progress=False)


@pytest.fixture(scope="module")
def context(dataset: Dataset) -> EvaluationContext:
    """The code is small pictures."""
    codes = {}
    for name, code_set in code_sets(dataset).items():
        x = np.concatenate(list(code_set.blocks()))
        b, h, w, c = x.shape
        codes[name] = x.reshape(b, h // 8, 8, w // 8, 8, c).mean(axis=(2, 4)).reshape(b, -1).astype(np.float32)
    context = EvaluationContext(dataset, codes, SMALL, seed=0)
    judge = identity_judge(context, context.data("leaked"))
    assert judge is not None
    return replace(context, embeddings=embeddings_of(judge, context.data("leaked"), seed=0))


@pytest.fixture(scope="module")
def result(context: EvaluationContext) -> TournamentResult:
    specs = attack_specs(SMALL, context.dataset, embeddings=True)
    return score_attacks(fit_in_process(specs, context, done=lambda _: None), context)


def test_embeddings_cover_the_attackers_pictures(context):
    assert context.embeddings.keys() == {"train", "val"}
    for name, values in context.embeddings.items():
        assert len(values) == len(context.dataset.splits[name])
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-4)


def test_embedding_data_leaves_out_pictures_without_embedding(context):
    values = context.embeddings["train"].copy()
    values[::2] = np.nan
    data, mean = replace(context, embeddings=context.embeddings | {"train": values}).embedding_data()
    views = data.views
    assert len(data.fit) == views * (len(values) // 2)
    rows = np.arange(1, len(values), 2)
    np.testing.assert_array_equal(data.fit.identity[: len(rows)], context.dataset.train.identity[rows])
    np.testing.assert_allclose((data.fit.target.values[: len(rows)] + mean).numpy(), values[rows], atol=1e-5)
    np.testing.assert_array_equal(data.fit.z[: len(rows)].numpy(), context.codes["train"][rows])


def test_embedding_attacks_are_never_the_strongest_nor_stacked(context, result):
    specs = attack_specs(replace(SMALL, names=("ridge", "kernel", "stack")), context.dataset, embeddings=True)
    assert {s.name for s in specs if s.variant == EMBEDDING} == {"ridge", "kernel"}
    assert not any(s.counts for s in specs if s.variant == EMBEDDING)
    assert AttackSpec("stack", EMBEDDING) not in stack_specs(specs, replace(SMALL, names=("ridge", "kernel", "stack")))
    assert {a.spec.variant for a in result.attacks} == {"leaked"}


def test_embedding_attack_identifies_better_than_chance(result):
    ranks = result.identity.identification
    count = ranks[MEAN].candidates
    assert result.identity.judge == DISCRIMINANT
    assert ranks[PICTURES].mean_rank == 1
    assert ranks[MEAN].mean_rank == (count + 1) / 2
    assert ranks["embedding by ridge and picture"].mean_rank < 0.35 * count
    assert result.identity.linkage[MEAN].auc == pytest.approx(0.5, abs=0.01)


def test_metrics_leave_out_pictures_and_chance(result):
    values, report = metrics(result), as_json(result)
    links = report["identity_linkage"]
    assert values["privacy/embedding_auc"] == links["embedding by ridge and picture"]["auc"]
    others = ("reconstruction and picture", "reconstruction and reconstruction", "code and code")
    assert values["privacy/linkage_auc"] == max(links[name]["auc"] for name in others)
    ranks = report["identification"]["ranks"]
    best = min(rank["mean_rank"] for name, rank in ranks.items() if name not in (PICTURES, MEAN))
    assert values["privacy/identification_rank"] == pytest.approx(best / len(result.strongest.errors.identity))
