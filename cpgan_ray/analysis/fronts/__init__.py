"""What many finished trainings amount to: the front of accuracy against the strongest fresh attack's R2, and a recommendation."""

from cpgan_ray.analysis.fronts.choice import Recommendation, nearest, recommend
from cpgan_ray.analysis.fronts.files import as_json, finite, table, with_interval, write
from cpgan_ray.analysis.fronts.fronts import Reference, comparable, front, hypervolume, hypervolume_history, reference_point
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
    "as_json",
    "comparable",
    "finite",
    "front",
    "hypervolume",
    "hypervolume_history",
    "mean",
    "nearest",
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
