"""Every term of the page in a sentence: as a list at its end, and as <abbr> where the term is first met in a text."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from evalpipe.report.sanitize import escape_invisible

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
