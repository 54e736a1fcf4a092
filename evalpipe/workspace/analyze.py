"""Configuration and store → `Analysis`: what `report` and `gate` share."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.judges import SETTLED
from evalpipe.analysis.record import ExperimentRecord, new_record, take_look, with_judging_stop
from evalpipe.analysis.result import AlternativeDecision, Analysis
from evalpipe.analysis.settings import CustomMetric, Exclusion, JudgeInfo, MetricRule, Settings
from evalpipe.analysis.sql import Connection
from evalpipe.collector.traffic_watch import folder_of, read_uncollected
from evalpipe.config import ArmConfig, Config
from evalpipe.errors import ConfigError, DataError
from evalpipe.identity import fingerprint
from evalpipe.judging.costs import settled_calls, settlements_folder
from evalpipe.labels.store import has_waiting
from evalpipe.models import AGAINST_ITSELF
from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import cost_of, library_version
from evalpipe.store.query import Store, candidates_on, control_from, open_store, read_selection
from evalpipe.version import __version__
from evalpipe.workspace.damaged import REMEDY, damage_sentence, with_damage
from evalpipe.workspace.load import passes_through
from evalpipe.workspace.paths import Workspace, experiment_name, has_record, price_book
from evalpipe.workspace.record import excluding, load_record, recording, save_record
from evalpipe.workspace.secrets import shown_config

LIBRARIES = ("duckdb", "numpy", "scipy")
Connect = Callable[[Store, Settings], Connection]
"""the connection that an analysis of a store goes through"""


def connect_here(store: Store, settings: Settings) -> Connection:
    """The store's own: everything is read on this machine."""
    return store.connection


def analyze_workspace(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    judge: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
    now: datetime | None = None,
    details: bool = True,
    pilot: bool = False,
    connect: Connect | None = None,
) -> Analysis:
    """The analysis of an experiment as configured. Raises EvalpipeError in one line.

    `connect`: how the store is read, by default on this machine.
    `pilot`: to measure how noisy the metrics are, by plain intervals; no look of the experiment, nothing is recorded.
    """
    selection = read_selection(since, until, where)
    name = experiment_name(workspace, experiment)
    take_labels(workspace, name)
    mode, settings = mode_of(workspace.config), settings_of(workspace, judge=judge)
    settings = replace(settings, looks="fixed") if pilot else settings
    if name.endswith(AGAINST_ITSELF):
        settings = _of_control_alone(settings)
    at = now or datetime.now(UTC)
    options = {"judge": judge, "since": since, "until": until, "where": where}
    plan = planned_record(workspace, name, mode, settings, at)
    uncollected = read_uncollected(folder_of(workspace.data, name))
    settings = replace(settings, exclusions=tuple(plan.exclusions), uncollected=tuple(uncollected))

    def look(but: Sequence[Exclusion] = ()) -> Analysis:
        with open_store(
            workspace.data, name, selection=excluding(selection, plan, but=but), compared=True, analysis=True
        ) as store:
            if store.of_exchanges(store.damaged) and not store.of_exchanges(store.files):
                raise DataError(f"{damage_sentence(store.damaged, workspace.data)}; {REMEDY}")
            facts = provenance(workspace, store, name, options)
            _note_settled(store)
            found = analyze(
                (connect or connect_here)(store, settings),
                experiment=name,
                mode=mode,
                settings=replace(settings, n_star=plan.n_star),
                now=at,
                provenance={**facts, "n_star": plan.n_star, "n_looks": plan.n_looks},
                details=details and not but,
                record=plan,
            )
            found = with_damage(found, store.damaged, workspace.data)
        if details and not but:
            found = _with_drift(workspace, found, settings)
        return with_judging_stop(found, plan)

    def both() -> Analysis:
        """A period excluded after its data were seen, without a fault in it, is outside the error guarantee: show both."""
        doubtful = [one for one in plan.exclusions if one.seen and not one.fault]
        return with_alternative(look(), look(doubtful)) if doubtful else look()

    if pilot or not selection.is_whole or judge is not None:  # a part of it, or another judge: no look of it
        return look() if pilot else both()
    with recording(workspace.data, name, read_only=True) as writable:
        plan = planned_record(workspace, name, mode, settings, at)
        found = both()
        analysis, after = take_look(
            found, plan, mode=mode, settings=settings, data=found.provenance["data"]["fingerprint"]
        )
        if writable and after != load_record(workspace.data, name):
            save_record(workspace.data, after)
        return analysis


def take_labels(workspace: Workspace, experiment: str) -> None:
    """Labels of a page that was killed are in its journal only."""
    if has_waiting(workspace.data, experiment) and os.access(workspace.data, os.W_OK):
        from evalpipe.workspace.label import store_waiting  # only where people have labelled

        store_waiting(workspace, experiment)


