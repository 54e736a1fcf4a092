"""`--map "prompt=question, text=answer"`: the user's own table of paths, as a format."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.identity import fingerprint
from evalpipe.models import Arm
from evalpipe.providers.model_names import same_model
from evalpipe.store.importers import pairs
from evalpipe.store.importers.base import BrokenLineError, Imported, Importer, unknown_time
from evalpipe.store.importers.messages import read_messages
from evalpipe.store.importers.responses import Said, read_said
from evalpipe.store.importers.table import Format, kind_of
from evalpipe.store.importers.values import count, find, instant, milliseconds_of, name, normal, number

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
}
"""what a path can be given for, and other words for it"""
_WORDS = {normal(word): target for target, words in TARGETS.items() for word in (target, *words)}
_ENTRY = re.compile(r"""\s*([A-Za-z_][\w ]*?)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""")
_COLUMNS = {
    "prompt": "prompt", "system": "system", "text": "answer", "arm": "variant", "user": "unit", "session": "conversation",
    "time": "start", "end": "end", "id": "id", "model": "model", "latency_ms": "latency_ms", "latency_s": "latency_s",
    "ttft_ms": "ttft_ms", "input_tokens": "input_tokens", "output_tokens": "output_tokens", "cost": "cost", "status": "status",
    "error": "error", "finish_reason": "finish_reason", "tool_calls": "tool_calls", "meta": "meta",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mapped:
    """target → path, as `--map` gives it."""

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
        return isinstance(document, Mapping) and all(_is_there(document, self.paths[target]) for target in wanted)

    def _amend(self, call: Mapping[str, Any], row: dict[str, Any]) -> None:
        if "text" in self.paths and not _is_there(call, self.paths["text"]):
            raise BrokenLineError(f"{self.paths['text']} is missing")
        if "arm" in self.paths and row.get("variant") is None:
            raise BrokenLineError(f"{self.paths['arm']} is missing: it names the arm")
        row["is_answered"] = True
        if row.get("status") is not None and number(row["status"]) is None:
            row["state"], row["status"] = row["status"], None
        if "text" in self.paths and row.get("answer") == "":
            row["said"] = Said(text="")

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
        texts = {side: "" if values[f"text_{side}"] == "" else read_said(values[f"text_{side}"]).text for side in "ab"}
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


def check_paths(mapped: Mapped, documents: list[Any], where: str) -> None:
    """Raise ConfigError where a path of the mapping leads nowhere in any of the documents."""
    objects = [document for document in documents if isinstance(document, Mapping)]
    if not objects:
        return
    for target, path in mapped.paths.items():
        if not any(_is_there(document, path) for document in objects):
            keys = list(dict.fromkeys(str(key) for document in objects[:20] for key in document))
            near = difflib.get_close_matches(path, keys, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--map: {target}={path} is nowhere in {where}, which has {', '.join(keys[:25])}{hint}")


# Which value of a log's own column is which arm.


_CONTROL = frozenset({"control", "a", "old", "baseline", "base", "current", "production", "prod", "champion", "0",
    "off", "before", "incumbent", "false", "ctrl", "c", "existing", "default", "original"})  # fmt: skip
_TREATMENT = frozenset({"treatment", "b", "new", "candidate", "challenger", "1", "on", "after", "test", "true", "t",
    "variant", "treated", "experiment", "exp", "variation"})  # fmt: skip


class Arms:
    """Values are told apart by their words, by the models of the configuration, else the first one seen is control's.

    `named`: (control's value, treatment's), as the user gave them; any other value is then of no arm. `first`: the
    arm of the first value where nothing else says it.
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
            self.seen[value] = self._told(value)
        return self.seen[value]

    def _told(self, value: str) -> Arm | None:
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
