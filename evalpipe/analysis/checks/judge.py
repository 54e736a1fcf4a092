"""Checks of the judge that decides: is it consistent, fair, independent, complete, real?"""

from __future__ import annotations

from collections.abc import Sequence

from evalpipe.analysis.checks.base import FAIL, PASS, WARN, CheckContext, CheckFunction
from evalpipe.analysis.metric_formatting import bias_sentence, count, listed, percent, signed
from evalpipe.analysis.result import Check, JudgeResult
from evalpipe.analysis.settings import CORRECTED
from evalpipe.analysis.sql import Connection, rows
from evalpipe.models import MetricRole
from evalpipe.providers.model_names import family, same_family, same_model
from evalpipe.stats.agreement import KAPPA_GATE, LABELS_FOR_A_GATE

FEW_FAILURES = 0.05
MANY_FAILURES = 0.20
SCORES_FOR_A_WARNING = 20
OTHER_FAMILY = "judge with a model of a third family, or measure the judge on labelled pairs"


def _is_goal(evidence: CheckContext) -> bool:
    """Whether the win rate can win the decision: only then can its judge make the data invalid."""
    result = evidence.results.get("win_rate")
    return result is not None and result.role == MetricRole.PRIMARY.value


def _verdicts_decide(evidence: CheckContext) -> bool:
    """Whether a goal is made of the judge's verdicts: its own win rate, or that corrected by labels."""
    corrected = evidence.results.get(CORRECTED)
    return _is_goal(evidence) or (corrected is not None and corrected.role == MetricRole.PRIMARY.value)


def judge_consistency(evidence: CheckContext) -> Check | None:
    """The same pair, shown in both orders: the same winner?"""
    judge = evidence.judge
    if judge is None or judge.consistency is None:
        return None
    detail = (
        f"{judge.name} gave the same verdict in both orders on {percent(judge.consistency)} of "
        f"{count(judge.n_both_orders)} pairs ({percent(judge.consistency_low)} to {percent(judge.consistency_high)})"
    )
    if judge.status == "unreliable_judge":
        return Check(
            name="judge_consistency",
            status=FAIL if _is_goal(evidence) else WARN,
            detail=f"{detail}: its verdicts depend more on the order than on the answers",
            remedy="use a stronger judge model or a clearer rubric",
        )
    weak = judge.consistency < 0.6
    return Check(name="judge_consistency", status=WARN if weak else PASS, detail=detail)


def seat_bias(evidence: CheckContext) -> Check | None:
    """Does the judge favour what it reads first?"""
    judge = evidence.judge
    if judge is None or judge.first_seat_rate is None:
        return None
    low, high = judge.first_seat_low, judge.first_seat_high
    detail = f"the answer shown first got {percent(judge.first_seat_rate)} of the preference"
    if low is not None and high is not None:
        detail += f" ({percent(low)} to {percent(high)})"
        if low > 0.55 or high < 0.45:
            return Check(
                name="seat_bias",
                status=WARN,
                detail=f"{detail}: each pair is judged in both orders, which evens it out but blurs the result",
                remedy="use a stronger judge model, or a rubric that asks for reasons before the verdict",
            )
    return Check(name="seat_bias", status=PASS, detail=detail)


def simulated_judge(evidence: CheckContext) -> Check | None:
    judge = evidence.judge
    if judge is None:
        return None
    if judge.simulated:
        return Check(
            name="simulated_judge",
            status=WARN,
            detail=f"{judge.name} is a simulated judge: its verdicts follow a fixed rule and are no evidence of quality",
            remedy="judge with a real model before deciding anything",
        )
    return Check(name="simulated_judge", status=PASS, detail="the verdicts come from a real judge")


def judge_family(evidence: CheckContext) -> Check | None:
    """Judges tend to prefer responses of their own model family."""
    judge = evidence.judge
    if judge is None or not judge.model or _only_simulated(evidence, judge):
        return None  # a simulated judge is of no family, whatever model it stands for
    status, detail = family_overlap(judge.model, models_of_arms(evidence.connection, evidence.experiment))
    if detail is None:
        return None
    return Check(name="judge_family", status=status, detail=detail, remedy=OTHER_FAMILY if status == WARN else None)


