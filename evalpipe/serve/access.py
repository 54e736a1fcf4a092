"""Who may use a local page: the checks of token, host and origin, and the security headers, for every app served here.

A browser lets every page of the web reach loopback, and a name that is rebound to 127.0.0.1 even read from it. Browsers name
themselves in `Host`, `Origin` and `Sec-Fetch-Site`, which no page can change; programs send a Host of this machine and neither
of the others. Changes need the token besides, on loopback, too: other users and programs of the machine reach the address.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode

from markupsafe import Markup
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalpipe.collector.auth import is_loopback_name
from evalpipe.errors import EvalpipeError

SIGN_IN: Final = "/sign-in"
"""GET: the form that asks for the token; POST (`token`, `next`): a session"""
SIGN_OUT: Final = "/sign-out"
TOKEN_HEADER = "x-evalpipe-token"
"""of programs; `Authorization: Bearer` is read as well"""
SESSION_S: Final = 12 * 3600.0
MAX_FORM_BYTES: Final = 64 * 1024
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""no inline script or style, nothing from elsewhere, in nobody's frame"""
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # `no-referrer` would make a browser send `Origin: null` with the page's own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_READS = frozenset({"GET", "HEAD"})
_MAY_ACT = "evalpipe.may_act"
_MOST_SESSIONS = 1000


class FormError(EvalpipeError):
    """A form that cannot be read: too long, or not `application/x-www-form-urlencoded`."""


