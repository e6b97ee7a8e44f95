"""The bundles that a replica answers for: found by the digest in a message."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.deploy.answers import probabilities
from cpgan_ray.deploy.bundle import HEAD, Bundle
from cpgan_ray.deploy.service.refusal import RefusedError
from cpgan_ray.deploy.sessions import open_session
from cpgan_ray.errors import InputError

START_DIGITS = 8
"""Hexadecimal digits of a bundle's digest in the header of a message."""


@dataclass(frozen=True, eq=False)
class ServedBundle:
    """A bundle with its utility head, ready to run."""

    bundle: Bundle
    session: onnxruntime.InferenceSession
    until: float | None = None
    """Unix time at which a replaced bundle ends; None for a present one."""

    def logits(self, z: np.ndarray) -> np.ndarray:
        """The logits (B, L) of codes z (B, k) float32."""
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: z})
        return np.asarray(logits)

    def answers(self, z: np.ndarray) -> bytes:
        """The reply to codes z (B, k) float32, as JSON."""
        values = probabilities(self.logits(z), self.bundle.manifest.labels)
        return json.dumps({"answers": values}, allow_nan=False, separators=(",", ":")).encode()


def served(bundle: Bundle, *, until: float | None = None) -> ServedBundle:
    """Open the utility head of a bundle, and answer two codes with it.

    Raises: InputError if the head cannot be loaded, or does not give numbers for any code.
    """
    ready = ServedBundle(bundle, open_session(bundle, HEAD), until)
    codec = bundle.codec
    z = np.zeros((2, codec.k), np.float32)
    if isinstance(codec, LevelCodec):
        z[:] = codec.codes(np.repeat([[codec.lowest], [codec.highest]], codec.k, axis=1))
    try:
        ready.answers(z)
    except Exception as e:  # onnxruntime raises many types for a model that does not run
        raise InputError(
            f"bundle {bundle.path}: its utility head gives no answer ({type(e).__name__}): get it from its author again"
        ) from e
    return ready


class Catalogue:
    """All bundles that are answered for. It never changes: a reload makes another one."""

    def __init__(self, bundles: Sequence[ServedBundle], *, clock: Callable[[], float] = time.time) -> None:
        """bundles: the present ones, the first of them being the newest; then replaced ones.

        Raises: InputError if there is none, or two have the same first digits, by which a message names its bundle.
        """
        if not bundles or bundles[0].until is not None:
            raise InputError("there is no bundle to answer for: give a folder or a zip archive that jobs/export.py has written")
        self.newest, self._clock = bundles[0], clock
        self._by_start: dict[str, ServedBundle] = {}
        for one in bundles:
            start = one.bundle.digest[:START_DIGITS]
            if (other := self._by_start.setdefault(start, one)) is not one and other.bundle.digest != one.bundle.digest:
                raise InputError(
                    f"bundles {other.bundle.path} and {one.bundle.path} both have a digest that begins with {start}: serve only one"
                )

    def present(self) -> list[ServedBundle]:
        """Those that are answered for now."""
        now = self._clock()
        return [one for one in self._by_start.values() if one.until is None or now < one.until]

    def find(self, digest: str) -> ServedBundle:
        """The bundle whose digest begins with at least 8 hexadecimal digits.

        Raises: RefusedError with the status 422 if none has it.
        """
        one = self._by_start.get(digest[:START_DIGITS])
        if one is None or not one.bundle.digest.startswith(digest) or (one.until is not None and self._clock() >= one.until):
            names = " and ".join(f"{other.bundle.digest[:START_DIGITS]}..." for other in self.present())
            raise RefusedError(422, f"made with bundle {digest[:START_DIGITS]}...; this service has bundle {names}")
        return one
