"""The tournament: every attack in every variant, each fitted apart from the others (`fitting`), all scored on the same pictures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpgan_ray.common.types import Metrics
from cpgan_ray.data import Dataset
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, predict, to_pixels
from cpgan_ray.evaluation.attributes import Inferred, attribute_map
from cpgan_ray.evaluation.fitting import FLOOR, AttackSpec, EvaluationContext, FittedAttack
from cpgan_ray.evaluation.linkage import Linkage, Verifier, linkage
from cpgan_ray.evaluation.scoring import RowErrors, Score, score


@dataclass(frozen=True, eq=False)
class ScoredAttack:
    """An attack and what it found on the score set."""

    made: FittedAttack
    score: Score
    errors: RowErrors

    @property
    def spec(self) -> AttackSpec:
        return self.made.spec


@dataclass(frozen=True, eq=False)
class TournamentResult:
    """All that a tournament found."""

    attacked: list[ScoredAttack]  # those that count, the strongest first
    floor: ScoredAttack
    sweep: list[ScoredAttack]  # smaller shares of the attack's pictures
    linear_code_r2: float  # the best linear code of k numbers: what an undefended z of that length gives away at least
    linkage: dict[str, Linkage]
    attributes: list[Inferred]

    @property
    def strongest(self) -> ScoredAttack:
        return self.attacked[0]

    @property
    def val_r2(self) -> float:
        """The largest R2 on the rows that attacks were tuned on: to select by, so that the one on the score set stays unselected.

        Of variant `leaked`, which is tuned on all of `val`, where it was played.
        """
        leaked = [a for a in self.attacked if a.spec.variant == "leaked"]
        return max(a.made.fitted.tune_r2 for a in leaked or self.attacked)


def score_attacks(made: Sequence[FittedAttack], context: EvaluationContext) -> TournamentResult:
    """Score all attacks on the score set, and see what else the codes give away."""
    config = context.config
    data = context.data("leaked")
    measures = {"similar": config.similarity, "legacy": config.legacy}
    none = dict.fromkeys(measures, False)
    attacked = [
        ScoredAttack(m, *score(data, m.fitted, **(measures if m.spec.counts else none))) for m in made if m.spec.variant != FLOOR
    ]
    floor_data = context.floor(data)
    floors = [m for m in made if m.spec.variant == FLOOR]
    floor = max(floors, key=lambda m: score(floor_data, m.fitted, **none)[0].r2)
    by_strength = sorted(attacked, key=lambda a: -a.score.r2)
    strongest = next(a for a in by_strength if a.spec.counts)
    k = min(context.codes["test"].shape[1], len(data.components))
    return TournamentResult(
        attacked=[a for a in by_strength if a.spec.counts],
        floor=ScoredAttack(floor, *score(floor_data, floor.fitted, **measures)),
        sweep=sorted((a for a in attacked if a.spec.share < 1), key=lambda a: (a.spec.share, a.spec.name)),
        linear_code_r2=linear_code_r2(data, k),
        linkage=link(data, strongest.made.fitted) if config.identity else {},
        attributes=infer(data, context.dataset, task=set(context.task or context.dataset.label_names)) if config.attributes else [],
    )


def linear_code_r2(data: AttackData, k: int) -> float:
    """R2 of the score pictures' own k leading principal components."""
    target = data.score.target
    kept = target.values.clone()
    kept[:, k:] = 0
    return 1 - float(target.errors(kept).double().sum() / target.mean_errors().double().sum())


