"""What `evalpipe judge` prints for people. Untrusted text is made printable here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evalpipe.analysis.result import Agreement
from evalpipe.judging.audit import Audit
from evalpipe.judging.costs import CostEstimate, CostHistory
from evalpipe.judging.plan import NO_FACTS
from evalpipe.judging.runner import WITHOUT_FACTS, RunSummary
from evalpipe.judging.selftest import SelfTest
from evalpipe.models import JudgmentStatus
from evalpipe.text import printable

_ABOUT_THE_ADDRESS = frozenset({"no_connection", "timeout", "cut"})
"""failures for which the address helps more than the words of a client library"""

_MAX_NAMED = 5
"""requests named in a line; `--json` has all"""


def summary_lines(summaries: Sequence[RunSummary]) -> list[str]:
    """The summary of a run, judge by judge."""
    lines = []
    for summary in summaries:
        lines.append(f"{summary.judge} ({summary.fingerprint}): {_ended(summary)}")
        details = [
            f"already judged {summary.n_known:,}" if summary.n_known else "",
            f"repaired {summary.n_repairs:,}" if summary.n_repairs else "",
            f"shortened {summary.n_cut:,}" if summary.n_cut else "",
            f"winner against its own scores {summary.n_contradictions:,}" if summary.n_contradictions else "",
            f"left out {_over_cap(summary.n_over_cap)}" if summary.n_over_cap else "",
            *(f"left out {line}" for line in _not_judged(summary.unjudgeable)),
            _given_up(summary.n_given_up, summary.given_up) if summary.n_given_up else "",
        ]
        lines += [f"  {detail}" for detail in details if detail]
        if summary.retried:
            lines.append(f"  asked again meanwhile: {_counts(summary.retried)}")
        if summary.tripwires:
            lines.append(f"  possible prompt injections (counted, ignored): {_counts(summary.tripwires)}")
        lines += [f"  WARNING: {line}" for line in _other_models(summary)]
        lines.append(f"  {summary.input_tokens:,} input and {summary.output_tokens:,} output tokens, {_spent(summary)}")
        if summary.account is not None and summary.account.n_unsettled:
            lines.append(f"  {_unsettled(summary.account)}")
        if summary.n_simulated:
            lines.append("  SIMULATED judge: these verdicts measure nothing")
        if summary.stopped == "decided" and summary.message:
            lines.append(f"  stopped: {printable(summary.message)}")
        elif summary.stopped:
            lines.append(
                f"  stopped: {summary.stopped}" + (f" ({printable(summary.message)})" if summary.message else "")
            )
    return lines


def estimate_lines(estimates: Sequence[CostEstimate]) -> list[str]:
    lines = []
    for one in estimates:
        money = (
            "price not known" if one.usd is None else f"about ${one.usd:,.4f}, as a batch ${one.batch_usd or 0:,.4f}"
        )
        lines.append(
            f"{one.judge} ({one.model}): {one.units:,} to judge, {one.calls:,} calls ({one.known:,} known, {one.identical:,} "
            f"identical), about {one.input_tokens:,} input and {one.output_tokens:,} output tokens, {money}"
        )
        if one.left_out:
            lines.append(f"  left out: {_over_cap(one.left_out)}")
        lines += [f"  left out: {line}" for line in _not_judged(one.unjudgeable)]
        if one.given_up:
            lines.append(f"  {_given_up(one.given_up, one.given_up_requests)}")
        if one.later or one.later_left_out:
            lines.append(
                f"  later turns of conversations: {one.later:,} pairs in the plan, {one.later_left_out:,} beyond their share "
                "([judge] later_turns_percent)"
            )
        if one.warning:
            lines.append(f"  WARNING: {printable(one.warning)}")
    return lines


def judge_lines(judges: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max((len(judge["name"]) for judge in judges), default=0)
    return [
        f"{'*' if judge['configured'] else ' '} {judge['name']:<{width}}  {judge['fingerprint']}  {judge['mode']:<9}  "
        f"{judge['provider']}/{judge['model']}  {', '.join(judge['dimensions'])}"
        for judge in judges
    ]


def prompt_lines(prompts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for prompt in prompts:
        alone = f"{prompt['arm']} alone" if prompt["arm"] else f"{prompt['shown_first']} first"
        sent = dict(prompt["sent"])
        messages = sent.pop("messages")
        system = sent.pop("system", None)
        lines.append(f"=== {prompt['judge']}, {alone} ===")
        if system:
            lines += ["--- system ---", _shown(system)]
        for message in messages:
            lines += [f"--- {message['role']} ---", _shown(message["content"])]
        lines += ["--- parameters ---", json.dumps(sent, indent=2)]
    lines.append("(the code in the tags is drawn anew for every call)")
    return lines


def batch_lines(batches: Sequence[Mapping[str, Any]]) -> list[str]:
    if not batches:
        return ["no open batches"]
    lines = []
    for one in batches:
        counts = _counts(one.get("counts") or {})
        requests = f", {one['requests']:,} requests" if "requests" in one else ""
        lines.append(
            f"{one['judge']}: {one['batch_id'] or one['batch']}{requests}: {one['state']}"
            + (f" ({counts})" if counts else "")
        )
    return lines


def self_test_lines(tests: Sequence[SelfTest]) -> list[str]:
    lines = []
    for test in tests:
        verdict = "may be trusted with these cases" if test.trusted else "is NOT to be trusted"
        cost = "" if test.cost_usd is None else f" (${test.cost_usd:.4f})"
        lines.append(f"{test.judge} ({test.fingerprint}) {verdict}{cost}")
        for case in test.cases:
            mark = "ok  " if case.passed else "FAIL"
            lines.append(
                f"  {mark}  {case.kind:<9}  {case.name}, {case.shown_first} first: {case.got}, expected {case.expected}"
            )
        lines += [f"  - {reason}" for reason in test.reasons]
    return lines


_KINDS = {
    "orders_disagree": "the orders disagree",
    "orders_agree": "the orders agree",
    "tie": "a tie",
    "one_order": "judged in one order",
}


def _agreed(agreement: Agreement) -> str:
    """ "80.0% (65.2% to 89.5%) of 40, kappa 0.60 (0.35 to 0.78), AC1 0.61 (0.36 to 0.85)"."""
    text = f"{_share(agreement.accuracy, agreement.accuracy_low, agreement.accuracy_high)} of {agreement.n_labels:,}"
    coefficients = (
        ("kappa", agreement.kappa, agreement.kappa_low, agreement.kappa_high),
        ("AC1", agreement.ac1, agreement.ac1_low, agreement.ac1_high),
    )
    for name, value, low, high in coefficients:
        if value is not None:
            text += f", {name} {value:.2f}" + (
                f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
            )
    return text


def audit_lines(audits: Sequence[Audit]) -> list[str]:
    words = {
        True: "no problem found",
        False: "is NOT to be trusted on this log",
        None: "not enough is known to trust it",
    }
    lines = []
    for one in audits:
        found = one.result
        lines.append(f"{printable(found.name)} ({found.fingerprint}): {words[one.trusted]}")
        lines += [f"  - {printable(reason)}" for reason in one.reasons]
        rows = [
            ("pairs judged", f"{found.n_judged:,}"),
            ("consistent when swapped", _share(found.consistency, found.consistency_low, found.consistency_high)),
            ("first seat wins", _share(found.first_seat_rate, found.first_seat_low, found.first_seat_high)),
            ("longer answer wins", _share(one.longer_wins, None, None)),
        ]
        named = [agreement for agreement in one.labellers if agreement.labeller is not None]
        for agreement in [*found.agreements, *named]:
            rows.append((f"agrees with {printable(agreement.labeller or str(agreement.source))}", _agreed(agreement)))
        for agreement in one.people:
            people = f"{agreement.source} and {agreement.labeller} agree"
            rows.append((printable(people), _agreed(agreement)))
        lines += [f"  {name:<26} {value}" for name, value in rows]
        if one.next_pairs:
            lines.append(
                "  label next (the judge is often wrong on such verdicts; chosen like this they are no random sample):"
            )
            lines += [
                f"    {printable(pair.request_id)}  {_KINDS.get(pair.kind, pair.kind)}, wrong in about {pair.error:.0%}"
                for pair in one.next_pairs
            ]
        if found.simulated:
            lines.append("  SIMULATED judge: these verdicts measure nothing")
    return lines


def reparse_lines(changes: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [f"{name}: {_counts(counts) or 'no reply'} read otherwise now" for name, counts in changes.items()]


def _share(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.1%}" + (f" ({low:.1%} to {high:.1%})" if low is not None and high is not None else "")


def _shown(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _ended(summary: RunSummary) -> str:
    if not summary.n_planned and summary.limit is not None and summary.n_beyond_limit:
        left = "1 more is" if summary.n_beyond_limit == 1 else f"{summary.n_beyond_limit:,} more are"
        return f"nothing to do, the limit of {summary.limit:,} is reached; {left} left: raise --limit or leave it out"
    if not summary.n_planned:
        return "nothing to do, everything is judged"
    if not summary.n_ended:
        return f"none of {summary.n_planned:,} planned calls was made"
    done = f"{summary.n_succeeded:,} of {summary.n_ended:,} judgments succeeded"
    if summary.n_ended < summary.n_planned:
        done += f", of {summary.n_planned:,} planned"
    identical = summary.asked[JudgmentStatus.IDENTICAL.value]
    if identical:
        done += f" ({identical:,} ties of identical answers, without a call)"
    return (
        f"{done}; {summary.n_failed:,} failed ({_failures(summary)}), asked again by the next run"
        if summary.failed
        else done
    )


def _failures(summary: RunSummary) -> str:
    """Every kind of failure: how often (where there are several), and the address or the provider's words."""
    found = []
    for reason, n in sorted(summary.failed.items(), key=lambda item: (-item[1], item[0])):
        count = f" {n:,}" if len(summary.failed) > 1 else ""
        words = summary.address if reason in _ABOUT_THE_ADDRESS else summary.failure_messages.get(reason, "")
        found.append(printable(f"{reason}{count}" + (f": {words}" if words else "")))
    return "; ".join(found)


