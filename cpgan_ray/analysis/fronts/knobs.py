"""Rank correlations: whether a field of the settings changes accuracy and R2 as it should."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpgan_ray.analysis.fronts.trials import Point, fields, mean, setting_key


def rank_correlations(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Spearman's rank correlation of each numeric field with accuracy and with strongest R2, over all points.

    `within`: the mean of the correlations inside groups of at least 3 points that share all other fields and the method, if there
    are such groups; over all points, another field may cause or hide a correlation. None if nothing varies.
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
        large = [group for group in groups.values() if len(group) >= 3]
        within = {of: mean(spearman(group, name, of) for group in large) for of in ("strongest_r2", "accuracy")}
        correlations[name] = {of: spearman(numeric, name, of) for of in ("strongest_r2", "accuracy")} | {
            "num_points": len(numeric),
            "within": {**within, "num_groups": len(large)} if len(groups) > 1 and large else None,
        }
    return correlations


def spearman(points: Sequence[Point], name: str, of: str) -> float | None:
    x, y = [p.setting[name] for p in points], [getattr(p, of) for p in points]
    if len(points) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    from scipy import stats  # takes 0.4 s

    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
