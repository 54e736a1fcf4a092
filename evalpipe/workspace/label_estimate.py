"""`evalpipe label --estimate`: how many labels an interval of the report needs, by what the log, a judge and labels show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from evalpipe.analysis.settings import CORRECTED, resolve_look
from evalpipe.errors import ConfigError, DataError
from evalpipe.files import sql_statements
from evalpipe.labels.planning import MOST_VARIANCE, Critical, LabelPlan, Spread, sizes_of, spread_of
from evalpipe.labels.store import (
    JOURNAL_NAME,
    SOURCE,
    labels_folder,
    read_state,
)
from evalpipe.models import FINAL
from evalpipe.store.query import open_store
from evalpipe.workspace.analyze import mode_of, planned_record, settings_of
from evalpipe.workspace.label import LabelOptions, candidates_of, store_waiting, stratifying_judge
from evalpipe.workspace.paths import Workspace, loaded_experiment

_SQL = sql_statements("evalpipe.workspace", "label_estimate.sql")

SECONDS_A_LABEL = 30.0
"""a plan's, before anybody has labelled"""
LABELS_TO_PLAN_BY = 20
"""labelled users, or pairs beside a judge, from which on a plan is by what they show"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelsNeeded:
    """How many labels the report's interval of ± `half_width` needs.

    Attributes:
        half_width: in points of the win rate, as a share.
        looks: how the report may be looked at, which its intervals depend on: fixed | anytime | scheduled.
        n_pairs, n_users: of the log.
        variance: of a pair's preference that was reckoned with; `variance_from`: labels | at most.
        within_user: correlation of two pairs of one user; `within_from`: labels | judge | at most.
        correlation: between the judge and the labels on the pairs that have both; None: fewer than 20 of them.
        half_width_of_all: where every pair is labelled; None: the report shows no interval.
        users_needed: like the log's, where labelling every pair is not enough; None: it is, or no number of users is.
        alone: labels without the judge's help; None: all pairs are too few.
        with_judge: correlation → labels with it.
        seconds: a label takes.
    """

    half_width: float
    looks: str
    n_pairs: int
    n_users: int
    variance: float
    variance_from: str
    within_user: float
    within_from: str
    correlation: float | None
    half_width_of_all: float | None
    users_needed: int | None
    alone: int | None
    with_judge: Mapping[float, int | None]
    seconds: float


def estimate_labels(
    workspace: Workspace, points: float, options: LabelOptions, *, now: datetime | None = None
) -> LabelsNeeded:
    """How many labels the report's interval of ± `points` of the win rate needs. Raises ConfigError for an impossible width."""
    if not 0 < points < 50:
        raise ConfigError(f"--estimate {points:g}: give points of the win rate between 0 and 50, such as 5")
    name = loaded_experiment(workspace, options.experiment)
    store_waiting(workspace, name)
    state, _ = read_state(labels_folder(workspace.data, name) / JOURNAL_NAME)
    times = sorted(one.seconds for one in state.given.values() if one.seconds is not None)
    seconds = times[len(times) // 2] if times else SECONDS_A_LABEL
    with open_store(workspace.data, name, compared=True) as store:
        judge, mark = stratifying_judge(workspace, store, options.judge)
        candidates = candidates_of(workspace, store, judge, mark)
        found = store.connection.execute(_SQL["users"], {"source": SOURCE}).fetchall()
        correlation, n_both = store.connection.execute(
            _SQL["correlation"], {"source": SOURCE, "judge": judge, "fingerprint": mark, "final": sorted(FINAL)}
        ).fetchall()[0]
        first_us = store.connection.execute("SELECT epoch_us(min(started_at)) FROM exchanges").fetchall()[0][0]
    if not candidates:
        raise DataError(f"{name}: no pair to label: no request has an answer of both arms whose texts are there")
    of_request = {request_id: (user, label) for request_id, user, label in found}
    labels: dict[str, list[float]] = {}
    verdicts: dict[str, list[float]] = {}
    for one in candidates:
        user, label = of_request[one.request_id]
        if label is not None:
            labels.setdefault(user, []).append(label)
        if one.preference is not None:
            verdicts.setdefault(user, []).append(one.preference)
    by_labels = spread_of(list(labels.values())) if len(labels) >= LABELS_TO_PLAN_BY else None
    by_judge = spread_of(list(verdicts.values()))
    # A judge that sees ties where it is in doubt varies less than people do: of it only how alike a user's pairs are is used.
    variance, variance_from = (by_labels.variance, "labels") if by_labels else (MOST_VARIANCE, "at most")
    repeated = sum(len(found) > 1 for found in labels.values())
    if by_labels is not None and repeated >= LABELS_TO_PLAN_BY:
        within, within_from = by_labels.within, "labels"
    elif by_judge is not None:
        within, within_from = by_judge.within, "judge"
    else:
        within, within_from = 1.0, "at most"
    looks, critical = _look_plan_of(workspace, name, first_us, now or datetime.now(UTC))
    plan = LabelPlan(
        sizes=sizes_of([of_request[one.request_id][0] for one in candidates]),
        spread=Spread(variance=variance, within=within),
        critical=critical,
    )
    usable = correlation if correlation is not None and n_both >= LABELS_TO_PLAN_BY else None
    half_width, of_all = points / 100, plan.half_width(plan.n_pairs)
    alone = plan.labels_for(half_width)
    rhos = [] if judge is None else [max(0.0, usable)] if usable is not None else [0.3, 0.5, 0.7]
    return LabelsNeeded(
        half_width=half_width,
        looks=looks,
        n_pairs=plan.n_pairs,
        n_users=plan.n_users,
        variance=variance,
        variance_from=variance_from,
        within_user=within,
        within_from=within_from,
        correlation=usable,
        half_width_of_all=of_all if math.isfinite(of_all) else None,
        users_needed=None if alone is not None else plan.users_for(half_width),
        alone=alone,
        with_judge={rho: plan.labels_for(half_width, correlation=rho) for rho in rhos},
        seconds=seconds,
    )


def _look_plan_of(workspace: Workspace, name: str, first_us: int | None, now: datetime) -> tuple[str, Critical]:
    """(how the report may be looked at, the critical value of its corrected win rate by labelled users)."""
    settings, mode = settings_of(workspace), mode_of(workspace.config)
    look = resolve_look(
        settings.looks,
        alpha=settings.alpha,
        paired=mode == "shadow",
        n_star=planned_record(workspace, name, mode, settings, now).n_star,
        first_us=first_us,
        now=now,
    )
    multiplier = look.multiplier(CORRECTED)

    def critical(n_users: float) -> float:
        # Two degrees of freedom go to the mean and to how much of the judge is used.
        return multiplier.critical(look.alpha, df=n_users - 2, n=n_users) if n_users > 2 else math.inf

    return look.mode, critical
