"""Answers of actors: what is behind Ray's references, or who is lost, without Ray's wrapping."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError, RayTaskError

from cpgan_ray.common.types import Release
from cpgan_ray.errors import LostError

INLINE_BYTES = 90_000
"""Ray sends arguments below 100 KB inside the call; a larger release goes to the object store once, for all adversaries."""

LOSSES = (RayActorError, ObjectLostError, OwnerDiedError)
"""What Ray raises where a process, a node or an object is gone."""


def share(release: Release) -> Any:
    """The release itself where it is small, else one reference to it."""
    return release if release.z.nbytes + release.batch.rows.nbytes < INLINE_BYTES else ray.put(release)


def gather(references: Sequence[Any], *, deadline_s: float) -> list[Any]:
    """The answers behind references, in one call.

    Raises: LostError where one takes longer than the deadline, or its actor, node or object is gone; what the actor raised,
    without Ray's wrapping.
    """
    try:
        return ray.get(list(references), timeout=deadline_s)
    except GetTimeoutError as e:
        raise LostError(f"an actor did not answer within {deadline_s:g} s (runtime.reply_timeout_s)") from e
    except RayTaskError as e:
        raise e.cause from e
    except LOSSES as e:
        raise LostError(one_line(e)) from e


def get_result(started: Any, *, deadline_s: float | None = None) -> Any:
    """What is behind a reference; errors come without Ray's wrapping.

    Raises: LostError where the actor is gone, or has not answered by the deadline.
    """
    try:
        return ray.get(started, timeout=deadline_s)
    except RayTaskError as e:
        raise e.cause from e
    except (GetTimeoutError, *LOSSES) as e:
        raise LostError(one_line(e)) from e


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
