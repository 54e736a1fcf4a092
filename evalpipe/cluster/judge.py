"""`evalpipe judge --ray`: the judge's run of `workspace.judge`, with its calls made by shards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evalpipe.calls.client import open_client
from evalpipe.calls.runner import Route, SystemClock
from evalpipe.cluster.driver import Cluster, ClusterRunner
from evalpipe.cluster.kinds import JUDGING
from evalpipe.cluster.nodes import environment_for, spread
from evalpipe.cluster.shard import ShardRunner, no_limits, shard_parts
from evalpipe.judging.plan import JudgeCall
from evalpipe.judging.runner import JudgeRun, Runner, RunSummary
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import Judgment, JudgmentStatus
from evalpipe.providers.pricing import Price
from evalpipe.workspace.call_runs import price_by
from evalpipe.workspace.judge import JudgeBy, judge_online
from evalpipe.workspace.paths import Workspace, price_book


def judge_on(cluster: Cluster) -> JudgeBy:
    """Judging call by call, the calls made by the shards of a cluster."""
    return partial(judge_online, opened=partial(_run_on, cluster))


@asynccontextmanager
async def _run_on(cluster: Cluster, workspace: Workspace, spec: JudgeSpec, **parts: Any) -> AsyncIterator[JudgeRun]:
    bounds = spread(workspace, cluster, parts.pop("concurrency"))
    setup = JudgeSetup(
        spec=spec,
        prices=price_book(workspace.config),
        environment=environment_for([spec]),
        concurrency=bounds.in_a_shard,
        cap=parts["budget"].cap,
        max_attempts=parts["max_attempts"],
        other_models=frozenset(parts["other_models"]),
    )
    yield _ClusterJudge(
        spec=spec,
        kind=JUDGING,
        setup=setup,
        cluster=cluster,
        concurrency=bounds.planned,
        max_in_flight=bounds.in_flight,
        **parts,
    )


@dataclass(kw_only=True)
class _ClusterJudge(ClusterRunner[JudgeCall, Judgment], JudgeRun):
    """The driver's side of a judge's run."""

    @property
    def routes(self) -> Mapping[str, Route]:
        return {self.route.who: self.route}

    def again(self, row: Judgment, kind: str) -> None:
        """A reply that could not be read is repaired; anything else is made again."""
        if row.status is JudgmentStatus.UNPARSEABLE:
            self.summary.n_repairs += 1
        else:
            super().again(row, kind)


@dataclass(kw_only=True)
class _ShardJudge(ShardRunner[JudgeCall, Judgment], Runner):
    """A shard's side of it."""

    @property
    def routes(self) -> Mapping[str, Route]:
        return {self.route.who: self.route}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSetup:
    """What a shard of a judge's run begins with. `environment`: keys and addresses; `cap`: USD, where there is one."""

    spec: JudgeSpec
    prices: Mapping[str, Price]
    environment: Mapping[str, str] = field(repr=False)
    concurrency: int
    cap: float | None
    max_attempts: int
    other_models: frozenset[str]

    def open(self) -> tuple[ShardRunner[Any, Any], Callable[[], Awaitable[None]]]:
        """The runner, on the node it runs on."""
        os.environ.update(self.environment)
        client = open_client(self.spec, concurrency=self.concurrency)
        runner = _ShardJudge(
            spec=self.spec,
            client=client,
            limiter=no_limits(),
            cost_of=price_by(self.prices, self.spec),
            clock=SystemClock(),
            summary=RunSummary(judge=self.spec.name, fingerprint=self.spec.fingerprint),
            max_attempts=self.max_attempts,
            other_models=set(self.other_models),
            **shard_parts(JUDGING, cap=self.cap, concurrency=self.concurrency),
        )
        return runner, client.close
