"""Metrics within slices of the traffic, by attribute and over time: exploratory, worst first.

Segments never decide. Values are those of the request (control's row, or the served one). Above 300,000 exchanges whole
users are sampled by hash, and neither language nor tool use (which need the texts) is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from evalpipe.analysis.distributed import over_files, over_pairs
from evalpipe.analysis.intervals import Aggregates, UserSums, sum_by_user
from evalpipe.analysis.metrics import Metric, Ratio, metrics
from evalpipe.analysis.populations import PAIRED_SIDES
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Segment, Series, SeriesPoint
from evalpipe.analysis.settings import SIGMA2_PAIRED_BINARY, LookPlan, Settings
from evalpipe.analysis.sorted_values import SortedValues, TimeBins
from evalpipe.analysis.sql import Connection, check_expression, rows, scalar
from evalpipe.analysis.verdicts import JudgeSummary, preference_estimate, sum_wins
from evalpipe.stats import betting
from evalpipe.stats.estimates import Estimate, label, orient
from evalpipe.stats.event_rates import paired_events
from evalpipe.stats.means import paired_difference, unpaired_difference
from evalpipe.stats.multiplicity import benjamini_hochberg

MAX_ROWS = 300_000
MAX_VALUES = 12
MIN_PAIRS = 10
FALSE_DISCOVERY_RATE = 0.1
METRICS = ("error_rate", "refusal_rate", "truncation_rate", "cost_per_request_usd", "output_tokens")
TURN = """CASE WHEN step > 0 THEN 'step of a tool loop' WHEN turn = 1 THEN 'first turn' WHEN turn > 1 THEN 'later turn' END"""
LANGUAGE = r"""CASE
  WHEN prompt IS NULL OR trim(prompt) = '' THEN NULL
  WHEN regexp_matches(left(prompt, 2000), '[\p{Hiragana}\p{Katakana}]') THEN 'Japanese'
  WHEN regexp_matches(left(prompt, 2000), '\p{Hangul}') THEN 'Korean'
  WHEN regexp_matches(left(prompt, 2000), '\p{Han}') THEN 'Chinese'
  WHEN regexp_matches(left(prompt, 2000), '\p{Cyrillic}') THEN 'Cyrillic'
  WHEN regexp_matches(left(prompt, 2000), '\p{Arabic}') THEN 'Arabic'
  WHEN regexp_matches(left(prompt, 2000), '\p{Hebrew}') THEN 'Hebrew'
  WHEN regexp_matches(left(prompt, 2000), '\p{Devanagari}') THEN 'Hindi'
  WHEN regexp_matches(left(prompt, 2000), '\p{Greek}{4}') THEN 'Greek'
  WHEN regexp_matches(left(prompt, 2000), '\p{Thai}') THEN 'Thai'
  WHEN regexp_matches(left(prompt, 2000), '(?i)\b(und|nicht|ist|bitte|eine|wie|ich)\b.*\b(und|nicht|ist|der|die|das|ein|zu)\b')
    THEN 'German'
  WHEN regexp_matches(left(prompt, 2000), '(?i)\b(est|une|les|des|pour|quel|vous)\b.*\b(est|une|les|des|de|la|le|et)\b')
    THEN 'French'
  WHEN regexp_matches(left(prompt, 2000), '(?i)[¿¡]|\b(el|los|una|por|qué|como)\b.*\b(el|los|que|de|la|y|en)\b') THEN 'Spanish'
  ELSE 'English or other' END"""


def measure_segments(
    connection: Connection,
    prepared: Prepared,
    settings: Settings,
    look: LookPlan,
    *,
    experiment: str,
    judge: JudgeSummary | None,
) -> list[Segment]:
    """Every metric within every value of every dimension that has at least two."""
    dimensions = _prepare(connection, prepared, settings, experiment=experiment)
    items = [item for item in metrics() if item.name in METRICS]
    found: list[Segment] = []
    for name, column in dimensions:
        sum_by_user(
            connection,
            [item.values for item in items if isinstance(item.values, Ratio)],
            paired=prepared.paired,
            table="ev_segment_users",
            source="ev_segment_rows",
            group=column,
            condition=f"{column} IS NOT NULL",
        )
        users = UserSums(connection, "ev_segment_users")
        pairs = _event_pairs(connection, column, items) if prepared.paired else {}
        for position, item in enumerate(items):
            groups = users.aggregate(f"m{position}")
            found += [
                _segment(name, value, item, group, settings, look, pairs=pairs.get((item.name, value)))
                for value, group in groups.items()
            ]
        if judge is not None:
            found += _win_rates(connection, name, column, judge, settings, look)
    return _discover([one for one in found if one.n >= MIN_PAIRS])


def one_user_in(n_rows: int) -> int:
    """Of a log of `n_rows` answers segments look at every how many-th user; 1: at all of them."""
    return max(1, -(-n_rows // MAX_ROWS))


def _prepare(
    connection: Connection, prepared: Prepared, settings: Settings, *, experiment: str
) -> list[tuple[str, str]]:
    """`ev_segment_rows`: the (sampled) rows with one column per dimension; returns (dimension, column) worth looking at."""
    every = one_user_in(prepared.n_rows)
    reads_text = every == 1
    bins = settings.n_segment_bins
    shares = [k / bins for k in range(1, bins)]
    by_tokens = prepared.paired and not reads_text
    # A slice must not depend on how an arm's answer ended, or that arm's failures would fall out of every slice: so what
    # by the request's characters; on large logs by the tokens either arm counted, to leave the texts unread.
    expressions: dict[str, str] = {
        "prompt_length": "input_tokens" if by_tokens else "length(prompt)",
        "endpoint": "endpoint",
        "streamed": "coalesce(streamed, false)::INT",
        "model": "coalesce(model_requested, model)",
        "turn": TURN,
        "hour": "lpad((epoch_us(started_at) // 3600000000 % 24 // 6 * 6)::VARCHAR, 2, '0') || ' h UTC'",
    }
    if reads_text:
        expressions["tool_use"] = "CASE WHEN contains(request, '\"tools\"') THEN 'tools offered' ELSE 'no tools' END"
        expressions["language"] = LANGUAGE
    for name, expression in settings.segments.items():
        check_expression(connection, expression, name=f"segments.{name}")
        expressions[name] = f"({expression}\n)::VARCHAR"
    columns = {name: f"d{position}" for position, name in enumerate(expressions)}
    of_request = "FILTER (arm = 'control')" if prepared.paired else ""
    length = columns["prompt_length"]
    gathered = {column: f"max({column}) {of_request}" for column in columns.values()}
    gathered[columns["streamed"]] = f"max({columns['streamed']})"
    gathered["any_length"] = f"max({length})"
    scanned, parameters = over_files(
        connection,
        f"SELECT hash(request_id) AS id, {', '.join(f'{sql} AS {column}' for column, sql in gathered.items())} "
        f"FROM (SELECT request_id, arm, {', '.join(f'{expressions[name]} AS {column}' for name, column in columns.items())} "
        "FROM exchanges WHERE experiment = ? AND role <> 'replay' "
        f"AND hash(coalesce(unit_id, conversation_id, request_id)) % {every} = 0) GROUP BY request_id",
        [experiment],
    )
    dimensions = {column: f"max({column})" for column in columns.values()}
    dimensions[columns["streamed"]] = f"CASE WHEN max({columns['streamed']}) = 1 THEN 'streamed' ELSE 'whole' END"
    dimensions[length] = f"coalesce(max({length}), max(any_length))"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_dimensions AS SELECT id, "
        f"{', '.join(f'{sql} AS {column}' for column, sql in dimensions.items())} FROM {scanned} GROUP BY id",
        parameters,
    )
    if prepared.paired:  # a constant head of few-shot examples is no earlier turn
        turn = columns["turn"]
        later = "SELECT id FROM ev_later SEMI JOIN ev_dimensions USING (id)"  # few of the many
        connection.execute(
            f"UPDATE ev_dimensions SET {turn} = CASE WHEN id IN ({later}) THEN 'later turn' ELSE 'first turn' END "
            f"WHERE {turn} IS DISTINCT FROM 'step of a tool loop'"
        )
    column = columns["prompt_length"]
    edges = scalar(connection, f"SELECT quantile_disc({column}, {shares}) FROM ev_dimensions") or []
    sampled = f"SELECT {_summed(prepared)} FROM {prepared.source} WHERE u % {every} = 0"
    (of_users,) = over_pairs(connection, [sampled])
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_segment_rows AS SELECT r.*, d.* EXCLUDE (id, {column}), "
        f"{_bin(column, sorted(set(edges)), 'tokens' if by_tokens else 'characters')} AS {column} "
        f"FROM {of_users} r JOIN ev_dimensions d USING (id)"
    )
    usable = []
    for name, column in columns.items():
        values = rows(
            connection,
            f"SELECT {column} AS value, count(*) AS n FROM ev_segment_rows WHERE {column} IS NOT NULL "
            f"GROUP BY value ORDER BY n DESC, value",
        )
        if len(values) < 2:
            continue
        if len(values) > MAX_VALUES:
            kept = [row["value"] for row in values[: MAX_VALUES - 1]]
            connection.execute(
                f"UPDATE ev_segment_rows SET {column} = 'other' WHERE {column} IS NOT NULL AND NOT list_contains(?, {column})",
                [kept],
            )
        usable.append((name, column))
    return usable


def _summed(prepared: Prepared) -> str:
    """What the metrics of segments are summed from: the columns of each side, and the flags."""
    values = [item.values for item in metrics() if item.name in METRICS and isinstance(item.values, Ratio)]
    columns = dict.fromkeys(
        f"{side}{one.numerator}" for one in values for side in (PAIRED_SIDES if prepared.paired else ("",))
    )
    flags = dict.fromkeys(one.rows for one in values)
    return ", ".join(["id", "u", *([] if prepared.paired else ["treatment"]), *columns, *flags])


def _bin(column: str, edges: list[float], unit: str) -> str:
    """Quartile bins as words: "up to 120 tokens", "over 950 tokens"."""
    if not edges:
        return "NULL::VARCHAR"
    cases = [f"WHEN {column} <= {edges[0]!r} THEN 'up to {edges[0]:,.0f} {unit}'"]
    cases += [
        f"WHEN {column} <= {high!r} THEN '{low:,.0f} to {high:,.0f} {unit}'" for low, high in itertools.pairwise(edges)
    ]
    return f"CASE WHEN {column} IS NULL THEN NULL {' '.join(cases)} ELSE 'over {edges[-1]:,.0f} {unit}' END"


@dataclass(frozen=True, kw_only=True, slots=True)
class EventPairs:
    """Of `n` pairs: those in which only the treatment has the event, and those in which only control has it."""

    t_only: int
    c_only: int
    n: int


def _event_pairs(connection: Connection, column: str, items: Sequence[Metric]) -> dict[tuple[str, str], EventPairs]:
    """By metric and value of the dimension, for the metrics that count events."""
    found = {}
    for item in items:
        if not isinstance(item.values, Ratio) or not item.values.binary:
            continue
        event = item.values.numerator
        counted = rows(
            connection,
            f"SELECT {column} AS value, count_if(t_{event} AND NOT c_{event}) AS t_only, "
            f"count_if(c_{event} AND NOT t_{event}) AS c_only, count(*) AS n FROM ev_segment_rows "
            f"WHERE {column} IS NOT NULL AND {item.values.rows} GROUP BY value",
        )
        for row in counted:
            found[item.name, str(row["value"])] = EventPairs(t_only=row["t_only"], c_only=row["c_only"], n=row["n"])
    return found


def _win_rates(
    connection: Connection, name: str, column: str, judge: JudgeSummary, settings: Settings, look: LookPlan
) -> list[Segment]:
    groups = sum_wins(
        connection,
        judge.name,
        judge.fingerprint,
        group=f"d.{column}",
        join=f"JOIN (SELECT DISTINCT id, {column} FROM ev_segment_rows) d USING (id)",
        table="ev_segment_wins",
    )
    item = next(one for one in metrics() if one.name == "win_rate")
    found = []
    for value, group in groups.items():
        exact = _exact(connection, item, value, look) if look.paired else None
        segment = _segment(name, value, item, group, settings, look, exact=exact)
        treated = group.treatment.ratio
        found.append(replace(segment, control=None if treated is None else 1 - treated))
    return found


def _segment(
    dimension: str,
    value: str,
    item: Metric,
    group: Aggregates,
    settings: Settings,
    look: LookPlan,
    *,
    pairs: EventPairs | None = None,
    exact: Estimate | None = None,
) -> Segment:
    """One metric of one slice. `pairs`, `exact`: for few users or events, where the ordinary interval has no standing."""
    rule = settings.rule(item.name)
    relative = rule.margin_relative if rule.margin is not None else item.scale == "relative"
    margin = item.margin if rule.margin is None else rule.margin
    estimate = _estimate(group, item, look, relative=relative)
    if estimate.status != "ok" and not relative and group.paired.n_pairs:
        estimate = _few_events(group, item, look, pairs) if pairs is not None else exact or estimate
    shown = _estimate(group, item, look, relative=False) if relative else estimate
    low, high = orient(estimate, higher_is_better=item.sign > 0)
    return Segment(
        dimension=dimension,
        value=value,
        metric=item.name,
        n=group.paired.n_pairs if look.paired else group.control.n + group.treatment.n,
        n_clusters=estimate.n_clusters,
        control=group.control.ratio,
        treatment=group.treatment.ratio,
        difference=shown.point,
        ci_low=shown.ci_low,
        ci_high=shown.ci_high,
        p_value=estimate.p_value,
        p_adjusted=None,
        discovered=False,
        finding=label(low, high, margin=margin, status=estimate.status).label,
        status=estimate.status,
    )


def _few_events(group: Aggregates, item: Metric, look: LookPlan, pairs: EventPairs) -> Estimate:
    """The interval of an event per request, as in the table of the metrics but for time as a cluster."""
    return paired_events(
        t_only=pairs.t_only,
        c_only=pairs.c_only,
        n=pairs.n,
        users=group.paired,
        heaviness=max(group.heaviness),
        multiplier=look.multiplier(item.name),
        alpha=look.alpha,
        bets=look.bets(item.name, look.alpha, sigma2=SIGMA2_PAIRED_BINARY),
    )


def _estimate(group: Aggregates, item: Metric, look: LookPlan, *, relative: bool) -> Estimate:
    multiplier = look.multiplier(item.name)
    scale = "relative" if relative else "absolute"
    if look.paired:
        return paired_difference(group.paired, multiplier=multiplier, alpha=look.alpha, scale=scale)  # type: ignore[arg-type]
    return unpaired_difference(
        group.control,
        group.treatment,
        multiplier=multiplier,
        alpha=look.alpha,
        scale=scale,  # type: ignore[arg-type]
    )


def _exact(connection: Connection, item: Metric, value: str, look: LookPlan) -> Estimate | None:
    """Few users: the exact betting interval on the users' mean preferences."""
    counted = rows(
        connection,
        "SELECT round((1 + q_st / q_wt - q_sc / q_wc) / 2, 12) AS x, count(*) AS n FROM ev_segment_wins "
        "WHERE grp = ? AND q_wt > 0 AND q_wc > 0 GROUP BY x ORDER BY x",
        [value],
    )
    if sum(row["n"] for row in counted) < 2:
        return None
    bets = look.bets(item.name, look.alpha, sigma2=SIGMA2_PAIRED_BINARY)
    exact = betting.bounded_mean([r["x"] for r in counted], [r["n"] for r in counted], bets, alpha=look.alpha)
    assert exact.point is not None and exact.ci_low is not None and exact.ci_high is not None
    return replace(exact, point=2 * exact.point - 1, ci_low=2 * exact.ci_low - 1, ci_high=2 * exact.ci_high - 1)


