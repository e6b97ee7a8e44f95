"""Tests of searches: proposals, output, and that finished trials are kept when a search ends early."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import optuna
import psutil
import pytest
import ray
import torch
from mlflow.entities import Run
from PIL import Image
from ray import tune
from ray.tune.search import Searcher

from cpgan_ray.analysis.fronts import Trial
from cpgan_ray.cli import SEARCH
from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config, SearchJob, override
from cpgan_ray.config.folders.runs import read_run
from cpgan_ray.config.presets import preset
from cpgan_ray.config.search_space import dimensions
from cpgan_ray.data import load, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.train import RunContext, train
from cpgan_ray.pipelines.tune.job import concurrency, guess_utility, search, trial_sizes
from cpgan_ray.pipelines.tune.networks import build, ensure_buildable
from cpgan_ray.pipelines.tune.progress import front_measures
from cpgan_ray.pipelines.tune.proposals import Proposals, TimeBudget, optuna_sampler, proposals
from cpgan_ray.pipelines.tune.trial import trial_config, trial_name
from cpgan_ray.tracking import read_trials
from cpgan_ray.training.game import play_in_process
from tests.process import GONE_S, HANG_S, below, environment, kill_alone

ROOT = Path(__file__).parents[2]
JOB = [sys.executable, str(ROOT / "jobs" / "tune_celeba.py")]


# ------------------------------------------------------------------------------------------------------------- proposals


def job_over(*over: str, config: Config | None = None, **fields: Any) -> SearchJob:
    return SearchJob(search_space=over, config=config or Config(), **fields)


def all_specs(proposed: Proposals) -> list[dict[str, Any]]:
    """All specs, if no result is ever reported."""
    specs = []
    while (spec := proposed.suggest(f"trial {len(specs)}")) != Searcher.FINISHED:
        specs.append(spec)
    return specs


def proposals_of(job: SearchJob) -> tuple[Proposals, int]:
    return proposals(job, dimensions(job.search_space, job.config, grid=job.searcher == "grid"))


@pytest.mark.parametrize("searcher", ["grid", "random", "tpe", "nsga2"])
def test_proposals_cover_all_settings_and_seeds_control_first(searcher):
    job = job_over("k=8,16", "privacy_weight=1,2", searcher=searcher, num_samples=4, num_seeds=3, config=Config(seed=5))
    proposed, total = proposals_of(job)
    specs = all_specs(proposed)
    assert len(specs) == total == 15
    assert [s["control"] for s in specs] == [True] * 3 + [False] * 12
    assert all(s["setting"] == {"privacy_weight": 0.0} for s in specs[:3])
    for start in range(0, 15, 3):
        group = specs[start : start + 3]
        assert [s["seed"] % 3 for s in group] == [2, 0, 1]
        assert len({json.dumps(s["setting"]) for s in group}) == 1
    assert len({json.dumps([s["setting"], s["seed"]]) for s in specs}) == 15, "no training is proposed twice"
    settings = [s["setting"] for s in specs[3::3]]
    assert all(s["k"] in (8, 16) and s["privacy_weight"] in (1, 2) for s in settings)
    if searcher == "grid":
        assert settings == [{"k": k, "privacy_weight": w} for k in (8, 16) for w in (1, 2)]


def test_proposals_repeated_setting_gets_new_seeds():
    job = job_over("k=8,8,16", searcher="grid", num_seeds=2, train_undefended=False)
    specs = [(s["setting"]["k"], s["seed"]) for s in all_specs(proposals_of(job)[0])]
    assert specs == [(8, 0), (8, 1), (8, 2), (8, 3), (16, 0), (16, 1)]


def test_proposals_random_depend_only_on_seed():
    def settings(seed: int) -> list[dict[str, Any]]:
        return all_specs(
            proposals_of(job_over("k", "privacy_weight", searcher="random", num_samples=5, config=Config(seed=seed)))[0]
        )

    assert settings(0) == settings(0)
    assert [s["setting"] for s in settings(0)] != [s["setting"] for s in settings(1)]


def test_proposals_report_mean_over_seeds_to_optuna():
    job = job_over("k", "privacy_weight", num_samples=3, num_seeds=2, train_undefended=False)
    proposed, _ = proposals_of(job)
    assert proposed.sampler is not None
    for i in range(6):
        assert proposed.suggest(f"trial {i}") != Searcher.FINISHED
    proposed.on_trial_complete("trial 0", {"val_accuracy": 0.8, "val_r2": 0.2})
    study: optuna.Study = proposed.sampler._ot_study
    assert [t.state.name for t in study.trials] == ["RUNNING"] * 3
    proposed.on_trial_complete("trial 1", {"val_accuracy": 0.9, "val_r2": 0.4})
    proposed.on_trial_complete("trial 2", {"epoch": 1, "score": 0.1})
    proposed.on_trial_complete("trial 3", {"epoch": 1, "score": 0.1})
    proposed.on_trial_complete("trial 4", None, error=True)
    proposed.on_trial_complete("trial 5", None, error=True)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert study.trials[0].values == pytest.approx([0.85, 0.3])
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_proposals_with_bits_report_three_objectives_to_optuna():
    job = job_over("k", num_samples=1, objectives=("accuracy", "r2", "bits"), train_undefended=False)
    proposed, _ = proposals_of(job)
    proposed.suggest("trial 0")
    proposed.on_trial_complete("trial 0", {"val_accuracy": 0.9, "val_r2": 0.4, "val_bits": 32.0})
    assert proposed.sampler is not None
    study: optuna.Study = proposed.sampler._ot_study
    assert study.trials[0].values == pytest.approx([0.9, 0.4, 32.0])
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]


def test_proposals_end_with_the_time_budget(monkeypatch):
    proposed, _ = proposals_of(job_over("k", num_samples=3, searcher="random"))
    budget = TimeBudget()
    monkeypatch.setattr("cpgan_ray.pipelines.tune.proposals.TIME_BUDGET", budget)
    budget.start(1000.0)
    assert proposed.suggest("trial 0") != Searcher.FINISHED
    budget.start(0.0)
    assert proposed.suggest("trial 1") == Searcher.FINISHED
    budget.start(None)
    assert proposed.suggest("trial 1") != Searcher.FINISHED


@pytest.mark.parametrize(("text", "seconds"), [("2h", 7200.0), ("90m", 5400.0), ("3600s", 3600.0), ("1.5h", 5400.0), (None, None)])
def test_time_budget_of_a_text_is_in_seconds(text, seconds):
    assert job_over("k", time_budget=text).time_budget_s == seconds


@pytest.mark.parametrize("text", ["2", "h", "-1h", "2 h", "1d", "0s", "1e3s", "nan"])
def test_time_budget_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=r"time_budget is .*2h"):
        job_over("k", time_budget=text)


@pytest.mark.parametrize(
    "objectives",
    [(), ("r2",), ("accuracy",), ("accuracy", "bits"), ("accuracy", "balanced_accuracy", "r2"), ("bits", "accuracy", "r2")],
)
def test_objectives_without_a_utility_and_r2_are_refused(objectives):
    with pytest.raises(InputError, match="--objectives accuracy r2 bits"):
        job_over("k", objectives=objectives)


def test_proposals_of_balanced_accuracy_use_it():
    proposed, _ = proposals_of(job_over("k", num_samples=1, objectives=("balanced_accuracy", "r2"), train_undefended=False))
    proposed.suggest("trial 0")
    proposed.on_trial_complete("trial 0", {"val_accuracy": 0.9, "val_balanced_accuracy": 0.6, "val_r2": 0.4})
    assert proposed.sampler is not None
    assert proposed.sampler._ot_study.trials[0].values == pytest.approx([0.6, 0.4])


def test_guess_utility_is_that_of_the_objective(tiny):
    config = tiny("ridge")
    dataset = load(config)
    task = task_of(dataset, config.data.labels)
    y, majority = task.answers(dataset.val), task.answers(dataset.train).mean(axis=0) > 0.5
    assert guess_utility(dataset, job_over("k", config=config)) == pytest.approx((y == majority).mean())
    assert guess_utility(dataset, job_over("k", config=config, objectives=("balanced_accuracy", "r2"))) == 0.5


def test_front_measures_have_r2_only_with_a_control():
    def trial(**values: Any) -> Trial:
        numbers = {"state": "finished", "seed": 0, "majority_accuracy": 0.5} | values
        return Trial(name="", setting={"k": values["strongest_r2"]}, **numbers)

    trials = [trial(accuracy=0.8, strongest_r2=0.4), trial(accuracy=0.7, strongest_r2=0.1)]
    volume = 0.2 * 0.95 + 0.1 * 0.75
    assert front_measures(trials, "accuracy") == {"search/hypervolume": pytest.approx(volume)}
    assert front_measures([], "accuracy") == {"search/hypervolume": 0.0}
    control = trial(accuracy=0.9, strongest_r2=0.6, control=True)
    measures = front_measures([*trials, control], "accuracy")
    assert measures == {
        "search/hypervolume": pytest.approx(volume),
        "search/r2_at_25": pytest.approx(0.05),
        "search/r2_at_50": pytest.approx(0.1),
        "search/r2_at_75": pytest.approx(0.4),
    }, "90 % of the way is not reached"
    assert measures.keys() <= DICTIONARY.keys()


def test_proposals_one_successful_seed_counts_for_setting():
    proposed, _ = proposals_of(job_over("k", num_samples=1, num_seeds=2, train_undefended=False))
    for i in range(2):
        proposed.suggest(f"trial {i}")
    proposed.on_trial_complete("trial 0", None, error=True)
    proposed.on_trial_complete("trial 1", {"val_accuracy": 0.9, "val_r2": 0.4})
    assert proposed.sampler is not None
    assert proposed.sampler._ot_study.trials[0].values == [0.9, 0.4]


@pytest.mark.parametrize("searcher", ["grid", "tpe"])
def test_proposals_restored_continue_where_saved(searcher, tmp_path):
    job = job_over("k=8,16,32", searcher=searcher, num_samples=3, num_seeds=2)
    proposed, _ = proposals_of(job)
    first = [proposed.suggest(f"trial {i}") for i in range(3)]
    proposed.save(str(tmp_path / "state"))
    rest = [proposed.suggest(f"trial {i}") for i in range(3, 9)]
    again, _ = proposals_of(job)
    again.restore(str(tmp_path / "state"))
    assert [again.suggest(f"trial {i}") for i in range(3, 9)] == rest
    assert first[0] != rest[0]


def test_tpe_approaches_better_settings():
    job = job_over("privacy_weight", num_samples=40, train_undefended=False)
    space = dimensions(job.search_space, job.config, grid=False)
    sampler = optuna_sampler(job, space)
    weights = []
    for i in range(40):
        weight = sampler.suggest(f"{i}")["privacy_weight"]  # pyright: ignore[reportOptionalSubscript]
        weights.append(weight)
        off = abs(np.log10(weight) - 0.5)  # both objectives are best at the same weight
        sampler.on_trial_complete(f"{i}", {"val_accuracy": 0.9 - off, "val_r2": 0.1 + off})
    assert np.median(np.abs(np.log10(weights[25:]) - 0.5)) < np.median(np.abs(np.log10(weights[:10]) - 0.5)) / 2


# -------------------------------------------------------------------------------------------------------------- resources


def test_trial_sizes_share_cores_of_cluster(tiny):
    job = job_over("k", config=tiny("ridge", "rbf"))
    players = override(job.config, {"runtime.backend": "ray"})
    job = job_over("k", config=players)
    few = trial_sizes(job, {"CPU": 2.0}, total=9)
    assert [sum(s["CPU"] for s in few[kind]) for kind in ("defended", "control")] == pytest.approx([1, 1])
    assert [len(few[kind]) for kind in ("defended", "control")] == [3, 1]
    assert concurrency(job, few["defended"], {"CPU": 2.0}) == 2
    alone = trial_sizes(job, {"CPU": 2.0}, total=1)
    assert sum(s["CPU"] for s in alone["defended"]) == pytest.approx(2)
    assert concurrency(job, alone["defended"], {"CPU": 2.0}) == 1
    many = trial_sizes(job, {"CPU": 16.0}, total=9)
    assert many["defended"] == [{"CPU": 1.0}] * 3
    assert concurrency(job, many["defended"], {"CPU": 16.0}) == 5
    assert concurrency(job_over("k", config=players, max_concurrent=3), many["defended"], {"CPU": 16.0}) == 3


def test_concurrency_is_limited_by_gpus(tiny):
    config = override(
        tiny("ridge", "rbf"), {"runtime.backend": "ray", "runtime.privatizer_gpus": 0.5, "runtime.adversary_gpus": 0.25}
    )
    job, cluster = job_over("k", config=config), {"CPU": 64.0, "GPU": 4.0}
    sizes = trial_sizes(job, cluster, total=9)
    assert sizes["defended"] == [{"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 0.25}, {"CPU": 1.0, "GPU": 0.25}]
    assert concurrency(job, sizes["defended"], cluster) == 4


def test_trial_sizes_too_large_for_cluster_raises_with_numbers(tiny):
    config = override(tiny("ridge", "rbf"), {"runtime.backend": "ray", "runtime.adversary_cpus": 4.0})
    with pytest.raises(InputError, match=r"3 actors need 8\.\d* CPUs, the cluster has 2|3 actors need 9 CPUs"):
        trial_sizes(job_over("k", config=config), {"CPU": 2.0}, total=9)


def test_trial_config_attacks_are_tasks_only_if_they_fit(tiny, tmp_path):
    job = job_over("k", config=tiny("ridge"))
    spec = {"setting": {"k": 5}, "seed": 3, "control": False}
    small = trial_config(job, spec, tmp_path, [{"CPU": 0.5}, {"CPU": 0.5}])
    large = trial_config(job, spec, tmp_path, [{"CPU": 2.0}, {"CPU": 1.0}])
    alone = trial_config(job, spec, tmp_path, [{"CPU": 0.75}, {"CPU": 0.75}])
    assert (small.runtime.backend, large.runtime.backend, alone.runtime.backend) == ("local", "ray", "ray")
    assert (large.attacks.cpus, alone.attacks.cpus) == (1.0, 0.75)
    assert (small.runtime.threads, small.k, small.seed, small.output) == (1, 5, 3, tmp_path)
    assert trial_name(spec) == "k=5 seed=3"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            ("privatizer.family=conv,celeba_multi", "k=8..256"),
            "over privatizer.family=celeba_multi k=9: k is 9; each of the two sub-nets",
        ),
        (("privatizer.bottleneck",), "over privatizer.bottleneck=False: k is .*, but without a bottleneck the code is the"),
        (("privatizer.depth", "k"), "over privatizer.depth=5 k=8: privatizer.depth is 5, which needs pictures of 32 pixels"),
        (("utility.family=mlp,wide",), "over utility.family=wide: k is .*; the wide network reads a code that is itself a picture"),
        (
            ("privatizer.family=whitened",),
            "'whitened' needs at least as many training samples as a sample has values, 768; there are",
        ),
    ],
)
def test_ensure_buildable_unsuitable_networks_raise(over, message, tiny):
    config = tiny("rbf", "decoder")
    job = job_over(*over, config=config)
    with pytest.raises(InputError, match=message):
        ensure_buildable(job, dimensions(job.search_space, config, grid=False), load(config))


def test_ensure_buildable_unsuitable_adversary_raises_except_control():
    series: Any = SimpleNamespace(image_shape=(128, 1, 9), train=range(100))
    config = override(preset("har"), {"k": 6})
    with pytest.raises(InputError, match="k is 6 and the input 128x1x9; the series network folds"):
        build(config, series, outputs=6)
    build(override(config, {"privacy_weight": 0.0}), series, outputs=6)
    with pytest.raises(InputError, match="privatizer.family 'celeba_multi' does not accept samples of 128x1x9: choose another one"):
        build(override(config, {"privacy_weight": 0.0, "privatizer.family": "celeba_multi"}), series, outputs=6)


def test_ensure_buildable_accepts_default_ranges(tiny):
    config = tiny("rbf", "decoder")
    job = job_over("privatizer.family", "utility.family", "adversaries.decoder.architecture", "k=5,8", config=config)
    ensure_buildable(job, dimensions(job.search_space, config, grid=False), load(config))


def test_ensure_buildable_unbuildable_control_raises_if_trained(tiny):
    config = tiny("rbf", changes={"privatizer.family": "celeba_multi", "k": 5})
    space = dimensions(("k=4,6",), config, grid=False)
    ensure_buildable(job_over("k=4,6", config=config, train_undefended=False), space, load(config))
    with pytest.raises(InputError, match="^k is 5; each of the two sub-nets"):
        ensure_buildable(job_over("k=4,6", config=config), space, load(config))


# --------------------------------------------------------------------------------------------------------- a whole search


@dataclass(frozen=True)
class Searched:
    folder: Path
    uri: str
    job: SearchJob
    summary: dict[str, Any]
    text: str

    @property
    def frontier(self) -> dict[str, Any]:
        return json.loads((self.folder / "frontier.json").read_text())

    @property
    def children(self) -> list[Run]:
        return runs_below(self.uri, self.summary["run_id"])


def runs_below(uri: str, parent: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    return client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")


@pytest.fixture(scope="module")
def learnable(tiny_config: Config) -> Config:
    """A task that two channels learn, and one adversary."""
    changes = {"data.labels": ["Male"], "privacy_weight": 0.01, "privatizer.width": 16, "utility.learning_rate": 5e-3}
    config = override(tiny_config, changes | {"epochs": 8})
    return Config(**{**vars(config), "adversaries": {"rbf": config.adversaries["rbf"]}})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, learnable: Config, mlflow_template: Path, ray_session: None) -> Searched:
    """A grid with a setting that fails, two seeds, every trial a game in one process."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    config = override(learnable, {"runtime.backend": "local", "tracking.uri": uri, "output": str(folder / "out")})
    over = ("privatizer.learning_rate=5e-3,1e30", "k=4")
    job = SearchJob(search_space=over, searcher="grid", num_seeds=2, max_r2=0.9, config=config)
    result = search(job)
    return Searched(folder / "out", uri, job, result.summary, result.text)


