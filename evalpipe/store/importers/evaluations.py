"""Results of evaluation tools: AlpacaEval, DeepEval, RAGAS, lm-evaluation-harness, MT-Bench, promptfoo, Inspect AI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.models import Exchange
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    as_mapping,
    as_messages,
    json_text,
    logged_exchange,
    unknown_time,
)
from evalpipe.store.importers.messages import read_content, read_messages
from evalpipe.store.importers.responses import read_logged_response
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
        "context": ("retrievalContext", "retrieval_context", "context"),
        "reference": ("expectedOutput", "expected_output"),
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
        "context": ("retrieved_contexts", "contexts"),
        "reference": ("reference", "ground_truth", "ground_truths"),
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
EVALUATION_IMPORTERS = (
    ALPACA.importer(),
    DEEPEVAL.importer(),
    MT_BENCH.importer(),
    LM_EVAL.importer(),
    RAGAS.importer(),
)


# promptfoo: the results of an evaluation (JSON, or JSONL with one result a line). Two providers, or two prompts, are
# two arms.


def _is_promptfoo_result(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and has(value, "provider")
        and has(value, "response")
        and has(value, "prompt")
        and any(has(value, key) for key in ("vars", "testIdx", "testCase", "gradingResult", "promptIdx"))
    )


def _promptfoo_results(document: Any) -> list[Any]:
    inner = document.get("results") if isinstance(document, Mapping) else None
    if isinstance(inner, Mapping):
        inner = inner.get("results")
    return inner if isinstance(inner, list) else []


def _promptfoo_matches(document: Any) -> bool:
    return _is_promptfoo_result(document) or any(map(_is_promptfoo_result, _promptfoo_results(document)[:5]))


def _promptfoo_calls(document: Any) -> Iterator[Any]:
    results = [document] if _is_promptfoo_result(document) else _promptfoo_results(document)
    providers = {_promptfoo_provider(one) for one in results if isinstance(one, Mapping)}
    n_seen: Counter[str] = Counter()
    for one in results:
        if not isinstance(one, Mapping):
            continue
        by_provider = len(providers) > 1 or len(results) == 1
        arm = (
            _promptfoo_provider(one)
            if by_provider
            else str(find(one, "prompt.label") or find(one, "prompt.raw") or find(one, "promptIdx"))
        )
        asked = f"-{fingerprint(find(one, 'prompt.raw') or '', length=8)}" if by_provider else ""
        test = find(one, "testIdx")
        key = f"test-{test if test is not None else fingerprint(json_text(find(one, 'vars')) or '', length=12)}{asked}"
        n_seen[f"{arm}\0{key}"] += 1
        repeat = n_seen[f"{arm}\0{key}"]
        yield {**one, "_id": key if repeat == 1 else f"{key}-{repeat}", "_arm": arm}


def _promptfoo_provider(result: Mapping[str, Any]) -> str:
    provider = result.get("provider")
    if isinstance(provider, Mapping):
        return str(provider.get("label") or provider.get("id"))
    return str(provider)


def _promptfoo_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    provider = find(call, "provider.id") or call.get("provider")
    row["model_requested"] = row["model"] = str(provider).split(":")[-1] if provider else None
    output = opened(find(call, "response.output"))
    row["logged"] = read_logged_response(call.get("response") if output is None else output)
    if isinstance(output, Mapping | list) and row["logged"].is_empty:
        row["text"] = json_text(output)
    reason = number(find(call, "failureReason"))
    error = find(call, "response.error") or (find(call, "error") if reason == 2 or row["logged"].is_empty else None)
    row["error"] = error  # a failed assertion is reported in `error` too, and is no failure of the call
    row["meta"] = {
        key: call.get(key) for key in ("vars", "success", "score", "namedScores", "gradingResult") if key in call
    }
    row["unit"] = name(find(call, "vars.user_id") or find(call, "metadata.user_id"))


PROMPTFOO = Format(
    name="promptfoo",
    help="promptfoo results (JSON, JSONL); two providers or two prompts are two arms",
    matches=_promptfoo_matches,
    calls=_promptfoo_calls,
    amend=_promptfoo_amend,
    guesses_users=False,
    fields={
        "id": ("_id",),
        "variant": ("_arm",),
        "prompt": ("prompt.raw", "prompt"),
        "usage": ("response.tokenUsage", "tokenUsage"),
        "cost": ("cost", "response.cost"),
        "latency_ms": ("latencyMs", "response.latencyMs"),
        "finish_reason": ("response.finishReason",),
        "text": (),
    },
)
PROMPTFOO_IMPORTER = PROMPTFOO.importer()


# Inspect AI: an evaluation log in JSON; each sample and epoch is one exchange.
#
# Two logs of the same task pair by themselves: load one as it is and the other with `--arm treatment`.


def _inspect_matches(document: Any) -> bool:
    return isinstance(document, Mapping) and {"eval", "samples", "plan"} <= document.keys()


def _inspect_read(document: Any, line: int) -> Imported:
    samples = document.get("samples")
    if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
        raise BrokenLineError("samples is not a list of objects (a log without its samples holds no answers)")
    run = Fields(as_mapping(document.get("eval")), "eval")
    created, task, model = run.time("created"), run.text("task") or "task", run.text("model")
    return Imported(
        exchanges=[
            _inspect_exchange(sample, task, model, created or unknown_time(number))
            for number, sample in enumerate(samples, 1)
        ]
    )


def _inspect_exchange(sample: Mapping[str, Any], task: str, model: str | None, started_at: datetime) -> Exchange:
    sample = _inspect_with_attachments(sample)
    fields, output = Fields(sample, "sample"), as_mapping(sample.get("output"))
    output_fields = Fields(output, "output")
    usage = Fields(as_mapping(output.get("usage")), "usage")
    choices = output.get("choices")
    choice = as_mapping(choices[0]) if isinstance(choices, list) and choices else {}
    message = as_mapping(choice.get("message"))
    content = read_content(message.get("content"))
    reason = Fields(choice).text("stop_reason")
    sample_id = fields.text("id", required=True)
    seconds = output_fields.number("time", low=0)
    failed = as_mapping(sample.get("error")).get("message") or output.get("error")
    return logged_exchange(
        f"{task}:{sample_id}:{fields.count('epoch') or 1}",
        started_at,
        messages=_inspect_asked(sample),
        text=content.text,
        error=None if failed is None else str(failed),
        finish_reason=reason,
        tool_calls=message.get("tool_calls"),
        response=output or None,
        meta={name: sample.get(name) for name in ("target", "scores", "metadata")},
        # Epochs of a sample are repetitions of one question: one unit.
        unit_id=f"{task}:{sample_id}",
        model_requested=model,
        model=output_fields.text("model") or model,
        latency_ms=None if seconds is None else 1000 * seconds,
        input_tokens=usage.count("input_tokens"),
        cached_input_tokens=usage.count("input_tokens_cache_read"),
        cache_write_tokens=usage.count("input_tokens_cache_write"),
        output_tokens=usage.count("output_tokens"),
        reasoning_tokens=usage.count("reasoning_tokens"),
    )


def _inspect_with_attachments(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sample with its long texts, which newer logs keep apart, put back in their places."""
    kept = sample.get("attachments")
    if not isinstance(kept, Mapping) or not kept:
        return sample

    def filled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("attachment://"):
            return kept.get(value.removeprefix("attachment://"), value)
        if isinstance(value, Mapping):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    return {key: filled(value) if key in {"input", "messages", "output"} else value for key, value in sample.items()}


def _inspect_asked(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conversation before the last answer; without messages, the sample's input."""
    messages = read_messages(as_messages(sample.get("messages")))
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return list(messages) or as_messages(sample.get("input"))


INSPECT_IMPORTER = Importer(
    name="inspect", help="Inspect AI evaluation logs (.json)", matches=_inspect_matches, read=_inspect_read
)
