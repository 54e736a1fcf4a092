"""Without a token no web page may use the collector: by hand-written heads, and from pages in a real browser."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from collector_harness import CHAT, RawUpstream, Running, Script, chat_answer, chat_request, eventually, exchange, plain

from evalpipe.collector.auth import RequestIds

START = Callable[..., Running]
UPSTREAM = Callable[[Script], RawUpstream]
KEY_ENV = {"WEB_TEST_KEY": "sk-held-by-the-collector"}
HOLDS_KEY = 'api_key_env = "WEB_TEST_KEY"'
OWN = ["health", "ready", "metrics", "gate", "feedback"]
EVERY_ROUTE = [CHAT, "/v1/messages", "/v1/models", "/", *(f"/_evalpipe/{name}" for name in OWN)]
FOREIGN = {
    "host": b"Host: attacker.example:8400\r\n",
    "host like loopback": b"Host: 127.0.0.1.attacker.example\r\n",
    "host like localhost": b"Host: localhost.attacker.example:8400\r\n",
    "all addresses": b"Host: 0.0.0.0:8400\r\n",
    "origin": b"Host: 127.0.0.1:8400\r\nOrigin: https://attacker.example\r\n",
    "origin like loopback": b"Host: localhost\r\nOrigin: http://localhost.attacker.example\r\n",
    "origin with a loopback user": b"Host: localhost\r\nOrigin: http://localhost@attacker.example\r\n",
    "origin null": b"Host: localhost:8400\r\nOrigin: null\r\n",
    "two origins": b"Host: localhost\r\nOrigin: http://localhost:3000\r\nOrigin: https://attacker.example\r\n",
    "cross-site": b"Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
    "cross-site in capitals": b"Host: localhost\r\nSEC-FETCH-SITE: Cross-Site\r\n",
    "a site nobody knows": b"Host: localhost\r\nSec-Fetch-Site: other\r\n",
}
LOCAL = {
    "name": b"Host: localhost:8400\r\n",
    "capitals and a final dot": b"Host: LocalHost.\r\n",
    "IPv4": b"Host: 127.0.0.1:8400\r\n",
    "IPv4 beside it": b"Host: 127.1.2.3\r\n",
    "IPv6": b"Host: [::1]:8400\r\n",
    "below localhost": b"Host: app.localhost:8400\r\n",
    "forwarded port": b"Host: localhost:9\r\n",
    "local page": b"Host: 127.0.0.1:8400\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: cross-site\r\n",
    "local page, IPv6": b"Host: 127.0.0.1:8400\r\nOrigin: http://[::1]:3000\r\nSec-Fetch-Site: cross-site\r\n",
    "typed": b"Host: localhost:8400\r\nSec-Fetch-Site: none\r\n",
    "own page": b"Host: localhost:8400\r\nSec-Fetch-Site: same-origin\r\n",
    "page on another port": b"Host: localhost:8400\r\nSec-Fetch-Site: same-site\r\n",
}


def ask(
    running: Running, head: bytes, *, path: str = CHAT, method: str = "POST", body: bytes = b"{}"
) -> tuple[int, bytes]:
    """Status and body of a request with these head lines."""
    request = f"{method} {path} HTTP/1.1\r\n".encode() + head
    request += b"Connection: close\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answer = exchange(running.port, request)
    return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.fixture
def answering(upstream: UPSTREAM) -> RawUpstream:
    return upstream(lambda request: [plain(chat_answer())])


def test_what_a_foreign_page_sends_is_refused_on_every_route(answering: RawUpstream, collector: START) -> None:
    running = collector(answering.url, answering.url, arm=HOLDS_KEY, env=KEY_ENV)
    for path in EVERY_ROUTE:
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            status, body = ask(running, FOREIGN["host"], path=path, method=method)
            assert status == 403, (path, method)
    for name, head in FOREIGN.items():
        for path in (CHAT, "/v1/models", "/_evalpipe/metrics"):
            status, body = ask(running, head, path=path)
            assert status == 403, (name, path)
            sentence = json.loads(body)["error"]["message"]
            assert sentence.startswith("evalpipe: ") and "\n" not in sentence and "without a client token" in sentence
    absolute, _ = ask(running, b"Host: localhost\r\n", path="http://attacker.example:8400/v1/models", method="GET")
    assert absolute == 403
    assert running.stop() == 0
    assert answering.received == [] and answering.n_connections == 0
    assert running.records() == []


def test_programs_and_pages_of_this_machine_are_served(answering: RawUpstream, collector: START) -> None:
    running = collector(answering.url)
    for name, head in LOCAL.items():
        assert ask(running, head, body=chat_request())[0] == 200, name
        assert ask(running, head, path="/_evalpipe/metrics", method="GET")[0] == 200, name
    old = exchange(running.port, b"GET /_evalpipe/ready HTTP/1.0\r\n\r\n")  # a probe of the oldest kind names no host
    assert old.startswith(b"HTTP/1.1 200")
    assert len(answering.received) == len(LOCAL)


def test_hosts_and_origins_may_be_allowed(answering: RawUpstream, collector: START) -> None:
    allowed = 'allowed_hosts = ["Collector.internal", "other.internal:81"]\nallowed_origins = ["https://app.example"]'
    running = collector(answering.url, collector=allowed)
    page = b"Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n"
    for head, status in (
        (b"Host: collector.internal:8400\r\n", 200),
        (b"Host: COLLECTOR.INTERNAL\r\n", 200),
        (b"Host: other.internal:81\r\n", 200),
        (b"Host: other.internal:82\r\n", 403),
        (b"Host: x.collector.internal\r\n", 403),
        (b"Host: localhost\r\n" + page, 200),
        (b"Host: attacker.example\r\n" + page, 403),
        (b"Host: localhost\r\nOrigin: https://app.example:444\r\n", 403),
        (b"Host: localhost\r\nOrigin: http://app.example\r\n", 403),
        (b"Host: collector.internal\r\nOrigin: http://collector.internal\r\n", 200),
        # a neighbour below the same registered name is not the collector's own page
        (b"Host: collector.internal\r\nSec-Fetch-Site: same-site\r\n", 403),
    ):
        assert ask(running, head, body=chat_request())[0] == status, head


def test_where_a_token_protects_pages_are_the_providers_affair(answering: RawUpstream, collector: START) -> None:
    running = collector(answering.url, env={"EVALPIPE_TOKEN": "right-token"})
    head = b"Host: app.example\r\nOrigin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n"
    assert ask(running, head, body=chat_request())[0] == 401
    assert ask(running, head + b"x-evalpipe-token: right-token\r\n", body=chat_request())[0] == 200
    assert answering.received[0].header("origin") == b"https://app.example"


def test_an_open_address_without_a_token_still_refuses_pages(answering: RawUpstream, collector: START) -> None:
    running = collector(answering.url, arguments=["host=0.0.0.0", "insecure=yes"])
    assert ask(running, b"Host: evalpipe:8400\r\n", body=chat_request())[0] == 200  # it has names nobody listed
    assert ask(running, b"Host: evalpipe:8400\r\nOrigin: https://attacker.example\r\n")[0] == 403
    assert ask(running, b"Host: evalpipe:8400\r\nSec-Fetch-Site: same-site\r\n")[0] == 403


def test_an_id_is_issued_by_one_experiment_for_one_arm() -> None:
    ids = RequestIds(b"shared", "one")
    issued = ids.seal("0198c0ffee00ABCDefg0", "c")
    assert ids.refusal(issued) is None and RequestIds(b"shared", "one").refusal(issued) is None
    for other in (RequestIds(b"shared", "two"), RequestIds(b"another", "one")):
        assert "was not issued" in str(other.refusal(issued))
    for forged in (issued[:-1] + "t", issued[:20] + "0" * 12 + "c"):
        assert "was not issued" in str(ids.refusal(forged))


def test_ids_of_one_instant_are_all_different_and_each_has_its_own_check_part() -> None:
    ids, replica = RequestIds(b"shared", "one"), RequestIds(b"shared", "one")
    now = 1_800_000_000.25
    issued = [ids.seal(ids.base(now + number // 50 / 1000), "ct"[number % 2]) for number in range(100)]
    assert len(set(issued)) == 100
    assert {len(request_id) for request_id in issued} == {33}
    assert len({request_id[20:32] for request_id in issued}) == 100
    assert [request_id[:12] for request_id in issued] == sorted(request_id[:12] for request_id in issued)
    assert all(replica.refusal(request_id) is None for request_id in reversed(issued))
    for request_id in issued:  # nobody who has one of them has another
        number = int(request_id[19])
        sibling = request_id[:19] + str((number + 1) % 5) + request_id[20:]
        assert "was not issued" in str(replica.refusal(sibling))


def test_only_answers_that_were_given_can_be_rated(answering: RawUpstream, collector: START) -> None:
    shared_key = {"EVALPIPE_UNIT_KEY": "shared by the replicas"}
    running = collector(answering.url, env=shared_key)
    replica = collector(answering.url, env=shared_key)
    stranger = collector(answering.url, env={"EVALPIPE_UNIT_KEY": "another experiment's"})
    with urlopen(Request(running.url + CHAT, chat_request(), {"content-type": "application/json"})) as answer:
        issued = answer.headers["x-evalpipe-request-id"]
    with urlopen(running.url + "/v1/models") as answer:
        passed = answer.headers["x-evalpipe-request-id"]

    def rate(at: Running, request_id: str, rating: str = "up") -> tuple[int, str]:
        body = json.dumps({"request_id": request_id, "rating": rating}).encode()
        try:
            with urlopen(Request(at.url + "/_evalpipe/feedback", body)) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert rate(running, issued)[0] == 200
    assert rate(running, issued, "down")[0] == 200
    assert rate(replica, issued)[0] == 200
    swapped = issued[:-1] + ("t" if issued[-1] == "c" else "c")
    later = f"{int(issued[:12], 16) + 1:012x}" + issued[12:]
    guesses = [
        swapped,
        later,
        issued[:-2] + ("0" if issued[-2] != "0" else "1") + issued[-1],
        issued + "c",
        issued.upper(),
    ]
    for guess in ["made-up-id", "é" * 30, passed, *guesses]:
        status, said = rate(running, guess)
        assert status == 400 and "was not issued" in said, guess
    assert rate(stranger, issued)[0] == 400
    status, said = rate(running, "01a220ed6df8" + "0123456789abcdef0123" + "c")  # as earlier versions issued them
    assert status == 400 and "earlier version" in said
    assert running.stop() == 0 and replica.stop() == 0 and stranger.stop() == 0
    rated = [(r.request_id, r.rating) for r in running.records() if type(r).__name__ == "FeedbackRecord"]
    assert rated == [(issued, 1.0), (issued, 0.0)]  # the last one counts, the others are kept
    assert not any(type(r).__name__ == "FeedbackRecord" for r in stranger.records())


# --- a real browser

ATTACKS = """
const target = TARGET, done = [];
const body = JSON.stringify({model: "gpt-4o", user: "victim", messages: [{role: "user", content: "spend"}]});
const feedback = JSON.stringify({request_id: ISSUED, rating: "down"});
const attempt = (name, run) => { done.push(Promise.resolve().then(run).then(v => [name, v], e => [name, "refused"])); };
const text = {method: "POST", headers: {"content-type": "text/plain"}, body};
attempt("fetch", () => fetch(target + "/v1/chat/completions", text).then(r => r.text()));
attempt("fetch, no-cors", () => fetch(target + "/v1/chat/completions", {...text, mode: "no-cors"}).then(r => r.text()));
const json = {...text, headers: {"content-type": "application/json"}};
attempt("fetch, json", () => fetch(target + "/v1/chat/completions", json).then(r => r.text()));
attempt("fetch models", () => fetch(target + "/v1/models", {mode: "no-cors"}).then(r => r.text()));
attempt("metrics", () => fetch(target + "/_evalpipe/metrics").then(r => r.text()));
attempt("gate", () => fetch(target + "/_evalpipe/gate").then(r => r.text()));
attempt("feedback", () => fetch(target + "/_evalpipe/feedback", {...text, body: feedback, mode: "no-cors"}).then(r => r.text()));
attempt("beacon", () => navigator.sendBeacon(target + "/_evalpipe/feedback", feedback) && "");
attempt("image", () => new Promise((ok, no) => {
  const image = new Image(); image.onload = () => ok("loaded"); image.onerror = no; image.src = target + "/v1/models?image"; }));