def test_search_summary_counts_trial_states(searched):
    assert searched.summary["trials"] == {"finished": 4, "stopped": 0, "failed": 2}
    assert searched.summary["output"] == str(searched.folder)
    failed = [t for t in searched.frontier["trials"] if t["state"] == "failed"]
    assert [t["privatizer.learning_rate"] for t in failed] == [1e30, 1e30]
    for trial in failed:
        assert "FloatingPointError: the privatizer's codes are not finite in round" in trial["cause"]
        assert trial["accuracy"] is None
    assert "failed: privatizer.learning_rate=1e+30 k=4 seed=0: FloatingPointError" in searched.text


def test_search_retries_failed_trials(searched):
    attempts = [run for run in searched.children if run.info.status == "FAILED"]
    names = sorted(run.data.tags["search.trial"] for run in attempts)
    assert names == [f"privatizer.learning_rate=1e+30 k=4 seed={seed}" for seed in (0, 0, 1, 1)]


def test_search_front_has_mean_over_seeds_with_interval(searched):
    finished = [t for t in searched.frontier["trials"] if t["state"] == "finished"]
    assert len(finished) == 2
    (point,) = searched.frontier["front"]
    assert point["seeds"] == [0, 1]
    assert point["accuracy"] == pytest.approx(np.mean([t["accuracy"] for t in finished]))
    assert point["strongest_r2"] == pytest.approx(np.mean([t["strongest_r2"] for t in finished]))
    assert point["accuracy_low"] < point["accuracy"] < point["accuracy_high"]
    assert all(t["on_front"] for t in finished)


