"""The user's own table as a format: a mapping of columns as given by `--map`, or guessed from their names and values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from evalpipe.errors import ConfigError
from evalpipe.identity import fingerprint
from evalpipe.models import Arm
from evalpipe.providers.model_names import family, same_model
from evalpipe.store.importers import pairs
from evalpipe.store.importers.base import BrokenLineError, Imported, Importer, unknown_time
from evalpipe.store.importers.messages import is_message, read_messages
from evalpipe.store.importers.responses import LoggedResponse, read_logged_response
from evalpipe.store.importers.table import Format, kind_of
from evalpipe.store.importers.values import count, find, instant, milliseconds_of, name, normal, number, opened

TARGETS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "input", "messages", "request", "instruction"),
    "system": ("system_prompt", "instructions"),
    "text": ("answer", "response", "output", "completion", "reply"),
    "text_a": ("control", "response_a", "answer_a", "old", "control_text", "control_response"),
    "text_b": ("treatment", "response_b", "answer_b", "new", "treatment_text", "treatment_response"),
    "arm": ("variant", "group"),
    "user": ("user_id", "unit", "unit_id"),
    "session": ("session_id", "conversation", "conversation_id", "thread"),
    "time": ("timestamp", "started_at", "ts", "created_at", "start"),
    "end": ("ended_at", "end_time"),
    "id": ("request_id", "pair_id"),
    "model": ("model_name",),
    "model_a": (),
    "model_b": (),
    "label": ("winner",),
    "latency_ms": ("latency", "duration_ms"),
    "latency_s": ("duration_s",),
    "latency_ms_a": (),
    "latency_ms_b": (),
    "ttft_ms": (),
    "input_tokens": ("prompt_tokens",),
    "output_tokens": ("completion_tokens",),
    "input_tokens_a": (),
    "input_tokens_b": (),
    "output_tokens_a": (),
    "output_tokens_b": (),
    "cost": ("cost_usd", "price"),
    "cost_usd_a": ("cost_a",),
    "cost_usd_b": ("cost_b",),
    "status": ("status_code",),
    "error": ("error_message",),
    "finish_reason": (),
    "tool_calls": (),
    "meta": ("metadata",),
    "context": ("contexts", "documents", "retrieved_contexts", "retrieved_context", "retrieved_documents", "sources"),
    "reference": ("reference_answer", "ground_truth", "expected", "expected_output", "expected_answer", "gold_answer"),
}
"""what a path can be given for, and other words for it"""
_WORDS = {normal(word): target for target, words in TARGETS.items() for word in (target, *words)}
_ENTRY = re.compile(r"""\s*([A-Za-z_][\w ]*?)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""")
_COLUMNS = {
    "prompt": "prompt", "system": "system", "text": "answer", "arm": "variant", "user": "unit", "session": "conversation",
    "time": "start", "end": "end", "id": "id", "model": "model", "latency_ms": "latency_ms", "latency_s": "latency_s",
    "ttft_ms": "ttft_ms", "input_tokens": "input_tokens", "output_tokens": "output_tokens", "cost": "cost", "status": "status",
    "error": "error", "finish_reason": "finish_reason", "tool_calls": "tool_calls", "meta": "meta",
    "context": "context", "reference": "reference",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mapped:
    """target → path, as `--map` gives it: it may name several (`frage|Frage`) until `mapped_in` chooses by a file."""

    paths: Mapping[str, str]

    @property
    def is_pairs(self) -> bool:
        return "text_a" in self.paths

    def line(self) -> str:
        """As the command line takes it."""
        return ", ".join(f"{target}={_quoted(path)}" for target, path in self.paths.items())

    def importer(self) -> Importer:
        if self.is_pairs:
            return Importer(name="map", help="", matches=self._fits, read=self._read_pair, tells_arms=True, mapped=self)
        fields = {_COLUMNS[target]: (path,) for target, path in self.paths.items() if target in _COLUMNS}
        if "text" not in self.paths:  # whole conversations: the last message answers
            fields["conversation_log"] = fields.pop("prompt")
        table = Format(name="map", help="", matches=self._fits, fields=fields, amend=self._amend, guesses_users=False)
        made = table.importer()
        return Importer(
            name="map", help="", matches=made.matches, read=made.read, tells_arms="arm" in self.paths, mapped=self
        )

    def _fits(self, document: Any) -> bool:
        wanted = ("text_a", "text_b") if self.is_pairs else ("text",) if "text" in self.paths else ("prompt",)
        return isinstance(document, Mapping) and all(
            any(_is_there(document, path) for path in alternatives(self.paths[target])) for target in wanted
        )

    def _amend(self, call: Mapping[str, Any], row: dict[str, Any]) -> None:
        if "text" in self.paths and not _is_there(call, self.paths["text"]):
            raise BrokenLineError(f"{self.paths['text']} is missing")
        if "arm" in self.paths and row.get("variant") is None:
            raise BrokenLineError(f"{self.paths['arm']} is missing: it names the arm")
        row["is_answered"] = True
        if row.get("status") is not None and number(row["status"]) is None:
            row["state"], row["status"] = row["status"], None
        if "text" in self.paths and row.get("answer") == "":
            row["logged"] = LoggedResponse(text="")

    def _read_pair(self, document: Any, line: int) -> Imported:
        if not isinstance(document, Mapping):
            raise BrokenLineError(f"{kind_of(document)}, no object")
        values = {target: find(document, path) for target, path in self.paths.items()}
        for target in ("text_a", "text_b"):
            if values[target] is None and not _is_there(document, self.paths[target]):
                raise BrokenLineError(f"{self.paths[target]} is missing")
        messages = read_messages(values.get("prompt"))
        if values.get("system"):
            messages = [{"role": "system", "content": str(values["system"])}, *messages]
        if not messages:
            raise BrokenLineError(f"{self.paths.get('prompt', 'prompt')} holds no prompt")
        texts = {
            side: "" if values[f"text_{side}"] == "" else read_logged_response(values[f"text_{side}"]).text
            for side in "ab"
        }
        started = instant(values.get("time"))
        notes = (
            []
            if started or values.get("time") in (None, "")
            else [f"time is no time, left empty (e.g. {str(values['time'])[:40]!r})"]
        )
        given = name(values.get("id"))
        pair: dict[str, Any] = {
            "pair_id": given
            or fingerprint([messages, started.isoformat() if started else None, texts["a"], texts["b"]], length=32),
            "prompt": messages,
            "response_a": texts["a"],
            "response_b": texts["b"],
            "unit_id": name(values.get("user")),
            "conversation_id": name(values.get("session")),
            "started_at": (started or unknown_time(line)).isoformat(),
            "label": values.get("label"),
            "context": values.get("context"),
            "reference": values.get("reference"),
        }
        for side in "ab":
            pair[f"model_{side}"] = name(values.get(f"model_{side}"))
            pair[f"latency_ms_{side}"] = milliseconds_of(values.get(f"latency_ms_{side}"))
            for column in ("input_tokens", "output_tokens"):
                pair[f"{column}_{side}"] = count(values.get(f"{column}_{side}"))
            cost = number(values.get(f"cost_usd_{side}"))
            pair[f"cost_usd_{side}"] = cost if cost is None or cost >= 0 else None
        read = pairs.read_pair(
            {key: value for key, value in pair.items() if value is not None or key.startswith("response")},
            line,
            derived=given is None,
        )
        return Imported(
            exchanges=read.exchanges,
            labels=read.labels,
            rejected=read.rejected,
            derived_ids=read.derived_ids,
            notes=notes,
        )


def _is_there(document: Mapping[str, Any], path: str) -> bool:
    return path in document or find(document, path) is not None


def _quoted(path: str) -> str:
    return f"'{path}'" if "," in path or "=" in path else path


def read_map(text: str | Mapping[str, str]) -> Mapped:
    """The mapping of a `--map` option or of `[sources.NAME] map`. Raises ConfigError with what is wrong."""
    if isinstance(text, Mapping):
        entries = [(str(target), str(path)) for target, path in text.items()]
    else:
        entries, place = [], 0
        while place < len(text):
            found = _ENTRY.match(text, place)
            if found is None or found.end() == place:
                raise ConfigError(
                    f'--map: {text[place:].strip()!r} is no TARGET=PATH; for example --map "prompt=question, text=answer"'
                )
            entries.append((found[1], next(group for group in found.groups()[1:] if group is not None)))
            place = found.end()
    paths: dict[str, str] = {}
    for word, path in entries:
        target = _WORDS.get(normal(word))
        if target is None:
            near = difflib.get_close_matches(normal(word), _WORDS, n=1)
            hint = f"; did you mean {_WORDS[near[0]]}?" if near else ""
            raise ConfigError(f"--map: {word!r} is none of {', '.join(TARGETS)}{hint}")
        if not path:
            raise ConfigError(f"--map: {word} has no path behind the =")
        if target in paths:
            raise ConfigError(f"--map: {target} is given twice ({paths[target]} and {path})")
        paths[target] = path
    if ("text_a" in paths) != ("text_b" in paths):
        raise ConfigError("--map: two answers need both text_a (control's) and text_b (treatment's)")
    if "text_a" in paths and ("text" in paths or "arm" in paths):
        raise ConfigError(
            "--map: give text with arm (one answer a row), or text_a and text_b (both answers in a row), not both"
        )
    if not paths.keys() & {"text", "text_a", "prompt"}:
        raise ConfigError(
            "--map: where is the answer? Add text=PATH, or text_a=PATH and text_b=PATH; "
            'for example "prompt=question, text=answer"'
        )
    if "text_a" in paths and "prompt" not in paths:
        raise ConfigError("--map: two answers need the prompt they answer: add prompt=PATH")
    return Mapped(paths)


@lru_cache(maxsize=1024)
def alternatives(path: str) -> tuple[str, ...]:
    """The paths that one of a mapping stands for: "frage|Frage" is either, or a column whose name holds the bar."""
    parts = tuple(part.strip() for part in path.split("|"))
    return (path, *parts) if len(parts) > 1 and all(parts) else (path,)


def mapped_in(mapped: Mapped, documents: Sequence[Any], where: str, *, may_lack: bool = False) -> Mapped:
    """The mapping as it is in these documents: of several paths the first that leads somewhere.

    `may_lack`: what is no answer may be missing, because another file has it; the result is without it. A prompt may
    be missing where there are ids. Raises ConfigError where a path leads nowhere in any of the documents.
    """
    objects = [document for document in documents if isinstance(document, Mapping)]
    if not objects:
        return mapped
    found: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for target, path in mapped.paths.items():
        there = next((one for one in alternatives(path) if any(_is_there(document, one) for document in objects)), None)
        if there is None:
            lacking[target] = path
        else:
            found[target] = there
    needed = {"text", "text_a", "text_b", "arm", *(() if {"id", "text"} <= found.keys() else ("prompt",))}
    for target, path in lacking.items():
        if not may_lack or target in needed:
            _refuse(target, path, objects, where)
    return Mapped(found)


def _refuse(target: str, path: str, objects: Sequence[Mapping[str, Any]], where: str) -> NoReturn:
    keys = list(dict.fromkeys(str(key) for document in objects[:20] for key in document))
    near = difflib.get_close_matches(path.rsplit("|", 1)[-1].strip(), keys, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? Where" if near else "where"
    both = _quoted("|".join((path, near[0] if near else "COLUMN")))
    raise ConfigError(
        f"--map: {target}={path} is nowhere in {where}, which has {listed(keys)}; {hint} another file names it "
        f'otherwise, give both: --map "{target}={both}"'
    )


def listed(columns: Sequence[str]) -> str:
    """The first columns of a file, and how many more it has."""
    shown = ", ".join(columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown


# Which value of a log's own column is which arm.


_CONTROL = frozenset({"control", "a", "old", "baseline", "base", "current", "production", "prod", "champion", "0",
    "off", "before", "incumbent", "false", "ctrl", "c", "existing", "default", "original"})  # fmt: skip
_TREATMENT = frozenset({"treatment", "b", "new", "candidate", "challenger", "1", "on", "after", "test", "true", "t",
    "variant", "treated", "experiment", "exp", "variation"})  # fmt: skip


class Arms:
    """Values are assigned by their names, by the models of the configuration, else the first one seen is control's.

    `named`: (control's value, treatment's), as the user gave them; any other value is then of no arm. `first`: the
    arm of the first value where nothing else decides it.
    """

    def __init__(
        self,
        named: Sequence[str] = (),
        models: tuple[str | None, str | None] = (None, None),
        *,
        first: Arm = Arm.CONTROL,
    ) -> None:
        if named and len(named) != 2:
            raise ConfigError(
                f"--arms {','.join(named)}: give two values, control's and treatment's, with a comma between"
            )
        self._named = list(named)
        self._models = models
        self._first = first
        self.seen: dict[str, Arm | None] = {}

    def of(self, value: str) -> Arm | None:
        """The arm of rows with this value; None where it is a third one."""
        if value not in self.seen:
            self.seen[value] = self._assigned(value)
        return self.seen[value]

    def _assigned(self, value: str) -> Arm | None:
        if self._named:
            return dict(zip(self._named, Arm, strict=True)).get(value)
        taken = {arm for arm in self.seen.values() if arm is not None}
        word = value.strip().lower()
        wanted = Arm.CONTROL if word in _CONTROL else Arm.TREATMENT if word in _TREATMENT else None
        if wanted is None:
            wanted = next(
                (arm for arm, model in zip(Arm, self._models, strict=True) if model and same_model(model, value)), None
            )
        if wanted is None:
            other = Arm.TREATMENT if self._first is Arm.CONTROL else Arm.CONTROL
            wanted = self._first if self._first not in taken else other
        return None if wanted in taken else wanted

    def lines(self) -> list[str]:
        """Which value is which arm, for people."""
        return [f"{value!r} is {arm.value}" for value, arm in self.seen.items() if arm is not None]


# A mapping guessed from the names and values of columns, to be shown and asked for.


_SIDES = (
    ("a", "b"), ("old", "new"), ("control", "treatment"), ("baseline", "candidate"), ("baseline", "treatment"),
    ("baseline", "new"),
    ("before", "after"), ("current", "candidate"), ("current", "new"), ("current", "proposed"), ("production", "candidate"),
    ("prod", "candidate"), ("prod", "new"), ("champion", "challenger"), ("left", "right"), ("base", "new"), ("base", "candidate"),
    ("reference", "candidate"), ("original", "new"), ("original", "modified"), ("v1", "v2"), ("1", "2"), ("0", "1"),
    ("first", "second"),
    ("existing", "new"), ("live", "shadow"), ("primary", "shadow"), ("served", "shadow"), ("control", "variant"),
    ("control", "candidate"),
    ("control", "test"), ("incumbent", "challenger"), ("incumbent", "candidate"), ("previous", "new"),
)  # fmt: skip
_ANSWER_WORDS = frozenset(
    [
        "response",
        "answer",
        "output",
        "completion",
        "text",
        "reply",
        "generation",
        "result",
        "generated",
        "message",
        "content",
        "model",
        "llm",
        "bot",
        "assistant",
        "ai",
        "responses",
        "answers",
        "outputs",
        "summary",
        "translation",
        "body",
    ]
)
_ANSWERS = (
    "response", "answer", "output", "completion", "assistant_response", "model_response", "model_output",
    "llm_response", "llm_output",
    "bot_response", "ai_response", "generated_text", "generation", "reply", "response_text", "answer_text",
    "output_text", "completion_text",
    "assistant_message", "assistant", "model_answer", "bot_answer", "bot_message", "agent_response", "result",
    "prediction", "generated",
    "ai_message", "response_body", "response_content", "assistant_reply", "chatbot_response", "final_answer",
    "outputs", "text", "content",
    "message",
)  # fmt: skip
_PROMPTS = (
    "prompt", "question", "query", "user_prompt", "user_message", "user_input", "user_query", "user_question", "input",
    "instruction",
    "messages", "prompt_text", "input_text", "question_text", "request", "human", "utterance", "user_text", "customer_message",
    "request_text", "inputs", "request_body", "conversation", "task", "ask", "user", "message", "text", "title",
)  # fmt: skip
_NAMES: Mapping[str, tuple[str, ...]] = {
    "system": ("system_prompt", "system", "system_message", "instructions"),
    "arm": ("arm", "variant", "experiment_arm", "ab_variant", "ab_group", "experiment_group", "treatment_group",
    "test_group", "bucket",
            "group", "cohort", "experiment_variant", "variation", "condition", "branch"),
    "user": ("user_id", "userid", "user", "uid", "customer_id", "end_user_id", "end_user", "account_id", "client_id",
    "member_id", "unit_id",
             "unit", "visitor_id", "person_id", "customer", "user_email", "email", "user_hash", "anonymous_id"),
    "session": ("session_id", "conversation_id", "thread_id", "chat_id", "session", "dialog_id"),
    "time": ("timestamp", "started_at", "created_at", "ts", "time", "datetime", "start_time", "request_time",
    "event_time", "logged_at",
             "created", "date", "requested_at", "occurred_at", "at"),
    "id": ("request_id", "pair_id", "id", "uuid", "message_id", "example_id", "prompt_id", "question_id", "row_id",
    "trace_id", "case_id",
           "sample_id", "test_id", "item_id"),
    "model": ("model", "model_name", "llm_model", "llm", "engine", "deployment"),
    "label": ("label", "winner", "preference", "preferred", "verdict"),
    "latency_ms": ("latency_ms", "duration_ms", "response_time_ms", "elapsed_ms", "latency_millis", "took_ms",
    "latency", "duration",
                   "response_time", "elapsed"),
    "latency_s": ("latency_s", "latency_sec", "latency_seconds", "duration_s", "duration_seconds", "elapsed_s",
    "response_time_s"),
    "ttft_ms": ("ttft_ms", "time_to_first_token_ms", "first_token_ms"),
    "input_tokens": ("input_tokens", "prompt_tokens", "tokens_in", "num_input_tokens", "n_prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens", "tokens_out", "num_output_tokens", "response_tokens",
    "n_completion_tokens"),
    "cost": ("cost_usd", "cost", "total_cost", "price_usd", "usd"),
    "status": ("status_code", "http_status", "response_status", "status"),
    "error": ("error", "error_message", "exception"),
    "finish_reason": ("finish_reason", "stop_reason"),
    "tool_calls": ("tool_calls",),
    "context": ("context", "contexts", "retrieved_contexts", "retrieved_context", "retrieved_documents"),
    "reference": ("reference", "reference_answer", "ground_truth", "expected_output", "expected_answer", "gold_answer"),
}  # fmt: skip
_MEASURES = {
    "latencyms": "latency_ms", "latency": "latency_ms", "durationms": "latency_ms", "inputtokens": "input_tokens",
    "prompttokens": "input_tokens", "outputtokens": "output_tokens", "completiontokens": "output_tokens", "costusd": "cost_usd",
    "cost": "cost_usd", "model": "model", "modelname": "model", "tokensin": "input_tokens", "tokensout": "output_tokens",
}  # fmt: skip
_MAX_DEPTH = 3


def columns_of(documents: Sequence[Any]) -> list[str]:
    """The columns of the documents: keys, and paths to the values of objects in them, in the order they are first
    seen."""
    found: dict[str, None] = {}

    def walk(value: Any, path: str, depth: int) -> None:
        value = opened(value) if depth else value
        if isinstance(value, Mapping) and depth < _MAX_DEPTH and not is_message(value):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key), depth + 1)
        elif path:
            found.setdefault(path)

    for document in documents:
        if isinstance(document, Mapping):
            walk(document, "", 0)
    return list(found)


def guess_mapping(documents: Sequence[Any]) -> Mapped | None:
    """What the columns most likely are; None where no answer can be made out among them."""
    objects = [document for document in documents if isinstance(document, Mapping)]
    if not objects:
        return None
    columns = columns_of(objects)
    values = {column: [find(document, column) for document in objects] for column in columns}
    texts = [column for column in columns if _is_text(values[column])]
    paths: dict[str, str] = {}
    used: set[str] = set()

    def take(target: str, column: str | None) -> None:
        if column is not None:
            paths[target] = column
            used.add(column)

    two = _two_answers(columns, values, texts)
    if two is not None:
        take("text_a", two[0])
        take("text_b", two[1])
    else:
        take("text", _named(_ANSWERS, [one for one in columns if _is_answer(values[one])]))
    take("prompt", _named(_PROMPTS, [one for one in columns if one not in used and _is_asked(values[one])]))
    if "prompt" not in paths and two is None and "text" not in paths:
        return None
    no_answer = "prompt" in paths and two is None and "text" not in paths
    if no_answer and not _is_conversation(values[paths["prompt"]]):
        two = _columns_of_models(texts, used)
        if two is None:
            return None
        take("text_a", two[0])
        take("text_b", two[1])
    if two is not None and "prompt" not in paths:
        left = [column for column in texts if column not in used]
        if len(left) != 1:
            return None
        take("prompt", left[0])
    for target, names in _NAMES.items():
        if (target == "arm" and two is not None) or (target == "label" and two is None):
            continue
        if two is not None and target in {"latency_ms", "latency_s", "ttft_ms", "input_tokens", "output_tokens",
            "cost", "status", "error",
                                          "finish_reason", "tool_calls", "model"}:  # fmt: skip
            continue
        take(target, _named(names, [one for one in columns if one not in used and _fits(target, values[one])]))
    if "id" in paths and not _is_unique(paths, values):
        used.discard(paths.pop("id"))
    if "latency_ms" in paths and "latency_s" in paths:
        paths.pop("latency_s")
    if "latency_ms" in paths and normal(paths["latency_ms"].rsplit(".", 1)[-1]) in {
        "latency",
        "duration",
        "responsetime",
        "elapsed",
    }:
        known = sorted(one for one in map(number, values[paths["latency_ms"]]) if one is not None)
        if known and known[len(known) // 2] < 60:  # no model responds in 60 ms: these are seconds
            paths["latency_s"] = paths.pop("latency_ms")
    if two is not None:
        _add_measures(paths, columns, two)
    order = ["prompt", "system", "text", "text_a", "text_b"]
    return Mapped(dict(sorted(paths.items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order))))


def _tokens(column: str) -> list[str]:
    spread = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", column)
    parts = [part.lower() for part in re.split(r"[\s_\-.]+", spread) if part]
    found: list[str] = []
    for part in parts:  # response1 is response 1
        split = re.fullmatch(r"([a-z]{3,})(\d)", part)
        found += [split[1], split[2]] if split else [part]
    return found


def _two_answers(
    columns: Sequence[str], values: Mapping[str, list[Any]], texts: Sequence[str]
) -> tuple[str, str] | None:
    """Two columns of text that differ in one word of a known pair: (control's, treatment's)."""
    best: tuple[int, tuple[str, str]] | None = None
    answers = [column for column in columns if column in texts or _is_answer(values[column])]
    for one in answers:
        for other in answers:
            if one == other:
                continue
            rank = _rank_of_sides(_tokens(one), _tokens(other))
            if rank is not None and (best is None or rank < best[0]):
                best = (rank, (one, other))
    return None if best is None else best[1]


def _rank_of_sides(one: list[str], other: list[str]) -> int | None:
    if len(one) != len(other):
        return None
    apart = [at for at in range(len(one)) if one[at] != other[at]]
    if len(apart) != 1 or (one[apart[0]], other[apart[0]]) not in _SIDES:
        return None
    rest = [word for at, word in enumerate(one) if at != apart[0]]
    if rest and not (set(rest) <= _ANSWER_WORDS and set(rest) != {"model"}):
        return None
    return _SIDES.index((one[apart[0]], other[apart[0]])) + (0 if rest else 50)


def _columns_of_models(texts: Sequence[str], used: set[str]) -> tuple[str, str] | None:
    """Two columns that are named after models, or the only two texts that are left."""
    left = [column for column in texts if column not in used]
    named = [column for column in left if family(column) is not None]
    found = named if len(named) == 2 else left
    return (found[0], found[1]) if len(found) == 2 else None


def _named(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first column that has one of the names, whole or as the last step of its path."""
    for by_last in (False, True):
        by_name = {normal(column.rsplit(".", 1)[-1] if by_last else column): column for column in reversed(columns)}
        for one in names:
            if normal(one) in by_name:
                return by_name[normal(one)]
    return None


