"""Theory of the Gaussian mixture: `mixture` has its moments and optimal attackers, `optimum` computes the best codes."""

from cpgan_ray.theory.mixture import Moments, bayes_accuracy, lmmse, mmse, population_moments, sample_moments, sufficient_direction
from cpgan_ray.theory.optimum import (
    Attacker,
    Point,
    dominates,
    frontier,
    frontier_mse,
    least_leaking_point,
    rank1_optimum,
    shortfall,
    theory_lines,
)

__all__ = [
    "Attacker",
    "Moments",
    "Point",
    "bayes_accuracy",
    "dominates",
    "frontier",
    "frontier_mse",
    "least_leaking_point",
    "lmmse",
    "mmse",
    "population_moments",
    "rank1_optimum",
    "sample_moments",
    "shortfall",
    "sufficient_direction",
    "theory_lines",
]
