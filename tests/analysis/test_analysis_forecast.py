"""How much longer: forecasts against hand-derived numbers, and against where simulated experiments ended."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecast_builders import LOOK, normal, placed, row
from scipy import optimize

from evalpipe.analysis.decision import (
    DecisionContext,
    DecisionMetric,
    DecisionOutcome,
    MetricEvidence,
    decide,
    evidence_of,
)
from evalpipe.analysis.forecast import MAX_REQUESTS, Traffic, expected_more, expected_point, horizon_of
from evalpipe.analysis.reasons import horizon_sentence, what_would_change
from evalpipe.analysis.result import ArmValue, Horizon
from evalpipe.analysis.settings import SIGMA2_PAIRED_BINARY, LookPlan, Settings
from evalpipe.models import Policy
from evalpipe.stats.clusters import paired_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.event_rates import paired_events
from evalpipe.stats.means import paired_difference
from evalpipe.stats.winrate import win_rate

R_STAR = {0.05: 8.211968, 0.025: 9.752938}
"""docs/statistics.md#looks: the root of r − ln(1 + r) = −2 ln α"""


def through(sd: float, target: float, now: float, alpha: float = 0.05, n_star: float = 1000.0) -> float:
    """Users by which half of the experiments exclude a line at distance `target`, from the boundary's formula."""

    def c(n: float) -> float:
        r = R_STAR[alpha] * n / n_star
        return math.sqrt(2 * (r + 1) / r * (0.5 * math.log(r + 1) - math.log(alpha)))

    n = optimize.brentq(lambda n: c(n) * sd - target * math.sqrt(n), 1, 1e9)
    return now + (n - now) / math.sqrt(1 + 4 / c(n) ** 2)


def forecast(
    found: list[DecisionMetric],
    *,
    requests: int = 1000,
    users: int = 500,
    policy: Policy = Policy.SUPERIORITY,
    settings: Settings | None = None,
    utility: Estimate | None = None,
    look: LookPlan = LOOK,
    **traffic: float,
) -> tuple[DecisionOutcome, list[MetricEvidence], Horizon | None]:
    evidence = [evidence_of(one, alpha=look.alpha) for one in found]
    ruling = decide(evidence, DecisionContext(alpha=look.alpha, policy=policy))
    seen = Traffic(requests=requests, units=requests, requests_per_day=500.0, users=users, **traffic)  # type: ignore[arg-type]
    return ruling, evidence, horizon_of(ruling, evidence, found, look, seen, settings=settings, utility=utility)


def test_a_guardrail_is_waited_for_until_its_margin_is_excluded() -> None:
    """The goal has won; an error-like mean of 400 users is unsettled: se .02, δ .05, no difference seen."""
    goal = normal("win_rate", 0.2, 0.02, 400, role="primary", margin=0.03)
    guard = normal("user_rating", 0.0, 0.02, 400, role="guardrail", margin=0.05)
    ruling, _, found = forecast([goal, guard], requests=1200, users=400)
    assert (ruling.rule, ruling.blocking) == ("collect_more", ["user_rating"])
    assert found is not None
    users = through(0.02 * 20, 0.05, 400)
    exact = (users / 400 - 1) * 1200
    assert found.metric == "user_rating"
    assert exact <= found.requests <= exact * 1.1  # two digits, rounded up
    assert found.days == pytest.approx(exact / 500, rel=1e-5)
    assert found.judge_usd is None


def test_relative_margins_are_measured_between_logarithms() -> None:
    """Costs 4 % up, δ 25 %: a lower cost is better, so the distance is ln 1.25 − ln(1 + the expected rise)."""
    cost = normal(
        "cost_per_request_usd", math.log(1.04), 0.09, 100, role="benefit", margin=0.25, scale="relative", pairs=700
    )
    goal = normal("win_rate", 0.2, 0.02, 100, role="primary", margin=0.03)
    ruling, evidence, found = forecast([goal, cost], requests=700, users=100)
    assert ruling.blocking == ["cost_per_request_usd"]
    rise = 0.04 * 0.25**2 / (0.25**2 + 0.09**2)  # drawn towards none by its uncertainty
    users = through(0.9, math.log(1.25) - math.log1p(rise), 100)
    assert found is not None
    assert found.requests == pytest.approx((users / 100 - 1) * 700, rel=0.1)
    more = expected_more(evidence[1], cost, row(cost), ruling, LOOK)
    assert more == found.requests


def test_an_early_estimate_is_drawn_towards_none() -> None:
    assert expected_point(0.02, -0.02, 0.0) == pytest.approx(0.02)
    assert expected_point(-0.04, 0.02, 0.04) == pytest.approx(-0.04 / 5)


