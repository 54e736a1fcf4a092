"""The words of the report: the names of the arms, what each code of the analysis is called on the page, and its glossary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from evalpipe.report.sanitize import escape_invisible, one_line

# --- names of the arms


LONGEST_NAME = 48
"""characters of a model's name in a headline"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmNames:
    """How both arms are named in sentences: `control` is what users get today."""

    control: str
    treatment: str

    def title(self, recommendation: str) -> str:
        """The recommendation in a manager's words: "Keep gpt-4o; do not switch to gpt-4o-mini yet"."""
        if recommendation == "ship":
            return f"Switch from {self.control} to {self.treatment}"
        if recommendation == "keep":
            return f"Keep {self.control}; do not switch to {self.treatment}"
        if recommendation == "collect_more":
            return f"Keep {self.control}; do not switch to {self.treatment} yet"
        return f"No decision on {self.treatment} yet: keep {self.control}"


def arm_names(provenance: Mapping[str, Any]) -> ArmNames:
    """The names of the models, where the log records them and they differ. `provenance`: of the analysis."""
    control, treatment = (_model(provenance, arm) for arm in ("control", "treatment"))
    if control and control == treatment:
        return ArmNames(control=f"the present set-up of {control}", treatment="the new one")
    return ArmNames(control=control or "the present model", treatment=treatment or "the new model")


def _model(provenance: Mapping[str, Any], arm: str) -> str:
    arms = provenance.get("arms")
    about = arms.get(arm) if isinstance(arms, dict) else None
    if not isinstance(about, dict):
        return ""
    found = about.get("models") or about.get("model") or []
    names = [found] if isinstance(found, str) else [str(name) for name in found]
    if not names:
        expected = about.get("expected")
        names = [str(expected["model"])] if isinstance(expected, dict) and expected.get("model") else []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{one_line(names[0], LONGEST_NAME)}{more}" if names else ""


# --- codes of the analysis


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


# --- the glossary


GLOSSARY = {
    "anytime": "Valid at every look: you may look as often as you like, and the risk of a false conclusion does not grow.",
    "adjusted p": "A p-value corrected for the number of segments that were looked at.",
    "arm": "One of the two versions that are compared: control, or the treatment.",
    "benefit": "A metric that can win beside the goals, such as cost, and must not be worse than its margin.",
    "beyond the margin": "Worse by more than the loss you accept.",
    "canary": "A rollout in stages, to 1 % of the users, then 5 % and so on, as long as nothing gets worse than allowed.",
    "check": "A test of whether the data can be trusted.",
    "comparison": "A pair of answers to one request, compared by the judge.",
    "confidence": "How often intervals made in this way include the true value: 95 % means in 19 of 20 experiments.",
    "consistency": "How often the judge names the same winner when the two answers change places.",
    "control": "What your users get today: the present model, prompt or setting.",
    "cost per request": "Dollars that a provider asks for one answer, by its list of prices.",
    "diagnostic": "A metric that informs and decides nothing.",
    "difference": "The treatment's value minus control's. Of a win rate: minus 50 %.",
    "empty answer": "An answer with neither a text nor a call of a tool.",
    "equivalent": "Whatever the difference is, it is smaller than the margin: too small to matter.",
    "error": "A request that the model's provider did not answer: an error, a timeout, or an answer that cannot be read.",
    "fingerprint": "A short code that changes when what it was made from changes.",
    "goal": "A metric that must be measured and can win the decision, such as the win rate.",
    "guardrail": "A metric that cannot win, but must be shown not to be worse than its margin: errors, speed.",
    "inconclusive": "The data do not show either arm to be better. It does not mean that they are equal.",
    "interval": "The range of values that the data are compatible with. The more data, the narrower it is.",
    "judge": "The model that compares two answers, or scores one, by a rubric.",
    "judged pair": "A pair of answers that the judge gave a verdict on.",
    "kappa": "Agreement beyond chance: 0 is chance, 1 is complete.",
    "latency": "How long an answer takes, from the request to its last word.",
    "look": "One analysis of the whole experiment. Every report is one.",
    "loss": "A difference to the worse.",
    "margin": "The largest loss of a metric that you accept. It is set in evalpipe.toml; there are defaults.",
    "median": "The middle value: half of the answers are below it, half above.",
    "no conclusion": "No valid interval can be computed yet, so no difference is shown.",
    "non-inferior": "Shown not to be worse by more than the margin.",
    "not measured": "The source of this log does not record it, so it decides nothing.",
    "p-value": "How likely data like these, or more extreme, would be if there were no difference.",
    "pair": "A request that both models answered, or failed to answer.",
    "percentile": "The 99th percentile: 99 of 100 answers are faster, the slowest of 100 is not.",
    "points": "Percentage points: from 2 % to 3 % is one point.",
    "refusal": "An answer in which the model declines to answer.",
    "seat": "The place, first or second, in which an answer was shown to the judge.",
    "segment": "A part of the requests: by length, language, hour. It never decides.",
    "set-up fault": "A wrong key, model name or address, or an account without credit. It is no property of a model.",
    "shadow": "Each request is copied to the treatment. Users only ever see control's answer.",
    "simulated judge": "A program that follows a stated rule instead of a judge: it shows how evalpipe works, no more.",
    "superiority": "The rule that something must be better, and nothing that decides worse than its margin.",
    "timeout": "A request that got no answer in the time that was set.",
    "time to first token": "How long it takes until the first word of an answer is there.",
    "tokens": "The pieces of words that models read and write, and that providers charge for.",
    "treatment": "What you think of changing to: the new model, prompt or setting.",
    "truncation": "An answer that was cut off at the largest length allowed.",
    "user": "Who sent the request, as far as requests name one; else the conversation.",
    "verdict": "The judge's answer on one pair: which answer is better, or a tie.",
    "win rate": "How often the treatment's answer is preferred: each user counts once, a tie is half a win, 50 % is even.",
}
"""term → its meaning, in words that need no other"""

MOST_MARKED = 6
"""terms that are marked within one text"""
_TERM = re.compile(
    r"(?<![\w-])(" + "|".join(re.escape(term) for term in sorted(GLOSSARY, key=len, reverse=True)) + r")(s?)(?![\w-])",
    re.IGNORECASE,
)


def glossary() -> list[tuple[str, str]]:
    """(term, meaning), by name."""
    return sorted(GLOSSARY.items())


def with_terms(text: str) -> Markup:
    """Plain text with its `backticks` as <code> and each term, where it first occurs, as <abbr>; everything else is escaped."""
    parts = escape_invisible(text).split("`")
    if len(parts) % 2 == 0:
        parts = ["`".join(parts)]
    met: set[str] = set()
    shown = [Markup("<code>{}</code>").format(part) if n % 2 else _marked(part, met) for n, part in enumerate(parts)]
    return Markup("").join(shown)


def _marked(text: str, met: set[str]) -> Markup:
    """The text with the terms that were not met before marked, and noted in `met`."""
    parts: list[Markup] = []
    end = 0
    for match in _TERM.finditer(text):
        term = match[1].lower()
        if term in met or len(met) >= MOST_MARKED:
            continue
        met.add(term)
        abbr = Markup('<abbr title="{}">{}</abbr>').format(GLOSSARY[term], match[0])
        parts += [escape(text[end : match.start()]), abbr]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])
