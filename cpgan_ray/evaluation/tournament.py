"""The tournament: every attack in every variant, each fitted independently (see fitting.py), all scored on the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpgan_ray.data import task_of
from cpgan_ray.evaluation.attacks.base import AttackData
from cpgan_ray.evaluation.attributes import InferredAttribute, attribute_map
from cpgan_ray.evaluation.bounds.measure import Bounds, ensure_below, measure_bounds
from cpgan_ray.evaluation.fitting import (
    ANSWERS,
    EMBEDDING,
    FLOOR,
    SWEPT_ATTACKS,
    UNRANKED,
    AttackSpec,
    EvaluationContext,
    FittedAttack,
)
from cpgan_ray.evaluation.generative.attack import GenerativeAttack
from cpgan_ray.evaluation.identity.judges import Judge, judge_of
from cpgan_ray.evaluation.identity.result import IdentityResult, measure_identity
from cpgan_ray.evaluation.learning_curve import LearningCurve, extended_difference, learning_curves
from cpgan_ray.evaluation.protocol import VARIANTS
from cpgan_ray.evaluation.rate import CodeRate, code_rate
from cpgan_ray.evaluation.scoring import Difference, RowErrors, Score, paired_difference, score
from cpgan_ray.evaluation.several_codes import SeveralCodes, several_codes


@dataclass(frozen=True, eq=False)
class ScoredAttack:
    """An attack and its score on the score set."""

    attack: FittedAttack
    score: Score
    errors: RowErrors

    @property
    def spec(self) -> AttackSpec:
        return self.attack.spec


@dataclass(frozen=True, eq=False)
class TournamentResult:
    """All results of a tournament."""

    attacks: list[ScoredAttack]  # those that count (`AttackSpec.counts`), the strongest first
    floor: ScoredAttack  # on the true labels
    answers_floor: ScoredAttack | None  # on the run's own hard answers; None if they are not known, or not attacked
    sweep: list[ScoredAttack]  # attacks fitted on smaller shares of the pictures
    linear_code_r2: float  # of the best linear code of k numbers: an undefended z of that length gives away at least this
    linear_code_face_r2: float | None  # of the same code, on the face region
    identity: IdentityResult
    attributes: list[InferredAttribute]
    several_codes: list[SeveralCodes]
    learning_curves: dict[str, LearningCurve]  # `code` and `labels`; empty if the attacks were fitted on too few sizes
    learning_excess: tuple[float, float, float] | None  # difference of the two extended curves, with its interval
    rate: CodeRate
    bounds: Bounds
    seed: int
    generative: GenerativeAttack | None = None  # never ranked by R2; None if it was not made

    @property
    def strongest(self) -> ScoredAttack:
        return self.attacks[0]

    @property
    def strongest_on_face(self) -> ScoredAttack | None:
        """The attack with the largest R2 on the face region; None if the data set has none."""
        scored = [a for a in self.attacks if a.score.face_r2 is not None]
        return max(scored, key=lambda a: a.score.face_r2 or 0.0, default=None)

    @property
    def excess(self) -> Difference | None:
        """R2 of the strongest attack less that of the answers floor, paired picture by picture: what the code gives away although
        the task does not need it. None without an answers floor."""
        if self.answers_floor is None:
            return None
        return paired_difference(self.strongest.errors, self.answers_floor.errors, seed=self.seed)

    @property
    def label_excess(self) -> Difference:
        """R2 of the strongest attack less that of the label floor, paired picture by picture."""
        return paired_difference(self.strongest.errors, self.floor.errors, seed=self.seed)

    @property
    def weaker_than_answers(self) -> bool:
        """Whether the strongest attack on z finds less than an attack on the answers that are computed from z, by more than the
        interval of the difference. As the best attacker on z does at least as well, the attacks on z have then failed."""
        return self.excess is not None and self.excess.high < 0

    def is_saturated(self, attack: ScoredAttack) -> bool:
        """Whether the attack's R2 may count as all that it finds; never if the tournament is weaker than one on the answers."""
        return attack.attack.fitted.saturated and not (attack.spec.counts and self.weaker_than_answers)

    @property
    def val_r2(self) -> float:
        """The largest R2 on the tuning rows. Selection uses this number, so that nothing is selected by the R2 on the score set.

        If variant `leaked` was run, only its attacks count: they are tuned on all of `val`.
        """
        usual = [a for a in self.attacks if a.spec.variant in VARIANTS]
        leaked = [a for a in usual if a.spec.variant == "leaked"]
        return max(a.attack.fitted.tune_r2 for a in leaked or usual)


