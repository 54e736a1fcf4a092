"""Experiments made to have one answer: the finding and the sentence a manager reads."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiment_builders import START, both_arms, check, draw, failing, frame, metric, run, verdicts
from scipy.optimize import brentq

from evalpipe.analysis.settings import CustomMetric, MetricRule
from evalpipe.report.view import report_view
from evalpipe.stats.multiplicity import e_benjamini_hochberg

N = 1500
BETS = np.minimum(0.95, np.sqrt(2 * np.log(40) / 5) / 2 * np.array([0.25, 0.5, 1, 2, 4]))
"""the stakes of docs/statistics.md#betting for a planned variance of .005 and n* = 1000"""


def test_clear_win_ships() -> None:
    found = run(both_arms(N, n_users=400), verdicts(draw(N, 0.6, seed=3)))
    assert found.decision.recommendation == "ship"
    assert metric(found, "win_rate").finding == "better"
    share = f"{100 * metric(found, 'win_rate').treatment.value:.1f}"
    assert found.decision.headline.startswith(f"Ship the treatment: its answers were preferred in {share}")
    assert found.decision.headline.endswith("each user counted once), and every guardrail is within its margin.")


def test_clear_loss_keeps_control() -> None:
    found = run(both_arms(N, n_users=400), verdicts(draw(N, 0.4, seed=3)))
    assert (found.decision.recommendation, found.decision.rule) == ("keep", "harm")
    assert metric(found, "win_rate").finding == "worse"
    assert found.decision.headline.endswith("worse by more than the 3 points allowed.")


def test_a_win_on_quality_does_not_pay_for_a_cost_beyond_the_margin_that_was_set() -> None:
    found = run(
        both_arms(N, treatment={"cost_usd": 0.00125}),
        verdicts(draw(N, 0.6, seed=3)),
        metrics={"cost_per_request_usd": MetricRule(margin=0.1, margin_relative=True)},
    )
    assert found.decision.recommendation == "keep"
    assert metric(found, "win_rate").finding == "better"
    assert metric(found, "cost_per_request_usd").finding == "worse"
    assert found.decision.headline.startswith("Keep control: cost per request rose from")
    # A keep by harm falls on an exclusion and on a change of what decides only (docs/decision.md), whatever later data show.
    (line,) = found.decision.what_would_change
    assert line.startswith("No further data") and "exclusion" in line and "a change of what decides" in line
    assert any("preferred in" in reason and reason.endswith("better.") for reason in found.decision.reasons)


def test_a_loss_beyond_the_margin_that_does_not_stop_is_one_on_the_first_screen_and_in_the_reasons() -> None:
    """The margin is set between the limits of the 95 % interval and of the stricter one of the harm rule (alpha / K)."""
    exchanges = both_arms(N, n_users=400, treatment={"cost_usd": 0.0005})
    judged = verdicts(draw(N, 0.44, seed=3))
    high = metric(run(exchanges, judged), "win_rate").ci_high
    assert high < -0.01
    for margin, is_beyond in ((-high - 0.001, True), (-high + 0.001, False)):
        found = run(exchanges, judged, metrics={"win_rate": MetricRule(margin=margin)})
        assert (found.decision.recommendation, found.decision.rule) == ("collect_more", "collect_more")
        stop = f"{100 * (1 - found.decision.harm_level):.4g}"
        (reason,) = (
            one for one in found.decision.reasons if one.startswith("Its answers were") or "preferred in" in one
        )
        first = report_view(found).first
        known = [one.text.replace("\u00a0", " ") for one in first.known if one.text.startswith("Worse answers")]
        unknown = [one.text for one in first.unknown if one.text.startswith("Worse answers: whether by more than")]
        if is_beyond:
            assert "worse by more than the " in reason and f"not at the {stop} % that a stop for harm takes" in reason
            assert len(known) == 1 and ", by more than the " in known[0] and f"takes {stop} % confidence" in known[0]
            assert unknown == []
        else:
            assert "worse, and it may be by more than the " in reason
            assert (known, len(unknown)) == ([], 1)


def test_beside_a_win_a_default_margin_of_cost_is_named_as_one_nobody_chose() -> None:
    found = run(both_arms(N, treatment={"cost_usd": 0.00125}), verdicts(draw(N, 0.6, seed=3)))
    assert (found.decision.recommendation, found.decision.rule) == ("keep", "harm")
    assert found.decision.headline.startswith("Keep control: better (its answers were preferred in")
    assert "more expensive than control, beyond the 10 % allowed by default: set margin in" in found.decision.headline


