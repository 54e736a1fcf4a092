"""`evalpipe doctor --live`: one real request to each arm and each judge, on the path and with the headers of the traffic.

A request asks for one token where the provider takes that, so that an arm costs a fraction of a cent.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from evalpipe.calls.client import CallOutcome, ModelResponse, address_of, open_client
from evalpipe.collector.assignment import RequestHead
from evalpipe.collector.forward_headers import render_request_head
from evalpipe.collector.settings import IN_PROCESS, ArmSettings, Secret
from evalpipe.collector.transform import render_outgoing_head, rewrite, translate_request
from evalpipe.config import ArmConfig, Config, secret
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.http1.headers import CREDENTIAL, Line, read_lines
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import ANSWERED
from evalpipe.providers.base import Answer, NotShadowableError
from evalpipe.providers.model_names import takes_max_completion_tokens
from evalpipe.providers.pricing import cost_of
from evalpipe.providers.registry import PROVIDERS, read_answer
from evalpipe.text import printable
from evalpipe.workspace.call_runs import price_of
from evalpipe.workspace.collect import arm_settings
from evalpipe.workspace.doctor import Diagnosis
from evalpipe.workspace.judge_setup import load_specs
from evalpipe.workspace.paths import Workspace, price_book

_TIMEOUT_S = 60.0
_MAX_ANSWER = 4 << 20
_MAX_WORDS = 400
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_SMALLEST = (1, 16, 1024)
"""token limits asked for one after the other where the provider refuses one as too small (OpenAI's Responses API: 16)"""
_AT_THE_LIMIT = ("could not finish the message", "output limit was reached")
"""OpenAI's 400 where a reasoning model ends within its thoughts: the model was asked and has worked"""
_STOPPED = "the model was asked and stopped at the token limit"
_CLIENT_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
_QUESTION = "Reply with the word OK."
_CLIENT_PATHS = {"chat.completions": b"/v1/chat/completions", "messages": b"/v1/messages"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveDiagnosis(Diagnosis):
    """`cost_usd`: None where nothing was billed for all that is known, or no price is known."""

    cost_usd: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _ProbeResult:
    """What one request brought: `words` where it failed, in the provider's own; `note` where it only did not finish."""

    answer: Answer | None = None
    status: int | None = None
    words: str | None = None
    note: str = ""
    simulated: bool = False

    @property
    def asks_for_limit(self) -> bool:
        """Whether the token limit is what the provider refused."""
        return self.words is not None and self.status in (400, 422) and "limit" in _limit_words(self.words)


def _limit_words(words: str) -> str:
    lower = words.lower()
    return lower if not any(name in lower for name in _LIMITS) else f"{lower} limit"


def diagnose_live(workspace: Workspace) -> Iterator[Diagnosis]:
    """One request to each arm, control first, and to each configured judge."""
    config = workspace.require_config()
    if config.arms is not None:
        yield _live_arm(workspace, config, "control", config.arms.control)
        if config.arms.treatment is not None:
            yield _live_arm(workspace, config, "treatment", config.arms.treatment)
    yield from _live_judges(workspace)


# --- arms


def _live_arm(workspace: Workspace, config: Config, name: str, arm: ArmConfig) -> Diagnosis:
    title = f"live {name}"
    try:
        settings = arm_settings(workspace, name, arm)
    except ConfigError as error:
        return LiveDiagnosis(name=title, status="fail", detail=f"not asked: {error}")
    control = config.require_arms().control
    model = arm.model or control.model
    if model is None:
        return LiveDiagnosis(
            name=title,
            status="warn",
            detail="not asked: no model is configured, the client's is taken",
            remedy=f"set arms.{name}.model to have it asked",
        )
    started = time.monotonic()
    if settings.base_url == IN_PROCESS:
        where, probe = f"litellm ({model})", _ask_library(settings, model)
    else:
        where, probe = _ask_arm(settings, PROVIDERS[control.provider][0], model)
    latency_ms = (time.monotonic() - started) * 1000
    cost = probe.answer and cost_of(
        probe.answer.usage,
        model=probe.answer.model,
        requested=model,
        provider=arm.provider,
        at=datetime.now(UTC),
        prices=price_book(config),
    )
    takes_clients_key = name == "control" and arm.api_key_env is None
    if takes_clients_key and probe.words is not None and probe.status in (401, 403):
        found = _result(title, where, model, probe, usd=None, latency_ms=latency_ms)
        wanted = _CLIENT_KEYS.get(arm.provider, "arms.control.api_key_env")
        remedy = f"control takes the client's key: set {wanted} to test it"
        return replace(found, status="warn", remedy=remedy)
    usd = cost.usd if cost else None
    return _result(title, where, model, probe, usd=usd, latency_ms=latency_ms, remedy=_remedy(name, arm, probe))


def _ask_arm(arm: ArmSettings, endpoint: str, model: str) -> tuple[str, _ProbeResult]:
    """(address asked, what came of it). `endpoint`: of control's dialect, in which clients ask."""
    lines = _client_lines(arm, endpoint)
    head = RequestHead(request_id="doctor", endpoint=endpoint, target=_CLIENT_PATHS[endpoint], lines=lines)
    request = {"model": model, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": _SMALLEST[0]}
    body = json.dumps(request).encode()
    outgoing = None
    if arm.arm == "treatment":
        try:
            outgoing = translate_request(arm, head, body)
        except NotShadowableError as error:
            return arm.base_url, _ProbeResult(words=f"the request cannot be translated for it: {error}")
        body, endpoint = outgoing.body, outgoing.endpoint
    elif arm.rewrite:
        body = rewrite(endpoint, body, arm)

    def ask(name: str, limit: int) -> _ProbeResult:
        data = _limited(body, name, limit)
        if outgoing is not None:
            rendered = render_outgoing_head(
                msgspec.structs.replace(outgoing, body=data), head, arm.origin, arm.key_line
            )
        else:
            rendered = render_request_head(
                b"POST", head.target, lines, arm.origin, arm.key_line, chunked=False, whole_length=len(data)
            )
        return _send(arm, rendered, data, endpoint, secrets=[line.value for line in lines if line.role & CREDENTIAL])

    is_chat = endpoint == "chat.completions"
    name = "max_completion_tokens" if is_chat and takes_max_completion_tokens(model) else "max_tokens"
    probe = ask(name, _SMALLEST[0])
    other = "max_tokens" if name == "max_completion_tokens" else "max_completion_tokens"
    if is_chat and probe.asks_for_limit and other in (probe.words or ""):  # "… use 'max_completion_tokens' instead"
        name = other
        probe = ask(name, _SMALLEST[0])
    for limit in _SMALLEST[1:]:
        if not probe.asks_for_limit or _has_stopped(probe.words):
            break
        probe = ask(name, limit)
    if _has_stopped(probe.words):
        probe = _ProbeResult(status=probe.status, note=_STOPPED, simulated=probe.simulated)
    parts = urlsplit(arm.base_url)
    if outgoing is not None:
        target = arm.origin.endpoint_target(endpoint)
    else:
        target = arm.origin.served_target(head.target, from_anthropic=endpoint == "messages")
    return f"{parts.scheme}://{parts.netloc}{target.decode('latin-1')}", probe


def _has_stopped(words: str | None) -> bool:
    return words is not None and any(one in words.lower() for one in _AT_THE_LIMIT)


def _limited(body: bytes, name: str, limit: int) -> bytes:
    """The body with a token limit in place of its own; above the thinking that its parameters ask for."""
    document = json.loads(body)
    for other in _LIMITS:
        document.pop(other, None)
    document[name] = limit + _thinking_budget(document)
    return json.dumps(document).encode()


def _thinking_budget(params: Mapping[str, Any]) -> int:
    thinking = params.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return budget if isinstance(budget, int) else 0


def _client_lines(arm: ArmSettings, endpoint: str) -> list[Line]:
    """The head lines of a client's request. Where control takes the client's key, it is what an SDK would take here."""
    head = [b"POST / HTTP/1.1", b"Host: collector", b"Content-Type: application/json", b"User-Agent: evalpipe-doctor"]
    if endpoint == "messages":
        head.append(b"anthropic-version: 2023-06-01")
    key = os.environ.get(_CLIENT_KEYS.get(arm.provider, ""), "")
    if arm.arm == "control" and arm.api_key is None and key.isascii() and key:
        head.append(msgspec.structs.replace(arm, api_key=Secret(key)).key_line)
    return read_lines(b"\r\n".join([*head, b"", b""]))[1]


def _send(arm: ArmSettings, head: bytes, body: bytes, endpoint: str, *, secrets: list[bytes]) -> _ProbeResult:
    """Send the request as rendered, read the answer as the collector and the store do."""
    origin = arm.origin
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    connection: http.client.HTTPConnection
    if origin.tls:
        connection = http.client.HTTPSConnection(
            origin.host, origin.port, timeout=_TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(origin.host, origin.port, timeout=_TIMEOUT_S)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for line in lines:
            name, _, value = line.partition(": ")
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        data = response.read(_MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        return _ProbeResult(
            words=f"no answer: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
        )
    finally:
        connection.close()
    answer = read_answer(endpoint, response.status, headers, data)
    simulated = "x-simulated-by" in headers
    if answer.outcome in ANSWERED:
        return _ProbeResult(answer=answer, status=response.status, simulated=simulated)
    words = answer.error_message or answer.error_type or "an answer that cannot be read"
    keys = [str(value, "latin-1").rpartition(" ")[2] for value in secrets]
    keys += [] if arm.api_key is None else [arm.api_key.value]
    for key in keys:  # some servers repeat the key they refuse
        words = words.replace(key, "[key]")
    return _ProbeResult(status=response.status, words=words, simulated=simulated)


def _ask_library(arm: ArmSettings, model: str) -> _ProbeResult:
    """The litellm library in this process, as the collector's bridge asks it."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError:
        return _ProbeResult(words="the litellm library is not installed: pip install 'evalpipe[litellm]'")
    from evalpipe.calls.client import litellm_failure

    litellm.drop_params, litellm.suppress_debug_info = True, True
    asked = {**arm.params, "model": model, "messages": [{"role": "user", "content": _QUESTION}]}
    key = None if arm.api_key is None else arm.api_key.value
    limited = json.loads(_limited(json.dumps(asked).encode(), "max_tokens", _SMALLEST[0]))
    try:
        found = litellm.completion(**limited, api_key=key, max_retries=0)
    except Exception as error:  # noqa: BLE001 – the library wraps every vendor's errors, and its own, in many classes
        reply = litellm_failure(error, None)
        words = reply.message if key is None else reply.message.replace(key, "[key]")
        if _has_stopped(words):
            return _ProbeResult(note=_STOPPED)
        return _ProbeResult(words=words, status=getattr(error, "status_code", None))
    return _ProbeResult(
        answer=read_answer("chat.completions", 200, {}, json.dumps(found.model_dump()).encode()), status=200
    )


def _remedy(name: str, arm: ArmConfig, probe: _ProbeResult) -> str | None:
    if probe.words is None:
        return None
    if probe.status in (401, 403):
        if arm.api_key_env:
            return f"check the key in {arm.api_key_env}"
        return f"set arms.{name}.api_key_env" if name == "treatment" else None
    if probe.status == 404:
        return f"check arms.{name}.base_url, and the model {arm.model!r}"
    if probe.status is None:
        return f"check arms.{name}.base_url and the network"
    if probe.status in (400, 422):
        return f"check arms.{name}.model and params"
    return None


def _result(
    title: str,
    where: str,
    model: str,
    probe: _ProbeResult,
    *,
    usd: float | None,
    latency_ms: float,
    remedy: str | None = None,
) -> LiveDiagnosis:
    if probe.words is not None:
        status = "" if probe.status is None else f"HTTP {probe.status}: "
        words = " ".join(printable(probe.words).split())
        words = words if len(words) <= _MAX_WORDS else words[:_MAX_WORDS] + "…"
        return LiveDiagnosis(
            name=title,
            status="fail",
            detail=f"{where}: {status}{words}",
            remedy=remedy,
            latency_ms=round(latency_ms, 1),
        )
    tokens, answered = "tokens not reported", model
    if probe.answer is not None:
        usage, answered = probe.answer.usage, probe.answer.model or model
        if usage.input_tokens is not None and usage.output_tokens is not None:
            tokens = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
    cost = "cost not known" if usd is None else f"${usd:.6f}"
    simulated = ", simulated" if probe.simulated else ""
    return LiveDiagnosis(
        name=title,
        status="pass",
        detail=f"{where}: {probe.note or f'{answered} answers'} ({latency_ms:.0f} ms, {tokens}, {cost}{simulated})",
        cost_usd=usd,
        latency_ms=round(latency_ms, 1),
    )


# --- judges


def _live_judges(workspace: Workspace) -> Iterator[Diagnosis]:
    try:
        specs = load_specs(workspace)
    except EvalpipeError:
        return  # the check of the judges has its line
    for spec in specs:
        title = f"live judge {spec.name}"
        try:
            reply = asyncio.run(_ask_judge(spec))
        except ConfigError as error:
            yield LiveDiagnosis(name=title, status="fail", detail=f"not asked: {error}")
            continue
        probe = _probe_result(spec, reply)
        usd = None if reply.answer is None else price_of(workspace, spec)(reply.usage, reply.model)
        latency_ms = reply.latency_ms or 0.0
        remedies = {
            None: "check base_url and the network",
            401: f"check the key in {spec.api_key_env}",
            404: f"check base_url, and the model {spec.model!r}",
        }
        remedy = None if probe.words is None else remedies.get(probe.status)
        yield _result(title, address_of(spec), spec.model, probe, usd=usd, latency_ms=latency_ms, remedy=remedy)


def _probe_result(spec: JudgeSpec, reply: ModelResponse) -> _ProbeResult:
    if reply.outcome is CallOutcome.ANSWERED:
        return _ProbeResult(answer=reply.answer, status=200, simulated=reply.simulated)
    word, _, number = reply.kind.partition("_")
    status = int(number) if word == "http" and number.isdigit() else None
    words = reply.message or reply.kind
    if _has_stopped(words):
        return _ProbeResult(status=status, note=_STOPPED, simulated=reply.simulated)
    key = secret(spec.api_key_env) if spec.api_key_env else None
    return _ProbeResult(status=status, words=words.replace(key, "[key]") if key else words, simulated=reply.simulated)


async def _ask_judge(spec: JudgeSpec) -> ModelResponse:
    """By the judge's own client, rubric and schema, with the smallest token limit the provider takes."""
    params = {name: value for name, value in spec.params.items() if name not in _LIMITS}
    timeout_s = min(spec.timeout_s, _TIMEOUT_S)
    reply = ModelResponse(outcome=CallOutcome.REJECTED)
    for limit in _SMALLEST:
        limited = replace(spec, max_tokens=limit + _thinking_budget(params), params=params, timeout_s=timeout_s)
        client = open_client(limited, concurrency=1)
        try:
            reply = await client.ask([("user", _QUESTION)])
        finally:
            await client.close()
        probe = _probe_result(spec, reply)
        if not probe.asks_for_limit:
            break
    return reply
