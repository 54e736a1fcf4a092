"""Analyses to render: builders with defaults, and the four reports every test of the page looks at."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from evalpipe.analysis.result import (
    Agreement,
    Analysis,
    ArmValue,
    Check,
    Decision,
    DimensionResult,
    Example,
    ExampleSide,
    Funnel,
    JudgeResult,
    LatencyCurve,
    LengthBin,
    MetricResult,
    Segment,
    Series,
    SeriesPoint,
    WinRate,
)

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
LABELS = {
    "p50_latency_ms": "Median latency",
    "p99_latency_ms": "99th percentile latency",
    "p99_ttft_ms": "99th percentile time to first token",
    "cost_per_request_usd": "Cost per request",
    "win_rate_later_turns": "Win rate on later turns",
}


def arm(value: float | None, n: int = 2400, **changes: Any) -> ArmValue:
    return ArmValue(value=value, n=n, **changes)


def metric(name: str = "error_rate", **changes: Any) -> MetricResult:
    values: dict[str, Any] = {
        "name": name,
        "label": LABELS.get(name, name.replace("_", " ").capitalize()),
        "group": "reliability",
        "unit": "ratio",
        "direction": "lower",
        "role": "guardrail",
        "scale": "absolute",
        "control": arm(0.005, numerator=12, denominator=2400),
        "treatment": arm(0.003, numerator=7, denominator=2400),
        "difference": -0.002,
        "ci_low": -0.006,
        "ci_high": 0.002,
        "confidence_level": 0.95,
        "p_value": 0.31,
        "margin": 0.005,
        "n": 2400,
        "n_clusters": 412,
        "method": "Tango score interval",
        "finding": "inconclusive",
        "non_inferior": True,
    }
    return MetricResult(**(values | changes))


def relative(
    name: str, control: float, ratio: float, half: float, *, margin: float = 0.1, **changes: Any
) -> MetricResult:
    """A metric on the relative scale: treatment = control × (1 + ratio), interval ± half on the ratio."""
    values: dict[str, Any] = {
        "group": "performance",
        "unit": "ms",
        "role": "diagnostic",
        "scale": "relative",
        "control": arm(control),
        "treatment": arm(control * (1 + ratio)),
        "difference": control * ratio,
        "ci_low": control * (ratio - half),
        "ci_high": control * (ratio + half),
        "relative": ratio,
        "relative_low": ratio - half,
        "relative_high": ratio + half,
        "margin": margin,
        "method": "Woodruff logit interval per arm, MOVER on the log scale",
    }
    return metric(name, **(values | changes))


def win_rate(theta: float = 0.58, half: float = 0.041, **changes: Any) -> MetricResult:
    values: dict[str, Any] = {
        "group": "quality",
        "direction": "higher",
        "role": "primary",
        "control": arm(1 - theta, 800),
        "treatment": arm(theta, 800),
        "difference": theta - 0.5,
        "ci_low": theta - 0.5 - half,
        "ci_high": theta - 0.5 + half,
        "p_value": 0.0003,
        "margin": 0.03,
        "n": 800,
        "method": "bounded betting e-process, 5-bet tuned grid",
        "finding": "better",
    }
    return metric("win_rate", **(values | changes))


def judge(name: str = "pairwise", **changes: Any) -> JudgeResult:
    values: dict[str, Any] = {
        "name": name,
        "fingerprint": "3f9c21aa07d4be18",
        "mode": "pairwise",
        "model": "claude-haiku-4-5",
        "simulated": False,
        "imported": False,
        "feeds_decision": True,
        "win_rate": 0.58,
        "ci_low": 0.539,
        "ci_high": 0.621,
        "standard_error": 0.0148,
        "confidence_level": 0.95,
        "n_pairs": 800,
        "n_clusters": 412,
        "p_value": 0.0003,
        "method": "bounded betting e-process, 5-bet tuned grid",
        "wins": 402,
        "ties": 124,
        "losses": 274,
        "consistency": 0.81,
        "consistency_low": 0.78,
        "consistency_high": 0.84,
        "n_both_orders": 800,
        "flips": 61,
        "first_seat_rate": 0.553,
        "first_seat_low": 0.53,
        "first_seat_high": 0.576,
        "rules": [
            WinRate(rule="average", value=0.58, ci_low=0.539, ci_high=0.621, n=800),
            WinRate(rule="tie", value=0.571, ci_low=0.533, ci_high=0.609, n=800),
            WinRate(rule="left_out", value=0.595, ci_low=0.547, ci_high=0.643, n=648),
        ],
        "length_controlled": WinRate(rule="length", value=0.562, ci_low=0.515, ci_high=0.609, n=800),
        "dimensions": [
            DimensionResult(name="accuracy", wins=330, ties=240, losses=230, control=7.1, treatment=7.4),
            DimensionResult(name="clarity", wins=402, ties=180, losses=218, control=7.6, treatment=8.0),
            DimensionResult(name="completeness", wins=298, ties=160, losses=342, control=7.2, treatment=7.0),
        ],
        "length_bins": [
            LengthBin(low=-1e12, high=-400, n=90, win_rate=0.41, consistency=0.83),
            LengthBin(low=-400, high=-100, n=180, win_rate=0.52, consistency=0.79),
            LengthBin(low=-100, high=100, n=240, win_rate=0.58, consistency=0.76),
            LengthBin(low=100, high=400, n=190, win_rate=0.64, consistency=0.82),
            LengthBin(low=400, high=1e12, n=100, win_rate=0.71, consistency=0.88),
        ],
        "agreement": Agreement(source="support team", n_labels=120, accuracy=0.74, accuracy_low=0.65, accuracy_high=0.81,
                               kappa=0.52, kappa_low=0.41, kappa_high=0.62, ac1=0.55, status="ok"),
        "asked_pairs": 812,
        "failures": {"unparseable": 9, "error": 3},
        "missing_low": 0.571,
        "missing_high": 0.586,
        "cost_usd": 3.1274,
        "rubric": "You compare two responses to one request.\nJudge accuracy, clarity and completeness from 0 to 10.\n",
    }  # fmt: skip
    return JudgeResult(**(values | changes))


def side(text: str | None = "An answer.", **changes: Any) -> ExampleSide:
    values: dict[str, Any] = {
        "text": text,
        "n_cut": 0,
        "outcome": "ok",
        "error": None,
        "finish_reason": "stop",
        "tool_calls": None,
        "model": "model-x",
        "latency_ms": 812.0,
        "cost_usd": 0.00213,
        "output_tokens": 184,
        "scores": {"accuracy": 7.0, "clarity": 8.0, "completeness": 6.0},
    }
    return ExampleSide(**(values | changes))


def example(number: int = 1, **changes: Any) -> Example:
    values: dict[str, Any] = {
        "request_id": f"req-{number:04d}",
        "kind": "treatment_won",
        "unit_id": f"u{number % 40:03d}",
        "started_at": (START + timedelta(minutes=7 * number)).isoformat(),
        "endpoint": "/v1/chat/completions",
        "prompt": [
            {"role": "system", "content": "You are a helpful support assistant."},
            {"role": "user", "content": f"My parcel number {number} has not arrived. What should I do?"},
        ],
        "control": side(
            "Please wait **five** working days.\n\n1. Check the tracking page.\n2. Ask your neighbours.\n3. Write to us again."
        ),
        "treatment": side(
            "I am sorry about that. Please wait **three** working days.\n\n1. Check the tracking page.\n"
            "2. Ask your neighbours.\n\nIf it has not come by then, we send a new one, free of charge.",
            model="model-y", latency_ms=431.0, cost_usd=0.00147, output_tokens=201,
        ),
        "preference": 1.0,
        "verdicts": [
            {"judge": "pairwise", "shown_first": first, "winner": "treatment", "preference": 1.0, "status": "ok",
             "reasoning": "Both give steps; the one offering a replacement resolves the customer's problem."}
            for first in ("control", "treatment")
        ],
    }  # fmt: skip
    return Example(**(values | changes))


def latency_curves() -> list[LatencyCurve]:
    quantiles = [0.0, 0.01, *(k / 50 for k in range(1, 50)), 0.99, 1.0]
    quantiles = sorted(set(quantiles))

    def curve(name: str, median: float, spread: float) -> LatencyCurve:
        def at(q: float) -> float:
            clipped = min(max(q, 0.002), 0.998)
            return median * math.exp(spread * math.log(clipped / (1 - clipped)))

        return LatencyCurve(arm=name, quantiles=quantiles, values_ms=[at(q) for q in quantiles], n=2400)

    return [curve("control", 910, 0.26), curve("treatment", 540, 0.33)]


def win_rate_series(n: int = 30, theta: float = 0.58) -> Series:
    points = []
    for k in range(1, n + 1):
        half = 0.041 * math.sqrt(n / k) * 1.02
        value = theta + 0.05 * math.sin(k * 1.7) / k
        points.append(
            SeriesPoint(at=(START + timedelta(hours=8 * k)).isoformat(), control=1 - value, treatment=value,
                        difference=value - 0.5, ci_low=value - 0.5 - half, ci_high=value - 0.5 + half, n=k * 27)
        )  # fmt: skip
    decided = next((p.at for p in points if p.ci_low is not None and p.ci_low > 0), None)
    return Series(metric="win_rate", kind="cumulative", points=points, decided_at=decided)


def error_series(n: int = 20) -> Series:
    points = [
        SeriesPoint(at=(START + timedelta(hours=12 * k)).isoformat(), control=0.005 + 0.002 * math.sin(k),
                    treatment=0.003 + 0.0015 * math.cos(k * 1.3), difference=None, ci_low=None, ci_high=None, n=120)
        for k in range(n)
    ]  # fmt: skip
    return Series(metric="error_rate", kind="binned", points=points)


PROVENANCE: dict[str, Any] = {
    "arms": {
        "control": {"models": ["gpt-4o-2024-08-06"], "provider": "openai"},
        "treatment": {"models": ["claude-haiku-4-5"], "provider": "anthropic"},
    },
    "first_at": START.isoformat(),
    "last_at": (START + timedelta(days=10)).isoformat(),
    "simulated_judge": False,
    "versions": {"evalpipe": "0.1.0", "python": "3.11.9", "duckdb": "1.2.0"},
    "config": {"experiment": {"name": "support-bot"}, "judge": {"name": ["pairwise"]}},
    "config_fingerprint": "9b1c44d0a1e2f377",
    "selection": {"since": None, "until": None, "where": None},
    "prices": {"claude-haiku-4-5": "1 / 5 USD per million tokens (2026-03-01)"},
    "reproduce": "evalpipe report --experiment support-bot --judge pairwise",
}


def all_metrics() -> list[MetricResult]:
    """Twelve metrics with every finding among them."""
    return [
        metric("error_rate"),
        metric("timeout_rate", control=arm(0.001, numerator=2, denominator=2400),
               treatment=arm(0.0008, numerator=2, denominator=2400), difference=-0.0002, ci_low=-0.0021, ci_high=0.0017,
               finding="equivalent", p_value=0.84),
        metric("refusal_rate", role="diagnostic", margin=0.01, control=arm(0.004, numerator=9, denominator=2388),
               treatment=arm(0.021, numerator=50, denominator=2393), difference=0.0171, ci_low=0.0111, ci_high=0.0239,
               finding="worse", non_inferior=False, p_value=0.00001),
        relative("p50_latency_ms", 912.4, -0.407, 0.03, finding="better", p_value=0.00001),
        relative("p99_latency_ms", 3120.0, 0.12, 0.09, margin=0.2, role="guardrail", finding="worse", non_inferior=False,
                 p_value=0.01),
        relative("p99_ttft_ms", 1480.0, -0.05, 0.61, margin=0.2, finding="undefined", status="tail_too_small",
                 p_value=None, non_inferior=False),
        relative("tokens_per_second", 41.3, 0.38, 0.06, unit="tokens_per_second", direction="higher", finding="better",
                 p_value=0.00001),
        win_rate(),
        metric("judge_score", group="quality", unit="score_10", direction="higher",
               role="diagnostic", margin=0.25, control=arm(7.3, 800), treatment=arm(7.47, 800), difference=0.17,
               ci_low=0.02, ci_high=0.32, n=800, finding="better", p_value=0.03),
        metric("completeness_score", group="quality", unit="score_10", direction="higher",
               role="diagnostic", margin=0.25, control=arm(7.2, 800), treatment=arm(7.05, 800), difference=-0.15,
               ci_low=-0.33, ci_high=0.03, n=800, finding="inconclusive", non_inferior=False,
               expected_more_requests=1900, p_value=0.1),
        relative("output_tokens", 187.2, 0.02, 0.04, group="cost", unit="tokens", finding="equivalent", p_value=0.31),
        relative("cost_per_request_usd", 0.002134, -0.31, 0.02, group="cost", unit="usd", role="benefit",
                 finding="better", p_value=0.00001),
    ]  # fmt: skip


def segments() -> list[Segment]:
    """Eight segments of the win rate and their error rates."""
    names = [("language", "de"), ("language", "en"), ("language", "日本語"), ("endpoint", "/v1/messages"),
             ("prompt_length", "long"), ("prompt_length", "short"), ("streamed", "yes"), ("streamed", "no")]  # fmt: skip
    found = []
    for k, (dimension, value) in enumerate(names):
        difference = -0.09 + 0.03 * k
        discovered = abs(difference) > 0.08
        finding = ("better" if difference > 0 else "worse") if discovered else "inconclusive"
        found.append(
            Segment(dimension=dimension, value=value, metric="win_rate", n=60 + 40 * k, n_clusters=30 + 20 * k,
                    control=0.5 - difference, treatment=0.5 + difference, difference=difference,
                    ci_low=difference - 0.07, ci_high=difference + 0.07, p_value=0.01 * (k + 1),
                    p_adjusted=0.02 * (k + 1), discovered=discovered, finding=finding)
        )  # fmt: skip
    return found


CHECKS = [
    Check(name="pairing", status="pass", detail="2,400 pairs of 2,431 requests; losses are not lopsided (p = 0.41)."),
    Check(name="sample_ratio", status="pass", detail="Not applicable in shadow mode."),
    Check(name="prices", status="pass", detail="Prices are known for both models."),
]


def mixed() -> Analysis:
    """Twelve metrics, eight segments, every kind of example, a warning: the report with everything in it."""
    kinds = ["treatment_lost", "treatment_won", "judge_contradicted", "arm_failed", "tie"]
    examples = [example(n, kind=kinds[n % 5], preference=[0.0, 1.0, 0.5, None, 0.5][n % 5]) for n in range(1, 26)]
    examples[2] = example(
        3, kind="arm_failed", preference=None, verdicts=[],
        treatment=side(None, outcome="http_error", error="529 overloaded_error: Overloaded", latency_ms=None,
                       cost_usd=None, output_tokens=None, scores={}),
    )  # fmt: skip
    return Analysis(
        experiment="support-bot",
        mode="shadow",
        generated_at=(START + timedelta(days=10, hours=1)).isoformat(),
        provenance=PROVENANCE,
        funnel=Funnel(
            requests=2431, pairs=2400, exclusions={"not_sampled": 20, "not_shadowable": 8, "shed": 3},
            judgments={"ok": 1588, "identical": 12, "unparseable": 9, "error": 3}, judged_pairs=800, users=412,
        ),
        metrics=all_metrics(),
        judges=[judge(), judge("label:support team", feeds_decision=False, rules=[], length_controlled=None, dimensions=[],
                               length_bins=[], agreement=Agreement(), model=None, rubric=None, n_pairs=120, win_rate=0.55,
                               ci_low=0.46, ci_high=0.64, wins=60, ties=12, losses=48, missing_low=None, missing_high=None,
                               method="Wilson")],
        checks=[*CHECKS, Check(name="self_preference", status="warn",
                               detail="The judge and the treatment are of one model family (claude).",
                               remedy="Label some pairs, or judge with another family.")],
        decision=Decision(
            recommendation="collect_more",
            headline="Collect more data: answers were preferred in 58.0 % of pairs (53.9 to 62.1 %) and cost fell by 31 % "
            "(29 to 33 %), but a p99 latency loss beyond 20 % is not ruled out (+12 %, 3 to 21 %).",
            reasons=["Win rate is better: 58.0 % (53.9 to 62.1 %) of 800 pairs.",
                     "p99 latency is worse by 12 % (3 to 21 %); its margin is 20 %.",
                     "No guardrail is shown to lose more than its margin."],
            rule="collect_more",
            blocking=["p99_latency_ms"],
            what_would_change=["About 900 more requests would settle p99 latency; below 20 % the verdict is ship.",
                               "A proven p99 loss beyond 20 % would turn the verdict to keep."],
            looks_explained="The intervals are valid at every look (confidence sequences).",
        ),
        segments=segments(),
        series=[win_rate_series(), error_series()],
        latency=latency_curves(),
        examples=examples,
    )  # fmt: skip


def demo_like() -> Analysis:
    """What `evalpipe demo` gives: a simulated judge, a clear loser."""
    analysis = mixed()
    import msgspec

    document = msgspec.to_builtins(analysis)
    document |= {
        "experiment": "demo",
        "provenance": PROVENANCE | {
            "simulated_judge": True,
            "arms": {"control": {"models": ["SmolLM2-135M-Instruct"], "provider": "openai"},
                     "treatment": {"models": ["gemma-3-270m"], "provider": "openai"}},
            "reproduce": "evalpipe demo",
        },
        "metrics": msgspec.to_builtins([
            metric("error_rate", finding="equivalent", difference=0.0, ci_low=-0.004, ci_high=0.004,
                   control=arm(0.0, 212, numerator=0, denominator=212), treatment=arm(0.0, 212, numerator=0, denominator=212),
                   n=212, n_clusters=40, p_value=1.0),
            relative("p50_latency_ms", 1893.0, 0.82, 0.14, finding="worse", non_inferior=False, n=212, n_clusters=40),
            win_rate(0.31, 0.07, finding="worse", non_inferior=False, n=212, n_clusters=40,
                     control=arm(0.69, 212), treatment=arm(0.31, 212)),
            relative("cost_per_request_usd", 0.0000213, 0.12, 0.05, group="cost", unit="usd", role="guardrail",
                     finding="worse", non_inferior=False, n=212, n_clusters=40),
        ]),
        "judges": msgspec.to_builtins([
            judge(simulated=True, model="simulated", win_rate=0.31, ci_low=0.24, ci_high=0.38, n_pairs=212, asked_pairs=212,
                  failures={}, wins=49, ties=33, losses=130, rules=[], agreement=Agreement(), cost_usd=0.0841,
                  length_controlled=None, missing_low=None, missing_high=None)
        ]),
        "checks": msgspec.to_builtins([*CHECKS, Check(name="simulated_judge", status="warn", detail="The judge is simulated.")]),
        "decision": msgspec.to_builtins(Decision(
            recommendation="keep", rule="harm",
            headline="Keep control: the treatment was preferred in 31 % of pairs (24 to 38 %), a loss beyond its margin.",
            reasons=["Cost rose by 12 % (7 to 17 %); its margin is 10 %."],
        )),
        "funnel": msgspec.to_builtins(Funnel(requests=212, pairs=212, judgments={"ok": 424}, judged_pairs=212, users=40)),
        "segments": [],
        "series": msgspec.to_builtins([win_rate_series(theta=0.31)]),
        "examples": document["examples"][:20],
    }  # fmt: skip
    return msgspec.convert(document, type=Analysis)


def empty() -> Analysis:
    return Analysis(
        experiment="nothing-yet",
        mode="shadow",
        generated_at=START.isoformat(),
        provenance={"reproduce": "evalpipe report --experiment nothing-yet"},
        funnel=Funnel(requests=0, pairs=0),
        metrics=[],
        judges=[],
        checks=[
            Check(name="data", status="fail", detail="The log holds no requests.", remedy="Collect or load some first.")
        ],
        decision=Decision(
            recommendation="invalid", rule="invalid", reasons=["There is nothing to compare: no requests."]
        ),
    )
