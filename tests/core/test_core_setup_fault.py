"""Set-up faults by the rule: which failures count, how many it takes, what ends them, and what is printed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from evalpipe.providers.setup_faults import FaultDetector, FaultKind, SetupFault, Signature, shown_failure, signature_of

T0 = 1_780_000_000.0
"""2026-05-28T20:26:40Z"""
KEY = Signature(FaultKind.REFUSED, 401, "authentication_error")
MODEL = Signature(FaultKind.REFUSED, 404, "not_found_error")
BAD_REQUEST = Signature(FaultKind.NEVER_ANSWERED, 400, "invalid_request_error")


def said(outcome: str, status: int | None = None, code: str | None = None, message: str | None = None) -> Any:
    return signature_of(outcome=outcome, status=status, error_type=code, error_message=message)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("http_error", 401, "authentication_error"), ("refused", 401, "authentication_error")),
        (("http_error", 402, "http_402"), ("refused", 402, "http_402")),
        (("http_error", 404, "model_not_found"), ("refused", 404, "model_not_found")),
        (("http_error", 404, "http_404", "<html>nginx</html>"), ("refused", 404, "http_404")),
        (("http_error", 429, "insufficient_quota"), ("refused", 429, "insufficient_quota")),
        (("http_error", 429, "billing_hard_limit_reached"), ("refused", 429, "billing_hard_limit_reached")),
        (("http_error", 429, "project_spend_limit_exceeded"), ("refused", 429, "project_spend_limit_exceeded")),
        (("http_error", 429, "rate_limit_exceeded"), None),
        (("http_error", 429, None), None),
        (("http_error", 400, "invalid_request_error"), ("never_answered", 400, "invalid_request_error")),
        (("http_error", 403, None), ("never_answered", 403, None)),
        (("http_error", 422, "http_422"), ("never_answered", 422, "http_422")),
        (("http_error", 500, "server_error"), None),
        (("http_error", 529, "overloaded_error"), None),
        (("http_error", 502, "http_502", "\n <html>Bad Gateway"), ("never_answered", 502, "http_502")),
        (("http_error", 301, "http_301"), ("never_answered", 301, "http_301")),
        (("unreadable", 200, "malformed", "not JSON"), ("never_answered", 200, "malformed")),
        (("unreadable", 200, "cut", "the stream broke off"), ("never_answered", 200, "cut")),
        (("unreadable", None, "protocol_error"), ("never_answered", None, "protocol_error")),
        # No connection: the copy has no status, the served request the one the collector answered with.
        (
            ("http_error", None, "connect_error", "no connection to h:1: refused"),
            ("never_answered", None, "connect_error"),
        ),
        (
            ("http_error", 502, "connect_error", "no connection to h:1: refused"),
            ("never_answered", None, "connect_error"),
        ),
        (("timeout", 504, "timeout", "no connection to h:1 within 10 s"), ("never_answered", None, "connect_error")),
        (("http_error", 500, "api_error", "no connection to the database"), None),  # the provider's words, not ours
        (("timeout", None, "timeout", "no whole answer within 120 s"), None),
        (("timeout", 401, "timeout", "no whole answer within 120 s"), None),
        # Imports: without a status nothing is known of how the arm failed.
        (("unreadable", None, "no_answer"), None),
        (("http_error", None, None, "AuthenticationError"), None),
        (("ok", 200, None), None),
        (("ok", 401, None), None),
        (("client_closed", 401, None), None),
    ],
)
def test_what_a_failure_may_be(row: tuple[Any, ...], expected: tuple[Any, ...] | None) -> None:
    assert said(*row) == expected


def feed(detector: FaultDetector, outcomes: str, *, start: int = 0, users: int = 1) -> FaultDetector:
    """One outcome a second: `.` answered, `k` a refused key, `m` no such model, `b` a bad request, `x` another failure."""
    signatures = {"k": KEY, "m": MODEL, "b": BAD_REQUEST, "x": None}
    for second, outcome in enumerate(outcomes, start):
        if outcome == ".":
            detector.answered()
        else:
            unit = f"u{second % users}"
            detector.failed(signatures[outcome], at=T0 + second, unit=unit, message="invalid x-api-key")
    return detector


def counts(outcomes: str, **options: Any) -> list[tuple[int | None, int]]:
    users = options.pop("users", 1)
    return [
        (fault.status, fault.count)
        for fault in feed(FaultDetector(arm="treatment", **options), outcomes, users=users).faults
    ]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("kkkk", []),
        ("kkkkk", [(401, 5)]),
        ("kkkkkkk", [(401, 7)]),
        ("kkkkk....", [(401, 5)]),  # corrected: it stays until its time is excluded
        (".kkkkk", []),
        (".kkkkk" * 10, []),
        ("." + "k" * 19, []),
        ("." + "k" * 20, [(401, 20)]),
        ("." + "k" * 20 + "." + "k" * 25 + ".", [(401, 20), (401, 25)]),
        ("." + ("k" * 10 + "." + "k" * 9) * 5, []),
        ("xkkkkk", []),  # another failure was first
        ("kkkxkk", []),  # and in between
        ("kkkmmmkkk", []),  # of two kinds
        ("kkkkkmmmmm", [(401, 5)]),  # the second kind is not the first answer's
        ("mmmmm", [(404, 5)]),
        ("kkkkkkkkkkbkkkkkkkkkk", [(401, 10)]),
    ],
)
def test_refused(outcomes: str, expected: list[tuple[int, int]]) -> None:
    assert counts(outcomes) == expected


@pytest.mark.parametrize(
    ("outcomes", "users", "expected"),
    [
        ("kkkkkkkk", 2, []),
        ("kkkkk", 3, [(401, 5)]),
        ("." + "k" * 20, 2, []),
        ("." + "k" * 20, 3, [(401, 20)]),
    ],
)
def test_where_the_clients_key_passes_through_one_user_alone_is_no_fault(
    outcomes: str, users: int, expected: list[tuple[int, int]]
) -> None:
    assert counts(outcomes, passes_through=True, users=users) == expected


@pytest.mark.parametrize(
    ("outcomes", "users", "expected"),
    [
        ("bbbb", 4, []),
        ("bbbbb", 3, [(400, 5)]),
        ("bbbbb", 2, []),
        ("b" * 19, 2, []),
        ("b" * 20, 1, [(400, 20)]),
        ("bxbxbxbxb", 9, [(400, 5)]),  # other failures in between are no answer
        ("bbbbb.", 3, []),  # one answer ends it
        (".bbbbb", 3, []),
        ("bbbb.bbbbbbbbbbbbbbbbbbbbbbbbbb", 3, []),  # a model that refuses is not a set-up fault
        ("bbbbbkkkkk", 3, [(400, 5)]),
    ],
)
def test_never_answered(outcomes: str, users: int, expected: list[tuple[int, int]]) -> None:
    assert counts(outcomes, users=users) == expected


def test_both_kinds_at_once_are_both_reported() -> None:
    assert counts("kkkkkbbbbb", users=3) == [(401, 5), (400, 5)]


def test_a_configuration_that_answered_before_is_not_new() -> None:
    assert counts("kkkkkbbbbb", users=3, answered_before=True) == []
    assert counts("k" * 20, answered_before=True) == [(401, 20)]


def test_what_goes_on_now() -> None:
    detector = FaultDetector(arm="treatment")
    assert detector.going_on == []
    feed(detector, "kkkkk")
    assert [fault.count for fault in detector.going_on] == [5]
    detector.answered()
    assert (detector.going_on, len(detector.faults)) == ([], 1)
    feed(detector, "kkkkk", start=10)
    assert (detector.going_on, len(detector.faults)) == ([], 1)


def test_the_fault_itself() -> None:
    (fault,) = feed(FaultDetector(arm="treatment", fingerprint="f1"), "k" * 12).faults
    assert fault == SetupFault(
        arm="treatment",
        kind=FaultKind.REFUSED,
        status=401,
        code="authentication_error",
        message="invalid x-api-key",
        count=12,
        fingerprint="f1",
        first_at=datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC),
        last_at=datetime(2026, 5, 28, 20, 26, 51, tzinfo=UTC),
    )
    assert fault.text == (
        "set-up fault of the treatment arm: 12 requests in a row failed: HTTP 401: invalid x-api-key "
        "(2026-05-28T20:26:40Z to 2026-05-28T20:26:52Z). Check [arms.treatment] api_key_env. Once it is corrected: "
        'evalpipe exclude --since 2026-05-28T20:26:40Z --until 2026-05-28T20:26:52Z --why "treatment: HTTP 401"'
    )


def one(arm: str, status: int | None, code: str | None = None, message: str = "") -> SetupFault:
    at = datetime(2026, 5, 28, 20, 26, 40, 250_000, tzinfo=UTC)
    return SetupFault(
        arm=arm,
        kind=FaultKind.REFUSED,
        status=status,
        code=code,
        message=message,
        count=5,
        fingerprint=None,
        first_at=at,
        last_at=at,
    )


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (one("treatment", 401), "[arms.treatment] api_key_env"),
        (one("control", 401), "[arms.control] api_key_env (where it is not set: the key that clients send)"),
        (one("treatment", 402), "the account (credit, spending limit) of [arms.treatment] api_key_env"),
        (one("treatment", 429), "the account (credit, spending limit) of [arms.treatment] api_key_env"),
        (one("treatment", 403), "[arms.treatment] api_key_env, and whether it may use [arms.treatment] model"),
        (one("treatment", 404, "model_not_found"), "[arms.treatment] model"),
        (one("treatment", 404, "not_found_error", "model: claude-9"), "[arms.treatment] model"),
        (one("treatment", 404, "http_404", "Not Found"), "[arms.treatment] model and base_url"),
        (
            one("treatment", 400),
            "[arms.treatment] model, params and drop (it leaves out fields that this server does not accept)",
        ),
        (
            one("treatment", 422),
            "[arms.treatment] model, params and drop (it leaves out fields that this server does not accept)",
        ),
        (one("treatment", None, "connect_error"), "[arms.treatment] base_url"),
        (one("treatment", 200, "malformed"), "[arms.treatment] base_url"),
    ],
)
def test_which_setting_to_look_at(fault: SetupFault, expected: str) -> None:
    assert fault.setting == expected


def test_the_excluded_time_holds_every_failure_of_the_fault() -> None:
    fault = one("treatment", 401)
    assert (fault.since, fault.until) == ("2026-05-28T20:26:40Z", "2026-05-28T20:26:41Z")
    assert datetime.fromisoformat(fault.since) <= fault.first_at
    assert fault.last_at < datetime.fromisoformat(fault.until)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((401, "authentication_error", "invalid x-api-key"), "HTTP 401: invalid x-api-key"),
        ((401, "authentication_error", None), "HTTP 401 (authentication_error)"),
        ((404, "http_404", ""), "HTTP 404"),
        ((None, "connect_error", "no connection to h:1: refused"), "no connection to h:1: refused"),
        ((None, "connect_error", None), "no connection"),
        ((None, "protocol_error", None), "protocol error"),
        ((500, None, "a\x1b[31m\u202e\nb"), "HTTP 500: a\ufffd[31m\ufffd b"),
        ((500, None, "x" * 5000), "HTTP 500: " + "x" * 200 + "…"),
    ],
)
def test_the_providers_words_are_shown_safely(arguments: tuple[Any, ...], expected: str) -> None:
    assert shown_failure(*arguments) == expected


def test_codes_that_differ_each_time_fill_no_memory() -> None:
    detector = FaultDetector(arm="treatment")
    for i in range(1000):
        detector.failed(Signature(FaultKind.NEVER_ANSWERED, 400, f"code-{i}"), at=T0 + i, unit=f"u{i}")
    assert len(detector._never) == 100
