"""Rank correlations: whether a field of the settings changes utility and R2 as it should."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpgan_ray.analysis.fronts.trials import Point, fields, mean, setting_key

MIN_SETTINGS = 5
"""A rank correlation of fewer settings is not given: three settings in order are -1 or 1 in one case of three by chance."""


def rank_correlations(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Spearman's rank correlation of each numeric field with utility and with strongest R2, over all points.

    `within`: the mean of the correlations inside groups of at least `MIN_SETTINGS` points that share all other fields and the
    method, if there are such groups; over all points, another field may cause or hide a correlation. `reason`: why a correlation is
    None.
    """
    correlations: dict[str, dict[str, Any]] = {}
    for name in fields(p.setting for p in points):
        numeric = [p for p in points if number(p.setting.get(name)) is not None]
        if len({p.setting[name] for p in numeric}) < 2:
            continue
        groups: dict[tuple[str, str], list[Point]] = {}
        for p in numeric:
            others = {other: value for other, value in p.setting.items() if other != name}
            groups.setdefault((p.method, setting_key(others)), []).append(p)
        large = [group for group in groups.values() if len({p.setting[name] for p in group}) >= MIN_SETTINGS]
        within = {of: mean(spearman(group, name, of) for group in large) for of in ("strongest_r2", "utility")}
        correlations[name] = correlations_of(numeric, name) | {
            "num_points": len(numeric),
            "within": {**within, "num_groups": len(large)} if len(groups) > 1 and large else None,
        }
    return correlations


def correlations_of(points: Sequence[Point], name: str) -> dict[str, Any]:
    """Rank correlations of a field with utility and R2, and the reason if one of them is None."""
    values = {of: spearman(points, name, of) for of in ("strongest_r2", "utility")}
    count = len({p.setting[name] for p in points})
    if count < MIN_SETTINGS:
        return values | {"reason": f"{count} values of {name}; at least {MIN_SETTINGS} are needed"}
    constant = [of for of, value in values.items() if value is None]
    return values | {"reason": f"{' and '.join(constant)} is the same everywhere" if constant else None}


def spearman(points: Sequence[Point], name: str, of: str) -> float | None:
    """Spearman's rank correlation; None for fewer than `MIN_SETTINGS` different values of the field, or if `of` does not vary."""
    x, y = [p.setting[name] for p in points], [getattr(p, of) for p in points]
    if len(set(x)) < MIN_SETTINGS or len(set(y)) < 2:
        return None
    from scipy import stats  # takes 0.4 s

    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
