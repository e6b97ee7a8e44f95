"""Tests of the whole tournament, in this process and on Ray."""

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
from cpgan_ray.evaluation.encoders.inputs import encoder_input
from cpgan_ray.evaluation.fitting import (
    FLOOR,
    SWEPT_ATTACKS,
    AttackSpec,
    EvaluationContext,
    FittedAttack,
    attack_specs,
    fit_attack,
    fit_in_process,
    fit_stacks,
    stack_specs,
    trained_against,
)
from cpgan_ray.evaluation.report.report import reference_rows
from cpgan_ray.evaluation.report.threat_model import limits, threat_model
from cpgan_ray.evaluation.tournament import TournamentResult, linear_code_r2, score_attacks
from cpgan_ray.evaluation.tournament_numbers import as_json, metrics
from tests.data.datasets.test_har import lay_out

torch.set_num_threads(1)

SMALL = AttackConfig(
    names=("ridge", "kernel", "nearest", "mlp", "stack"),
    fit_fractions=(0.5,),
    restarts=2,
    epochs=1,
    max_budget_doublings=0,
    mlp_widths=(16,),
    kernel_features=32,
    num_shifted=2,
)


def half_size(pictures: np.ndarray) -> np.ndarray:
    """Code: the picture at a quarter of its side."""
    b, c, h, w = pictures.shape
    return pictures.reshape(b, c, h // 4, 4, w // 4, 4).mean(axis=(3, 5)).reshape(b, -1).astype(np.float32)


def plain_encoder(dataset: Dataset, encode: Callable[[np.ndarray], np.ndarray]) -> Encoder:
    """An encoder from a function of stored pictures (B, C, H, W)."""
    height, width, channels = dataset.image_shape
    entry = encoder_input("encoder", ("?", channels, height, width), dataset.train.dtype.name, EncoderConfig(layout="nchw"))
    return Encoder(dataset.folder / "manifest.json", lambda x: {"z": encode(x)}, entry, EncoderConfig(), kind="a function")


@pytest.fixture(scope="module")
def context(tiny_config: Config) -> EvaluationContext:
    dataset = load(tiny_config, progress=False)
    encoder = plain_encoder(dataset, half_size)
    return EvaluationContext(dataset, encode_all(encoder, dataset, SMALL), SMALL, seed=0, labels=("Male",))


@pytest.fixture(scope="module")
def fitted_attacks(context: EvaluationContext) -> list[FittedAttack]:
    return fit_in_process(attack_specs(SMALL, context.dataset), context, done=lambda _: None)


@pytest.fixture(scope="module")
def stacks(fitted_attacks: list[FittedAttack], context: EvaluationContext) -> list[FittedAttack]:
    return fit_stacks(fitted_attacks, context, done=lambda _: None)


@pytest.fixture(scope="module")
def result(fitted_attacks: list[FittedAttack], stacks: list[FittedAttack], context: EvaluationContext) -> TournamentResult:
    return score_attacks(fitted_attacks + stacks, context)


def test_attack_specs_cover_variants_shares_and_labels(context):
    todo = attack_specs(SMALL, context.dataset)
    whole = {(e.name, e.variant) for e in todo if e.counts}
    single = [name for name in SMALL.names if name != "stack"]
    assert whole == {(name, variant) for name in single for variant in ("leaked", "fresh")}
    assert {(e.name, e.share) for e in todo if e.share < 1} == {(name, 0.5) for name in single if name in SWEPT_ATTACKS}
    assert {(e.name, e.variant) for e in todo if e.share < 1 and e.name == "ridge"} == {("ridge", "leaked"), ("ridge", "labels")}
    assert {e.name for e in todo if e.variant == "labels"} == {"ridge", "kernel", "mlp"}
    assert len(set(todo)) == len(todo)


def test_stack_specs_need_several_attacks_of_a_variant(context):
    todo = attack_specs(SMALL, context.dataset)
    assert stack_specs(todo, SMALL) == [AttackSpec("stack", variant) for variant in ("leaked", "fresh", "labels")]
    assert stack_specs(todo, replace(SMALL, names=("ridge", "kernel"))) == []
    alone = [AttackSpec("ridge", "leaked"), AttackSpec("kernel", "leaked", 0.5)]
    assert stack_specs(alone, SMALL) == []
    with pytest.raises(
        InputError, match=r"^attacks\.names has only stack, which is the average of other attacks: add kernel and mlp$"
    ):
        attack_specs(replace(SMALL, names=("stack",)), context.dataset)


def test_stack_counts_and_is_strongest_on_tuning_rows(result, stacks):
    assert {a.spec.variant for a in result.attacks if a.spec.name == "stack"} == {"leaked", "fresh"}
    for stack in stacks:
        members = [a.attack for a in (*result.attacks, result.floor) if a.spec.variant == stack.spec.variant]
        assert stack.fitted.tune_r2 >= max(member.fitted.tune_r2 for member in members) - 1e-6


def test_label_floor_has_the_budget_of_the_attacks(fitted_attacks):
    """As many restarts, kernel rows and epochs as an attack on z, and as many rows with their mirror images."""
    of = {(a.spec.name, a.spec.variant): a for a in fitted_attacks if a.spec.share == 1}
    for name in ("kernel", "mlp"):
        floor, attack = of[name, "labels"], of[name, "leaked"]
        assert floor.rows == attack.rows
        assert len(floor.fitted.restarts) == len(attack.fitted.restarts) == (2 if name == "mlp" else 0)
        assert floor.fitted.settings.keys() == attack.fitted.settings.keys() | floor.fitted.settings.keys() & {"averaged"}


def test_attack_specs_start_with_slowest(context):
    names = [e.name for e in attack_specs(AttackConfig(), context.dataset) if e.variant == "leaked" and e.share == 1]
    assert names[:3] == ["resnet_decoder", "decoder", "mlp"]


def test_attack_specs_of_series_include_decoders(tmp_path):
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


def test_attack_specs_of_vectors_exclude_decoders(tmp_path):
    dataset = load(Config(data=DataConfig(dataset="gaussian"), cache_dir=tmp_path), progress=False)
    assert {e.name for e in attack_specs(AttackConfig(), dataset) if e.counts} == {"ridge", "kernel", "mlp", "nearest"}
    with pytest.raises(
        InputError,
        match=r"^attacks\.names has only decoder, which need pictures of at least 8 pixels .* these are 32x1x1: add mlp$",
    ):
        attack_specs(AttackConfig(names=("decoder",)), dataset)


def test_strongest_is_best_attack_that_counts(result):
    scores = [a.score.r2 for a in result.attacks]
    assert scores == sorted(scores, reverse=True)
    assert result.strongest.score.r2 == max(scores)
    assert all(a.spec.counts for a in result.attacks)
    assert result.floor.spec.variant == "labels"


def test_tournament_on_downsampled_picture_exceeds_label_floor(result):
    assert result.strongest.score.r2 > 0.5
    assert result.floor.score.r2 < 0.4
    privacy = as_json(result)["privacy"]
    assert privacy["label_excess"]["r2"] == pytest.approx(result.strongest.score.r2 - result.floor.score.r2)
    assert (privacy["excess"], privacy["answers_floor_r2"]) == (None, None), "without a utility head"


def test_linear_code_r2_is_variance_of_leading_components(context):
    data = context.data("leaked")
    x = data.score.pixels[slice(None)].numpy().astype(np.float64)
    v = data.components.numpy()[:5].astype(np.float64)
    expected = 1 - np.square(x - x @ v.T @ v).sum() / np.square(x).sum()
    assert linear_code_r2(data, 5) == pytest.approx(expected, abs=1e-3)


def test_metrics_names_are_documented(result):
    values = metrics(result)
    assert {f"attack/{name}/r2" for name in SMALL.names} <= values.keys()
    assert values["attack/ridge/r2"] == max(a.score.r2 for a in result.attacks if a.spec.name == "ridge")
    unknown = [n for n in values if n not in DICTIONARY and "attack/<name>/" + n.rpartition("/")[2] not in DICTIONARY]
    assert unknown == []


def test_as_json_has_documented_keys_and_is_plain_json(result):
    report = json.loads(json.dumps(as_json(result)))
    assert report["privacy"]["strongest"].keys() == {"attack", "variant", "r2", "low", "high"}
    wanted = {"name", "variant", "r2", "low", "high", "mse_255", "psnr", "ssim", "saturated", "seconds"}
    for row in report["attacks"]:
        assert row.keys() >= wanted
        assert row["low"] <= row["r2"] <= row["high"]
    assert report["sweep"]
    assert {a["name"] for a in report["attributes"]} >= {"Male"}
    assert [a["name"] for a in report["attributes"] if a["task"]] == ["Male"]


def test_linkage_of_picture_code_is_above_chance(result):
    assert result.identity.linkage.keys() >= {"picture and picture", "code and code", "reconstruction and picture"}
    assert result.identity.linkage["picture and picture"].low > 0.5


def test_label_floor_codes_are_task_labels(context):
    column = context.dataset.label_names.index("Male")
    assert context.data("labels").score.z.numpy() == pytest.approx(context.dataset.test.labels[:, [column]])
    every = replace(context, labels=()).data("labels")
    assert every.fit.z.shape[1] == len(context.dataset.label_names)


def test_reference_rows_go_from_nothing_to_everything(result):
    rows = reference_rows(result, None)
    assert [row["r2"] for row in rows][0] == 0
    assert [row["r2"] for row in rows][-1] == 1
    strongest = result.strongest.score
    assert rows[0]["mse_255"] * (1 - strongest.r2) == pytest.approx(strongest.mse_255)


def test_threat_model_set_sizes_add_up(context):
    sets = {row["name"]: row for row in threat_model(context)["sets"]}
    assert sets["val, first part"]["pictures"] + sets["val, second part"]["pictures"] == len(context.dataset.val)
    assert sets["train"]["people"] == len(np.unique(context.dataset.train.identity))


def test_threat_model_without_identities_mentions_no_people(context):
    """Each row has its own identity, so no two rows are linked."""
    text = " ".join([threat_model(context)["attacker"], threat_model(context)["not_covered"], *limits(context.dataset)])
    assert "codes of people she has never seen" in text
    alone = {
        name: replace(part, identity=np.arange(len(part)))
        for name in ("train", "val", "test")
        for part in [getattr(context.dataset, name)]
    }
    context = replace(context, dataset=replace(context.dataset, **alone))
    text = " ".join([threat_model(context)["attacker"], threat_model(context)["not_covered"], *limits(context.dataset)])
    assert "codes of pictures she has never seen" in text
    assert re.search("person|people", text) is None


def test_trained_against_lists_architectures(tiny):
    assert set(trained_against(tiny("mlp", "decoder", "ridge"))) == {"mlp", "conv"}


def test_fit_on_ray_matches_fit_in_process(fitted_attacks, context, ray_session):
    """Every attack in one of its variants, the label floor, and a smaller share of the pictures."""
    first = {(m.spec.name, m.spec.variant == FLOOR, m.spec.share): m for m in reversed(fitted_attacks)}
    chosen = [m for key, m in first.items() if m.spec.counts or key in {("ridge", True, 1.0), ("ridge", False, 0.5)}]
    assert {m.spec.name for m in chosen} == {*SMALL.names} - {"stack"}
    todo, said = [m.spec for m in chosen], []
    on_ray = fit_on_ray(todo, context, runtime=RuntimeConfig(threads=1), done=said.append)
    assert [m.spec for m in on_ray] == todo
    assert sorted(str(m.spec) for m in said) == sorted(str(e) for e in todo)
    stacks, stacks_on_ray = (fit_stacks(attacks, context, done=lambda _: None) for attacks in (chosen, on_ray))
    z = torch.from_numpy(context.codes["test"])
    for local, remote in zip([*chosen, *stacks], [*on_ray, *stacks_on_ray], strict=True):
        assert local.fitted.tune_r2 == remote.fitted.tune_r2, local.spec
        assert local.fitted.settings == remote.fitted.settings
        if local.spec.variant != "labels":
            assert torch.equal(local.fitted.reconstruct(z), remote.fitted.reconstruct(z)), local.spec


def test_fit_on_ray_exceeding_cluster_raises_with_numbers(context, ray_session):
    big = EvaluationContext(context.dataset, context.codes, replace(SMALL, cpus=64.0), seed=0)
    with pytest.raises(InputError, match=r"an attack needs 64 CPUs, the cluster has 2: lower --attacks.cpus"):
        fit_on_ray([AttackSpec("ridge", "leaked")], big, runtime=RuntimeConfig(), done=lambda _: None)


def test_fit_on_ray_error_of_attack_reaches_caller(context, ray_session):
    with pytest.raises(InputError, match="would be fitted on 1 pictures"):
        fit_on_ray([AttackSpec("ridge", "leaked", 1e-4)], context, runtime=RuntimeConfig(), done=lambda _: None)


def test_fit_in_process_fits_single_spec(context):
    fitted_attacks = fit_attack(AttackSpec("ridge", "fresh"), context)
    assert fitted_attacks.rows == len(context.data("fresh").fit)
    assert fitted_attacks.seconds > 0


def test_attack_specs_too_few_pictures_raise(context):
    few = replace(context.dataset, val=context.dataset.val)
    short = replace(few.val, identity=few.val.identity[:3], labels=few.val.labels[:3])
    with pytest.raises(InputError, match=r"need 4 pictures to fit on and 4 to tune on: train has \d+, val has 3"):
        attack_specs(SMALL, replace(few, val=short))


def test_attack_specs_omit_fresh_variant_with_too_few_people(context):
    val = context.dataset.val
    short = replace(val, identity=np.zeros(6, np.int64), labels=val.labels[:6])
    todo = attack_specs(SMALL, replace(context.dataset, val=short))
    assert {e.variant for e in todo} == {"leaked", "labels"}
