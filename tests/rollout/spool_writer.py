"""Writes what a collector would: request and answer records of a simulated canary, into real spool segments."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from evalpipe.collector.assignment import CanaryShare, choose
from evalpipe.models import Arm, Outcome
from evalpipe.rollout.observations import Observation
from evalpipe.spool.format import Body, RequestRecord, ResponseRecord, render_record

OK = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
)
ASK = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})


class SpoolWriter:
    """`fails(arm, i)` (whether, or with which error: status and body) and `latency_ms(arm, i)` shape the answers; the share in
    force is read as a worker reads it. `fingerprint`: of the configuration, as records carry it."""

    def __init__(self, data: Path, experiment: str, name: str = "served-test", *, clock=lambda: 1e9) -> None:
        self.share = CanaryShare(data / "canary" / f"{experiment}.jsonl", clock=iter(itertools.count(0, 10)).__next__)
        self.experiment, self.clock, self.name = experiment, clock, name
        self.folder = data / "spool"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.segment, self.n = 0, 0
        self.fingerprint: str | None = None

    def serve(
        self,
        n: int,
        *,
        fails=lambda arm, i: False,
        latency_ms=lambda arm, i: 800.0,
        users: int = 10**9,
        unit: str | None = None,
    ) -> dict:
        """`n` requests of up to `users` users, or all of `unit`. How many each arm served."""
        served = {"control": 0, "treatment": 0}
        lines = []
        for _ in range(n):
            self.n += 1
            user = unit or f"user-{self.n % users}"
            chosen = choose(self.experiment, user, self.share())
            arm, request_id = chosen.arm.value, f"{self.name}-{self.n}"
            served[arm] += 1
            request = RequestRecord(
                request_id=request_id,
                experiment=self.experiment,
                mode="canary",
                arm=arm,
                received_at=self.clock(),
                unit_id=user,
                endpoint="chat.completions",
                body=Body(text=ASK),
                percentage=chosen.percentage,
                stage=chosen.stage,
                config_fingerprint=self.fingerprint,
            )
            failed = fails(arm, self.n)
            if failed is True:
                failed = 500, '{"error": {"message": "boom", "type": "server_error"}}'
            response = ResponseRecord(
                request_id=request_id,
                experiment=self.experiment,
                arm=arm,
                role="served",
                provider="openai",
                endpoint="chat.completions",
                started_at=self.clock(),
                ended="complete",
                latency_ms=latency_ms(arm, self.n),
                status=failed[0] if failed else 200,
                headers={"content-type": "application/json"},
                body=Body(text=failed[1] if failed else OK),
            )
            lines += [render_record(request), render_record(response)]
        with (self.folder / f"{self.name}.{self.segment:06}.jsonl").open("ab") as file:
            file.write(b"".join(lines))
        return served


def observe_without_reading(request: RequestRecord, response: ResponseRecord) -> Observation | None:
    """Outcome by transport and HTTP status alone, without reading the body as a stand-in for the workspace's reader."""
    if response.ended == "client_closed":
        return None
    if response.ended == "timeout":
        outcome = Outcome.TIMEOUT
    elif response.status is None or response.status >= 400 or response.ended in {"connect_error", "protocol_error"}:
        outcome = Outcome.HTTP_ERROR
    else:
        outcome = Outcome.UNREADABLE if response.ended == "cut" else Outcome.OK
    latency = response.timeout_ms if outcome is Outcome.TIMEOUT and response.timeout_ms else response.latency_ms
    return Observation(
        arm=Arm(response.arm),
        unit=request.unit_id or request.request_id,
        outcome=outcome,
        latency_ms=latency,
        asked_at=request.received_at,
    )
