"""Mechanisms: functions that turn samples into released codes. They include CPGAN and the baselines that it is compared with.

Each mechanism is a function of a run's configuration, one number (its knob) and the data set; it returns a `Released`. All
mechanisms get the same data set, backbone, code length and attacks. To add one, write the function and add an entry to
`MECHANISMS`.
"""

from cpgan_ray.common.plugins import Parts
from cpgan_ray.common.registry import remember
from cpgan_ray.mechanisms.answers import answers, answers_noisy, answers_subset, num_sent
from cpgan_ray.mechanisms.answers_game import answers_game
from cpgan_ray.mechanisms.base import Mechanism, Released, fraction_of_k
from cpgan_ray.mechanisms.games import bottleneck, cpgan, cpgan_one, cpgan_paper, undefended
from cpgan_ray.mechanisms.noise import gaussian_noise, laplace_noise, resize
from cpgan_ray.mechanisms.projections import dca, discriminant_length, pca, random_projection
from cpgan_ray.mechanisms.ran import ran

__all__ = ["MECHANISMS", "Mechanism", "Released"]

WEIGHTS = (0.1, 0.3, 1.0, 10.0)
"""The last weight gives up most of the task, like the shortest codes and the largest noise, so that all fronts cover the same
range."""
FRACTIONS = (1.0, 0.5, 0.25, 0.125)
"""Fractions of the code length k."""
SHARES = (1.0, 0.001)
"""The range of fractions that a calibration tries; every fraction below 1.5 / k is a code of one number."""
NOISE = (0.05, 20.0)
"""The range of standard deviations that a calibration tries."""
_built_in: dict[str, Mechanism] = {
    "cpgan": Mechanism(
        cpgan, "privacy_weight", WEIGHTS, "the game of this project, all adversaries of the preset", search=(0.01, 100.0)
    ),
    "cpgan_one": Mechanism(
        cpgan_one, "privacy_weight", WEIGHTS, "the same against only the neural adversary", search=(0.01, 100.0)
    ),
    "cpgan_paper": Mechanism(
        cpgan_paper,
        "lambda",
        (100.0, 10.0, 1.0),
        "the reference loss: lambda L_U - L_R, ReLU codes, neural adversary",
        search=(1000.0, 0.001),
    ),
    "ran": Mechanism(
        ran, "alpha", (0.9, 0.5, 0.1, 0.02), "RAN (Liu et al. 2019): alpha L_U - (1 - alpha) L_R", search=(0.99, 0.0001)
    ),
    "dnn": Mechanism(undefended, "none", (0.0,), "undefended features of their full length, without a bottleneck"),
    "bottleneck": Mechanism(
        bottleneck,
        "share of k",
        FRACTIONS,
        "undefended codes of a share of the length k",
        search=SHARES,
        length=fraction_of_k,
    ),
    "resize": Mechanism(
        resize,
        "noise",
        (0.0, 0.5, 1.0, 2.0),
        "k principal components of the features of dnn, with Laplace noise",
        search=NOISE,
    ),
    "noise": Mechanism(laplace_noise, "noise", (0.5, 1.0, 2.0, 4.0), "the sample itself with Laplace noise", search=NOISE),
    "gaussian_noise": Mechanism(
        gaussian_noise, "noise", (0.5, 1.0, 2.0, 4.0), "the sample itself with Gaussian noise", search=NOISE
    ),
    "pca": Mechanism(
        pca, "share of k", FRACTIONS, "principal components of the sample, a share of k", search=SHARES, length=fraction_of_k
    ),
    "random_projection": Mechanism(
        random_projection, "share of k", FRACTIONS, "random directions, a share of k", search=SHARES, length=fraction_of_k
    ),
    "dca": Mechanism(
        dca,
        "share of k",
        FRACTIONS,
        "discriminant components (Kung et al. 2017), a share of them",
        search=SHARES,
        length=discriminant_length,
    ),
    "answers": Mechanism(
        answers, "bits per answer", (8.0, 4.0, 2.0, 1.0), "the undefended twin's answers: hard ones, or b-bit logits", rounds=False
    ),
    "answers_subset": Mechanism(
        answers_subset,
        "share of answers",
        (1.0, 0.75, 0.5, 0.25),
        "the hard answers without those that show most for what they are worth",
        search=SHARES,
        length=num_sent,
        rounds=False,
    ),
    "answers_noisy": Mechanism(
        answers_noisy, "flip", (0.01, 0.05, 0.15, 0.3), "the hard answers by randomised response", search=(0.001, 0.5), rounds=False
    ),
    "answers_game": Mechanism(
        answers_game,
        "privacy_weight",
        (0.05, 0.1, 0.2, 0.5),
        "the hard answers, of which the game changes those that show more than they are worth",
        search=(0.01, 10.0),
        rounds=False,
    ),
}
MECHANISMS: Parts[Mechanism] = Parts(_built_in, kind="mechanism", group="cpgan_ray.mechanisms", field="mechanisms")
remember(__name__, "MECHANISMS")
