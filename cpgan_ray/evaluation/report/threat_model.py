"""What a report states about the attacker, the sets of pictures and the limits of its numbers."""

from typing import Any

import numpy as np

from cpgan_ray.data import Dataset
from cpgan_ray.data.code_sets import DRAWS
from cpgan_ray.evaluation.fitting import EvaluationContext
from cpgan_ray.evaluation.protocol import QUERIES, query_sizes, split_by_identity

ATTACKER = (
    "Eve reads codes z on the wire and wants to recover the {samples}. {access}: she "
    "makes pairs of codes and {samples}, fits a reconstructor on them, and applies it to codes of {unseen} she has never seen. Her "
    "{samples} are the defender's own training set (variant 'leaked') or other {samples} (variant 'fresh')."
)
WHITE_BOX = "She knows the privatizer and can run it (white box)"
BLACK_BOX = "She sees nothing of the encoder but its answers, and can query it (black box; {queries} {samples} were encoded here)"
NOT_COVERED = {
    True: "She does not change the code, query the classifier, poison training labels or replace the classifier. No person is in "
    "two of the sets.",
    False: "She does not change the code, query the classifier, poison training labels or replace the classifier. The sets share "
    "none of the {samples}.",
}
QUERY_ONLY = (
    "Variant '{variant}': she can only query. She has the codes of {total:,} {samples} ({fit:,} to fit on, {tune:,} to tune on), "
    "and none of mirrored, shifted or chosen ones beyond them."
)
OTHER = (
    "Variant 'other_data': she has none of these {samples}, but {total:,} of another data set and their codes ({fit:,} to fit on, "
    "{tune:,} to tune on); the attacks are scored on the same {samples} as all others."
)
LIMITS = (
    "The result holds for the attacks made here; a better attack may recover more. An attack marked as not saturated would recover "
    "more with a larger budget.",
    "Whoever trains the privatizer can make it show more: wrong labels, or a classifier that Bob replaces, were not tested.",
    "The code is deterministic: it gives no differential-privacy guarantee.",
    "Attackers with a generative prior (GAN, diffusion) or with side information about {whom} are not among the attacks.",
)
DRAWN = (
    "The generative attack was fitted on the attacker's own {samples} and draws only their leading principal components: an "
    "attacker with a prior from many more {samples} (GAN, diffusion), or with side information about {whom}, is not among the "
    "attacks."
)
"""Instead of the last of them, if the generative attack was made."""
STOCHASTIC = (
    "The release is declared as stochastic: the attacks saw one code of each sample; an attacker who averages several codes of a "
    "sample recovers more. No differential-privacy guarantee is claimed."
)
NOISY = (
    "The release is stochastic: an attacker had {draws} codes of each of its own {samples}, and one of each {sample} that is "
    "scored. Whoever gets several codes of one {sample} averages over the noise, and recovers more. No differential-privacy "
    "guarantee is claimed."
)
"""For a run with `privatizer.noise`."""
REDUCED = (
    "The codes are longer than the attacks can take: they saw a random projection to fewer numbers, so that the whole codes may "
    "show more. Raise --encoder.max-numbers, or select outputs."
)
HIDDEN = {
    True: "R2 gives all values the same weight: a small detail that identifies a person may be visible although R2 is small. See "
    "the worst {samples}, the identity linkage and the attribute map.",
    False: "R2 gives all values the same weight: a small detail that matters may be visible although R2 is small. See the worst "
    "{samples}.",
}
"""For data about people (True), and for other data."""
ANONYMOUS = (
    "The data contain no identities, so one person may be in several of the sets: an attack may have been fitted on pictures of "
    "the same people that it is scored on, and intervals treat pictures as independent."
)
"""For pictures of people without identities."""


def nouns(dataset: Dataset) -> dict[str, str]:
    """Words for the samples of a data set. `unseen`: those on which no attack was fitted."""
    samples = "pictures" if dataset.train.dtype == np.uint8 else "samples"
    people = about_people(dataset)
    return {"samples": samples, "unseen": "people" if people else samples, "whom": "a person" if people else "a sample"}


