"""Mechanisms: what turns a sample into the code that leaves Alice's hands. CPGAN, and what it is compared with.

Each is a function of a run's configuration and of one number, its knob, to what it releases. All get the same data set, backbone,
code length and attacks. To add one, write the function and give it a line in `MECHANISMS`.
"""

from cpgan_ray.common.registry import remember
from cpgan_ray.mechanisms.base import Mechanism, Released, shared_k
from cpgan_ray.mechanisms.games import bottleneck, cpgan, cpgan_one, cpgan_paper, undefended
from cpgan_ray.mechanisms.noise import gaussian_noise, laplace_noise, resized
from cpgan_ray.mechanisms.projections import dca, discriminants, pca, random_projection
from cpgan_ray.mechanisms.ran import ran

__all__ = ["MECHANISMS", "Mechanism", "Released"]

WEIGHTS = (0.1, 0.3, 1.0, 10.0)
"""The last gives up most of the task, as the shortest codes and the largest noise do: fronts are compared over the same range."""
SHARES = (1.0, 0.5, 0.25, 0.125)
MECHANISMS: dict[str, Mechanism] = {
    "cpgan": Mechanism(cpgan, "privacy_weight", WEIGHTS, "the game of this project, all adversaries of the preset"),
    "cpgan_one": Mechanism(cpgan_one, "privacy_weight", WEIGHTS, "the same against the neural adversary alone"),
    "cpgan_paper": Mechanism(cpgan_paper, "lambda", (100.0, 10.0, 1.0), "the original: lambda L_U - L_R, raw, a neural adversary"),
    "ran": Mechanism(ran, "alpha", (0.9, 0.5, 0.1, 0.02), "RAN (Liu et al. 2019): alpha L_U - (1 - alpha) L_R"),
    "dnn": Mechanism(undefended, "none", (0.0,), "undefended features without a bottleneck, of their own length"),
    "bottleneck": Mechanism(bottleneck, "share of k", SHARES, "undefended; the code is shortened to a share of k", shared_k),
    "resize": Mechanism(resized, "noise", (0.0, 0.5, 1.0, 2.0), "k principal components of features as dnn's, with Laplace noise"),
    "noise": Mechanism(laplace_noise, "noise", (0.5, 1.0, 2.0, 4.0), "the sample itself with Laplace noise"),
    "gaussian_noise": Mechanism(gaussian_noise, "noise", (0.5, 1.0, 2.0, 4.0), "the sample itself with Gaussian noise"),
    "pca": Mechanism(pca, "share of k", SHARES, "principal components of the sample, a share of k", shared_k),
    "random_projection": Mechanism(random_projection, "share of k", SHARES, "random directions, a share of k", shared_k),
    "dca": Mechanism(dca, "share of k", SHARES, "discriminant components (Kung et al. 2017), a share of them", discriminants),
}
remember(__name__, "MECHANISMS")