def test_mixed_results_are_decided_by_the_weights() -> None:
    dearer = np.random.default_rng(3).uniform(0.00098, 0.00118, N)  # about 8 % more, within the 10 % allowed
    exchanges, judgments = both_arms(N, treatment={"cost_usd": dearer}), verdicts(draw(N, 0.54, seed=3))
    weights = {"win_rate": (5.0, 0.5), "cost_per_request_usd": (0.5, 5.0)}
    signs, recommended = [], []
    for position in (0, 1):
        rules = {name: MetricRule(weight=pair[position]) for name, pair in weights.items()}
        found = run(exchanges, judgments, policy="utility", metrics=rules)
        signs.append((found.decision.utility_low, found.decision.utility_high))
        recommended.append(found.decision.recommendation)
        assert any("weighted sum, in units of the margins" in reason for reason in found.decision.reasons)
    assert signs[0][0] > 0  # quality weighs more: gains outweigh losses
    assert signs[1][1] < 0  # cost weighs more: losses outweigh gains
    assert recommended == ["ship", "keep"]
    assert found.decision.headline == (
        "Keep control: weighed by the configured weights, the treatment's losses outweigh its gains."
    )


def test_the_utility_is_the_weighted_sum_with_a_hand_made_variance() -> None:
    exchanges, x = both_arms(300, n_users=60), draw(300, 0.55, seed=5)
    rules = {"win_rate": MetricRule(margin=0.03, weight=2.0), "error_rate": MetricRule(role="diagnostic"),
             "timeout_rate": MetricRule(role="diagnostic"), "cost_per_request_usd": MetricRule(role="diagnostic")}  # fmt: skip
    found = run(exchanges, verdicts(x), policy="utility", metrics=rules)
    # Every user has five pairs, of which the first three count; each user counts once.
    means = x[:180].reshape(3, 60).mean(axis=0)
    theta = means.mean()
    e = (means - theta) / 60 * 2.0 / 0.03
    se = np.sqrt(60 / 59 * np.sum((e - e.mean()) ** 2))
    assert np.isclose(found.decision.utility, 2.0 * (theta - 0.5) / 0.03)
    from scipy.stats import t

    assert np.isclose(found.decision.utility_low, 2.0 * (theta - 0.5) / 0.03 - t.isf(0.025, 59) * se)


def test_too_little_data_says_how_much_more() -> None:
    found = run(both_arms(40), verdicts(draw(40, 0.6, seed=3)), looks="anytime")
    assert found.decision.recommendation == "collect_more"
    assert metric(found, "cost_per_request_usd").status == "burn_in"
    # No error seen in 40 requests of 40 users: .2275 of a discordant pair is expected (Jeffreys), with which the five bets
    # against -0.5 points multiply to 40 after n pairs; half of the experiments are through a seventh of the way earlier.
    share = 0.2275 / 40 / 2
    gain, loss = np.log1p(BETS * 0.5025 / 0.4975), np.log1p(-BETS)
    none = np.log1p(BETS * 0.0025 / 0.4975)
    growth = share * (gain + loss) + (1 - 2 * share) * none
    n = brentq(lambda n: np.logaddexp.reduce(n * growth) - np.log(5 * 40), 10, 1e5)
    assert 0.83 * (n - 40) < metric(found, "error_rate").expected_more_requests < 0.88 * (n - 40) + 100
    # First what stands in the way, in the order in which the verdict names it.
    assert found.decision.reasons[0].rstrip(".").lower() in found.decision.headline.lower()


def _split(
    n_treatment: int, n_control: int, *, percentage: float = 50.0, treatment: object = None, control: object = None
) -> pd.DataFrame:
    first = frame(n_control, arm="control", seed=1, mode="ab", percentage=percentage, **(control or {}))
    second = frame(n_treatment, arm="treatment", seed=2, mode="ab", percentage=percentage, **(treatment or {}))
    second["request_id"], second["unit_id"] = "t" + second.request_id, "t" + second.unit_id
    return pd.concat([first, second], ignore_index=True)


def test_a_broken_sample_ratio_is_invalid() -> None:
    found = run(_split(1000, 1300), mode="ab", treatment_percent=50)
    assert found.decision.recommendation == "invalid"
    assert check(found, "sample_ratio").status == "fail"
    assert "1,000 of 2,300 users (43.5 %) got the treatment, 50 % were planned" in found.decision.headline
    assert found.decision.what_would_change == [f"{check(found, 'sample_ratio').remedy.capitalize()}."]


