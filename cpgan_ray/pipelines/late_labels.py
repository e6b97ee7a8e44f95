"""Checks of the labels of late tasks (`data.late_labels`), before anything is trained or attacked."""

from pathlib import Path

from cpgan_ray.config import Config
from cpgan_ray.config.folders.runs import read_run
from cpgan_ray.config.folders.targets import Target
from cpgan_ray.data import Dataset, ensure_learnable, task_of
from cpgan_ray.data.task import LATE_FIELD
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.fit_to_data import with_task


def check_late_labels(config: Config, dataset: Dataset) -> None:
    """Raises: InputError if the data set does not have the labels of the late tasks, or if they cannot be learnt."""
    if late := config.data.late_labels:
        ensure_learnable(dataset, task_of(dataset, late, field=LATE_FIELD), field=LATE_FIELD)


def check_twin_answers(folder: Path, config: Config) -> None:
    """folder: of the undefended twin.

    Raises: InputError if there are late tasks, and the twin's answers are not answers to this run's task.
    """
    if not config.data.late_labels:
        return
    subject = f"tracking.undefended is {folder}"
    if not (folder / "utility_head.pt2").is_file():
        raise InputError(f"{subject}, which has no utility_head.pt2: give the output folder of a finished run")
    twin, labels = read_run(folder, trust=config.trust)[0].data.labels, config.data.labels
    if twin != labels:
        different = sorted({*twin} ^ {*labels})
        what = f"only one of the two tasks has {different[0]!r}" if different else "their labels have another order"
        raise InputError(
            f"{subject}, but its answers are not those to this task ({what}), and data.late_labels compares with them: give a twin "
            "with the same --data.labels, or leave out one of the two"
        )


def with_attacked_task(config: Config, target: Target) -> Config:
    """The configuration of an attack whose task, if no run gives it, does not have the labels of late tasks.

    Raises: InputError if the task of the attacked run is all labels.
    """
    if target.config is None:
        return with_task(config)
    if config.data.late_labels and not config.data.labels:
        raise InputError(
            f"data.late_labels has {config.data.late_labels[0]!r}, but the task of {target.name} is all labels: attack a run that "
            "was trained without it"
        )
    return config
