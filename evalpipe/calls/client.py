"""The only module that calls the vendors' SDKs: one call in, one response out, failures classified by status."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

from evalpipe.calls.limiter import Reported, asked_wait, read_limits, read_retry_after
from evalpipe.credentials import Finder, known_secrets, mask_with, secrets_in, secrets_in_url, shown_url
from evalpipe.errors import ConfigError
from evalpipe.models import Outcome
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.model_names import takes_max_completion_tokens
from evalpipe.providers.outcomes import failure_in
from evalpipe.providers.paths import is_azure, split_address
from evalpipe.providers.registry import read_answer
from evalpipe.text import printable

if TYPE_CHECKING:
    import ssl

Messages = Sequence[tuple[str, str]]
"""(role, text) in order, beginning with the user's message; the system text is the judge's own."""


class ModelSettings(Protocol):
    """The settings of the called model: a judge, or an arm in a replay."""

    @property
    def who(self) -> str:
        """In messages: "judge 'pairwise'", "arms.treatment"."""
        ...

    @property
    def key_setting(self) -> str:
        """The setting in which `api_key_env` would be."""
        ...

    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def base_url(self) -> str | None: ...
    @property
    def api_key_env(self) -> str | None: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def params(self) -> Mapping[str, Any]: ...


class JudgeSettings(ModelSettings, Protocol):
    """What a question to a judge is made of besides."""

    @property
    def system(self) -> str: ...
    @property
    def reply(self) -> str: ...
    @property
    def schema(self) -> dict[str, Any]: ...
    @property
    def max_tokens(self) -> int: ...


class CallOutcome(StrEnum):
    """How a call ended; decides whether it is made again, what it is booked at, and whether the run goes on."""

    ANSWERED = "answered"
    """a readable response, whatever its content"""
    RATE_LIMITED = "rate_limited"
    """429: not billed; wait until the reset"""
    SERVER_ERROR = "server_error"
    """5xx, 529, 408, 409: not billed; back off"""
    NO_CONNECTION = "no_connection"
    """nothing was sent; back off"""
    BROKEN = "broken"
    """cut, timed out or unreadable after it was sent: the provider may have billed it, without reporting how much"""
    REJECTED = "rejected"
    """400, 413, 422: this request will never be answered; the others may"""
    REFUSED = "refused"
    """a filter took this input: this request will never be answered; the others may"""
    FATAL = "fatal"
    """401, 402, 403, 404, quota spent: no request will be answered"""


FREE = frozenset(
    {
        CallOutcome.RATE_LIMITED,
        CallOutcome.SERVER_ERROR,
        CallOutcome.NO_CONNECTION,
        CallOutcome.REJECTED,
        CallOutcome.REFUSED,
        CallOutcome.FATAL,
    }
)
"""Outcomes that cost nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResponse:
    """What came back from one call. `text` is the content (a forced tool's input as JSON text); `latency_ms` from
    sending to the last byte; `retry_after_s` where the server named a time; `body`: the answer's bytes as they were read."""

    outcome: CallOutcome
    answer: Answer | None = None
    text: str = ""
    kind: str = ""
    """the failure in one snake_case word, e.g. "http_529"; "" where answered"""
    message: str = ""
    limits: Mapping[str, Reported] = field(default_factory=dict)
    retry_after_s: float | None = None
    asked_wait_s: float | None = None
    """what the server asked for, where that is more than is waited at once"""
    latency_ms: float | None = None
    simulated: bool = False
    body: bytes = b""

    @property
    def is_whole(self) -> bool:
        """Whether the judge came to the end of a reply: neither refused nor truncated nor empty."""
        return self.answer is not None and self.answer.outcome is Outcome.OK and bool(self.text.strip())

    @property
    def usage(self) -> Usage:
        return self.answer.usage if self.answer else Usage()

    @property
    def model(self) -> str | None:
        """The model that answered, by its own word."""
        return self.answer.model if self.answer else None


class JudgeClient(Protocol):
    """Asks one judge. Never raises for anything a provider may do: failures are replies."""

    async def ask(self, turns: Messages) -> ModelResponse: ...

    async def close(self) -> None: ...


