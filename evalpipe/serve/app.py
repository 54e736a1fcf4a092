"""The routes of `evalpipe serve`: the experiments, a page for each, their reports, the event stream, and what may be done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from evalpipe.errors import EvalpipeError
from evalpipe.serve.access import Access, AccessMiddleware, FormError, access_routes, may_act, read_form
from evalpipe.serve.actions import Jobs, seen, signed, step_canary
from evalpipe.serve.experiments import Experiment, Now
from evalpipe.serve.live import EVERY_S, Live, TooManyClientsError, polling
from evalpipe.serve.pages import STATIC, page, report_file, report_response, static_file
from evalpipe.workspace.status import in_folder

logger = logging.getLogger(__name__)


class Pages:
    """The handlers of the routes.

    Args:
        experiments: shown in this order; their keys are different.
        every_s: between two events of the stream.
    """

    def __init__(self, experiments: Sequence[Experiment], access: Access, *, every_s: float = EVERY_S) -> None:
        self._experiments, self._access = list(experiments), access
        self.live, self.jobs = Live(experiments, every_s=every_s), Jobs()

    async def index(self, request: Request) -> Response:
        """Every experiment with its decision, its counters, and what is wrong."""
        states = await asyncio.gather(*(_now(one) for one in self._experiments))
        return page(
            "experiments.html.j2",
            **self._frame(request),
            entries=list(zip(self._experiments, states, strict=True)),
        )

    async def experiment(self, request: Request) -> Response:
        """One experiment."""
        return await self._show(request, self._find(request))

    async def step(self, request: Request) -> Response:
        """A step of a canary (POST)."""
        return await self._act(request, self._step)

    async def run(self, request: Request) -> Response:
        """Start the job of the morning (POST)."""
        return await self._act(request, self._run)

    async def report(self, request: Request) -> Response:
        """A file of the experiment's reports folder."""
        found = self._find(request)
        path = None
        if found.workspace is not None:
            path = await asyncio.to_thread(report_file, found.workspace.reports, request.path_params["path"])
        if path is None:
            raise HTTPException(404)
        try:
            return await asyncio.to_thread(report_response, path)
        except OSError:  # replaced or removed just now
            raise HTTPException(404) from None

    async def events(self, request: Request) -> Response:
        """The counters of all experiments, as they change (text/event-stream)."""
        try:
            stream = self.live.stream()
        except TooManyClientsError:
            return PlainTextResponse(
                "evalpipe: too many pages listen already\n", status_code=503, headers={"retry-after": "30"}
            )
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def static(self, request: Request) -> Response:
        """The style and the script of the pages."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404)
        return Response(static_file(name), headers={"content-type": STATIC[name], "cache-control": "no-cache"})

    async def failed(self, request: Request, error: Exception) -> Response:
        """The page of an error."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        words = {404: "There is no such page here.", 405: "This address is used in another way."}
        if status == 500:
            logger.error("a page failed: %s %s", request.method, request.url.path, exc_info=error)
        return page(
            "problem.html.j2",
            status=status,
            **self._frame(request),
            what=words.get(status, "The page could not be made; the server's log has the reason."),
        )

    async def _act(self, request: Request, act: Callable[[Experiment, dict[str, str]], Awaitable[object]]) -> Response:
        found = self._find(request)
        try:
            form = await read_form(request)
        except FormError as error:
            return PlainTextResponse(f"evalpipe: {error}\n", status_code=400)
        try:
            await act(found, form)
        except EvalpipeError as error:
            return await self._show(request, found, problem=str(error), form=form, status=409)
        return RedirectResponse(f"/e/{found.key}", status_code=303)

    async def _step(self, found: Experiment, form: dict[str, str]) -> None:
        if found.workspace is None:
            raise EvalpipeError(found.problem or "the folder cannot be opened")
        event = await asyncio.to_thread(step_canary, found.workspace, form)
        logger.info("canary of %s: %s by %s: %s", found.name, event.action, event.who, event.why)

    async def _run(self, found: Experiment, form: dict[str, str]) -> None:
        signed(form)
        if not _is_runnable(found) or found.workspace is None:
            raise EvalpipeError(f"{found.name} is not the experiment that {found.folder} is configured for")
        self.jobs.start(found.key, found.workspace, found.name, form)

    async def _show(
        self,
        request: Request,
        found: Experiment,
        *,
        problem: str = "",
        form: dict[str, str] | None = None,
        status: int = 200,
    ) -> Response:
        now = await _now(found)
        steps = {} if now.canary is None else _steps(now.canary.state.status.value)
        return page(
            "experiment.html.j2",
            status=status,
            **self._frame(request),
            experiment=found,
            now=now,
            job=self.jobs.get(found.key),
            problem=problem,
            form=form or {},
            seen="" if now.canary is None else seen(now.canary.state),
            steps=steps,
            is_runnable=_is_runnable(found),
            lines=[
                ("the morning's job", in_folder(found.workspace, "evalpipe run")),
                ("what is missing", in_folder(found.workspace, "evalpipe doctor")),
                *((name, in_folder(found.workspace, f'evalpipe canary {name} --why "…"')) for name in steps),
            ]
            if found.workspace is not None
            else [],
        )

    def _find(self, request: Request) -> Experiment:
        key = request.path_params["key"]
        for one in self._experiments:
            if one.key == key:
                return one
        raise HTTPException(404)

    def _frame(self, request: Request) -> dict[str, Any]:
        return {
            "may_act": may_act(request),
            "can_sign_in": self._access.token is not None,
            "path": request.url.path,
            "made": f"{datetime.now(UTC):%H:%M:%S} UTC",
        }


async def _now(experiment: Experiment) -> Now:
    """An experiment that cannot be read is shown with the reason, and does not hide the others."""
    (found,) = await asyncio.gather(asyncio.to_thread(experiment.now), return_exceptions=True)
    if isinstance(found, BaseException):
        logger.error("%s cannot be read", experiment.name, exc_info=found)
        return experiment.unread(found)
    return found


def _is_runnable(experiment: Experiment) -> bool:
    workspace = experiment.workspace
    return workspace is not None and workspace.config is not None and experiment.is_own


def _steps(status: str) -> dict[str, str]:
    """What may be done with a canary in this state: the step, and what it does."""
    steps = {
        "approve": "the next stage begins, or a paused one goes on",
        "pause": "the present share stays; guardrails stay watched",
        "rollback": "everyone back to control, at once",
    }
    allowed = {
        "waiting": ("rollback",),
        "running": ("pause", "rollback"),
        "paused": ("approve", "rollback"),
        "inconclusive": ("approve", "pause", "rollback"),
        "done": ("rollback",),
    }.get(status, ())
    return {name: steps[name] for name in allowed}


def build_app(experiments: Sequence[Experiment], access: Access, *, every_s: float = EVERY_S) -> Starlette:
    """The server's application. `app.state.pages` is closed by its lifespan."""
    pages = Pages(experiments, access, every_s=every_s)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with polling(pages.live):
            yield
        await pages.jobs.close()

    routes = [
        Route("/", pages.index),
        Route("/events", pages.events),
        Route("/static/{name}", pages.static),
        Route("/e/{key}", pages.experiment),
        Route("/e/{key}/canary", pages.step, methods=["POST"]),
        Route("/e/{key}/run", pages.run, methods=["POST"]),
        Route("/e/{key}/reports/{path:path}", pages.report),
        *access_routes(access),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(AccessMiddleware, access=access)],
        exception_handlers={HTTPException: pages.failed, 500: pages.failed},
        lifespan=lifespan,
    )
    app.state.pages = pages
    return app
