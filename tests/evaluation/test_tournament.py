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
from cpgan_ray.evaluation.fitting import Entry, Made, Material, entries, in_process, make, trained_against
from cpgan_ray.evaluation.report.report import references
from cpgan_ray.evaluation.report.threat_model import limits, threat_model
from cpgan_ray.evaluation.tournament import Verdict, as_json, judge, linear_code_r2, metrics
from tests.data.datasets.test_har import lay_out

torch.set_num_threads(1)

SMALL = AttackConfig(
    names=("ridge", "kernel", "nearest"), shares=(0.5,), restarts=1, epochs=1, doublings=0, mlp_widths=(16,), kernel_features=32
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
def material(tiny_config: Config) -> Material:
    dataset = load(tiny_config, progress=False)
    encoder = plain_encoder(dataset, half_size)
    return Material(dataset, encode_all(encoder, dataset), SMALL, seed=0, task=("Male",))


@pytest.fixture(scope="module")
def made(material: Material) -> list[Made]:
    return in_process(entries(SMALL, material.dataset), material, done=lambda _: None)


@pytest.fixture(scope="module")
def verdict(made: list[Made], material: Material) -> Verdict:
    return judge(made, material)


def test_every_attack_is_made_in_both_variants_on_smaller_shares_and_on_the_true_labels(material):
    todo = entries(SMALL, material.dataset)
    whole = {(e.name, e.variant) for e in todo if e.counts}
    assert whole == {(name, variant) for name in SMALL.names for variant in ("leaked", "fresh")}
    assert {(e.name, e.share) for e in todo if e.share < 1} == {(name, 0.5) for name in SMALL.names}
    assert {e.name for e in todo if e.variant == "labels"} == {"ridge", "kernel", "mlp"}
    assert len(set(todo)) == len(todo)


def test_the_slowest_attacks_are_begun_first(material):
    names = [e.name for e in entries(AttackConfig(), material.dataset) if e.variant == "leaked" and e.share == 1]
    assert names[:3] == ["resnet_decoder", "decoder", "mlp"]


def test_of_signals_the_decoders_are_made_along_time(tmp_path):
    lay_out(tmp_path)
    data = DataConfig(dataset="har")
    dataset = load(Config(data=data, data_dir=tmp_path, cache_dir=tmp_path / "cache"), progress=False)
    first = plain_encoder(dataset, lambda x: x[:, :, :3, 0].reshape(len(x), -1))
    small = replace(SMALL, decoder_width=2)
    material = Material(dataset, encode_all(first, dataset), small, seed=0, trained_against=("paper",))
    assert {"decoder", "resnet_decoder"} < {e.name for e in entries(AttackConfig(), dataset) if e.counts}
    for name, architecture in (("decoder", "upsample"), ("resnet_decoder", "resnet")):
        fitted = make(Entry(name, "leaked"), material).fitted
        assert fitted.settings["architecture"] == architecture
        assert fitted.reconstruct(torch.from_numpy(material.codes["test"])).shape == (len(dataset.test), 128 * 9)


def test_of_vectors_no_decoder_is_made(tmp_path):
    dataset = load(Config(data=DataConfig(dataset="gaussian"), cache_dir=tmp_path), progress=False)
    assert {e.name for e in entries(AttackConfig(), dataset) if e.counts} == {"ridge", "kernel", "mlp", "nearest"}
    with pytest.raises(InputError, match=r"^attacks\.names has decoder, for pictures of 8 pixels .* these are 32x1x1: add mlp$"):
        entries(AttackConfig(names=("decoder",)), dataset)


def test_the_strongest_is_the_best_of_both_variants_and_never_the_label_floor_or_a_smaller_share(verdict):
    scores = [a.score.r2 for a in verdict.attacked]
    assert scores == sorted(scores, reverse=True)
    assert verdict.strongest.score.r2 == max(scores)
    assert all(a.entry.counts for a in verdict.attacked)
    assert verdict.floor.entry.variant == "labels"


def test_a_code_that_is_the_picture_made_smaller_is_broken_and_is_told_from_the_label_floor(verdict):
    assert verdict.strongest.score.r2 > 0.5
    assert verdict.floor.score.r2 < 0.4
    assert as_json(verdict)["privacy"]["excess_r2"] == pytest.approx(verdict.strongest.score.r2 - verdict.floor.score.r2)


def test_the_best_linear_code_of_k_numbers_is_the_share_of_the_leading_components(material):
    data = material.data("leaked")
    x = data.score.pixels[slice(None)].numpy().astype(np.float64)
    v = data.components.numpy()[:5].astype(np.float64)
    expected = 1 - np.square(x - x @ v.T @ v).sum() / np.square(x).sum()
    assert linear_code_r2(data, 5) == pytest.approx(expected, abs=1e-3)


def test_the_metrics_of_a_verdict_are_all_in_the_dictionary(verdict):
    found = metrics(verdict)
    assert {f"attack/{name}/r2" for name in SMALL.names} <= found.keys()
    assert found["attack/ridge/r2"] == max(a.score.r2 for a in verdict.attacked if a.entry.name == "ridge")
    unknown = [n for n in found if n not in DICTIONARY and "attack/<name>/" + n.rpartition("/")[2] not in DICTIONARY]
    assert unknown == []


def test_the_report_has_every_documented_key_and_is_plain_json(verdict):
    report = json.loads(json.dumps(as_json(verdict)))
    assert report["privacy"]["strongest"].keys() == {"attack", "variant", "r2", "low", "high"}
    wanted = {"name", "variant", "r2", "low", "high", "mse_255", "psnr", "ssim", "saturated", "seconds"}
    for row in report["attacks"]:
        assert row.keys() >= wanted
        assert row["low"] <= row["r2"] <= row["high"]
    assert report["sweep"]
    assert {a["name"] for a in report["attributes"]} >= {"Male"}
    assert [a["name"] for a in report["attributes"] if a["task"]] == ["Male"]


def test_a_code_of_the_whole_picture_links_people_better_than_chance(verdict):
    assert verdict.linkage.keys() >= {"picture and picture", "code and code", "reconstruction and picture"}
    assert verdict.linkage["picture and picture"].low > 0.5


def test_the_label_floor_is_made_from_the_labels_of_the_task_alone(material):
    column = material.dataset.label_names.index("Male")
    assert material.data("labels").score.z.numpy() == pytest.approx(material.dataset.test.labels[:, [column]])
    every = replace(material, task=()).data("labels")
    assert every.fit.z.shape[1] == len(material.dataset.label_names)


def test_references_go_from_nothing_to_everything(verdict):
    rows = references(verdict, None)
    assert [row["r2"] for row in rows][0] == 0
    assert [row["r2"] for row in rows][-1] == 1
    strongest = verdict.strongest.score
    assert rows[0]["mse_255"] * (1 - strongest.r2) == pytest.approx(strongest.mse_255)


def test_the_sets_of_the_threat_model_add_up(material):
    sets = {row["name"]: row for row in threat_model(material)["sets"]}
    assert sets["val, one part"]["pictures"] + sets["val, the rest"]["pictures"] == len(material.dataset.val)
    assert sets["train"]["people"] == len(np.unique(material.dataset.train.identity))


def test_of_data_without_people_the_threat_model_speaks_of_none(material):
    """Each row an identity of its own: nothing links two of them."""
    told = " ".join([threat_model(material)["attacker"], threat_model(material)["not_covered"], *limits(material.dataset)])
    assert "codes of people she has never seen" in told
    alone = {
        name: replace(part, identity=np.arange(len(part)))
        for name in ("train", "val", "test")
        for part in [getattr(material.dataset, name)]
    }
    material = replace(material, dataset=replace(material.dataset, **alone))
    told = " ".join([threat_model(material)["attacker"], threat_model(material)["not_covered"], *limits(material.dataset)])
    assert "codes of pictures she has never seen" in told
    assert re.search("person|people", told) is None


def test_architectures_that_were_trained_against_are_named(tiny):
    assert set(trained_against(tiny("mlp", "decoder", "ridge"))) == {"mlp", "conv"}


def test_on_ray_the_attacks_find_what_they_find_in_this_process(made, material, ray_session):
    todo = [m.entry for m in made]
    said = []
    on_ray = fit_on_ray(todo, material, runtime=RuntimeConfig(threads=1), done=said.append)
    assert [m.entry for m in on_ray] == todo
    assert sorted(str(m.entry) for m in said) == sorted(str(e) for e in todo)
    for one, other in zip(made, on_ray, strict=True):
        assert one.fitted.tune_r2 == other.fitted.tune_r2, one.entry
        assert one.fitted.settings == other.fitted.settings


def test_an_attack_that_asks_for_more_than_the_cluster_has_is_refused_with_the_numbers(material, ray_session):
    big = Material(material.dataset, material.codes, replace(SMALL, cpus=64.0), seed=0)
    with pytest.raises(InputError, match=r"an attack needs 64 CPUs, the cluster has 2: lower --attacks.cpus"):
        fit_on_ray([Entry("ridge", "leaked")], big, runtime=RuntimeConfig(), done=lambda _: None)


def test_what_an_attack_raises_reaches_the_caller_as_it_is(material, ray_session):
    with pytest.raises(InputError, match="would be fitted on 1 pictures"):
        fit_on_ray([Entry("ridge", "leaked", 1e-4)], material, runtime=RuntimeConfig(), done=lambda _: None)


def test_one_entry_is_made_alone(material):
    made = make(Entry("ridge", "fresh"), material)
    assert made.rows == len(material.data("fresh").fit)
    assert made.seconds > 0


def test_too_few_pictures_for_any_attack_are_an_error_before_anything_is_made(material):
    few = replace(material.dataset, val=material.dataset.val)
    short = replace(few.val, identity=few.val.identity[:3], labels=few.val.labels[:3])
    with pytest.raises(InputError, match=r"need 4 pictures to be fitted on and 4 to be tuned on: train has \d+, val 3"):
        entries(SMALL, replace(few, val=short))


def test_the_fresh_variant_is_left_out_where_its_attacker_has_too_few_people(material):
    val = material.dataset.val
    short = replace(val, identity=np.zeros(6, np.int64), labels=val.labels[:6])
    todo = entries(SMALL, replace(material.dataset, val=short))
    assert {e.variant for e in todo} == {"leaked", "labels"}