attempt("script", () => new Promise((ok, no) => {
  const s = document.createElement("script"); s.onload = () => ok("loaded"); s.onerror = no; s.src = target + "/v1/models?script";
  document.body.append(s); }));
attempt("WebSocket", () => new Promise((ok, no) => {
  const socket = new WebSocket(target.replace("http", "ws") + "/v1/responses");
  socket.onopen = () => ok("open"); socket.onerror = no; }));
for (const [url, value] of [["/v1/chat/completions", body], ["/_evalpipe/feedback", feedback]]) {
  attempt("form " + url, () => new Promise(ok => {
    const frame = document.createElement("iframe"); frame.name = "f" + url; document.body.append(frame);
    const form = document.createElement("form"); form.method = "POST"; form.enctype = "text/plain"; form.target = frame.name;
    form.action = target + url; const input = document.createElement("input");
    input.name = value.slice(0, -1) + ',"x":"'; input.value = '"}'; form.append(input); document.body.append(form);
    let loads = 0; frame.onload = () => { if (++loads) ok(""); }; form.submit(); setTimeout(() => ok(""), 700); }));
}
Promise.all(done)
"""
READS_NOTHING = {"refused", ""}


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """A web server of somebody else: one empty page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>page</title><body></body>")

        def log_message(self, *args: Any) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    wanted = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not wanted:
        pytest.skip("no Chromium here: install one, or name it with CHROMIUM")
    # Both names lead here: one is a page of somebody else, the other one has been rebound to this machine.
    rules = "MAP attacker.example 127.0.0.1, MAP rebound.example 127.0.0.1"
    arguments = ["--no-sandbox", "--disable-gpu", f"--host-resolver-rules={rules}"]
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=wanted, args=arguments)
        yield started
        started.close()