_INPUT = re.compile(
    r"\b(?:input|prompt|content|messages?|text)\b.{0,80}\b(?:flagged|moderation|moderated|violat\w+|filtered|harmful|unsafe)\b"
    r"|\bmoderation\b.{0,80}\b(?:input|prompt|content|messages?|text)\b",
    re.IGNORECASE | re.DOTALL,
)
_ACCOUNT = re.compile(
    r"\b(?:account|api[ _-]?key|key|organi[sz]ation|project|billing|permission|permitted|region|country|suspended|disabled|"
    r"access|token|user)\b",
    re.IGNORECASE,
)


def is_about_the_input(status: int, is_filtered: bool, message: str) -> bool:
    """Whether an HTTP error refuses this one input (a moderation or a content filter), not the key that asks.

    Args:
        status: 4xx.
        is_filtered: the error carries a filter's code, or the reasons of a moderation (OpenRouter's 403).
        message: the provider's message: it decides on a 403 without either, where it is about the input and not about the
            account.
    """
    if is_filtered:
        return status in (400, 403, 422, 451)
    return status == 403 and _INPUT.search(message) is not None and _ACCOUNT.search(message) is None


def outcome_of_status(status: int, error_type: str, message: str) -> CallOutcome:
    """The outcome of a call that was answered with an HTTP error."""
    if status == 429:
        return CallOutcome.FATAL if error_type == "insufficient_quota" else CallOutcome.RATE_LIMITED
    if status in (401, 402, 403, 404):
        return CallOutcome.FATAL
    if status in (408, 409, 499) or status >= 500:
        return CallOutcome.SERVER_ERROR
    # One vendor reports an account without credit as 400: further calls would all fail.
    spent = any(word in message.lower() for word in ("credit balance", "spend limit", "usage limit"))
    return CallOutcome.FATAL if spent else CallOutcome.REJECTED


# Calls through the vendors' SDKs: one call in, one response out. Errors are classified here, by status, and nowhere
# else.
#
# The SDKs' own retries are off: the runner retries within the limits and the budget.


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


def open_client(spec: JudgeSettings, *, concurrency: int) -> JudgeClient:
    """The client of a judge. Raises ConfigError where its key is missing from the environment, or its SDK from the
    installation."""
    remember_keys(spec, key_in_environment(spec))
    if spec.provider == "litellm":
        return LiteLLMClient(spec)
    return _SdkClient(spec, concurrency)


def key_in_environment(spec: ModelSettings) -> str | None:
    return os.environ.get(spec.api_key_env) if spec.api_key_env else None


def api_key(spec: ModelSettings) -> str:
    """The judge's key. A server on this machine needs none."""
    key = key_in_environment(spec)
    if key:
        return key
    if is_local(spec.base_url):
        return _NO_KEY
    if spec.api_key_env:
        raise ConfigError(f"{spec.who} needs a key: set {spec.api_key_env} in the environment")
    raise ConfigError(f"{spec.who} names no key: add api_key_env to {spec.key_setting}")


def address_of(spec: ModelSettings) -> str:
    """Where the judge's calls go, for messages."""
    if spec.base_url:
        return shown_url(spec.base_url)
    if spec.provider == "litellm":
        return f"litellm ({spec.model})"
    environment, address = _DEFAULT_ADDRESSES[spec.provider]
    return os.environ.get(environment) or address


def refusal(spec: ModelSettings, message: str) -> str:
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
    return f"{spec.who}: {spec.provider} at {address_of(spec)} refuses the work: {message}{setting}"


def unreachable(spec: ModelSettings, message: str) -> str:
    """The line for a run in which no call found a connection.

    Args:
        spec: the judge.
        message: the words of the client library.
    """
    where = f"{spec.provider} at {address_of(spec)}"
    return f"{spec.who}: {where} cannot be reached: {message}; check base_url and the network, then run it again"


ENDS: Mapping[str, Callable[[ModelSettings, str], str]] = {"refused": refusal, "unreachable": unreachable}
"""How a provider can end a run (`RunCounts.stopped`), and the line for each."""


