"""The trials of a search: settings from a grid, random or from Optuna, each with every seed; and the early stopping of trials."""

import json
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.common.rng import stream, torch_seed
from cpgan_ray.config import SearchJob
from cpgan_ray.config.search_space import Dimension, Setting, combinations

if TYPE_CHECKING:  # takes 0.3 s, and a trial's process does not need it
    from optuna.distributions import BaseDistribution
    from ray.tune.search.optuna import OptunaSearch


def objectives(job: SearchJob) -> dict[str, str]:
    """Fields of a trial's result by which settings are proposed -> direction. All are measured on the validation split."""
    bits = {"val_bits": "min"} if job.counts_bits else {}
    return {f"val_{job.objective}": "max", "val_r2": "min"} | bits


class TimeBudget:
    """The time after which no trial starts. It is no part of the state that Tune restores: a resumed search counts again."""

    def __init__(self) -> None:
        self.end: float | None = None

    def start(self, seconds: float | None) -> None:
        """Count from now; None: no limit."""
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def is_spent(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end


TIME_BUDGET = TimeBudget()
"""Of the search in this process."""


CONTINUED_SHARE = 3 / 4
"""Share of the trials that ASHA continues at each of its rungs. It is large because ASHA should only stop hopeless trials."""


class Proposals(Searcher):
    """Settings, each with every seed: first the fixed ones, then those of Optuna, which gets the mean result over the seeds.

    A setting that is proposed again gets new seeds, because the same training again would give no information.
    """

    def __init__(
        self,
        fixed: Sequence[dict[str, Any]],
        *,
        seeds: Sequence[int],
        sampler: "OptunaSearch | None",
        samples: int,
        space: Sequence[Dimension],
        objectives: Sequence[str],
    ) -> None:
        """fixed: `setting` and `control` of each; samples: how many settings the sampler adds; space: its search space;
        objectives: fields of a trial's result that the sampler gets."""
        super().__init__()
        self.seeds, self.sampler, self.samples, self.dimensions = list(seeds), sampler, samples, list(space)
        self.objectives = list(objectives)
        self.num_sampled = 0
        self.repetitions: dict[str, int] = {}
        self.queue = [spec for f in fixed for spec in self.with_seeds(f["setting"], control=f["control"], key=None)]
        self.keys: dict[str, str | None] = {}
        self.results: dict[str, list[dict[str, float] | None]] = {}

    def with_seeds(self, setting: Setting, *, control: bool, key: str | None) -> list[dict[str, Any]]:
        """One trial per seed for a setting; with new seeds if it was proposed before."""
        text = json.dumps(setting, sort_keys=True)
        repetition = self.repetitions[text] = self.repetitions.get(text, -1) + 1
        seeds = [seed + repetition * len(self.seeds) for seed in self.seeds]
        return [{"setting": setting, "control": control, "seed": seed, "key": key} for seed in seeds]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if TIME_BUDGET.is_spent:
            return Searcher.FINISHED
        if not self.queue and self.sampler is not None and self.num_sampled < self.samples:
            key = f"setting {self.num_sampled}"
            self.num_sampled += 1
            values = self.sampler.suggest(key) or {}
            setting = {d.name: d.rounded(values[d.name]) for d in self.dimensions}
            self.queue = self.with_seeds(setting, control=False, key=key)
        if not self.queue:
            return Searcher.FINISHED
        spec = self.queue.pop(0)
        self.keys[trial_id] = spec.pop("key")
        return spec

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        key = self.keys.get(trial_id)
        if key is None or self.sampler is None:
            return
        complete = result is not None and all(result.get(name) is not None for name in self.objectives)
        results = self.results.setdefault(key, [])
        results.append({name: float(result[name]) for name in self.objectives} if complete and result else None)
        if len(results) < len(self.seeds):
            return
        successes = [values for values in results if values is not None]
        mean = {name: sum(v[name] for v in successes) / len(successes) for name in self.objectives} if successes else None
        self.sampler.on_trial_complete(key, result=mean, error=mean is None and error)

    def save(self, checkpoint_path: str) -> None:
        write_bytes(Path(checkpoint_path), pickle.dumps(vars(self)))

    def restore(self, checkpoint_path: str) -> None:
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))


def proposals(job: SearchJob, space: Sequence[Dimension]) -> tuple[Proposals, int]:
    """The proposals of a search, and its number of trials."""
    seeds = range(job.config.seed, job.config.seed + job.num_seeds)
    weights = ("privacy_weight", *(f"game.target_weights.{name}" for name in job.config.game.target_weights))
    fixed = [{"setting": dict.fromkeys(weights, 0.0), "control": True}] if job.train_undefended else []
    sampler = None
    if job.searcher == "grid":
        settings = combinations(space)
    elif job.searcher == "random":
        rng = stream(job.config.seed, "search")
        settings = [{d.name: d.sample(rng) for d in space} for _ in range(job.num_samples)]
    else:
        settings, sampler = [], optuna_sampler(job, space)
    fixed += [{"setting": setting, "control": False} for setting in settings]
    samples = job.num_samples if sampler else 0
    searcher = Proposals(fixed, seeds=seeds, sampler=sampler, samples=samples, space=space, objectives=list(objectives(job)))
    return searcher, (len(fixed) + searcher.samples) * job.num_seeds


def optuna_sampler(job: SearchJob, space: Sequence[Dimension]) -> "OptunaSearch":
    """Optuna's multi-objective TPE (Ozaki et al., JAIR 2022) or NSGA-II (Deb et al., 2002).

    A third of TPE's settings, and NSGA-II's first generation, are random.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = torch_seed(job.config.seed, "search") % 2**32
    first = max(4, job.num_samples // 3)
    if job.searcher == "tpe":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(n_startup_trials=first, seed=seed)
    else:
        sampler = optuna.samplers.NSGAIISampler(population_size=first, seed=seed)
    distributions = {d.name: distribution(d) for d in space}
    directions = objectives(job)
    return OptunaSearch(distributions, metric=list(directions), mode=list(directions.values()), sampler=sampler)


def distribution(d: Dimension) -> "BaseDistribution":
    from optuna import distributions

    if d.values:
        return distributions.CategoricalDistribution(d.values)
    if d.integer:
        return distributions.IntDistribution(int(d.low), int(d.high), log=d.log)
    return distributions.FloatDistribution(d.low, d.high, log=d.log)


class PatientASHA(ASHAScheduler):
    """ASHA (Li et al., MLSys 2020) that stops no trial before enough trials have reported at the same epoch.

    Tune's ASHA compares the second trial only with the first, and stops it if it is the worse of the two.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.reported: dict[int, set[str]] = {}

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if "score" not in result:
            return decision
        trials = self.reported.setdefault(result["epoch"], set())
        trials.add(trial.trial_id)
        return decision if len(trials) > 1 / (1 - CONTINUED_SHARE) else TrialScheduler.CONTINUE


def scheduler(job: SearchJob) -> TrialScheduler:
    """The scheduler that stops trials early. Its score is the area (validation utility - guess) * (1 - quick R2). It starts in
    the middle of a run or at the end of the warm-up, whichever is later."""
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
        reduction_factor=1 / CONTINUED_SHARE,
        stop_last_trials=False,
    )


def stops_early(job: SearchJob) -> bool:
    return job.scheduler == "asha" or (job.scheduler == "auto" and job.searcher != "grid")
