"""Ray Tune over whole games: two objectives, utility up and the strongest fresh attack's R2 down.

A trial's process hosts the privatizer; its adversaries, and later its attacks, run in the trial's own placement group. It leaves a
run's folder in `<output>/trials/`, named after its setting and seed, and a run in MLflow below the search's. `trial.json` in that
folder is written last: a trial that has one is never played again, whoever asks for it.

What is chosen by what: proposals and the recommendation go by the validation split (`val_accuracy`, `val_r2`), early stopping by
quick fresh attacks on validation people; never by a training adversary. What is reported is the test split's.
"""

import dataclasses
import json
import logging
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from cpgan_ray.actors import Bundle, connect, ensure_room, host_here, shares
from cpgan_ray.checkpoint import Snapshot
from cpgan_ray.cli import SEARCH, command_for, read_search, stop_on_sigterm
from cpgan_ray.config import Config, SearchJob, override, to_json
from cpgan_ray.credentials import passed, redacted
from cpgan_ray.data import Dataset, label_columns, majority_logits, named
from cpgan_ray.errors import InputError
from cpgan_ray.frontier import Trial, hypervolume, points, reference_point, table, write
from cpgan_ray.game import opponents, play_in_process
from cpgan_ray.messages import Metrics
from cpgan_ray.objectives import accuracy
from cpgan_ray.process import available_cpus, set_up_process
from cpgan_ray.space import Dimension, Setting, combinations, dimensions, shown
from cpgan_ray.streams import stream, torch_seed
from cpgan_ray.tracking import SearchRun, end_attempts, tracking_uri
from cpgan_ray.training import Context, LocalGame, new_output, ready, train

TRIALS, RESULT = "trials.json", "trial.json"
TUNE = "tune"
"""Folder of Ray Tune's own state. It is restored with pickle: continue only searches that are your own."""
OBJECTIVES = {"val_accuracy": "max", "val_r2": "min"}
KEPT = 3 / 4
"""Share of the trials that asha lets go on at each of its rungs: it stops the hopeless, it does not look for the best."""
TUNE_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # the default of ten seconds and more forgets what has just finished
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # whose `verbose=0` still prints
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is handled here
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the scheduler's score is not part of a trial's last report
}


# What is proposed


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
        Path(checkpoint_path).write_bytes(pickle.dumps(vars(self)))

    def restore(self, checkpoint_path: str) -> None:
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))


def proposals(job: SearchJob, found: Sequence[Dimension]) -> tuple[Proposals, int]:
    """What a search tries, and how many trials that makes."""
    seeds = range(job.config.seed, job.config.seed + job.seeds)
    given = [{"setting": {"privacy_weight": 0.0}, "control": True}] if job.control else []
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
    return asked, (len(given) + asked.samples) * job.seeds


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


