"""The page: a form for each pair, which works without JavaScript; keys and nothing else come from the script. Its server.

Every answer is on disk before the next pair is sent. What is sent shows no arm, no model, no judge's verdict, and no id by which
one could be looked up.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, Final, get_args
from urllib.parse import urlencode

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.labels.store import Choice, ClosedPairError, Progress
from evalpipe.report.examples import TextView, text_view
from evalpipe.report.sanitize import escape_invisible
from evalpipe.serve.access import (
    SESSION_S,
    SIGN_IN,
    Access,
    AccessMiddleware,
    FormError,
    access_routes,
    cookie_name,
    host_name,
    may_act,
    read_form,
)
from evalpipe.text import printable
from evalpipe.workspace.collect import is_loopback
from evalpipe.workspace.label import Labelling, ShownPair, ShownSide, labeler_name

START: Final = "/start"
"""GET with the token: a session, so that the printed address is all a person needs"""
TEXT_BYTES: Final = 100_000
"""of one text on the page; a longer one is cut, and the cut is shown"""
MAX_COMMENT: Final = 2_000
_NOTES: Final = {
    "undone": "The last label is taken back.",
    "nothing": "There is nothing to take back: earlier labels are stored.",
    "skipped": "Skipped; somebody else may get it.",
    "closed": "That pair was given to somebody else meanwhile: your answer is not kept. Here is the next one.",
    "kept": "That pair is labelled already. Undo takes the last label back.",
}
_STATES: Final = {
    "empty": "This answer is empty.",
    "refused": "The model refused.",
    "truncated": "This answer was cut off at its length limit.",
}


def label_app(labelling: Labelling, access: Access) -> Starlette:
    """The page alone, with signing in."""
    app = Starlette(
        routes=[*label_routes(labelling), *_start(access), *access_routes(access, style="/static/label.css")]
    )
    app.add_middleware(AccessMiddleware, access=access)
    return app


def label_routes(labelling: Labelling, *, prefix: str = "") -> list[BaseRoute]:
    """The routes of the page.

    Args:
        labelling: one experiment's.
        prefix: the page's path without the last slash, where it is a part of another app.
    """

    async def page(request: Request) -> Response:
        if not may_act(request):
            return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': prefix + '/'})}", status_code=303)
        asked = request.query_params.get("as", "")
        if not asked.strip():
            return await _name_page(labelling, prefix)
        try:
            labeler = labeler_name(asked)
        except ConfigError as error:
            return await _name_page(labelling, prefix, problem=str(error), status=400)
        pair, progress, can_undo = await run_in_threadpool(labelling.next_pair, labeler)
        return _pair_page(
            pair,
            progress,
            labeler,
            prefix=prefix,
            can_undo=can_undo,
            note=_NOTES.get(request.query_params.get("note", ""), ""),
        )

    async def answer(request: Request) -> Response:
        if not may_act(request):
            return _refused(403, "a session is needed: open the page by the address that was printed")
        try:
            form = await read_form(request)
            labeler = labeler_name(form.get("as", ""))
            note = await run_in_threadpool(_take, labelling, labeler, form)
        except (FormError, ConfigError) as error:
            return _refused(400, str(error))
        except ClosedPairError as error:
            note = "kept" if "already" in str(error) else "closed"
        except EvalpipeError as error:  # a full disk: the label is not kept, and the person must see it
            return _refused(507, f"{error}; your last answer was not kept")
        query = {"as": labeler, **({"note": note} if note else {})}
        return RedirectResponse(f"{prefix}/?{urlencode(query)}", status_code=303)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        kinds = {"label.css": "text/css", "label.js": "text/javascript"}
        if name not in kinds:
            return _refused(404, "no such file")
        return Response(_source(f"static/{name}"), media_type=kinds[name])

    return [
        Route(f"{prefix}/", page, methods=["GET"]),
        Route(f"{prefix}/answer", answer, methods=["POST"]),
        Route(f"{prefix}/static/{{name}}", static, methods=["GET"]),
    ]


def _start(access: Access) -> list[BaseRoute]:
    async def start(request: Request) -> Response:
        if not access.is_token(request.query_params.get("token", "")):
            return RedirectResponse(SIGN_IN, status_code=303)
        labeler = request.query_params.get("as", "")
        response = RedirectResponse(f"/?{urlencode({'as': labeler})}" if labeler else "/", status_code=303)
        response.set_cookie(
            cookie_name(request.scope),
            access.sessions.begin(),
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    return [Route(START, start, methods=["GET"])]


def _take(labelling: Labelling, labeler: str, form: dict[str, str]) -> str:
    """Do what a form asks for; the note for the next page, "" for none. Raises FormError and ClosedPairError."""
    choice, token = form.get("choice", ""), form.get("pair", "")
    if choice == "undo":
        return "undone" if labelling.undo(labeler) else "nothing"
    if choice == "skip":
        labelling.skip(labeler, token)
        return "skipped"
    for one in get_args(Choice):
        if choice == one:
            comment = form.get("comment", "").strip()
            if len(comment) > MAX_COMMENT:
                raise FormError(
                    f"the comment has {len(comment):,} characters, at most {MAX_COMMENT:,} are kept: shorten it"
                )
            scores = _score(form.get("score_1", "")), _score(form.get("score_2", ""))
            labelling.label(labeler, token, one, comment=comment, scores=scores)
            return ""
    raise FormError(f"choice = {printable(choice)[:40]!r}: 1, 2, 0, skip or undo is expected")


def _score(text: str) -> float | None:
    if not text:
        return None
    if text not in {"1", "2", "3", "4", "5"}:
        raise FormError(f"a score of {printable(text)[:40]!r}: 1 to 5 is expected, or none")
    return float(text)


async def _name_page(labelling: Labelling, prefix: str, *, problem: str = "", status: int = 200) -> Response:
    names = await run_in_threadpool(labelling.labelers)
    return _page("name.html.j2", status=status, title="Who labels?", prefix=prefix, names=names, problem=problem)


def _pair_page(
    pair: ShownPair | None, progress: Progress, labeler: str, *, prefix: str, can_undo: bool, note: str
) -> Response:
    n_all = progress.n_labelled + progress.n_skipped + progress.n_left
    n_done = progress.n_labelled + progress.n_skipped
    values: dict[str, Any] = {
        "prefix": prefix,
        "labeler": labeler,
        "progress": progress,
        "n_done": n_done,
        "n_all": n_all,
        "time_left": _time_left(progress.seconds_left),
        "can_undo": can_undo,
        "note": note,
    }
    if pair is None:
        return _page("done.html.j2", title="Done", **values)
    turns = [(turn.get("role") or "message", _text(turn.get("content") or "")) for turn in pair.turns]
    last = max((n for n, (role, _) in enumerate(turns) if role == "user"), default=len(turns) - 1)
    return _page(
        "pair.html.j2",
        title=f"Which answer is better? {n_done + 1} of {n_all}",
        pair=pair,
        earlier=[*turns[:last], *turns[last + 1 :]],
        question=turns[last] if turns else None,
        sides=[_side(pair.first), _side(pair.second)],
        max_comment=MAX_COMMENT,
        **values,
    )


def _side(side: ShownSide) -> dict[str, TextView | str | None]:
    return {
        "text": _text(side.text, n_cut=side.n_cut) if side.text else None,
        "tool_calls": _text(_pretty(side.tool_calls)) if side.tool_calls else None,
        "state": _STATES.get(side.state or ""),
    }


def _text(text: str, *, n_cut: int = 0) -> TextView:
    return text_view(text, TEXT_BYTES, n_cut=n_cut)


def _pretty(tool_calls: str) -> str:
    """Name and arguments of each call; ids differ between vendors, and would reveal the arms."""
    try:
        calls = json.loads(tool_calls)
    except (ValueError, RecursionError):
        return tool_calls
    if not isinstance(calls, list):
        return tool_calls
    shown = [
        {key: value for key, value in call.items() if key != "id"} if isinstance(call, dict) else call for call in calls
    ]
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(f"evalpipe: {printable(why)}\n", status_code=status)


def _page(template: str, *, status: int = 200, **values: Any) -> Response:
    return HTMLResponse(_environment().get_template(template).render(**values), status_code=status)


def _source(name: str) -> str:
    return resources.files("evalpipe.serve.labelling").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _source(f"templates/{name}")),
        autoescape=True,
        # The one way onto the page: whatever text is put in, wherever it comes from, shows what it hides.
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# --- the server


DEFAULT_PORT = 8420
_NAME = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_ENDS_S = 3
_KEPT_S = 120
"""a person reads for longer than a browser's connection usually waits"""