def is_local(base_url: str | None) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(base_url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_sdk(spec: ModelSettings, concurrency: int) -> Any:
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
        verify=_authorities(trust_env),
    )
    address, query = sdk_address(spec)
    options: dict[str, Any] = {"default_query": query} if query else {}
    if spec.base_url and spec.provider == "openai" and is_azure(spec.base_url) and "api-version" in query:
        client, options = sdk.AsyncAzureOpenAI, {"api_version": query["api-version"], "default_query": query}
    return client(api_key=api_key(spec), base_url=address, max_retries=0, http_client=http, **options)


@cache
def _authorities(trust_env: bool) -> ssl.SSLContext:
    """The certificate authorities that are trusted. To read them takes longer than all the rest of a client."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


def sdk_address(spec: ModelSettings) -> tuple[str | None, dict[str, str]]:
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

    def __init__(self, spec: JudgeSettings, concurrency: int) -> None:
        self._client = open_sdk(spec, concurrency)
        self._extra = {"extra_body": dict(spec.params)} if spec.params else {}
        self._spec = spec
        self._create: Callable[..., Awaitable[Any]]
        self._build: Callable[[JudgeSettings, Messages], dict[str, Any]]
        if spec.provider == "anthropic":
            self._endpoint = "messages"
            self._create = self._client.messages.with_raw_response.create
            self._build = message_params
        else:
            self._endpoint = "chat.completions"
            self._create = self._client.chat.completions.with_raw_response.create
            self._build = chat_params

    async def ask(self, turns: Messages) -> ModelResponse:
        started = time.monotonic()
        params = self._build(self._spec, turns)
        try:
            raw = await self._create(**params, **self._extra)
            response = raw.http_response
            body = await response.aread()
        except Exception as error:  # noqa: BLE001  everything an SDK raises becomes a response, or is raised again
            return failed_reply(error, (time.monotonic() - started) * 1000)
        return read_reply(
            self._endpoint, response.status_code, response.headers, body, latency_ms=(time.monotonic() - started) * 1000
        )

    async def close(self) -> None:
        await self._client.close()


def read_reply(
    endpoint: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    latency_ms: float | None = None,
    content_type: str = "application/json",
) -> ModelResponse:
    """The reply in an HTTP answer with status 200."""
    received = body
    if _PARTS.search(body):
        body = _joined_parts(body)
    answer = read_answer(endpoint, status, {"content-type": content_type}, body)
    limits = read_limits(headers)
    simulated = SIMULATED_HEADER in headers
    reported = _error_in_body(answer, body)
    if reported is not None:
        status, document, message = reported
        return http_failure(status, headers, document, message, latency_ms)
    if answer.outcome in {Outcome.UNREADABLE, Outcome.HTTP_ERROR}:
        return ModelResponse(
            outcome=CallOutcome.BROKEN,
            answer=answer,
            kind=answer.error_type or "unreadable",
            message=short(answer.error_message or "the answer cannot be read"),
            limits=limits,
            latency_ms=latency_ms,
            simulated=simulated,
            body=received,
        )
    return ModelResponse(
        outcome=CallOutcome.ANSWERED,
        answer=answer,
        text=_reply_text(answer),
        limits=limits,
        latency_ms=latency_ms,
        simulated=simulated,
        body=received,
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


def _reply_text(answer: Answer) -> str:
    """The judge's reply. Two calls of the tool are two verdicts, and stay two."""
    calls = [call.get("arguments") for call in answer.tool_calls if call.get("name") == TOOL]
    texts = [arguments if isinstance(arguments, str) else json.dumps(arguments) for arguments in calls]
    return masked("\n".join(texts) if texts else answer.text or "")


def _error_in_body(answer: Answer, body: bytes) -> tuple[int, Any, str] | None:
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
    """The HTTP status that corresponds to an error's code or type."""
    word = str(kind).strip().lower()
    if word.isascii() and word.isdigit() and len(word) == 3 and int(word) >= 400:
        return int(word)
    return _STATUSES.get(word)


