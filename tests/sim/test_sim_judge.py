"""Simulated judges: stated rules, stated rates, recorded judgements; the prompt is the product's own."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evalpipe.judging.prompt import ShownAnswer, answer_message, pair_message, repair_message, reply_schema
from evalpipe.models import Arm, JudgeMode, ShownFirst
from evalpipe.sim.judges import UNREADABLE, SimulatedJudge, asked_language, check, language, read_judge_prompt
from evalpipe.sim.requests import BadRequestError, SimRequest, read_sim_request
from evalpipe.sim.settings import JudgeBehaviour

NONCE = "0123456789abcdef"
DIMENSIONS = {"accuracy": "?", "clarity": "?"}
SYSTEM = "Score from 0 (worst) to 10 (best), as whole numbers."


def request(
    control: str, treatment: str, *, asked: str = "Tell me.", first: str = "control", model: str = "m", nonce: str = NONCE,
    repair: bool = False,
) -> SimRequest:  # fmt: skip
    shown = [ShownAnswer(text=text, state=None if text else "empty") for text in (control, treatment)]
    message = pair_message(
        asked, *shown, shown_first=ShownFirst(first), nonce=nonce, max_request_chars=50_000, max_response_chars=50_000
    )
    schema = reply_schema(JudgeMode.PAIRWISE, DIMENSIONS, reasoning=True, scale=(0, 10))
    turns = [{"role": "user", "content": message.text}]
    if repair:
        turns += [{"role": "assistant", "content": "?"}, {"role": "user", "content": repair_message("no")}]
    body: Any = {
        "model": model,
        "max_tokens": 500,
        "system": SYSTEM,
        "messages": turns,
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }
    return read_sim_request("messages", body)


def reply(judge: SimulatedJudge, asked: SimRequest) -> str:
    prompt = read_judge_prompt(asked)
    assert prompt is not None
    return judge.reply(prompt, asked.model)


def winner(judge: SimulatedJudge, control: str, treatment: str, **more: Any) -> str:
    """The winning arm, tie, or unparseable."""
    text = reply(judge, request(control, treatment, **more))
    if text == UNREADABLE:
        return "unparseable"
    seat = json.loads(text)["winner"]
    if seat == "tie":
        return "tie"
    arms = ["control", "treatment"] if more.get("first", "control") == "control" else ["treatment", "control"]
    return arms[seat == "response_2"]


def test_the_reply_follows_the_judges_schema() -> None:
    judge = SimulatedJudge(JudgeBehaviour(), 0)
    document = json.loads(reply(judge, request("An answer.", "")))
    assert list(document) == ["reasoning", "response_1", "response_2", "winner"]
    assert document["response_1"] == {"accuracy": 10, "clarity": 10}
    assert document["response_2"] == {"accuracy": 0, "clarity": 0}
    assert document["winner"] == "response_1"


def test_a_pointwise_prompt_is_scored_alone() -> None:
    shown = ShownAnswer(text="Un chat est un animal et il est petit.", state="truncated")
    message = answer_message("What is a cat? It is for the kids.", Arm.CONTROL, shown, nonce=NONCE, max_request_chars=999,
                             max_response_chars=999)  # fmt: skip
    schema = reply_schema(JudgeMode.POINTWISE, {"relevance": "?"}, reasoning=False, scale=(0, 1))
    body: Any = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Score from 0 (worst) to 1 (best), with decimals"},
            {"role": "user", "content": message.text},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    document = json.loads(reply(SimulatedJudge(JudgeBehaviour(), 0), read_sim_request("chat.completions", body)))
    # Nine points less three for the language and two for the cut, of nine.
    assert document == {"relevance": 0.44}


def test_ordinary_prompts_are_no_judge_prompts() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Compare <response-1> and <request-2>."}]}
    assert read_judge_prompt(read_sim_request("chat.completions", body)) is None


@pytest.mark.parametrize(
    ("asked", "answer", "state", "broken"),
    [
        ("Tell me about cats.", "Cats are small animals.", None, ()),
        ("Tell me about cats.", " \n", None, ("empty",)),
        ("Tell me about cats.", "Cats are", "truncated", ("cut",)),
        ("Tell me about cats.", "I cannot do that.", "refused", ("refused",)),
        ("Summarise: the cat sat on the mat all day long.", "the cat sat on the mat all day long.", None, ("echo",)),
        ("What is the capital of France? Answer in German.", "The capital of France is Paris and it is nice.", None,
         ("language",)),
        ("What is the capital of France? Answer in German.", "Die Hauptstadt ist Paris und das ist schön.", None, ()),
        ("Give me JSON with the key a.", '{"a": 1}', None, ()),
        ("Give me JSON with the key a.", 'Sure!\n```json\n{"a": 1}\n```', None, ()),
        ("Give me JSON with the key a.", "a is 1", None, ("format",)),
        ("Write a Python function that adds.", "def add(a, b):\n    return a + b", None, ()),
        ("Write a Python function that adds.", "You add the numbers.", None, ("format",)),
        ("Name pets as a list.", "- cat\n- dog", None, ()),
        ("Name pets as a list.", "cat and dog", None, ("format",)),
        ("Hi", "I like turtles a lot.\nI like turtles a lot.\nI like turtles a lot.\n", None, ("loop",)),
    ],
)  # fmt: skip
def test_each_stated_rule(asked: str, answer: str, state: str | None, broken: tuple[str, ...]) -> None:
    assert check(asked, answer, state).broken == broken


def test_languages() -> None:
    assert language("Привет, как дела") == "russian"
    assert language("42") is None
    assert asked_language("Translate to Spanish: the house is big and it is old") == "spanish"
    assert asked_language("Wie ist das Wetter und was ist mit dem Wind?") == "german"


def test_the_same_question_gets_the_same_answer_whatever_the_nonce() -> None:
    judge = SimulatedJudge(JudgeBehaviour(behaviour="stated", accuracy=0.6, seat_bias=0.2), 7)
    for n in range(30):
        answers = {winner(judge, f"a{n}", f"b{n}", nonce=f"{nonce:016x}") for nonce in (1, 2**60)}
        assert len(answers) == 1


def test_stated_rates_come_out() -> None:
    behaviour = JudgeBehaviour(behaviour="stated", accuracy=0.9, seat_bias=0.2, tie_rate=0.1, unparseable_rate=0.05)
    judge = SimulatedJudge(behaviour, 1)
    perfect = SimulatedJudge(JudgeBehaviour(behaviour="stated", accuracy=1.0), 1)
    n = 1000
    counts: Counter[str] = Counter()
    for i in range(n):
        got = winner(judge, f"control {i}", f"treatment {i}")
        truth = winner(perfect, f"control {i}", f"treatment {i}")
        counts[got if got in {"tie", "unparseable"} else "right" if got == truth else "wrong"] += 1
    # Unparseable 5 %; of the rest ties 10 %; of the rest the first seat 20 %, which is right half the time.
    decided = 0.95 * 0.9
    expected = {
        "unparseable": 0.05,
        "tie": 0.95 * 0.1,
        "right": decided * (0.2 * 0.5 + 0.8 * 0.9),
        "wrong": decided * (0.2 * 0.5 + 0.8 * 0.1),
    }
    for kind, share in expected.items():
        assert counts[kind] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_length_bias_prefers_the_longer_in_both_orders() -> None:
    judge = SimulatedJudge(JudgeBehaviour(behaviour="stated", length_bias=1.0), 0)
    for first in ("control", "treatment"):
        assert winner(judge, "short", "a longer answer", first=first) == "treatment"


def test_a_repair_may_succeed() -> None:
    judge = SimulatedJudge(JudgeBehaviour(behaviour="stated", unparseable_rate=0.5), 0)
    repaired = [
        winner(judge, f"a{n}", "b", repair=True) for n in range(40) if winner(judge, f"a{n}", "b") == "unparseable"
    ]
    assert {"unparseable"} < set(repaired)


@pytest.mark.shared
def test_recorded_judgements_are_replayed_by_order(shared: Path) -> None:
    """LLMBar natural: the published counts come out of what the simulated judge says."""
    path = shared / "data/pairs/llmbar_natural.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    judge = SimulatedJudge(JudgeBehaviour(behaviour="replay", pairs=path), 0)
    published = _published(shared, "LLMBar/Natural")
    names = sorted(name for name in published if name in _both_orders(rows))[:2]
    assert names
    for name in names:
        right = {"control": 0, "treatment": 0}
        both = agreeing = 0
        for row in rows:
            label = {"a": "control", "b": "treatment"}[row["label"]]
            said = [
                winner(judge, row["response_a"], row["response_b"], asked=row["prompt"], first=first, model=name)
                for first in ("control", "treatment")
            ]
            for first, arm in zip(("control", "treatment"), said, strict=True):
                right[first] += arm == label
            both += said == [label, label]
            agreeing += said[0] == said[1]
        assert (right["control"], right["treatment"], both, agreeing) == published[name], name


def test_a_replay_without_the_pair_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    judgement = {"judge": "j", "order": "single", "verdict": "b"}
    row = {"pair_id": "1", "prompt": "p", "response_a": "x", "response_b": "y", "judgements": [judgement]}
    path.write_text(json.dumps(row), "utf-8")
    judge = SimulatedJudge(JudgeBehaviour(behaviour="replay", pairs=path), 0)
    # One recorded judge needs no name.
    assert winner(judge, "x", "y") == winner(judge, "x", "y", first="treatment") == "treatment"
    with pytest.raises(BadRequestError, match="no recorded pair"):
        winner(judge, "x", "z")


def _both_orders(rows: list[dict[str, Any]]) -> set[str]:
    orders: dict[str, set[str]] = {}
    for row in rows:
        for judgement in row["judgements"]:
            orders.setdefault(f"{judgement['judge']}/{judgement['method']}", set()).add(judgement["order"])
    return {name for name, seen in orders.items() if {"ab", "ba"} <= seen}


def _published(shared: Path, dataset: str) -> dict[str, tuple[int, ...]]:
    with (shared / "data/pairs/llmbar_judge_summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("correct_order_ab", "correct_order_ba", "correct_both", "positional_agreement")
    return {
        f"{row['judge']}/{row['strategy']}": tuple(int(row[column]) for column in columns)
        for row in rows
        if row["subset"] == dataset
    }
