"""Whether a field of the settings tunes what it should."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from cpgan_ray.analysis.fronts.trials import Point, fields, identity, mean


def rank_correlations(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Spearman's rank correlation of each numeric field with both numbers, over all points.

    `within`: the mean over the groups of 3 points or more that share all other fields and the method, where there are such; over
    all points another field may make or hide a correlation. None where nothing varies.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in fields(p.setting for p in points):
        having = [p for p in points if number(p.setting.get(name)) is not None]
        if len({p.setting[name] for p in having}) < 2:
            continue
        groups: dict[tuple[str, str], list[Point]] = {}
        for p in having:
            others = {other: value for other, value in p.setting.items() if other != name}
            groups.setdefault((p.method, identity(others)), []).append(p)
        large = [group for group in groups.values() if len(group) >= 3]
        within = {of: mean(spearman(group, name, of) for group in large) for of in ("strongest_r2", "accuracy")}
        found[name] = {of: spearman(having, name, of) for of in ("strongest_r2", "accuracy")} | {
            "num_points": len(having),
            "within": {**within, "num_groups": len(large)} if len(groups) > 1 and large else None,
        }
    return found


def spearman(points: Sequence[Point], name: str, of: str) -> float | None:
    x, y = [p.setting[name] for p in points], [getattr(p, of) for p in points]
    if len(points) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