def _of_control_alone(settings: Settings) -> Settings:
    """The settings where both answers of a pair are control's."""
    arms, priced = dict(settings.arms), dict(settings.priced)
    if "control" in arms:
        arms["treatment"] = arms["control"]
    if "control" in priced:
        priced["treatment"] = priced["control"]
    return replace(settings, arms=arms, priced=priced)


def _with_drift(workspace: Workspace, found: Analysis, settings: Settings) -> Analysis:
    """The analysis with what control's replayed answers are beside its recorded ones, where it was asked once more."""
    if found.experiment.endswith(AGAINST_ITSELF):
        return found
    name = f"{found.experiment}{AGAINST_ITSELF}"
    with open_store(workspace.data, name) as store:
        if not store.connection.execute("SELECT 1 FROM exchanges WHERE arm = 'treatment' LIMIT 1").fetchall():
            return found
        n, n_same = store.connection.execute(
            "SELECT count(*), count(*) FILTER (c.text IS NOT DISTINCT FROM t.text "
            "AND c.tool_calls IS NOT DISTINCT FROM t.tool_calls) "
            "FROM exchanges AS c JOIN exchanges AS t USING (request_id) WHERE c.arm = 'control' AND t.arm = 'treatment' "
            "AND c.outcome IN ('ok', 'refused', 'truncated') AND t.outcome IN ('ok', 'refused', 'truncated')"
        ).fetchall()[0]
        if not n:
            return found
        plain = replace(_of_control_alone(settings), looks="fixed", exclusions=())
        itself = analyze(
            store.connection, experiment=name, mode="shadow", settings=plain, now=datetime.now(UTC), details=False
        )
    judge = next((one for one in itself.judges if one.feeds_decision), None)
    drift: dict[str, Any] = {"requests": n, "same_text": n_same, "experiment": name}
    if judge is not None and judge.win_rate is not None:
        drift |= {
            "judge": judge.name,
            "pairs": judge.n_pairs,
            "loses": judge.wins,
            "ties": judge.ties,
            "wins": judge.losses,
            "win_rate": judge.win_rate,
            "ci_low": judge.ci_low,
            "ci_high": judge.ci_high,
        }
    return replace(found, provenance={**found.provenance, "control_again": drift})


def _note_settled(store: Store) -> None:
    """Give the analysis what was settled of the judges' calls."""
    settled = settled_calls(settlements_folder(store.data, store.experiment or ""))
    if settled:
        store.connection.execute(SETTLED)
        store.connection.execute(
            "INSERT INTO judging_settled SELECT unnest($1::VARCHAR[]), unnest($2::DOUBLE[])",
            [list(settled), list(settled.values())],
        )


def with_alternative(found: Analysis, without: Analysis) -> Analysis:
    """The analysis with the decision on all data beside it; the headline names it."""
    other = AlternativeDecision(
        recommendation=without.decision.recommendation, headline=without.decision.headline.rstrip(".")
    )
    words = RECOMMENDATION_WORDS.get(other.recommendation, other.recommendation)
    same = other.recommendation == found.decision.recommendation
    instead = "the decision is the same with it" if same else f"with it the decision would be: {words}"
    addition = f"A period was excluded after its data had been seen, which is outside the error guarantee; {instead}."
    decision = replace(found.decision, headline=f"{found.decision.headline} {addition}", without_exclusions=other)
    return replace(found, decision=decision)


RECOMMENDATION_WORDS = {
    "ship": "ship the treatment",
    "keep": "keep control",
    "collect_more": "collect more data",
    "invalid": "no decision",
}


def planned_record(workspace: Workspace, name: str, mode: str, settings: Settings, now: datetime) -> ExperimentRecord:
    """The experiment's record, or the one its first look will write."""
    return load_record(workspace.data, name) or new_record(
        experiment=name, mode=mode, settings=settings, now=now.astimezone(UTC).isoformat(timespec="seconds")
    )


def mode_of(config: Config | None) -> str:
    """Without a workspace a log is compared request by request, as in shadow mode."""
    return config.experiment.mode if config else "shadow"


def settings_of(workspace: Workspace, *, judge: str | None = None) -> Settings:
    """The settings of the analysis, from the configuration (its defaults where there is none)."""
    config = workspace.config
    if config is None:
        return Settings(judge=judge)
    decision = config.decision
    return Settings(
        confidence_level=decision.confidence_level,
        looks=decision.looks,
        policy=decision.policy,
        turns=decision.turns,
        labels=decision.labels,
        pairs_per_unit=config.judge.pairs_per_unit,
        later_turns_percent=config.judge.later_turns_percent,
        prices=_prices(config),
        priced=_priced(config),
        passes_through=passes_through(config),
        primary=decision.primary,
        min_effect_of_interest=decision.min_effect_of_interest,
        max_requests=decision.max_requests,
        metrics={
            name: MetricRule(
                role=rule.role,
                margin=None if rule.margin is None else rule.margin.value,
                margin_relative=rule.margin is not None and rule.margin.relative,
                weight=rule.weight,
            )
            for name, rule in decision.metrics.items()
        },
        custom=tuple(
            CustomMetric(
                name=name,
                sql=one.sql,
                function=one.function,
                direction=one.direction,
                unit=one.unit,
                label=one.label,
            )
            for name, one in config.metrics.items()
        ),
        segments=config.segments,
        judges=tuple(_judge_info(workspace, config, name) for name in config.judge.name),
        judge=judge,
        treatment_percent=config.experiment.treatment_percent if config.experiment.mode == "ab" else None,
        seed=config.experiment.effective_salt,
        arms=_arms(config),
    )


