"""Who may use the collector: holders of the client token, else programs but no web pages; request ids as proof.

Without a token all who reach the address are served, with the provider key the collector holds. A browser lets every page
of the web reach loopback: a simple cross-site request (a form, an image, a fetch without CORS, a WebSocket's handshake) is
sent before anything is asked, and a page whose name is rebound to 127.0.0.1 even reads the answers. Browsers say so in
`Origin`, `Sec-Fetch-Site` and `Host`, which no page can change; programs send a Host of this machine and neither of the others.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import binascii
import hmac
import ipaddress
import os
import re
from base64 import b64decode
from collections.abc import Sequence
from hashlib import blake2s
from typing import Final

from evalpipe.collector.settings import CollectorSettings
from evalpipe.http1.headers import HOST, OWN_ROUTES, Line

_OPEN_ROUTES = (b"/_evalpipe/health", b"/_evalpipe/ready")
"""load balancers and kubelets hold no token"""
_ICON = b"/favicon.ico"
"""browsers ask for it by themselves, as the page's own, also where the page was a refusal"""


class TokenAuth:
    """The token is sent as `x-evalpipe-token`.

    Where no provider key is needed, the key headers of other programs hold it as well: on the collector's own routes
    (Prometheus sends `Authorization: Bearer`; Flagger's webhooks only what is in their URL, `http://any:TOKEN@…`, which
    goes out as `Basic`), and on all routes where the collector holds control's key (`api_key=` of an SDK).
    """

    def __init__(self, settings: CollectorSettings) -> None:
        token = settings.client_token
        self._token = None if token is None else token.value.encode()
        self._holds_key = settings.control.api_key is not None
        self._allowed_hosts = frozenset(settings.allowed_hosts)
        self._allowed_origins = frozenset(settings.allowed_origins)
        self._checks_host = settings.is_loopback or bool(settings.allowed_hosts)
        """Elsewhere (`--insecure`) the collector has names nobody listed."""

    def refusal(self, target: bytes, lines: Sequence[Line], authority: bytes = b"") -> tuple[int, str] | None:
        """(status, message) where the request must not pass.

        Args:
            target: path and query.
            lines: the header lines.
            authority: host and port of an absolute request target, which goes before the Host line (RFC 9112 3.2.2).
        """
        if self._token is None:
            return self._web_refusal(target, lines, authority)
        if target.partition(b"?")[0] in _OPEN_ROUTES:
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

    def _web_refusal(self, target: bytes, lines: Sequence[Line], authority: bytes) -> tuple[int, str] | None:
        """Where there is no token: what another site's web page sends is refused."""
        hosts = [authority] if authority else []
        origins: list[bytes] = []
        sites: list[bytes] = []
        for line in lines:
            if line.role & HOST:
                hosts.append(line.value)
            elif line.name == b"origin":
                origins.append(line.value)
            elif line.name == b"sec-fetch-site":
                sites.append(line.value)
        if self._checks_host:
            for value in hosts:
                if not self._is_ours(_text(value)):
                    return 403, (
                        f"evalpipe: the Host {_shown(value)} is not this machine's; without a client token only loopback "
                        "names and [collector] allowed_hosts are served"
                    )
        for value in origins:
            if not self._may_ask(_text(value), hosts):
                return 403, (
                    f"evalpipe: web pages of the Origin {_shown(value)} may not use the collector; without a client token "
                    "only loopback origins and [collector] allowed_origins are served"
                )
        if origins:  # a page of this machine, or an allowed one: to a browser it is cross-site all the same
            return None
        is_local = all(is_loopback_name(_name(_text(value))) for value in hosts)
        if sites and target == _ICON:
            return 403, "evalpipe: without a client token no icon is asked of the provider for a browser"
        for value in sites:
            site = _text(value)
            if site != "same-origin" and site != "none" and not (site == "same-site" and is_local):
                return 403, (
                    f"evalpipe: a web page asked (Sec-Fetch-Site: {_shown(value)}); without a client token only pages that "
                    "name an Origin on this machine or in [collector] allowed_origins are served"
                )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        return is_loopback_name(name) or host in self._allowed_hosts or name in self._allowed_hosts

    def _may_ask(self, origin: str, hosts: Sequence[bytes]) -> bool:
        if origin in self._allowed_origins:
            return True
        scheme, separator, host = origin.partition("://")
        if not separator or "/" in host or "@" in host:  # "null" is any page that hides where it is from
            return False
        if is_loopback_name(_name(host)):
            return True
        # A page the collector itself serves under an allowed name (a documentation page of the provider's server).
        return self._checks_host and scheme in {"http", "https"} and [host] == [_text(value) for value in hosts]


