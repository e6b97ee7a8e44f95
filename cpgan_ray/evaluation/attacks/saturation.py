"""When an attack's budget has been raised far enough: a pure function of the R2 that each budget has reached."""

from collections.abc import Sequence
from itertools import accumulate

RELATIVE_GAIN = 0.02
"""A doubling that gains less than this share of the R2 found is too small to matter."""
INTERVAL_SHARE = 0.25
"""A doubling that gains less than this share of the half-width of the R2's interval is too small to be seen."""
RESOLUTION = 2e-4
"""A gain below this is useless whatever the R2: reports show four decimals. Without it an attack that finds nothing would never be
saturated."""
IDLE_DOUBLINGS = 2
"""An attack is saturated after so many useless doublings in a row. One is not enough: a network starts at the ridge reconstruction
and may need some time to improve on it."""


def is_useless(gain: float, *, r2: float, half_width: float) -> bool:
    """Whether a doubling of the budget gained so little that it does not matter: less than RELATIVE_GAIN of the R2 found so far,
    and less than INTERVAL_SHARE of the half-width of its 95 % interval on the tuning rows; or less than RESOLUTION."""
    return gain < max(RESOLUTION, min(RELATIVE_GAIN * r2, INTERVAL_SHARE * half_width))


def is_saturated(r2: Sequence[float], *, half_width: float) -> bool:
    """Whether the last IDLE_DOUBLINGS doublings were useless.

    r2: on the tuning rows, of each budget in the order in which it was raised; half_width: of the interval of the largest of them.
    """
    best = list(accumulate(r2, max))
    gains = [(new - before, new) for before, new in zip(best, best[1:], strict=False)]
    last = gains[-IDLE_DOUBLINGS:]
    return len(last) == IDLE_DOUBLINGS and all(is_useless(gain, r2=found, half_width=half_width) for gain, found in last)