def failed_reply(error: Exception, latency_ms: float | None) -> ModelResponse:
    """An exception of an SDK → a response. Other exceptions are bugs and are raised again."""
    status = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    if isinstance(status, int):
        if 200 <= status < 300:  # the SDK refused the body of a good answer: it was generated, so it is billed
            return ModelResponse(
                outcome=CallOutcome.BROKEN, kind="malformed", message=short(str(error)), latency_ms=latency_ms
            )
        headers = getattr(response, "headers", None) or {}
        return http_failure(status, headers, getattr(error, "body", None), str(error), latency_ms)
    names = {base.__name__ for base in type(error).__mro__}
    if "APITimeoutError" in names or "TimeoutException" in names or "Timeout" in names:
        connecting = _caused_by(error, "ConnectTimeout", "PoolTimeout")
        outcome = CallOutcome.NO_CONNECTION if connecting else CallOutcome.BROKEN
        return ModelResponse(outcome=outcome, kind="timeout", message="no answer in time", latency_ms=latency_ms)
    if "APIConnectionError" in names or "TransportError" in names:
        if _caused_by(error, "ConnectError", "ProxyError", "UnsupportedProtocol", "ClientConnectorError"):
            message = short(str(error.__cause__ or error))
            return ModelResponse(
                outcome=CallOutcome.NO_CONNECTION, kind="no_connection", message=message, latency_ms=latency_ms
            )
        return ModelResponse(
            outcome=CallOutcome.BROKEN, kind="cut", message="the answer broke off", latency_ms=latency_ms
        )
    if "APIError" in names or "DecodingError" in names:  # e.g. a body that cannot be decoded
        return ModelResponse(
            outcome=CallOutcome.BROKEN, kind="malformed", message=short(str(error)), latency_ms=latency_ms
        )
    raise error


