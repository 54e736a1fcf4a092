"""The result of an analysis, as data: the one source of the report's HTML, JSON, Markdown, CSV and terminal table.

The JSON of `Analysis` is the report JSON of the contract; additions are free, renames are not. Every number that can be
missing is None with a `note`; NaN and Infinity never get in. A difference is always treatment − control.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmValue:
    """One arm's value of a metric with its own interval, over `n` rows; `numerator`/`denominator` where it is a ratio."""

    value: float | None
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    numerator: float | None = None
    denominator: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricResult:
    """One row of the decision table.

    `unit`: ratio (a share in 0..1) | ms | usd | tokens | tokens_per_second | score_10 | score_1 | any text. `group`:
    reliability | performance | quality | cost | custom. `scale`: absolute | relative; a relative `margin` is a share
    (0.1 = 10 %) and the relative interval decides. `direction`: lower | higher (which is better). `finding` is one of
    `models.FindingOutcome`, `status` of `stats.estimates.Estimate.status`.
    """

    name: str
    label: str
    group: str
    unit: str
    direction: str
    role: str
    scale: str
    control: ArmValue
    treatment: ArmValue
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    confidence_level: float
    p_value: float | None
    margin: float
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None
    standard_error: float | None = None
    skewness: float | None = None
    """of the deciding estimate, Σe³/se³; early looks wait until it is at most .1; None where it is not known"""
    n: int = 0
    n_clusters: int = 0
    method: str = ""
    estimand: str = ""
    status: str = "ok"
    finding: str = "undefined"
    non_inferior: bool = False
    weight: float = 1.0
    expected_more_requests: int | None = None
    """how many more requests would settle an inconclusive metric at the present noise; None = unknown"""
    note: str | None = None
    graded: bool = False
    """the win rate: verdicts are preferences in between, not wins, ties and losses"""
    simulated: bool = False
    """the win rate: the verdicts are a simulated judge's"""
    measurable: bool = True
    """whether the source of the log can measure it; what it cannot decides nothing"""
    default_margin: bool = True
    """the margin is not configured"""
    missing_control: float | None = None
    """share of control's values that are unknown, of the requests left in the row; None where no value can be missing"""
    missing_treatment: float | None = None
    kinds_left_out: list[str] = field(default_factory=list)
    """kinds of requests of which one arm's values are mostly unknown: in neither arm of this row"""
    share_left_out: float = 0.0
    """their share of the requests"""
    value_over_pairs: float | None = None
    """the win rate: the plain mean over the same pairs, beside the mean over users"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Judge against labels; kappa and its interval on the atanh scale, Gwet's AC1 beside it."""

    source: str | None = None
    n_labels: int = 0
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    kappa: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None
    ac1: float | None = None
    status: str = "no_data"
    ac1_low: float | None = None
    ac1_high: float | None = None
    labeller: str | None = None
    """one person of the source; None: all together"""


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """A win rate under one way to count disagreement between the two orders."""

    rule: str
    """average (a half for each order) | tie (disagreement is a tie) | left_out"""
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DimensionResult:
    """One rubric dimension: pairs won, tied and lost by the treatment, and both means."""

    name: str
    wins: int
    ties: int
    losses: int
    control: float | None
    treatment: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthBin:
    """Pairs by length difference (treatment − control, characters): is the judge consistent, does it prefer the longer?"""

    low: float
    high: float
    n: int
    win_rate: float | None
    consistency: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeResult:
    """One judge (or one source of labels, as `label:SOURCE`) over the experiment's pairs."""

    name: str
    fingerprint: str
    mode: str
    model: str | None
    simulated: bool
    imported: bool
    feeds_decision: bool
    win_rate: float | None
    ci_low: float | None
    ci_high: float | None
    standard_error: float | None
    confidence_level: float
    n_pairs: int
    n_clusters: int
    p_value: float | None = None
    method: str = ""
    win_rate_over_pairs: float | None = None
    """the plain mean over the pairs that count; `win_rate` counts each of their users once"""
    win_rate_over_judged: float | None = None
    """the plain mean over all `n_judged` pairs"""
    n_judged: int = 0
    """pairs with a verdict; `n_pairs` of them count in the win rate"""
    n_beyond: int = 0
    """judged pairs that are shown and not counted: beyond `pairs_per_unit`, or of later turns"""
    wins: int = 0
    ties: int = 0
    losses: int = 0
    consistency: float | None = None
    consistency_low: float | None = None
    consistency_high: float | None = None
    n_both_orders: int = 0
    flips: int = 0
    """pairs whose winner changed with the order"""
    first_seat_rate: float | None = None
    first_seat_low: float | None = None
    first_seat_high: float | None = None
    rules: list[WinRate] = field(default_factory=list)
    length_controlled: WinRate | None = None
    dimensions: list[DimensionResult] = field(default_factory=list)
    length_bins: list[LengthBin] = field(default_factory=list)
    agreement: Agreement = Agreement()
    agreements: list[Agreement] = field(default_factory=list)
    asked_pairs: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """judgments by failure status, after the last attempt"""
    given_up: int = 0
    """judgments that are not asked again: none of their answers held a verdict"""
    given_up_requests: list[str] = field(default_factory=list)
    """the requests of them"""
    other_models: dict[str, int] = field(default_factory=dict)
    """calls that another model than the one asked answered, by its name"""
    missing_low: float | None = None
    """the win rate if every pair without a verdict had gone to control"""
    missing_high: float | None = None
    cost_usd: float | None = None
    cost_at_most_usd: float | None = None
    """where calls were cut off or reported no usage, so that their cost is unknown; None: `cost_usd` is exact"""
    rubric: str | None = None
    simulated_rule: str | None = None
    """the rules of a simulated judge, in words"""
    graded: bool = False
    """verdicts are preferences in between, not wins, ties and losses"""
    shows_at_least: float | None = None
    """share of a true difference that its verdicts show, at least and at most, by its consistency alone; None: not known"""
    shows_at_most: float | None = None
    status: str = "ok"
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeError:
    """By how much the judge prefers an arm's answers more than people do, as a share of the preference (0.05 = 5 points); above
    0: it favours them. `biased`: the interval does not hold 0."""

    arm: str
    error: float | None
    ci_low: float | None
    ci_high: float | None
    n_labels: int
    n_users: int
    biased: bool = False
    status: str = "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectedRate:
    """The win rate corrected by people's labels, beside the judge's own; `value` in [0, 1], each user counted once.

    Attributes:
        n_labels: labelled pairs that are used.
        n_users: their users.
        n_pairs: pairs that count in the win rate.
        lam: λ in [0, 1], how much of the judge is used; 0: the labels alone.
        gain: labels that one label is worth with the judge beside it; None where it is not known.
        sampling: known (each pair was drawn with a recorded probability) | random (taken for a random sample).
        sources: where the labels are from.
        n_left_out: labelled pairs that are not used.
        setting: auto | off | required.
        decides: it decides in place of the judge's own win rate.
        needed_labels: more labels until it does.
        errors: the judge's error for each arm's answers; empty below 10 labels.
    """

    judge: str | None
    value: float | None
    ci_low: float | None
    ci_high: float | None
    confidence_level: float
    standard_error: float | None
    n_labels: int
    n_users: int
    n_pairs: int
    lam: float
    gain: float | None
    sampling: str
    sources: list[str] = field(default_factory=list)
    n_left_out: int = 0
    setting: str = "auto"
    decides: bool = False
    needed_labels: int = 0
    method: str = ""
    errors: list[JudgeError] = field(default_factory=list)
    status: str = "ok"
    note: str | None = None

    @property
    def biased(self) -> JudgeError | None:
        """The arm that the judge is shown to favour; None where it is not shown to favour one."""
        return next((one for one in self.errors if one.biased and (one.error or 0.0) > 0), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check of the data. `status`: pass | warn | fail; a failed check can make the decision invalid."""

    name: str
    status: str
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One metric within one slice of the traffic; exploratory (false-discovery controlled), never deciding."""

    dimension: str
    value: str
    metric: str
    n: int
    n_clusters: int
    control: float | None
    treatment: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    p_adjusted: float | None
    discovered: bool
    finding: str
    status: str = "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesPoint:
    """A metric at an instant: cumulative with its (anytime) interval, or one bin's plain rates (`kind` of the series)."""

    at: str
    control: float | None
    treatment: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    metric: str
    kind: str
    """cumulative | binned"""
    points: list[SeriesPoint]
    decided_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyCurve:
    """The latency distribution of one arm: latency in ms at each of `quantiles` (shares in 0..1)."""

    arm: str
    quantiles: list[float]
    values_ms: list[float]
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleSide:
    text: str | None
    n_cut: int
    outcome: str
    error: str | None
    finish_reason: str | None
    tool_calls: str | None
    model: str | None
    latency_ms: float | None
    cost_usd: float | None
    output_tokens: int | None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A pair to read. `kind`: treatment_lost | treatment_won | judge_contradicted | arm_failed | tie | unjudged."""

    request_id: str
    kind: str
    unit_id: str | None
    started_at: str
    endpoint: str | None
    prompt: list[dict[str, str]]
    """the conversation as [{role, content}], each content cut like the answers"""
    control: ExampleSide
    treatment: ExampleSide
    preference: float | None
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    """per judge call: {judge, shown_first, winner, preference, reasoning, status}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Funnel:
    """From requests to verdicts. requests = pairs + Σ exclusions, exactly (shadow mode)."""

    requests: int
    pairs: int
    exclusions: dict[str, int] = field(default_factory=dict)
    judgments: dict[str, int] = field(default_factory=dict)
    judged_pairs: int = 0
    users: int = 0
    shadow: dict[str, int] = field(default_factory=dict)
    """sampled, not_sampled, not_shadowable, shed; they add up to every eligible request"""
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    """arm → outcome → exchanges"""
    kinds: dict[str, int] = field(default_factory=dict)
    """"CONTROL + TREATMENT" by where their answers come from (served, shadow, imported, replayed) → pairs, where some were
    replayed"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Horizon:
    """How much longer until the metrics that block are shown to be within their margins (or one of them wins), at the
    present noise and if the differences stay as they are.

    Attributes:
        metric: the metric that takes longest.
        requests: more requests until it is settled, rounded up to two digits.
        days: the same in days at the traffic of the log; None where the log has no usable times.
        judge_usd: dollars of judging the pairs among them; None where the price is not known or no judge is needed.
        harm: the metric is then shown to be worse than its margin allows.
    """

    metric: str
    requests: int
    days: float | None = None
    judge_usd: float | None = None
    harm: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionChange:
    """A decision that was reached or undone, or (`set`) another set of what decides, with the intervals of that look."""

    event: str
    """reached | undone | set"""
    at: str
    look: int
    recommendation: str | None
    rule: str | None
    why: str
    set_number: int = 1
    intervals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlternativeDecision:
    """The decision under other data, beside the one in force."""

    recommendation: str
    headline: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The answer. `reasons` are sentences with their numbers in them, most important first."""

    recommendation: str
    reasons: list[str]
    headline: str = ""
    """one sentence a manager can quote"""
    rule: str = ""
    """setup | harm | data | unmeasured | ship | no_gain | max_reached | futility | collect_more"""
    policy: str = "superiority"
    looks: str = "anytime"
    looks_explained: str = ""
    what_would_change: list[str] = field(default_factory=list)
    decided_at: str | None = None
    decided_look: int | None = None
    utility: float | None = None
    utility_low: float | None = None
    utility_high: float | None = None
    expected_more_requests: int | None = None
    horizon: Horizon | None = None
    """how much longer; None where no more data are needed, or no forecast is possible"""
    blocking: list[str] = field(default_factory=list)
    """metrics that are not shown to be within their margin"""
    losing: list[str] = field(default_factory=list)
    """goals with a loss at `harm_level`"""
    strong_win: bool = False
    """some goal or benefit is better by more than its margin"""
    harm_level: float | None = None
    """alpha / number of metrics that decide: two-sided level of the harm rule"""
    not_measured: list[str] = field(default_factory=list)
    """metrics that would decide but that the source of the log cannot measure"""
    setup_faults: list[str] = field(default_factory=list)
    setup_arms: list[str] = field(default_factory=list)
    """the arms they are of"""
    rollback: bool = False
    """harm, or a set-up fault of the treatment, while users are served by the treatment (ab, canary)"""
    set_number: int = 1
    """which set of what decides this is; each adds at most alpha to the probability of a false decision"""
    changes: list[DecisionChange] = field(default_factory=list)
    """every decision reached or undone so far, oldest first"""
    without_exclusions: AlternativeDecision | None = None
    """the decision on all data, where a period was excluded after its data had been seen"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BasisMetric:
    """A metric that decides, with the terms that are part of what decides."""

    role: str
    margin: float
    scale: str
    weight: float
    measurable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What decides beside the data: the metrics with role, margin, weight and source, and the judge's fingerprint."""

    metrics: dict[str, BasisMetric] = field(default_factory=dict)
    judge: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """What this look fixes for all later ones: the turns that are the goal, the constant head of each system text, and the
    pairs that count in the win rate (request ids by judge fingerprint). Kept in the record, not in the report's JSON."""

    turns: str | None = None
    head: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Everything the report shows."""

    experiment: str
    mode: str
    generated_at: str
    provenance: dict[str, Any]
    """versions, config (secrets never) and its fingerprint, data files, selection, prices with date, the reproduce line;
    `arms`: {control: {models, provider}, treatment: …}; `first_at`, `last_at`; `simulated_judge`: bool"""
    funnel: Funnel
    metrics: list[MetricResult]
    judges: list[JudgeResult]
    checks: list[Check]
    decision: Decision
    segments: list[Segment] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    latency: list[LatencyCurve] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    corrected: CorrectedRate | None = None
    """the win rate corrected by people's labels; None without labels"""
    basis: Basis = Basis()
    exclusions: list[dict[str, Any]] = field(default_factory=list)
    """periods taken out of both arms: since, until, why, declared_at"""
    fixed: Fixed = Fixed()
    schema_version: int = SCHEMA_VERSION


def render_analysis_json(analysis: Analysis) -> bytes:
    """The report JSON, indented, without the examples' texts (they stay in the store and the HTML)."""
    document = msgspec.to_builtins(analysis)
    document.pop("examples")
    document.pop("fixed")
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def read_analysis_json(data: bytes) -> Analysis:
    """The analysis of a report JSON (for comparing two). Raises `msgspec.ValidationError` where it is not one."""
    return msgspec.json.decode(data, type=Analysis)
