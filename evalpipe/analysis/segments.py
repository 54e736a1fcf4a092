"""Where does the treatment lose? Metrics within slices of the traffic: exploratory, false discoveries controlled, worst first.

Segments never decide. Values are those of the request (control's row, or the served one). Above 300,000 exchanges whole
users are sampled by hash, and neither language nor tool use (which need the texts) is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from evalpipe.analysis.connection import Connection, rows, scalar
from evalpipe.analysis.expressions import check_expression
from evalpipe.analysis.looking import SIGMA2_PAIRED_BINARY, Looking
from evalpipe.analysis.metrics import Metric, Ratio, metrics
from evalpipe.analysis.populations import PAIRED_SIDES
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Segment
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sums import Aggregates, UserSums, sum_by_user
from evalpipe.analysis.verdicts import JudgeSeen, sum_wins
from evalpipe.stats import betting
from evalpipe.stats.difference import paired_difference, unpaired_difference
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.labels import label, orient
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
    look: Looking,
    *,
    experiment: str,
    judge: JudgeSeen | None,
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
        for position, item in enumerate(items):
            groups = users.aggregate(f"m{position}")
            found += [
                _segment(connection, name, value, item, group, f"m{position}", "ev_segment_users", settings, look)
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
    # the request says, in characters; on large logs the tokens either arm counted, to leave the texts unread.
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
    gathered = {name: f"max({column}) {of_request}" for name, column in columns.items()}
    gathered["prompt_length"] = (
        f"coalesce(max({columns['prompt_length']}) {of_request}, max({columns['prompt_length']}))"
    )
    gathered["streamed"] = f"CASE WHEN max({columns['streamed']}) = 1 THEN 'streamed' ELSE 'whole' END"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_dimensions AS SELECT hash(request_id) AS id, "
        f"{', '.join(f'{gathered[name]} AS {column}' for name, column in columns.items())} FROM (SELECT request_id, arm, "
        f"{', '.join(f'{expressions[name]} AS {column}' for name, column in columns.items())} FROM exchanges "
        "WHERE experiment = ? AND role <> 'replay' "
        f"AND hash(coalesce(unit_id, conversation_id, request_id)) % {every} = 0) GROUP BY request_id",
        [experiment],
    )
    if prepared.paired:  # a constant head of few-shot examples is no earlier turn
        turn = columns["turn"]
        connection.execute(
            f"UPDATE ev_dimensions SET {turn} = CASE WHEN id IN (FROM ev_later) THEN 'later turn' ELSE 'first turn' END "
            f"WHERE {turn} IS DISTINCT FROM 'step of a tool loop'"
        )
    column = columns["prompt_length"]
    edges = scalar(connection, f"SELECT quantile_disc({column}, {shares}) FROM ev_dimensions") or []
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_segment_rows AS SELECT {_summed(prepared)}, d.* EXCLUDE (id, {column}), "
        f"{_bin(column, sorted(set(edges)), 'tokens' if by_tokens else 'characters')} AS {column} "
        f"FROM {prepared.source} r JOIN ev_dimensions d USING (id) WHERE r.u % {every} = 0"
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
    return ", ".join(f"r.{name}" for name in ["id", "u", *([] if prepared.paired else ["treatment"]), *columns, *flags])


def _bin(column: str, edges: list[float], unit: str) -> str:
    """Quartile bins as words: "up to 120 tokens", "over 950 tokens"."""
    if not edges:
        return "NULL::VARCHAR"
    cases = [f"WHEN {column} <= {edges[0]!r} THEN 'up to {edges[0]:,.0f} {unit}'"]
    cases += [
        f"WHEN {column} <= {high!r} THEN '{low:,.0f} to {high:,.0f} {unit}'" for low, high in itertools.pairwise(edges)
    ]
    return f"CASE WHEN {column} IS NULL THEN NULL {' '.join(cases)} ELSE 'over {edges[-1]:,.0f} {unit}' END"


def _win_rates(
    connection: Connection, name: str, column: str, judge: JudgeSeen, settings: Settings, look: Looking
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
        segment = _segment(connection, name, value, item, group, "q", "ev_segment_wins", settings, look)
        treated = group.treatment.ratio
        found.append(replace(segment, control=None if treated is None else 1 - treated))
    return found


def _segment(
    connection: Connection,
    dimension: str,
    value: str,
    item: Metric,
    group: Aggregates,
    column: str,
    table: str,
    settings: Settings,
    look: Looking,
) -> Segment:
    rule = settings.rule(item.name)
    relative = rule.margin_relative if rule.margin is not None else item.scale == "relative"
    margin = item.margin if rule.margin is None else rule.margin
    estimate = _estimate(group, item, look, relative=relative)
    bounded = item.name == "win_rate" or (item.scale == "absolute" and item.group == "reliability" and look.paired)
    if estimate.status != "ok" and bounded and not relative and group.paired.n_pairs:
        estimate = _exact(connection, item, value, column, table, look) or estimate
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


def _estimate(group: Aggregates, item: Metric, look: Looking, *, relative: bool) -> Estimate:
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


def _exact(connection: Connection, item: Metric, value: str, k: str, table: str, look: Looking) -> Estimate | None:
    """Few users or events: the exact betting interval on the users' paired outcomes."""
    counted = rows(
        connection,
        f"SELECT round((1 + {k}_st / {k}_wt - {k}_sc / {k}_wc) / 2, 12) AS x, count(*) AS n FROM {table} "
        f"WHERE grp = ? AND {k}_wt > 0 AND {k}_wc > 0 GROUP BY x ORDER BY x",
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
