"""Eve for the page of the demonstration: an attack on the bundle's codes, and one on those of the undefended twin, as ONNX models.

Eve's attack is the strongest one of the bundle's own tournament that has a module (evaluation/attacks/modules.py), so the R2 that
the page states is that of what it shows. The twin is attacked with the closed-form attacks, in the same variant.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from cpgan_ray.common.ownership import sign
from cpgan_ray.config import Config, ExportJob
from cpgan_ray.config.folders.runs import store_of
from cpgan_ray.config.folders.targets import Target, run_target
from cpgan_ray.deploy.bundle import EVE, PRIVATIZER, TWIN_EVE, TWIN_PRIVATIZER
from cpgan_ray.deploy.onnx_export import Weights, onnx_model
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted
from cpgan_ray.evaluation.attacks.modules import Eve, NoModuleError, eve_of
from cpgan_ray.evaluation.fitting import AttackSpec, EvaluationContext, fit_attack, trained_against
from cpgan_ray.evaluation.scoring import Score, score
from cpgan_ray.evaluation.tournament import TournamentResult
from cpgan_ray.models.export import export_program
from cpgan_ray.pipelines.export.codes import encode
from cpgan_ray.pipelines.export.measured import numbers_of, quick_attacks, read_report
from cpgan_ray.pipelines.export.models import convert, ensure_own

COMPARED = 64
"""Test codes on which a model is compared with its attack."""
TOLERANCE = 1.0
"""Largest difference of a pixel, of 255, between a model and its module."""


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What `--eve` adds to a bundle: its files, and fields of its manifest."""

    files: dict[str, bytes]
    manifest: dict[str, Any]


def twin_target(job: ExportJob, target: Target) -> Target | None:
    """The undefended twin that the job names, checked; None if it names none.

    Raises: InputError if it is not a finished run of this user, without a privacy weight, with codes and data like the run's.
    """
    if job.twin is None:
        return None
    assert target.config is not None and target.folder is not None
    twin = run_target(job.twin, name=str(job.twin), trust=job.trust)
    ensure_own(twin, trust=job.trust)
    assert twin.config is not None
    remedy = "give the output folder of the same run with --privacy-weight 0 and without noise"
    if twin.config.is_defended:
        raise InputError(f"twin {job.twin} has privacy weight {twin.config.privacy_weight:g}, so it is not undefended: {remedy}")
    if twin.config.privatizer.noise:
        raise InputError(f"twin {job.twin} has noise {twin.config.privatizer.noise:g}, so it is not undefended: {remedy}")
    if twin.config.k != target.config.k:
        raise InputError(f"twin {job.twin} has codes of {twin.config.k} numbers, the run has {target.config.k}: {remedy}")
    if store_of(job.twin) != store_of(target.folder) or twin.config.data != target.config.data:
        raise InputError(f"twin {job.twin} was trained on other data than {target.folder}: {remedy}")
    read_report(job.twin)
    return twin


def demonstration(
    result: TournamentResult, context: EvaluationContext, config: Config, *, twin: Target | None, weights: Weights
) -> Demonstration:
    """Eve's model, and with a twin its privatizer and the Eve of its codes.

    result, context: of the attacks on the bundle's codes.

    Raises: InputError if no attack of the tournament has a module.
    """
    data = context.data("leaked")
    scored = [(a.attack.fitted, a.spec, a.score) for a in result.attacks]
    content, spec, measured = first_model(scored, data)
    files, manifest = {EVE: content}, {"eve": described(spec, measured)}
    if twin is None:
        return Demonstration(files, manifest)
    assert twin.program is not None and twin.folder is not None and twin.config is not None
    files[TWIN_PRIVATIZER] = convert(twin.program, input_name="pictures", output_name="z", weights=weights)
    of_twin = twin_context(files[TWIN_PRIVATIZER], context, config, twin.config)
    files[TWIN_EVE], twin_spec, twin_score = attack_twin(of_twin, spec.variant)
    accuracy = numbers_of(read_report(twin.folder))["accuracy"]
    manifest["twin"] = {"id": twin.run_id, "accuracy": accuracy} | described(twin_spec, twin_score)
    return Demonstration(files, manifest)


def described(spec: AttackSpec, measured: Score) -> dict[str, Any]:
    return {"attack": spec.name, "variant": spec.variant, "r2": measured.r2, "low": measured.low, "high": measured.high}


def twin_context(privatizer: bytes, context: EvaluationContext, config: Config, twin: Config) -> EvaluationContext:
    """The twin's codes, under the closed-form attacks."""
    with tempfile.TemporaryDirectory(prefix="cpgan-bundle-") as folder:
        path = Path(folder) / PRIVATIZER
        path.write_bytes(privatizer)
        sign(path)
        _, codes, _ = encode(path, context.dataset, config.attacks, release=twin.privatizer, seed=twin.seed)
    attacks = quick_attacks(config.attacks)
    return dataclasses.replace(context, codes=codes, config=attacks, trained_against=trained_against(twin))


def attack_twin(context: EvaluationContext, variant: str) -> tuple[bytes, AttackSpec, Score]:
    """The model of the closed-form attack that is best on the tuning rows, and its score."""
    attacks = [fit_attack(AttackSpec(name, variant), context) for name in context.config.names]
    best = max(attacks, key=lambda attack: attack.fitted.tune_r2)
    data = context.data(variant)
    measured, _ = score(data, best.fitted, similar=False, legacy=False)
    return first_model([(best.fitted, best.spec, measured)], data)


def first_model(attacks: Sequence[tuple[Fitted, AttackSpec, Score]], data: AttackData) -> tuple[bytes, AttackSpec, Score]:
    """The ONNX model of the first attack that has one.

    Raises: InputError if none has.
    """
    for fitted, spec, measured in attacks:
        try:
            return eve_model(eve_of(fitted, data), data.score.z[:COMPARED].cpu()), spec, measured
        except NoModuleError:
            continue
    names = ", ".join(dict.fromkeys(spec.name for _, spec, _ in attacks))
    raise InputError(f"none of the attacks ({names}) can be exported as Eve: leave --eve out, or train with pictures and ridge")


def eve_model(eve: Eve, z: torch.Tensor) -> bytes:
    """The ONNX model of an attack: its numbers as float16 if its pictures stay the same to within TOLERANCE, else as float32.

    z: codes (B, k) to compare on.

    Raises: RuntimeError if the model computes something else.
    """
    program = export_program(eve, torch.zeros(2, z.shape[1]), what="attack")
    with torch.no_grad():
        expected = eve(z).numpy()
    for weights in ("float16", "float32"):
        content = onnx_model(program, input_name="z", output_name="pictures", weights=weights)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (pictures,) = session.run(None, {"z": z.numpy()})
        if np.abs(np.asarray(pictures) - expected).max() <= TOLERANCE:
            return content
    raise RuntimeError("the exported attack computes other pictures than the attack")