def test_search_control_is_separate_and_has_no_adversaries(searched):
    controls = searched.frontier["control"]
    assert [c["state"] for c in controls] == ["finished", "finished"]
    rows = (Path(controls[0]["output"]) / "metrics.jsonl").read_text().splitlines()
    assert not any("adversary/" in line for line in rows)
    assert not {c["name"] for c in controls} & {t["name"] for t in searched.frontier["trials"]}


def test_search_trial_folders_match_front(searched):
    for trial in searched.frontier["trials"] + searched.frontier["control"]:
        if trial["state"] == "finished":
            report = json.loads((Path(trial["output"]) / "report" / "report.json").read_text())
            assert trial["accuracy"] == report["utility"]["accuracy"]
            assert trial["strongest_r2"] == report["privacy"]["strongest"]["r2"]
            assert trial["val_r2"] == report["privacy"]["val_r2"] == max(a["tune_r2"] for a in report["attacks"])
            assert trial["val_accuracy"] == report["utility"]["val_accuracy"]
            assert (Path(trial["output"]) / "privatizer.pt2").is_file()


def test_search_logs_one_child_run_per_trial(searched):
    client = mlflow.MlflowClient(searched.uri)
    parent = client.get_run(searched.summary["run_id"])
    assert parent.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {"frontier.json", "frontier.csv", "frontier.png"}
    steps = client.get_metric_history(parent.info.run_id, "search/hypervolume")
    assert [m.step for m in steps] == list(range(1, 7))
    assert steps[-1].value == pytest.approx(searched.frontier["hypervolume"])
    assert set(parent.data.metrics) <= set(DICTIONARY)
    finished = [run for run in searched.children if run.info.status == "FINISHED"]
    assert len(finished) == 4
    for run in finished:
        control = run.data.tags["search.control"] == "true"
        assert run.data.params["k"] == ("6" if control else "4")
        assert ("privatizer.learning_rate" in run.data.params) != control
        assert len(run.data.params) < 16
        assert {
            "utility/accuracy",
            "privacy/strongest_r2",
            "privacy/val_r2",
            "utility/val_accuracy_best",
        } <= run.data.metrics.keys()
        assert run.data.tags["search.state"] == "finished"
        assert run.data.tags["search.front"] == ("false" if control else "true")
        assert not any(tag == "mlflow.parentRunId" and value == run.info.run_id for tag, value in run.data.tags.items())
    assert {run.info.status for run in searched.children} == {"FINISHED", "FAILED"}