def score_attacks(fitted: Sequence[FittedAttack], context: EvaluationContext, *, raw_bits: float | None = None) -> TournamentResult:
    """Score all attacks on the score set, measure what else the codes give away (identities, attributes), and compare the attacks
    with the bounds on every attacker.

    raw_bits: of a code without entropy coding, if that does not follow from the codes.

    Raises: BoundExceededError if an attack is better than any attack can be.
    """
    config = context.config
    data = context.data("leaked")
    measures = {"similar": config.similarity, "legacy": config.legacy}
    no_measures = dict.fromkeys(measures, False)
    scored = [
        ScoredAttack(attack, *score(data, attack.fitted, **(measures if attack.spec.counts else no_measures)))
        for attack in fitted
        if attack.spec.variant not in UNRANKED
    ]
    floor_data = context.floor(data)
    of_labels = [
        ScoredAttack(attack, *score(floor_data, attack.fitted, **no_measures)) for attack in fitted if attack.spec.variant == FLOOR
    ]
    # Chosen on the tuning rows: a floor that is the largest of several on the score rows is too high, which hides an excess.
    floor = max((a for a in of_labels if a.spec.is_floor), key=lambda a: a.attack.fitted.tune_r2).attack
    answers = [attack for attack in fitted if attack.spec.variant == ANSWERS]
    answers_floor = max(answers, key=lambda a: a.fitted.tune_r2, default=None)
    curves = {"code": by_pictures(scored), "labels": by_pictures(of_labels)}
    identity = context.dataset.test.identity
    rounding = {"step": context.channel.step, "levels": context.channel.levels}
    rate = code_rate(context.codes, identity, **rounding, seed=context.seed, raw=raw_bits)
    bounds, galleries = measure_bounds(data, context.channel, rate)
    ensure_below({f"{a.spec.name} ({a.spec.variant})": a.errors for a in scored}, galleries)
    by_strength = sorted(scored, key=lambda a: -a.score.r2)
    strongest = next(a for a in by_strength if a.spec.counts)
    k = min(context.codes["test"].shape[1], len(data.components))
    return TournamentResult(
        attacks=[a for a in by_strength if a.spec.counts],
        floor=ScoredAttack(floor, *score(floor_data, floor.fitted, **measures)),
        answers_floor=None
        if answers_floor is None
        else ScoredAttack(answers_floor, *score(context.answered(data), answers_floor.fitted, **measures)),
        sweep=sorted((a for a in scored if a.spec.share < 1), key=lambda a: (a.spec.share, a.spec.name)),
        linear_code_r2=linear_code_r2(data, k),
        linear_code_face_r2=None if data.face is None else linear_code_face_r2(data, k),
        identity=identity_of(fitted, context, data, strongest) if config.identity else IdentityResult(),
        attributes=infer_attributes(data, context) if config.attributes else [],
        several_codes=several_codes(data, strongest.attack.fitted) if config.identity else [],
        learning_curves=learning_curves(curves, seed=context.seed),
        learning_excess=extended_difference(curves["code"], curves["labels"], seed=context.seed),
        rate=rate,
        bounds=bounds,
        seed=context.seed,
    )


def by_pictures(attacks: Sequence[ScoredAttack]) -> dict[int, RowErrors]:
    """Number of the attacker's pictures -> errors of the swept attack with the largest R2 on its tuning rows, for the variant on
    which attacks were swept; empty if there is none."""
    swept = [a for a in attacks if a.spec.name in SWEPT_ATTACKS]
    variants = {a.spec.variant for a in swept if a.spec.share < 1}
    best: dict[int, ScoredAttack] = {}
    for a in swept:
        known = best.get(a.attack.pictures)
        if a.spec.variant in variants and (known is None or a.attack.fitted.tune_r2 > known.attack.fitted.tune_r2):
            best[a.attack.pictures] = a
    return {pictures: a.errors for pictures, a in best.items()}


def linear_code_r2(data: AttackData, k: int) -> float:
    """R2 when each score picture is reconstructed from its own k leading principal components."""
    target = data.score.target
    leading = target.values.clone()
    leading[:, k:] = 0
    return 1 - float(target.errors(leading).double().sum() / target.mean_errors().double().sum())


def linear_code_face_r2(data: AttackData, k: int) -> float:
    """`linear_code_r2`, only on the pixels of the face region."""
    basis, start, errors, mean_errors = data.components[:, data.face], 0, 0.0, 0.0
    for _, x in data.score.pixel_blocks():
        leading = data.score.target.values[start : (start := start + len(x)), :k]
        errors += float((leading @ basis[:k] - x[:, data.face]).double().square().sum())
        mean_errors += float(x[:, data.face].double().square().sum())
    return 1 - errors / mean_errors


def identity_judge(context: EvaluationContext, data: AttackData) -> Judge | None:
    """The judge of who is on the pictures; None if identity is not measured. data: of variant `leaked`."""
    return judge_of(context.dataset, data, mean=context.pca_basis().mean) if context.config.identity else None


def identity_of(
    fitted: Sequence[FittedAttack], context: EvaluationContext, data: AttackData, strongest: ScoredAttack
) -> IdentityResult:
    """What the strongest attack, and the attacks that predict embeddings, show about who is on the pictures."""
    targets = [attack for attack in fitted if attack.spec.variant == EMBEDDING]
    attacks = {}
    if targets:
        _, mean = context.embedding_data()
        attacks = {attack.spec.name: (attack.fitted, mean) for attack in targets}
    judge = identity_judge(context, data)
    return measure_identity(data, strongest.attack.fitted, judge=judge, embedding_attacks=attacks)


def infer_attributes(data: AttackData, context: EvaluationContext) -> list[InferredAttribute]:
    """The attribute map of all labels of the data set, trained on the leaked pictures."""
    dataset, task = context.dataset, set(context.task.names)
    train = dataset.train.labels[data.fit.pixels.batch.rows]  # pyright: ignore[reportAttributeAccessIssue]
    labels = {"fit": train, "tune": dataset.val.labels, "score": dataset.test.labels}
    return attribute_map(data, labels, of=task_of(dataset, ()), task=task, late=context.late_labels)