def test_users_in_both_arms_are_left_out_and_named() -> None:
    exchanges = _split(300, 300)
    twice = (
        exchanges[exchanges.arm == "control"]
        .head(5)
        .assign(arm="treatment", request_id=[f"x{i}" for i in range(5)], outcome="http_error")
    )
    found = run(pd.concat([exchanges, twice], ignore_index=True), mode="ab", treatment_percent=50)
    assert check(found, "arm_contamination").status == "warn"
    assert "5 of 600 users saw both arms" in check(found, "arm_contamination").detail
    assert metric(found, "error_rate").treatment.value == 0.0
    assert found.funnel.exclusions == {"user_in_both_arms": 10}


def test_ab_harm_is_found_while_looking_any_time() -> None:
    bad = {"outcome": failing(3000, 0.05, seed=1)}
    good = {"outcome": failing(3000, 0.01, seed=2)}
    found = run(_split(3000, 3000, treatment=bad, control=good), mode="ab", treatment_percent=50, looks="anytime")
    assert (found.decision.recommendation, found.decision.rule) == ("keep", "harm")
    assert metric(found, "error_rate").method == "newcombe wilson, anytime"  # too few blocks of hours for a normal one


def test_failing_only_on_long_prompts_shows_in_the_segments() -> None:
    tokens = np.random.default_rng(8).integers(1, 1001, N)
    prompts = ["x" * n for n in tokens]
    broken = np.where((tokens > 750) & (np.random.default_rng(9).random(N) < 0.4), "http_error", "ok")
    found = run(
        both_arms(N, control={"prompt": prompts}, treatment={"prompt": prompts, "outcome": broken}),
        verdicts(draw(N, 0.55, seed=3)),
        details=True,
    )
    worst = found.segments[0]
    assert (worst.dimension, worst.metric, worst.finding, worst.discovered) == (
        "prompt_length",
        "error_rate",
        "worse",
        True,
    )
    assert worst.value.startswith("over 7")
    others = [
        s for s in found.segments if s.dimension == "prompt_length" and s.metric == "error_rate" and s is not worst
    ]
    assert len(others) == 3
    assert not any(s.discovered for s in others)
    assert found.decision.recommendation == "keep"


def test_segments_find_nothing_where_there_is_nothing() -> None:
    # Both arms fail alike, and a failed request has no tokens: it must not fall out of its slice on either side.
    prompts = ["x" * n for n in np.random.default_rng(8).integers(1, 1001, N)]
    arms = []
    for seed in (1, 2):
        outcome = failing(N, 0.05, seed=seed)
        arms.append({"prompt": prompts, "outcome": outcome, "input_tokens": np.where(outcome == "ok", 100.0, np.nan)})
    found = run(both_arms(N, control=arms[0], treatment=arms[1]), verdicts(draw(N, 0.5, seed=1)), details=True)
    sliced = [one for one in found.segments if one.dimension == "prompt_length" and one.metric == "error_rate"]
    assert sum(one.n for one in sliced) == N
    assert min(one.control for one in sliced) > 0
    assert not any(one.discovered for one in found.segments)


