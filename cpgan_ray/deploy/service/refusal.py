"""A request that the service refuses: a status and a reason."""

from collections.abc import Mapping


class RefusedError(Exception):
    """The reply to a request that is refused. The reason never has the request's key, nor more than a few numbers of its body."""

    def __init__(self, status: int, reason: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})