def test_search_recommendation_has_exact_command(searched):
    best = searched.summary["recommended"]
    assert best == searched.frontier["recommended"]
    assert best["command"].startswith("python jobs/train_celeba.py tiny ")
    assert {"--k 4", "--privatizer.learning-rate 0.005"} <= set(re.findall(r"--\S+ [^-]\S*", best["command"]))
    assert best["command"] in searched.text


def test_search_writes_figure_and_table(searched):
    with Image.open(searched.folder / "frontier.png") as picture:
        assert min(picture.size) > 400
    assert len((searched.folder / "frontier.csv").read_text().splitlines()) == 1 + 6


def test_search_used_output_folder_is_unchanged(searched):
    before = (searched.folder / SEARCH).read_bytes()
    with pytest.raises(InputError, match="already holds a search: continue it with --resume"):
        search(searched.job)
    assert (searched.folder / SEARCH).read_bytes() == before


@pytest.mark.usefixtures("ray_session")
def test_search_of_distributed_trials_matches_direct_training(learnable, mlflow_uri, tmp_path):
    """The adversary of a trial is an actor in the trial's placement group; the exported weights are those of one process."""
    changes = {"runtime.backend": "ray", "epochs": 2, "tracking.uri": mlflow_uri, "output": str(tmp_path / "out")}
    job = SearchJob(search_space=("k=4",), searcher="grid", train_undefended=False, config=override(learnable, changes))
    assert len(trial_sizes(job, {"CPU": 2.0}, total=1)["defended"]) == 2, "one bundle is the adversary's"
    assert search(job).summary["trials"] == {"finished": 1, "stopped": 0, "failed": 0}
    (folder,) = (tmp_path / "out" / "trials").iterdir()
    config = read_run(folder)[0]
    assert config.runtime.backend == "ray"
    game = play_in_process(config, threads=1)
    while game.round < game.total_rounds:
        game.play(10)
    program = torch.export.load(folder / "privatizer.pt2")
    handed = {name.removeprefix("privatizer."): value for name, value in program.state_dict.items()}
    released = game.privatizer.defender.released["privatizer"].state_dict()
    shared = handed.keys() & released.keys()
    assert len(shared) > 3
    assert all(torch.equal(handed[name], released[name]) for name in shared)