def _only_simulated(evidence: CheckContext, judge: JudgeResult) -> bool:
    """Whether no model answered for a judge. Pairs of identical answers are judged without a call."""
    if not judge.simulated:
        return False
    found = rows(
        evidence.connection,
        "SELECT count(*) AS n FROM judgments WHERE experiment = ? AND judge_fingerprint = ? AND status <> 'identical' "
        "AND NOT coalesce(simulated, false)",
        [evidence.experiment, judge.fingerprint],
    )
    return not found[0]["n"]


def models_of_arms(connection: Connection, experiment: str) -> list[tuple[str, str]]:
    """(arm, model) of every model that answered."""
    found = rows(
        connection,
        "SELECT arm, model FROM exchanges WHERE experiment = ? AND model IS NOT NULL GROUP BY ALL ORDER BY ALL",
        [experiment],
    )
    return [(row["arm"], row["model"]) for row in found]


def family_overlap(judge: str, models: Sequence[tuple[str, str]]) -> tuple[str, str | None]:
    """The judge's model beside those of the arms, each as (arm, model): a status and its words, None where the judge's family is
    not known. A warning where it is of one arm's kind and not of the other's."""
    own = sorted({arm for arm, model in models if same_model(model, judge)})
    if own:
        detail = f"the judge ({judge}) is the very model of {'both arms' if len(own) > 1 else f'the {own[0]} arm'}"
        if len(own) > 1:
            return PASS, f"{detail}: it favours neither as its own"
        return WARN, f"{detail}: judges prefer their own answers"
    if family(judge) is None:
        return PASS, None
    related = sorted({arm for arm, model in models if same_family(model, judge)})
    if related and len(related) < 2:
        return WARN, f"the judge ({judge}) is of the same family as {listed(related)}: judges prefer their own kind"
    if related:
        return PASS, f"the judge ({judge}) is of the family of both arms"
    return PASS, f"the judge ({judge}) is of neither arm's family"


def coverage(evidence: CheckContext) -> Check | None:
    """How many pairs were judged, and how many of those asked have no verdict."""
    judge = evidence.judge
    if judge is None or not judge.asked_pairs:
        return None
    pairs, missing = evidence.funnel.pairs, judge.asked_pairs - judge.n_judged
    failed = missing / judge.asked_pairs
    bounds = ""
    if missing and judge.missing_low is not None and judge.missing_high is not None:
        low, high = percent(judge.missing_low), percent(judge.missing_high)
        bounds = f"; the win rate would be {low} to {high} had they all gone one way"
    detail = (
        f"{count(judge.n_judged)} of {count(pairs)} pairs have a verdict, {count(missing)} of those asked have none "
        f"({percent(failed)}){bounds}"
    )
    if failed > MANY_FAILURES:
        return Check(
            name="judge_coverage",
            status=FAIL if _verdicts_decide(evidence) else WARN,
            detail=detail,
            remedy="run `evalpipe judge` again: failures are asked again",
        )
    status = WARN if failed > FEW_FAILURES else PASS
    return Check(name="judge_coverage", status=status, detail=detail)


def judge_agreement(evidence: CheckContext) -> Check | None:
    """Does the judge agree with people, where there are labels?"""
    judge = evidence.judge
    if judge is None or not judge.agreement.n_labels:
        return None
    found = judge.agreement
    detail = f"{judge.name} agrees with {found.source} on {percent(found.accuracy)} of {count(found.n_labels)} labelled pairs"
    if found.kappa is not None and found.kappa_low is not None:
        detail += f" (kappa {found.kappa:.2f}, at least {found.kappa_low:.2f})"
        if found.n_labels >= LABELS_FOR_A_GATE and found.kappa_low < KAPPA_GATE:
            return Check(
                name="judge_agreement",
                status=WARN,
                detail=f"{detail}: too little for a judge in place of people",
                remedy="use a stronger judge model or a clearer rubric, and label more pairs",
            )
    return Check(name="judge_agreement", status=PASS, detail=detail)


