"""The tournament as a whole: what is made, who may be the strongest, and that Ray finds what this process finds."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.config import AttackConfig, Config, DataConfig, EncoderConfig, RuntimeConfig
from cpgan_ray.data import Dataset, load
from cpgan_ray.distributed.tasks import fit_on_ray
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import Encoder, encode_all
from cpgan_ray.evaluation.encoders.runners import Runner
from cpgan_ray.evaluation.fitting import (
    AttackSpec,
    EvaluationContext,
    FittedAttack,
    attack_specs,
    fit_attack,
    fit_in_process,
    trained_against,
)
from cpgan_ray.evaluation.report.report import reference_rows
from cpgan_ray.evaluation.report.threat_model import limits, threat_model
from cpgan_ray.evaluation.tournament import TournamentResult, as_json, linear_code_r2, metrics, score_attacks
from tests.data.datasets.test_har import lay_out

torch.set_num_threads(1)

SMALL = AttackConfig(
    names=("ridge", "kernel", "nearest"),
    fit_fractions=(0.5,),
    restarts=1,
    epochs=1,
    max_budget_doublings=0,
    mlp_widths=(16,),
    kernel_features=32,
)


def half_size(pictures: np.ndarray) -> np.ndarray:
    """A code that is the picture at a quarter of its side."""
    b, c, h, w = pictures.shape
    return pictures.reshape(b, c, h // 4, 4, w // 4, 4).mean(axis=(3, 5)).reshape(b, -1).astype(np.float32)


def plain_encoder(dataset: Dataset, encode: Callable[[np.ndarray], np.ndarray]) -> Encoder:
    """A function of stored pictures (B, C, H, W) as an encoder."""
    runner = Runner((), lambda x: {"z": encode(x)})
    return Encoder(dataset.folder / "manifest.json", runner, dataset.image_shape, raw=True, settings=EncoderConfig())


@pytest.fixture(scope="module")
def context(tiny_config: Config) -> EvaluationContext:
    dataset = load(tiny_config, progress=False)
    encoder = plain_encoder(dataset, half_size)
    return EvaluationContext(dataset, encode_all(encoder, dataset), SMALL, seed=0, task=("Male",))


@pytest.fixture(scope="module")
def made(context: EvaluationContext) -> list[FittedAttack]:
    return fit_in_process(attack_specs(SMALL, context.dataset), context, done=lambda _: None)


@pytest.fixture(scope="module")
def result(made: list[FittedAttack], context: EvaluationContext) -> TournamentResult:
    return score_attacks(made, context)


def test_every_attack_is_made_in_both_variants_on_smaller_shares_and_on_the_true_labels(context):
    todo = attack_specs(SMALL, context.dataset)
    whole = {(e.name, e.variant) for e in todo if e.counts}
    assert whole == {(name, variant) for name in SMALL.names for variant in ("leaked", "fresh")}
    assert {(e.name, e.share) for e in todo if e.share < 1} == {(name, 0.5) for name in SMALL.names}
    assert {e.name for e in todo if e.variant == "labels"} == {"ridge", "kernel", "mlp"}
    assert len(set(todo)) == len(todo)


def test_the_slowest_attacks_are_begun_first(context):
    names = [e.name for e in attack_specs(AttackConfig(), context.dataset) if e.variant == "leaked" and e.share == 1]
    assert names[:3] == ["resnet_decoder", "decoder", "mlp"]


def test_of_signals_the_decoders_are_made_along_time(tmp_path):
    lay_out(tmp_path)
    data = DataConfig(dataset="har")
    dataset = load(Config(data=data, data_dir=tmp_path, cache_dir=tmp_path / "cache"), progress=False)
    first = plain_encoder(dataset, lambda x: x[:, :, :3, 0].reshape(len(x), -1))
    small = replace(SMALL, decoder_width=2)
    context = EvaluationContext(dataset, encode_all(first, dataset), small, seed=0, trained_against=("paper",))
    assert {"decoder", "resnet_decoder"} < {e.name for e in attack_specs(AttackConfig(), dataset) if e.counts}
    for name, architecture in (("decoder", "upsample"), ("resnet_decoder", "resnet")):
        fitted = fit_attack(AttackSpec(name, "leaked"), context).fitted
        assert fitted.settings["architecture"] == architecture
        assert fitted.reconstruct(torch.from_numpy(context.codes["test"])).shape == (len(dataset.test), 128 * 9)


def test_of_vectors_no_decoder_is_made(tmp_path):
    dataset = load(Config(data=DataConfig(dataset="gaussian"), cache_dir=tmp_path), progress=False)
    assert {e.name for e in attack_specs(AttackConfig(), dataset) if e.counts} == {"ridge", "kernel", "mlp", "nearest"}
    with pytest.raises(InputError, match=r"^attacks\.names has decoder, for pictures of 8 pixels .* these are 32x1x1: add mlp$"):
        attack_specs(AttackConfig(names=("decoder",)), dataset)


def test_the_strongest_is_the_best_of_both_variants_and_never_the_label_floor_or_a_smaller_share(result):
    scores = [a.score.r2 for a in result.attacks]
    assert scores == sorted(scores, reverse=True)
    assert result.strongest.score.r2 == max(scores)
    assert all(a.spec.counts for a in result.attacks)
    assert result.floor.spec.variant == "labels"


def test_a_code_that_is_the_picture_made_smaller_is_broken_and_is_told_from_the_label_floor(result):
    assert result.strongest.score.r2 > 0.5
    assert result.floor.score.r2 < 0.4
    assert as_json(result)["privacy"]["excess_r2"] == pytest.approx(result.strongest.score.r2 - result.floor.score.r2)


def test_the_best_linear_code_of_k_numbers_is_the_share_of_the_leading_components(context):
    data = context.data("leaked")
    x = data.score.pixels[slice(None)].numpy().astype(np.float64)
    v = data.components.numpy()[:5].astype(np.float64)
    expected = 1 - np.square(x - x @ v.T @ v).sum() / np.square(x).sum()
    assert linear_code_r2(data, 5) == pytest.approx(expected, abs=1e-3)


def test_the_metrics_of_a_verdict_are_all_in_the_dictionary(result):
    found = metrics(result)
    assert {f"attack/{name}/r2" for name in SMALL.names} <= found.keys()
    assert found["attack/ridge/r2"] == max(a.score.r2 for a in result.attacks if a.spec.name == "ridge")
    unknown = [n for n in found if n not in DICTIONARY and "attack/<name>/" + n.rpartition("/")[2] not in DICTIONARY]
    assert unknown == []


def test_the_report_has_every_documented_key_and_is_plain_json(result):
    report = json.loads(json.dumps(as_json(result)))
    assert report["privacy"]["strongest"].keys() == {"attack", "variant", "r2", "low", "high"}
    wanted = {"name", "variant", "r2", "low", "high", "mse_255", "psnr", "ssim", "saturated", "seconds"}
    for row in report["attacks"]:
        assert row.keys() >= wanted
        assert row["low"] <= row["r2"] <= row["high"]
    assert report["sweep"]
    assert {a["name"] for a in report["attributes"]} >= {"Male"}
    assert [a["name"] for a in report["attributes"] if a["task"]] == ["Male"]


def test_a_code_of_the_whole_picture_links_people_better_than_chance(result):
    assert result.linkage.keys() >= {"picture and picture", "code and code", "reconstruction and picture"}
    assert result.linkage["picture and picture"].low > 0.5


def test_the_label_floor_is_made_from_the_labels_of_the_task_alone(context):
    column = context.dataset.label_names.index("Male")
    assert context.data("labels").score.z.numpy() == pytest.approx(context.dataset.test.labels[:, [column]])
    every = replace(context, task=()).data("labels")
    assert every.fit.z.shape[1] == len(context.dataset.label_names)


def test_references_go_from_nothing_to_everything(result):
    rows = reference_rows(result, None)
    assert [row["r2"] for row in rows][0] == 0
    assert [row["r2"] for row in rows][-1] == 1
    strongest = result.strongest.score
    assert rows[0]["mse_255"] * (1 - strongest.r2) == pytest.approx(strongest.mse_255)


def test_the_sets_of_the_threat_model_add_up(context):
    sets = {row["name"]: row for row in threat_model(context)["sets"]}
    assert sets["val, first part"]["pictures"] + sets["val, second part"]["pictures"] == len(context.dataset.val)
    assert sets["train"]["people"] == len(np.unique(context.dataset.train.identity))


def test_of_data_without_people_the_threat_model_speaks_of_none(context):
    """Each row an identity of its own: nothing links two of them."""
    told = " ".join([threat_model(context)["attacker"], threat_model(context)["not_covered"], *limits(context.dataset)])
    assert "codes of people she has never seen" in told
    alone = {
        name: replace(part, identity=np.arange(len(part)))
        for name in ("train", "val", "test")
        for part in [getattr(context.dataset, name)]
    }
    context = replace(context, dataset=replace(context.dataset, **alone))
    told = " ".join([threat_model(context)["attacker"], threat_model(context)["not_covered"], *limits(context.dataset)])
    assert "codes of pictures she has never seen" in told
    assert re.search("person|people", told) is None


def test_architectures_that_were_trained_against_are_named(tiny):
    assert set(trained_against(tiny("mlp", "decoder", "ridge"))) == {"mlp", "conv"}


def test_on_ray_the_attacks_find_what_they_find_in_this_process(made, context, ray_session):
    todo = [m.spec for m in made]
    said = []
    on_ray = fit_on_ray(todo, context, runtime=RuntimeConfig(threads=1), done=said.append)
    assert [m.spec for m in on_ray] == todo
    assert sorted(str(m.spec) for m in said) == sorted(str(e) for e in todo)
    for one, other in zip(made, on_ray, strict=True):
        assert one.fitted.tune_r2 == other.fitted.tune_r2, one.spec
        assert one.fitted.settings == other.fitted.settings


def test_an_attack_that_asks_for_more_than_the_cluster_has_is_refused_with_the_numbers(context, ray_session):
    big = EvaluationContext(context.dataset, context.codes, replace(SMALL, cpus=64.0), seed=0)
    with pytest.raises(InputError, match=r"an attack needs 64 CPUs, the cluster has 2: lower --attacks.cpus"):
        fit_on_ray([AttackSpec("ridge", "leaked")], big, runtime=RuntimeConfig(), done=lambda _: None)


def test_what_an_attack_raises_reaches_the_caller_as_it_is(context, ray_session):
    with pytest.raises(InputError, match="would be fitted on 1 pictures"):
        fit_on_ray([AttackSpec("ridge", "leaked", 1e-4)], context, runtime=RuntimeConfig(), done=lambda _: None)


def test_one_entry_is_made_alone(context):
    made = fit_attack(AttackSpec("ridge", "fresh"), context)
    assert made.rows == len(context.data("fresh").fit)
    assert made.seconds > 0


def test_too_few_pictures_for_any_attack_are_an_error_before_anything_is_made(context):
    few = replace(context.dataset, val=context.dataset.val)
    short = replace(few.val, identity=few.val.identity[:3], labels=few.val.labels[:3])
    with pytest.raises(InputError, match=r"need 4 pictures to be fitted on and 4 to be tuned on: train has \d+, val 3"):
        attack_specs(SMALL, replace(few, val=short))


def test_the_fresh_variant_is_left_out_where_its_attacker_has_too_few_people(context):
    val = context.dataset.val
    short = replace(val, identity=np.zeros(6, np.int64), labels=val.labels[:6])
    todo = attack_specs(SMALL, replace(context.dataset, val=short))
    assert {e.variant for e in todo} == {"leaked", "labels"}
