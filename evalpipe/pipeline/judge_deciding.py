"""The stop rule of `evalpipe judge --until-decided`, from the configuration and the experiment's record, and what the record
keeps of it: that the evidence was looked at, and where judging stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from evalpipe.analysis.record import ExperimentRecord, JudgedUntil
from evalpipe.errors import ConfigError
from evalpipe.judging.deciding import Decider, planned_pairs
from evalpipe.judging.spec import JudgeSpec
from evalpipe.pipeline.analyze import mode_of, planned_record, settings_of
from evalpipe.pipeline.record import load_record, recording, save_record
from evalpipe.pipeline.workspace import Workspace
from evalpipe.stats.betting import SIGMA2_BOTH_ORDERS, SIGMA2_ONE_ORDER, tuned_bets
from evalpipe.stats.planning import maximum_n
from evalpipe.stats.stopping import StopRule
from evalpipe.store.datasets import Store

DEFAULT_MARGIN = 0.03
"""The contract's margin of win_rate, absolute in θ."""


def decider_of(workspace: Workspace, store: Store, spec: JudgeSpec) -> Decider:
    """The rule is fixed before the first look: its bets by the planned n* of the experiment's record. Call after a plan made
    with `by_user`. Raises ConfigError for a judge that names no winner."""
    if spec.mode != "pairwise":
        raise ConfigError(f"--until-decided needs a judge that names a winner; {spec.name!r} is {spec.mode}")
    config = workspace.config
    decision = config.decision.metrics.get("win_rate") if config else None
    margin = DEFAULT_MARGIN if decision is None or decision.margin is None else decision.margin.value
    alpha = 1 - (config.decision.confidence_level if config else 0.95)
    record = _note(workspace, store.experiment or "", spec, JudgedUntil(judge=spec.name, at=_now()))
    n_star = record.n_star.get("win_rate") or next(iter(record.n_star.values()), 1000.0)
    both = config is None or config.judge.orders == "both"
    bets = tuned_bets(n_star, sigma2=SIGMA2_BOTH_ORDERS if both else SIGMA2_ONE_ORDER, alpha=alpha)
    return Decider(
        StopRule(bets=bets, margin=margin, alpha=alpha),
        planned_pairs(store.connection, spec.fingerprint),
        max_units=maximum_n(2 * n_star, "anytime"),
    )


def note_stop(workspace: Workspace, experiment: str, spec: JudgeSpec, decider: Decider) -> None:
    """Judging has ended before the log was judged: the report must say so."""
    stop = JudgedUntil(judge=spec.name, at=_now(), n_units=len(decider.preferences), conclusion=decider.conclusion)
    _note(workspace, experiment, spec, stop)


def forget_stop(workspace: Workspace, experiment: str, fingerprint: str) -> None:
    """Everything is judged after all: where a judge stopped once is of no interest any more."""
    with recording(workspace.data, experiment):
        record = load_record(workspace.data, experiment)
        stop = record.judged_until.get(fingerprint) if record else None
        if record and stop and stop.conclusion is not None:
            kept = {**record.judged_until, fingerprint: replace(stop, conclusion=None)}
            save_record(workspace.data, replace(record, judged_until=kept))


def _note(workspace: Workspace, experiment: str, spec: JudgeSpec, entry: JudgedUntil) -> ExperimentRecord:
    with recording(workspace.data, experiment):
        record = planned_record(
            workspace, experiment, mode_of(workspace.config), settings_of(workspace), datetime.now(UTC)
        )
        record = replace(record, judged_until={**record.judged_until, spec.fingerprint: entry})
        save_record(workspace.data, record)
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
