"""`evalpipe judge audit`: agreement with each person, of people with each other, and the pairs to label next."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from command_line import run_here
from fake_provider import Call, FakeProvider, Response, longer_wins, verdict
from test_judging_run import pairs, run, workspace

from evalpipe.analysis.corrected import JudgedPair
from evalpipe.analysis.result import Agreement, JudgeResult
from evalpipe.judging.audit import audit, pairs_to_label
from evalpipe.models import Label
from evalpipe.store.query import open_store


def _pair(name: str, first: float, second: float, label: float | None = None, of_user: int = 1) -> JudgedPair:
    return JudgedPair(
        request_id=name,
        preference=(first + second) / 2,
        treatment_first=first,
        control_first=second,
        label=label,
        of_user=of_user,
    )


def test_what_to_label_next_is_what_the_judge_is_unsure_of() -> None:
    # 6 of 8 decisive pairs agree: c = .75, a = (1 + √.5)/2 = .8536, wrong though both agree in .1464²/.75 = .0286.
    agreeing = [_pair(f"a{i}", 1.0, 1.0) for i in range(6)]
    disagreeing = [_pair(f"d{i}", 1.0, 0.0) for i in range(2)]
    found = pairs_to_label([*agreeing, *disagreeing], 3)
    assert [one.request_id for one in found] == ["d0", "d1", "a0"]
    assert [one.kind for one in found] == ["orders_disagree", "orders_disagree", "orders_agree"]
    wrong = ((1 - math.sqrt(0.5)) / 2) ** 2 / 0.75
    assert found[2].error == pytest.approx(wrong)
    assert found[0].error == 0.5
    # π = 3·(½·u/Σu + ½/8), Σu = 2·½ + 6·√(p(1 − p)).
    u = math.sqrt(wrong * (1 - wrong))
    assert found[0].probability == pytest.approx(3 * (0.5 * 0.5 / (1 + 6 * u) + 0.5 / 8))


def test_labels_calibrate_what_is_expected_of_a_kind() -> None:
    """Both orders agree, and people do not: on 8 of 10 labelled pairs of the kind the judge was wrong."""
    labelled = [_pair(f"l{i}", 1.0, 1.0, label=0.0 if i < 8 else 1.0) for i in range(10)]
    (found,) = pairs_to_label([*labelled, _pair("open", 1.0, 1.0)], 5)
    # All agree: c = 1, prior 0: (8 + 2·0)/(10 + 2).
    assert found.error == pytest.approx(8 / 12)
    assert found.request_id == "open"


def test_a_pair_of_a_user_with_many_counts_less() -> None:
    found = pairs_to_label([_pair("of three", 1.0, 0.0, of_user=3), _pair("alone", 1.0, 0.0)], 2)
    assert [one.request_id for one in found] == ["alone", "of three"]


def test_audit_reports_each_person_and_what_to_label_next(tmp_path: Path) -> None:
    def judge(call: Call) -> Response:
        """The longer answer wins; of pairs whose question ends in 5 the first seat does."""
        return Response(verdict("response_1")) if "5" in call.blocks["request"] else longer_wins(call)

    with FakeProvider(judge) as provider:
        found = workspace(tmp_path, provider.url, pairs(40))
        run(found)
    # The treatment's answer is the longer one in odd pairs. Ann agrees with the judge on all of 12, Bob on 8 of 12.
    with open_store(found.data, "t") as store:
        for who, wrong in (("ann", 0), ("bob", 4)):
            store.write_labels(
                [
                    Label(
                        request_id=f"p{i}",
                        preference=float(i % 2 if k >= wrong else 1 - i % 2),
                        source="page",
                        labeler=who,
                        probability=0.4,
                    )
                    for k, i in enumerate([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12])
                ]
            )
    printed = run_here("judge", "audit", "--json", "--next", "4", cwd=tmp_path)
    assert printed.returncode == 0
    (document,) = json.loads(printed.stdout)["audits"]
    by_person = {one["labeller"]: one for one in document["labellers"]}
    assert by_person["ann"]["accuracy"][0] == 1.0
    assert by_person["bob"]["accuracy"][0] == pytest.approx(8 / 12)
    # Bob against the judge: po = 8/12, both sides half and half: kappa = (8/12 − ½)/½ = 1/3.
    assert by_person["bob"]["kappa"][0] == pytest.approx(1 / 3, abs=0.02)
    assert by_person["bob"]["ac1"][1] < by_person["bob"]["ac1"][0] < by_person["bob"]["ac1"][2]
    (people,) = document["people"]
    assert (people["people"], people["n_labels"], people["accuracy"][0]) == (["ann", "bob"], 12, pytest.approx(8 / 12))
    # Where the seat decides the orders disagree: those of the questions 5, 15, 25, 35 (and 50 is not there) come first.
    listed = document["label_next"]
    assert {one["request_id"] for one in listed} == {"p5", "p15", "p25", "p35"}
    assert all(one["kind"] == "orders_disagree" and 0 < one["probability"] <= 1 for one in listed)
    text = run_here("judge", "audit", "--next", "4", cwd=tmp_path).stdout
    assert "agrees with bob" in text and "AC1" in text and "ann and bob agree" in text
    assert "the orders disagree, wrong in about" in text
    assert "label next" not in run_here("judge", "audit", "--next", "0", cwd=tmp_path).stdout


def test_a_judge_with_one_verdict_for_all_is_not_trusted() -> None:
    agreement = Agreement(source="human", n_labels=81, accuracy=0.0, accuracy_high=0.045, kappa=0.0, ac1=-0.45)
    result = JudgeResult(
        name="pairwise",
        fingerprint="f",
        mode="pairwise",
        model="m",
        simulated=False,
        imported=False,
        feeds_decision=True,
        win_rate=0.5,
        ci_low=0.5,
        ci_high=0.5,
        standard_error=0.0,
        confidence_level=0.95,
        n_pairs=160,
        n_clusters=79,
        n_judged=160,
        consistency=1.0,
        agreements=[agreement],
    )
    found = audit(result)
    assert found.trusted is False
    assert found.reasons == ["agrees with human no better than chance would: kappa 0.00"]