def http_failure(
    status: int, headers: Mapping[str, str], body: Any, message: str, latency_ms: float | None
) -> ModelResponse:
    """An HTTP error as a vendor sent it; `message` where its body has none."""
    failure = failure_in(body if isinstance(body, dict) and "error" in body else {"error": body}, failed=True)
    inner = body.get("error", body) if isinstance(body, dict) else None
    kind = ""
    if isinstance(inner, dict):
        kind, message = str(inner.get("code") or inner.get("type") or ""), str(inner.get("message") or message)
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    outcome = outcome_of_status(status, kind, message)
    if 400 <= status < 500 and is_about_the_input(status, failure is not None and failure.refused, message):
        outcome = CallOutcome.REFUSED
    return ModelResponse(
        outcome=outcome,
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


# What a judge is sent, as the parameters of the vendors' SDK methods. Pure, so that it can be printed and tested.


TOOL = "give_judgment"
_TOOL_TEXT = "Give the judgment. Call it exactly once."


def message_params(spec: JudgeSettings, turns: Messages) -> dict[str, Any]:
    """Parameters of Anthropic's `messages.create`, and of one request of a message batch."""
    params: dict[str, Any] = {
        "model": spec.model,
        "max_tokens": spec.max_tokens,
        "system": spec.system,
        "messages": [{"role": role, "content": text} for role, text in turns],
    }
    if spec.reply == "schema":
        params["output_config"] = {"format": {"type": "json_schema", "schema": spec.schema}}
    elif spec.reply == "tool":
        params["tools"] = [{"name": TOOL, "description": _TOOL_TEXT, "input_schema": spec.schema, "strict": True}]
        params["tool_choice"] = {"type": "tool", "name": TOOL}
    return params


def chat_params(spec: JudgeSettings, turns: Messages) -> dict[str, Any]:
    """Parameters of OpenAI's `chat.completions.create`, which compatible servers and LiteLLM take too."""
    messages = [{"role": "system", "content": spec.system}]
    messages += [{"role": role, "content": text} for role, text in turns]
    limit = "max_completion_tokens" if takes_max_completion_tokens(spec.model) else "max_tokens"
    params: dict[str, Any] = {"model": spec.model, limit: spec.max_tokens, "messages": messages}
    if spec.reply == "schema":
        schema = {"name": "judgment", "strict": True, "schema": spec.schema}
        params["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif spec.reply == "tool":
        function = {"name": TOOL, "description": _TOOL_TEXT, "parameters": spec.schema, "strict": True}
        params["tools"] = [{"type": "function", "function": function}]
        params["tool_choice"] = {"type": "function", "function": {"name": TOOL}}
    return params


def shown_params(spec: JudgeSettings, turns: Messages) -> dict[str, Any]:
    """What is sent for these turns, params of the judge's own included."""
    build = message_params if spec.provider == "anthropic" else chat_params
    return {**build(spec, turns), **spec.params}


# A judge's key in a provider's message is removed before anything is written: providers repeat keys that they refuse.


_known: Final[set[str]] = set()
"""of the judges this process asks"""


def remember_keys(spec: ModelSettings, key: str | None) -> None:
    """From now on `masked` takes out the judge's key, and the secrets in its parameters and its address."""
    _known.update(known_secrets([key or "", *secrets_in(spec.params), *secrets_in_url(spec.base_url or "")]))


def masked(text: str) -> str:
    """The text without the keys of the judges that were asked."""
    return mask_with(Finder(_known), text) if _known else text


# A judge asked through the `litellm` library, an optional extra: any provider it supports, the model named as it names
# them.
#
# The library gives every failure a status of its own: a torn connection, a body that is no JSON and a refused
# connection are all "500" to it. The real status and the provider's headers are in the causes of its
# exceptions.


_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "ClientConnectorError")
_NOT_READ = ("JSONDecodeError", "DecodingError", "UnicodeDecodeError")


class LiteLLMClient:
    """One call in, one Reply out. Raises ConfigError where the library is not installed."""

    def __init__(self, spec: JudgeSettings) -> None:
        # Nothing is downloaded at start: neither a price list nor a list of beta headers.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
        try:
            import litellm
        except ImportError:
            raise ConfigError(f"{spec.who} needs the litellm library: pip install 'evalpipe[litellm]'") from None
        litellm.suppress_debug_info = True  # it prints to stdout, where `--json` has its one document
        self._litellm = litellm
        self._spec = spec
        self._key = api_key(spec) if spec.api_key_env or spec.base_url else None

    async def ask(self, turns: Messages) -> ModelResponse:
        started = time.monotonic()
        spec = self._spec
        try:
            found = await self._litellm.acompletion(
                **chat_params(spec, turns),
                **spec.params,
                api_key=self._key,
                api_base=spec.base_url,
                timeout=spec.timeout_s,
                num_retries=0,
            )
        except Exception as error:  # noqa: BLE001  everything the library raises becomes a response, or is raised again
            return litellm_failure(error, (time.monotonic() - started) * 1000)
        hidden = getattr(found, "_hidden_params", None) or {}
        headers = {
            str(name).lower().removeprefix("llm_provider-"): str(value)
            for name, value in (hidden.get("additional_headers") or {}).items()
        }
        body = json.dumps(found.model_dump()).encode()
        return read_reply("chat.completions", 200, headers, body, latency_ms=(time.monotonic() - started) * 1000)

    async def close(self) -> None:
        return None


def litellm_failure(error: Exception, latency_ms: float | None) -> ModelResponse:
    """An exception of the library → a reply, by what caused it."""
    causes = list(_causes(error))
    response: Any = next(
        (one.response for one in causes if _is(one, "HTTPStatusError") and hasattr(one, "response")), None
    )
    if response is not None:
        return http_failure(response.status_code, response.headers, _body(response), str(error), latency_ms)
    if getattr(error, "status_code", 500) in (408, 500):  # no response: the status is the library's own
        if any(_is(one, *_NEVER_SENT) for one in causes):
            return ModelResponse(
                outcome=CallOutcome.NO_CONNECTION,
                kind="no_connection",
                message=short(str(error)),
                latency_ms=latency_ms,
            )
        if any(_is(one, *_NOT_READ) for one in causes):
            return ModelResponse(
                outcome=CallOutcome.BROKEN, kind="malformed", message=short(str(error)), latency_ms=latency_ms
            )
        if _is(error, "Timeout"):
            return ModelResponse(
                outcome=CallOutcome.BROKEN, kind="timeout", message="no answer in time", latency_ms=latency_ms
            )
        if len(causes) > 1:
            return ModelResponse(
                outcome=CallOutcome.BROKEN, kind="cut", message="the answer broke off", latency_ms=latency_ms
            )
    return failed_reply(error, latency_ms)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _is(error: BaseException, *names: str) -> bool:
    return any(base.__name__ in names for base in type(error).__mro__)


def _body(response: Any) -> Any:
    try:
        return json.loads(response.text)
    except (ValueError, RuntimeError):  # not JSON, or never read: the message of the exception has to do
        return None
