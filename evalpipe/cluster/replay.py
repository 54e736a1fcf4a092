"""`evalpipe replay --ray`: the run of `workspace.replay`, with its calls made by shards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evalpipe.calls.budget import TokenEstimator
from evalpipe.calls.client import remember_keys
from evalpipe.calls.runner import Route, SystemClock
from evalpipe.cluster.driver import Cluster, ClusterRunner
from evalpipe.cluster.kinds import REPLAYING
from evalpipe.cluster.nodes import environment_for, spread
from evalpipe.cluster.shard import ShardRunner, no_limits, shard_parts
from evalpipe.models import Arm, ReplayCall
from evalpipe.providers.pricing import Price
from evalpipe.replay.http_client import HttpSender
from evalpipe.replay.plan import PlannedCall
from evalpipe.replay.requests import ReplayArm
from evalpipe.replay.runner import Asked, ReplayRun, ReplayRunner
from evalpipe.replay.summary import ReplaySummary
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.workspace.call_runs import price_by
from evalpipe.workspace.paths import Workspace, price_book
from evalpipe.workspace.replay import OpenRun


def replay_on(cluster: Cluster) -> OpenRun:
    """Where the calls of a replay are made: by the shards of a cluster."""
    return partial(_run_on, cluster)


@asynccontextmanager
async def _run_on(
    cluster: Cluster,
    workspace: Workspace,
    experiment: str,
    arms: Mapping[Arm, ReplayArm],
    routes: Mapping[Arm, Route],
    **parts: Any,
) -> AsyncIterator[ReplayRun]:
    bounds = spread(workspace, cluster, parts.pop("concurrency"))
    setup = ReplaySetup(
        experiment=experiment,
        arms=dict(arms),
        prices=price_book(workspace.config),
        environment=environment_for(arms.values()),
        concurrency=bounds.in_a_shard,
        cap=parts["budget"].cap,
        retries_errors=parts["retries_errors"],
        other_models={arm: frozenset(route.other_models) for arm, route in routes.items()},
    )
    yield _ClusterReplay(
        arm_routes=routes,
        kind=REPLAYING,
        setup=setup,
        cluster=cluster,
        concurrency=bounds.planned,
        max_in_flight=bounds.in_flight,
        **parts,
    )


@dataclass(kw_only=True)
class _ClusterReplay(ClusterRunner[PlannedCall, ReplayCall], ReplayRun):
    """The driver's side of a replay."""

    arm_routes: Mapping[Arm, Route]

    @property
    def routes(self) -> Mapping[str, Route]:
        return {route.who: route for route in self.arm_routes.values()}


@dataclass(kw_only=True)
class _ShardReplay(ShardRunner[PlannedCall, ReplayCall], ReplayRunner):
    """A shard's side of it."""

    @property
    def routes(self) -> Mapping[str, Route]:
        return {asked.route.who: asked.route for asked in self.arms.values()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySetup:
    """What a shard of a replay begins with. `arms` hold their keys; `cap`: USD, where there is one."""

    experiment: str
    arms: Mapping[Arm, ReplayArm] = field(repr=False)
    prices: Mapping[str, Price]
    environment: Mapping[str, str] = field(repr=False)
    concurrency: int
    cap: float | None
    retries_errors: bool
    other_models: Mapping[Arm, frozenset[str]]

    def open(self) -> tuple[ShardRunner[Any, Any], Callable[[], Awaitable[None]]]:
        """The runner, on the node it runs on."""
        os.environ.update(self.environment)
        asked = {arm: self._asked(settings) for arm, settings in self.arms.items()}
        runner = _ShardReplay(
            experiment=self.experiment,
            arms=asked,
            rules=ReadingRules(prices=self.prices),
            clock=SystemClock(),
            summary=ReplaySummary(experiment=self.experiment),
            retries_errors=self.retries_errors,
            **shard_parts(REPLAYING, cap=self.cap, concurrency=self.concurrency),
        )

        async def close() -> None:
            for one in asked.values():
                await one.sender.close()

        return runner, close

    def _asked(self, settings: ReplayArm) -> Asked:
        remember_keys(settings, next(iter(settings.key.values()), "").removeprefix("Bearer ") or None)
        return Asked(
            settings=settings,
            sender=HttpSender(settings.base_url or "", concurrency=self.concurrency, timeout_s=settings.timeout_s),
            route=Route(
                who=settings.who,
                model=settings.model,
                limiter=no_limits(),
                cost_of=price_by(self.prices, settings),
                estimator=TokenEstimator(max_tokens=4096),
                other_models=set(self.other_models[settings.arm]),
            ),
        )
