"""What a report states about the attacker, the data sets and the limits of the number."""

from typing import Any

import numpy as np

from cpgan_ray.data import Dataset
from cpgan_ray.evaluation.fitting import EvaluationContext
from cpgan_ray.evaluation.protocol import split_by_identity

ATTACKER = (
    "Eve reads codes z on the wire and wants the {samples} behind them. She knows the privatizer and can run it (white box): she "
    "makes pairs of codes and {samples}, fits a reconstructor on them, and applies it to codes of {unseen} she has never seen. Her "
    "{samples} are the defender's own training set (variant 'leaked') or others (variant 'fresh')."
)
NOT_COVERED = {
    True: "She does not change the code, ask the classifier, or combine several codes of one person. No person is in two of the "
    "sets.",
    False: "She does not change the code or ask the classifier. No two of the sets share any of the {samples}.",
}
LIMITS = (
    "The number is that of the attacks made here; a better attack finds more. An attack marked as not saturated would itself have.",
    "The code is deterministic: it carries no differential-privacy guarantee, and none is claimed.",
    "Attackers with a generative prior (GAN, diffusion) or with side information about {whom} are not among the attacks.",
)
STOCHASTIC = (
    "The release is declared as stochastic: the attacks saw one code of each sample, and averaging several codes of one sample "
    "recovers more. No differential-privacy guarantee is claimed."
)
HIDDEN = {
    True: "R2 weighs all values alike: a small detail that identifies a person may hide in a small R2. See the worst {samples}, "
    "the identity linkage and the attribute map.",
    False: "R2 weighs all values alike: a small detail that matters may hide in a small R2. See the worst {samples}.",
}
"""Of data about people, and of other data."""
ANONYMOUS = (
    "The data do not say who is on a picture, so one person may be in several of the sets: an attack may have been fitted on "
    "pictures of the very people that it is scored on, and intervals take each picture by itself."
)
"""Of pictures of people without identities."""


def nouns(dataset: Dataset) -> dict[str, str]:
    """What the values of a data set are called. `unseen`: those that no attack was fitted on."""
    samples = "pictures" if dataset.train.dtype == np.uint8 else "samples"
    people = about_people(dataset)
    return {"samples": samples, "unseen": "people" if people else samples, "whom": "a person" if people else "a sample"}


def about_people(dataset: Dataset) -> bool:
    """Whether samples are known to be some person's: otherwise each is by itself."""
    return any(len(np.unique(part.identity)) < len(part) for part in (dataset.train, dataset.val, dataset.test))


def limits(dataset: Dataset, *, stochastic: bool = False) -> list[str]:
    """What the number does not say. stochastic: whether the release is declared to draw random numbers."""
    lines = [line.format(**nouns(dataset)) for line in (*LIMITS, HIDDEN[about_people(dataset)])]
    lines = [STOCHASTIC if stochastic and line.startswith("The code is deterministic") else line for line in lines]
    return [*lines, ANONYMOUS] if dataset.info.anonymous else lines


def threat_model(context: EvaluationContext) -> dict[str, Any]:
    """Who attacks, with what, in words; and the sets with their sizes."""
    dataset = context.dataset
    called = nouns(dataset)
    mine, kept = split_by_identity(dataset.val.identity, seed=context.seed)
    sets = []
    for name, rows, use in (
        ("train", np.arange(len(dataset.train)), "the defender's training; fitting the attacks of variant 'leaked'"),
        ("val, one part", mine, "fitting the attacks of variant 'fresh'; tuning those of 'leaked'"),
        ("val, the rest", kept, "tuning the attacks of both variants"),
        ("test", np.arange(len(dataset.test)), "scoring alone"),
    ):
        split = getattr(dataset, name.split(",")[0])
        sets.append({"name": name, "pictures": len(rows), "people": len(np.unique(split.identity[rows])), "use": use})
    return {
        "attacker": ATTACKER.format(**called),
        "not_covered": " ".join(
            [NOT_COVERED[about_people(dataset)].format(**called), *([ANONYMOUS] if dataset.info.anonymous else [])]
        ),
        "sets": sets,
    }
