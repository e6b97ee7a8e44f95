"""Alice answers herself: what a client attains at equal cost if it sends answers instead of a code.

Nothing that Bob computes from a code can show more than the code does, so at the same accuracy and the same work no code is more
private than the answers. Fronts therefore show next to codes the answers that their client can afford: the answers of the
undefended twin, for which the client computes privatizer and utility head. They cost more than the privatizer alone by the head; by
convention, answers that cost at most TOLERANCE more than the dearest client of the codes count as equal. By mixing with sending
nothing, the client attains the hull of these answers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cpgan_ray.analysis.fronts.trials import Point

ANSWERS = "answers"
"""Methods whose names start like this send answers."""
TOLERANCE = 0.1


class Answers(NamedTuple):
    """Answers that a client may send: their outcome, and what it costs to compute them; None if that is not known."""

    strongest_r2: float
    utility: float
    multiply_adds: float | None


def answers_among(points: Sequence[Point], controls: Sequence[Point]) -> list[Answers]:
    """The answers of the mechanisms that send them, and all hard answers of undefended controls."""
    sent = [Answers(p.strongest_r2, p.utility, p.multiply_adds) for p in points if sends_answers(p) and not p.degenerate]
    own = [Answers(p.answers_floor_r2, p.utility, cost_of_answering(p)) for p in controls if p.answers_floor_r2 is not None]
    return [*sent, *own]


def sends_answers(point: Point) -> bool:
    return point.method.startswith(ANSWERS)


def cost_of_answering(control: Point) -> float | None:
    """Multiply-adds of the privatizer and the utility head of an undefended control."""
    if control.multiply_adds is None or control.cloud_multiply_adds is None:
        return None
    return control.multiply_adds + control.cloud_multiply_adds


def client_budget(points: Sequence[Point]) -> float | None:
    """Multiply-adds of the dearest client that sends codes; None if none is known."""
    known = [p.multiply_adds for p in points if p.multiply_adds is not None and not sends_answers(p)]
    return max(known, default=None)


def affordable_answers(answers: Sequence[Answers], budget: float | None) -> list[Answers]:
    """The answers that a client with so many multiply-adds can compute."""
    limit = 0.0 if budget is None else budget * (1 + TOLERANCE)
    return [a for a in answers if a.multiply_adds is not None and a.multiply_adds <= limit]


def outcomes_of(answers: Sequence[Answers]) -> np.ndarray:
    """R2 and utility, (N, 2) float64."""
    return np.array([(a.strongest_r2, a.utility) for a in answers], np.float64).reshape(-1, 2)


def answers_row(control: Point) -> dict[str, Any] | None:
    """What Alice would get by answering with the undefended control herself; None if its answers floor is not known."""
    if control.answers_floor_r2 is None:
        return None
    numbers = {"strongest_r2": control.answers_floor_r2, control.objective: control.utility}
    return {"setting": control.setting, **numbers, "multiply_adds": cost_of_answering(control)}