@dataclass(kw_only=True, slots=True)
class Sessions:
    """Who has shown the token: random ids with an end. They are kept as digests, in memory, and end with the process."""

    clock: Callable[[], float] = time.monotonic
    _ends: dict[bytes, float] = field(default_factory=dict)

    def begin(self) -> str:
        """A new session's id."""
        now = self.clock()
        self._ends = {digest: end for digest, end in self._ends.items() if end > now}
        while len(self._ends) >= _MOST_SESSIONS:
            del self._ends[next(iter(self._ends))]
        session = secrets.token_urlsafe(32)
        self._ends[_digest(session)] = now + SESSION_S
        return session

    def is_valid(self, session: str) -> bool:
        return self._ends.get(_digest(session), 0.0) > self.clock()

    def end(self, session: str) -> None:
        self._ends.pop(_digest(session), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Who may do what.

    Attributes:
        token: what changes need; None: nothing can be changed.
        is_loopback: only this machine reaches the address. Elsewhere reading needs the token, too.
        allowed_hosts: names (lower case, with or without a port) the page is asked by, other than loopback's.
        open_paths: reading these needs no token anywhere: the style and script of the sign-in page.
    """

    token: str | None
    is_loopback: bool = True
    allowed_hosts: frozenset[str] = frozenset()
    open_paths: tuple[str, ...] = ("/static/",)
    sessions: Sessions = field(default_factory=Sessions)

    def web_refusal(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused as another site's web page, in one line; None where it is not."""
        hosts = [value.strip().lower() for value in headers.getlist("host")]
        if len(hosts) != 1:
            return f"evalpipe: a request needs one Host, this one has {len(hosts)}"
        host = hosts[0]
        if (self.is_loopback or self.allowed_hosts) and not self._is_ours(host):
            return f"evalpipe: the Host {_shown(host)} is not this machine's; add it with --allow-host to be served under it"
        origins = [value.strip().lower() for value in headers.getlist("origin")]
        for origin in origins:
            if origin not in {f"http://{host}", f"https://{host}"}:
                return f"evalpipe: pages of the Origin {_shown(origin)} may not use this one"
        site = headers.get("sec-fetch-site", "none").strip().lower()
        if site in {"same-origin", "none"}:
            return None
        # A link to this page from elsewhere, opened in a tab of its own: nothing of it can be read or pressed from there.
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if method in _READS and is_link:
            return None
        return f"evalpipe: a page of another site asked (Sec-Fetch-Site: {_shown(site)})"

    def holds_token(self, headers: Headers, session: str | None) -> bool:
        """Whether a request shows the token, or a session that was begun with it."""
        if self.token is None:
            return False
        if session is not None and self.sessions.is_valid(session):
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = [headers.get(TOKEN_HEADER, ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        return any(self.is_token(value) for value in sent)

    def is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return is_loopback_name(name) or host in self.allowed_hosts or name in self.allowed_hosts


class AccessMiddleware:
    """Refuses what `Access` does not allow before the app sees it, and puts `HEADERS` on every response that lacks them.

    Requests that pass carry whether they may change something: `may_act(request)`.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # WebSocket is not supported here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope)
        await (self._app if refused is None else refused)(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        why = self._access.web_refusal(method, headers)
        if why is not None:
            return _refused(403, why)
        # A cookie goes with what other pages send, too: with it, a browser must name the page that asks.
        names_page = method in _READS or "origin" in headers or "sec-fetch-site" in headers
        scope[_MAY_ACT] = may = self._access.holds_token(headers, session_of(scope) if names_page else None)
        is_read = method in _READS
        if may or path == SIGN_IN or (is_read and path.startswith(self._access.open_paths)):
            return None
        if is_read and self._access.is_loopback:
            return None
        if self._access.token is None:
            return _refused(
                403, "evalpipe: read-only: set a token in the environment and start it again to change something"
            )
        if is_read and "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': path})}", status_code=303)
        if not names_page and self._access.holds_token(headers, session_of(scope)):
            return _refused(
                401,
                "evalpipe: the session's cookie alone changes nothing: the request lacks an Origin; send this page's own, "
                f"or the header {TOKEN_HEADER}",
            )
        return _refused(
            401, f"evalpipe: a valid token is needed: sign in at {SIGN_IN}, or send the header {TOKEN_HEADER}"
        )


def may_act(request: Request) -> bool:
    """Whether the request holds the token."""
    return bool(request.scope.get(_MAY_ACT, False))


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, the last of each name.

    Raises:
        FormError: for another content type, or more than `MAX_FORM_BYTES`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormError(f"the form's content type is {_shown(kind)}: application/x-www-form-urlencoded is expected")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise FormError(f"the form is longer than {MAX_FORM_BYTES // 1024} kB")
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=100, errors="replace"))
    except ValueError:
        raise FormError("the form's body is not url-encoded") from None


def access_routes(access: Access, *, style: str = "/static/page.css") -> list[BaseRoute]:
    """The routes of signing in and out.

    Args:
        style: path of the style sheet of the sign-in page, one of `access.open_paths`.
    """

    async def ask(request: Request) -> Response:
        return _sign_in_page(access, request.query_params.get("next", "/"), style=style)

    async def sign_in(request: Request) -> Response:
        try:
            form = await read_form(request)
        except FormError as error:
            return _refused(400, f"evalpipe: {error}")
        following = own_path(form.get("next", "/"))
        if not access.is_token(form.get("token", "")):
            return _sign_in_page(access, following, style=style, why="This is not the token.")
        response = RedirectResponse(following, status_code=303)
        response.set_cookie(
            cookie_name(request.scope),
            access.sessions.begin(),
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def sign_out(request: Request) -> Response:
        session = session_of(request.scope)
        if session is not None:
            access.sessions.end(session)
        response = RedirectResponse("/", status_code=303)
        response.delete_cookie(cookie_name(request.scope), httponly=True, samesite="strict")
        return response

    return [
        Route(SIGN_IN, ask, methods=["GET"]),
        Route(SIGN_IN, sign_in, methods=["POST"]),
        Route(SIGN_OUT, sign_out, methods=["POST"]),
    ]


def _sign_in_page(access: Access, following: str, *, style: str, why: str = "") -> Response:
    problem = Markup('<p class="problem" role="alert">{}</p>').format(why) if why else ""
    if access.token is None:
        form = Markup("<p>No token is set, so this page is read-only.</p>")
    else:
        form = _SIGN_IN_FORM.format(following=own_path(following), problem=problem)
    page = _SIGN_IN_PAGE.format(style=style, form=form)
    return HTMLResponse(str(page), status_code=403 if why else 200)


_SIGN_IN_PAGE: Final = Markup("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in · evalpipe</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{style}">
</head>
<body>
<main class="sign-in">
<h1>Sign in</h1>
{form}
<p><a href="/">Back to the page</a></p>
</main>
</body>
</html>
""")
_SIGN_IN_FORM: Final = Markup("""\
<form method="post" action="/sign-in">
{problem}
<input type="hidden" name="next" value="{following}">
<input type="text" name="username" value="evalpipe" autocomplete="username" hidden>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
</form>""")


def own_path(path: str) -> str:
    """`path` where it is a path of this app, else "/": a form must not lead to another site."""
    # Browsers leave out tabs and line ends, and read backslashes as slashes.
    is_own = path.startswith("/") and not path.startswith("//") and re.fullmatch(r"[!-\[\]-~]+", path) is not None
    return path if is_own else "/"


def session_of(scope: Scope) -> str | None:
    """The id in the session's cookie."""
    name = cookie_name(scope)
    for line in Headers(scope=scope).getlist("cookie"):
        for part in line.split(";"):
            key, mark, value = part.strip().partition("=")
            if mark and key == name:
                return value
    return None


def cookie_name(scope: Scope) -> str:
    """Cookies are shared by all ports of a host: each server has its own."""
    server = scope.get("server")
    return f"evalpipe-{server[1] if server else 0}"


_NAME = re.compile(r"[A-Za-z0-9._-]+")


def host_name(host: str) -> str:
    """The name or address of a Host value, without its port and IPv6's brackets; "" where it is neither."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or _is_port(rest)) else ""
    name, colon, port = host.partition(":")
    if (colon and not _is_port(":" + port)) or _NAME.fullmatch(name) is None:
        return ""
    return name.removesuffix(".")


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def _digest(session: str) -> bytes:
    return hashlib.sha256(session.encode()).digest()


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:80] + "…")


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status_code=status)