def about_people(dataset: Dataset) -> bool:
    """Whether several samples belong to the same person. Otherwise each sample counts as its own person."""
    return any(len(np.unique(part.identity)) < len(part) for part in (dataset.train, dataset.val, dataset.test))


def limits(
    dataset: Dataset, *, stochastic: bool = False, reduced: bool = False, noisy: bool = False, drawn: bool = False
) -> list[str]:
    """What the R2 of a report does not show. stochastic: whether the release is declared to draw random numbers; reduced: whether
    the attacks saw a projection of the codes; noisy: whether the release has noise of a known kind; drawn: whether the generative
    attack was made."""
    general = (*LIMITS[:-1], DRAWN) if drawn else LIMITS
    lines = [line.format(**nouns(dataset)) for line in (*general, HIDDEN[about_people(dataset)])]
    if noisy:
        words = nouns(dataset) | {"draws": str(DRAWS), "sample": nouns(dataset)["samples"].removesuffix("s")}
        lines = [NOISY.format(**words) if line.startswith("The code is deterministic") else line for line in lines]
    lines = [STOCHASTIC if stochastic and line.startswith("The code is deterministic") else line for line in lines]
    lines += [REDUCED] if reduced else []
    return [*lines, ANONYMOUS] if dataset.info.anonymous else lines


def used_sets(dataset: Dataset, *, seed: int) -> list[tuple[str, np.ndarray, str]]:
    """The sets of an evaluation: name (a split, or a part of it), rows of the split, use."""
    rows = {name: np.arange(len(split)) for name, split in dataset.splits.items()}
    train = ("train", rows["train"], "training the defender; fitting the attacks of variant 'leaked'")
    test = ("test", rows["test"], "only scoring")
    if dataset.final_opened:
        test = ("final", rows["test"], "only scoring; held out from everything else, also from choosing settings")
    if dataset.attacker is not None:
        attacker = ("attacker", rows["attacker"], "fitting the attacks of variant 'fresh'; never seen by the defender")
        return [train, attacker, ("val", rows["val"], "tuning the attacks of both variants, then their refit"), test]
    fit_rows, tune_rows = split_by_identity(dataset.val.identity, seed=seed)
    first = (
        "val, first part",
        fit_rows,
        "fitting the attacks of variant 'fresh'; tuning those of variant 'leaked', then their refit",
    )
    return [train, first, ("val, second part", tune_rows, "tuning the attacks of both variants, then their refit"), test]


def other_attackers(context: EvaluationContext) -> list[str]:
    """Sentences on the attackers with other means: few queries, or pictures of another data set."""
    samples, sentences = nouns(context.dataset)["samples"], []
    for number in context.config.queries:
        fit, tune = query_sizes(context.dataset, number)
        sentences.append(QUERY_ONLY.format(variant=f"{QUERIES}{number}", total=number, fit=fit, tune=tune, samples=samples))
    if context.other is not None:
        fit, tune = len(context.other.dataset.train), len(context.other.dataset.val)
        sentences.append(OTHER.format(total=fit + tune, fit=fit, tune=tune, samples=samples))
    return sentences


def threat_model(context: EvaluationContext, *, queries: int | None = None) -> dict[str, Any]:
    """A description of the attacker, and the sets with their sizes. queries: to a black box."""
    dataset = context.dataset
    words = nouns(dataset)
    access = WHITE_BOX if queries is None else BLACK_BOX.format(queries=f"{queries:,}", **words)
    sets = []
    for name, rows, use in used_sets(dataset, seed=context.seed):
        split = dataset.test if name == "final" else dataset.splits[name.split(",")[0]]
        sets.append({"name": name, "pictures": len(rows), "people": len(np.unique(split.identity[rows])), "use": use})
    return {
        "attacker": " ".join([ATTACKER.format(access=access, **words), *other_attackers(context)]),
        "not_covered": " ".join(
            [NOT_COVERED[about_people(dataset)].format(**words), *([ANONYMOUS] if dataset.info.anonymous else [])]
        ),
        "sets": sets,
    }