@pytest.mark.usefixtures("ray_session")
def test_search_stops_hopeless_trials_early(tiny_config, mlflow_uri, tmp_path):
    changes = {"runtime.backend": "local", "epochs": 4, "tracking.uri": mlflow_uri, "output": str(tmp_path / "out")}
    config = override(tiny_config, {**changes, "privatizer.lr_schedule": "constant", "privacy_weight": 0.01})
    config = Config(**{**vars(config), "adversaries": {"ridge": config.adversaries["ridge"]}})
    rates = "utility.learning_rate=5e-3,4e-3,3e-3,2e-3,1e-9"
    job = SearchJob(
        search_space=(rates,), searcher="grid", scheduler="asha", max_concurrent=1, train_undefended=False, config=config
    )
    result = search(job)
    assert result.summary["trials"] == {"finished": 4, "stopped": 1, "failed": 0}
    frontier = json.loads((tmp_path / "out" / "frontier.json").read_text())
    (stopped,) = [t for t in frontier["trials"] if t["state"] == "stopped"]
    assert stopped["utility.learning_rate"] == 1e-9
    runs = {run.data.tags["search.trial"]: run for run in runs_below(mlflow_uri, result.summary["run_id"])}
    run = runs[stopped["name"]]
    assert (run.data.tags["search.state"], run.data.tags["search.front"]) == ("stopped", "false")
    assert "privacy/quick_r2" in run.data.metrics
    assert "privacy/strongest_r2" not in run.data.metrics, "it must be stopped before its attacks"
    assert run.info.status in ("FINISHED", "KILLED"), "ended by the driver, or by its own process before"