# One trial, in its own process


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every trial of a search is told."""

    job: SearchJob
    sizes: dict[str, list[Bundle]]
    """Bundles of a defended trial and of a `control`; see `trial_sizes`."""
    parent: str
    """MLflow run of the search."""
    majority: float
    """Accuracy of the majority guess on the validation split."""
    environment: dict[str, str]
    """Variables by which the tracking store is reached."""


def play_trial(spec: dict[str, Any], *, shared: Shared) -> None:
    """One training with its fresh attacks; reports to Tune what a `frontier.Trial` is made of."""
    os.environ.update(shared.environment)
    job, name = shared.job, trial_name(spec)
    assert job.config.output is not None
    output = job.config.output / "trials" / folder_name(name)
    if (output / RESULT).is_file():
        tune.report(json.loads((output / RESULT).read_text()))
        return
    shutil.rmtree(output, ignore_errors=True)  # what an interrupted attempt has left
    sizes = shared.sizes["control" if spec["control"] else "defended"]
    config = trial_config(job, spec, output, sizes)
    end_attempts(tracking_uri(config.tracking, output), shared.parent, name)

    def listen(found: Metrics) -> None:
        gain, hidden = found["utility/val_accuracy"] - shared.majority, 1 - max(0.0, found["privacy/quick_r2"])
        score = gain * hidden if gain > 0 else gain  # what is worse than guessing does not get better by hiding less
        tune.report({"epoch": int(found["epoch"]), "score": score})

    context = Context(
        host=partial(trial_host, sizes=sizes),
        listen=listen,
        parent=shared.parent,
        tags={
            "search.role": "trial",
            "search.trial": name,
            "search.setting": json.dumps(spec["setting"]),
            "search.control": str(spec["control"]).lower(),
        },
        params={field: value for field, value in spec["setting"].items() if "." in field},
    )
    summary = train(config, context)
    report = json.loads((output / "report" / "report.json").read_text())
    utility, strongest = report["utility"], report["privacy"]["strongest"]
    result = {
        "accuracy": utility["accuracy"],
        "accuracy_low": utility["accuracy_low"],
        "accuracy_high": utility["accuracy_high"],
        "strongest_r2": strongest["r2"],
        "strongest_r2_low": strongest["low"],
        "strongest_r2_high": strongest["high"],
        "attack": strongest["attack"],
        "val_accuracy": utility["val_accuracy"],
        "val_r2": report["privacy"]["val_r2"],
        "majority_accuracy": utility["majority_accuracy"],
        "label_floor_r2": report["privacy"]["label_floor_r2"],
        "seconds": summary["seconds"],
        "run_id": summary["run_id"],
        "output": summary["output"],
    }
    write_json(output / RESULT, result)
    tune.report(result)


def trial_name(spec: Mapping[str, Any]) -> str:
    return ("control " if spec["control"] else "") + shown(spec["setting"], seed=spec["seed"])


def folder_name(name: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", name)


def trial_config(job: SearchJob, spec: Mapping[str, Any], output: Path, sizes: Sequence[Bundle]) -> Config:
    """The run of one trial. Its attacks are Ray tasks in the places of its adversaries where those have room for one, or where no
    other trial waits for their cores; else they are made one after the other in the trial's process."""
    c = override(job.config, {**spec["setting"], "seed": spec["seed"]})
    most = {kind: max((s.get(kind, 0.0) for s in sizes[1:]), default=0.0) for kind in ("CPU", "GPU")}
    alone = sum(s.get("CPU", 0.0) for s in sizes) > 1
    cpus = min(c.attacks.cpus, most["CPU"]) if alone and most["CPU"] else c.attacks.cpus
    room = cpus <= most["CPU"] and c.attacks.gpus <= most["GPU"]
    threads = c.runtime.threads or max(1, int(sizes[0].get("CPU", 1)))
    quick_every = (c.attacks.quick_every or -(-c.epochs // 4)) if stops_early(job) and not spec["control"] else 0
    return dataclasses.replace(
        c,
        output=output,
        attacks=dataclasses.replace(c.attacks, quick_every=quick_every, cpus=cpus),
        runtime=dataclasses.replace(c.runtime, backend="ray" if room else "local", threads=threads),
        recovery=dataclasses.replace(c.recovery, checkpoint_every=0, spares=0),  # an interrupted trial is played again
        tracking=dataclasses.replace(c.tracking, run_name=trial_name(spec)),
    )


@contextmanager
def trial_host(config: Config, snapshot: Snapshot | None, *, sizes: Sequence[Bundle]) -> Iterator[LocalGame]:
    """The game of a trial: the privatizer here, each adversary an actor, or all here where the search's backend is local."""
    assert snapshot is None, "a trial is played from its beginning"
    if len(sizes) > 1:
        with host_here(config, sizes) as host:
            yield LocalGame(host.game)
    else:
        yield LocalGame(play_in_process(config, threads=config.runtime.threads, keep=True))


# The driver


def trial_sizes(job: SearchJob, cluster: Mapping[str, float], *, total: int) -> dict[str, list[Bundle]]:
    """What a trial needs, the bundle of its own process first. On a cluster with fewer CPUs than a game has players, a trial's
    players share one CPU, or more where the `total` trials are fewer: many at once use the cores better than one after the other.

    Raises: InputError with the numbers where a trial does not fit the cluster.
    """
    names = [] if job.config.runtime.backend == "local" else opponents(dataclasses.replace(job.config, privacy_weight=1.0))
    there = cluster.get("CPU", 0.0)
    wanted = min(total, job.max_concurrent or total)
    cpus = there if there >= len(names) + 1 else min(there, max(1.0, there / wanted))
    sizes = {"defended": shares(job.config, names, cpus=cpus), "control": shares(job.config, [], cpus=cpus)}
    for one in sizes.values():
        ensure_room(one, cluster, job.config.runtime)
    return sizes


def concurrency(job: SearchJob, sizes: Sequence[Bundle], cluster: Mapping[str, float]) -> int:
    """How many trials run at once."""
    totals = {kind: sum(s.get(kind, 0.0) for s in sizes) for kind in ("CPU", "GPU")}
    most = min((int(cluster.get(kind, 0.0) / total + 1e-6) for kind, total in totals.items() if total > 0), default=1)
    return max(1, min(most, job.max_concurrent or most))


class Progress(Callback):
    """After each trial: `trials.json`, a line on standard error, the parent run's hypervolume.

    Tune pickles it: it holds a path alone.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total = folder, total
        self.run: SearchRun | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"run": None}

    def setup(self, **info: Any) -> None:
        job, parent = read_search(self.folder)  # written before the first trial
        self.run = SearchRun(job.config, self.folder, name="", params={}, run_id=parent)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.note(trials, trial, TuneTrial.TERMINATED)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.note(trials, trial, TuneTrial.ERROR)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        say(f"{trial_name(trial.config)} failed and is tried again: {cause(trial)}")

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        write_json(self.folder / TRIALS, [asdict(row(t, t.status)) for t in in_order(trials)])

    def note(self, trials: list[TuneTrial], trial: TuneTrial, status: str) -> None:
        """status: the trial's own; Tune calls before it has set it."""
        assert self.run is not None
        one = row(trial, status)
        rows = [one if t is trial else row(t, t.status) for t in in_order(trials)]
        write_json(self.folder / TRIALS, [asdict(r) for r in rows])
        self.run.end_children("FAILED" if one.state == "failed" else "FINISHED", names={one.name})
        ended = [r for r in rows if r.state in ("finished", "stopped", "failed")]
        finished = [r for r in ended if r.state == "finished"]
        reference = reference_point(finished)
        volume = hypervolume(points(finished), reference) if reference else 0.0
        self.run.log({"search/trials": len(ended), "search/hypervolume": volume}, step=len(ended))
        say(f"trial {len(ended)}/{self.total}: {described(one)}; hypervolume {volume:.4f}")


def described(trial: Trial) -> str:
    """A trial's outcome in a line."""
    if trial.state == "failed":
        return f"{trial.name} failed: {trial.cause}"
    if trial.state != "finished":
        return f"{trial.name} was stopped early"
    low, high = trial.strongest_r2_low, trial.strongest_r2_high
    r2 = f"strongest R2 {trial.strongest_r2:.3f} [{low:.3f}, {high:.3f}] ({trial.attack})"
    return f"{trial.name}: accuracy {trial.accuracy:.4f}, {r2}, {trial.seconds:.0f} s"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def in_order(trials: Sequence[TuneTrial]) -> list[TuneTrial]:
    """By the time of their last report."""
    return sorted(trials, key=lambda t: (t.last_result or {}).get("timestamp", float("inf")))


def row(trial: TuneTrial, status: str) -> Trial:
    """What Tune knows of a trial in that status."""
    spec, result = trial.config, trial.last_result or {}
    finished = status == TuneTrial.TERMINATED and "accuracy" in result
    states = {TuneTrial.TERMINATED: "finished" if finished else "stopped", TuneTrial.ERROR: "failed"}
    found = {f.name: result[f.name] for f in dataclasses.fields(Trial) if finished and f.name in result}
    state: Any = states.get(status, "running")
    return Trial(
        name=trial_name(spec),
        setting=spec["setting"],
        seed=spec["seed"],
        control=spec["control"],
        state=state,
        cause=cause(trial) if state == "failed" else None,
        **found,
    )


def cause(trial: TuneTrial) -> str:
    """The last line that a failed trial's process said."""
    file = trial.error_file
    lines = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()] if file else []
    return lines[-1] if lines else "its process ended without a word (killed, or out of memory)"


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(values, indent=1) + "\n")
    beside.replace(path)


