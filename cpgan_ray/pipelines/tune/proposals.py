"""What a search tries: settings under every seed, by grid, chance or Optuna, and who stops a trial early."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.common.rng import stream, torch_seed
from cpgan_ray.config import SearchJob
from cpgan_ray.config.search_space import Dimension, Setting, combinations

OBJECTIVES = {"val_accuracy": "max", "val_r2": "min"}

KEPT = 3 / 4
"""Share of the trials that asha lets go on at each of its rungs: it stops the hopeless, it does not look for the best."""


class Proposals(Searcher):
    """Settings, each under every seed: first those that are given, then Optuna's, which hears the mean over the seeds.

    A setting that is proposed again gets seeds that it has not had: the same training again would tell nothing.
    """

    def __init__(
        self,
        given: Sequence[dict[str, Any]],
        *,
        seeds: Sequence[int],
        sampler: OptunaSearch | None,
        samples: int,
        found: Sequence[Dimension],
    ) -> None:
        """given: `setting` and `control` of each; samples: how many settings the sampler adds, along `found`."""
        super().__init__()
        self.seeds, self.sampler, self.samples, self.dimensions = list(seeds), sampler, samples, list(found)
        self.asked = 0
        self.times: dict[str, int] = {}
        self.queue = [spec for one in given for spec in self.repeated(one["setting"], control=one["control"], key=None)]
        self.keys: dict[str, str | None] = {}
        self.heard: dict[str, list[dict[str, float] | None]] = {}

    def repeated(self, setting: Setting, *, control: bool, key: str | None) -> list[dict[str, Any]]:
        """A setting under as many seeds as each has."""
        told = json.dumps(setting, sort_keys=True)
        times = self.times[told] = self.times.get(told, -1) + 1
        seeds = [seed + times * len(self.seeds) for seed in self.seeds]
        return [{"setting": setting, "control": control, "seed": seed, "key": key} for seed in seeds]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.queue and self.sampler is not None and self.asked < self.samples:
            key = f"setting {self.asked}"
            self.asked += 1
            values = self.sampler.suggest(key) or {}
            setting = {d.name: d.rounded(values[d.name]) for d in self.dimensions}
            self.queue = self.repeated(setting, control=False, key=key)
        if not self.queue:
            return Searcher.FINISHED
        spec = self.queue.pop(0)
        self.keys[trial_id] = spec.pop("key")
        return spec

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        key = self.keys.get(trial_id)
        if key is None or self.sampler is None:
            return
        known = result is not None and all(result.get(name) is not None for name in OBJECTIVES)
        heard = self.heard.setdefault(key, [])
        heard.append({name: float(result[name]) for name in OBJECTIVES} if known and result else None)
        if len(heard) < len(self.seeds):
            return
        told = [one for one in heard if one is not None]
        mean = {name: sum(one[name] for one in told) / len(told) for name in OBJECTIVES} if told else None
        self.sampler.on_trial_complete(key, result=mean, error=mean is None and error)

    def save(self, checkpoint_path: str) -> None:
        write_bytes(Path(checkpoint_path), pickle.dumps(vars(self)))

    def restore(self, checkpoint_path: str) -> None:
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))


def proposals(job: SearchJob, found: Sequence[Dimension]) -> tuple[Proposals, int]:
    """What a search tries, and how many trials that makes."""
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    given = [{"setting": {"privacy_weight": 0.0}, "control": True}] if job.train_undefended else []
    sampler = None
    if job.searcher == "grid":
        settings = combinations(found)
    elif job.searcher == "random":
        rng = stream(job.config.seed, "search")
        settings = [{d.name: d.sample(rng) for d in found} for _ in range(job.num_samples)]
    else:
        settings, sampler = [], optuna_sampler(job, found)
    given += [{"setting": setting, "control": False} for setting in settings]
    asked = Proposals(given, seeds=seeds, sampler=sampler, samples=job.num_samples if sampler else 0, found=found)
    return asked, (len(given) + asked.samples) * job.num_seeds


def optuna_sampler(job: SearchJob, found: Sequence[Dimension]) -> OptunaSearch:
    """Optuna's multi-objective TPE (Ozaki et al., JAIR 2022) or NSGA-II (Deb et al., 2002).

    A third of TPE's settings, and NSGA-II's first generation, are drawn by chance.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = torch_seed(job.config.seed, "search") % 2**32
    first = max(4, job.num_samples // 3)
    if job.searcher == "tpe":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(n_startup_trials=first, seed=seed)
    else:
        sampler = optuna.samplers.NSGAIISampler(population_size=first, seed=seed)
    space = {d.name: distribution(d) for d in found}
    return OptunaSearch(space, metric=list(OBJECTIVES), mode=list(OBJECTIVES.values()), sampler=sampler)


def distribution(d: Dimension) -> optuna.distributions.BaseDistribution:
    if d.values:
        return optuna.distributions.CategoricalDistribution(d.values)
    if d.integer:
        return optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log)
    return optuna.distributions.FloatDistribution(d.low, d.high, log=d.log)


class PatientASHA(ASHAScheduler):
    """ASHA (Li et al., MLSys 2020) that stops nobody before it has heard enough trials of the same age.

    Tune's compares the second trial with the first alone, and stops it where it is the worse of the two.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.heard: dict[int, set[str]] = {}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if "score" not in result:
            return decision
        heard = self.heard.setdefault(result["epoch"], set())
        heard.add(trial.trial_id)
        return decision if len(heard) > 1 / (1 - KEPT) else TrialScheduler.CONTINUE


def scheduler(job: SearchJob) -> TrialScheduler:
    """Who stops trials early: on the area of a trial's own box, (validation accuracy - majority) * (1 - quick R2), from the middle
    of a run or the end of the warm-up on, whichever is later."""
    if not stops_early(job):
        return FIFOScheduler()
    c = job.config
    grace = min(c.epochs, max(1, -(-c.epochs // 2), int(c.game.warmup_epochs) + 1))
    return PatientASHA(
        time_attr="epoch",
        metric="score",
        mode="max",
        grace_period=grace,
        max_t=max(c.epochs, grace),
        reduction_factor=1 / KEPT,
        stop_last_trials=False,
    )


def stops_early(job: SearchJob) -> bool:
    return job.scheduler == "asha" or (job.scheduler == "auto" and job.searcher != "grid")