def is_loopback_name(name: str) -> bool:
    """Whether a host name or address (without a port, IPv6 without brackets) can only mean this machine.

    Names below "localhost" are resolved to loopback by browsers and asked of no name server (RFC 6761 6.3). 0.0.0.0 is not
    among them: browsers reach this machine with it, too, and send no header about the page then.
    """
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _text(value: bytes) -> str:
    return str(value, "latin-1").strip().lower()


def _shown(value: bytes) -> str:
    text = str(value, "latin-1")
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _name(host: str) -> str:
    """The name or address of `host`, which may end with a port; "" where it is neither."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or _is_port(rest)) else ""
    name, colon, port = host.partition(":")
    if colon and not _is_port(":" + port):
        return ""
    return name.removesuffix(".")


def _is_port(text: str) -> bool:
    return text.startswith(":") and (text == ":" or (text[1:].isascii() and text[1:].isdigit()))


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


# Request ids that show that they were issued: an id is the right to rate an answer, and no list of them is kept.
#
# An id is the time (12 hex digits of milliseconds), chance (7 letters and digits), its number among the ids of that time and
# chance (0 to 4), a check part (12 hex digits) and the arm's letter. The check part is keyed by what all collectors of an
# experiment share, the key of unit ids, so that each of them verifies the ids of the others. Under load five ids share time
# and chance: one digest has the check parts of all five.


_N_RANDOM: Final = 7
_N_GROUP: Final = 12 + _N_RANDOM
_N_BASE: Final = _N_GROUP + 1
_N_CHECK_BYTES: Final = 6
_IDS_PER_GROUP: Final = 5
_N_CHECK: Final = 2 * _N_CHECK_BYTES
_OLD: Final = re.compile(r"[0-9a-f]{32}[ct]")
_ISSUED: Final = re.compile(r"[0-9a-f]{12}[0-9A-Za-z]{7}[0-4][0-9a-f]{12}[ct]")
_DIGITS: Final = "01234"
_ZERO: Final = ord("0")
_SIGNS: Final = (b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" * 5)[:256]


def random_signs(n: int) -> str:
    """`n` random letters and digits, nearly six bits each."""
    return str(os.urandom(n).translate(_SIGNS), "ascii")


class RequestIds:
    """The ids of one experiment.

    Args:
        key: shared by the experiment's collectors (EVALPIPE_UNIT_KEY, or the file beside the data).
        experiment: its name; another experiment's ids are not issued by this one.
    """

    def __init__(self, key: bytes, experiment: str) -> None:
        own = hmac.digest(key, b"evalpipe request id\0" + experiment.encode(), "sha256")
        self._keyed = blake2s(key=own, digest_size=_N_CHECK_BYTES * _IDS_PER_GROUP)
        self._ms = 0
        self._group = ""
        self._n_issued = _IDS_PER_GROUP
        self._random = ""
        self._n_random_used = 0
        self._checked = ""
        self._checks = ""

    def base(self, now: float) -> str:
        """The part of an id that is there before its arm is chosen. Sorts by time (`now`: seconds), and is no other's."""
        ms = int(now * 1000)
        number = self._n_issued
        if ms != self._ms or number == _IDS_PER_GROUP:
            at = self._n_random_used
            if at == len(self._random):
                self._random, at = random_signs(_N_RANDOM * 64), 0  # asked of the system for many at a time
            self._n_random_used = at + _N_RANDOM
            self._ms, self._group, number = ms, f"{ms:012x}" + self._random[at : at + _N_RANDOM], 0
        self._n_issued = number + 1
        return self._group + _DIGITS[number]

    def seal(self, base: str, letter: str) -> str:
        """The id of an exchange: `base`, its check part, the letter of the arm that serves."""
        return base + self._check(base, letter) + letter

    def refusal(self, request_id: str) -> str | None:
        """Why an id cannot be rated, in words; None for one that was issued."""
        if _ISSUED.fullmatch(request_id):
            base, check, letter = request_id[:_N_BASE], request_id[_N_BASE:-1], request_id[-1]
            if hmac.compare_digest(check, self._check(base, letter)):
                return None
        if _OLD.fullmatch(request_id):
            return "is of an earlier version of evalpipe: its answers can no longer be rated"
        return "was not issued by this experiment's collectors (collectors that share an experiment share EVALPIPE_UNIT_KEY)"

    def _check(self, base: str, letter: str) -> str:
        group = base[:_N_GROUP] + letter
        if group != self._checked:
            keyed = self._keyed.copy()
            keyed.update(group.encode("ascii"))
            self._checked, self._checks = group, keyed.hexdigest()
        at = _N_CHECK * (ord(base[_N_GROUP]) - _ZERO)
        return self._checks[at : at + _N_CHECK]
