"""The first screen: names, what is known and what is not, what to do next, dollars a month, pairs to read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from event_builders import eventful, misconfigured
from report_builders import START, arm, demo_like, empty, example, metric, mixed, relative, side, win_rate
from scipy.stats import beta

from evalpipe.analysis.result import Analysis, Check, Decision, Funnel, Horizon
from evalpipe.config import read_config
from evalpipe.errors import ConfigError
from evalpipe.report.findings import zero_sentence
from evalpipe.report.first_screen import FirstScreen
from evalpipe.report.metrics import metric_row
from evalpipe.report.render import render
from evalpipe.report.terms import arm_names
from evalpipe.report.view import report_view


def screen(analysis: Analysis) -> FirstScreen:
    return report_view(analysis).first


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def about(analysis: Analysis, **facts: Any) -> Analysis:
    return dataclasses.replace(analysis, provenance=analysis.provenance | {"about": facts})


def decided(recommendation: str, rule: str, **changes: Any) -> Analysis:
    decision = Decision(recommendation=recommendation, rule=rule, reasons=["Because."], **changes)
    return dataclasses.replace(mixed(), decision=decision)


@pytest.mark.parametrize(
    ("recommendation", "title"),
    [
        ("ship", "Switch from gpt-4o-2024-08-06 to claude-haiku-4-5"),
        ("keep", "Keep gpt-4o-2024-08-06; do not switch to claude-haiku-4-5"),
        ("collect_more", "Keep gpt-4o-2024-08-06; do not switch to claude-haiku-4-5 yet"),
        ("invalid", "No decision on claude-haiku-4-5 yet: keep gpt-4o-2024-08-06"),
    ],
)
def test_the_headline_names_the_models(recommendation: str, title: str) -> None:
    assert screen(decided(recommendation, "")).title == title


def test_one_model_in_both_arms_and_a_log_without_models_are_named_by_what_differs() -> None:
    same = {"control": {"models": ["m"]}, "treatment": {"models": ["m"]}}
    names = arm_names({"arms": same})
    assert (names.control, names.treatment) == ("the present set-up of m", "the new one")
    names = arm_names({})
    assert (names.control, names.treatment) == ("the present model", "the new model")
    several = {"control": {"models": ["a", "b"]}, "treatment": {"models": [], "expected": {"model": "c"}}}
    names = arm_names({"arms": several})
    assert (names.control, names.treatment) == ("a and 1 more", "c")


def test_what_wins_is_known_and_what_blocks_is_not() -> None:
    first = screen(eventful())
    # A goal that wins stays known beside a guardrail that blocks: the blocker is not the finding.
    assert [one.text for one in first.known][:2] == ["Better answers.", "Cheaper."]
    assert [plain(one.text) for one in first.unknown] == [
        "Its slowest answers are slower: whether by more than the 20 % you allow (so far +12.0 %; +3.0 to +21.0 % would be "
        "compatible).",
        "Timeouts: the source of this log does not record them.",
    ]
    assert [plain(text) for text in first.next] == [
        "Collect about 4,300 more requests, about 3 days at this traffic, about $2.10 of judging.",
        "99th percentile latency takes longest, if the differences stay as they are.",
    ]


def test_a_loss_beyond_the_margin_is_known_and_needs_no_more_data() -> None:
    first = screen(demo_like())
    assert first.lead == "gemma-3-270m: worse answers."
    assert "Worse answers, by more than the 3 points you allow." in [plain(one.text) for one in first.known]
    assert first.next[0] == "Leave the traffic with SmolLM2-135M-Instruct. More data will not change this."
    quality = first.tiles[0]
    # Counts, not a difference from one half: 49, 33 and 130 of 212.
    assert quality.value == "won 49 · tied 33 · lost 130"
    assert plain(quality.detail) == "preferred in 31.0 % (24.0 to 38.0 %)"
    assert quality.picture is not None


def test_a_simulated_judge_is_named_as_one_wherever_its_model_is() -> None:
    analysis = demo_like()
    judges = [dataclasses.replace(one, model="claude-haiku-4-5") for one in analysis.judges]
    view = report_view(dataclasses.replace(analysis, judges=judges))
    named = "the simulated judge (in the place of claude-haiku-4-5)"
    assert f"judged by {named}" in plain(view.first.facts[0])
    (model,) = (fact.text for judge in view.judges for fact in judge.facts if fact.name == "Model")
    assert model == named[0].upper() + named[1:]
    real = report_view(dataclasses.replace(analysis, judges=[dataclasses.replace(judges[0], simulated=False)]))
    assert "judged by claude-haiku-4-5" in plain(real.first.facts[0])


def test_a_forecast_of_harm_and_no_forecast() -> None:
    horizon = Horizon(metric="p99_latency_ms", requests=1, days=0.21, harm=True)
    first = screen(decided("collect_more", "collect_more", horizon=horizon, blocking=["p99_latency_ms"]))
    assert [plain(text) for text in first.next] == [
        "Collect about 1 more request, about 5 hours at this traffic.",
        "If the differences stay, 99th percentile latency is then shown to be worse than you allow.",
    ]
    assert first.lead == "One thing is still to be shown before a switch is safe."
    judge = "Have the answers judged: `evalpipe judge --estimate`"
    unmeasured = screen(decided("collect_more", "unmeasured"))
    assert unmeasured.next[0].startswith(judge)
    horizon = Horizon(metric="error_rate", requests=6200, days=0.6)
    analysis = decided("collect_more", "unmeasured", horizon=horizon, blocking=["error_rate", "win_rate"])
    unjudged = screen(dataclasses.replace(analysis, funnel=dataclasses.replace(analysis.funnel, judged_pairs=0)))
    assert unjudged.next[0].startswith(judge)
    assert unjudged.next[1] == "Collect about 6,200 more requests, about 14 hours at this traffic."


@pytest.mark.parametrize(
    ("horizon", "judged", "first"),
    [
        (
            Horizon(metric="win_rate", requests=0, days=0.0),
            0,
            "Have the answers judged: `evalpipe judge --estimate` shows",
        ),
        (
            Horizon(metric="win_rate", requests=0, days=0.0, judge_usd=2.1),
            40,
            "Have more of the answers judged, for about $2.10: `evalpipe judge`.",
        ),
        (Horizon(metric="error_rate", requests=0, days=0.0), 40, "Collect more requests, then look again: "),
    ],
)
def test_a_log_that_is_long_enough_asks_for_verdicts_not_for_requests(
    horizon: Horizon, judged: int, first: str
) -> None:
    analysis = decided("collect_more", "collect_more", horizon=horizon, blocking=[horizon.metric])
    view = screen(dataclasses.replace(analysis, funnel=dataclasses.replace(analysis.funnel, judged_pairs=judged)))
    assert plain(view.next[0]).startswith(first)
    assert not any(" 0 more" in plain(text) for text in view.next)


def test_data_that_cannot_decide_have_no_findings() -> None:
    first = screen(misconfigured())
    assert [one.text for one in first.known] == ["Set-up fault of the treatment arm."]
    assert {tile.finding_word for tile in first.tiles} == {"not usable"}
    assert first.next == ["Correct it as described above, then look again: `evalpipe report`."]
    nothing = screen(empty())
    assert nothing.title == "No decision on the new model yet: keep the present model"
    assert nothing.samples == []
    assert [tile.value for tile in nothing.tiles] == [
        "Nobody compared the answers.",
        "Not measured by evalpipe.",
        "Not recorded in this log.",
        "Not known: too few answers in this log have a cost.",
    ]


@pytest.mark.parametrize(
    ("remedy", "why"),
    [
        ('add the model\'s price under [prices."m"] and load again', "a model has no price"),
        (
            "add the costs to the imported file, and load it again with --replace",
            "too few answers in this log have a cost",
        ),
    ],
)
def test_why_a_cost_is_not_known_is_what_the_check_of_costs_found(remedy: str, why: str) -> None:
    check = Check(name="price_unknown", status="warn", detail="the cost of some answers is not known", remedy=remedy)
    analysis = dataclasses.replace(decided("collect_more", "collect_more"), checks=[check])
    without = [
        dataclasses.replace(one, status="not_measured") if one.name == "cost_per_request_usd" else one
        for one in analysis.metrics
    ]
    cost = screen(dataclasses.replace(analysis, metrics=without)).tiles[3]
    assert cost.value == f"Not known: {why}."


def zero(name: str, n: int, limit: float) -> Any:
    none = arm(0.0, n, numerator=0, denominator=n, ci_low=0.0, ci_high=limit)
    return metric(name, control=none, treatment=none, difference=0.0, ci_low=-0.05, ci_high=0.05, non_inferior=False)


def test_no_event_reads_as_a_sentence_with_its_limit() -> None:
    # Clopper-Pearson for 0 of 204 at 95 %, two-sided: 1 - .025 ** (1 / 204) = 1.79 %.
    limit = float(beta.ppf(0.975, 1, 204))
    assert limit == pytest.approx(1 - 0.025 ** (1 / 204))
    errors, timeouts = zero("error_rate", 204, limit), zero("timeout_rate", 204, limit / 2)
    assert (
        plain(zero_sentence([metric_row(errors)])) == "no error in 204 answers of each; up to 1.8 % would be compatible"
    )
    first = screen(dataclasses.replace(mixed(), metrics=[errors, timeouts, win_rate()]))
    assert [plain(one.text) for one in first.unknown] == [
        "Errors and timeouts: no error or timeout in 204 answers of each; up to 1.8 % would be compatible; you allow 0.5 points "
        "more."
    ]
    reliability = next(tile for tile in first.tiles if tile.name == "Reliability")
    assert (reliability.value, plain(reliability.note)) == (
        "No error or timeout in 204 answers of each", "up to 1.8 % would be compatible",
    )  # fmt: skip


def cost_tile(analysis: Analysis) -> tuple[str, str, str, str, str]:
    tile = screen(analysis).tiles[3]
    return tile.name, tile.old, tile.new, plain(tile.detail), plain(tile.note)


def test_dollars_a_month_at_the_configured_traffic() -> None:
    # $0.002134 and 31 % less (29 to 33 %), a million times: 2,134 and 1,472.46; 661.54 less (618.86 to 704.22).
    assert cost_tile(about(mixed(), requests_per_month=1_000_000)) == (
        "Cost a month", "$2,130", "$1,470", "saves $662 ($619 to $704)", "at 1,000,000 requests a month",
    )  # fmt: skip


def test_dollars_a_month_at_the_traffic_of_the_log() -> None:
    # 2,431 requests in 10 days are 7,399 in a month of 30.4375 days: $15.79 and $10.90.
    assert cost_tile(mixed()) == (
        "Cost a month", "$15.79", "$10.90", "saves $4.89 ($4.58 to $5.21)", "at 7,400 requests a month, as measured over 10 days",
    )  # fmt: skip
    # Two of the ten days were excluded: the 2,431 requests came in eight.
    gap = {"since": "2026-03-03T00:00:00+00:00", "until": "2026-03-05T00:00:00+00:00", "why": "", "declared_at": ""}
    assert cost_tile(dataclasses.replace(mixed(), exclusions=[gap]))[4].startswith("at 9,250 requests a month")
    # The tally of the copies counts what was not sampled, too.
    sampled = Funnel(requests=2431, pairs=2400, shadow={"sampled": 2431, "not_sampled": 2431}, judged_pairs=800)
    assert cost_tile(dataclasses.replace(mixed(), funnel=sampled))[4].startswith("at 14,800 requests a month")


def test_without_a_traffic_dollars_are_per_thousand_requests() -> None:
    short = mixed().provenance | {"last_at": START.isoformat()}
    name, old, new, _, note = cost_tile(dataclasses.replace(mixed(), provenance=short))
    assert (plain(name), old, new) == ("Cost per 1,000 requests", "$2.13", "$1.47")
    assert "requests_per_month" in note
    imported = mixed().provenance | {"first_at": "1970-01-01T00:00:00Z", "last_at": "1970-01-02T00:00:00Z"}
    assert "requests_per_month" in cost_tile(dataclasses.replace(mixed(), provenance=imported))[4]


def test_a_cost_that_may_go_either_way_is_a_range() -> None:
    cost = relative("cost_per_request_usd", 0.002, 0.01, 0.03, group="cost", unit="usd", role="benefit")
    analysis = about(dataclasses.replace(mixed(), metrics=[cost]), requests_per_month=1_000_000)
    assert cost_tile(analysis)[3] == "−$40.00 to +$80.00"


def test_waiting_with_a_saving_that_is_shown_has_a_price() -> None:
    first = screen(about(decided("ship", "ship"), requests_per_month=1_000_000))
    assert first.next[-1] == "Each month of waiting costs about $662."
    assert (
        first.lead
        == "claude-haiku-4-5: better answers and cheaper, and nothing that matters is worse by more than you allow."
    )


def test_who_asked_when_and_on_what_data() -> None:
    facts = {"question": "Is <b>it</b> good?", "owner": "Ana, support", "link": "https://tickets.example/1"}
    first = screen(about(mixed(), **facts))
    assert (first.question, first.asked, first.link) == ("Is <b>it</b> good?", "asked by Ana, support", facts["link"])
    assert [plain(fact) for fact in first.facts] == [
        "Data of 2 to 12 Mar 2026: 2,431 requests of 412 users, 2,400 pairs of answers, 800 judged by claude-haiku-4-5",
        "In brackets: 95 % intervals",
    ]
    page = render(about(mixed(), **facts))
    assert "Is &lt;b&gt;it&lt;/b&gt; good?" in page
    assert '<a href="https://tickets.example/1" rel="noopener noreferrer">' in page


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", 'https://x.example/"onclick="a', "//x.example", "data:text/html,x"]
)
def test_an_address_of_another_kind_is_no_link(link: str) -> None:
    # A report is made again from its JSON, which anybody may have written.
    assert screen(about(mixed(), link=link)).link == ""
    with pytest.raises(
        ConfigError, match=r"experiment\.link = .*: a web address such as https://host/page is expected"
    ):
        read_config({"experiment": {"name": "a", "link": link}})


def test_two_wins_and_two_losses_with_both_answers() -> None:
    texts = {"control": side("**Old** text\n\nwith `marks`"), "treatment": side(None)}
    kinds = ["treatment_lost", "tie", "treatment_won", "treatment_won", "treatment_won", "treatment_lost"]
    examples = [example(n, kind=kind, **texts) for n, kind in enumerate(kinds)]
    samples = screen(dataclasses.replace(mixed(), examples=examples)).samples
    assert [one.word for one in samples] == ["won", "won", "lost", "lost"]
    assert (samples[0].control, samples[0].treatment) == ("Old text with marks", "empty answer")
    page = render(dataclasses.replace(mixed(), examples=examples))
    for one in samples:
        assert f'href="#example-{one.number}"' in page
        assert f'id="example-{one.number}"' in page


def test_a_copy_without_texts_has_none_and_says_so() -> None:
    secret = [example(1, control=side("SECRET-A"), prompt=[{"role": "user", "content": "SECRET-Q"}])]
    analysis = dataclasses.replace(mixed(), examples=secret)
    page = render(analysis, max_examples=0)
    assert "SECRET" not in page
    assert (
        "This copy is without texts: 1 example with users&#39; requests and the answers is left out."
        in page.replace("users' ", "users&#39; ")
    )
    assert "without texts" not in render(analysis)
