"""`evalpipe judge self-test`, `audit` and `reparse`: may a judge be trusted, and what do its stored replies say?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import islice

from evalpipe.analysis.analyze import analyze
from evalpipe.core.judgment import Judgment
from evalpipe.errors import DataError, UpstreamError
from evalpipe.judging.audit import Audit, audit
from evalpipe.judging.budget import Budget
from evalpipe.judging.client import ENDS, api_key, open_client
from evalpipe.judging.clock import SystemClock
from evalpipe.judging.journal import judging_lock
from evalpipe.judging.plan import Ask
from evalpipe.judging.reparse import reparsed
from evalpipe.judging.runner import Runner
from evalpipe.judging.selftest import SelfTest, asks, read_results
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.tally import RunTally
from evalpipe.pipeline import analyze as analysis
from evalpipe.pipeline.judge_setup import (
    JudgeOptions,
    cap_of,
    journal_folder,
    limiter_of,
    price_of,
    recover,
    settings_of,
    specs_of,
)
from evalpipe.pipeline.names import check_judge, loaded_experiment
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.datasets import open_store

_ROWS_AT_ONCE = 5_000


def self_test(workspace: Workspace, options: JudgeOptions) -> list[SelfTest]:
    """Known cases put to each pairwise judge. The answers are not kept: they are about the judge, not about the log."""
    found = []
    for spec in specs_of(workspace, options.judges):
        if spec.mode == "pairwise":
            api_key(spec)
            found.append(asyncio.run(_self_test(workspace, spec, options)))
    if not found:
        raise DataError("the self-test compares answers: name a pairwise judge with --judge")
    return found


def audit_judges(workspace: Workspace, options: JudgeOptions) -> list[Audit]:
    """What the log's judgments say of each judge that made them; the numbers are the report's."""
    name = loaded_experiment(workspace, options.experiment)
    for judge in options.judges:
        check_judge(workspace, name, judge)
    with open_store(workspace.data, name, selection=options.selection) as store:
        result = analyze(
            store.connection,
            experiment=name,
            mode=analysis.mode_of(workspace.config),
            settings=analysis.settings_of(workspace),
            now=datetime.now(UTC),
        )
    judges = [judge for judge in result.judges if not judge.name.startswith("label:")]
    judges = [
        judge for judge in judges if judge.mode == "pairwise" and (not options.judges or judge.name in options.judges)
    ]
    if not judges:
        raise DataError(f"{name}: no pairwise judgments to audit; run `evalpipe judge` first")
    return [audit(judge) for judge in judges]


def reparse(workspace: Workspace, options: JudgeOptions) -> dict[str, dict[str, int]]:
    """Read stored replies again. Judge → status → replies that now read so and did not before."""
    name = loaded_experiment(workspace, options.experiment)
    changes: dict[str, dict[str, int]] = {}
    with judging_lock(journal_folder(workspace, name)):
        recover(workspace, name)
        for spec in specs_of(workspace, options.judges):
            counts = changes.setdefault(spec.name, {})
            with open_store(workspace.data, name) as store:
                rows = reparsed(store.connection, spec, at=datetime.now(UTC))
                while batch := list(islice(rows, _ROWS_AT_ONCE)):
                    store.write_judgments(batch)
                    for row in batch:
                        counts[row.status.value] = counts.get(row.status.value, 0) + 1
    return changes


class _NoJournal:
    """The self-test keeps nothing."""

    def begin(self, judgment: Judgment) -> None:
        return None

    def append(self, judgment: Judgment) -> None:
        return None


async def _self_test(workspace: Workspace, spec: JudgeSpec, options: JudgeOptions) -> SelfTest:
    config, clock = settings_of(workspace), SystemClock()
    judgments: dict[str, Judgment] = {}

    def watch(ask: Ask, judgment: Judgment) -> str | None:
        judgments[ask.key] = judgment
        return None

    tally = RunTally(judge=spec.name, fingerprint=spec.fingerprint)
    runner = Runner(
        spec=spec,
        client=open_client(spec, concurrency=config.concurrency),
        limiter=limiter_of(config, clock),
        budget=Budget(cap=cap_of(workspace, options)),
        cost_of=price_of(workspace, spec),
        journal=_NoJournal(),
        clock=clock,
        tally=tally,
        concurrency=config.concurrency,
        watch=watch,
        ask_identical=True,
    )
    try:
        await runner.run(iter([asks()]))
    finally:
        await runner.client.close()
    if tally.stopped is not None and tally.stopped in ENDS:
        raise UpstreamError(ENDS[tally.stopped](spec, tally.message or ""))
    return read_results(spec.name, spec.fingerprint, judgments, tally.spent_usd)
