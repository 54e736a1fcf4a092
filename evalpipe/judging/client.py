"""The only door to the vendors' SDKs: one call in, one Reply out. Errors are told apart here, by status, and nowhere else.

The SDKs' own retries are off: the runner's policy knows the limits and the budget, theirs does not.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from evalpipe.core.secrets import shown_url
from evalpipe.core.text import printable
from evalpipe.core.traffic import Outcome
from evalpipe.errors import ConfigError
from evalpipe.judging.call import Fate, JudgeClient, Reply, Turns, fate_of_status, is_about_the_input
from evalpipe.judging.masking import masked, remember_keys
from evalpipe.judging.ratelimits import asked_wait, read_limits, read_retry_after
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.wire import TOOL, chat_params, message_params
from evalpipe.providers.base import Answer
from evalpipe.providers.failures import failure_in
from evalpipe.providers.paths import is_azure, split_address
from evalpipe.providers.registry import read_answer

SIMULATED_HEADER = "x-simulated-by"
CONNECT_TIMEOUT_S = 15.0
_DEFAULT_ADDRESSES = {
    "anthropic": ("ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
    "openai": ("OPENAI_BASE_URL", "https://api.openai.com/v1"),
}
"""What the SDKs take where the judge names no address: the environment, else the vendor's."""
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "api_error": 500,
    "server_error": 500,
    "internal": 500,
    "unavailable": 503,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The statuses of both vendors' error types (docs.anthropic.com/en/api/errors, platform.openai.com/docs/guides/error-codes) and
of Google's (cloud.google.com/apis/design/errors)."""
_PARTS = re.compile(rb'"message"\s*:\s*\{.*"content"\s*:\s*\[', re.DOTALL)
_NO_KEY = "not-needed"
_LONGEST_MESSAGE = 300


def open_client(spec: JudgeSpec, *, concurrency: int) -> JudgeClient:
    """The client of a judge. Raises ConfigError where its key is missing from the environment, or its SDK from the
    installation."""
    remember_keys(spec, key_in_environment(spec))
    if spec.provider == "litellm":
        from evalpipe.judging.litellm_client import LiteLLMClient

        return LiteLLMClient(spec)
    return _SdkClient(spec, concurrency)


def key_in_environment(spec: JudgeSpec) -> str | None:
    return os.environ.get(spec.api_key_env) if spec.api_key_env else None


def api_key(spec: JudgeSpec) -> str:
    """The judge's key. A server on this machine needs none."""
    key = key_in_environment(spec)
    if key:
        return key
    if is_local(spec.base_url):
        return _NO_KEY
    if spec.api_key_env:
        raise ConfigError(f"judge {spec.name!r} needs a key: set {spec.api_key_env} in the environment")
    raise ConfigError(f"judge {spec.name!r} names no key: add api_key_env to judges/{spec.name}.toml")


def address_of(spec: JudgeSpec) -> str:
    """Where the judge's calls go, for messages."""
    if spec.base_url:
        return shown_url(spec.base_url)
    if spec.provider == "litellm":
        return f"litellm ({spec.model})"
    environment, address = _DEFAULT_ADDRESSES[spec.provider]
    return os.environ.get(environment) or address


def refusal(spec: JudgeSpec, message: str) -> str:
    """The line for a run that the provider refused for good: address, its words, and the setting to look at.

    Args:
        spec: the judge.
        message: the failure's kind and the provider's words, "http_401: …".
    """
    status = message.partition(":")[0]
    setting = {
        "http_401": f"; check the key in {spec.api_key_env}" if spec.api_key_env else "",
        "http_403": f"; check what the key in {spec.api_key_env} may do" if spec.api_key_env else "",
        "http_404": f"; check base_url, and the model {spec.model!r}",
    }.get(status, "")
    return f"judge {spec.name!r}: {spec.provider} at {address_of(spec)} refuses the work: {message}{setting}"


def unreachable(spec: JudgeSpec, message: str) -> str:
    """The line for a run in which no call found a connection.

    Args:
        spec: the judge.
        message: the words of the client library.
    """
    where = f"{spec.provider} at {address_of(spec)}"
    return (
        f"judge {spec.name!r}: {where} cannot be reached: {message}; check base_url and the network, then run it again"
    )


ENDS: Mapping[str, Callable[[JudgeSpec, str], str]] = {"refused": refusal, "unreachable": unreachable}
"""How a provider can end a run (`RunTally.stopped`), and the line for each."""