def link(data: AttackData, strongest: Fitted) -> dict[str, Linkage]:
    """Identity linkage on the score set: of pictures (what this encoder can do at best), of a reconstruction and a picture, of two
    reconstructions, and of two codes themselves. Empty where too few people have two pictures."""
    plain = slice(0, len(data.fit) // 2 if data.mirrored else None)  # the rest are their mirror images
    people, basis = data.fit.identity[plain], data.components
    reconstructions = predict(lambda z: to_pixels(data, strongest, z) @ basis.T, data.score.z, rows=data.score.pixel_rows)
    try:
        by_picture = Verifier(data.fit.target.values[plain].cpu().numpy(), people)
        standardise = CodeMap(data.fit.z, how="standardised")  # the discriminant's shrinkage depends on the scales
        by_code = Verifier(predict(standardise, data.fit.z[plain]).cpu().numpy(), people)
    except ValueError:
        return {}
    picture = by_picture.embed(data.score.target.values.cpu().numpy())
    reconstruction = by_picture.embed(reconstructions.cpu().numpy())
    code = by_code.embed(standardise(data.score.z).cpu().numpy())
    compared = {
        "picture and picture": (picture, picture),
        "reconstruction and picture": (reconstruction, picture),
        "reconstruction and reconstruction": (reconstruction, reconstruction),
        "code and code": (code, code),
    }
    found = {name: linkage(*pair, data.score.identity, seed=data.seed) for name, pair in compared.items()}
    return {name: result for name, result in found.items() if result is not None}


def infer(data: AttackData, dataset: Dataset, *, task: set[str]) -> list[Inferred]:
    """The attribute map, taught on the leaked pictures; of labels that are 0/1."""
    if dataset.info.classes:
        return []
    train = dataset.train.labels[data.fit.pixels.batch.rows]  # pyright: ignore[reportAttributeAccessIssue]
    labels = {"fit": train, "tune": dataset.val.labels, "score": dataset.test.labels}
    return attribute_map(data, labels, names=dataset.label_names, task=task)


def metrics(result: TournamentResult) -> Metrics:
    """What a run logs of a tournament; of the two variants of an attack the stronger."""
    strongest, floor = result.strongest.score.r2, result.floor.score.r2
    found: Metrics = {
        "privacy/strongest_r2": strongest,
        "privacy/strongest_r2_low": result.strongest.score.low,
        "privacy/strongest_r2_high": result.strongest.score.high,
        "privacy/val_r2": result.val_r2,
        "privacy/label_floor_r2": floor,
        "privacy/excess_r2": strongest - floor,
    }
    for a in reversed(result.attacked):  # the stronger of two variants is written last
        found |= {
            f"attack/{a.spec.name}/{key}": value
            for key in ("r2", "mse_255", "mse_raw")
            if (value := getattr(a.score, key)) is not None
        }
        found |= {f"attack/{a.spec.name}/seconds": a.made.seconds}
    if result.linkage:
        found["privacy/linkage_auc"] = max(v.auc for name, v in result.linkage.items() if name != "picture and picture")
    others = [a.balanced_accuracy for a in result.attributes if not a.task]
    if others:
        found["privacy/other_attributes"] = float(np.mean(others))
    return found


def as_json(result: TournamentResult) -> dict[str, Any]:
    """The part of `report.json` that the tournament answers for."""

    def row(a: ScoredAttack) -> dict[str, Any]:
        values = {name: value for name, value in dataclasses.asdict(a.score).items() if value is not None}
        f = a.made.fitted
        return {
            "name": a.spec.name,
            "variant": a.spec.variant,
            "share": a.spec.share,
            **values,
            "saturated": f.saturated,
            "seconds": round(a.made.seconds, 2),
            "rows": a.made.rows,
            "tune_r2": f.tune_r2,
            "budgets": [list(b) for b in f.budgets],
            "curve": [round(r2, 5) for r2 in f.curve],
            "settings": f.settings,
        }

    best = result.strongest
    return {
        "privacy": {
            "strongest": {
                "attack": best.spec.name,
                "variant": best.spec.variant,
                **{name: getattr(best.score, name) for name in ("r2", "low", "high")},
            },
            "val_r2": result.val_r2,
            "label_floor_r2": result.floor.score.r2,
            "excess_r2": best.score.r2 - result.floor.score.r2,
            "linear_code_r2": result.linear_code_r2,
        },
        "attacks": [row(a) for a in result.attacked],
        "label_floor": row(result.floor),
        "sweep": [row(a) for a in result.sweep],
        "identity_linkage": {name: dataclasses.asdict(value) for name, value in result.linkage.items()},
        "attributes": [dataclasses.asdict(a) for a in result.attributes],
    }
