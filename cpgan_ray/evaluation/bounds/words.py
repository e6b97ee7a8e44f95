"""The bounds in plain words, for the card: what is guaranteed, to whom, and under which assumption."""

from cpgan_ray.evaluation.bounds.measure import NO_BUDGET, Bounds
from cpgan_ray.evaluation.rate import CodeRate

ASSUMED = (
    "These bounds hold for pictures like those of the test split, for one code of each picture, and as long as the client computes "
    "the code as it does here. Their intervals are 95 % intervals."
)


def gallery_words(bounds: Bounds) -> str:
    """What the gallery bound guarantees, or why there is none."""
    if (best := bounds.tightest) is None:
        return str(bounds.no_gallery)
    return (
        f"Guaranteed against any attacker, with any method, any amount of computing and any other pictures to learn from: a "
        f"picture cannot be reconstructed better than R2 {best.r2:.3f} on average ({best.low:.3f} to {best.high:.3f}). The proof "
        f"lets the attacker know even that the picture is one of {best.n} pictures which it has; it then picks the right one in at "
        f"most {100 * best.identification:.1f} % of the cases ({100 * best.identification_low:.1f} to "
        f"{100 * best.identification_high:.1f} %)."
    )


def budget_words(bounds: Bounds) -> str:
    """What the bit budget guarantees, or why it guarantees nothing."""
    if bounds.information is None:
        return NO_BUDGET
    learned = (
        f"On average the code carries at most {bounds.information:.1f} bits about the picture; this follows from "
        f"{bounds.information_from}."
    )
    found = [p for p in (bounds.success, bounds.leakage_success) if p is not None]
    if not found:
        return (
            f"{learned} That is too much for a guarantee about who is found: among {bounds.candidates:,} pictures an attacker "
            "could in principle find the right one."
        )
    return (
        f"{learned} Therefore any attacker that must find the right picture among {bounds.candidates:,} equally likely ones "
        f"succeeds in at most {100 * min(found):.2g} % of the cases."
    )


def rate_words(rate: CodeRate) -> str:
    """The bits on the wire."""
    if rate.bits is None:
        return f"Not coded: {rate.not_coded}. A code takes {rate.raw:,.0f} bits as it is."
    return (
        f"A code takes {rate.bits:,.1f} bits on the wire ({rate.low:,.1f} to {rate.high:,.1f}), coded by a table made from "
        f"training pictures beforehand; {rate.raw:,.0f} bits without coding."
    )


def all_words(bounds: Bounds, rate: CodeRate) -> dict[str, str]:
    """All sentences by name: `rate`, `gallery`, `budget`, and `assumed` if there is a bound."""
    words = {
        "rate": rate_words(rate),
        "gallery": gallery_words(bounds),
        "budget": budget_words(bounds),
    }
    return words | ({"assumed": ASSUMED} if bounds.gallery or bounds.information is not None else {})
