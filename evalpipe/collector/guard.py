"""Who may use the collector: a client token, compared in constant time."""

from __future__ import annotations

import hmac

from evalpipe.collector.heads import Line
from evalpipe.collector.settings import CollectorSettings

_OPEN_ROUTES = (b"/_evalpipe/health", b"/_evalpipe/ready")
"""load balancers and kubelets hold no token"""


class Guard:
    """The token is sent as `x-evalpipe-token`; where the collector holds the arm's key, also in the SDK's own key header
    (`api_key=` of the client), since no provider key is needed there."""

    def __init__(self, settings: CollectorSettings) -> None:
        token = settings.client_token
        self._token = None if token is None else token.value.encode()
        self._in_key_headers = settings.control.api_key is not None

    def refusal(self, target: bytes, lines: list[Line]) -> tuple[int, str] | None:
        """(status, message) where the request must not pass."""
        if self._token is None or target.partition(b"?")[0] in _OPEN_ROUTES:
            return None
        allowed = False
        for name, value, _ in lines:
            if name == b"x-evalpipe-token" or (self._in_key_headers and name == b"x-api-key"):
                allowed |= hmac.compare_digest(value, self._token)
            elif self._in_key_headers and name == b"authorization" and value[:7].lower() == b"bearer ":
                allowed |= hmac.compare_digest(value[7:], self._token)
        return None if allowed else (401, "evalpipe: a valid client token is needed (header x-evalpipe-token)")