def _discover(found: list[Segment]) -> list[Segment]:
    """Benjamini-Hochberg at .1 over all that can be tested (with anytime p = 1/E this is e-BH), then worst first."""
    signs: Mapping[str, int] = {item.name: item.sign for item in metrics()}
    tested = [position for position, one in enumerate(found) if one.status == "ok" and one.p_value is not None]
    adjusted = benjamini_hochberg([found[position].p_value or 0.0 for position in tested])
    for position, p in zip(tested, adjusted, strict=True):
        found[position] = replace(found[position], p_adjusted=p, discovered=p <= FALSE_DISCOVERY_RATE)

    def order(one: Segment) -> tuple[int, float, float, str, str]:
        harm = -signs[one.metric] * (one.difference or 0.0)
        rank = (0 if one.discovered else 1) if harm > 0 else (3 if one.discovered else 2)
        p = one.p_value if one.p_value is not None else 1.0
        return rank, p if harm > 0 else -p, -harm, one.dimension, one.value

    return sorted(found, key=order)


# How things went over time: the win rate as it grew with its interval, and plain rates per stretch of time.


MAX_POINTS = 40
ROWS_PER_BIN = 40
"""a stretch of time holds as many rows of both arms on average: the rate of a handful of answers is noise"""
BINNED = {
    "error_rate": ("failed::INTEGER", "in_measured"),
    "p50_latency_ms": None,
    "cost_per_request_usd": ("cost_usd", "has_cost"),
    "output_tokens": ("output_tokens", "has_output"),
}
"""by metric: what its value in a stretch of time is the mean of, and the rows that count; None: the median latency"""
LATENCY = ("latency_ms", "has_latency")


