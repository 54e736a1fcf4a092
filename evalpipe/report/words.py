"""The words of the report: what each code of the analysis is called on the page."""

from __future__ import annotations

RECOMMENDATIONS = {
    "ship": "Ship the treatment",
    "keep": "Keep control",
    "collect_more": "Collect more data",
    "invalid": "Do not decide on this data",
}

FINDINGS = {
    # finding → the mark beside its word, so that no meaning hangs on colour
    "better": "✓",
    "equivalent": "=",
    "worse": "✗",
    "inconclusive": "?",
    "undefined": "–",
}
FINDING_WORDS = {finding: finding for finding in FINDINGS} | {"undefined": "no conclusion"}
FINDING_ORDER = ("worse", "inconclusive", "undefined", "equivalent", "better")
"""worst first"""

CHECK_MARKS = {"pass": "✓", "warn": "!", "fail": "✗"}

GROUPS = {
    "reliability": "Reliability",
    "performance": "Performance",
    "quality": "Quality",
    "cost": "Cost",
    "custom": "Your own metrics",
}
ROLES = {"primary": "primary", "guardrail": "guardrail", "diagnostic": "diagnostic"}
ROLE_MEANINGS = {
    "primary": "can win the decision",
    "guardrail": "can block it",
    "diagnostic": "only informs",
}
DIRECTIONS = {"lower": "lower is better", "higher": "higher is better"}

_STATUSES = {
    "no_data": "no observations",
    "missing_arm": "one arm has no observations",
    "n_lt_2": "fewer than two observations",
    "one_cluster": "all observations come from one user, so their spread is unknown",
    "too_few_clusters": "fewer than five users with values in an arm",
    "zero_variance": "all observations are the same, so no interval can be made",
    "tail_too_small": "too few observations in the tail of the distribution",
    "too_few_events": "too few events in an arm",
    "burn_in": "too early to look: not enough data yet for an interval that may be looked at any time",
    "too_few_labels": "too few labels",
    "undefined_kappa": "every label is the same, so chance-corrected agreement is not defined",
    "relative_undefined": "a relative difference needs both values above zero",
    "unreliable_judge": "the judge is not reliable enough",
    "length_confounded": "the preference cannot be told from the answers' length",
    "invalid_srm": "rows are missing more often on one side, so the arms cannot be compared",
}


_SHORT_STATUSES = {
    "one_cluster": "one user only",
    "zero_variance": "no variation",
    "tail_too_small": "too few in the tail",
    "burn_in": "too early to say",
    "relative_undefined": "no relative difference",
    "length_confounded": "confounded with length",
    "invalid_srm": "one side is missing rows",
    "undefined_kappa": "not defined",
    "unreliable_judge": "judge not reliable enough",
}


def status_note(status: str) -> str:
    """A status in the few words a table has room for."""
    return _SHORT_STATUSES.get(status, status_words(status))


def status_words(status: str) -> str:
    """A status of the statistics in plain words."""
    return _STATUSES.get(status, status.replace("_", " "))


EXAMPLE_KINDS = {
    "treatment_lost": "Treatment lost most clearly",
    "treatment_won": "Treatment won most clearly",
    "judge_contradicted": "The judge contradicted itself",
    "arm_failed": "An arm failed",
    "tie": "A tie",
    "unjudged": "Not judged",
}
EXAMPLE_KINDS_SHORT = {
    "treatment_lost": "treatment lost",
    "treatment_won": "treatment won",
    "judge_contradicted": "judge contradicted itself",
    "arm_failed": "arm failed",
    "tie": "tie",
    "unjudged": "not judged",
}

WIN_RULES = {
    "mean": "Mean preference over all pairs",
    "average": "Half a win for each order",
    "tie": "Disagreement is a tie",
    "left_out": "Disagreement left out",
}

MODES = {
    "shadow": "shadow: both arms answered every request, users saw only control",
    "ab": "A/B: each user saw one arm",
    "canary": "canary: a growing share of users saw the treatment",
}
POLICIES = {
    "superiority": "superiority: a primary metric must be better and no guardrail may lose more than its margin",
    "noninferiority": "non-inferiority: no metric that decides may lose more than its margin",
    "utility": "utility: the weighted sum of the differences must be above zero and no guardrail may lose more than its margin",
}
LOOKS = {
    "anytime": "the intervals hold however often one looks",
    "fixed": "the intervals hold for one look at an amount of data fixed beforehand",
}


_PASSED = {
    "pairing": "pairs complete",
    "sample_ratio": "shares of the arms as planned",
    "arm_contamination": "users kept to one arm",
    "shed": "few copies shed",
    "missing_answers": "few answers missing",
    "duplicate_requests": "no duplicates",
    "clock_skew": "clocks in order",
    "price_unknown": "prices known",
    "no_usage_in_streams": "streams tell their tokens",
    "arm_models": "models as configured",
    "one_user_dominates": "no user dominates",
    "drift": "no drift",
    "judge_coverage": "verdicts complete",
    "judge_consistency": "judge consistent",
    "seat_bias": "no large seat bias",
    "judge_family": "judge no nearer to one arm",
    "judge_agreement": "judge compared with labels",
    "simulated_judge": "a real judge",
    "nonstationary": "steady since the decision",
    "judging_stopped": "judging stopped as planned",
}
"""what a check's name says beside a tick; a problem keeps the problem's name"""


def check_name(name: str, status: str) -> str:
    """A check as it is named beside its mark."""
    return _PASSED.get(name, plain(name)) if status == "pass" else plain(name)


def plain(code: str) -> str:
    """A code of the data as words: "http_error" → "http error"."""
    return code.replace("_", " ")
