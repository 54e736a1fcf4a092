"""`evalpipe judge --until-decided`: the decision's rules at each look, and what the experiment's record keeps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from evalpipe.analysis.analyze import Conclusion, Measurements, conclude, measure, summarized, with_preferences
from evalpipe.analysis.record import ExperimentRecord, JudgedUntil, take_look
from evalpipe.core.format import within_sentence
from evalpipe.errors import ConfigError
from evalpipe.judging.deciding import Decider, LookResult, planned_pairs
from evalpipe.judging.spec import JudgeSpec
from evalpipe.pipeline.analyze import mode_of, planned_record, settings_of
from evalpipe.pipeline.judge_setup import settings_of as judge_settings_of
from evalpipe.pipeline.record import excluding, load_record, recording, save_record
from evalpipe.pipeline.workspace import Workspace
from evalpipe.stats.betting import SIGMA2_BOTH_ORDERS, SIGMA2_ONE_ORDER
from evalpipe.store.datasets import Store, open_store
from evalpipe.store.selection import Selection

WIN_RATE = "win_rate"
OPEN = frozenset({"collect_more", "unmeasured"})
"""rules that ask for more data"""


class Rules:
    """The decision's rules over everything that was measured before the run, with the win rate of the present verdicts."""

    def __init__(self, found: Measurements, *, sigma2: float) -> None:
        """Args:
        found: the measurements at the beginning of the run.
        sigma2: planned variance of a user's preference.
        """
        self._found, self._sigma2 = found, sigma2
        self.last: tuple[Measurements, Conclusion] | None = None

    def __call__(self, preferences: Sequence[float], n_pairs: int) -> LookResult:
        found = with_preferences(self._found, preferences, n_pairs, sigma2=self._sigma2)
        concluded = conclude(found)
        self.last = found, concluded
        decision = concluded.decision
        return LookResult(
            stop=decision.rule not in OPEN,
            reason=decision.headline.rstrip(".") if decision.rule not in OPEN else _no_change(concluded),
            win_rate_blocks=WIN_RATE in decision.blocking,
            recommendation=decision.recommendation,
            rule=decision.rule,
        )


def _no_change(concluded: Conclusion) -> str:
    """Why verdicts are of no more use although the decision is open: what it waits for is not the judge's."""
    open_ = [within_sentence(concluded.results[name].label) for name in concluded.decision.blocking]
    missing = f"; not settled: {', '.join(open_)}" if open_ else ""
    return f"more judging would not change the decision{missing}"


def decider_of(workspace: Workspace, store: Store, spec: JudgeSpec) -> tuple[Decider, Rules]:
    """The pairs and the rules of a run. Call after a plan made with `keep_order`.

    Raises:
        ConfigError: for a judge that names no winner.
    """
    if spec.mode != "pairwise":
        raise ConfigError(f"--until-decided needs a judge that names a winner; {spec.name!r} is {spec.mode}")
    name = store.experiment or ""
    record = _note(workspace, name, JudgedUntil(judge=spec.name, at=_now()), spec.fingerprint)
    both = judge_settings_of(workspace).orders == "both"
    rules = Rules(_measured(workspace, name, spec, record), sigma2=SIGMA2_BOTH_ORDERS if both else SIGMA2_ONE_ORDER)
    return Decider(rules, planned_pairs(store.connection, spec.fingerprint), both_orders=both), rules


def note_looks(
    workspace: Workspace, experiment: str, spec: JudgeSpec, decider: Decider, rules: Rules, stop: str | None
) -> None:
    """Keep what a run did: its looks, the decision it reached, and (`stop`) why it ended before the log was judged.

    The looks of the judge that decides are the experiment's; those of another one are not, as a report of another judge is none.
    """
    n_new = sum(look.is_new for look in decider.looks)
    decides = _decides(workspace, spec)
    entry = JudgedUntil(judge=spec.name, at=_now(), n_units=len(decider.preferences), conclusion=stop)
    reached = rules.last if decides and stop is not None else None
    n_looks = max(0, n_new - (reached is not None)) if decides else 0
    _note(workspace, experiment, entry, spec.fingerprint, n_looks=n_looks, reached=reached)


def forget_stop(workspace: Workspace, experiment: str, fingerprint: str) -> None:
    """Everything is judged after all: where a judge stopped once is of no interest any more."""
    with recording(workspace.data, experiment):
        record = load_record(workspace.data, experiment)
        stop = record.judged_until.get(fingerprint) if record else None
        if record and stop and stop.conclusion is not None:
            kept = {**record.judged_until, fingerprint: replace(stop, conclusion=None)}
            save_record(workspace.data, replace(record, judged_until=kept))


def _decides(workspace: Workspace, spec: JudgeSpec) -> bool:
    """Whether a report without `--judge` reads this judge."""
    configured = workspace.config.judge.name if workspace.config else ()
    return not configured or spec.name == configured[0]


def _measured(workspace: Workspace, name: str, spec: JudgeSpec, record: ExperimentRecord) -> Measurements:
    settings = settings_of(workspace, judge=None if _decides(workspace, spec) else spec.name)
    settings = replace(settings, n_star=record.n_star, exclusions=tuple(record.exclusions))
    with open_store(workspace.data, name, selection=excluding(Selection(), record)) as store:
        return measure(
            store.connection,
            experiment=name,
            mode=mode_of(workspace.config),
            settings=settings,
            now=datetime.now(UTC),
            record=record,
        )


def _note(
    workspace: Workspace,
    experiment: str,
    entry: JudgedUntil,
    fingerprint: str,
    *,
    n_looks: int = 0,
    reached: tuple[Measurements, Conclusion] | None = None,
) -> ExperimentRecord:
    with recording(workspace.data, experiment):
        mode, settings = mode_of(workspace.config), settings_of(workspace)
        record = planned_record(workspace, experiment, mode, settings, datetime.now(UTC))
        record = replace(
            record,
            n_looks=record.n_looks + n_looks,
            last_look_at=_now() if n_looks else record.last_look_at,
            judged_until={**record.judged_until, fingerprint: entry},
        )
        if reached is not None:
            found, concluded = reached
            settings = replace(settings, exclusions=tuple(record.exclusions))
            data = f"judging {fingerprint} {entry.n_units}"
            now = replace(found, now=datetime.now(UTC))
            _, record = take_look(summarized(now, concluded), record, mode=mode, settings=settings, data=data)
        save_record(workspace.data, record)
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