def test_judged_users_may_be_in_the_log_already() -> None:
    """100 of 2,000 users judged, three pairs each at $0.002: more verdicts, no more requests."""
    goal = normal("win_rate", 0.08, 0.0346, 100, role="primary", margin=0.03)
    _, _, found = forecast(
        [goal],
        requests=6000,
        users=2000,
        judged_pairs=500,
        judged_users=100,
        usd_per_pair=0.002,
        pairs_per_unit=3,
    )
    users = through(0.346, 0.08, 100)
    assert found is not None
    assert (found.metric, found.requests, found.days) == ("win_rate", 0, 0.0)
    assert found.judge_usd == pytest.approx((users - 100) * 3 * 0.002, rel=1e-5)
    shown = {"win_rate": row(goal)}
    assert horizon_sentence(found, shown).startswith("more verdicts on the requests in the log ($")
    # With 110 users in the log the rest has still to come: 150 users send 450 requests.
    _, _, found = forecast([goal], requests=330, users=110, judged_pairs=100, judged_users=100)
    assert found is not None
    assert found.requests == pytest.approx((users / 110 - 1) * 330, rel=0.1)


def test_dollars_are_named_where_another_metric_is_the_slowest() -> None:
    goal = normal("win_rate", 0.08, 0.0346, 100, role="primary", margin=0.03)
    guard = normal("user_rating", 0.0, 0.1, 100, role="guardrail", margin=0.05)
    _, _, found = forecast(
        [goal, guard], requests=100, users=100, judged_pairs=100, judged_users=100, usd_per_pair=0.01
    )
    assert found is not None
    assert found.metric == "user_rating"
    assert found.judge_usd == pytest.approx((through(0.346, 0.08, 100) - 100) * 0.01, rel=1e-5)


def test_the_nearest_end_counts() -> None:
    """A goal that is worse: nothing is gained long before anything could be shown not worse."""
    goal = normal("win_rate", -0.02, 0.01, 1200, role="primary", margin=0.03)
    _, _, found = forecast([goal], requests=1200, users=1200)
    assert found is not None
    users = through(0.01 * math.sqrt(1200), 0.02, 1200)  # until its upper limit is below 0
    assert found.requests == pytest.approx((users / 1200 - 1) * 1200, rel=0.1)
    # max_requests ends it earlier.
    _, _, found = forecast([goal], requests=1200, users=1200, settings=Settings(max_requests=1500))
    assert found == Horizon(metric=MAX_REQUESTS, requests=300, days=0.6)
    shown = {"win_rate": row(goal)}
    assert "300 more requests (less than a day at this traffic) until max_requests ends" in horizon_sentence(
        found, shown
    )


def test_harm_is_an_end() -> None:
    """A guardrail beyond its margin: nothing ships, and α/2 of it is excluded some day."""
    goal = normal("win_rate", 0.0, 0.1, 400, role="primary", margin=0.03)
    guard = normal("user_rating", -0.12, 0.03, 400, role="guardrail", margin=0.05)
    ruling, _, found = forecast([goal, guard], requests=400, users=400)
    assert found is not None
    assert (found.metric, found.harm) == ("user_rating", True)
    shown = {
        "win_rate": row(goal),
        "user_rating": replace(row(guard), finding="worse", non_inferior=False, expected_more_requests=None),
    }
    label = shown["user_rating"].label
    within = label[:1].lower() + label[1:]
    assert horizon_sentence(found, shown).endswith(
        f"until {within} is shown to be worse than allowed, if the differences stay as they are"
    )
    # What blocks is named with what is worse about it, although nothing is expected to settle it.
    (named,) = [line for line in what_would_change(ruling, shown, [], found) if line.startswith(label)]
    assert named.startswith(f"{label}: it is worse, and a loss of more than the ")
    assert named.endswith(" allowed is not ruled out.")
    assert found.requests == pytest.approx(through(0.6, 0.07, 400, alpha=0.025) - 400, rel=0.1)


def test_beside_a_slightly_worse_goal_a_win_must_exceed_its_margin() -> None:
    worse = normal("win_rate", -0.01, 0.002, 900, role="primary", margin=0.03)
    saving = normal("user_rating", 0.06, 0.005, 900, role="benefit", margin=0.05)
    ruling, _, found = forecast([worse, saving], requests=900, users=900)
    assert (ruling.slightly_worse, ruling.winning) == (["win_rate"], ["user_rating"])
    assert ruling.rule == "collect_more"
    assert found is not None
    assert found.requests == pytest.approx(through(0.15, 0.01, 900) - 900, rel=0.1)


