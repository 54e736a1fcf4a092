"""The collector's own routes: health, ready, metrics, the last verdict, feedback."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalpipe.collector import is_compiled
from evalpipe.collector.auth import RequestIds
from evalpipe.collector.local_responses import render_json
from evalpipe.collector.metrics import Metrics, Totals, render_metrics
from evalpipe.collector.recorder import Recorder
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.setup_watch import SetupWatch
from evalpipe.collector.shadow_budget import budget_refusal
from evalpipe.collector.traffic_watch import Uncollected
from evalpipe.files import is_locked
from evalpipe.http1.headers import Line
from evalpipe.models import controller_lock_name, seen_name
from evalpipe.spool.checkpoint import READY_FILE, TREATMENT_LOCK
from evalpipe.spool.writer import SpoolWriter
from evalpipe.traffic_shape import REMEDY, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from evalpipe.collector.exchange_base import ExchangeState

Answer = tuple[int, bytes, str]
_JSON = "application/json"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_MAX_COMMENT = 10_000
TROUBLE_S = 15.0
"""how long health names records that were lost, or connections that were refused, after the last one"""


class Routes:
    """Answers the paths below /_evalpipe/ of one worker.

    Args:
        exchanges: the exchanges under way, as the worker keeps them.
        is_stopping: whether the worker takes no further connections.
    """

    def __init__(
        self,
        settings: CollectorSettings,
        *,
        metrics: Metrics,
        writer: SpoolWriter,
        recorder: Recorder,
        setup: SetupWatch,
        uncollected: Uncollected,
        ids: RequestIds,
        exchanges: set[ExchangeState],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._settings, self._metrics, self._writer, self._recorder = settings, metrics, writer, recorder
        self._setup, self._uncollected, self._ids = setup, uncollected, ids
        self._exchanges, self._is_stopping = exchanges, is_stopping
        data = Path(settings.data)
        self._verdict = data / "verdict.json"
        self._controller_lock: Path | None = None
        self._state_seen: Path | None = None
        if settings.mode == "canary":
            self._controller_lock = data / "canary" / controller_lock_name(settings.experiment)
            if settings.objects_url is not None:
                self._state_seen = data / "canary" / seen_name(f"{settings.experiment}.jsonl")
        self._was_ready = False

    def answer(self, method: bytes, target: bytes, lines: list[Line], body: bytes) -> Answer:
        """Status, body and content type for one of the own paths."""
        path = target.partition(b"?")[0].removeprefix(b"/_evalpipe/")
        known = {b"health": b"GET", b"ready": b"GET", b"metrics": b"GET", b"gate": b"GET POST", b"feedback": b"POST"}
        methods = known.get(path)
        if methods is None:
            return _json(404, {"error": "no such route; there are health, ready, metrics, gate, feedback"})
        if (b"GET" if method == b"HEAD" else method) not in methods.split():
            return _json(405, {"error": f"use {methods.decode().replace(' ', ' or ')}"})
        if path == b"health":
            return self._health()
        if path == b"ready":
            is_ready = not self._is_stopping() and self._is_ready()
            return _json(200 if is_ready else 503, {"ready": is_ready})
        if path == b"metrics":
            self._metrics.flush()
            return 200, render_metrics(self._settings.metrics_dir or ""), _METRICS
        if path == b"gate":
            return self._gate(post=method == b"POST")
        return self._feedback(body)

    def _is_ready(self) -> bool:
        """Whether every process of the collector has started. Once it was, it stays so: users are served also while another
        treatment process takes the place of one that ended (see health)."""
        folder = self._settings.metrics_dir
        if not self._was_ready:
            self._was_ready = folder is None or (Path(folder) / READY_FILE).exists()
        return self._was_ready

    def _health(self) -> Answer:
        """200 as long as users are served; "degraded" with the reasons where records are lost, copies are not made, or an arm is
        not set up correctly."""
        writer = self._writer
        totals = Totals(self._settings.metrics_dir or "", self._settings.experiment)
        n_lost = totals.n_lost
        reasons = []
        now = time.time()
        if writer.last_error is not None:
            reasons.append(f"records cannot be written: {writer.last_error}")
        if now - totals.lost_at < TROUBLE_S:  # after that the counter and the log have it
            reasons.append(f"{n_lost} records were lost, the last {now - totals.lost_at:.0f} s ago")
        if now - totals.unconnected_at < TROUBLE_S:
            reasons.append(
                f"connections are refused, {totals.n_unconnected} so far: too many open files; raise `ulimit -n`"
            )
        if totals.falling_behind:
            reasons.append(
                f"the spool grows faster than it is loaded: {totals.unloaded_bytes / 1e6:,.1f} MB wait, the oldest for "
                f"{totals.unloaded_age_s:,.0f} s"
            )
        if totals.budget_refused_usd:
            budget_usd = self._settings.shadow_budget_usd
            reasons.append(budget_refusal(totals.budget_refused_usd, totals.budget_left_usd, budget_usd or 0.0))
        if not is_locked(Path(self._settings.spool) / TREATMENT_LOCK):
            reasons.append("the treatment process is not running: copies wait, tokens and dollars are not counted")
        if self._controller_lock is not None and not is_locked(self._controller_lock):
            reasons.append("the canary's controller is not running: the guardrails are not evaluated")
        if self._state_seen is not None:
            reasons += self._out_of_sight(self._state_seen, now)
        faults = self._setup.faults()
        reasons += [fault.text for fault in faults]
        uncollected = self._uncollected.all()
        if uncollected:
            reasons.append(f"{summary(uncollected)}; {REMEDY}")
        return _json(
            200,
            {
                "status": "degraded" if reasons else "ok",
                "reasons": reasons,
                "records_lost": n_lost,
                "spool_unloaded_bytes": totals.unloaded_bytes,
                "setup_faults": [
                    {
                        "arm": fault.arm,
                        "kind": fault.kind,
                        "status": fault.status,
                        "code": fault.code,
                        "count": fault.count,
                    }
                    for fault in faults
                ],
                "uncollected": [{"method": one.method, "path": one.path, "count": one.count} for one in uncollected],
                "experiment": self._settings.experiment,
                "mode": self._settings.mode,
                "replica": self._settings.replica,
                "in_flight": len(self._exchanges),
                "compiled": is_compiled(),
            },
        )

    def _out_of_sight(self, seen: Path, now: float) -> list[str]:
        """Why this replica may serve another share than the others."""
        try:
            age_s = now - seen.stat().st_mtime
        except OSError:
            return ["the shared state of the canary has not been seen: this replica serves 0 %"]
        limit_s = self._settings.state_timeout_s
        if age_s <= limit_s:
            return []
        return [
            f"the shared state of the canary has not been seen for {age_s:.0f} s (state_timeout_s = {limit_s:g}): this replica "
            "serves the last stage known to be safe"
        ]

    def _gate(self, *, post: bool) -> Answer:
        try:
            raw = self._verdict.read_bytes()
            verdict: dict[str, Any] = json.loads(raw)
            age_s = max(0.0, time.time() - self._verdict.stat().st_mtime)
            recommendation = verdict.get("recommendation") or verdict.get("decision", {}).get("recommendation")
        except FileNotFoundError:
            return _json(
                409 if post else 404, {"error": "no verdict yet: run `evalpipe gate --watch`", "recommendation": None}
            )
        except (OSError, ValueError, AttributeError) as error:
            return _json(
                409 if post else 500, {"error": f"the verdict cannot be read: {error}", "recommendation": None}
            )
        status = 200 if not post or recommendation == "ship" else 409
        return _json(status, {**verdict, "recommendation": recommendation, "age_s": round(age_s, 3)})

    def _feedback(self, body: bytes) -> Answer:
        try:
            feedback = json.loads(body)
        except ValueError:
            return _json(400, {"error": "the body is not JSON"})
        request_id = feedback.get("request_id") if isinstance(feedback, dict) else None
        if not isinstance(request_id, str) or not 0 < len(request_id) <= 200:
            problem = "is missing" if not request_id else "is not one"
            return _json(400, {"error": f"request_id {problem}: it is the x-evalpipe-request-id of the answer"})
        refusal = self._ids.refusal(request_id)
        if refusal is not None:
            return _json(400, {"error": f"request_id {refusal}"})
        rating = feedback.get("rating")
        value = {"up": 1.0, "down": 0.0}.get(rating) if isinstance(rating, str) else rating
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (math.isfinite(value) and 0 <= value <= 1)
        ):
            return _json(400, {"error": 'rating must be "up", "down" or a number from 0 to 1'})
        comment = feedback.get("comment")
        if comment is not None and (not isinstance(comment, str) or len(comment) > _MAX_COMMENT):
            return _json(400, {"error": f"comment must be a text of at most {_MAX_COMMENT} characters"})
        if comment is not None:
            comment = comment.encode("utf-8", "replace").decode()
        if not self._recorder.feedback(request_id, float(value), comment):
            return _json(503, {"error": "the rating could not be written"})
        return _json(200, {"accepted": True})


def _json(status: int, value: Any) -> Answer:
    return status, render_json(value), _JSON
