"""Results of calls of actors: values of Ray's references, and errors without Ray's wrapping."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, OwnerDiedError, RayActorError, RayTaskError

from cpgan_ray.common.types import Release
from cpgan_ray.errors import LostError

INLINE_BYTES = 90_000
"""Ray sends arguments below 100 KB inside the call; a larger release goes to the object store once, for all adversaries."""

LOSSES = (RayActorError, ObjectLostError, OwnerDiedError)
"""Errors of Ray if a process, a node or an object is lost."""


def share(release: Release) -> Any:
    """The release itself if it is small, otherwise one reference to it."""
    return release if release.z.nbytes + release.batch.rows.nbytes < INLINE_BYTES else ray.put(release)


def gather(references: Sequence[Any], *, deadline_s: float) -> list[Any]:
    """The values of references, in one call.

    Raises: LostError if one takes longer than the deadline, or if its actor, node or object is lost; the actor's own error without
    Ray's wrapping.
    """
    try:
        return ray.get(list(references), timeout=deadline_s)
    except GetTimeoutError as e:
        raise LostError(f"an actor did not respond within {deadline_s:g} s (runtime.reply_timeout_s)") from e
    except RayTaskError as e:
        raise e.cause from e
    except LOSSES as e:
        raise LostError(one_line(e)) from e


def get_result(reference: Any, *, deadline_s: float | None = None) -> Any:
    """The value of a reference.

    Raises: LostError if the actor is lost or has not responded by the deadline; the actor's own error without Ray's wrapping.
    """
    try:
        return ray.get(reference, timeout=deadline_s)
    except RayTaskError as e:
        raise e.cause from e
    except (GetTimeoutError, *LOSSES) as e:
        raise LostError(one_line(e)) from e


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