def provenance(workspace: Workspace, store: Store, name: str, options: Mapping[str, str | None]) -> dict[str, Any]:
    """Where the numbers come from, so that they can be had again: versions, configuration, files, selection."""
    config = workspace.config
    chosen = {key: value for key, value in options.items() if value is not None}
    return {
        "evalpipe": __version__,
        "versions": {
            "python": platform.python_version(),
            **{library: metadata.version(library) for library in LIBRARIES},
        },
        "config": None if config is None else shown_config(config),
        "config_fingerprint": None
        if config is None
        else fingerprint(config.model_dump(mode="json", exclude={"data"})),  # not where the data are
        **_about(workspace, name),
        "data": _data(store),
        "prices": {"library": library_version(), "own": sorted(config.prices) if config else []},
        **_candidates(workspace, name),
        "selection": chosen,
        "reproduce": _reproduce(name, chosen),
    }


def _about(workspace: Workspace, name: str) -> dict[str, Any]:
    """What the configuration holds on the experiment itself; nothing where another experiment is looked at."""
    config = workspace.config
    if config is None or name.removesuffix(AGAINST_ITSELF) != config.experiment.name:
        return {}
    keys = ("question", "owner", "link", "requests_per_month")
    found = {key: value for key in keys if (value := getattr(config.experiment, key)) is not None}
    return {"about": found} if found else {}


def _candidates(workspace: Workspace, name: str) -> dict[str, Any]:
    """The experiments that are compared with one control, where there are several: each of them can win by chance."""
    control = control_from(workspace.data, name) or name
    found = set(candidates_on(workspace.data, control)) | {name}
    if has_record(workspace.data, control):
        found.add(control)
    return {"control_of": control, "candidates": sorted(found)} if len(found) > 1 else {}


def _data(store: Store) -> dict[str, Any]:
    """The files by number, size and a hash of their names and sizes: Parquet files are never changed in place."""
    listed = [(path.relative_to(store.data).as_posix(), path.stat().st_size) for path in store.files]
    digest = hashlib.sha256("\n".join(f"{path} {size}" for path, size in sorted(listed)).encode()).hexdigest()[:16]
    return {"n_files": len(listed), "n_bytes": sum(size for _, size in listed), "fingerprint": digest}


def _reproduce(name: str, chosen: Mapping[str, str]) -> str:
    import shlex

    extra = [part for key, value in chosen.items() for part in (f"--{key}", value)]
    return shlex.join(["evalpipe", "report", "--experiment", name, *extra])


def _judge_info(workspace: Workspace, config: Config, name: str) -> JudgeInfo:
    """The configured judge. A name without a judge file is another tool's judge: only its name is known."""
    from evalpipe.judging.spec import load_judge

    orders = config.judge.orders
    try:
        spec = load_judge(
            name,
            workspace.judge_folders(),
            workspace.prompt_folders(),
            model=config.judge.model,
            base_url=config.judge.base_url,
            api_key_env=config.judge.api_key_env,
        )
    except ConfigError:
        return JudgeInfo(name=name, orders=orders)
    return JudgeInfo(
        max_attempts=config.judge.max_attempts,
        name=name,
        orders=orders,
        fingerprint=spec.fingerprint,
        mode=spec.mode.value,
        rubric=spec.system,
        model=spec.model,
    )


def _prices(config: Config) -> str:
    """A fingerprint of the configured prices of answers; the judge's price decides nothing."""
    own = {name: one.model_dump(mode="json") for name, one in config.prices.items() if name != config.judge.model}
    return fingerprint(own) if own else ""


def _priced(config: Config) -> dict[str, bool]:
    """Whether the configured model of each arm has a price; arms without a configured model are left out."""
    prices = price_book(config)
    found = {}
    arms = {} if config.arms is None else {"control": config.arms.control, "treatment": config.arms.treatment}
    for name, arm in arms.items():
        if arm is not None and arm.model:
            usage = Usage(input_tokens=1000, output_tokens=1000)
            cost = cost_of(usage, model=arm.model, provider=arm.provider, at=datetime.now(UTC), prices=prices)
            found[name] = cost is not None
    return found


def _arms(config: Config) -> dict[str, dict[str, Any]]:
    if config.arms is None:
        return {}

    def expected(arm: ArmConfig | None) -> dict[str, Any]:
        return {} if arm is None else {"provider": arm.provider, "model": arm.model}

    return {"control": expected(config.arms.control), "treatment": expected(config.arms.treatment)}
