"""Checks of adversaries."""

from typing import Any

import torch
from torch import Tensor

from cpgan_ray.check.findings import Findings, require
from cpgan_ray.check.material import Material
from cpgan_ray.common.process import torch_stream
from cpgan_ray.common.rng import stream
from cpgan_ray.config import OwnConfig
from cpgan_ray.config.players import BUILT_IN_ADVERSARIES
from cpgan_ray.training.adversaries import Adversary, Target, build_adversary
from cpgan_ray.training.checkpoint import pack, unpack
from cpgan_ray.training.losses import privacy_term, r2_from_errors

BATCH, ROUNDS = 96, 12
TOLERANCE = 0.1
"""Largest relative difference of the gradient to a finite difference, in float32."""


def check_adversary(findings: Findings, name: str, options: dict[str, Any], material: Material) -> None:
    """An adversary over a few rounds of codes of drawn pictures."""

    def build() -> Adversary:
        config = BUILT_IN_ADVERSARIES[name]() if name in BUILT_IN_ADVERSARIES else OwnConfig(kind=name, options=options)
        with torch_stream(0, "check"):
            return build_adversary(
                config,
                k=material.k,
                target=material.dimension,
                image_shape=material.image_shape,
                holdout_fraction=0.25,
                rng=stream(0, "check", "adversary"),
                device=torch.device("cpu"),
            )

    rounds = [(material.codes(x), material.target(x)) for x in (material.pictures(BATCH, "round", r) for r in range(ROUNDS + 4))]
    if findings.check("builds, and its state can be stored", build) is None:
        return
    if findings.check("answers before it has learned", lambda: answer(build(), *rounds[0])) is None:
        return
    findings.check("learns", lambda: learned(build(), rounds))
    findings.check("gradients", lambda: gradients(build(), rounds))
    findings.check("determinism", lambda: determinism(build(), build(), rounds))
    findings.check("snapshot and restore", lambda: restored(build, rounds))


def answer(adversary: Adversary, z: Tensor, target: Target) -> tuple[Tensor, float]:
    """The gradient of the privacy term, and R2."""
    z = z.clone().requires_grad_()
    errors, rows = adversary.recover(z, target)
    mean_errors = target[rows].mean_errors()
    (grad,) = torch.autograd.grad(privacy_term(errors, mean_errors, kind="negated_mse"), z, allow_unused=True)
    require(grad is not None, "the errors do not depend on the codes: never detach them from z")
    require(bool(errors.isfinite().all()) and bool(grad.isfinite().all()), "errors or gradient are not finite")
    return grad, float(r2_from_errors(errors.detach(), mean_errors))


def play(adversary: Adversary, rounds: list[tuple[Tensor, Target]]) -> list[tuple[Tensor, float]]:
    """The answers of consecutive rounds: first it answers, then it learns."""
    answers = []
    for number, (z, target) in enumerate(rounds):
        answers.append(answer(adversary, z, target))
        with torch_stream(0, "check", number):
            adversary.improve(z, target)
    return answers


def learned(adversary: Adversary, rounds: list[tuple[Tensor, Target]]) -> str:
    answers = play(adversary, rounds)
    return f"R2 {answers[0][1]:.3f} in the first round, {answers[-1][1]:.3f} after {len(rounds) - 1} rounds of {BATCH} pictures"


def gradients(adversary: Adversary, rounds: list[tuple[Tensor, Target]]) -> str:
    play(adversary, rounds[:-1])
    z, target = rounds[-1]
    grad, _ = answer(adversary, z, target)
    require(bool(grad.abs().sum() > 0), "the gradient is zero after learning: the errors do not depend on the codes")

    def term(codes: Tensor) -> float:
        with torch.no_grad():
            errors, _ = adversary.recover(codes, target)
        return float(-errors.double().mean())

    norm = float(grad.norm())
    size = 1e-2 * float(z.norm())
    direction = grad / norm
    slope = (term(z + size * direction) - term(z - size * direction)) / (2 * size)
    relative = abs(slope - norm) / norm
    require(
        relative < TOLERANCE,
        f"along the gradient the term changes by {slope:.4g}, the gradient claims {norm:.4g}: a part of the path from z is "
        "detached, or the errors jump",
    )
    return f"within {100 * relative:.1f} % of a finite difference"


def same(one: list[tuple[Tensor, float]], other: list[tuple[Tensor, float]]) -> bool:
    return all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(one, other, strict=True))


def determinism(first: Adversary, second: Adversary, rounds: list[tuple[Tensor, Target]]) -> None:
    require(
        same(play(first, rounds), play(second, rounds)),
        "two adversaries with equal seeds answer differently: draw only from context.rng and torch's global generator",
    )


def restored(build: Any, rounds: list[tuple[Tensor, Target]]) -> str:
    first, second = build(), build()
    play(first, rounds[:ROUNDS])
    state = pack(first.state_dict())
    second.load_state_dict(unpack(state, torch.device("cpu")))
    require(
        same(play(first, rounds[ROUNDS:]), play(second, rounds[ROUNDS:])),
        "an adversary that is restored from a snapshot continues differently: put everything that changes into state_dict",
    )
    return f"a snapshot of {len(state) / 1000:,.0f} kB"