@pytest.mark.usefixtures("process_left_as_it_was")
def test_on_quick_attack_is_called_after_logging(tiny_config, mlflow_uri, tmp_path):
    """The scheduler may end a trial's process right after the callback."""
    changes = {"runtime.backend": "local", "epochs": 2, "tracking.uri": mlflow_uri, "output": str(tmp_path / "out")}
    config = override(tiny_config, {**changes, "attacks.quick_every": 1, "privacy_weight": 0.0})
    client, pairs = mlflow.MlflowClient(mlflow_uri), []

    def compare(values: Metrics) -> None:
        (run,) = client.search_runs([client.get_experiment_by_name("cpgan").experiment_id])
        pairs.append((values["privacy/quick_r2"], run.data.metrics.get("privacy/quick_r2")))

    train(config, RunContext(on_quick_attack=compare))
    assert pairs and all(logged == pytest.approx(r2) for r2, logged in pairs)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_search_on_mlflow_server_logs_front_and_reports(tiny_config, mlflow_server, tmp_path):
    uri = mlflow_server.start()
    changes = {"runtime.backend": "local", "epochs": 1, "tracking.uri": uri, "output": str(tmp_path / "out")}
    config = override(tiny_config, changes)
    config = Config(**{**vars(config), "adversaries": {"ridge": config.adversaries["ridge"]}})
    result = search(SearchJob(search_space=("k=4,5",), searcher="grid", config=config))
    assert result.summary["trials"]["finished"] == 3
    client = mlflow.MlflowClient(uri)
    assert "frontier.json" in {a.path for a in client.list_artifacts(result.summary["run_id"])}
    children = runs_below(uri, result.summary["run_id"])
    assert [run.info.status for run in children] == ["FINISHED"] * 3
    for run in children:
        assert "report/report.json" in {a.path for a in client.list_artifacts(run.info.run_id, "report")}
    trials = {t.name: t for t in read_trials(uri, result.summary["run_id"])}
    for row in json.loads((tmp_path / "out" / "frontier.json").read_text())["trials"]:
        trial = trials[row["name"]]
        assert (trial.state, trial.control, trial.attack) == (row["state"], False, row["attack"])
        assert (trial.accuracy, trial.strongest_r2) == pytest.approx((row["accuracy"], row["strongest_r2"]))


