"""Keys in every form, and providers that repeat what they are given."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, quote_plus
from urllib.request import Request, urlopen

from collector_harness import CHAT, Received, Running, chat_answer, chat_request, chat_stream, chunked, plain


def forms(key: str) -> dict[str, str]:
    """How a key may be written, made with the standard library and none of our code."""
    basic = {f"basic, user of {n}": base64.b64encode(("u" * n + ":" + key).encode()).decode() for n in range(4)}
    url_safe = {
        f"URL-safe, {n}": base64.urlsafe_b64encode(("u" * n + key + "tail").encode()).decode() for n in range(3)
    }
    return {
        "plain": key,
        "in JSON": json.dumps(key)[1:-1],
        "in JSON, readable": json.dumps(key, ensure_ascii=False)[1:-1],
        "in JSON twice": json.dumps(json.dumps({"key": key})),
        "in a URL": quote(key),
        "in a URL, all of it": quote(key, safe=""),
        "in a URL, small": quote(key, safe="").lower() if key.islower() else quote(key, safe=""),
        "base64": base64.b64encode(key.encode()).decode(),
        **basic,
        **url_safe,
    }


HELD, TREATMENT, TOKEN = "sk-held-Control0Q9", "sk-held-Treatment/1+Zz==", "tok-client-token-77"
PARAM, PASSWORD = "param-secret-Xy0", "url-password-Wq1"
CLIENT, QUERY, COOKIE, PROXY = "sk-client-own-Kk8", "query-secret-Vv7", "cookie-secret-Jj6-long", "proxy-secret-Zz5"
ALL = [HELD, TREATMENT, TOKEN, PARAM, PASSWORD, CLIENT, QUERY, COOKIE, PROXY]


def echo(request: Received) -> str:
    """All a provider could repeat of a request: its head and body, in clear and in Basic."""
    head = request.head.decode("latin-1")
    credentials = [line.partition(":")[2].strip().split(" ")[-1] for line in head.split("\r\n")[1:]]
    basic = " ".join(base64.b64encode(f"user:{value}".encode()).decode() for value in credentials)
    return f"{head} {request.body.decode()} {quote(head)} {quote_plus(head)} {basic}"


def answers(request: Received) -> Iterable[bytes | float | str]:
    """By the number in the question: errors, plain and packed, good answers and streams, headers, no JSON at all."""
    said = echo(request)
    error = json.dumps({"error": {"message": said, "code": "invalid_api_key"}}).encode()
    packed = b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n"
    value = request.header("authorization") or request.header("x-api-key") or b""
    key = value.decode().split(" ")[-1]
    model = json.loads(request.body)["model"]  # so that the arms' answers differ
    kind = int(request.body.split(b"case ")[1].split(b" ")[0])
    if kind == 0:
        return [plain(error, status="401 Unauthorized")]
    if kind == 1:
        return [plain(gzip.compress(error), status="400 Bad Request", headers=packed)]
    if kind == 2:
        return [plain(chat_answer(f"{model}: your key is {key}, or {base64.b64encode(key.encode()).decode()}"))]
    if kind == 3:
        return chunked(chat_stream(["your key is ", *key, f" indeed, {model}"]))
    if kind == 4:
        return [plain(gzip.compress(chat_answer(f"{model}: your key is {key}")), headers=packed)]
    if kind == 5:
        own = b"Content-Type: text/html\r\nRequest-Id: %b\r\nx-ratelimit-key: %b\r\n" % (key.encode(), key.encode())
        return [plain(f"<h1>{html.escape(said)}</h1>".encode(), status="502 Bad Gateway", headers=own)]
    whole = [b"data: " + json.dumps({"error": {"message": said}}).encode() + b"\n\n"]
    return chunked(whole)


N_CASES = 7


def send(running: Running, number: int) -> tuple[int, bytes]:
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {CLIENT}",
        "x-evalpipe-token": TOKEN,
        "cookie": f"session={COOKIE}; theme=dark",
        "proxy-authorization": "Basic " + base64.b64encode(f"me:{PROXY}".encode()).decode(),
        "user-agent": f"me/{CLIENT}",
    }
    request = Request(running.url + CHAT + f"?key={quote(QUERY)}", chat_request(f"case {number} please"), headers)
    try:
        with urlopen(request) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def left_in(root: Path, *, keys: Iterable[str] = ALL) -> dict[str, list[str]]:
    """Every file below `root` that holds a secret in some form."""
    found: dict[str, list[str]] = {}
    for path in root.rglob("*"):
        if path.is_file() and path.name != "evalpipe.toml":
            text = path.read_bytes().decode("utf-8", "replace")
            for key in keys:
                if any(form in text for form in forms(key).values()):
                    found.setdefault(str(path.relative_to(root)), []).append(key)
    return found
