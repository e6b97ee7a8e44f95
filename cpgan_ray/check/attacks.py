"""Checks of attacks."""

import io
import pickle

import torch

from cpgan_ray.check.findings import Findings, require
from cpgan_ray.check.material import Material
from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks import ATTACKS
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, predict, r2_score
from cpgan_ray.evaluation.attacks.own import fit_own

SETTINGS = AttackConfig(mlp_widths=(32,), epochs=1, max_budget_doublings=1, restarts=1, decoder_width=4, kernel_features=256)


def check_attack(findings: Findings, name: str, material: Material) -> None:
    """An attack on linear codes of drawn pictures. Its score set is empty, as in a tournament."""
    data = material.attack_data()
    fitted = findings.check("fits, and reconstructs of the right shape", lambda: fit_own(name, data, SETTINGS))
    if fitted is None:
        return
    findings.check("tuning R2", lambda: tuning(fitted, data))
    findings.check("determinism", lambda: determinism(fitted, fit_own(name, data, SETTINGS), data))
    findings.check("travels between processes", lambda: pickled(fitted, data))
    findings.check("strength", lambda: strength(fitted, data))


def tuning(fitted: Fitted, data: AttackData) -> str:
    measured = r2_score(data.tune, fitted.before_refit or fitted.reconstruct, space=fitted.space)
    require(
        abs(measured - fitted.tune_r2) < 1e-3,
        f"tune_r2 is {fitted.tune_r2:.4f}, but the attack (before_refit, if there is one) has {measured:.4f} on the tuning rows",
    )
    return f"{measured:.3f}" + ("" if fitted.before_refit else "; without before_refit it counts as fitted on the tuning rows too")


def determinism(first: Fitted, second: Fitted, data: AttackData) -> None:
    same = torch.equal(predict(first.reconstruct, data.score.z), predict(second.reconstruct, data.score.z))
    require(same, "two fits with equal seeds differ: draw from stream(data.seed, ...) and inside torch_stream(data.seed, ...)")


def pickled(fitted: Fitted, data: AttackData) -> str:
    pickle.dump(fitted, buffer := io.BytesIO())
    size = len(buffer.getvalue())
    buffer.seek(0)
    other: Fitted = pickle.load(buffer)
    same = torch.equal(predict(fitted.reconstruct, data.score.z), predict(other.reconstruct, data.score.z))
    require(same, "a pickled copy reconstructs differently")
    return f"{size / 1e6:.1f} MB"


def strength(fitted: Fitted, data: AttackData) -> str:
    own = r2_score(data.score, fitted.reconstruct, space=fitted.space)
    ridge = ATTACKS["ridge"](data, SETTINGS)
    return (
        f"R2 {own:.3f} on unseen rows of linear codes, ridge has {r2_score(data.score, ridge.reconstruct, space=ridge.space):.3f}"
    )
