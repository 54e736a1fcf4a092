"""Results of evaluation tools: AlpacaEval's outputs, DeepEval, RAGAS, lm-evaluation-harness, MT-Bench's answers. Answers to one
question in two files have one id, so that two files are two arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.store.importers.base import BrokenLineError
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, has, name, number, opened


def _by_question(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    if row.get("id") is None and row.get("prompt") is not None:
        row["id"], row["by_question"] = fingerprint(str(row["prompt"]), length=32), True


ALPACA = Format(
    name="alpacaeval",
    help="AlpacaEval annotations and model outputs",
    shapes=(("instruction", "output", "generator"), ("instruction", "output", "dataset")),
    amend=_by_question,
    fields={"id": (), "prompt": ("instruction",), "text": ("output",), "model": ("generator",), "meta": ("dataset",)},
)


def _deepeval_calls(document: Any) -> Iterator[Any]:
    cases = first(document, ("testCases", "test_cases", "test_results"))
    if not isinstance(opened(cases), list):
        yield document
        return
    yield from opened(cases)


def _deepeval_matches(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    cases = opened(first(document, ("testCases", "test_cases", "test_results")))
    if isinstance(cases, list):
        return any(isinstance(one, Mapping) and has(one, "actualOutput") for one in cases[:5])
    return has(document, "input") and has(document, "actualOutput")


DEEPEVAL = Format(
    name="deepeval",
    help="DeepEval test runs and test cases",
    matches=_deepeval_matches,
    calls=_deepeval_calls,
    amend=_by_question,
    guesses_users=False,
    fields={
        "id": (),
        "prompt": ("input",),
        "text": ("actualOutput", "actual_output"),
        "latency_s": ("completionTime", "completion_time"),
        "cost": ("tokenCost", "token_cost"),
        "meta": ("additionalMetadata", "additional_metadata"),
    },
)

RAGAS = Format(
    name="ragas",
    help="RAGAS samples and results",
    shapes=(
        ("user_input", "response"),
        ("question", "answer", "contexts"),
        ("question", "answer", "ground_truth"),
        ("question", "answer", "ground_truths"),
        ("question", "answer", "retrieved_contexts"),
    ),
    amend=_by_question,
    fields={
        "id": ("sample_id",),
        "prompt": ("user_input", "question"),
        "answer": ("response", "answer"),
        "meta": ("metadata",),
    },
)


def _lm_eval(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    arguments = opened(find(call, "arguments"))
    asked: Any = None
    if isinstance(arguments, Mapping):
        inner = next(iter(arguments.values()), None)
        asked = inner.get("arg_0") if isinstance(inner, Mapping) else inner
    elif isinstance(arguments, list) and arguments:
        asked = arguments[0][0] if isinstance(arguments[0], list | tuple) and arguments[0] else arguments[0]
    answers = opened(find(call, "resps"))
    while isinstance(answers, list) and answers:
        answers = answers[0]
    if not isinstance(answers, str):
        raise BrokenLineError("resps holds no text")
    row["prompt"], row["text"] = asked, answers
    task = name(find(call, "task") or find(call, "task_name"))
    kept = name(find(call, "filter"))
    parts = [
        task,
        name(find(call, "doc_id")),
        name(find(call, "doc_hash")),
        kept if kept not in ("none", None) else None,
    ]
    row["id"] = "-".join(part for part in parts if part)


def _lm_eval_left_out(call: Any) -> str | None:
    """Multiple choice asks for likelihoods: nothing was written that could be judged."""
    answers = opened(find(call, "resps"))
    inner = answers[0] if isinstance(answers, list) and answers else None
    inner = inner[0] if isinstance(inner, list) and inner else inner
    if isinstance(inner, list | tuple) or (
        number(inner) is not None and str(inner).lstrip("-")[:1].isdigit() and _is_likelihood(call)
    ):
        return "log-likelihoods of given choices"
    return None


def _is_likelihood(call: Any) -> bool:
    arguments = find(call, "arguments")
    return isinstance(arguments, Mapping) and len(arguments) > 1


LM_EVAL = Format(
    name="lm-eval",
    help="lm-evaluation-harness samples",
    shapes=(("doc_id", "resps", "arguments"), ("doc_id", "resps", "target")),
    left_out=_lm_eval_left_out,
    amend=_lm_eval,
    guesses_users=False,
    fields={"id": (), "prompt": (), "text": (), "meta": ("doc",)},
)


def _is_question(document: Any) -> bool:
    return isinstance(document, Mapping) and {"question_id", "turns"} <= document.keys()


def _mt_bench_matches(document: Any) -> bool:
    if _is_question(document):
        return True
    choices = document.get("choices") if isinstance(document, Mapping) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], Mapping) and "turns" in choices[0]


def _mt_bench_companion(document: Any) -> tuple[str, Any] | None:
    return (str(document["question_id"]), document["turns"]) if _is_question(document) else None


def _mt_bench_joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(document.get("question_id"))) if isinstance(document, Mapping) else None
    return document if found is None or _is_question(document) else {**document, "_questions": found[-1]}


def _mt_bench_calls(document: Any) -> Iterator[Any]:
    if _is_question(document):
        yield document
        return
    answers = document["choices"][0]["turns"]
    questions = document.get("_questions") or []
    messages: list[dict[str, Any]] = []
    for turn, answer in enumerate(answers if isinstance(answers, list) else [answers]):
        if turn < len(questions):
            messages = [*messages, {"role": "user", "content": str(questions[turn])}]
        yield {**document, "_id": f"{document.get('question_id')}-{turn + 1}", "_asked": messages, "_text": answer}
        messages = [*messages, {"role": "assistant", "content": str(answer)}] if messages else messages


MT_BENCH = Format(
    name="mt-bench",
    help="MT-Bench answers, with the questions where they are loaded together",
    matches=_mt_bench_matches,
    calls=_mt_bench_calls,
    left_out=lambda call: (
        "questions, whose answers are in another file: load both together" if _is_question(call) else None
    ),
    companion=_mt_bench_companion,
    joined=_mt_bench_joined,
    guesses_users=False,
    fields={
        "id": ("_id",),
        "prompt": ("_asked",),
        "text": ("_text",),
        "model": ("model_id",),
        "start": ("tstamp",),
        "unit": ("question_id",),
        "conversation": ("question_id",),
    },
)
IMPORTERS = (
    ALPACA.importer(),
    DEEPEVAL.importer(),
    MT_BENCH.importer(),
    LM_EVAL.importer(),
    RAGAS.importer(),
)