def test_turns_are_a_segment_in_shadow_and_in_a_split() -> None:
    # Conversations of three requests: a first turn, a step of its tool loop, a second turn that the treatment fails more often.
    which = np.arange(N) % 3
    broken = np.where((which == 2) & (np.random.default_rng(9).random(N) < 0.4), "http_error", "ok")
    talks = {"conversation_id": [f"c{i // 3}" for i in range(N)], "unit_id": [f"u{i // 3}" for i in range(N)],
             "turn": np.where(which == 2, 2, 1), "step": np.where(which == 1, 1, 0)}  # fmt: skip
    shadow = both_arms(N, control=talks, treatment={**talks, "outcome": broken})
    found = [one for one in run(shadow, details=True).segments if (one.dimension, one.metric) == ("turn", "error_rate")]
    counts = {"first turn": N // 3 + (N % 3 > 0), "step of a tool loop": N // 3 + (N % 3 > 1), "later turn": N // 3}
    assert {one.value: one.n for one in found} == counts
    assert {one.value for one in found if one.discovered} == {"later turn"}

    apart = {"unit_id": [f"t{i // 3}" for i in range(N)], "request_id": [f"t{i}" for i in range(N)]}
    split = pd.concat(
        [
            frame(N, arm="control", seed=1, mode="ab", percentage=50.0, **talks),
            frame(N, arm="treatment", seed=2, mode="ab", percentage=50.0, **{**talks, **apart}, outcome=broken),
        ],
        ignore_index=True,
    )
    by_turn = [one for one in run(split, mode="ab", details=True).segments if one.dimension == "turn"]
    assert {one.value for one in by_turn if one.metric == "error_rate"} == set(counts)
    assert {one.value for one in by_turn if one.metric == "error_rate" and one.discovered} == {"later turn"}


def test_one_user_with_half_the_traffic_is_named() -> None:
    units = [f"u{i}" if i % 2 else "heavy" for i in range(N)]
    found = run(both_arms(N, control={"unit_id": units}, treatment={"unit_id": units}), verdicts(draw(N, 0.6, seed=3)))
    assert check(found, "one_user_dominates").status == "warn"
    assert "made 50 % of the requests" in check(found, "one_user_dominates").detail
    assert metric(found, "error_rate").n_clusters == N // 2 + 1


def test_all_errors_on_one_side_is_harm_never_invalid() -> None:
    found = run(both_arms(500, treatment={"outcome": "http_error"}))
    assert (found.decision.recommendation, found.decision.rule) == ("keep", "harm")
    assert found.decision.headline.startswith("Keep control: error rate rose from 0")
    assert metric(found, "cost_per_request_usd").status == "no_data"  # no pair that both arms answered
    assert check(found, "missing_answers").status == "warn"


def test_an_empty_arm_is_one_clear_sentence() -> None:
    exchanges = both_arms(100)
    found = run(exchanges[exchanges.arm == "control"])
    assert found.decision.recommendation == "collect_more"
    assert "the treatment has no answer in the log (0 of 100 requests have a copy)" in found.decision.headline
    assert (metric(found, "error_rate").status, metric(found, "error_rate").finding) == ("missing_arm", "undefined")
    assert check(found, "both_arms").status == "warn"
    assert found.funnel.requests == 100 == sum(found.funnel.exclusions.values())


def test_a_constant_metric_is_undefined_not_zero_plus_minus_zero() -> None:
    same = {"cost_usd": 0.001, "output_tokens": 100}
    found = run(both_arms(200, control=same, treatment=same), verdicts(draw(200, 0.6, seed=3)))
    cost = metric(found, "cost_per_request_usd")
    assert (cost.status, cost.finding, cost.ci_low) == ("zero_variance", "undefined", None)
    assert any("the values never vary" in reason for reason in found.decision.reasons)


def test_all_ties_prove_equivalence_and_never_a_win() -> None:
    for looks in ("fixed", "anytime"):
        found = run(both_arms(N), verdicts(np.full(N, 0.5)), looks=looks)
        assert metric(found, "win_rate").finding == "equivalent"
        assert (found.decision.recommendation, found.decision.rule) == ("keep", "no_gain")
        assert found.decision.headline.startswith(
            "Keep control: no difference that matters: win rate and cost per request"
        )


def test_all_ties_ship_under_noninferiority() -> None:
    found = run(both_arms(N), verdicts(np.full(N, 0.5)), policy="noninferiority")
    assert found.decision.recommendation == "ship"


def test_a_planned_end_without_a_win_keeps_control() -> None:
    found = run(
        both_arms(500),
        verdicts(draw(500, 0.52, seed=4)),
        max_requests=500,
        metrics={
            "win_rate": MetricRule(margin=0.005),
            "error_rate": MetricRule(margin=0.05),
            "timeout_rate": MetricRule(margin=0.05),
        },
    )
    assert (found.decision.recommendation, found.decision.rule) == ("keep", "max_reached")
    assert "500 requests" in found.decision.headline
    assert found.decision.reasons[0] == "The planned 500 requests are in, and the treatment has not won."
    assert "preferred in" in found.decision.reasons[1]  # the goal, before the guardrails
    assert found.decision.what_would_change[0] == "A larger max_requests: the planned end is reached."


def test_an_inconsistent_judge_makes_the_decision_invalid() -> None:
    first = np.ones(400)
    second = np.where(np.arange(400) % 4 == 0, 1.0, 0.0)  # the first seat wins three times in four
    found = run(both_arms(400), verdicts(first, other_order=second))
    assert metric(found, "win_rate").status == "unreliable_judge"
    assert check(found, "judge_consistency").status == "fail"
    assert check(found, "seat_bias").status == "warn"
    assert found.decision.recommendation == "invalid"
    judge = found.judges[0]
    assert (judge.consistency, judge.flips, judge.n_both_orders) == (0.25, 300, 400)
    assert judge.first_seat_rate == (1 * 300 + 0.5 * 100) / 400


@pytest.mark.parametrize("role", ["primary", "guardrail", "diagnostic"])
def test_a_judge_makes_the_data_invalid_only_where_the_win_rate_is_a_goal(role: str) -> None:
    first = np.ones(400)
    second = np.where(np.arange(400) % 4 == 0, 1.0, 0.0)
    incomplete = verdicts(first)
    asked = incomplete.request_id.str[1:].astype(int)
    incomplete.loc[asked % 2 == 0, "status"] = "unparseable"  # half of the pairs have no verdict
    incomplete.loc[asked % 2 == 0, ["preference", "winner"]] = None
    for name, judgments in (("judge_consistency", verdicts(first, other_order=second)), ("judge_coverage", incomplete)):
        found = run(both_arms(400), judgments, metrics={"win_rate": MetricRule(role=role)})
        assert check(found, name).status == ("fail" if role == "primary" else "warn")
        assert (found.decision.recommendation == "invalid") is (role == "primary")


def test_a_pair_judged_in_one_order_only_is_missing_and_enters_the_bounds() -> None:
    judgments = verdicts(np.ones(10))
    judgments.loc[judgments.key == "r0-control", "status"] = "unparseable"
    judgments.loc[judgments.key == "r0-control", ["preference", "winner"]] = None
    found = run(both_arms(20), judgments).judges[0]
    assert (found.n_pairs, found.asked_pairs, found.win_rate) == (9, 10, 1.0)
    assert (found.missing_low, found.missing_high) == (0.9, 1.0)
    assert found.failures == {"unparseable": 1}


def test_the_share_over_pairs_is_over_the_pairs_that_count() -> None:
    # Thirty conversations of three turns; one user has ten of them. Control wins those, and every later turn.
    conversation = np.arange(90) // 3
    users = [f"u{max(0, int(one) - 9)}" for one in conversation]
    place = {
        "turn": np.arange(90) % 3 + 1,
        "step": 0,
        "conversation_id": [f"c{one}" for one in conversation],
        "unit_id": users,
    }
    won = (np.arange(90) % 3 == 0) & (conversation >= 10)
    found = run(both_arms(90, control=place, treatment=place), verdicts(won.astype(float)), pairs_per_unit=0)
    judge = found.judges[0]
    assert (judge.n_pairs, judge.n_judged, judge.n_clusters) == (30, 90, 21)
    assert np.isclose(judge.win_rate, 20 / 21)
    assert np.isclose(judge.win_rate_over_pairs, 20 / 30)
    assert np.isclose(metric(found, "win_rate").value_over_pairs, 20 / 30)
    assert np.isclose(judge.win_rate_over_judged, 20 / 90)


def test_repeats_are_averaged_within_an_order_first() -> None:
    judgments = verdicts([1.0, 1.0])
    again = judgments[judgments.key == "r0-treatment"].assign(
        repeat=1, preference=0.0, winner="control", key="again", judgment_id="again:1"
    )
    found = run(both_arms(10), pd.concat([judgments, again], ignore_index=True)).judges[0]
    assert found.win_rate == ((0.5 + 1.0) / 2 + 1.0) / 2


def test_a_simulated_judge_is_a_warning_not_invalid() -> None:
    found = run(both_arms(N), verdicts(draw(N, 0.6, seed=3), simulated=True))
    assert check(found, "simulated_judge").status == "warn"
    assert found.provenance["simulated_judge"] is True
    assert found.decision.recommendation == "ship"
    assert ": by the simulated judge's verdicts, its answers were preferred in" in found.decision.headline


def test_a_simulated_judge_says_which_rule_it_follows() -> None:
    reasons = "Stated rules broken by response 1: none; by response 2: empty."
    found = run(both_arms(50), verdicts(draw(50, 0.6, seed=3), simulated=True, reasoning=reasons))
    assert "sim --judge checks" in found.judges[0].simulated_rule
    assert run(both_arms(50), verdicts(draw(50, 0.6, seed=3))).judges[0].simulated_rule is None


def test_graded_preferences_are_a_win_rate_not_pairs_won() -> None:
    found = run(both_arms(N), verdicts(np.full(N, 0.128) + np.arange(N) % 7 / 1000))
    assert found.decision.headline.startswith("Keep control: the treatment's win rate is 13.100")
    assert "over 1,500 judged pairs" in found.decision.headline
    counted = run(both_arms(50), verdicts(draw(50, 0.6, seed=3)))
    assert (metric(found, "win_rate").graded, metric(counted, "win_rate").graded) == (True, False)


def test_a_judge_that_is_an_arms_own_model_is_named() -> None:
    def family_check(judge: str, treatment: str) -> Any:
        arms = both_arms(50, control={"model": "gpt4_1106_preview"}, treatment={"model": treatment})
        return check(run(arms, verdicts(draw(50, 0.6, seed=3), judge_model=judge)), "judge_family")

    own = family_check("gpt-4-1106-preview", "gpt-3.5-turbo-1106_verbose")
    assert (own.status, "the very model of the control arm" in own.detail) == ("warn", True)
    assert (
        family_check("gpt-4o", "gpt-3.5-turbo-1106_verbose").status == "pass"
    )  # of both arms' family, and neither's model
    assert family_check("gpt-4-1106-preview", "gpt4_1106_preview").status == "pass"  # both arms are its own


@pytest.mark.parametrize(("simulated", "warned"), [("all", False), ("all but one", True), ("none", True)])
def test_a_simulated_judge_is_of_no_family(simulated: str, warned: bool) -> None:
    judged = verdicts(draw(50, 0.6, seed=3), judge_model="claude-haiku-4-5")
    judged["simulated"] = simulated != "none"
    if simulated == "all but one":
        judged.loc[0, "simulated"] = False
    arms = both_arms(50, control={"model": "gpt-4o"}, treatment={"model": "claude-opus-4-5"})
    found = [one for one in run(arms, judged).checks if one.name == "judge_family"]
    assert [one.status for one in found] == (["warn"] if warned else [])


def test_the_funnel_adds_up_and_says_why() -> None:
    exchanges = both_arms(20)
    lost = {"r0": "not_sampled", "r1": "not_shadowable", "r2": "shed"}
    for request_id, fate in lost.items():
        exchanges.loc[(exchanges.request_id == request_id) & (exchanges.arm == "control"), "shadow_status"] = fate
    exchanges["shadow_reason"] = np.where(exchanges.request_id == "r1", "server_side_tool", None)
    exchanges.loc[(exchanges.request_id == "r3") & (exchanges.arm == "control"), "outcome"] = "client_closed"
    gone = exchanges.request_id.isin([*lost, "r4"]) & (exchanges.arm == "treatment")
    found = run(exchanges[~gone]).funnel
    assert found.exclusions == {
        "not_sampled": 1, "not_shadowable: server_side_tool": 1, "shed": 1, "control_client_closed": 1, "treatment_missing": 1,
    }  # fmt: skip
    assert (found.requests, found.pairs) == (20, 15)
    assert found.shadow == {"not_sampled": 1, "not_shadowable": 1, "sampled": 17, "shed": 1}


@pytest.mark.parametrize(
    ("n_by_budget", "named", "remedy"),
    [
        (20, "shadow_budget_usd had no room", "raise shadow_budget_usd"),
        (9, "busiest moments", "raise shadow_concurrency"),
    ],
)
def test_the_remedy_for_copies_that_were_shed_is_that_of_the_commonest_reason(
    n_by_budget: int, named: str, remedy: str
) -> None:
    exchanges = both_arms(100)
    number = exchanges.request_id.str[1:].astype(int)
    exchanges.loc[(number < 20) & (exchanges.arm == "control"), "shadow_status"] = "shed"
    exchanges["shadow_reason"] = np.where(number < n_by_budget, "budget", np.where(number < 20, "too_old", None))
    found = check(run(exchanges[(number >= 20) | (exchanges.arm == "control")]), "shed")
    assert (found.status, named in found.detail, remedy in found.remedy) == ("fail", True, True)


def test_exchanges_logged_twice_count_once() -> None:
    exchanges = both_arms(50)
    found = run(pd.concat([exchanges, exchanges.head(3)], ignore_index=True))
    assert check(found, "duplicate_requests").status == "warn"
    assert metric(found, "error_rate").n == 50


def test_metrics_of_the_contract_by_hand() -> None:
    exchanges = both_arms(
        100,
        control={
            "latency_ms": 1000.0,
            "output_tokens": 100,
            "cost_usd": 0.002,
            "outcome": ["timeout"] * 2 + ["ok"] * 98,
        },
        treatment={
            "latency_ms": 500.0,
            "output_tokens": 80,
            "cost_usd": 0.001,
            "outcome": ["refused"] * 5 + ["truncated"] * 3 + ["http_error"] * 2 + ["ok"] * 90,
        },
    )
    found = run(exchanges)
    assert metric(found, "error_rate").control.value == 0.02
    assert metric(found, "error_rate").treatment.value == 0.02
    assert metric(found, "timeout_rate").control.value == 0.02
    # Of the 100 pairs both arms answered 96: not the two that control timed out on, nor the two the treatment failed.
    assert metric(found, "refusal_rate").treatment.value == 3 / 96
    assert metric(found, "truncation_rate").treatment.value == 3 / 96
    assert metric(found, "tokens_per_second").control.value == 100.0
    assert np.isclose(metric(found, "tokens_per_second").treatment.value, 160.0)
    assert metric(found, "tokens_used").treatment.value == 180.0
    assert np.isclose(metric(found, "cost_per_request_usd").treatment.value, 0.001)
    assert np.isclose(metric(found, "cost_per_request_usd").control.value, 0.002)
    # All attempts: a refused request is billed nothing, a timeout's bill is not known, so its pair is left out.
    assert np.isclose(metric(found, "cost_per_1000_requests_usd").control.value, 2.0)
    assert np.isclose(metric(found, "cost_per_1000_requests_usd").treatment.value, 1000 * 96 * 0.001 / 98)
    assert np.isclose(metric(found, "cost_per_ok_answer_usd").treatment.value, 96 * 0.001 / 90)
    assert (metric(found, "p50_latency_ms").control.value, metric(found, "p50_latency_ms").treatment.value) == (
        1000.0,
        500.0,
    )
    assert metric(found, "p99_latency_ms").status == "tail_too_small"


def test_answers_in_one_piece_count_into_tokens_per_second() -> None:
    """Streamed answers whose first token is their last: 100 tokens in no further time; wrong clocks are left out."""
    first = np.where(np.arange(100) < 50, 200.0, 1000.0)
    first[99] = 1500.0
    found = run(
        both_arms(100, control={"latency_ms": 1000.0, "output_tokens": 100, "streamed": True, "ttft_ms": first})
    )
    # 50 answers of 100 tokens in 0.8 s, 49 of 100 tokens in 0 s, which count as 20 ms
    assert np.isclose(metric(found, "tokens_per_second").control.value, 99 * 100 / (50 * 0.8 + 49 * 0.02))
    assert check(found, "clock_skew").status == "warn"


@pytest.mark.parametrize(
    ("control_ms", "treatment_ms", "harmful"),
    [(4.0, 10.0, False), (4.0, 30.0, True), (40.0, 50.0, False), (200.0, 400.0, True)],
)
def test_a_few_milliseconds_are_no_harm(control_ms: float, treatment_ms: float, harmful: bool) -> None:
    """The copies of equal arms may be timed some milliseconds later than the answers served: no reason to keep."""
    n = 2000
    spread = np.exp(np.random.default_rng(3).normal(0, 0.05, (2, n)))
    found = run(
        both_arms(
            n, control={"latency_ms": control_ms * spread[0]}, treatment={"latency_ms": treatment_ms * spread[1]}
        ),
        looks="fixed",
    )
    assert (found.decision.rule == "harm") == harmful
    row = metric(found, "p50_latency_ms")
    assert row.margin == pytest.approx(max(0.25, 20 / row.control.value))


def test_a_margin_of_ones_own_holds_for_milliseconds() -> None:
    spread = np.exp(np.random.default_rng(3).normal(0, 0.05, (2, 2000)))
    found = run(
        both_arms(2000, control={"latency_ms": 4 * spread[0]}, treatment={"latency_ms": 10 * spread[1]}),
        looks="fixed",
        metrics={"p50_latency_ms": MetricRule(margin=0.25, margin_relative=True)},
    )
    assert found.decision.rule == "harm"


def test_a_cost_that_is_not_known_names_what_is_missing() -> None:
    unpriced = run(both_arms(100, treatment={"cost_usd": np.nan, "model": "new-model"}))
    assert "treatment 100 %" in check(unpriced, "price_unknown").detail
    assert check(unpriced, "price_unknown").remedy == 'add the model\'s price under [prices."new-model"] and load again'
    silent = {"cost_usd": np.nan, "output_tokens": np.nan, "streamed": True}
    unmetered = run(both_arms(100, treatment=silent))
    assert "100 of them did not report their tokens" in check(unmetered, "price_unknown").detail
    assert "include_usage" in check(unmetered, "price_unknown").remedy
    assert "[prices" not in check(unmetered, "price_unknown").remedy


def test_an_arm_that_answers_under_another_models_name_is_named() -> None:
    arms = {"control": {"model": "gpt-4o"}, "treatment": {"model": "claude-opus-4-8"}}
    versioned = {"model": "gpt-4o-2024-08-06", "model_requested": "openai/gpt-4o"}
    assert check(run(both_arms(100, control=versioned), arms=arms), "arm_models").status == "pass"
    others = both_arms(100, control={"model": "gpt-4o-mini"}, treatment={"model": "claude-opus-4-8-20260601"})
    found = check(run(others, arms=arms), "arm_models")
    assert found.status == "warn"
    assert (
        found.detail
        == "100 of 100 control exchanges are of gpt-4o-mini, not of gpt-4o: the arms are not as configured in [arms]"
    )


def test_a_win_rate_that_turns_between_the_halves_is_drift() -> None:
    turning = np.concatenate([draw(N // 2, 0.65, seed=3), draw(N // 2, 0.45, seed=4)])
    moved = check(run(both_arms(N), verdicts(turning)), "drift")
    assert moved.status == "warn"
    assert "win rate from +1" in moved.detail
    assert check(run(both_arms(N), verdicts(draw(N, 0.55, seed=3))), "drift").status == "pass"


def test_segments_found_while_looking_any_time_are_those_of_e_bh() -> None:
    prompts = ["x" * n for n in np.random.default_rng(8).integers(1, 1001, N)]
    long = np.array([len(prompt) > 750 for prompt in prompts])
    preference = np.where(long, draw(N, 0.2, seed=1), draw(N, 0.6, seed=2))
    arms = {"prompt": prompts}
    found = run(
        both_arms(N, control=arms, treatment=arms), verdicts(preference), details=True, looks="anytime"
    ).segments
    tested = [one for one in found if one.status == "ok" and one.p_value]
    chosen = e_benjamini_hochberg([1 / one.p_value for one in tested], q=0.1)
    assert [one.discovered for one in tested] == chosen
    assert (found[0].dimension, found[0].metric, found[0].finding) == ("prompt_length", "win_rate", "worse")
    assert sum(chosen) >= 2  # the long prompts that lose, and slices that win


def test_users_own_metrics_by_expression() -> None:
    own = (CustomMetric(name="words", sql="length(text)", direction="lower", unit="characters"),)
    found = run(both_arms(60, treatment={"text": ["short"] * 30 + ["longer text"] * 30}), custom=own)
    words = metric(found, "words")
    assert (words.group, words.control.value, words.treatment.value) == ("custom", 9.0, 8.0)


def test_looks_on_dates_wait_for_the_first_and_then_use_data_up_to_it() -> None:
    exchanges, judgments = both_arms(N), verdicts(draw(N, 0.6, seed=3))
    looks = (date(2026, 6, 1), date(2026, 6, 5))
    early = run(exchanges, judgments, looks=looks, now=START)
    assert early.decision.recommendation == "collect_more"
    assert "the first one is 2026-06-01" in early.decision.looks_explained
    first = run(exchanges, judgments, looks=looks, now=START.replace(day=3))
    assert metric(first, "win_rate").n == 1440  # a request a minute, one day
    assert "this is look 1 of 2" in first.decision.looks_explained
    last = run(exchanges, judgments, looks=looks, now=START.replace(day=20))
    assert metric(last, "win_rate").n == N
    assert last.decision.recommendation == "ship"


def test_identical_arms_never_ship_by_a_win_and_never_harm() -> None:
    for seed in range(2):
        exchanges = frame(400, arm="control", seed=seed)
        same = pd.concat(
            [exchanges, exchanges.assign(arm="treatment", role="shadow", shadow_status=None)], ignore_index=True
        )
        found = run(same, verdicts(np.full(400, 0.5), status="identical"), looks="anytime")
        assert found.decision.rule == "collect_more"
        assert metric(found, "win_rate").finding == "equivalent"
        assert not any(one.finding in {"worse", "better"} for one in found.metrics)