def serve_labelling(
    labelling: Labelling,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    token_env: str = "EVALPIPE_TOKEN",
    allow_hosts: Sequence[str] = (),
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        labelling: whose pairs are asked; the caller closes it.
        host: to listen on.
        port: 0: any free one.
        token: that opens the page; None: one is made up, which other machines may not be given.
        token_env: the variable that holds it, for messages.
        allow_hosts: names, other than loopback's, that the page is asked by.
        announce: gets the page's address.

    Raises:
        ConfigError: where the address cannot be had, or other machines could reach it without a token of the user's own.
    """
    loopback = is_loopback(host)
    if token is None and not loopback:
        raise ConfigError(f"--host {host!r} is reachable from other machines: set a token in ${token_env}")
    allowed = frozenset(name.lower() for name in allow_hosts)
    for name in allowed:
        if not _NAME.fullmatch(host_name(name)):
            raise ConfigError(f"--allow-host {name!r} is no host name such as 'box.internal' or 'box.internal:8420'")
    own = token or secrets.token_urlsafe(18)
    app = label_app(labelling, Access(token=own, is_loopback=loopback, allowed_hosts=allowed))
    with _listen(host, port) as listening:
        number = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        # A token of the user's own is a secret: it is asked for on the page and never printed.
        path = f"{START}?token={own}" if token is None else "/"
        announce(f"http://{shown}:{number}{path}")
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_keep_alive=_KEPT_S,
            timeout_graceful_shutdown=_ENDS_S,
        )
        asyncio.run(_Server(config).serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """Its end by a signal is no error: what people labelled is stored afterwards."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host!r}: no such address: {error.strerror or error}") from error
    listening = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with --port"
        ) from error
    return listening
