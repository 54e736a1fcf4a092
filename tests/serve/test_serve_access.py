"""Who may use a served page: other sites' pages never, changes only with the token, reading elsewhere only with it, too."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from serve_harness import TOKEN, Served, serving
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from evalpipe.serve.access import (
    SESSION_S,
    Access,
    AccessMiddleware,
    FormError,
    Sessions,
    access_routes,
    may_act,
    own_path,
    read_form,
)


def small_app(access: Access) -> Starlette:
    """A page that reports whether it may be changed, and a form that returns what was sent."""

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"may act: {may_act(request)}")

    async def change(request: Request) -> Response:
        try:
            return PlainTextResponse(repr(await read_form(request)))
        except FormError as error:
            return PlainTextResponse(str(error), status_code=400)

    routes = [Route("/", page), Route("/change", change, methods=["POST"]), *access_routes(access)]
    return Starlette(routes=routes, middleware=[Middleware(AccessMiddleware, access=access)])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(small_app(Access(token=TOKEN))) as one:
        yield one


FOREIGN_HOSTS = [
    "attacker.example",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example:80",
    "0.0.0.0:80",
    "127.0.0.1:80:80",
    "",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_rebound_to_this_machine_is_refused(served: Served, host: str, method: str) -> None:
    found = served.ask("/", method=method, host=host, headers=[("x-evalpipe-token", TOKEN)])
    assert found.status in {400, 403}  # without a Host uvicorn itself refuses
    assert "may act" not in found.text


@pytest.mark.parametrize("host", ["localhost", "LocalHost.:80", "127.0.0.1", "[::1]:80", "app.localhost:9"])
def test_names_of_this_machine_are_served(served: Served, host: str) -> None:
    assert served.ask("/", host=host).text == "may act: False"


@pytest.mark.parametrize(
    "lines",
    [
        [("Origin", "https://attacker.example")],
        [("Origin", "null")],
        [("Origin", "http://127.0.0.1:1")],  # another program's page on this machine
        [("Origin", "http://localhost:{port}")],  # the same program by another name: another origin
        [("Origin", "http://127.0.0.1:{port}"), ("Origin", "https://attacker.example")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")],
    ],
)
def test_what_a_page_of_another_site_sends_changes_nothing_even_with_the_token(
    served: Served, lines: list[tuple[str, str]]
) -> None:
    sent = [(name, value.format(port=served.port)) for name, value in lines]
    found = served.ask("/change", method="POST", form={"a": "1"}, headers=[*sent, ("x-evalpipe-token", TOKEN)])
    assert (found.status, "'a'" in found.text) == (403, False)


def test_a_link_from_elsewhere_opens_the_page_but_no_frame_and_no_fetch_does(served: Served) -> None:
    def status(mode: str, dest: str) -> int:
        lines = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)]
        return served.ask("/", headers=lines).status

    assert status("navigate", "document") == 200
    assert status("navigate", "iframe") == 403
    assert status("no-cors", "image") == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("x-evalpipe-token", "another")], 401),
        ([("x-evalpipe-token", "")], 401),
        ([("Authorization", f"Basic {TOKEN}")], 401),
        ([("Cookie", "evalpipe-{port}=guessed")], 401),
        ([("Cookie", f"evalpipe-{{port}}={TOKEN}")], 401),
        ([("x-evalpipe-token", TOKEN)], 200),
        ([("Authorization", f"Bearer {TOKEN}")], 200),
        ([("Origin", "http://127.0.0.1:{port}"), ("Sec-Fetch-Site", "same-origin"), ("x-evalpipe-token", TOKEN)], 200),
    ],
)
def test_changes_need_the_token_on_loopback_too(served: Served, headers: list[tuple[str, str]], status: int) -> None:
    sent = [(name, value.format(port=served.port)) for name, value in headers]
    assert served.ask("/change", method="POST", form={"a": "1"}, headers=sent).status == status


def signed_in(served: Served) -> str:
    found = served.ask("/sign-in", method="POST", form={"token": TOKEN, "next": "/"})
    assert (found.status, found.headers["location"]) == (303, "/")
    assert "HttpOnly" in found.headers["set-cookie"] and "SameSite=strict" in found.headers["set-cookie"]
    return found.headers["set-cookie"].partition(";")[0]


def test_a_session_is_begun_with_the_token_and_ended(served: Served) -> None:
    cookie = ("Cookie", signed_in(served))
    own = ("Origin", served.url)
    assert served.ask("/", headers=[cookie]).text == "may act: True"
    assert TOKEN not in cookie[1]
    assert served.ask("/change", method="POST", form={"a": "1"}, headers=[cookie, own]).text == "{'a': '1'}"
    # A browser that names no page may have been sent by any: the cookie alone does not count then.
    assert served.ask("/change", method="POST", form={"a": "1"}, headers=[cookie]).status == 401
    assert served.ask("/sign-out", method="POST", form={}, headers=[cookie, own]).status == 303
    assert served.ask("/", headers=[cookie]).text == "may act: False"


def test_a_wrong_token_begins_no_session_and_is_not_repeated_on_the_page(served: Served) -> None:
    found = served.ask("/sign-in", method="POST", form={"token": "<guess>", "next": "/"})
    assert (found.status, "set-cookie" in found.headers, "guess" in found.text) == (403, False, False)
    assert "This is not the token" in found.text


@pytest.mark.parametrize(
    "following",
    ["//attacker.example", "https://attacker.example", "/\\attacker.example", "/\t/attacker.example", "", "x"],
)
def test_signing_in_leads_to_no_other_site(served: Served, following: str) -> None:
    found = served.ask("/sign-in", method="POST", form={"token": TOKEN, "next": following})
    assert found.headers["location"] == "/"
    assert own_path("/e/0/shop?x=1") == "/e/0/shop?x=1"


def test_what_leads_on_from_the_sign_in_page_is_escaped(served: Served) -> None:
    found = served.ask("/sign-in?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert found.status == 200
    assert "<script" not in found.text


def test_a_session_ends_after_its_time() -> None:
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    session = sessions.begin()
    now[0] = SESSION_S - 1
    assert sessions.is_valid(session)
    now[0] = SESSION_S + 1
    assert not sessions.is_valid(session)


def test_without_a_token_everything_is_read_only() -> None:
    with serving(small_app(Access(token=None))) as served:
        assert served.ask("/").text == "may act: False"
        for token in ("", "None", TOKEN):
            found = served.post("/change", {"a": "1"}, token=token)
            assert (found.status, "read-only" in found.text) == (403, True)
        assert "read-only" in served.ask("/sign-in").text
        assert "set-cookie" not in served.ask("/sign-in", method="POST", form={"token": ""}).headers


def test_where_other_machines_reach_it_reading_needs_the_token_too() -> None:
    with serving(small_app(Access(token=TOKEN, is_loopback=False))) as served:
        assert served.ask("/", host="box.internal:80").status == 401
        asked = served.ask("/", host="box.internal:80", headers=[("Accept", "text/html")])
        assert (asked.status, asked.headers["location"]) == (303, "/sign-in?next=%2F")
        assert served.ask("/sign-in", host="box.internal:80").status == 200
        found = served.ask("/", host="box.internal:80", headers=[("x-evalpipe-token", TOKEN)])
        assert found.text == "may act: True"


def test_a_name_that_was_allowed_is_served_and_no_other() -> None:
    access = Access(token=TOKEN, allowed_hosts=frozenset({"box.internal"}))
    with serving(small_app(access)) as served:
        assert served.ask("/", host="box.internal:80").status == 200
        assert served.ask("/", host="other.internal:80").status == 403


def test_every_response_carries_the_security_headers(served: Served) -> None:
    for found in (
        served.ask("/"),
        served.ask("/nowhere"),
        served.ask("/", host="attacker.example"),
        served.ask("/sign-in"),
    ):
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert not re.search(r"unsafe|\*|https?:", policy)
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["cache-control"] == "no-store"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_form_that_is_too_long_or_no_form_is_refused(served: Served) -> None:
    assert "longer than 64 kB" in served.post("/change", {"a": "x" * 70_000}).text
    found = served.ask("/change", method="POST", headers=[("x-evalpipe-token", TOKEN), ("Content-Type", "text/plain")])
    assert (found.status, "application/x-www-form-urlencoded is expected" in found.text) == (400, True)
    assert served.post("/change", {"why": "é <b>", "empty": ""}).text == "{'why': 'é <b>', 'empty': ''}"