def is_local(base_url: str | None) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(base_url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_sdk(spec: JudgeSpec, concurrency: int) -> Any:
    """The vendor's async SDK client. Environment proxies are not asked for a server on this machine."""
    limits = {"max_connections": concurrency + 4, "max_keepalive_connections": concurrency + 4}
    trust_env = not is_local(spec.base_url)
    sdk: Any
    client: Any
    if spec.provider == "anthropic":
        import anthropic as sdk

        client = sdk.AsyncAnthropic
    else:
        import openai as sdk

        client = sdk.AsyncOpenAI
    import httpx2

    http = sdk.DefaultAsyncHttpxClient(
        limits=httpx2.Limits(**limits),
        timeout=httpx2.Timeout(spec.timeout_s, connect=CONNECT_TIMEOUT_S),
        trust_env=trust_env,
    )
    address, query = sdk_address(spec)
    options: dict[str, Any] = {"default_query": query} if query else {}
    if spec.base_url and spec.provider == "openai" and is_azure(spec.base_url) and "api-version" in query:
        client, options = sdk.AsyncAzureOpenAI, {"api_version": query["api-version"], "default_query": query}
    return client(api_key=api_key(spec), base_url=address, max_retries=0, http_client=http, **options)


def sdk_address(spec: JudgeSpec) -> tuple[str | None, dict[str, str]]:
    """What the judge's SDK appends its own paths to, so that the same address reaches the same server as an arm's, and the
    query that goes with every call. (None, {}) where the SDK's default is meant."""
    if not spec.base_url:
        return None, {}
    parts = urlsplit(spec.base_url)
    path, query, is_exact = split_address(spec.base_url)
    if spec.provider == "anthropic":
        path = path.removesuffix("/v1")
    elif not is_exact:
        path = "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}", dict(parse_qsl(query, keep_blank_values=True))


class _SdkClient:
    """anthropic and openai: one shape, as both SDKs are made by one generator."""

    def __init__(self, spec: JudgeSpec, concurrency: int) -> None:
        self._client = open_sdk(spec, concurrency)
        self._extra = {"extra_body": dict(spec.params)} if spec.params else {}
        self._spec = spec
        self._create: Callable[..., Awaitable[Any]]
        self._build: Callable[[JudgeSpec, Turns], dict[str, Any]]
        if spec.provider == "anthropic":
            self._endpoint = "messages"
            self._create = self._client.messages.with_raw_response.create
            self._build = message_params
        else:
            self._endpoint = "chat.completions"
            self._create = self._client.chat.completions.with_raw_response.create
            self._build = chat_params

    async def ask(self, turns: Turns) -> Reply:
        started = time.monotonic()
        params = self._build(self._spec, turns)
        try:
            raw = await self._create(**params, **self._extra)
            response = raw.http_response
            body = await response.aread()
        except Exception as error:  # noqa: BLE001  the door: everything an SDK raises becomes a reply, or is raised again
            return failed_reply(error, (time.monotonic() - started) * 1000)
        return read_reply(
            self._endpoint, response.status_code, response.headers, body, latency_ms=(time.monotonic() - started) * 1000
        )

    async def close(self) -> None:
        await self._client.close()


def read_reply(
    endpoint: str, status: int, headers: Mapping[str, str], body: bytes, *, latency_ms: float | None = None
) -> Reply:
    """The reply in an HTTP answer with status 200."""
    if _PARTS.search(body):
        body = _joined_parts(body)
    answer = read_answer(endpoint, status, {"content-type": "application/json"}, body)
    limits = read_limits(headers)
    simulated = SIMULATED_HEADER in headers
    told = _told_in_body(answer, body)
    if told is not None:
        status, document, message = told
        return http_failure(status, headers, document, message, latency_ms)
    if answer.outcome in {Outcome.UNREADABLE, Outcome.HTTP_ERROR}:
        return Reply(
            fate=Fate.BROKEN,
            answer=answer,
            kind=answer.error_type or "unreadable",
            message=short(answer.error_message or "the answer cannot be read"),
            limits=limits,
            latency_ms=latency_ms,
            simulated=simulated,
        )
    return Reply(
        fate=Fate.ANSWERED,
        answer=answer,
        text=_said(answer),
        limits=limits,
        latency_ms=latency_ms,
        simulated=simulated,
    )


def _joined_parts(body: bytes) -> bytes:
    """A chat answer whose text comes in parts, with those parts as one: the object may be split anywhere, within a word, too."""
    try:
        document = json.loads(body)
        message = document["choices"][0]["message"]
        parts = message["content"]
        joined: list[Any] = []
        for part in parts:
            if joined and all(
                one.get("type") == "text" and isinstance(one.get("text"), str) for one in (joined[-1], part)
            ):
                joined[-1] = {**joined[-1], "text": joined[-1]["text"] + part["text"]}
            else:
                joined.append(part)
        message["content"] = joined
        return json.dumps(document).encode()
    except (
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # no chat answer: it is read as it came
        return body


def _said(answer: Answer) -> str:
    """What the judge said. Two calls of the tool are two verdicts, and stay two."""
    calls = [call.get("arguments") for call in answer.tool_calls if call.get("name") == TOOL]
    said = [arguments if isinstance(arguments, str) else json.dumps(arguments) for arguments in calls]
    return masked("\n".join(said) if said else answer.text or "")


def _told_in_body(answer: Answer, body: bytes) -> tuple[int, Any, str] | None:
    """An error that came with status 200 and nothing else, as relays send it: (the status it names, its body, its message).
    None where there is none, or where it ends an answer that had begun and may be billed."""
    if answer.outcome not in {Outcome.HTTP_ERROR, Outcome.REFUSED} or answer.text or answer.usage.output_tokens:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or document.get("choices") or document.get("content"):
        return None
    kinds = (error.get("code"), error.get("status"), error.get("type"))
    status = next((found for kind in kinds if (found := _status_of(kind)) is not None), None)
    return None if status is None else (status, document, answer.error_message or "")


def _status_of(kind: Any) -> int | None:
    """The HTTP status that an error's code or type stands for."""
    word = str(kind).strip().lower()
    if word.isascii() and word.isdigit() and len(word) == 3 and int(word) >= 400:
        return int(word)
    return _STATUSES.get(word)


def failed_reply(error: Exception, latency_ms: float | None) -> Reply:
    """An exception of an SDK → a reply. What is none of its kinds is a bug of ours and is raised again."""
    status = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    if isinstance(status, int):
        if 200 <= status < 300:  # the SDK refused the body of a good answer: it was generated, so it is billed
            return Reply(fate=Fate.BROKEN, kind="malformed", message=short(str(error)), latency_ms=latency_ms)
        headers = getattr(response, "headers", None) or {}
        return http_failure(status, headers, getattr(error, "body", None), str(error), latency_ms)
    names = {base.__name__ for base in type(error).__mro__}
    if "APITimeoutError" in names or "TimeoutException" in names or "Timeout" in names:
        connecting = _caused_by(error, "ConnectTimeout", "PoolTimeout")
        fate = Fate.NO_CONNECTION if connecting else Fate.BROKEN
        return Reply(fate=fate, kind="timeout", message="no answer in time", latency_ms=latency_ms)
    if "APIConnectionError" in names or "TransportError" in names:
        if _caused_by(error, "ConnectError", "ProxyError", "UnsupportedProtocol", "ClientConnectorError"):
            message = short(str(error.__cause__ or error))
            return Reply(fate=Fate.NO_CONNECTION, kind="no_connection", message=message, latency_ms=latency_ms)
        return Reply(fate=Fate.BROKEN, kind="cut", message="the answer broke off", latency_ms=latency_ms)
    if "APIError" in names or "DecodingError" in names:  # e.g. a body that cannot be decoded
        return Reply(fate=Fate.BROKEN, kind="malformed", message=short(str(error)), latency_ms=latency_ms)
    raise error


def http_failure(status: int, headers: Mapping[str, str], body: Any, message: str, latency_ms: float | None) -> Reply:
    """An HTTP error as a vendor sent it; `message` where its body says none."""
    failure = failure_in(body if isinstance(body, dict) and "error" in body else {"error": body}, failed=True)
    inner = body.get("error", body) if isinstance(body, dict) else None
    kind = ""
    if isinstance(inner, dict):
        kind, message = str(inner.get("code") or inner.get("type") or ""), str(inner.get("message") or message)
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    fate = fate_of_status(status, kind, message)
    if 400 <= status < 500 and is_about_the_input(status, failure is not None and failure.refused, message):
        fate = Fate.REFUSED
    return Reply(
        fate=fate,
        kind=f"http_{status}",
        message=short(message),
        limits=read_limits(lower),
        retry_after_s=read_retry_after(lower, datetime.now(UTC)),
        asked_wait_s=asked_wait(lower),
        latency_ms=latency_ms,
        simulated=SIMULATED_HEADER in lower,
    )


def _caused_by(error: BaseException, *names: str) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if any(base.__name__ in names for base in type(seen).__mro__):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def short(text: str) -> str:
    """One printable line of bounded length, without the judge's key."""
    line = printable(masked(" ".join(text.split())))
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "…"