def judge_error(evidence: CheckContext) -> Check | None:
    """Does the judge err alike for both arms' answers? Only labels show it."""
    found = evidence.corrected
    if found is None or not found.errors or found.errors[0].status != "ok":
        return None
    favoured = found.biased
    if favoured is None:
        error = next(one for one in found.errors if one.arm == "treatment")
        low, high = (100 * (one or 0.0) for one in (error.ci_low, error.ci_high))
        detail = (
            f"on {count(error.n_labels)} labelled pairs the judge is not shown to favour either arm's answers "
            f"({signed(low)} to {signed(high)} points for the treatment's)"
        )
        return Check(name="judge_error", status=PASS, detail=detail)
    if found.decides:
        return Check(
            name="judge_error", status=PASS, detail=f"{bias_sentence(favoured)}; the corrected win rate decides"
        )
    return Check(
        name="judge_error",
        status=WARN,
        detail=f"{bias_sentence(favoured)}: its own win rate decides nothing",
        remedy='label more pairs: from 50 on the corrected win rate decides (labels = "auto" in [decision])',
    )


def label_sampling(evidence: CheckContext) -> Check | None:
    """Are the labelled pairs a random sample? What was imported may have been chosen."""
    found = evidence.corrected
    if found is None or not found.n_labels:
        return None
    if found.sampling == "known":
        return Check(
            name="label_sampling",
            status=PASS,
            detail=f"the {count(found.n_labels)} labelled pairs were drawn with recorded probabilities",
        )
    whole = found.n_labels == found.n_pairs
    if whole:
        return Check(name="label_sampling", status=PASS, detail="every pair that counts in the win rate is labelled")
    return Check(
        name="label_sampling",
        status=WARN if found.decides else PASS,
        detail=f"the {count(found.n_labels)} labels ({listed(found.sources)}) hold no probability of their draw and are taken "
        "for a random sample of the judged pairs: were the pairs chosen by their content, the corrected win rate is wrong",
        remedy="label pairs that are drawn at random",
    )


def judge_model(evidence: CheckContext) -> Check | None:
    """Did the model that was asked answer? A router may send a call to another one, at another price."""
    judge = evidence.judge
    if judge is None or not judge.other_models:
        return None
    named = listed([f"{count(n)} by {model}" for model, n in sorted(judge.other_models.items())])
    return Check(
        name="judge_model",
        status=WARN,
        detail=f"{judge.name}: not all calls were answered by the model that was asked, but {named}: its verdicts are of several "
        "models, and these calls are booked at the price of the one that answered",
        remedy="ask the model at an address that does not fall back to another one",
    )


def one_score(evidence: CheckContext) -> Check | None:
    """Does a judge that scores answers alone tell them apart? One that gives most of them the same score hides differences."""
    found = rows(
        evidence.connection,
        """
        WITH latest AS (
          SELECT judge, arg_max(fingerprint, coalesce(judged_us, 0)) AS fingerprint FROM ev_calls GROUP BY judge
        ), alone AS (
          FROM ev_calls SEMI JOIN latest USING (judge, fingerprint) WHERE final AND winner IS NULL AND preference IS NULL
        ), scores AS (
          SELECT judge, unnest(map_entries(control_scores), recursive := true) FROM alone
          UNION ALL
          SELECT judge, unnest(map_entries(treatment_scores), recursive := true) FROM alone
        ), counted AS (
          SELECT judge, key AS dimension, value, count(*) AS n FROM scores WHERE value IS NOT NULL GROUP BY ALL
        )
        SELECT judge, dimension, arg_max(value, n) AS value, max(n) AS n, sum(n)::BIGINT AS total
        FROM counted GROUP BY judge, dimension HAVING sum(n) >= ? ORDER BY judge, dimension""",
        [SCORES_FOR_A_WARNING],
    )
    if not found:
        return None
    same = [row for row in found if row["n"] > row["total"] / 2]
    if not same:
        return Check(name="one_score", status=PASS, detail="no judge gives most of its answers the same score")
    named = listed(
        [
            f"{row['judge']} gives {count(row['n'])} of {count(row['total'])} answers the same {row['dimension']} "
            f"({row['value']:g})"
            for row in same
        ]
    )
    return Check(
        name="one_score",
        status=WARN,
        detail=f"{named}: a difference between the arms can only show in the rest",
        remedy="write a rubric with a finer scale, or use a judge that compares pairs",
    )


CHECKS: list[CheckFunction] = [
    one_score,
    coverage,
    judge_model,
    judge_consistency,
    seat_bias,
    judge_family,
    judge_agreement,
    judge_error,
    label_sampling,
    simulated_judge,
]
