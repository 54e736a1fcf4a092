"""A simulated provider: its routes and its server, in the foreground for the command, in a thread for tests and the demo."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

import uvloop

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.providers.decoding import EncodingError, decode_request
from evalpipe.providers.json_values import MalformedJSONError, as_dict, dump, parse
from evalpipe.providers.paths import endpoint_of
from evalpipe.sim.batches import BatchStore, MessageBatches, OpenAIBatches
from evalpipe.sim.completions import Completions, Engine, Ledger
from evalpipe.sim.http import MAX_BODY_BYTES, HttpRequest, HttpServer, Responder
from evalpipe.sim.judges import SimulatedJudge
from evalpipe.sim.limits import MARK, common_headers, error_answer
from evalpipe.sim.requests import BadRequestError, Corpus, load_corpus, read_sim_request
from evalpipe.sim.settings import SimSettings, changed

_JSON = ("content-type", "application/json")


class SimApp:
    """One simulated provider: its engine, ledger and batches, and the routes to them."""

    def __init__(self, settings: SimSettings) -> None:
        corpus = load_corpus(settings.corpus) if settings.corpus is not None else Corpus()
        self.ledger = Ledger(prices=dict(settings.prices))
        self.engine = Engine(settings, corpus, SimulatedJudge(settings.judge, settings.seed))
        self.completions = Completions(self.engine, self.ledger)
        store = BatchStore(settings.state)
        self.message_batches = MessageBatches(self.engine, self.ledger, store)
        self.openai_batches = OpenAIBatches(self.engine, self.ledger, store)

    async def handle(self, request: HttpRequest, responder: Responder) -> None:
        """Answer one HTTP request."""
        # Both a base_url with /v1 and one without it work, as at many compatible servers.
        path = request.path if request.path.startswith(("/v1/", "/_sim/")) else f"/v1{request.path}"
        endpoint = endpoint_of(path)
        try:
            body = decode_request(request.headers.get("content-encoding", ""), request.body, limit=MAX_BODY_BYTES)
        except EncodingError as error:
            await responder.whole(400, [_JSON, MARK], error_answer(endpoint or "messages", 400, "req_sim", str(error)))
            return
        request = replace(request, body=body)
        if endpoint is not None and request.method == "POST":
            await self.completions.serve(endpoint, request, responder)
        elif path.startswith("/_sim/"):
            await self._own(path, request, responder)
        elif path.startswith("/v1/messages/batches"):
            await self.message_batches.handle(path, request, responder)
        elif path.startswith(("/v1/files", "/v1/batches")):
            await self.openai_batches.handle(path, request, responder)
        elif path == "/v1/messages/count_tokens" and request.method == "POST":
            await self._count_tokens(request, responder)
        elif path == "/v1/models" and request.method == "GET":
            await self._models(request, responder)
        else:
            await _not_found(path, responder)

    async def _own(self, path: str, request: HttpRequest, responder: Responder) -> None:
        if path == "/_sim/health":
            await _json(responder, 200, {"status": "ok", "corpus_answers": len(self.engine.corpus)})
        elif path == "/_sim/ledger" and request.method == "GET":
            query = parse_qs(request.target.partition("?")[2])
            await _json(responder, 200, self.ledger.document(with_calls=query.get("calls", ["0"])[0] in {"1", "true"}))
        elif path == "/_sim/reset" and request.method == "POST":
            self.ledger.reset()
            self.completions.forget_limits()
            await _json(responder, 200, {"status": "reset"})
        elif path == "/_sim/config" and request.method == "GET":
            await _json(responder, 200, self._config())
        elif path == "/_sim/config" and request.method == "POST":
            await self._configure(request, responder)
        else:
            await _not_found(path, responder)

    async def _configure(self, request: HttpRequest, responder: Responder) -> None:
        try:
            document = as_dict(parse(request.body))
            before, after = self.engine.settings, changed(self.engine.settings, document)
            if after.judge != before.judge:
                self.engine.judge = SimulatedJudge(after.judge, after.seed)
        except (MalformedJSONError, EvalpipeError) as error:
            await _json(responder, 400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            return
        self.engine.settings = after
        if after.limits != before.limits:
            self.completions.forget_limits()
        await _json(responder, 200, self._config())

    def _config(self) -> Any:
        document = asdict(self.engine.settings)
        return parse(dump({key: value for key, value in document.items() if key != "prices"} | _paths(document)))

    async def _count_tokens(self, request: HttpRequest, responder: Responder) -> None:
        try:
            facts = read_sim_request("messages", {"max_tokens": 1, **as_dict(parse(request.body))})
        except (MalformedJSONError, BadRequestError) as error:
            await responder.whole(400, [_JSON, MARK], error_answer("messages", 400, "req_sim", str(error)))
            return
        await _json(responder, 200, {"input_tokens": facts.input_tokens})

    async def _models(self, request: HttpRequest, responder: Responder) -> None:
        recorded = self.engine.judge.recorded_judges
        # Any name is answered; where none is known, a default is listed.
        models = sorted({*self.engine.corpus.models, *self.engine.settings.models, *recorded}) or [MARK[1]]
        if "anthropic-version" in request.headers:
            rows = [
                {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
                for name in models
            ]
            page = {
                "first_id": models[0] if models else None,
                "last_id": models[-1] if models else None,
                "has_more": False,
            }
            await _json(responder, 200, {"data": rows, **page})
            return
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "evalpipe-sim"} for name in models]
        await _json(responder, 200, {"object": "list", "data": listed})


async def _json(responder: Responder, status: int, document: Any) -> None:
    await responder.whole(status, [_JSON, MARK], dump(document).encode("utf-8", "replace"))


async def _not_found(path: str, responder: Responder) -> None:
    endpoint = "messages" if path.startswith("/v1/messages") else "chat.completions"
    headers = [_JSON, *common_headers(endpoint, "req_sim")]
    await responder.whole(404, headers, error_answer(endpoint, 404, "req_sim", f"unknown route {path[:100]}"))


def _paths(document: dict[str, Any]) -> dict[str, Any]:
    judge = document["judge"]
    return {
        "corpus": str(document["corpus"]) if document["corpus"] else None,
        "state": str(document["state"]) if document["state"] else None,
        "judge": {**judge, "pairs": str(judge["pairs"]) if judge["pairs"] else None},
    }


# Starting and stopping simulated providers: in the foreground for the command, in a thread for tests and the demo.


class Simulator:
    """A running simulated provider. `base_url` has no `/v1`: the OpenAI SDK gets `f"{base_url}/v1"`."""

    def __init__(self, host: str, port: int, stop: Callable[[], None]) -> None:
        self.port = port
        self.base_url = f"http://{host}:{port}"
        self._stop = stop

    def stop(self) -> None:
        """End the server; calling it twice does nothing more."""
        self._stop()

    def ledger(self, *, calls: bool = False) -> dict[str, Any]:
        """What it was asked and bills; `calls` = every call under "log"."""
        return self._ask("GET", f"/_sim/ledger?calls={int(calls)}")

    def reset(self) -> None:
        """Empty the ledger and fill the buckets of the limits."""
        self._ask("POST", "/_sim/reset")

    def configure(self, **changes: Any) -> dict[str, Any]:
        """Change settings while it runs, e.g. `configure(faults={"500": 1.0}, limits={"requests": 60})`."""
        return self._ask("POST", "/_sim/config", changes)

    def _ask(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.base_url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_sim(settings: SimSettings | None = None) -> Simulator:
    """Start a simulated provider in a thread of this process. Raises EvalpipeError where it cannot listen, and
    ConfigError for an unreadable corpus or pairs file."""
    chosen = settings or SimSettings()
    app = SimApp(chosen)
    started: list[int | OSError] = []
    finish: list[Callable[[], object]] = []
    ready = threading.Event()

    async def run() -> None:
        server, stopped = HttpServer(app.handle), asyncio.Event()
        loop = asyncio.get_running_loop()
        finish.append(lambda: loop.call_soon_threadsafe(stopped.set))
        try:
            started.append(await server.start(chosen.host, chosen.port))
        except OSError as error:
            started.append(error)
            return
        finally:
            ready.set()
        await stopped.wait()
        await server.close()

    def serve() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=serve, name="evalpipe-sim", daemon=True)
    thread.start()
    ready.wait()
    outcome = started[0]
    if isinstance(outcome, OSError):
        thread.join()
        raise _cannot_listen(chosen, outcome)

    def stop() -> None:
        if thread.is_alive():
            finish[0]()
            thread.join()

    return Simulator(chosen.host, outcome, stop)


def run_sim(settings: SimSettings, announce: Callable[[str], None]) -> None:
    """Serve in the foreground until SIGINT or SIGTERM; `announce` gets the base URL once it listens."""
    app = SimApp(settings)

    async def run() -> None:
        server = HttpServer(app.handle)
        try:
            port = await server.start(settings.host, settings.port)
        except OSError as error:
            raise _cannot_listen(settings, error) from error
        finish = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, finish.set)
        announce(f"http://{settings.host}:{port}")
        await finish.wait()
        await server.close()

    uvloop.run(run())


def _cannot_listen(settings: SimSettings, error: OSError) -> ConfigError:
    reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
    return ConfigError(f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another with --port")
