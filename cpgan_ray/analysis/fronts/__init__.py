"""Fronts of many finished trainings: accuracy against the R2 of the strongest fresh attack, and a recommended setting."""

from cpgan_ray.analysis.fronts.choice import Recommendation, explain_no_choice, recommend
from cpgan_ray.analysis.fronts.files import finite, table, with_interval, write
from cpgan_ray.analysis.fronts.fronts import Reference, ensure_comparable, front, hypervolume, hypervolume_history, reference_point
from cpgan_ray.analysis.fronts.knobs import rank_correlations, spearman
from cpgan_ray.analysis.fronts.trials import Estimate, Point, State, Trial, mean, mean_with_ci, points, scored

__all__ = [
    "Estimate",
    "Point",
    "Recommendation",
    "Reference",
    "State",
    "Trial",
    "mean_with_ci",
    "ensure_comparable",
    "finite",
    "front",
    "hypervolume",
    "hypervolume_history",
    "mean",
    "explain_no_choice",
    "points",
    "rank_correlations",
    "recommend",
    "reference_point",
    "scored",
    "spearman",
    "table",
    "with_interval",
    "write",
]