def time_bins(prepared: Prepared) -> TimeBins | None:
    """The stretches of time of the series; None where everything came at one instant."""
    if prepared.first_us is None or prepared.last_us is None or prepared.last_us <= prepared.first_us:
        return None
    n = max(2, min(MAX_POINTS, prepared.n_rows // ROWS_PER_BIN))
    width = max(1, -(-(prepared.last_us - prepared.first_us + 1) // n))
    return TimeBins(first_us=prepared.first_us, width_us=width)


def medians_over_time(prepared: Prepared) -> dict[str, TimeBins]:
    """The columns of which the series have medians, with the stretches of time."""
    bins = time_bins(prepared)
    return {} if bins is None else {LATENCY[0]: bins}


def measure_series(
    connection: Connection, prepared: Prepared, look: LookPlan, *, judge: JudgeSummary | None, values: SortedValues
) -> list[Series]:
    """Cumulative win rate (by the instant of the request) and binned rates of both arms; `values`: with `medians_over_time`."""
    found = [] if judge is None else _win_rate(connection, look, judge)
    bins = time_bins(prepared)
    if bins is None:
        return found
    points = _means(connection, bins)
    medians = {arm: values.medians(*LATENCY, arm=arm) for arm in (False, True)}
    points["p50_latency_ms"] = {
        number: {arm: (of_arm[number].value, of_arm[number].n) for arm, of_arm in medians.items() if number in of_arm}
        for number in medians[False].keys() | medians[True].keys()
    }
    return found + [
        Series(
            metric=name,
            kind="binned",
            points=[_point(bins.first_us + k * bins.width_us, arms) for k, arms in sorted(points[name].items())],
        )
        for name in BINNED
        if points[name]
    ]


def _win_rate(connection: Connection, look: LookPlan, judge: JudgeSummary) -> list[Series]:
    data = connection.execute(
        "SELECT x, dense_rank() OVER (ORDER BY v.u) - 1 AS u, at_us FROM ev_verdicts v JOIN ev_chosen c USING (id) "
        "WHERE judge = ? AND fingerprint = ? AND complete AND NOT c.later ORDER BY at_us, id",
        [judge.name, judge.fingerprint],
    ).fetchnumpy()
    x, users = np.asarray(data["x"], float), np.asarray(data["u"], np.int64)
    at = np.asarray(data["at_us"], np.int64)
    if len(x) < 2:
        return []
    points = []
    for n in np.unique(np.linspace(min(10, len(x)), len(x), MAX_POINTS).astype(int)):
        estimate = preference_estimate(x[:n], users[:n], look, look.alpha)
        treated = estimate.point if estimate.point is not None else 0.5
        points.append(
            SeriesPoint(
                at=_iso(int(at[n - 1])),
                control=1 - treated,
                treatment=treated,
                difference=treated - 0.5,
                ci_low=None if estimate.ci_low is None else estimate.ci_low - 0.5,
                ci_high=None if estimate.ci_high is None else estimate.ci_high - 0.5,
                n=int(n),
            )
        )
    return [Series(metric="win_rate", kind="cumulative", points=points)]


def _means(connection: Connection, bins: TimeBins) -> dict[str, dict[int, dict[bool, tuple[float, int]]]]:
    """Of each metric, the arms' (mean, requests) by the number of the stretch of time."""
    summed = {name: one for name, one in BINNED.items() if one is not None}
    parts = {
        f"{part}_{name}": f"{aggregate}(CASE WHEN {condition} THEN {value} END)"
        for name, (value, condition) in summed.items()
        for part, aggregate in (("s", "sum"), ("n", "count"))
    }
    (binned,) = over_pairs(
        connection,
        [
            f"SELECT {bins.number('at_us')} AS bin, treatment, {', '.join(f'{sql} AS {name}' for name, sql in parts.items())} "
            "FROM ev_rows GROUP BY bin, treatment"
        ],
    )
    totals = ", ".join(f"sum({name}) AS {name}" for name in parts)
    found: dict[str, dict[int, dict[bool, tuple[float, int]]]] = {name: {} for name in summed}
    for row in rows(connection, f"SELECT bin, treatment, {totals} FROM {binned} GROUP BY bin, treatment"):
        for name in summed:
            if n := int(row[f"n_{name}"]):
                found[name].setdefault(row["bin"], {})[row["treatment"]] = (float(row[f"s_{name}"]) / n, n)
    return found


def _point(at_us: int, arms: Mapping[bool, tuple[float, int]]) -> SeriesPoint:
    control, treatment = arms.get(False), arms.get(True)
    return SeriesPoint(
        at=_iso(at_us),
        control=control[0] if control else None,
        treatment=treatment[0] if treatment else None,
        difference=treatment[0] - control[0] if control and treatment else None,
        ci_low=None,
        ci_high=None,
        n=(control[1] if control else 0) + (treatment[1] if treatment else 0),
    )


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds")