@dataclass(frozen=True)
class Found:
    """What the job prints, and whether any trial came to its end."""

    summary: dict[str, Any]
    text: str
    ok: bool


def search(job: SearchJob, *, resume: bool = False) -> Found:
    """Play all trials; leave `frontier.json`, `.csv` and `.png` in the output folder and in MLflow, and each trial in `trials/`.

    resume: go on with the search in the job's output folder.

    Raises: InputError for anything the user can mend, before anything is written to the output folder.
    """
    started = time.perf_counter()
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE_ENVIRONMENT.items()})
    job = job if resume else settled(job)
    folder = job.config.output
    assert folder is not None
    found = dimensions(job.over, job.config, grid=job.searcher == "grid")
    set_up_process(threads=job.config.runtime.threads or available_cpus())
    dataset = ready(job.config)
    connect(job.config.runtime)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of failures it prints tracebacks; they are in tune/*/error.txt too
    stop_on_sigterm()
    cluster = ray.cluster_resources()
    asked, total = proposals(job, found)
    sizes = trial_sizes(job, cluster, total=total)
    at_once = concurrency(job, sizes["defended"], cluster)
    ensure_reachable(job.config)
    parent = open_run(job, folder, resume=resume)
    majority = majority_guess(dataset, job.config.data.labels)
    same = not any(d.name.startswith("data.") or d.name == "skip_corrupt" for d in found)  # one store for all trials
    told = dataclasses.replace(job, config=named(job.config, dataset)) if same else job
    shared = Shared(job=told, sizes=sizes, parent=parent.run_id, majority=majority, environment=passed())
    trainable = tune.with_resources(
        tune.with_parameters(play_trial, shared=shared),
        lambda spec: tune.PlacementGroupFactory(
            sizes["control" if spec["control"] else "defended"], strategy=job.config.runtime.placement
        ),
    )
    say(f"{total} trials, {at_once} at once: {', '.join(map(described_dimension, found))}; in {folder}")
    status = "FAILED"
    try:
        tuner = restored(folder, trainable) if resume else None
        tuner = tuner or tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=asked, scheduler=scheduler(job), num_samples=total, max_concurrent_trials=at_once, reuse_actors=False
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=job.max_failures),
                callbacks=[Progress(folder, total)],
                verbose=0,
            ),
        )
        tuner.fit()
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if status != "FINISHED":
            parent.end_children("KILLED")
        trials = read_trials(folder)
        values = conclude(job, folder, trials, parent)
        if status != "FINISHED":
            ray.shutdown()
            parent.end_children("KILLED")
        parent.close(status)
    summary = {
        "run_id": parent.run_id,
        "output": str(folder),
        "trials": {state: sum(t.state == state for t in trials) for state in ("finished", "stopped", "failed")},
        "front": len(values["front"]),
        "hypervolume": values["hypervolume"],
        "recommended": values["recommended"],
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Found(summary, concluded(trials, values), bool(values["front"]))


def majority_guess(dataset: Dataset, labels: tuple[str, ...]) -> float:
    """Accuracy on the validation split of always guessing each label's commoner training value."""
    y = dataset.val.labels[:, label_columns(dataset, labels)]
    return float(accuracy(majority_logits(dataset, labels, rows=len(y)), y).mean())


def ensure_reachable(config: Config) -> None:
    """Raises: InputError where trials would be tracked in a file that is on another machine than they are."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1 and (config.tracking.uri or "").startswith("sqlite:"):
        raise InputError(
            f"the cluster has {len(machines)} machines, and {config.tracking.uri} is a file on this one: "
            "start an MLflow server and give its address with --tracking.uri or MLFLOW_TRACKING_URI"
        )


def settled(job: SearchJob) -> SearchJob:
    """With a folder and a tracking store of its own, both absolute: its trials run elsewhere.

    Raises: InputError where the folder holds a run or a search already.
    """
    given = job.config.output or Path("outputs").resolve() / f"search-{job.config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = new_output(dataclasses.replace(job.config, output=given))
    if (folder / SEARCH).exists():
        raise InputError(f"output folder {folder} holds a search already: go on with it by --resume, or give another --output")
    uri = tracking_uri(job.config.tracking, folder)
    if redacted(uri) != uri:  # a password that has to stay in it: not in `search.json`
        os.environ["MLFLOW_TRACKING_URI"] = uri
    tracking = dataclasses.replace(job.config.tracking, uri=uri if redacted(uri) == uri else None)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, output=folder, tracking=tracking))


def open_run(job: SearchJob, folder: Path, *, resume: bool) -> SearchRun:
    """The search's MLflow run, and `search.json` with its id: from here on the search can be resumed."""
    c = job.config
    name = c.tracking.run_name or f"search {c.preset} over {' '.join(job.over)}"
    if resume:
        run = SearchRun(c, folder, name=name, params={}, run_id=read_search(folder)[1])
        run.end_children("KILLED")  # of trials that were under way when the search ended
        return run
    params = {"preset": c.preset, "over": " ".join(job.over), "searcher": job.searcher, "num_samples": job.num_samples}
    params |= {"seeds": job.seeds, "scheduler": job.scheduler, "attacks": " ".join(c.attacks.names)}
    run = SearchRun(c, folder, name=name, params=params)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SEARCH, {"run_id": run.run_id, "job": to_json(job)})
    return run


def restored(folder: Path, trainable: Any) -> tune.Tuner | None:
    """Tune's own state of an interrupted search; None where it ended before Tune had written any."""
    path = str(folder / TUNE)
    if not tune.Tuner.can_restore(path):
        return None
    return tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)


def read_trials(folder: Path) -> list[Trial]:
    path = folder / TRIALS
    return [Trial(**values) for values in json.loads(path.read_text())] if path.is_file() else []


def conclude(job: SearchJob, folder: Path, trials: Sequence[Trial], parent: SearchRun) -> dict[str, Any]:
    """The front's files, and what MLflow hears of it."""
    values = write(trials, folder, max_r2=job.max_r2, min_accuracy=job.min_accuracy, command=partial(training_command, job))
    parent.log_files(folder / name for name in ("frontier.json", "frontier.csv", "frontier.png", SEARCH))
    best = {name for point in values["front"] for name in point["trials"]}
    parent.label({t.name: t.state for t in trials}, best)
    return values


def training_command(job: SearchJob, setting: Mapping[str, Any], seed: int) -> str:
    """What trains a setting, with the whole tournament of its preset in the end."""
    c = override(job.config, {**setting, "seed": seed})
    return "python jobs/train_celeba.py " + command_for(c)


def concluded(trials: Sequence[Trial], values: Mapping[str, Any]) -> str:
    """The table of settings and the recommendation, as text."""
    lines = [table(points(trials)), ""]
    if best := values["recommended"]:
        lines += [f"recommended ({best['rule']}):", f"  {best['command']}"]
    else:
        lines.append(f"nothing to recommend: {values['reason']}")
    failed = [t for t in trials if t.state == "failed"]
    return "\n".join([*lines, *(f"failed: {t.name}: {t.cause}" for t in failed)])


def described_dimension(d: Dimension) -> str:
    return f"{d.name} among {', '.join(map(str, d.values))}" if d.values else f"{d.name} {d.low:g} to {d.high:g}"
