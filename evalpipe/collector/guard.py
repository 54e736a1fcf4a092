"""Who may use the collector: a client token, compared in constant time."""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from collections.abc import Sequence

from evalpipe.collector.heads import OWN_ROUTES, Line
from evalpipe.collector.settings import CollectorSettings

_OPEN_ROUTES = (b"/_evalpipe/health", b"/_evalpipe/ready")
"""load balancers and kubelets hold no token"""


class Guard:
    """The token is sent as `x-evalpipe-token`.

    Where no provider key is needed, the key headers of other programs hold it as well: on the collector's own routes
    (Prometheus sends `Authorization: Bearer`; Flagger's webhooks only what stands in their URL, `http://any:TOKEN@…`, which
    goes out as `Basic`), and on all routes where the collector holds control's key (`api_key=` of an SDK).
    """

    def __init__(self, settings: CollectorSettings) -> None:
        token = settings.client_token
        self._token = None if token is None else token.value.encode()
        self._holds_key = settings.control.api_key is not None
        self.is_on = token is not None

    def refusal(self, target: bytes, lines: Sequence[Line]) -> tuple[int, str] | None:
        """(status, message) where the request must not pass."""
        if self._token is None or target.partition(b"?")[0] in _OPEN_ROUTES:
            return None
        in_key_headers = self._holds_key or target.startswith(OWN_ROUTES)
        allowed = False
        for line in lines:
            name, value = line.name, line.value
            if name == b"x-evalpipe-token" or (in_key_headers and name == b"x-api-key"):
                allowed |= hmac.compare_digest(value, self._token)
            elif in_key_headers and name == b"authorization":
                allowed |= hmac.compare_digest(_credentials(value), self._token)
        return None if allowed else (401, "evalpipe: a valid client token is needed (header x-evalpipe-token)")


def _credentials(value: bytes) -> bytes:
    """The secret in an Authorization header; empty where there is none to be read."""
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest
    if scheme.lower() != b"basic":
        return b""
    try:
        return b64decode(rest, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