def test_policies() -> None:
    guard = normal("user_rating", 0.0, 0.02, 400, role="guardrail", margin=0.05)
    goal = normal("win_rate", 0.09, 0.02, 400, role="primary", margin=0.10)
    _, _, found = forecast([goal, guard], requests=400, users=400, policy=Policy.NONINFERIORITY)
    assert found is not None
    assert found.requests == pytest.approx(through(0.4, 0.05, 400) - 400, rel=0.1)  # the goal holds and need not win
    weighed = Estimate(point=0.3, standard_error=0.15, n=400, n_clusters=400)
    _, _, found = forecast([goal, guard], requests=400, users=400, policy=Policy.UTILITY, utility=weighed)
    assert found is not None
    assert found.metric == "utility"
    assert found.requests == pytest.approx(through(3.0, 0.3, 400) - 400, rel=0.1)


def test_futility_is_an_end() -> None:
    goal = normal("win_rate", 0.0, 0.02, 400, role="primary", margin=0.001)
    _, _, never = forecast([goal], requests=400, users=400)
    _, _, found = forecast([goal], requests=400, users=400, settings=Settings(min_effect_of_interest=0.05))
    assert never is None or never.requests > 100_000
    assert found is not None
    assert found.requests == pytest.approx(through(0.4, 0.05, 400) - 400, rel=0.1)


def test_gates_of_early_looks_are_waited_for() -> None:
    """A skewness of .4 falls below .1 at 16 times the users."""
    goal = normal("win_rate", 0.2, 0.02, 400, role="primary", margin=0.03)
    guard = normal("user_rating", 0.0, 0.001, 400, role="guardrail", margin=0.05, status="burn_in", skewness=0.4)
    _, _, found = forecast([goal, guard], requests=400, users=400)
    assert found is not None
    assert found.requests == (16 - 1) * 400


def test_what_no_data_mend_has_no_forecast() -> None:
    goal = normal("win_rate", 0.2, 0.02, 400, role="primary", margin=0.03)
    guard = normal("user_rating", 0.0, 0.02, 400, role="guardrail", margin=0.05, status="missing_differs")
    assert forecast([goal, guard])[2] is None
    ship = forecast([goal])
    assert (ship[0].rule, ship[2]) == ("ship", None)


def test_before_a_pair_is_judged_a_typical_judge_is_assumed() -> None:
    """σ² = .12 a pair, nothing differs, δ .03; the log has 400 users with two pairs each."""
    unjudged = placed(
        "win_rate",
        lambda level, scale: Estimate(point=None, confidence_level=1 - level, status="no_data"),
        role="primary",
        margin=0.03,
    )
    ruling, _, found = forecast([unjudged], requests=800, users=400, usd_per_pair=0.001, pairs_per_unit=3)
    assert ruling.rule == "unmeasured"
    users = through(math.sqrt(0.12), 0.03, 0)
    assert found is not None
    assert found.requests == pytest.approx((users / 400 - 1) * 800, rel=0.1)
    assert found.judge_usd == pytest.approx(users * 2 * 0.001, rel=1e-5)


def test_no_event_yet() -> None:
    """600 requests of 300 users without an error, margin half a point: Tango's limits at no event are ±c²/(m + c²)."""
    zeros = np.zeros(300)
    users = paired_aggregate(zeros, zeros + 2, zeros, zeros + 2, n_pairs=600, n_discordant=0)

    def at(level: float, scale: str) -> Estimate:
        return paired_events(
            t_only=0, c_only=0, n=600, users=users, heaviness=2.0, multiplier=LOOK.multiplier("error_rate"), alpha=level
        )

    arm = ArmValue(value=0.0, n=600, numerator=0.0, denominator=600.0)
    guard = placed("error_rate", at, role="guardrail", margin=0.005, control=arm, treatment=arm)
    goal = normal("win_rate", 0.2, 0.02, 300, role="primary", margin=0.03)
    _, _, found = forecast([goal, guard], requests=600, users=300)

    def c(n: float) -> float:
        r = R_STAR[0.05] * n / 1000
        return math.sqrt(2 * (r + 1) / r * (0.5 * math.log(r + 1) - math.log(0.05)))

    # An event may still come: .2275 of one is expected (Jeffreys). Tango's statistic at −.005 per pair, by hand.
    share, delta = 0.2275 / 600 / 2, -0.005
    b = -2 * share + 2 * delta
    q = (math.sqrt(b * b + 8 * share * delta * (1 - delta)) - b) / 4
    statistic = -delta / math.sqrt(2 * q + delta * (1 - delta))
    needed = optimize.brentq(
        lambda n: statistic * math.sqrt(n * 2 / 1.05) - c(n), 10, 1e6
    )  # a design effect of 1 + .05·(2 − 1)
    assert found is not None
    assert found.requests == pytest.approx(2 * (needed - 300) / math.sqrt(1 + 4 / c(needed) ** 2), rel=0.1)


