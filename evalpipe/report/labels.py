"""The words of the report: what each code of the analysis is called on the page."""

from __future__ import annotations

RECOMMENDATIONS = {
    "ship": "Ship the treatment",
    "keep": "Keep control",
    "collect_more": "Collect more data",
    "invalid": "Do not decide on this data",
}
RULES = {
    "setup": "an arm has a set-up fault, so the answers of the arms cannot be compared",
    "harm": "a metric that decides is worse than its margin allows",
    "data": "a check of the data failed, so they cannot support a decision",
    "unmeasured": "no goal has a value yet",
    "ship": "everything that decides is shown to be within its margin, and the policy is met",
    "no_gain": "nothing to gain: every goal and benefit is equal within its margin, or worse",
    "max_reached": "the planned number of requests is reached",
    "futility": "what can still be gained is too little to wait for",
    "collect_more": "not everything that decides is settled yet",
}
"""the rule behind the recommendation (`decision.rule`)"""

FINDINGS = {
    # finding → the mark beside its word, so that no meaning hangs on colour
    "better": "✓",
    "equivalent": "=",
    "worse": "✗",
    "inconclusive": "?",
    "undefined": "–",
}
FINDING_WORDS = {finding: finding for finding in FINDINGS} | {"undefined": "no conclusion"}
NOT_MEASURED = "not measured"
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
ROLES = {"primary": "goal", "benefit": "benefit", "guardrail": "guardrail", "diagnostic": "diagnostic"}
ROLE_MEANINGS = {
    "primary": "can win the decision",
    "benefit": "can win beside the goals",
    "guardrail": "can block the decision",
    "diagnostic": "only informs",
}
ROLE_ORDER = tuple(ROLES)
"""what weighs most in the decision first"""
DIRECTIONS = {"lower": "lower is better", "higher": "higher is better"}

_STATUSES = {
    "no_data": "no observations",
    "missing_arm": "one arm has no observations",
    "missing_differs": "too many values are unknown, so the arms' known values are not comparable",
    "not_measured": "the source of this log does not measure it",
    "n_lt_2": "fewer than two observations",
    "one_cluster": "all observations come from one user, so their spread is unknown",
    "too_few_clusters": "fewer than five users with values in an arm",
    "zero_variance": "all observations are the same, so no interval can be computed",
    "tail_too_small": "too few observations in the tail of the distribution",
    "too_few_events": "too few events in an arm",
    "burn_in": "not enough data yet for an interval that is valid at every look",
    "too_few_labels": "too few labels",
    "undefined_kappa": "every label is the same, so chance-corrected agreement is not defined",
    "relative_undefined": "a relative difference needs both values above zero",
    "unreliable_judge": "the judge is not reliable enough",
    "judge_biased": "by people's labels the judge favours one arm's answers",
    "length_confounded": "the preference cannot be separated from the answers' length",
    "invalid_srm": "rows are missing more often on one side, so the arms cannot be compared",
}

_SHORT_STATUSES = {
    "missing_differs": "too many values unknown",
    "not_measured": NOT_MEASURED,
    "one_cluster": "one user only",
    "zero_variance": "no variation",
    "tail_too_small": "too few in the tail",
    "burn_in": "too early",
    "relative_undefined": "no relative difference",
    "length_confounded": "confounded with length",
    "invalid_srm": "one side is missing rows",
    "undefined_kappa": "not defined",
    "unreliable_judge": "judge not reliable enough",
    "judge_biased": "judge favours one arm",
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
    "mean": "Mean preference",
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
    "superiority": "superiority: a goal or a benefit must be better, and nothing that decides worse than its margin",
    "noninferiority": "non-inferiority: nothing that decides may be worse than its margin",
    "utility": "utility: the weighted sum of the differences must be above zero, and nothing that decides worse than its margin",
}
LOOKS = {
    "anytime": "the intervals are valid however often the results are checked",
    "fixed": "the intervals are valid for one look at an amount of data fixed beforehand",
}

_PASSED = {
    "uncollected_calls": "no model call uncollected",
    "pairing": "pairs complete",
    "sample_ratio": "shares of the arms as planned",
    "arm_contamination": "users kept to one arm",
    "shed": "few copies shed",
    "missing_answers": "few answers missing",
    "empty_answers": "few empty answers",
    "short_period": "a week or more of traffic",
    "duplicate_requests": "no duplicates",
    "clock_skew": "clocks in order",
    "price_unknown": "prices known",
    "no_usage_in_streams": "streams report their usage",
    "finish_reasons": "answers end for documented reasons",
    "unjudgeable_answers": "answers are whole texts",
    "arm_models": "models as configured",
    "one_user_dominates": "no user dominates",
    "drift": "no drift",
    "one_score": "scores vary",
    "judge_coverage": "verdicts complete",
    "judge_model": "the model asked has answered",
    "judge_consistency": "judge consistent",
    "seat_bias": "no large seat bias",
    "judge_family": "judge no nearer to one arm",
    "judge_agreement": "judge compared with labels",
    "judge_error": "judge errs alike for both arms",
    "label_sampling": "labelled pairs drawn at random",
    "simulated_judge": "a real judge",
    "nonstationary": "steady since the decision",
    "judging_stopped": "judging stopped as planned",
}
"""a check's name beside a tick; a problem keeps the problem's name"""
_FAILED = {
    "setup_fault": "set-up fault",
    "one_score": "most scores alike",
    "uncollected_calls": "model calls uncollected",
    "short_period": "less than a week of traffic",
    "no_usage_in_streams": "no usage in streams",
    "judge_error": "judge favours one arm",
    "label_sampling": "draw of the labelled pairs not known",
    "units": "units that do not look like users",
    "uncopied": "requests for one arm only",
}


def check_name(name: str, status: str) -> str:
    """A check as it is named beside its mark."""
    return (_PASSED if status == "pass" else _FAILED).get(name, plain(name))


def plain(code: str) -> str:
    """A code of the data as words: "http_error" → "http error"."""
    return code.replace("_", " ")