@pytest.mark.uncompiled
@pytest.mark.browser
@pytest.mark.timeout(180)
def test_a_page_in_a_browser_gets_nothing_and_changes_nothing(
    browser: Any, pages: str, answering: RawUpstream, collector: START
) -> None:
    running = collector(answering.url, answering.url, arm=HOLDS_KEY, env=KEY_ENV)
    with urlopen(Request(running.url + CHAT, chat_request(), {"content-type": "application/json"})) as answer:
        issued = answer.headers["x-evalpipe-request-id"]
    counted = ("evalpipe_requests_total", "evalpipe_user_rating", "evalpipe_passed_through", "evalpipe_shadow")

    def seen() -> list[str]:
        with urlopen(running.url + "/_evalpipe/metrics") as answer:
            return sorted(line for line in answer.read().decode().splitlines() if line.startswith(counted))

    eventually(lambda: any('arm="treatment"' in line for line in seen()))
    before, n_records, n_upstream = seen(), len(running.records()), len(answering.received)
    page = browser.new_page()
    try:
        for target in (running.url, f"http://localhost:{running.port}", f"http://rebound.example:{running.port}"):
            page.goto(f"http://attacker.example:{pages}/")
            script = ATTACKS.replace("TARGET", json.dumps(target)).replace("ISSUED", json.dumps(issued))
            results = dict(page.evaluate(script))
            assert len(results) == 13
            assert {name: value for name, value in results.items() if value not in READS_NOTHING} == {}
        # The rebound page itself: to the browser it is the collector's own origin, so it may read what it gets.
        answer = page.goto(f"http://rebound.example:{running.port}/_evalpipe/ready")
        assert answer.status == 403
        same_origin = "u => fetch(u, {method: 'POST', body: '{}'}).then(r => r.status)"
        for path in ("/v1/chat/completions", "/_evalpipe/feedback", "/_evalpipe/metrics", "/_evalpipe/gate"):
            assert page.evaluate(same_origin, path) == 403
        # A navigation from elsewhere, too.
        page.goto(f"http://attacker.example:{pages}/")
        with page.expect_navigation():
            page.evaluate(f"location = {json.dumps(running.url + '/v1/models')}")
        assert "may not" in page.content() or "web page asked" in page.content()
    finally:
        page.close()
    assert seen() == before
    assert len(answering.received) == n_upstream
    assert len(running.records()) == n_records


@pytest.mark.uncompiled
@pytest.mark.browser
@pytest.mark.timeout(180)
def test_a_page_of_this_machine_may_ask(browser: Any, pages: str, upstream: UPSTREAM, collector: START) -> None:
    cors = b"Content-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\n"
    control = upstream(lambda request: [plain(chat_answer("for the page"), headers=cors)])
    running = collector(control.url)
    page = browser.new_page()
    try:
        page.goto(f"http://localhost:{pages}/")
        script = "([u, body]) => fetch(u, {method: 'POST', body}).then(r => r.text())"
        said = page.evaluate(script, [running.url + CHAT, chat_request().decode()])
    finally:
        page.close()
    assert json.loads(said)["choices"][0]["message"]["content"] == "for the page"
    assert len(running.requests()) == 1
