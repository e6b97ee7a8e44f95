"""What the codes of the score set show about who is on the pictures: linkage and identification."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Metrics
from cpgan_ray.data.discriminant import FisherDiscriminant
from cpgan_ray.evaluation.attacks.base import AttackData, CodeMap, Fitted, predict, to_pixels
from cpgan_ray.evaluation.identity.embedding_target import predicted_embeddings, some
from cpgan_ray.evaluation.identity.identification import Identification, identification
from cpgan_ray.evaluation.identity.judges import FaceJudge, Judge
from cpgan_ray.evaluation.linkage import Linkage, linkage

PICTURES, MEAN = "picture and picture", "mean picture and picture"
"""Comparisons that do not depend on the code: the best that the judge can do, and chance."""
EMBEDDING = "embedding by "
"""How the names of the comparisons with predicted embeddings begin."""
MAX_JUDGED = 5000
"""Largest number of score pictures that a face recogniser judges."""


@dataclass(frozen=True)
class IdentityResult:
    """Linkage and identification by what is compared. Empty if the people are not known, or too few have two pictures."""

    judge: str | None = None  # its name
    linkage: Mapping[str, Linkage] = field(default_factory=dict)
    identification: Mapping[str, Identification] = field(default_factory=dict)

    @property
    def of_codes(self) -> dict[str, Linkage]:
        """The linkage that the codes permit: all comparisons but those of pictures and of the mean picture."""
        return {name: value for name, value in self.linkage.items() if name not in (PICTURES, MEAN)}

    def metrics(self) -> Metrics:
        """The metrics that a run logs; none if nothing was measured."""
        values: Metrics = {}
        seen = {name: link.auc for name, link in self.of_codes.items()}
        if embedding := [auc for name, auc in seen.items() if name.startswith(EMBEDDING)]:
            values["privacy/embedding_auc"] = max(embedding)
        if other := [auc for name, auc in seen.items() if not name.startswith(EMBEDDING)]:
            values["privacy/linkage_auc"] = max(other)
        if self.linkage and (strongest := strongest_linkage({name: asdict(link) for name, link in self.linkage.items()})):
            values |= {f"privacy/strongest_{name}": value for name, value in strongest.items() if value is not None}
        if ranks := [rank for name, rank in self.identification.items() if name not in (PICTURES, MEAN)]:
            values["privacy/identification_rank"] = min(rank.mean_rank for rank in ranks) / ranks[0].candidates
            values["privacy/identification_top_1"] = max(rank.top_1 for rank in ranks)
        return values

    def as_json(self) -> dict[str, Any]:
        """The entry `identification` of the report."""
        ranks = {name: asdict(value) for name, value in self.identification.items()}
        return {"judge": self.judge, "ranks": ranks}


def strongest_linkage(links: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Of the comparisons that the codes permit, the one that links people best: its `linkage_auc` with the ends of the 95 %
    interval, and its `linkage_tar`, the rate of true accepts at 1 % false ones. All None if nothing was measured.

    links: `identity_linkage` of a report.
    """
    best = max((link for name, link in links.items() if name not in (PICTURES, MEAN)), key=lambda link: link["auc"], default={})
    fields = {"linkage_auc": "auc", "linkage_auc_low": "low", "linkage_auc_high": "high", "linkage_tar": "tar_at_1_far"}
    return {name: best.get(field) for name, field in fields.items()}


def measure_identity(
    data: AttackData, strongest: Fitted, *, judge: Judge | None, embedding_attacks: Mapping[str, tuple[Fitted, Tensor]]
) -> IdentityResult:
    """Compare pictures of the score set with each other, with the reconstructions of the strongest attack, and with the embeddings
    that the embedding-target attacks predict; reconstructions with each other; and codes with each other, by Fisher's discriminant
    on codes.

    data: of variant `leaked`; embedding_attacks: by name, each with the mean embedding that it is relative to.
    """
    if judge is None:
        return IdentityResult()
    score = data.score
    if isinstance(judge, FaceJudge) and len(score) > MAX_JUDGED:
        score = some(score, np.sort(stream(data.seed, "judged").choice(len(score), MAX_JUDGED, replace=False)))
    rows, shape = score.pixel_rows, (score.target.dimension,)
    picture = judge.of_pictures(score)
    reconstruction = judge.of_reconstructions(lambda z: to_pixels(data, strongest, z), score.z, rows=rows)
    mean = judge.of_reconstructions(lambda z: torch.zeros(len(z), *shape, device=z.device), score.z[:1], rows=1)
    mean = np.repeat(mean, len(score), axis=0)
    predicted = {
        f"{EMBEDDING}{name} and picture": predicted_embeddings(fitted, score.z, origin)
        for name, (fitted, origin) in embedding_attacks.items()
    }
    compared = {
        PICTURES: (picture, picture),
        "reconstruction and picture": (reconstruction, picture),
        "reconstruction and reconstruction": (reconstruction, reconstruction),
        **{name: (embedding, picture) for name, embedding in predicted.items()},
        MEAN: (mean, picture),
    }
    if (code := code_embeddings(data, score.z)) is not None:
        compared["code and code"] = (code, code)
    links = {name: linkage(*pair, score.identity, seed=data.seed) for name, pair in compared.items()}
    probes = {PICTURES: picture, "reconstruction and picture": reconstruction, **predicted, MEAN: mean}
    ranks = {name: identification(probe, picture, score.identity, seed=data.seed) for name, probe in probes.items()}
    return IdentityResult(judge.name, {name: link for name, link in links.items() if link is not None}, ranks)


def code_embeddings(data: AttackData, z: Tensor) -> np.ndarray | None:
    """Unit vectors (N, q) of codes z (N, k) by Fisher's discriminant on codes; None if there is nothing to fit it on."""
    plain = slice(0, len(data.fit) // data.views)  # followed by the other views of the same pictures
    standardise = CodeMap(data.fit.z, how="standardised")  # because the discriminant's shrinkage depends on the scales
    try:
        by_code = FisherDiscriminant(predict(standardise, data.fit.z[plain]).cpu().numpy(), data.fit.identity[plain])
    except ValueError:
        return None
    return by_code.embed(standardise(z).cpu().numpy())