def _over_cap(n: int) -> str:
    pairs = "1 pair of a user" if n == 1 else f"{n:,} pairs of users"
    return f"{pairs} with enough others ([judge] pairs_per_unit)"


def _not_judged(kinds: Mapping[str, int]) -> list[str]:
    """What is left out since an answer holds no text, or there is nothing to check it against; a line for each reason."""
    texts = {kind: n for kind, n in kinds.items() if kind not in WITHOUT_FACTS}
    lines = [f"{sum(texts.values()):,} whose answer holds no text to judge ({_counts(texts)})"] if texts else []
    for name, kind in NO_FACTS.items():
        if kind in kinds:
            answers = "answer" if kinds[kind] == 1 else "answers"
            lines.append(f"{kinds[kind]:,} {answers} without a {name} to check against: no {name}, no call, no score")
    return lines


def _given_up(n: int, named: Sequence[str]) -> str:
    """What is not asked again, with the first requests of it."""
    calls = "1 judgment is" if n == 1 else f"{n:,} judgments are"
    ids = ", ".join(printable(one) for one in named[:_MAX_NAMED])
    more = ", …" if len(named) > _MAX_NAMED else ""
    return (
        f"given up: {calls} not asked again, none of their answers held a verdict ([judge] max_attempts): {ids}{more}"
    )


def _other_models(summary: RunSummary) -> list[str]:
    return [
        f"{n:,} of {summary.n_calls:,} calls were answered by {printable(model)}, not by {printable(summary.model)}: they are "
        "booked at its price, and the cap counts with the dearer of both"
        for model, n in sorted(summary.other_models.items(), key=lambda item: (-item[1], item[0]))
    ]


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{printable(name)} {n:,}" for name, n in ordered if n)


def _unsettled(account: CostHistory) -> str:
    calls = "call was" if account.n_unsettled == 1 else "calls were"
    return (
        f"over all runs {account.n_unsettled:,} {calls} cut off or answered without a usage, so that their cost is unknown: "
        f"booked at an estimate of ${account.estimated_usd:,.4f}, held against a cap at their worst case of "
        f"${account.at_most_usd:,.4f} (`evalpipe judge settle`)"
    )


def _spent(summary: RunSummary) -> str:
    if summary.spent_usd is None:
        return "cost not known"
    guessed = f", {summary.n_estimated_costs:,} of the calls at an estimate" if summary.n_estimated_costs else ""
    return f"${summary.spent_usd:,.4f}{guessed}"