def _known(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None and value != ""]


def _is_text(values: list[Any]) -> bool:
    known = _known(values)
    return (
        bool(known)
        and all(isinstance(value, str) for value in known)
        and not all(number(value) is not None for value in known)
    )


def _is_answer(values: list[Any]) -> bool:
    known = _known(values)
    return bool(known) and all(isinstance(value, str | list | dict | int | float) for value in known)


def _is_asked(values: list[Any]) -> bool:
    known = _known(values)
    return bool(known) and (_is_text(values) or all(isinstance(value, list | dict) for value in known))


def _is_conversation(values: list[Any]) -> bool:
    known = [opened(value) for value in _known(values)]
    return bool(known) and all(isinstance(one, list) and one and all(map(is_message, one)) for one in known)


def _fits(target: str, values: list[Any]) -> bool:
    known = _known(values)
    if not known:
        return False
    if target == "time":
        return all(instant(value) is not None for value in known)
    if target in {"latency_ms", "latency_s", "ttft_ms", "input_tokens", "output_tokens", "cost"}:
        return all(number(value) is not None for value in known)
    if target == "arm":
        return len({str(value) for value in known}) <= max(2, len(known) // 2) and all(
            name(value) is not None for value in known
        )
    if target == "status":
        return all(number(value) is not None for value in known)
    if target in {"user", "id", "session", "model", "finish_reason", "label"}:
        return all(isinstance(value, str | int | float) for value in known)
    return True


def _is_unique(paths: Mapping[str, str], values: Mapping[str, list[Any]]) -> bool:
    ids = values[paths["id"]]
    keys = list(zip(ids, values[paths["arm"]], strict=True)) if "arm" in paths else ids
    return all(one is not None for one in ids) and len({str(key) for key in keys}) == len(keys)


def _add_measures(paths: dict[str, str], columns: Sequence[str], two: tuple[str, str]) -> None:
    """Columns of measures that carry the same word for the arm as the answers do."""
    one, other = _tokens(two[0]), _tokens(two[1])
    at = next(place for place in range(len(one)) if one[place] != other[place]) if len(one) == len(other) else None
    if at is None:
        return
    for column in columns:
        tokens = _tokens(column)
        for side, word in (("a", one[at]), ("b", other[at])):
            if word in tokens and len(tokens) > 1:
                stem = "".join(token for token in tokens if token != word)
                measure = _MEASURES.get(stem)
                if measure and column not in two:
                    paths.setdefault(f"{measure}_{side}", column)