class Experiment:
    """Made-up shadow traffic: preferences in both orders, lognormal costs that share the prompt's part, rare errors."""

    def __init__(self, seed: int, n: int, *, win: float, price: float, errors: float) -> None:
        rng = np.random.default_rng([41, seed])
        self.failed = rng.random((2, n)) < errors
        prompt, own = rng.normal(0, 0.8, n), rng.normal(0, 0.4, (2, n))
        self.cost = np.exp(prompt + own) * np.array([[1.0], [price]])
        truth = rng.random(n) < win
        wins = np.where(rng.random((2, n)) < 0.93, truth, ~truth)
        self.preference = np.where(rng.random((2, n)) < 0.15, 0.5, wins).mean(axis=0)

    def look(self, n: int) -> tuple[DecisionOutcome, list[MetricEvidence], list[DecisionMetric]]:
        values, counts = np.unique(self.preference[:n], return_counts=True)
        control, treatment = self.failed[:, :n].astype(float)
        t_only, c_only = int((treatment > control).sum()), int((control > treatment).sum())
        ones = np.ones(n)
        users = paired_aggregate(treatment, ones, control, ones, n_pairs=n, n_discordant=t_only + c_only)
        costs = paired_aggregate(self.cost[1, :n], ones, self.cost[0, :n], ones, n_pairs=n)

        def wins(level: float, scale: str) -> Estimate:
            bets = LOOK.bets("win_rate", level, sigma2=0.12)
            found = win_rate(values, counts, multiplier=LOOK.multiplier("win_rate"), alpha=level, bets=bets)
            assert found.point is not None and found.ci_low is not None and found.ci_high is not None
            return replace(found, point=found.point - 0.5, ci_low=found.ci_low - 0.5, ci_high=found.ci_high - 0.5)

        def errors(level: float, scale: str) -> Estimate:
            bets = LOOK.bets("error_rate", level, sigma2=SIGMA2_PAIRED_BINARY)
            many = LOOK.multiplier("error_rate")
            return paired_events(
                t_only=t_only, c_only=c_only, n=n, users=users, multiplier=many, alpha=level, bets=bets
            )

        def cost(level: float, scale: str) -> Estimate:
            many = LOOK.multiplier("cost_per_request_usd")
            return paired_difference(costs, multiplier=many, alpha=level, scale="relative")

        arms = [ArmValue(value=float(x.mean()), n=n, numerator=float(x.sum())) for x in (control, treatment)]
        found = [
            placed("win_rate", wins, role="primary", margin=0.03),
            placed("cost_per_request_usd", cost, role="benefit", margin=0.10, scale="relative"),
            placed("error_rate", errors, role="guardrail", margin=0.005, control=arms[0], treatment=arms[1]),
        ]
        evidence = [evidence_of(one, alpha=0.05) for one in found]
        return decide(evidence, DecisionContext(alpha=0.05)), evidence, found

    def end(self, n_max: int) -> float:
        n = 100.0
        while n <= n_max:
            if self.look(int(n))[0].rule != "collect_more":
                return n
            n = max(n + 150, n * 1.2)
        return math.inf

    def forecast(self, n: int) -> float:
        ruling, evidence, found = self.look(n)
        traffic = Traffic(requests=n, units=n, requests_per_day=None, users=n, judged_pairs=n, judged_users=n)
        ahead = horizon_of(ruling, evidence, found, LOOK, traffic)
        if ruling.rule != "collect_more":
            return n
        return math.inf if ahead is None else n + ahead.requests


@pytest.mark.parametrize(
    ("win", "price", "errors"), [(0.5, 0.7, 0.002), (0.56, 1.0, 0.002), (0.56, 1.0, 0.0), (0.5, 1.0, 0.0005)]
)  # equal and cheaper, better (with errors and without), equal in all
def test_the_forecast_at_a_quarter_of_the_sample(win: float, price: float, errors: float) -> None:
    """The median forecast lies within a factor 1.5 of the sample by which half of the experiments have ended."""
    runs = [Experiment(seed, 8_000, win=win, price=price, errors=errors) for seed in range(20)]
    real = float(np.median([run.end(8_000) for run in runs]))
    ahead = float(np.median([run.forecast(int(real / 4)) for run in runs]))
    assert 1 / 1.5 < ahead / real < 1.5