# ------------------------------------------------------------------------------------------------------- ended early


FLAGS = "smoke --searcher grid --search-space k=4,5 --no-train-undefended --epochs 1 --attacks.names ridge --runtime.backend local"
FLAGS += " --data.image-size 16 --data.final-fraction 0 --batch-size 80 --privatizer.depth 2 --privatizer.width 4"


@pytest.fixture
def under_way(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path, cache_dir: Path, mlflow_template: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Start a search of two trials, one at a time, and wait until one has finished and the next one plays."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    trials = tmp_path / "out" / "trials"
    command = [*JOB, *FLAGS.split(), "--cache-dir", cache_dir, "--output", tmp_path / "out", "--max-concurrent", "1"]

    def between() -> bool:
        return any(trials.glob("k=4*/trial.json")) and any(trials.glob("k=5*/config.json"))

    return lambda: begin(command, between, "the search does not get on")


def statuses(folder: Path) -> dict[str, list[str]]:
    """For each trial the statuses of its runs; '' is the search itself."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    parent = json.loads((folder / "out" / SEARCH).read_text())["run_id"]
    by_trial: dict[str, list[str]] = {"": [mlflow.MlflowClient(uri).get_run(parent).info.status]}
    for run in runs_below(uri, parent):
        by_trial.setdefault(run.data.tags["search.trial"], []).append(run.info.status)
    return {name: sorted(values) for name, values in by_trial.items()}


def test_search_resume_after_kill_keeps_finished_trials(under_way, tmp_path):
    job = under_way()
    kill_alone(job)
    first = tmp_path / "out" / "trials" / "k=4_seed=0"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    process = subprocess.run(
        [*JOB, "--resume", str(tmp_path / "out")], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S
    )
    assert process.returncode == 0, process.stderr
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before, "a finished trial was run again"
    frontier = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert [t["name"] for t in sorted(frontier["trials"], key=lambda t: t["k"])] == [f"k={k} seed=0" for k in (4, 5)]
    assert {t["state"] for t in frontier["trials"]} == {"finished"}
    by_trial = statuses(tmp_path)
    assert by_trial.pop("") == ["FINISHED"]
    assert by_trial.pop("k=4 seed=0") == ["FINISHED"]
    second = by_trial.pop("k=5 seed=0")
    assert second in (["FINISHED", "KILLED"], ["FINISHED"]), "its first attempt must be marked as killed, unless it has finished"
    assert by_trial == {}


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_search_stopped_by_signal_keeps_finished_trials(under_way, tmp_path, sent, status):
    job = under_way()
    processes = below(job.pid)
    job.send_signal(sent)
    stdout, stderr = job.communicate(timeout=HANG_S)
    assert job.returncode == status, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    frontier = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert [(t["name"], t["state"]) for t in frontier["trials"] if t["state"] == "finished"] == [("k=4 seed=0", "finished")]
    by_trial = statuses(tmp_path)
    assert by_trial[""] == ["KILLED"]
    assert by_trial["k=4 seed=0"] == ["FINISHED"]
    assert by_trial["k=5 seed=0"] == ["KILLED"]
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    assert alive == []


@pytest.mark.usefixtures("process_left_as_it_was")
def test_search_stopped_keeps_run_status_killed(tiny_config, mlflow_uri, tmp_path, monkeypatch):
    """Instead of the trials there is one that ends as soon as its run is marked as killed."""
    client, late = mlflow.MlflowClient(mlflow_uri), []

    class Trial:
        def ready(self, run_id: str) -> None:
            self.client = mlflow.MlflowClient(mlflow_uri)
            assert self.client.get_run(run_id).info.status == "RUNNING"

        def end(self, run_id: str) -> None:
            while self.client.get_run(run_id).info.status == "RUNNING":
                pass
            self.client.set_terminated(run_id, "FINISHED")

    def fit(tuner: tune.Tuner) -> None:
        parent = json.loads((tmp_path / "out" / SEARCH).read_text())["run_id"]
        tags = {"mlflow.parentRunId": parent, "search.trial": "late"}
        late.append(client.create_run(client.get_run(parent).info.experiment_id, tags=tags).info.run_id)
        start: Any = ray.remote(num_cpus=0)(Trial)
        trial = start.remote()
        ray.get(trial.ready.remote(late[0]))
        trial.end.remote(late[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    changes = {"runtime.backend": "local", "tracking.uri": mlflow_uri, "output": str(tmp_path / "out")}
    config = override(tiny_config, changes)
    with pytest.raises(KeyboardInterrupt):
        search(SearchJob(search_space=("k=4",), searcher="grid", train_undefended=False, config=config))
    assert client.get_run(late[0]).info.status == "KILLED"


BAD = {
    "too many CPUs": ("smoke --runtime.adversary-cpus 64", r"7 actors need 38\d.*CPUs, the cluster has \d"),
    "no field": ("smoke --search-space kk", r"over kk: no field.*nearest: k"),
    "no store": ("smoke --tracking.uri http://127.0.0.1:9", r"http://127\.0\.0\.1:9.*--tracking\.uri"),
    "no folder": ("celeba", r"data_dir.*--data-dir"),
    "odd code": (
        "smoke --search-space privatizer.family=conv,celeba_multi k=16,17",
        r"over privatizer.family=celeba_multi k=17: k is 17",
    ),
    "no teacher": ("smoke --utility.teachers /nowhere", r"utility\.teachers: /nowhere has no config\.json"),
    "batch too large": ("smoke --batch-size 4000", r"batch_size is 4000"),
}


QUICK = ("no field",)
"""The others take a process each; a cluster that is too small is also a case of test_train.py."""


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in BAD])
def test_search_bad_input_exits_2_with_one_line_and_no_folder(case, tmp_path, cache_dir):
    flags, message = BAD[case]
    command = [*JOB, *flags.split(), "--output", str(tmp_path / "out")]
    command += [] if "celeba" in flags else ["--cache-dir", str(cache_dir)]
    process = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 2, process.stderr
    assert re.fullmatch(r"error: [^\n]+\n", process.stderr), process.stderr
    assert re.search(message, process.stderr), process.stderr
    assert process.stdout == ""
    assert not (tmp_path / "out").exists()
