"""A judge asked through the `litellm` library, an optional extra: any provider it knows, the model named as it names them.

The library gives every trouble a status of its own: a torn connection, a body that is no JSON and a refused connection are all
"500" to it. What really happened, and the provider's headers, stand in the causes of its exceptions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.judging.call import Fate, Reply, Turns
from evalpipe.judging.client import api_key, failed_reply, http_failure, read_reply, short
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.wire import chat_params

_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "ClientConnectorError")
_NOT_READ = ("JSONDecodeError", "DecodingError", "UnicodeDecodeError")


class LiteLLMClient:
    """One call in, one Reply out. Raises ConfigError where the library is not installed."""

    def __init__(self, spec: JudgeSpec) -> None:
        # Nothing is downloaded at start: neither a price list nor a list of beta headers.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
        try:
            import litellm
        except ImportError:
            raise ConfigError(
                f"judge {spec.name!r} needs the litellm library: pip install 'evalpipe[litellm]'"
            ) from None
        litellm.suppress_debug_info = True  # it prints to stdout, where `--json` has its one document
        self._litellm = litellm
        self._spec = spec
        self._key = api_key(spec) if spec.api_key_env or spec.base_url else None

    async def ask(self, turns: Turns) -> Reply:
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
        except Exception as error:  # noqa: BLE001  the door: everything the library raises becomes a reply, or is raised again
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


def litellm_failure(error: Exception, latency_ms: float | None) -> Reply:
    """An exception of the library → a reply, by what caused it."""
    causes = list(_causes(error))
    response: Any = next(
        (one.response for one in causes if _is(one, "HTTPStatusError") and hasattr(one, "response")), None
    )
    if response is not None:
        return http_failure(response.status_code, response.headers, _body(response), str(error), latency_ms)
    if getattr(error, "status_code", 500) in (408, 500):  # nobody answered: the status is the library's own
        if any(_is(one, *_NEVER_SENT) for one in causes):
            return Reply(
                fate=Fate.NO_CONNECTION, kind="no_connection", message=short(str(error)), latency_ms=latency_ms
            )
        if any(_is(one, *_NOT_READ) for one in causes):
            return Reply(fate=Fate.BROKEN, kind="malformed", message=short(str(error)), latency_ms=latency_ms)
        if _is(error, "Timeout"):
            return Reply(fate=Fate.BROKEN, kind="timeout", message="no answer in time", latency_ms=latency_ms)
        if len(causes) > 1:
            return Reply(fate=Fate.BROKEN, kind="cut", message="the answer broke off", latency_ms=latency_ms)
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
